//! What a folder that is adopted brings with it from the projects that had it before: so that a project that is deleted and made
//! anew has its git remote, and is for its members alone, as it was (SEC-4). Pure.

use std::collections::BTreeSet;

use super::{Project, ProjectEvent};
use crate::{
    chat::{Person, SurfaceKind},
    git::Remote,
    text,
};

/// What a project takes over with its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heritage {
    /// What the project was called that had the folder last.
    last: String,
    /// Where it is fetched from and pushed to.
    pub git: Option<Remote>,
    /// Who may use it beside whoever makes it now, and admins; `None` when it was open.
    members: Option<BTreeSet<Person>>,
}

impl Heritage {
    /// What the deleted projects of a folder leave, the newest first ([`super::Registry::once_at`]).
    ///
    /// Each of them took over what the one before it had; where it did not, because it was made when nothing was taken over,
    /// the older one's counts.
    pub fn of(projects: &[Project]) -> Option<Self> {
        let last = projects.first()?.spec.as_ref()?.name.clone();
        let git = projects.iter().find_map(|project| project.spec.as_ref()?.git.clone());
        let closed = projects.iter().position(|project| project.members.is_some());
        let members = closed.map(|closed| {
            let heirs = &projects[..=closed];
            let makers = heirs.iter().filter_map(|project| project.spec.as_ref()).map(|spec| &spec.asked_by);
            let named = heirs[closed].members.iter().flatten();
            // Who sits at the console is an admin, and needs no name.
            named.chain(makers).filter(|person| person.surface != SurfaceKind::Console).cloned().collect()
        });
        (git.is_some() || members.is_some()).then_some(Self { last, git, members })
    }

    /// What goes with [`ProjectEvent::Registered`], in one append: a project that was closed is open at no moment. It is closed by
    /// its first member, for which whoever makes it stands.
    pub fn membership(&self, maker: &Person) -> Vec<ProjectEvent> {
        let Some(members) = &self.members else { return Vec::new() };
        let mut members = members.clone();
        members.insert(maker.clone());
        members.into_iter().map(|person| ProjectEvent::MemberAdded { person }).collect()
    }

    /// What people are told of it.
    pub fn remark(&self, name: &str) -> String {
        let mut taken = Vec::new();
        taken.extend(self.git.as_ref().map(|git| format!("its git remote {}", text::code(&git.shown()))));
        taken.extend(
            self.members.as_ref().map(|_| {
                format!("its members, so that it stays closed to everybody else (`members {name}` names them)")
            }),
        );
        format!("taken over from `{}`, the deleted project of this folder: {}", self.last, taken.join(", and "))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use journal::{Actor, Cause, SystemClock};
    use uuid::Uuid;

    use super::*;
    use crate::{
        people::Role,
        projects::{Registry, Spec},
        store::Journal,
    };

    const HERE: &str = "/srv/app";

    fn person(name: &str) -> Person {
        Person { surface: SurfaceKind::Matrix, id: format!("@{name}:example.org") }
    }

    fn added(name: &str) -> ProjectEvent {
        ProjectEvent::MemberAdded { person: person(name) }
    }

    fn remote() -> Remote {
        Remote::parse("https://example.org/team/app.git", Path::new("/root")).expect("it is one")
    }

    fn spec(name: &str, git: Option<Remote>, adopt: bool) -> Spec {
        Spec { name: name.into(), git, adopt, asked_by: person(&format!("maker-of-{name}")), ..Spec::example(HERE) }
    }

    struct Host {
        _folder: tempfile::TempDir,
        registry: Registry,
    }

    impl Host {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
            Self { _folder: folder, registry: Registry::open(journal).await.expect("it opens") }
        }

        async fn happens(&self, id: Uuid, events: &[ProjectEvent]) -> Project {
            self.registry.append(id, events, Actor::Gateway, Cause::None).await.expect("they follow")
        }

        /// A project that was, and is deleted.
        async fn was(&self, spec: Spec, members: &[ProjectEvent]) {
            let begin = [ProjectEvent::Reserved(spec), ProjectEvent::Registered];
            let end = [ProjectEvent::DeletionBegun, ProjectEvent::Removed];
            self.happens(Uuid::now_v7(), &[&begin, members, &end].concat()).await;
        }

        fn left(&self) -> Option<Heritage> {
            Heritage::of(&self.registry.once_at(Path::new(HERE)))
        }

        /// Who of these may use the project that `maker` makes of the folder now.
        async fn admitted(&self, maker: &str, asked: &[&'static str]) -> Vec<&'static str> {
            let heritage = self.left().expect("something is left");
            let spec = Spec { asked_by: person(maker), git: heritage.git.clone(), ..spec("new", None, true) };
            let id = Uuid::now_v7();
            self.happens(id, &[ProjectEvent::Reserved(spec)]).await;
            let mut end = vec![ProjectEvent::Registered];
            end.extend(heritage.membership(&person(maker)));
            let project = self.happens(id, &end).await;
            asked.iter().copied().filter(|name| project.admits(&person(name), Role::Member)).collect()
        }
    }

    #[tokio::test]
    async fn a_project_that_is_made_anew_has_its_remote_and_its_members() {
        let host = Host::new().await;
        assert_eq!(host.left(), None, "nobody had it");
        host.was(spec("app", Some(remote()), false), &[added("ann"), added("bob"), added("cid")]).await;
        host.was(Spec { path: "/srv/other".into(), ..spec("other", None, false) }, &[]).await;
        let heritage = host.left().expect("something is left");
        assert_eq!(heritage.git, Some(remote()));
        insta::assert_snapshot!(heritage.remark("new"), @"taken over from `app`, the deleted project of this folder: its git remote `https://example.org/team/app.git`, and its members, so that it stays closed to everybody else (`members new` names them)");
        // Its maker stays in it when a member makes it anew.
        let all = ["ann", "bob", "cid", "maker-of-app", "eve"];
        assert_eq!(host.admitted("ann", &all).await, ["ann", "bob", "cid", "maker-of-app"]);
    }

    #[tokio::test]
    async fn what_was_closed_without_a_member_stays_closed() {
        let host = Host::new().await;
        let removed = ProjectEvent::MemberRemoved { person: person("ann") };
        let at_console = Spec { asked_by: crate::chat::console::person(), ..spec("app", None, false) };
        host.was(at_console, &[added("ann"), removed]).await;
        assert_eq!(host.admitted("boss", &["ann", "boss", "eve"]).await, ["boss"]);
    }

    #[tokio::test]
    async fn what_was_open_stays_open() {
        let host = Host::new().await;
        host.was(spec("app", None, false), &[]).await;
        assert_eq!(host.left(), None);
        host.was(spec("app", Some(remote()), true), &[]).await;
        assert_eq!(host.left().expect("a remote").membership(&person("ann")), []);
    }

    #[tokio::test]
    async fn the_newest_project_of_a_folder_counts_back_to_the_one_that_it_was_made_for() {
        let host = Host::new().await;
        host.was(spec("first", Some(remote()), false), &[added("ann")]).await;
        // By a version that took nothing over.
        host.was(spec("second", None, true), &[]).await;
        // One that never came to be says nothing.
        let abandoned = ProjectEvent::Abandoned { reason: "why".into() };
        let third = ProjectEvent::Reserved(spec("third", None, true));
        host.happens(Uuid::now_v7(), &[third, abandoned, ProjectEvent::Removed]).await;
        let heritage = host.left().expect("something is left");
        assert_eq!(heritage.git, Some(remote()));
        assert!(heritage.remark("new").contains("from `second`"), "{heritage:?}");
        let all = ["ann", "maker-of-first", "maker-of-second", "maker-of-third"];
        assert_eq!(host.admitted("ann", &all).await, all[..3]);
        // A folder that was made afresh has nothing of what lay there before.
        host.was(spec("fresh", None, false), &[]).await;
        assert_eq!(host.left(), None);
    }
}
