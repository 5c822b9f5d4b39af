//! `diff` and `undo`: what the last turn did to a project's files, and back (SLED-9). The project's sled does it; here it is asked, and
//! people are told.

use std::{fmt::Write as _, time::Duration};

use link::{
    CallError,
    requests::{Diff, DiffAnswer, Head, NoRecord, PutBack, RefusalKind, TurnOnRecord, UndoAnswer},
};

use super::{Asked, Commands, OUTPUT_MAX, grammar::Command};
use crate::{failpoint, refusal::Refusal, text};

/// How many paths are named.
const NAMES: usize = 20;

impl Commands {
    /// Shows what the last turn changed, or what of it is about these paths.
    pub(super) async fn diff(&self, paths: Vec<String>, asked: &Asked) -> Result<String, Refusal> {
        let (id, _) = self.chosen(asked)?;
        let work = async {
            let sled = self.inner.nodes.sled(id).await?;
            let limited = !paths.is_empty();
            match self.heard(id, sled.diff(paths).await)? {
                DiffAnswer::Changes(diff) => Ok(show(&diff, limited)),
                DiffAnswer::None(why) => Err(no_record(&why)),
            }
        };
        self.patiently("diff", asked, work).await
    }

    /// Puts back what the last turn changed, or takes that back.
    pub(super) async fn undo(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, _) = self.chosen(asked)?;
        let work = async {
            let sled = self.inner.nodes.sled(id).await?;
            let answer = failpoint::around("undo", sled.undo()).await;
            if let Err(CallError::Refused(refusal)) = &answer
                && refusal.kind == RefusalKind::Busy
            {
                return Err(Refusal::usage("the agent is at work; nothing is put back meanwhile").hint(format!(
                    "Wait for its end, or write `{}` and then `{}`.",
                    Command::Stop,
                    Command::Undo
                )));
            }
            match self.heard(id, answer)? {
                UndoAnswer::PutBack(done) => Ok(tell(&done)),
                UndoAnswer::None(why) => Err(no_record(&why)),
                UndoAnswer::ChangedSince { paths, more } => Err(changed_since(&paths, more)),
            }
        };
        self.patiently("undo", asked, work).await
    }
}

/// Why there is nothing to show or put back.
fn no_record(why: &NoRecord) -> Refusal {
    match why {
        NoRecord::NoRepository => Refusal::usage(
            "the project's folder is no git repository, and without one it is not recorded what a turn changes",
        )
        .hint("`!git init` makes it one; what is changed from then on is recorded."),
        NoRecord::NoTurn => Refusal::usage("no turn that is on record has changed a file")
            .hint(format!("`{}` shows what differs from the last commit.", git_diff())),
        NoRecord::GivenUp { reason } => {
            Refusal::usage(format!("what the last turn changed is not on record: {}", text::one_line(reason, 300)))
                .hint(format!(
                    "`{}` shows what differs from the last commit; git ignores what its `.gitignore` names.",
                    git_diff()
                ))
        }
    }
}

fn git_diff() -> Command {
    Command::Git { args: vec!["diff".to_owned(), "HEAD".to_owned()] }
}

fn changed_since(paths: &[String], more: u64) -> Refusal {
    Refusal::usage(format!("since that turn somebody else has changed {}; nothing is put back", names(paths, more)))
        .hint(format!(
            "`{}` shows what the turn changed. Move what is yours out of the way, and ask again.",
            Command::Diff { paths: Vec::new() }
        ))
}

/// A turn's changes, for people: their beginning where they are long.
fn show(diff: &Diff, limited: bool) -> String {
    let Diff { turn, output, truncated } = diff;
    let undone = if turn.undone { "; it is put back now" } else { "" };
    let mut said = format!("What the turn changed that ended {}{undone}:", ago(turn));
    let mut to = output.len().min(OUTPUT_MAX);
    while !output.is_char_boundary(to) {
        to -= 1;
    }
    let shown = &output[..to];
    if shown.trim().is_empty() {
        return format!("{said}\n{}", if limited { "(nothing there)" } else { "(nothing)" });
    }
    let written = write!(said, "\n{}", text::code_block(shown.trim_start_matches('\n')));
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    if *truncated || to < output.len() {
        said.push_str("\n(the beginning of it; name paths to see less: `!diff <path…>`)");
    }
    said
}

/// What was put back, for people.
fn tell(done: &PutBack) -> String {
    let PutBack { turn, paths, more, head_moved, left, missing } = done;
    let (what, then) = if turn.undone {
        ("as before the turn that ended", "takes that back")
    } else {
        ("again as after the turn that ended", "puts it back once more")
    };
    let mut lines = vec![format!("{} {what} {}. `{}` {then}.", names(paths, *more), ago(turn), Command::Undo)];
    if let Some(moved) = head_moved {
        lines.push(format!(
            "Branches and index are not touched: the turn began on {} and ended on {}.",
            head(&moved.before),
            head(&moved.after)
        ));
    }
    if !left.is_empty() {
        lines.push(format!("Repositories of their own stay where they are: {}.", names(left, 0)));
    }
    if !missing.is_empty() {
        let update = ["submodule", "update", "--init"].map(str::to_owned).into();
        let update = Command::Git { args: update };
        lines.push(format!("⚠ These submodules did not come back: {}.\nTry `{update}`.", names(missing, 0)));
    }
    lines.join("\n")
}

fn head(head: &Head) -> String {
    let commit = head.commit.as_deref().map(|commit| text::code(commit.get(..8).unwrap_or(commit)));
    match (&head.branch, commit) {
        (Some(branch), Some(commit)) => format!("{} at {commit}", text::code(branch)),
        (Some(branch), None) => format!("{} without a commit", text::code(branch)),
        (None, Some(commit)) => format!("commit {commit}"),
        (None, None) => "no commit".to_owned(),
    }
}

fn names(paths: &[String], more: u64) -> String {
    let more = more.saturating_add(paths.len().saturating_sub(NAMES) as u64);
    let named: Vec<_> = paths.iter().take(NAMES).map(|path| text::code(path)).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

fn ago(turn: &TurnOnRecord) -> String {
    format!("{} ago", text::span(Duration::from_secs(turn.secs_ago)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(undone: bool) -> TurnOnRecord {
        TurnOnRecord { id: uuid::Uuid::nil(), secs_ago: 300, undone }
    }

    fn head_at(branch: &str, commit: &str) -> Head {
        Head { branch: Some(branch.to_owned()), commit: Some(commit.to_owned()) }
    }

    #[test]
    fn what_was_done_is_told() {
        let mut done = PutBack {
            turn: turn(true),
            paths: vec!["src/a".to_owned(), "`x`\u{202e}".to_owned()],
            more: 3,
            head_moved: None,
            left: Vec::new(),
            missing: Vec::new(),
        };
        insta::assert_snapshot!(tell(&done), @"`src/a`, `'x'` and 3 more as before the turn that ended 5 min ago. `undo` takes that back.");
        done.turn = turn(false);
        done.head_moved = Some(link::requests::HeadMoved {
            before: head_at("main", "0123456789"),
            after: Head { branch: None, commit: Some("abcdef0123".to_owned()) },
        });
        done.left = vec!["clone".to_owned()];
        done.missing = vec!["lib".to_owned()];
        insta::assert_snapshot!(tell(&done), @"
        `src/a`, `'x'` and 3 more again as after the turn that ended 5 min ago. `undo` puts it back once more.
        Branches and index are not touched: the turn began on `main` at `01234567` and ended on commit `abcdef01`.
        Repositories of their own stay where they are: `clone`.
        ⚠ These submodules did not come back: `lib`.
        Try `!git submodule update --init`.
        ");
    }

    #[test]
    fn of_a_long_difference_the_beginning_is_shown() {
        let mut diff = Diff { turn: turn(true), output: "+a\n".to_owned(), truncated: false };
        insta::assert_snapshot!(show(&diff, false), @"
        What the turn changed that ended 5 min ago; it is put back now:
        ```
        +a
        ```
        ");
        diff.output = "ü\n".repeat(OUTPUT_MAX);
        let said = show(&diff, false);
        assert!(said.len() < OUTPUT_MAX + 300 && said.ends_with("`!diff <path…>`)"), "{}", said.len());
        diff.output.clear();
        assert!(show(&diff, true).ends_with("(nothing there)"));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let said: Vec<_> = [
            no_record(&NoRecord::NoRepository),
            no_record(&NoRecord::NoTurn),
            no_record(&NoRecord::GivenUp { reason: "it took longer than 5 s".to_owned() }),
            changed_since(&["a".to_owned()], 0),
        ]
        .iter()
        .map(Refusal::to_markdown)
        .collect();
        insta::assert_snapshot!(said.join("\n"), @"
        ⚠ The project's folder is no git repository, and without one it is not recorded what a turn changes.
        `!git init` makes it one; what is changed from then on is recorded.
        ⚠ No turn that is on record has changed a file.
        `!git diff HEAD` shows what differs from the last commit.
        ⚠ What the last turn changed is not on record: it took longer than 5 s.
        `!git diff HEAD` shows what differs from the last commit; git ignores what its `.gitignore` names.
        ⚠ Since that turn somebody else has changed `a`; nothing is put back.
        `diff` shows what the turn changed. Move what is yours out of the way, and ask again.
        ");
    }
}
