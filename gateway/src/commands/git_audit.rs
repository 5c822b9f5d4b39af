//! `git audit`: what the credential of a project's git remote was used for (SEC-2), in a room and on the command line.

use std::fmt::Write as _;

use journal::{Fold, Loaded, ReadError, Reader, StreamId};
use uuid::Uuid;

use super::{Asked, Commands};
use crate::{
    git::audit::{self, By, Outcome, Part, Service, Used, Uses},
    home::Home,
    inspect,
    projects::{Project, Stage, project},
    refusal::Refusal,
    text,
};

/// What follows `git` to ask for it.
pub const VERB: &str = "audit";

/// Whether `git` with these arguments is this command and none of git's own.
pub fn is_meant(args: &[String]) -> bool {
    matches!(args, [only] if only == VERB)
}

impl Commands {
    /// Answers `git audit` for the project that is talked about.
    pub(super) async fn git_audit(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let name = project.spec.map(|spec| spec.name).unwrap_or_default();
        let uses = self.inner.git.audit.uses(id).await?;
        Ok(report(&name, &uses))
    }
}

/// Answers `musher git audit <project>` from the journal, also while the gateway runs. Of projects that had the name, the one that
/// has it now counts, or else the latest.
///
/// # Errors
/// When the journal cannot be read, or knows no such project.
pub fn from_journal(home: &Home, name: &str) -> Result<String, Refusal> {
    let unreadable = |error: ReadError| Refusal::internal("the journal cannot be read", error);
    let unknown = || {
        Refusal::usage(format!("there is no project {}", text::code(name)))
            .hint("`projects` lists them, in the chat that `musher up` opens.")
    };
    if !home.journal().exists() {
        return Err(unknown());
    }
    let reader = inspect::open_existing(&home.journal())?;
    let mut found: Option<(bool, Uuid)> = None;
    for stream in reader.streams().map_err(unreadable)?.into_iter().filter(|stream| stream.kind == project::STREAM) {
        let Ok(id) = stream.id.parse::<Uuid>() else { continue };
        let project: Project = fold(&reader, &stream).map_err(unreadable)?;
        if project.spec.as_ref().is_some_and(|spec| spec.name == name) {
            // Ids grow with time.
            found = found.max(Some((project.stage != Stage::Removed, id)));
        }
    }
    let (_, id) = found.ok_or_else(unknown)?;
    let uses = fold(&reader, &StreamId::new(audit::STREAM, id)).map_err(unreadable)?;
    Ok(report(name, &uses))
}

fn fold<F: Fold>(reader: &Reader, stream: &StreamId) -> Result<F, ReadError> {
    let mut loaded = Loaded::<F>::default();
    for event in reader.read(stream, 0)? {
        loaded.advance(&event)?;
    }
    Ok(loaded.state)
}

/// The latest uses, the newest first.
fn report(name: &str, uses: &Uses) -> String {
    if uses.latest.is_empty() {
        return format!("**{name}**: nothing was asked of a git remote yet.");
    }
    let shown = uses.latest.len();
    let mut said = format!("**{name}**: the latest {shown} of {}", count(uses.all));
    for used in uses.latest.iter().rev() {
        let written = write!(said, "\n- {}", line(used));
        debug_assert!(written.is_ok(), "writing to a string does not fail");
    }
    said
}

fn count(uses: u64) -> String {
    if uses == 1 { "1 use".to_owned() } else { format!("{uses} uses") }
}

fn line(used: &Used) -> String {
    let service = match (used.service, used.part) {
        (Service::Fetch, Part::References) => "fetch (references)",
        (Service::Fetch, Part::Objects | Part::Whole) => "fetch",
        (Service::Push, Part::References) => "push (references)",
        (Service::Push, Part::Objects | Part::Whole) => "push",
    };
    let by = match used.by {
        By::Clone => "to make the project",
        By::Container => "from the container",
    };
    let end = match used.end {
        None => "has no end yet, or the gateway was killed".to_owned(),
        Some((outcome, sent, received)) => {
            let outcome = match outcome {
                Outcome::Done => "done",
                Outcome::Denied => "denied by the server",
                Outcome::Failed => "failed",
                Outcome::Unreachable => "not reached",
                Outcome::Untrusted => "not trusted",
                Outcome::CutOff => "cut off",
            };
            format!("{outcome}, {} sent, {} received", bytes(sent), bytes(received))
        }
    };
    let time = used.time.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!("{time}: {service} {by}, {}: {end}", text::code(&used.remote))
}

/// A number of bytes for people: `512 B`, `1.2 kB`, `3.4 MB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (count / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1000, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use journal::{Actor, Cause};

    use super::*;
    use crate::{
        git::Audit,
        projects::{ProjectEvent, Registry, Spec},
        store,
        tasks::Tasks,
    };

    #[test]
    fn uses_are_told_newest_first() {
        let used = |end| Used {
            id: Uuid::nil(),
            time: Timestamp::UNIX_EPOCH,
            service: Service::Fetch,
            part: Part::References,
            remote: "https://example.org/a".to_owned(),
            by: By::Container,
            end,
        };
        let push = Used { service: Service::Push, part: Part::Objects, ..used(Some((Outcome::Done, 1_234_567, 99))) };
        let uses = Uses { latest: [used(None), push].into(), all: 7 };
        insta::assert_snapshot!(report("app", &uses), @r"
        **app**: the latest 2 of 7 uses
        - 1970-01-01 00:00:00 UTC: push from the container, `https://example.org/a`: done, 1.2 MB sent, 99 B received
        - 1970-01-01 00:00:00 UTC: fetch (references) from the container, `https://example.org/a`: has no end yet, or the gateway was killed
        ");
        assert_eq!(report("app", &Uses::default()), "**app**: nothing was asked of a git remote yet.");
    }

    #[test]
    fn bytes_read_well() {
        let said = [0, 999, 1000, 1_250_000, 999_950_000, 8_589_934_592].map(bytes);
        assert_eq!(said, ["0 B", "999 B", "1.0 kB", "1.2 MB", "999.9 MB", "8.5 GB"]);
    }

    #[tokio::test]
    async fn the_command_line_asks_the_journal_by_the_projects_name() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        let said = |name: &str| from_journal(&home, name).map_err(|refusal| refusal.to_string());
        assert!(said("app").is_err_and(|refusal| refusal.starts_with("there is no project `app`")));
        let journal = store::Journal::open(&home.journal(), Arc::new(Timestamp::UNIX_EPOCH)).expect("it can be made");
        let registry = Registry::open(journal.clone()).await.expect("it can be read");
        let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
        for (id, gone) in [(old, true), (new, false)] {
            let spec = Spec { name: "app".to_owned(), ..Spec::example("/srv/app") };
            let mut events = vec![ProjectEvent::Reserved(spec)];
            if gone {
                events.extend([ProjectEvent::Abandoned { reason: String::new() }, ProjectEvent::Removed]);
            }
            registry.append(id, &events, Actor::Gateway, Cause::None).await.expect("it can follow");
        }
        let audit = Audit::new(journal, Tasks::new(), Arc::new(|_, _| Cause::None));
        for (id, remote) in [(old, "https://example.org/old"), (new, "https://example.org/new")] {
            let used = audit.begin(id, (Service::Push, Part::Whole), remote.to_owned(), By::Container).await;
            used.expect("it is journaled").end(Outcome::Denied).await.expect("it is journaled");
        }
        let said = said("app").expect("it is known");
        assert!(
            said.contains("the latest 1 of 1 use\n") && said.contains("`https://example.org/new`: denied"),
            "{said}"
        );
    }
}
