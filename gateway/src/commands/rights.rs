//! Who may give which command (SEC-4): the one place that decides it, before a command is carried out.
//!
//! That somebody may speak at all is decided in [`crate::intake`], and what a project's events say of its people in
//! [`Project`]. A command never looks its project up by name itself: [`Commands::permit`] does, and puts it into [`Asked`].

use super::{
    Asked, Commands,
    grammar::{Command, Confirm, Delete, Membership},
};
use crate::{
    chat::{Person, Room},
    people::Role,
    projects::{Project, Registry, Stage, listed, listed_or_made},
    refusal::Refusal,
    rooms::Rooms,
    sessions::Sessions,
};
use uuid::Uuid;

/// What a command is about, and so what its asker must be to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern<'c> {
    /// No project, or all: then the answer shows what its asker may use.
    Nothing,
    /// The project of that name, otherwise the one that the asker has chosen here. Those whom it admits may.
    Use(Option<&'c str>),
    /// The same; but who made it may, and admins.
    Rule(Option<&'c str>),
    /// Likewise, a project that goes: also one whose making or removal has failed.
    Delete(&'c str),
    /// An open question of a turn, whose project is only known with it: see [`Commands::rule_on`].
    Question,
}

impl Command {
    /// What it is about.
    pub fn concern(&self) -> Concern<'_> {
        match self {
            Self::Help { .. } | Self::New(_) | Self::Projects | Self::Stacks(_) | Self::Doctor | Self::Version => {
                Concern::Nothing
            }
            Self::Status
            | Self::Stop
            | Self::Queue
            | Self::Cancel { .. }
            | Self::Reset
            | Self::Mode { .. }
            | Self::Cost
            | Self::Logs { .. }
            | Self::Git { .. }
            | Self::Diff { .. }
            | Self::Undo => Concern::Use(None),
            Self::Switch { project } => Concern::Use(Some(project)),
            Self::Ssh { project } | Self::Members { project, change: None } => Concern::Use(project.as_deref()),
            Self::Members { change: Some(change), .. } => {
                let (Membership::Add { project, .. } | Membership::Remove { project, .. }) = change;
                Concern::Rule(project.as_deref())
            }
            Self::Delete(Delete::Project { name }) | Self::Confirm(Confirm::Delete { name }) => Concern::Delete(name),
            Self::Approve { .. } | Self::Deny { .. } => Concern::Question,
        }
    }
}

/// Refused unless this person, who may speak, may use the project.
pub fn admit(project: &Project, by: &Person, role: Role) -> Result<(), Refusal> {
    if project.admits(by, role) {
        return Ok(());
    }
    let name = project.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
    let add = Command::Members {
        project: None,
        change: Some(Membership::Add { person: by.id.clone(), project: Some(name.clone()) }),
    };
    Err(Refusal::usage(format!("project `{name}` is for its members alone"))
        .hint(format!("Whoever made it can let you in, and the `admins` in bot.toml: `{add}`.")))
}

/// Refused unless this person, who may speak, may use every project that is talked about in the room: what they ask for
/// counts for all of them. That is where something waits or runs, and what somebody has chosen who may use it.
fn admit_to_all(
    registry: &Registry,
    rooms: &Rooms,
    sessions: &Sessions,
    room: &Room,
    by: &Person,
    role: Role,
) -> Result<(), Refusal> {
    let foreign = registry.all().into_iter().filter(|(_, project)| !project.admits(by, role)).any(|(id, project)| {
        let maker = project.spec.as_ref().map(|spec| &spec.asked_by);
        let mut people = project.members.iter().flatten().chain(maker);
        sessions.is_in(id, room) || people.any(|person| rooms.project_of(room, person) == Some(id))
    });
    if !foreign {
        return Ok(());
    }
    Err(Refusal::usage("people here talk about a project that is for its members alone")
        .hint("Who may use all projects of this room can set that for it, and the `admins` in bot.toml."))
}

impl Commands {
    /// Refused unless its asker may give the command. Says which project it is about from here on.
    pub(super) fn permit(&self, command: &Command, asked: &mut Asked) -> Result<(), Refusal> {
        let registry = &self.inner.registry;
        let (by, role) = (&asked.by, asked.role);
        let (name, rules) = match command.concern() {
            Concern::Nothing | Concern::Question => return Ok(()),
            Concern::Use(name) => (name, false),
            Concern::Rule(name) => (name, true),
            Concern::Delete(name) => (Some(name), true),
        };
        let meant = meant(registry, name, command, asked)?;
        meant.as_ref().map_or(Ok(()), |(_, project)| admit(project, by, role))?;
        if let Command::Mode { mode: Some(_) } = command {
            admit_to_all(registry, &self.inner.rooms, &self.inner.sessions, &asked.to.room, by, role)?;
        }
        let Some((id, project)) = meant else { return Ok(()) };
        if rules && !project.is_run_by(by, role) {
            let name = project.spec.map(|spec| spec.name).unwrap_or_default();
            return Err(Refusal::usage(format!("project `{name}` is somebody else's"))
                .hint("Whoever made it may do that, and the `admins` in bot.toml."));
        }
        asked.project = Some(id);
        Ok(())
    }
}

/// The project of this name, otherwise the chosen one. One that is to be deleted may be on its way out, or left half made.
fn meant(
    registry: &Registry,
    name: Option<&str>,
    command: &Command,
    asked: &Asked,
) -> Result<Option<(Uuid, Project)>, Refusal> {
    let Some(name) = name else {
        return Ok(asked.project.and_then(|id| Some((id, registry.get(id)?))));
    };
    let is_left = |id, stage| match stage {
        Stage::Undoing | Stage::Deleting => true,
        Stage::Making => !registry.is_at_work_on(id),
        Stage::Unknown | Stage::Registered | Stage::Removed => false,
    };
    let going = matches!(command.concern(), Concern::Delete(_));
    match registry.by_name(name) {
        Some((id, project)) if going && is_left(id, project.stage) => Ok(Some((id, project))),
        _ => {
            // Who wants to talk about one may want to make it; for all else it has to be there.
            let way = if matches!(command, Command::Switch { .. }) { listed_or_made } else { listed };
            registry.registered(name, |project| project.admits(&asked.by, asked.role), way).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use journal::{Actor, Cause, SystemClock};

    use super::*;
    use crate::{
        chat::{Inbound, SurfaceKind},
        dispatch::SessionKey,
        outbox::Outbox,
        projects::{ProjectEvent, Spec},
        rooms::Mode,
        store::Journal,
        tasks::Tasks,
    };

    #[tokio::test]
    async fn what_counts_for_a_room_is_set_by_who_may_use_all_that_is_talked_about_there() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
        let outbox = Outbox::open(journal.clone(), Tasks::new()).await.expect("it opens");
        let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens");
        let sessions = Sessions::new(journal.clone(), outbox);
        let registry = Registry::open(journal).await.expect("it opens");
        let person = |name: &str| Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") };
        let room = |name: &str| Room { surface: SurfaceKind::Matrix, id: format!("!{name}:example.org") };
        let (maker, ann, bob, boss) = (person("maker"), person("ann"), person("bob"), person("boss"));
        let append = async |id, events: &[ProjectEvent]| {
            registry.append(id, events, Actor::Gateway, Cause::None).await.expect("they follow");
        };
        let spec =
            |name: &str| Spec { name: name.into(), asked_by: maker.clone(), ..Spec::example(format!("/{name}")) };
        let (open, closed) = (Uuid::now_v7(), Uuid::now_v7());
        append(open, &[ProjectEvent::Reserved(spec("open")), ProjectEvent::Registered]).await;
        append(closed, &[ProjectEvent::Reserved(spec("closed")), ProjectEvent::Registered]).await;
        append(closed, &[ProjectEvent::MemberAdded { person: ann.clone() }]).await;
        for (name, who, project) in [
            ("open", &ann, open),
            ("of-ann", &ann, closed),
            ("of-maker", &maker, closed),
            ("once-of-bob", &bob, closed),
        ] {
            rooms.switch(&room(name), who, project, Cause::None).await.expect("it is chosen");
        }
        let key = SessionKey { project: closed, room: room("waits"), thread: None };
        let said = Inbound {
            room: key.room.clone(),
            event_id: "$1".into(),
            sender: boss.clone(),
            at: jiff::Timestamp::UNIX_EPOCH,
            text: "hello".into(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        };
        sessions.accept(&key, &said, "hello", Role::Admin, false).await.expect("it is accepted");

        for (name, bob_may) in [
            ("empty", true),
            ("open", true),
            ("once-of-bob", true),
            ("of-ann", false),
            ("of-maker", false),
            ("waits", false),
        ] {
            let may = |by, role| admit_to_all(&registry, &rooms, &sessions, &room(name), by, role);
            assert_eq!(may(&bob, Role::Member).is_ok(), bob_may, "{name}");
            for (by, role) in [(&ann, Role::Member), (&maker, Role::Member), (&boss, Role::Admin)] {
                may(by, role).expect("they may use everything");
            }
        }
        let refusal = admit_to_all(&registry, &rooms, &sessions, &room("of-ann"), &bob, Role::Member);
        let refusal = refusal.expect_err("it is not for bob");
        assert!(refusal.hint.is_some() && !refusal.to_markdown().contains("closed"), "{refusal}");
    }
}
