//! `doctor`: what of the installation works, shown from the engine's own words, and what to do about the rest.

use std::sync::Arc;

use musher_docker::{ContainerFacts, ContainerState, Inspection, LABEL_PROJECT};
use serde::Serialize;
use stacks::Stack;
use uuid::Uuid;

use crate::{
    author::Author,
    chat::Person,
    commands::stacks::lacks,
    containers::{NetworkFault, SharedContainers},
    home::Home,
    people::Role,
    projects::{self, Owner, Project, Registry, Stage, place},
    refusal::Refusal,
    text,
};

/// Less free space than this in the state directory is a problem, in bytes.
const SPACE_MIN: u64 = 2 << 30;

/// Checks one installation.
#[derive(Clone)]
pub struct Doctor {
    /// The state directory.
    pub home: Home,
    /// Images, containers, the engine.
    pub containers: SharedContainers,
    /// Whom images are made for, where a project's folder does not say otherwise.
    pub owner: Owner,
    /// What is known beforehand: which agent answers, where the model's key comes from.
    pub known: Arc<[Check]>,
    /// Projects that bot.toml names, each of which should be there.
    pub model_projects: Arc<[String]>,
}

/// The projects of the gateway that runs, as somebody may see them (SEC-4): of those that they may not use nothing is said.
#[derive(Clone, Copy)]
pub struct Seen<'p> {
    /// All of them.
    pub registry: &'p Registry,
    /// Who looks.
    pub by: &'p Person,
    /// With which rights.
    pub role: Role,
    /// Whose name commits carry.
    pub author: &'p Author,
}

impl Seen<'_> {
    fn shows(self, project: &Project) -> bool {
        project.admits(self.by, self.role)
    }

    /// What no project has is nobody's secret.
    fn shows_name(self, name: &str) -> bool {
        self.registry.by_name(name).is_none_or(|(_, project)| self.shows(&project))
    }

    /// A container that is left of a deleted project is still that project's.
    fn shows_container(self, name: Option<&str>, id: Option<&str>) -> bool {
        let project = id.and_then(|id| self.registry.get(id.parse::<Uuid>().ok()?));
        project.is_none_or(|project| self.shows(&project)) && name.is_none_or(|name| self.shows_name(name))
    }
}

/// What [`Doctor::known`] calls the check of a project's own model.
pub(crate) fn own_model(project: &str) -> String {
    format!("model of {project}")
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is, such as `engine`.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Check {
    /// Something that is as it should be.
    pub fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, found: found.into(), hint: None }
    }

    /// Something that is not.
    pub fn bad(name: impl Into<String>, found: impl Into<String>, hint: Option<String>) -> Self {
        Self { name: name.into(), ok: false, found: found.into(), hint }
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether all is as it should be.
    pub ok: bool,
    /// One entry per thing.
    pub checks: Vec<Check>,
}

impl Report {
    /// The report as chat text; as terminal text it reads the same.
    pub fn to_markdown(&self) -> String {
        let mut lines: Vec<_> = self
            .checks
            .iter()
            .map(|check| {
                let mark = if check.ok { '✓' } else { '✗' };
                let hint = check.hint.as_deref().map(|hint| format!(" — {hint}")).unwrap_or_default();
                format!("- {mark} {}: {}{hint}", check.name, text::one_line(&check.found, 300))
            })
            .collect();
        let wrong = self.checks.iter().filter(|check| !check.ok).count();
        lines.push(String::new());
        lines.push(if wrong == 0 {
            "All is well.".to_owned()
        } else {
            format!("{} to mend.", text::count(wrong, "thing"))
        });
        lines.join("\n")
    }
}

impl Doctor {
    /// Looks at everything; with `seen`, at the projects' folders and containers too.
    pub async fn run(&self, seen: Option<Seen<'_>>) -> Report {
        let mut checks = vec![Check::good("version", format!("musher {}", env!("CARGO_PKG_VERSION")))];
        checks.push(self.state_directory());
        checks.extend(known(&self.known, &self.model_projects, seen));
        if let Some(seen) = seen {
            checks.extend(strangers(&self.model_projects, seen));
            checks.push(identity(seen.author));
            checks.extend(folders(seen));
        }
        let engine = self.engine().await;
        let reachable = engine.ok;
        checks.push(engine);
        if reachable {
            checks.extend(self.images().await);
            if let Some(seen) = seen {
                checks.extend(self.projects(seen).await);
            }
        }
        Report { ok: checks.iter().all(|check| check.ok), checks }
    }

    fn state_directory(&self) -> Check {
        let shown = self.home.root().display();
        match nix::sys::statvfs::statvfs(self.home.root()) {
            Ok(stat) => {
                let free = stat.blocks_available() * stat.fragment_size();
                let found = format!("{shown}, {} GiB free", free >> 30);
                if free < SPACE_MIN {
                    Check::bad("state directory", found, Some("free some space".to_owned()))
                } else {
                    Check::good("state directory", found)
                }
            }
            Err(error) => Check::bad("state directory", format!("{shown}: {error}"), None),
        }
    }

    async fn engine(&self) -> Check {
        let info = async { self.containers.engine()?.info().await.map_err(crate::containers::refused) }.await;
        match info {
            Ok(info) => Check::good(
                "engine",
                format!(
                    "{} (API {}), {} processors, {} GiB, {:?}",
                    info.version,
                    info.api_version,
                    info.cpus,
                    info.memory_bytes >> 30,
                    info.cgroup
                ),
            ),
            Err(refusal) => Check::bad("engine", refusal.sentence(), refusal.hint),
        }
    }

    /// The base image and that of each stack.
    async fn images(&self) -> Vec<Check> {
        let stacks = self.containers.stacks();
        let mut checks = Vec::new();
        for stack in [None].into_iter().chain(stacks.names().map(|name| stacks.get(name))) {
            let name = stack.map_or("image without a stack".to_owned(), |stack| format!("image {}", stack.name()));
            match self.image(stack).await {
                Ok((tag, exists)) => {
                    let mut check = image(name, stack, &tag, exists);
                    if let Some(stack) = stack {
                        check.found.push_str(&lacks(stack, self.containers.toolchains()));
                    }
                    checks.push(check);
                }
                Err(refusal) => {
                    checks.push(Check::bad(name, refusal.sentence(), refusal.hint));
                    if stack.is_none() {
                        // The others stand on this one.
                        break;
                    }
                }
            }
        }
        checks
    }

    async fn image(&self, stack: Option<&Stack>) -> Result<(String, bool), Refusal> {
        let plan = self.containers.plan(stack, self.owner).await?;
        let exists = self.containers.engine()?.image_exists(plan.tag()).await.map_err(crate::containers::refused)?;
        Ok((plan.tag().to_owned(), exists))
    }

    async fn projects(&self, seen: Seen<'_>) -> Vec<Check> {
        let shown =
            |facts: &ContainerFacts| seen.shows_container(facts.project.as_deref(), facts.project_id.as_deref());
        let list = async {
            let engine = self.containers.engine()?;
            let mut found = Vec::new();
            for facts in self.containers.list().await?.into_iter().filter(shown) {
                found.push((facts.state, engine.inspect(&facts.id).await.map_err(crate::containers::refused)?));
            }
            Ok::<_, Refusal>(found)
        };
        match list.await {
            Ok(found) => {
                let check = |(state, inspection)| {
                    container(seen.registry, state, &inspection, self.containers.network_fault(&inspection))
                };
                found.into_iter().map(check).collect()
            }
            Err(refusal) => vec![Check::bad("containers", refusal.sentence(), refusal.hint)],
        }
    }
}

/// What is known beforehand, without what is said of projects that are not to be seen.
fn known<'k>(known: &'k [Check], own: &'k [String], seen: Option<Seen<'k>>) -> impl Iterator<Item = Check> {
    let hidden = move |check: &Check| {
        own.iter().any(|name| check.name == own_model(name) && seen.is_some_and(|seen| !seen.shows_name(name)))
    };
    known.iter().filter(move |check| !hidden(check)).cloned()
}

/// What bot.toml says of projects that are not there. Meanwhile it counts for nobody, and who meant another name should
/// hear of it.
fn strangers(own: &[String], seen: Seen<'_>) -> Vec<Check> {
    let shown = own.iter().filter(|name| seen.shows_name(name));
    let absent = shown.filter_map(|name| {
        let there = seen.registry.registered(name, |project| seen.shows(project), projects::listed_or_made);
        Some((name, there.err()?))
    });
    absent.map(|(name, refusal)| Check::bad(format!("[model.projects.{name}]"), refusal.what, refusal.hint)).collect()
}

/// Whether an agent can commit at all.
fn identity(author: &Author) -> Check {
    match author.now() {
        Some(identity) => Check::good("git identity", format!("{} <{}>", identity.name, identity.email)),
        None => Check::bad(
            "git identity",
            "nobody has said whose name commits are to carry, so agents cannot commit",
            Some(
                "set `git_user_name` and `git_user_email` in bot.toml and restart musher, or `user.name` and `user.email` \
                 with `git config --global` on this host"
                    .to_owned(),
            ),
        ),
    }
}

/// Whether the folder of each project is there, and still the one that it was made with (PROJ-2).
fn folders(seen: Seen<'_>) -> Vec<Check> {
    let mut folders = Vec::new();
    for (_, project) in seen.registry.used_by(seen.by, seen.role) {
        let Project { stage: Stage::Registered, spec: Some(spec), directory: Some((identity, _)), .. } = project else {
            continue;
        };
        let name = format!("folder of {}", spec.name);
        folders.push(match place::recognise(&spec, identity) {
            Ok(()) => Check::good(name, spec.path.to_string_lossy()),
            Err(refusal) => Check::bad(name, refusal.sentence(), refusal.hint),
        });
    }
    folders
}

/// An image that is not there yet is nothing to mend.
fn image(name: String, stack: Option<&Stack>, tag: &str, exists: bool) -> Check {
    if exists {
        return Check::good(name, tag);
    }
    let stack = stack.map(|stack| format!(" {}", stack.name())).unwrap_or_default();
    Check::good(
        name,
        format!("not built yet; made by the first project that needs it, or `musher images build{stack}`"),
    )
}

/// Invariant 8, read back from the engine.
fn container(
    registry: &Registry,
    state: ContainerState,
    inspection: &Inspection,
    network: Option<NetworkFault>,
) -> Check {
    let project = inspection.labels.get(LABEL_PROJECT).cloned().unwrap_or_default();
    let name = format!("container {}", inspection.name);
    if registry.by_name(&project).is_none() {
        return Check::bad(
            name,
            "no project of this gateway knows it",
            Some("look at it, and remove it with the engine's client".to_owned()),
        );
    }
    let faults = faults(inspection);
    if !faults.is_empty() {
        let hint = format!("delete the project `{project}` and make it anew; its files stay");
        return Check::bad(name, faults.join("; "), Some(hint));
    }
    let container = &inspection.name;
    match network {
        None => Check::good(
            name,
            format!("{state:?}; no capability, no new privileges, loopback only, limited").to_lowercase(),
        ),
        Some(NetworkFault::Reaches) => Check::bad(
            name,
            "it has a network, which `[projects] network` forbids",
            Some(format!(
                "`docker rm -f {container}`: the next message makes it anew without one; files and home stay"
            )),
        ),
        Some(NetworkFault::CutOff) => Check::bad(
            name,
            "it has no network, because `[projects] network` was `none` when it was made",
            Some(format!("`docker stop {container}`: the next message makes it anew with one")),
        ),
    }
}

fn faults(inspection: &Inspection) -> Vec<String> {
    let Inspection {
        user,
        privileged,
        cap_add,
        cap_drop,
        security_options,
        published,
        limits,
        restarts,
        devices,
        shared_namespaces,
        mounts,
        ..
    } = inspection;
    let root = user.split(':').any(|part| matches!(part, "" | "0" | "root"));
    [
        (root, "it runs as root"),
        (*privileged, "it is privileged"),
        (!cap_add.is_empty() || !cap_drop.iter().any(|cap| cap.eq_ignore_ascii_case("all")), "it has capabilities"),
        (!security_options.iter().any(|option| option.starts_with("no-new-privileges")), "it may gain privileges"),
        (published.iter().any(|port| port.host_ip != "127.0.0.1"), "a port is open beyond loopback"),
        (limits.memory_bytes <= 0 || limits.memory_bytes != limits.memory_and_swap_bytes, "its memory is not bounded"),
        (limits.pids <= 0, "its processes are not bounded"),
        (*restarts, "the engine restarts it"),
        (*devices > 0, "it has devices of the host"),
        (!shared_namespaces.is_empty(), "it shares a namespace with the host"),
        (mounts.iter().any(|mount| mount.host.ends_with("docker.sock")), "it has the engine's socket"),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, fault)| fault.to_owned())
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use journal::{Actor, Cause, SystemClock};
    use link::requests::GitIdentity;
    use musher_docker::{ContainerId, InspectedLimits};
    use stacks::{StackName, Stacks};

    use super::*;
    use crate::{
        chat::SurfaceKind,
        projects::{ProjectEvent, Spec},
        store::Journal,
    };

    #[tokio::test]
    async fn of_a_project_that_somebody_may_not_use_they_see_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let registry = Registry::open(journal).await.expect("it opens");
        let person = |name: &str| Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") };
        let (ann, bob) = (person("ann"), person("bob"));
        let (open, secret, going, gone) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let deletion = [ProjectEvent::DeletionBegun, ProjectEvent::Removed];
        for (id, name, closed, ends) in [
            (open, "open", false, &deletion[..0]),
            (secret, "secret", true, &deletion[..0]),
            (going, "going", true, &deletion[..1]),
            (gone, "gone", true, &deletion[..]),
        ] {
            let spec = Spec { name: name.into(), ..Spec::example(format!("/srv/{name}")) };
            let mut events = vec![ProjectEvent::Reserved(spec), ProjectEvent::Registered];
            events.extend(closed.then(|| ProjectEvent::MemberAdded { person: ann.clone() }));
            events.extend_from_slice(ends);
            registry.append(id, &events, Actor::Gateway, Cause::None).await.expect("they follow");
        }
        let author = Author::default();
        let own = ["open", "secret", "going", "secrets"].map(str::to_owned);
        let checks: Vec<_> = own.iter().map(|name| Check::good(own_model(name), "local")).collect();
        let checks = [vec![Check::good("agent", "echo")], checks].concat();
        let names = |checks: Vec<Check>| checks.into_iter().map(|check| check.name).collect::<Vec<_>>();

        for (by, role, all) in [(&ann, Role::Member, true), (&bob, Role::Admin, true), (&bob, Role::Member, false)] {
            let seen = Seen { registry: &registry, by, role, author: &author };
            let told = names(known(&checks, &own, Some(seen)).collect());
            let lines = strangers(&own, seen);
            if all {
                assert_eq!(told.len(), checks.len());
                assert_eq!(names(lines), ["[model.projects.going]", "[model.projects.secrets]"]);
            } else {
                assert_eq!(told, ["agent", "model of open", "model of secrets"]);
                let said = serde_json::to_string(&lines).expect("they can be told");
                assert!(!said.contains("`secret`") && !said.contains("going"), "{said}");
                assert_eq!(names(lines), ["[model.projects.secrets]"]);
            }
            for (name, id, shown) in [
                ("open", open, true),
                ("secret", secret, all),
                ("going", going, all),
                ("gone", gone, all),
                ("secret", Uuid::now_v7(), all),
                ("unknown", Uuid::now_v7(), true),
            ] {
                let id = id.to_string();
                assert_eq!(seen.shows_container(Some(name), Some(&id)), shown, "{name}, {by:?}");
            }
        }
        assert_eq!(known(&checks, &own, None).count(), checks.len(), "on the command line it is the host's account");
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_or_another_is_a_fault_to_those_who_may_know_of_it() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let registry = Registry::open(journal).await.expect("it opens");
        let person = |name: &str| Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") };
        let (ann, bob) = (person("ann"), person("bob"));
        for name in ["there", "gone", "other", "secret"] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("it can be made");
            let identity = place::identity(&path).expect("it is there");
            let made = projects::Made::Nothing;
            let spec = Spec { name: name.into(), ..Spec::example(&path) };
            let events = [
                ProjectEvent::Reserved(spec),
                ProjectEvent::DirectoryFound { identity, owner: Owner { uid: 1000, gid: 1000 }, made },
                ProjectEvent::Registered,
            ];
            let closed = (name == "secret").then(|| ProjectEvent::MemberAdded { person: ann.clone() });
            let events: Vec<_> = events.into_iter().chain(closed).collect();
            registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
        }
        // Another is made before the first is removed, so that it cannot get the first one's number.
        let (other, kept) = (folder.path().join("other"), folder.path().join("kept"));
        std::fs::rename(&other, &kept).expect("it can be moved");
        std::fs::create_dir(&other).expect("it can be made");
        for name in ["gone", "secret"] {
            std::fs::remove_dir(folder.path().join(name)).expect("it is empty");
        }
        let author = Author::default();
        let wrong = |by| {
            let mut wrong = folders(Seen { registry: &registry, by, role: Role::Member, author: &author });
            wrong.retain(|check| !check.ok);
            wrong.sort_by(|one, other| one.name.cmp(&other.name));
            wrong
        };
        let told = wrong(&bob);
        let names: Vec<_> = told.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["folder of gone", "folder of other"]);
        assert!(told[0].found.ends_with("is gone.") && told[1].found.starts_with("another folder"), "{told:?}");
        assert!(told[0].hint.as_ref().is_some_and(|hint| hint.contains("`delete project gone`")), "{told:?}");
        assert_eq!(wrong(&ann).len(), 3, "she may know of hers");
    }

    #[test]
    fn that_agents_cannot_commit_is_a_fault() {
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        let given = GitIdentity { name: "Ann".into(), email: "ann@example.org".into() };
        let known = identity(&Author::new(Some(given), home.path(), None));
        assert_eq!(known, Check::good("git identity", "Ann <ann@example.org>"));
        assert!(!identity(&Author::new(None, home.path(), None)).ok);
    }

    #[tokio::test]
    async fn a_container_with_another_network_than_the_setting_is_a_fault() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let registry = Registry::open(journal).await.expect("it opens");
        let events = [ProjectEvent::Reserved(Spec::example("/srv/app")), ProjectEvent::Registered];
        registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
        let inspection = Inspection {
            id: ContainerId::new("one"),
            name: "musher-app".into(),
            image: "i".into(),
            state: ContainerState::Running,
            exit_code: 0,
            oom_killed: false,
            user: "1000:1000".into(),
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: vec!["ALL".into()],
            security_options: vec!["no-new-privileges:true".into()],
            shared_namespaces: Vec::new(),
            devices: 0,
            mounts: Vec::new(),
            tmpfs: BTreeMap::new(),
            published: Vec::new(),
            network: "none".into(),
            limits: InspectedLimits {
                nano_cpus: 1,
                memory_bytes: 1,
                memory_and_swap_bytes: 1,
                pids: 1,
                nofile: None,
                shm_bytes: 1,
                log_driver: String::new(),
                log_options: BTreeMap::new(),
            },
            restarts: false,
            env: Vec::new(),
            labels: BTreeMap::from([(LABEL_PROJECT.to_owned(), "app".to_owned())]),
            command: Vec::new(),
        };
        for (fault, word) in [
            (None, None),
            (Some(NetworkFault::Reaches), Some("docker rm -f musher-app")),
            (Some(NetworkFault::CutOff), Some("docker stop musher-app")),
        ] {
            let check = container(&registry, ContainerState::Running, &inspection, fault);
            assert_eq!(check.ok, fault.is_none(), "{check:?}");
            assert!(check.hint.as_deref().unwrap_or_default().contains(word.unwrap_or_default()), "{check:?}");
        }
    }

    #[test]
    fn an_image_that_is_not_built_yet_is_no_fault() {
        let name = StackName::try_from("rust".to_owned()).expect("it is a name");
        let stacks = Stacks::builtin();
        let rust = stacks.get(&name);
        assert!(rust.is_some());
        for (stack, exists, found) in [
            (rust, true, "musher/rust:1"),
            (rust, false, "not built yet; made by the first project that needs it, or `musher images build rust`"),
            (None, false, "not built yet; made by the first project that needs it, or `musher images build`"),
        ] {
            assert_eq!(image("image".to_owned(), stack, "musher/rust:1", exists), Check::good("image", found));
        }
    }
}
