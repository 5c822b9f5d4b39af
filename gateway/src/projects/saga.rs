//! `new project` and `delete project`: changes of several steps, each journaled before it is made, each with its undo
//! (PROJ-7). A crash at any point is undone, or the deletion finished ([`super::leftovers`]).

use std::{collections::BTreeSet, io, path::Path, sync::Arc, time::Duration};

use journal::{Actor, Cause};
use tokio::{io::AsyncBufReadExt, time::Instant};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Made, Owner, Project, ProjectEvent, Registry, Spec, Stage, Step,
    claims::Claim,
    clone::Cloned,
    cloning::fetch_submodules,
    contents::Contents,
    folder,
    heritage::Heritage,
    keys, name,
    place::{self, Found, Place},
    repository,
    ssh_config::Doors,
    steps::{Steps, describe},
};
use crate::{
    author::Author,
    chat::Person,
    commands::grammar::NewProject,
    containers::SharedContainers,
    git::{Git, Remote},
    home::Home,
    nodes::Nodes,
    outbox::Progress,
    people::Role,
    refusal::Refusal,
    text,
};

/// The first and last port of SSH doors: below Linux's ephemeral range (32768–60999), so that no outgoing connection
/// takes one by chance (PROJ-8).
const PORTS: std::ops::RangeInclusive<u16> = 22_200..=23_999;
/// How long sshd may take to answer in a container that runs.
const DOOR_PATIENCE: Duration = Duration::from_secs(20);
/// What to do where nobody says whose name commits carry.
const AUTHOR_LINES: &str = "Add these two lines at the top of bot.toml and restart musher, or set `user.name` and `user.email` with `git config --global` on this host:\n`git_user_name = \"Ann Other\"`\n`git_user_email = \"ann@example.org\"`";
/// What people are told of files that Git LFS keeps.
const LFS_REMARK: &str = "⚠ Some files are kept by Git LFS: what is there are its pointers. Git LFS is not in the container, and its transfers do not go through the gateway.";

/// What sagas work with.
#[derive(Clone)]
pub struct Sagas {
    /// The projects.
    pub registry: Arc<Registry>,
    /// Their containers.
    pub containers: SharedContainers,
    /// Their sleds.
    pub nodes: Nodes,
    /// The state directory.
    pub home: Home,
    /// The generated `ssh_config`.
    pub doors: Doors,
    /// Rules for places; `taken` is filled in here.
    pub places: place::Rules,
    /// The way to git remotes.
    pub git: Arc<Git>,
    /// Whose name commits carry.
    pub author: Author,
}

/// A project that is to be made: name, folder and port are its own.
struct Reserved {
    /// Held from before it is reserved until it is there, or gone again.
    claim: Claim,
    place: Place,
    /// Where to clone it from.
    remote: Option<Remote>,
    /// What the adopted folder brings.
    heritage: Option<Heritage>,
}

/// A project that is there now.
#[derive(Debug)]
pub struct Created {
    /// Its id.
    pub id: Uuid,
    /// What it is.
    pub project: Project,
    /// What people should know beside that it worked.
    pub remarks: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Sagas {
    /// Makes a project for somebody of this role. On failure everything that this run made is removed again, in reverse.
    pub async fn create(
        &self,
        ask: &NewProject,
        by: &Person,
        role: Role,
        cause: Cause,
        progress: &Progress,
    ) -> Result<Created, Refusal> {
        let began = Instant::now();
        let mut steps = Steps::new(progress);
        let reserved = self.reserve(ask, by, role, cause.clone()).await?;
        let id = reserved.claim.id();
        match self.make(&reserved, ask, by, &mut steps).await {
            Ok((project, remarks)) => {
                steps.finish();
                Ok(Created { id, project, remarks, took: began.elapsed() })
            }
            Err(refusal) => {
                warn!(%id, %refusal, "the project cannot come to be");
                steps.fail();
                steps.next("removing what was made");
                let origin = (Actor::Gateway, cause);
                let undone = self.abandon(&reserved.claim, refusal.what.clone(), origin).await;
                if undone.is_ok() {
                    steps.finish();
                } else {
                    steps.fail();
                }
                Err(match undone {
                    Ok(None) => refusal,
                    Ok(Some(kept)) => {
                        let hint =
                            refusal.hint.iter().chain([&kept]).map(String::as_str).collect::<Vec<_>>().join("\n");
                        refusal.hint(hint)
                    }
                    Err(left) => {
                        warn!(%id, %left, "what was made could not be removed");
                        Refusal::internal(format!("{}; what was made could not all be removed", refusal.what), left)
                            .hint(format!("`delete project {}` tries it again.", ask.name))
                    }
                })
            }
        }
    }

    /// Deletes a registered project, or what is left of one that could not be made or deleted. The host's files stay. `quiet` waits until nothing of the
    /// project runs or waits any more. Gives, for people, what stays of one that never was.
    pub async fn delete(
        &self,
        id: Uuid,
        by: &Person,
        cause: Cause,
        quiet: impl Future<Output = ()>,
    ) -> Result<Option<String>, Refusal> {
        let busy =
            || Refusal::usage("the project is being made or removed just now").hint("`projects` shows how far it is.");
        let claim = self.registry.claims().claim(id, cause.clone()).ok_or_else(busy)?;
        let stage = self.registry.get(id).map(|project| project.stage);
        let actor = Actor::Person(by.to_string());
        match stage {
            Some(Stage::Registered) => {
                self.registry.append(id, &[ProjectEvent::DeletionBegun], actor, cause).await?;
            }
            // Nobody makes it any more: who did holds no claim.
            Some(Stage::Making) => {
                return self.abandon(&claim, "it was left half made".to_owned(), (actor, cause)).await;
            }
            Some(Stage::Undoing | Stage::Deleting) => {}
            _ => return Err(busy()),
        }
        quiet.await;
        self.remove(id).await
    }

    /// Checks everything that can be checked beforehand, and takes name, folder and port.
    async fn reserve(&self, ask: &NewProject, by: &Person, role: Role, cause: Cause) -> Result<Reserved, Refusal> {
        name::check(&ask.name)?;
        let remote = ask.git.as_deref().map(|git| Remote::parse(git, &self.places.home)).transpose()?;
        if let Some(remote) = &remote {
            if self.author.now().is_none() {
                return Err(Refusal::config("nobody has said whose name commits are to carry").hint(AUTHOR_LINES));
            }
            self.git.reach.check(remote).await?;
        }
        let _held = self.registry.reserving.lock().await;
        if let Some((taken, other)) = self.registry.by_name(&ask.name) {
            let hint = match other.stage {
                Stage::Registered => format!("Talk to it with `switch {}`, or choose another name.", ask.name),
                Stage::Making if self.registry.is_at_work_on(taken) => "It is being made just now.".to_owned(),
                Stage::Making => format!("It is half made; `delete project {}` removes it.", ask.name),
                _ if self.registry.is_at_work_on(taken) => "It is being removed just now.".to_owned(),
                _ => format!("It could not be removed to the end; `delete project {}` tries it again.", ask.name),
            };
            return Err(Refusal::usage(format!("there is a project `{}` already", ask.name)).hint(hint));
        }
        if let Some(stack) = &ask.stack {
            self.containers.stack(stack)?;
        }
        let cpus = ask.cpus.map(check_cpus).transpose()?;
        let memory = ask.memory.as_deref().map(check_memory).transpose()?;
        let rules = |taking: Taking| place::Rules {
            taken: taken(&self.registry, |project| taking(project, by, role)),
            ..self.places.clone()
        };
        let place = place::choose(&rules(place::Taken::by), &ask.name, ask.path.as_deref(), ask.adopt)?;
        let remote = remote.map(|remote| repository::check(remote, &rules(place::Taken::once_by))).transpose()?;
        // Who might not use the projects that had the folder was refused just now.
        let heritage = if ask.adopt { Heritage::of(&self.registry.once_at(&place.path)) } else { None };
        // Nothing is begun that cannot end: without an engine there is no project.
        self.containers.check(cpus).await?;
        let spec = Spec {
            name: ask.name.clone(),
            path: place.path.clone(),
            stack: ask.stack.clone(),
            git: remote.clone().or_else(|| heritage.as_ref()?.git.clone()),
            branch: ask.branch.clone(),
            depth: ask.depth,
            adopt: ask.adopt,
            cpus,
            memory,
            port: free_port(&self.registry, *PORTS.start() - 1)?,
            asked_by: by.clone(),
        };
        let claim = self.registry.claims().mint(cause.clone());
        let reserved = [ProjectEvent::Reserved(spec)];
        self.registry.append(claim.id(), &reserved, Actor::Person(by.to_string()), cause).await?;
        Ok(Reserved { claim, place, remote, heritage })
    }

    async fn begin(&self, id: Uuid, step: Step) -> Result<(), Refusal> {
        self.tell(id, &[ProjectEvent::StepBegun { step }]).await.map(drop)
    }

    /// Journals what is done to a project that is being made or removed, because of what that follows from.
    async fn tell(&self, id: Uuid, events: &[ProjectEvent]) -> Result<Project, Refusal> {
        self.registry.append(id, events, Actor::Gateway, self.registry.claims().cause(id)).await
    }

    async fn make(
        &self,
        Reserved { claim, place, remote, heritage }: &Reserved,
        ask: &NewProject,
        by: &Person,
        steps: &mut Steps<'_>,
    ) -> Result<(Project, Vec<String>), Refusal> {
        let mut remarks = Vec::from_iter(heritage.as_ref().map(|heritage| heritage.remark(&ask.name)));
        let (id, mut cloned) = (claim.id(), None);

        self.begin(id, Step::Directory).await?;
        let owner = self.directory(id, place).await?;

        self.begin(id, Step::Repository).await?;
        let contents = self.contents(id, &place.path);
        if let Some(remote) = remote {
            steps.next("clone");
            cloned = Some(self.clone_repository(id, remote, ask, contents.stage(), steps).await?);
        } else if place.found != Found::Repository {
            repository::begin(contents.stage())?;
        }
        if place.found != Found::Repository {
            let contents = contents.clone();
            on_disk(move || contents.move_in(owner).map_err(not_moved_in)).await?;
        }

        let stack = self.choose_stack(id, ask, &place.path, &mut remarks).await?;
        let stack = stack.as_deref().map(|name| self.containers.stack(name)).transpose()?;
        if let Some(missing) = stack.and_then(|stack| stack.missing(self.containers.toolchains())) {
            remarks.push(format!("⚠ This stack lacks {}.", text::one_line(missing, 200)));
        }
        steps.next("image");
        let plan = self.containers.plan(stack, owner).await?;
        self.tell(
            id,
            &[
                ProjectEvent::StepBegun { step: Step::Image },
                ProjectEvent::ImageChosen { image: plan.tag().to_owned() },
            ],
        )
        .await?;
        self.containers.ensure_image(&plan, &mut |progress| steps.detail(describe(&progress))).await?;

        steps.next("container");
        self.begin(id, Step::Keys).await?;
        let git = remote.as_ref().or_else(|| heritage.as_ref()?.git.as_ref());
        keys::make(&self.home.project(id), owner, git)
            .map_err(|error| Refusal::internal("the keys could not be made", error))?;
        self.tell(
            id,
            &[ProjectEvent::StepBegun { step: Step::Container }, ProjectEvent::StepBegun { step: Step::Sled }],
        )
        .await?;
        let sled = self.nodes.sled(id).await?;
        if self.author.now().is_none() {
            remarks.push(format!(
                "⚠ Nobody has said whose name commits are to carry, so the agent cannot commit. {AUTHOR_LINES}"
            ));
        }
        if self.doors.ports {
            let port = self.registry.get(id).and_then(|project| project.spec).map(|spec| spec.port);
            self.await_door(port.unwrap_or_default()).await?;
        }
        self.doors.write()?;
        let mut registered = vec![ProjectEvent::Registered];
        registered.extend(heritage.iter().flat_map(|heritage| heritage.membership(by)));
        let project = self.tell(id, &registered).await?;
        if let Err(error) = contents.forget() {
            // It goes with the project.
            info!(%id, %error, "the list of what was put into the folder stays");
        }
        if let Some(Cloned { submodules, lfs }) = cloned {
            if submodules {
                // Last: from here on git changes what was put there, and without them it is a project all the same.
                steps.next("submodules");
                remarks.extend(fetch_submodules(&sled).await);
            }
            if lfs {
                remarks.push(LFS_REMARK.to_owned());
            }
        }
        Ok((project, remarks))
    }

    fn contents(&self, id: Uuid, path: &Path) -> Contents {
        Contents::new(&self.home.project(id), id, path)
    }

    /// Makes the folder where there is none, and remembers which one it is and what of it is ours.
    async fn directory(&self, id: Uuid, place: &Place) -> Result<Owner, Refusal> {
        let made = folder::make(place)?;
        let root = self.places.own.uid == 0;
        let owner = match made {
            Made::Folder { .. } if root => self.places.fallback,
            _ => place::owner(&self.places, &place.path, place.found)?,
        };
        let identity = place::identity(&place.path)?;
        self.tell(id, &[ProjectEvent::DirectoryFound { identity, owner, made }]).await?;
        if root && place.found == Found::Empty {
            // Its owner gets it back with the repository in it: until then nobody but us changes what is made there.
            std::os::unix::fs::chown(&place.path, Some(0), Some(0))
                .map_err(|error| Refusal::internal("the folder could not be prepared", error))?;
        }
        Ok(owner)
    }

    async fn choose_stack(
        &self,
        id: Uuid,
        ask: &NewProject,
        path: &Path,
        remarks: &mut Vec<String>,
    ) -> Result<Option<String>, Refusal> {
        let found = self.containers.stacks().detect(&place::names(path)?);
        let (stack, reason) = match (&ask.stack, found.stack()) {
            (Some(declared), _) => (Some(declared.clone()), format!("{declared}, as you asked")),
            (None, Some(stack)) => (Some(stack.as_str().to_owned()), text::one_line(&found.to_string(), 200)),
            (None, None) => (None, "none; nothing in the folder names a language".to_owned()),
        };
        if ask.stack.is_none() && !found.others.is_empty() {
            let others: Vec<_> = found.others.iter().map(|other| format!("`{}`", other.stack.as_str())).collect();
            remarks.push(format!("⚠ It also looks like {}: give `--stack` to choose.", others.join(", ")));
        }
        if let Some(devcontainer) = &found.devcontainer {
            remarks.push(format!("{} was seen and is not used.", text::code(devcontainer)));
        }
        self.tell(id, &[ProjectEvent::StackChosen { stack: stack.clone(), reason }]).await?;
        Ok(stack)
    }

    /// Brings what git reads in the containers of registered projects up to date, such as those of an earlier version.
    pub fn refresh_git(&self) {
        for (id, project) in self.registry.all() {
            let (Stage::Registered, Some((_, owner)), Some(spec)) = (project.stage, project.directory, project.spec)
            else {
                continue;
            };
            if let Err(error) = keys::write_git_settings(&self.home.project(id), owner, spec.git.as_ref()) {
                warn!(%id, project = spec.name, %error, "the settings of its git cannot be written");
            }
        }
    }

    /// Waits until sshd greets at the port door.
    async fn await_door(&self, port: u16) -> Result<(), Refusal> {
        let greeted = async {
            loop {
                if let Ok(stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                    let mut greeting = String::new();
                    let read = tokio::io::BufReader::new(stream).read_line(&mut greeting).await;
                    if read.is_ok_and(|n| n > 0) && greeting.starts_with("SSH-2.0-") {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DOOR_PATIENCE, greeted).await.map_err(|_| {
            Refusal::internal(
                "the SSH door does not open",
                format!("nothing greeted on port {port} within {} s", DOOR_PATIENCE.as_secs()),
            )
        })
    }

    /// Gives up a project that is not there yet. Gives, for people, what of it stays.
    ///
    /// A journal that takes no events holds nothing up: what was made may be what fills its disk. It can go before that is journaled,
    /// since each step was journaled before it was made, so that a crash in between is undone all the same; and nobody but whoever
    /// holds the claim starts anything in it.
    pub(super) async fn abandon(
        &self,
        claim: &Claim,
        reason: String,
        (actor, cause): (Actor, Cause),
    ) -> Result<Option<String>, Refusal> {
        let id = claim.id();
        let abandoned = [ProjectEvent::Abandoned { reason }];
        let abandon = || self.registry.append(id, &abandoned, actor.clone(), cause.clone());
        let mut late = false;
        if let Err(refusal) = abandon().await {
            late = match self.registry.reread(id).await?.stage {
                Stage::Making => true,
                Stage::Undoing => false,
                // It came to be after all: that was journaled, and nobody heard so.
                _ => return Err(refusal),
            };
            warn!(%id, %refusal, "what was made is removed all the same");
        }
        let kept = self.take_back(id).await?;
        if late {
            abandon().await?;
        }
        self.end(id).await?;
        Ok(kept)
    }

    /// Removes what is ours of a project, and it with that. Gives, for people, what of it stays.
    pub(super) async fn remove(&self, id: Uuid) -> Result<Option<String>, Refusal> {
        let kept = self.take_back(id).await?;
        self.end(id).await?;
        Ok(kept)
    }

    /// Lets a project go of which nothing of ours is left.
    async fn end(&self, id: Uuid) -> Result<(), Refusal> {
        self.tell(id, &[ProjectEvent::Removed]).await?;
        self.doors.write()?;
        if let Err(refusal) = self.containers.tidy_network().await {
            // A bridge without containers does no harm; the next removal tries again.
            info!(%refusal, "the network stays");
        }
        Ok(())
    }

    /// Removes what is ours of a project, in reverse, whatever is already gone. The journal says what was begun. Gives, for
    /// people, what of its folder stays: that holds nothing up.
    async fn take_back(&self, id: Uuid) -> Result<Option<String>, Refusal> {
        let Some(project) = self.registry.get(id) else { return Ok(None) };
        let Some(spec) = &project.spec else { return Ok(None) };
        if project.begun.contains(&Step::Container) {
            self.nodes.kill(id).await?;
        }
        self.nodes.forget(id);
        let mut kept = None;
        if matches!(project.stage, Stage::Making | Stage::Undoing) {
            let (project, spec, contents) = (project.clone(), spec.clone(), self.contents(id, &spec.path));
            kept = on_disk(move || Ok(folder::unmake(&project, &spec, &contents))).await?;
            if let Some(kept) = &kept {
                warn!(%id, kept, "not all of a folder is removed");
            }
        }
        // Last: it has the list of what was put into the folder.
        if project.begun.contains(&Step::Repository) {
            let root = self.home.project(id).root().to_owned();
            on_disk(move || {
                folder::remove_tree(&root).map_err(|error| {
                    Refusal::internal("the project's part of the state directory could not be removed", error)
                })
            })
            .await?;
        }
        Ok(kept)
    }
}

/// What people are told when what was made cannot be moved into the folder.
fn not_moved_in(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Refusal::usage(format!("something came into the project's folder while it was made: {error}"))
            .hint("Take it out of there; the same command tries it again.");
    }
    Refusal::internal("the files could not be moved into the project's folder", error)
}

/// What a project takes from somebody who asks.
type Taking = fn(&Project, &Person, Role) -> Option<place::Taken>;

/// What all projects take, those that are there and those that were.
fn taken(registry: &Registry, taking: impl Fn(&Project) -> Option<place::Taken>) -> Vec<place::Taken> {
    registry.read(|projects| projects.values().filter_map(|loaded| taking(&loaded.state)).collect())
}

/// The next free port after `last`, by our own register and by a look at the host.
pub fn free_port(registry: &Registry, last: u16) -> Result<u16, Refusal> {
    let all = registry.all();
    let taken: BTreeSet<_> =
        all.iter().filter_map(|(_, project)| project.spec.as_ref().map(|spec| spec.port)).collect();
    let (first, end) = (*PORTS.start(), *PORTS.end());
    let after = PORTS.filter(|port| *port > last).chain(first..=last.clamp(first, end));
    after
        .filter(|port| !taken.contains(port))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| {
            Refusal::unavailable(format!("no port between {first} and {end} is free"))
                .hint("Delete projects that nobody needs, or end what else listens there.")
        })
}

/// The rule of `[projects] default_cpus`.
fn check_cpus(cpus: f64) -> Result<f64, Refusal> {
    let checked = cpus.to_string().parse::<bot_config::Cpus>().map(|_| cpus);
    checked.map_err(|error| {
        Refusal::usage(format!("`--cpus {cpus}` {error}")).hint("Write for example `--cpus 2`, or `--cpus 0.5`.")
    })
}

/// The rule of `[projects] default_memory`; gives bytes.
fn check_memory(memory: &str) -> Result<u64, Refusal> {
    memory.parse::<bot_config::Memory>().map(bot_config::Memory::bytes).map_err(|error| {
        Refusal::usage(format!("`--memory {}` {error}", text::one_line(memory, 40)))
            .hint("Write for example `--memory 4g`.")
    })
}

/// Runs work on the disk, which may take long, where it holds nobody up.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refusal::internal("work on the disk broke off", error))?
}

#[cfg(test)]
mod tests {
    use journal::SystemClock;

    use super::*;
    use crate::{chat::SurfaceKind, store::Journal};

    #[tokio::test]
    async fn a_port_is_found_behind_as_many_as_others_have() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let registry = Registry::open(journal).await.expect("it opens");
        // Far from where other tests look for theirs.
        let before = 23_000;
        let others: Vec<_> =
            (before + 1..=before + 80).map(|port| std::net::TcpListener::bind(("127.0.0.1", port))).collect();
        let port = free_port(&registry, before).expect("there is one");
        assert!(port > before + 80, "{port}");
        drop(others);
    }

    /// The register forgets no project's folder with the project itself.
    #[tokio::test]
    async fn a_deleted_project_keeps_its_folder_from_who_might_not_use_it() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let registry = Registry::open(journal.clone()).await.expect("it opens");
        let person = |name: &str| Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") };
        let (ann, bob) = (person("ann"), person("bob"));
        for (path, closed) in [("/srv/open", false), ("/srv/closed", true)] {
            let mut events = vec![ProjectEvent::Reserved(Spec::example(path)), ProjectEvent::Registered];
            events.extend(closed.then(|| ProjectEvent::MemberAdded { person: ann.clone() }));
            events.extend([ProjectEvent::DeletionBegun, ProjectEvent::Removed]);
            registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
        }
        assert_eq!(registry.all(), []);
        let reopened = Registry::open(journal).await.expect("it opens again");
        for registry in [&registry, &reopened] {
            let from = |taking: Taking, asker: &Person, role| {
                let taken = taken(registry, |project| taking(project, asker, role));
                taken.into_iter().map(|taken| taken.path.display().to_string()).collect::<Vec<_>>()
            };
            assert!(from(place::Taken::by, &ann, Role::Member).is_empty());
            assert!(from(place::Taken::by, &bob, Role::Admin).is_empty());
            assert_eq!(from(place::Taken::by, &bob, Role::Member), ["/srv/closed"]);
            for (asker, role) in [(&ann, Role::Member), (&bob, Role::Admin)] {
                let mut once = from(place::Taken::once_by, asker, role);
                once.sort_unstable();
                assert_eq!(once, ["/srv/closed", "/srv/open"], "what a container may have left is nobody's source");
            }
        }
    }
}
