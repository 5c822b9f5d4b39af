//! Where a project's files may lie (PROJ-2), and who owns them (PROJ-14).
//!
//! This is the only code that looks at a project's folder from outside, before a container exists, and it looks no further than
//! the folder itself, the names at its root, and whether a repository that is adopted stands alone.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    time::UNIX_EPOCH,
};

use super::{
    cloning,
    project::{Identity, Owner, Project, Spec, Stage},
};
use crate::{chat::Person, people::Role, refusal::Refusal, text};

/// Write permission for the group or for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The sticky bit: in such a folder, only an entry's owner may replace it.
const STICKY: u32 = 0o1000;

/// What the rules need to know of the host.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Folders under which projects may lie; the first is the default.
    pub roots: Vec<PathBuf>,
    /// The person's home.
    pub home: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// Folders that are not for whoever asks.
    pub taken: Vec<Taken>,
    /// The gateway's own effective user.
    pub own: Owner,
    /// Who gets folders that belong to root.
    pub fallback: Owner,
}

/// A folder that is not for whoever asks, and all that lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Canonical.
    pub path: PathBuf,
    /// Whose it is, as far as whoever asks may know.
    pub whose: String,
}

impl Taken {
    /// What a project takes from somebody who asks for another. The files of a deleted one stay, and who may use them
    /// does, too (SEC-4).
    pub fn by(project: &Project, asker: &Person, role: Role) -> Option<Self> {
        let free = project.stage == Stage::Removed && project.admits(asker, role);
        Self::once_by(project, asker, role).filter(|_| !free)
    }

    /// The same, but for good: what was once a project's folder may hold what its container left there, and is trusted with
    /// nothing of the host.
    pub fn once_by(project: &Project, asker: &Person, role: Role) -> Option<Self> {
        let spec = project.spec.as_ref()?;
        let whose = match (project.admits(asker, role), project.stage) {
            (true, Stage::Removed) => format!("`{}`, a deleted project", spec.name),
            (false, Stage::Removed) => "a deleted project that was for its members alone".to_owned(),
            (true, _) => format!("project `{}`", spec.name),
            (false, _) => "another project".to_owned(),
        };
        Some(Self { path: spec.path.clone(), whose })
    }
}

/// What stands at the chosen place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet.
    Nothing,
    /// An empty folder.
    Empty,
    /// A git repository that is to be adopted.
    Repository,
}

/// A place that the rules allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Canonical.
    pub path: PathBuf,
    /// What is there.
    pub found: Found,
}

impl Rules {
    /// What takes this canonical path: lies in it, or around it.
    pub fn taking(&self, path: &Path) -> Option<&Taken> {
        self.taken.iter().find(|taken| taken.path.starts_with(path) || path.starts_with(&taken.path))
    }
}

/// Finds the place for a project called `name`: `requested`, or a folder of that name under the first root.
pub fn choose(rules: &Rules, name: &str, requested: Option<&str>, adopt: bool) -> Result<Place, Refusal> {
    let requested = match requested {
        Some(path) => expand(path, &rules.home)?,
        None => rules
            .roots
            .first()
            .ok_or_else(|| Refusal::config("no folder for projects is configured"))
            .map(|root| root.join(name))?,
    };
    let shown = text::code(&requested.to_string_lossy());
    if requested.components().any(|part| part == Component::ParentDir) {
        return Err(Refusal::usage(format!("the path {shown} contains `..`")).hint("Write it out."));
    }
    if requested.to_string_lossy().chars().any(char::is_control) || requested.to_str().is_none() {
        return Err(Refusal::usage(format!("the path {shown} contains characters that cannot be shown"))
            .hint("Choose a plain name."));
    }
    let path = canonical(&requested)?;
    let roots = rules.roots.iter().map(|root| canonical(root)).collect::<Result<Vec<_>, _>>()?;
    let home = canonical(&rules.home)?;
    if path.parent().is_none() || path == home {
        return Err(Refusal::usage(format!("{shown} cannot be a project's folder"))
            .hint("Choose a folder below one of the configured roots."));
    }
    if path.starts_with(&rules.state) || rules.state.starts_with(&path) {
        return Err(Refusal::usage(format!("{shown} and the state directory lie in each other"))
            .hint("Choose a folder elsewhere."));
    }
    if !roots.iter().any(|root| path.starts_with(root) && path != *root) {
        let allowed: Vec<_> = roots.iter().map(|root| text::code(&root.to_string_lossy())).collect();
        return Err(Refusal::usage(format!(
            "{shown} is not below a folder where projects may lie ({})",
            allowed.join(", ")
        ))
        .hint("Choose a folder there, or add its parent to `[projects] roots` in bot.toml."));
    }
    if let Some(Taken { whose, .. }) = rules.taking(&path) {
        return Err(Refusal::usage(format!("{shown} overlaps the folder of {whose}"))
            .hint("Choose another folder with `--path`."));
    }
    let found = look(&path, adopt)?;
    if found != Found::Nothing {
        owner(rules, &path, found)?;
    }
    check_parents(rules, &path)?;
    Ok(Place { path, found })
}

/// Who owns the files at an existing folder: its owner, or where that is root the configured one.
pub fn owner(rules: &Rules, path: &Path, found: Found) -> Result<Owner, Refusal> {
    let meta = fs::symlink_metadata(path).map_err(|error| unreadable(path, error))?;
    let shown = text::code(&path.to_string_lossy());
    if rules.own.uid != 0 {
        if meta.uid() != rules.own.uid {
            return Err(Refusal::usage(format!("{shown} belongs to another user (uid {})", meta.uid()))
                .hint("Choose a folder of your own, or leave `--path` out."));
        }
        return Ok(rules.own);
    }
    if meta.uid() == 0 {
        if found == Found::Repository {
            let Owner { uid, gid } = rules.fallback;
            return Err(Refusal::usage(format!("{shown} belongs to root, and nothing in a container runs as root"))
                .hint(format!("Give it away first: chown -R {uid}:{gid} {}", path.display())));
        }
        return Ok(rules.fallback);
    }
    let gid = if meta.gid() == 0 { rules.fallback.gid } else { meta.gid() };
    Ok(Owner { uid: meta.uid(), gid })
}

/// Which folder is at `path` now.
pub fn identity(path: &Path) -> Result<Identity, Refusal> {
    let meta = fs::symlink_metadata(path).map_err(|error| unreadable(path, error))?;
    if !meta.is_dir() {
        return Err(Refusal::usage(format!("{} is not a folder", text::code(&path.to_string_lossy()))));
    }
    Ok(identity_of(&meta))
}

fn identity_of(meta: &Metadata) -> Identity {
    let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    // Some file systems that do not keep it say 1970.
    let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok()).filter(|&born| born > 0);
    Identity { device: meta.dev(), inode: meta.ino(), born_ns }
}

/// Refused when a project's folder is not where it was any more, or another stands there. That does not pass by itself.
pub fn recognise(spec: &Spec, known: Identity) -> Result<(), Refusal> {
    let shown = text::code(&spec.path.to_string_lossy());
    let what = match fs::symlink_metadata(&spec.path) {
        Ok(meta) if meta.is_dir() && known.is(identity_of(&meta)) => return Ok(()),
        Ok(_) => format!("another folder stands at {shown} now"),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            format!("the project's folder {shown} is gone")
        }
        Err(error) => return Err(unreadable(&spec.path, error)),
    };
    Err(Refusal::config(what).hint(format!(
        "Put the project's own folder back, or `delete project {}`: its files stay where they are.",
        spec.name
    )))
}

/// Who owns a folder now.
pub fn owned(path: &Path) -> std::io::Result<Owner> {
    fs::symlink_metadata(path).map(|meta| Owner { uid: meta.uid(), gid: meta.gid() })
}

/// The names at the root of a folder, for detection. Called before the project's container exists.
pub fn names(path: &Path) -> Result<Vec<String>, Refusal> {
    let entries = fs::read_dir(path).map_err(|error| unreadable(path, error))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(path, error))?;
    names.sort_unstable();
    Ok(names)
}

/// Expands a leading `~/`; anything that is not absolute then is refused.
pub fn expand(path: &str, home: &Path) -> Result<PathBuf, Refusal> {
    let expanded = match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(path),
    };
    if expanded.is_absolute() {
        Ok(expanded)
    } else {
        Err(Refusal::usage(format!("the path {} is not absolute", text::code(path))).hint("Begin it with `/` or `~/`."))
    }
}

/// The path with every existing part resolved.
fn canonical(path: &Path) -> Result<PathBuf, Refusal> {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        match existing.canonicalize() {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, part| path.join(part))),
            Err(error) if error.kind() == ErrorKind::NotFound => match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) if fs::symlink_metadata(existing).is_err() => {
                    missing.push(name);
                    existing = parent;
                }
                _ => return Err(unreadable(existing, error)),
            },
            Err(error) => return Err(unreadable(existing, error)),
        }
    }
}

fn look(path: &Path, adopt: bool) -> Result<Found, Refusal> {
    let shown = text::code(&path.to_string_lossy());
    let first = match fs::read_dir(path) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == ErrorKind::NotFound && adopt => {
            return Err(Refusal::usage(format!("there is no repository at {shown} to adopt"))
                .hint("Leave `--adopt` out, or name its folder with `--path`."));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(Refusal::usage(format!("{shown} is a file")).hint("Choose a folder."));
        }
        Err(error) => return Err(unreadable(path, error)),
    };
    let repository = fs::symlink_metadata(path.join(".git")).is_ok();
    match (first, repository, adopt) {
        (None, _, false) => Ok(Found::Empty),
        (_, true, true) => stands_alone(path).map(|()| Found::Repository),
        (_, true, false) => Err(Refusal::usage(format!("{shown} is a git repository already"))
            .hint("Add `--adopt` to work in it as it is.")),
        (_, false, true) => Err(Refusal::usage(format!("{shown} is not a git repository, so it cannot be adopted"))
            .hint("Run `git init` in it first, or choose an empty folder.")),
        (Some(_), false, false) => Err(Refusal::usage(format!("{shown} exists and is not empty"))
            .hint("Choose another folder with `--path`, or make it a git repository and add `--adopt`.")),
    }
}

/// Refused unless all that git needs of a repository lies in its folder: nothing else of the host is in its container. No link is
/// followed.
fn stands_alone(path: &Path) -> Result<(), Refusal> {
    let shown = text::code(&path.to_string_lossy());
    let kind = |inner: &str| match fs::symlink_metadata(path.join(inner)) {
        Ok(meta) => Ok(Some(meta.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path.join(inner), error)),
    };
    // A worktree and a submodule have a file for it.
    for folder in [".git", ".git/objects", ".git/objects/info"] {
        if kind(folder)?.is_some_and(|kind| !kind.is_dir()) {
            return Err(cloning::elsewhere(&shown));
        }
    }
    if kind(".git/commondir")?.is_some() {
        return Err(cloning::elsewhere(&shown));
    }
    if kind(".git/objects/info/alternates")?.is_some() {
        return Err(cloning::borrowed(&shown));
    }
    Ok(())
}

/// Nobody but root and the gateway's own user may be able to put another folder in its place.
fn check_parents(rules: &Rules, path: &Path) -> Result<(), Refusal> {
    for parent in path.ancestors().skip(1) {
        let meta = match fs::symlink_metadata(parent) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(parent, error)),
        };
        let trusted = [0, rules.own.uid].contains(&meta.uid());
        let open = meta.mode() & WRITABLE_BY_OTHERS != 0 && meta.mode() & STICKY == 0;
        // A group that has the owner's own number and name is the owner's alone on Debian.
        let own_group = meta.mode() & 0o002 == 0 && meta.gid() == meta.uid();
        if !trusted || (open && !own_group) {
            return Err(Refusal::usage(format!(
                "{} could be replaced by others, because they can write to {}",
                text::code(&path.to_string_lossy()),
                text::code(&parent.to_string_lossy())
            ))
            .hint("Choose another folder with `--path`, or take the permission away: chmod go-w."));
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: std::io::Error) -> Refusal {
    Refusal::internal(format!("{} cannot be read", text::code(&path.to_string_lossy())), error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::chat::SurfaceKind;

    struct Host {
        _folder: tempfile::TempDir,
        rules: Rules,
    }

    fn host() -> Host {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let base = folder.path().canonicalize().expect("it is there");
        for part in ["home/src/empty", "home/src/full", "home/src/repo/.git", "home/state"] {
            fs::create_dir_all(base.join(part)).expect("it can be made");
        }
        fs::write(base.join("home/src/full/file"), "x").expect("it can be written");
        let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let home = base.join("home");
        let rules = Rules {
            roots: vec![home.join("musher"), home.join("src")],
            state: home.join("state"),
            home,
            taken: Vec::new(),
            own,
            fallback: if own.uid == 0 { Owner { uid: 1000, gid: 1000 } } else { own },
        };
        Host { _folder: folder, rules }
    }

    #[test]
    fn the_default_place_is_a_folder_of_that_name_under_the_first_root() {
        let host = host();
        let place = choose(&host.rules, "app", None, false).expect("it is allowed");
        assert_eq!(place, Place { path: host.rules.roots[0].join("app"), found: Found::Nothing });
    }

    #[test]
    fn places_that_are_refused() {
        let mut host = host();
        let taken = Taken { path: host.rules.home.join("src/taken"), whose: "project `other`".into() };
        host.rules.taken.push(taken);
        std::os::unix::fs::symlink("/etc", host.rules.home.join("src/link")).expect("a link can be made");
        for (path, adopt, words) in [
            ("relative", false, "not absolute"),
            ("~/src/../x", false, "contains `..`"),
            ("~/src", false, "not below"),
            ("/", false, "cannot be"),
            ("/etc/x", false, "not below"),
            ("~/src/link", false, "not below"),
            ("~/state/x", false, "state directory"),
            ("~/src/full", false, "not empty"),
            ("~/src/full/file", false, "is a file"),
            ("~/src/full", true, "not a git repository"),
            ("~/src/repo", false, "already"),
            ("~/src/none", true, "no repository"),
            ("~/src/taken/inner", false, "project `other`"),
            ("~/src/a\nb", false, "cannot be shown"),
        ] {
            let refusal = choose(&host.rules, "app", Some(path), adopt).expect_err(path);
            assert!(refusal.what.contains(words), "{path}: {refusal}");
            assert!(refusal.hint.is_some() || words == "cannot be read", "{path}: {refusal}");
        }
    }

    #[test]
    fn what_a_members_only_project_leaves_stays_its_members() {
        let host = host();
        let person = |name: &str| Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") };
        let project = |stage, members: Option<&[&str]>| Project {
            stage,
            members: members.map(|members| members.iter().map(|name| person(name)).collect()),
            spec: Some(Spec { asked_by: person("maker"), ..Spec::example(host.rules.home.join("src/repo")) }),
            ..Project::default()
        };
        let (open, closed, nobody) = (None, Some(["ann"].as_slice()), Some([].as_slice()));
        let (app, another) = (Some("project `app`"), Some("another project"));
        let deleted = Some("a deleted project that was for its members alone");
        for (stage, members, asker, role, whose) in [
            (Stage::Registered, open, "bob", Role::Member, app),
            (Stage::Registered, closed, "ann", Role::Member, app),
            (Stage::Registered, closed, "bob", Role::Member, another),
            (Stage::Deleting, closed, "bob", Role::Member, another),
            (Stage::Removed, open, "bob", Role::Member, None),
            (Stage::Removed, closed, "ann", Role::Member, None),
            (Stage::Removed, closed, "maker", Role::Member, None),
            (Stage::Removed, closed, "bob", Role::Admin, None),
            (Stage::Removed, closed, "bob", Role::Member, deleted),
            (Stage::Removed, nobody, "ann", Role::Member, deleted),
        ] {
            let taken = Taken::by(&project(stage, members), &person(asker), role);
            assert_eq!(
                taken.as_ref().map(|taken| taken.whose.as_str()),
                whose,
                "{stage:?} {members:?} {asker} {role:?}"
            );
            let rules = Rules { taken: taken.into_iter().collect(), ..host.rules.clone() };
            for (path, adopt) in [("~/src/repo", true), ("~/src/repo/inner", false)] {
                match (whose, choose(&rules, "app", Some(path), adopt)) {
                    (Some(whose), chosen) => {
                        let refusal = chosen.expect_err("it is taken");
                        assert!(refusal.what.ends_with(&format!("overlaps the folder of {whose}")), "{refusal}");
                    }
                    (None, Err(refusal)) => assert!(refusal.what.contains("belongs to root"), "{refusal}"),
                    (None, Ok(_)) => {}
                }
            }
        }
    }

    #[test]
    fn an_empty_folder_and_an_adopted_repository_are_taken() {
        let host = host();
        let empty = choose(&host.rules, "app", Some("~/src/empty"), false).expect("it is empty");
        assert_eq!(empty.found, Found::Empty);
        if host.rules.own.uid != 0 {
            let repo = choose(&host.rules, "app", Some("~/src/repo"), true).expect("it is a repository");
            assert_eq!(repo.found, Found::Repository);
        }
    }

    #[test]
    fn a_folder_is_the_same_whatever_is_done_in_it_and_another_when_it_was_made_anew() {
        let host = host();
        let path = host.rules.home.join("src/empty");
        let before = identity(&path).expect("it is there");
        fs::write(path.join("file"), "x").expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("it is ours");
        assert_eq!(identity(&path).expect("it is there"), before);
        let moved = Identity { device: before.device + 1, ..before };
        assert_eq!(before.is(moved), before.born_ns.is_some());
        let other = identity(&host.rules.home.join("src/full")).expect("it is there");
        assert!(!before.is(other));
    }

    #[test]
    fn a_repository_of_which_a_part_lies_elsewhere_is_not_adopted() {
        let host = host();
        let home = &host.rules.home;
        let write = |path: &Path, text: &str| fs::write(path, text).expect("it can be written");
        let link = |path: &Path| std::os::unix::fs::symlink(home, path).expect("a link can be made");
        let (elsewhere, borrowed) = ("lies elsewhere", "borrows its objects");
        let bend = |name: &str, bend: &dyn Fn(&Path), words: &str| {
            let folder = home.join("src").join(name);
            fs::create_dir_all(folder.join(".git/objects/info")).expect("it can be made");
            bend(&folder.join(".git"));
            let refusal = look(&folder, true).expect_err(name);
            assert!(refusal.what.contains(words) && refusal.hint.is_some(), "{name}: {refusal}");
        };
        bend(
            "worktree",
            &|git| {
                fs::remove_dir_all(git).expect("it can be removed");
                write(git, "gitdir: /srv/app/.git/worktrees/app\n");
            },
            elsewhere,
        );
        for part in ["", "objects", "objects/info"] {
            let bent = |git: &Path| {
                let part = PathBuf::from(git.join(part).to_string_lossy().trim_end_matches('/'));
                fs::remove_dir_all(&part).expect("it can be removed");
                link(&part);
            };
            bend(&format!("linked-{}", part.len()), &bent, elsewhere);
        }
        bend("common", &|git| write(&git.join("commondir"), "/srv/app/.git\n"), elsewhere);
        bend("dangling", &|git| link(&git.join("commondir")), elsewhere);
        bend("borrowed", &|git| write(&git.join("objects/info/alternates"), "/srv/app/.git/objects\n"), borrowed);
        let whole = home.join("src/whole");
        fs::create_dir_all(whole.join(".git/objects/info")).expect("it can be made");
        fs::create_dir_all(whole.join(".git/worktrees/other")).expect("it can be made");
        write(&whole.join(".git/worktrees/other/commondir"), "../..\n");
        assert_eq!(look(&whole, true).expect("it has worktrees, and is none"), Found::Repository);
    }

    #[test]
    fn a_parent_that_others_can_write_to_is_refused() {
        let host = host();
        fs::set_permissions(&host.rules.roots[1], fs::Permissions::from_mode(0o777)).expect("it is ours");
        let refusal = choose(&host.rules, "app", Some("~/src/new"), false).expect_err("anybody may replace it");
        assert!(refusal.what.contains("replaced by others"), "{refusal}");
        fs::set_permissions(&host.rules.roots[1], fs::Permissions::from_mode(0o1777)).expect("it is ours");
        choose(&host.rules, "app", Some("~/src/new"), false).expect("sticky protects it");
    }
}
