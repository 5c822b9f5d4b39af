//! `members`: who may use a project (SEC-4). Who may change it was decided by [`super::rights`].

use std::collections::BTreeSet;

use super::{
    Asked, Commands,
    grammar::{Command, Membership},
};
use crate::{
    chat::{Person, SurfaceKind},
    projects::{Project, ProjectEvent},
    refusal::Refusal,
    text,
};

impl Commands {
    /// Tells who may use the project.
    pub(super) fn members(&self, asked: &Asked) -> Result<String, Refusal> {
        let (_, project) = self.chosen(asked)?;
        Ok(describe(&project))
    }

    /// Changes who may use it; what they said stays what it was accepted as.
    pub(super) async fn change_members(&self, change: Membership, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let (Membership::Add { person, .. } | Membership::Remove { person, .. }) = &change;
        let person = Person { surface: SurfaceKind::Matrix, id: person.clone() };
        let shown = text::code(&person.id);
        let named = project.members.as_ref().is_some_and(|members| members.contains(&person));
        let event = match change {
            Membership::Add { .. } if self.inner.people.role(&person).is_none() => {
                return Err(Refusal::usage(format!("{shown} may not speak to me"))
                    .hint("Put the id under `allowed_users` in bot.toml first, and start musher anew."));
            }
            Membership::Add { .. } => (!named).then_some(ProjectEvent::MemberAdded { person }),
            Membership::Remove { .. } => named.then_some(ProjectEvent::MemberRemoved { person }),
        };
        let actor = journal::Actor::Person(asked.by.to_string());
        let project = match event {
            Some(event) => self.inner.registry.append(id, &[event], actor, asked.cause()).await?,
            None => project,
        };
        Ok(describe(&project))
    }
}

/// Who may use it, for people.
fn describe(project: &Project) -> String {
    let Some(spec) = &project.spec else { return String::new() };
    let name = &spec.name;
    let maker = match spec.asked_by.surface {
        SurfaceKind::Console => "whoever sits at the console, who made it".to_owned(),
        SurfaceKind::Matrix => format!("{}, who made it", text::code(&spec.asked_by.id)),
    };
    let Some(members) = &project.members else {
        let add = Command::Members {
            project: None,
            change: Some(Membership::Add { person: "@ann:example.org".to_owned(), project: Some(name.clone()) }),
        };
        return format!(
            "**{name}** is open to everybody who may speak to me.\nWith its first member that ends: `{add}`."
        );
    };
    let named: BTreeSet<String> =
        members.iter().filter(|person| **person != spec.asked_by).map(|person| text::code(&person.id)).collect();
    let mut lines = vec![format!("**{name}** may be used by:")];
    lines.push(format!("- {maker}"));
    lines.extend(named.into_iter().map(|member| format!("- {member}")));
    lines.push("- the `admins` in bot.toml".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projects::{Spec, Stage};

    #[test]
    fn who_may_use_a_project_is_told() {
        let mut project =
            Project { spec: Some(Spec::example("/srv/app")), stage: Stage::Registered, ..Project::default() };
        insta::assert_snapshot!(describe(&project), @r"
        **app** is open to everybody who may speak to me.
        With its first member that ends: `members add @ann:example.org app`.
        ");
        let members = ["@bob:example.org", "@ann:`example.org"];
        let person = |id: &str| Person { surface: SurfaceKind::Matrix, id: id.to_owned() };
        project.members = Some(members.map(person).into());
        insta::assert_snapshot!(describe(&project), @r"
        **app** may be used by:
        - whoever sits at the console, who made it
        - `@ann:'example.org`
        - `@bob:example.org`
        - the `admins` in bot.toml
        ");
        project.members = Some(BTreeSet::new());
        insta::assert_snapshot!(describe(&project), @r"
        **app** may be used by:
        - whoever sits at the console, who made it
        - the `admins` in bot.toml
        ");
    }
}
