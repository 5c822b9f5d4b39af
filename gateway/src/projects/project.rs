//! A project as its events tell it: the typed events of stream `project/<id>`, and their fold. No I/O.

use std::{collections::BTreeSet, path::PathBuf};

use journal::{DomainEvent, Fold, Recorded};
use serde::{Deserialize, Serialize};

use crate::{chat::Person, git::Remote, people::Role};

/// The stream kind of projects.
pub const STREAM: &str = "project";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name, checked (PROJ-1).
    pub name: String,
    /// Its folder on the host, canonical.
    pub path: PathBuf,
    /// The declared stack.
    pub stack: Option<String>,
    /// What is fetched from and pushed to: where it was cloned from, or what an adopted folder brought. It holds no credential.
    pub git: Option<Remote>,
    /// The branch to check out.
    pub branch: Option<String>,
    /// How many commits to clone.
    pub depth: Option<u32>,
    /// Whether an existing repository is taken.
    pub adopt: bool,
    /// Processors.
    pub cpus: Option<f64>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// The loopback port of the SSH door, from our own register.
    pub port: u16,
    /// Who asked.
    pub asked_by: Person,
}

/// Who owns the project's files and runs its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id, never 0.
    pub uid: u32,
    /// Group id, never 0.
    pub gid: u32,
}

/// Which folder it is, whatever its name says later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The device that it is on. Where disks are found in another order, and on btrfs, NFS and overlays, the same folder
    /// has another number after the next boot.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, where the file system keeps that. Earlier versions did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<u64>,
}

impl Identity {
    /// Whether `now` is the same folder. Any folder may come to have this inode on another device, but no other was
    /// made in the same nanosecond.
    pub fn is(self, now: Self) -> bool {
        let born_together = self.born_ns.is_some() && self.born_ns == now.born_ns;
        self.inode == now.inode && (self.device == now.device || born_together)
    }
}

/// What `new project` made where its folder is, and so what its undo removes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    /// Nothing: an existing repository was adopted.
    #[default]
    Nothing,
    /// What is in the folder, which was empty and belonged to somebody.
    Content {
        /// Who gets the empty folder back.
        before: Owner,
    },
    /// The folder, and the folders above it that were missing, the highest first.
    Folder {
        /// Those above.
        parents: Vec<PathBuf>,
    },
}

/// The steps of `new project` that leave something behind, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The folder on the host.
    Directory,
    /// The repository in it.
    Repository,
    /// The image.
    Image,
    /// The project's part of the state directory: keys, home, the sled's journal.
    Keys,
    /// The container.
    Container,
    /// The sled in it and its doors.
    Sled,
}

/// What happens to a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum ProjectEvent {
    /// Name, folder and port are taken.
    #[serde(rename = "project.reserved")]
    Reserved(Spec),
    /// A step is about to be made: from here on its undo is due if the project does not come to be.
    #[serde(rename = "project.step_begun")]
    StepBegun {
        /// Which one.
        step: Step,
    },
    /// The folder is there.
    #[serde(rename = "project.directory_found")]
    DirectoryFound {
        /// Which folder it is.
        identity: Identity,
        /// Whose files are in it.
        owner: Owner,
        /// What of it this run made.
        made: Made,
    },
    /// The stack is decided.
    #[serde(rename = "project.stack_chosen")]
    StackChosen {
        /// Which; none means the base image alone.
        stack: Option<String>,
        /// Why, for people.
        reason: String,
    },
    /// Which image it has; the build may still be to come.
    #[serde(rename = "project.image_chosen")]
    ImageChosen {
        /// Its tag.
        image: String,
    },
    /// The SSH door got another port, because the first was taken.
    #[serde(rename = "project.port_moved")]
    PortMoved {
        /// The new one.
        port: u16,
    },
    /// All steps are done.
    #[serde(rename = "project.registered")]
    Registered,
    /// The project cannot come to be; what this run made is being removed.
    #[serde(rename = "project.abandoned")]
    Abandoned {
        /// Why, for people.
        reason: String,
    },
    /// A person may use it. With the first one it is no longer open to everybody.
    #[serde(rename = "project.member_added")]
    MemberAdded {
        /// Who.
        person: Person,
    },
    /// A person may no longer use it.
    #[serde(rename = "project.member_removed")]
    MemberRemoved {
        /// Who.
        person: Person,
    },
    /// A person wants it gone; what we made for it is being removed.
    #[serde(rename = "project.deletion_begun")]
    DeletionBegun,
    /// Nothing of ours is left of it.
    #[serde(rename = "project.removed")]
    Removed,
}

impl DomainEvent for ProjectEvent {
    const KINDS: &'static [&'static str] = &[
        "project.reserved",
        "project.step_begun",
        "project.directory_found",
        "project.stack_chosen",
        "project.image_chosen",
        "project.port_moved",
        "project.registered",
        "project.abandoned",
        "project.member_added",
        "project.member_removed",
        "project.deletion_begun",
        "project.removed",
    ];
}

/// Where a project stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Nothing happened yet.
    #[default]
    Unknown,
    /// Steps are being made.
    Making,
    /// What was made is being removed, because it cannot come to be.
    Undoing,
    /// It is there.
    Registered,
    /// It is being deleted.
    Deleting,
    /// It is gone.
    Removed,
}

/// A project.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Project {
    /// Where it stands.
    pub stage: Stage,
    /// Whether it was there once, whatever became of it.
    pub came_to_be: bool,
    /// What was asked for; `None` only before the first event.
    pub spec: Option<Spec>,
    /// Which folder it has.
    pub directory: Option<(Identity, Owner)>,
    /// What of the folder this run made.
    pub made: Made,
    /// The steps that were begun.
    pub begun: BTreeSet<Step>,
    /// The stack, and why.
    pub stack: Option<String>,
    /// Why that stack.
    pub stack_reason: String,
    /// The image.
    pub image: Option<String>,
    /// Who may use it beside its maker and the admins; `None` until somebody was named: it is open to all who may speak.
    pub members: Option<BTreeSet<Person>>,
}

/// An event that cannot follow.
#[derive(Debug, thiserror::Error)]
#[error("{event} cannot follow while the project is {stage:?}")]
pub struct Misplaced {
    event: &'static str,
    stage: Stage,
}

impl Project {
    /// The stage that an event leads to; an error when it cannot follow now. Asked before an event is journaled, and
    /// again when it is folded.
    pub fn may(&self, event: &ProjectEvent) -> Result<Stage, Misplaced> {
        let (name, from, to): (_, &[Stage], _) = match event {
            ProjectEvent::Reserved(_) => ("reserved", &[Stage::Unknown], Stage::Making),
            ProjectEvent::StepBegun { .. } => ("step_begun", &[Stage::Making], Stage::Making),
            ProjectEvent::DirectoryFound { .. } => ("directory_found", &[Stage::Making], Stage::Making),
            ProjectEvent::StackChosen { .. } => ("stack_chosen", &[Stage::Making], Stage::Making),
            ProjectEvent::ImageChosen { .. } => ("image_chosen", &[Stage::Making, Stage::Registered], self.stage),
            ProjectEvent::PortMoved { .. } => ("port_moved", &[Stage::Making, Stage::Registered], self.stage),
            ProjectEvent::Registered => ("registered", &[Stage::Making], Stage::Registered),
            ProjectEvent::Abandoned { .. } => ("abandoned", &[Stage::Making], Stage::Undoing),
            ProjectEvent::MemberAdded { .. } => ("member_added", &[Stage::Registered], Stage::Registered),
            ProjectEvent::MemberRemoved { .. } => ("member_removed", &[Stage::Registered], Stage::Registered),
            ProjectEvent::DeletionBegun => ("deletion_begun", &[Stage::Registered], Stage::Deleting),
            ProjectEvent::Removed => ("removed", &[Stage::Undoing, Stage::Deleting], Stage::Removed),
        };
        if from.contains(&self.stage) { Ok(to) } else { Err(Misplaced { event: name, stage: self.stage }) }
    }

    /// Takes an event that [`Project::may`] follow.
    fn take(&mut self, event: &ProjectEvent, to: Stage) {
        self.stage = to;
        match event {
            ProjectEvent::Reserved(spec) => self.spec = Some(spec.clone()),
            ProjectEvent::StepBegun { step } => {
                self.begun.insert(*step);
            }
            ProjectEvent::DirectoryFound { identity, owner, made } => {
                self.directory = Some((*identity, *owner));
                self.made = made.clone();
            }
            ProjectEvent::StackChosen { stack, reason } => {
                self.stack.clone_from(stack);
                self.stack_reason.clone_from(reason);
            }
            ProjectEvent::ImageChosen { image } => self.image = Some(image.clone()),
            ProjectEvent::PortMoved { port } => {
                if let Some(spec) = &mut self.spec {
                    spec.port = *port;
                }
            }
            ProjectEvent::MemberAdded { person } => {
                self.members.get_or_insert_default().insert(person.clone());
            }
            // Who was named last leaves it closed.
            ProjectEvent::MemberRemoved { person } => {
                self.members.get_or_insert_default().remove(person);
            }
            ProjectEvent::Registered => self.came_to_be = true,
            ProjectEvent::Abandoned { .. } | ProjectEvent::DeletionBegun | ProjectEvent::Removed => {}
        }
    }

    /// Whether this person made it, or is admin, and so decides who may use it and when it goes.
    pub fn is_run_by(&self, person: &Person, role: Role) -> bool {
        role == Role::Admin || self.spec.as_ref().is_some_and(|spec| spec.asked_by == *person)
    }

    /// Whether this person, who may speak, may use it (SEC-4).
    pub fn admits(&self, person: &Person, role: Role) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(person)) || self.is_run_by(person, role)
    }

    /// Whether all of these events can follow, one after the other.
    pub fn may_all(&self, events: &[ProjectEvent]) -> Result<(), Misplaced> {
        let mut trial = self.clone();
        for event in events {
            let to = trial.may(event)?;
            trial.take(event, to);
        }
        Ok(())
    }
}

impl Fold for Project {
    type Event = ProjectEvent;
    type Error = Misplaced;

    fn apply(&mut self, event: &ProjectEvent, _: &Recorded) -> Result<(), Misplaced> {
        let to = self.may(event)?;
        self.take(event, to);
        Ok(())
    }
}

#[cfg(test)]
impl Spec {
    /// A project called `app` at `path`, asked for on the console, with nothing else said.
    pub(crate) fn example(path: impl Into<PathBuf>) -> Self {
        Self {
            name: "app".into(),
            path: path.into(),
            stack: None,
            git: None,
            branch: None,
            depth: None,
            adopt: false,
            cpus: None,
            memory: None,
            port: 22_200,
            asked_by: crate::chat::console::person(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use journal::{Actor, Append, Cause, Expected, Journal, Loaded, NewEvent, StreamId, SystemClock};
    use proptest::prelude::*;

    use super::*;
    use crate::chat::SurfaceKind;

    fn ann() -> Person {
        Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() }
    }

    fn bob() -> Person {
        Person { id: "@bob:example.org".into(), ..ann() }
    }

    fn person() -> impl Strategy<Value = Person> {
        prop::sample::select(vec![ann(), bob()])
    }

    #[test]
    fn a_folder_is_known_again_on_a_device_that_has_another_number() {
        let identity = |device, inode, born_ns| Identity { device, inode, born_ns };
        let known = identity(1, 2, Some(3));
        for (now, same) in [
            (known, true),
            (identity(9, 2, Some(3)), true),
            (identity(9, 2, Some(4)), false),
            (identity(9, 2, None), false),
            (identity(9, 8, Some(3)), false),
            (identity(1, 8, Some(3)), false),
            (identity(1, 2, None), true),
        ] {
            assert_eq!(known.is(now), same, "{now:?}");
        }
        let old: Identity = serde_json::from_str(r#"{"device":1,"inode":2}"#).expect("earlier versions wrote this");
        assert_eq!(serde_json::to_string(&old).expect("it encodes"), r#"{"device":1,"inode":2}"#);
        assert!(old.is(known) && !old.is(identity(9, 2, Some(3))) && !old.is(identity(9, 2, None)));
    }

    #[test]
    fn a_project_is_open_until_members_are_named_and_closed_from_then_on() {
        let maker = crate::chat::console::person();
        let mut project = Project::default();
        let mut happens = |event: ProjectEvent| {
            let to = project.may(&event).expect("it can follow");
            project.take(&event, to);
            let rights =
                |person: &Person| (project.admits(person, Role::Member), project.is_run_by(person, Role::Member));
            assert!(project.admits(&bob(), Role::Admin) && project.is_run_by(&bob(), Role::Admin), "an admin may all");
            assert_eq!(rights(&maker), (true, true), "its maker may all");
            (rights(&ann()), rights(&bob()))
        };
        happens(ProjectEvent::Reserved(Spec::example("/srv/app")));
        let (no, uses) = ((false, false), (true, false));
        assert_eq!(happens(ProjectEvent::Registered), (uses, uses));
        assert_eq!(happens(ProjectEvent::MemberAdded { person: ann() }), (uses, no));
        assert_eq!(happens(ProjectEvent::MemberAdded { person: bob() }), (uses, uses));
        assert_eq!(happens(ProjectEvent::MemberRemoved { person: ann() }), (no, uses));
        assert_eq!(happens(ProjectEvent::MemberRemoved { person: bob() }), (no, no), "nobody named is not everybody");
        assert_eq!(happens(ProjectEvent::DeletionBegun), (no, no));
        let namesake = Person { surface: SurfaceKind::Matrix, ..maker };
        assert!(!project.is_run_by(&namesake, Role::Member), "the same id on another surface is somebody else");
        project.may(&ProjectEvent::MemberAdded { person: ann() }).expect_err("it is going");
    }

    fn event() -> impl Strategy<Value = ProjectEvent> {
        let spec = Spec::example("/srv/app");
        let found = ProjectEvent::DirectoryFound {
            identity: Identity { device: 1, inode: 2, born_ns: Some(3) },
            owner: Owner { uid: 1000, gid: 1000 },
            made: Made::Folder { parents: vec!["/srv".into()] },
        };
        let steps = [Step::Directory, Step::Keys, Step::Container, Step::Sled];
        prop_oneof![
            4 => Just(ProjectEvent::Reserved(spec)),
            2 => prop::sample::select(steps.to_vec()).prop_map(|step| ProjectEvent::StepBegun { step }),
            2 => Just(found),
            1 => Just(ProjectEvent::StackChosen { stack: Some("rust".into()), reason: "asked".into() }),
            1 => any::<u16>().prop_map(|port| ProjectEvent::PortMoved { port }),
            2 => Just(ProjectEvent::Registered),
            1 => Just(ProjectEvent::Abandoned { reason: "why".into() }),
            1 => person().prop_map(|person| ProjectEvent::MemberAdded { person }),
            1 => person().prop_map(|person| ProjectEvent::MemberRemoved { person }),
            1 => Just(ProjectEvent::DeletionBegun),
            1 => Just(ProjectEvent::Removed),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// JRNL-2, and the reason for `may`: whatever is tried, what was journaled folds to the live state.
        #[test]
        fn what_may_follow_is_what_folds(events in prop::collection::vec(event(), 0..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let folder = tempfile::tempdir().expect("a temporary folder can be made");
                let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
                let stream = StreamId::new(STREAM, "one");
                let mut live: Loaded<Project> = Loaded::default();
                for event in events {
                    if live.state.may_all(std::slice::from_ref(&event)).is_err() {
                        continue;
                    }
                    let append = Append {
                        stream: stream.clone(),
                        expected: Expected::Version(live.version),
                        events: vec![NewEvent::encode(&event).expect("it encodes")],
                        key: None,
                        actor: Actor::Gateway,
                        cause: Cause::None,
                    };
                    for recorded in &journal.append(append).await.expect("it is appended").events {
                        live.advance(recorded).expect("what may follow folds");
                    }
                }
                let folded = journal.load::<Project>(&stream).await.expect("it folds");
                assert_eq!(folded.state, live.state);
            });
        }
    }
}
