//! Who may give which command (SEC-4): the one place that decides it, before a command is carried out.
//!
//! That somebody may speak at all is decided in [`crate::intake`], and what a project's events say of its people in
//! [`Project`]. A command never looks its project up by name itself: [`Commands::permit`] does, and puts it into [`Asked`].

use super::{
    Asked, Commands,
    grammar::{Command, Confirm, Delete, Membership},
};
use crate::{
    chat::Person,
    people::Role,
    projects::{Project, Registry, Stage},
    refusal::Refusal,
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
    /// Likewise, a project that goes: also one whose removal has failed.
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
        let going = matches!(command.concern(), Concern::Delete(_));
        let Some((id, project)) = meant(registry, name, going, asked)? else { return Ok(()) };
        admit(&project, by, role)?;
        if rules && !project.is_run_by(by, role) {
            let name = project.spec.map(|spec| spec.name).unwrap_or_default();
            return Err(Refusal::usage(format!("project `{name}` is somebody else's"))
                .hint("Whoever made it may do that, and the `admins` in bot.toml."));
        }
        asked.project = Some(id);
        Ok(())
    }
}

/// The project of this name, otherwise the chosen one. What is `going` may be on its way out.
fn meant(
    registry: &Registry,
    name: Option<&str>,
    going: bool,
    asked: &Asked,
) -> Result<Option<(Uuid, Project)>, Refusal> {
    let Some(name) = name else {
        return Ok(asked.project.and_then(|id| Some((id, registry.get(id)?))));
    };
    match registry.by_name(name) {
        Some((id, project)) if going && matches!(project.stage, Stage::Undoing | Stage::Deleting) => {
            Ok(Some((id, project)))
        }
        _ => registry.registered(name, |project| project.admits(&asked.by, asked.role)).map(Some),
    }
}
