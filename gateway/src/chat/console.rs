//! The console: one room, one person, who is admin. A line-edited prompt on a terminal, plain lines otherwise.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError, mpsc::SyncSender},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use reedline::{DefaultPrompt, DefaultPromptSegment, ExternalPrinter, FileBackedHistory, Reedline, Signal};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    sync::CancellationToken,
    task::TaskTracker,
};
use uuid::Uuid;

use super::{Inbound, Inbox, InboxError, Outbound, Person, Room, SendError, Surface, SurfaceKind, Weight};
use crate::text;

/// The longest line that is taken, in bytes.
const LINE_MAX: usize = 256 * 1024;
/// Messages whose text is remembered, so that an edit can show what is new.
const REMEMBERED: usize = 64;
/// Lines of history that the prompt keeps.
const HISTORY: usize = 2000;

/// The console.
pub struct Console {
    output: Output,
    shown: Mutex<VecDeque<(String, String)>>,
}

enum Output {
    Plain(Mutex<Box<dyn Write + Send>>),
    /// What is sent is printed above the prompt; the editor takes the other half when it starts.
    Prompt(SyncSender<String>, Mutex<Option<ExternalPrinter<String>>>),
}

/// The console's one room.
pub fn room() -> Room {
    Room { surface: SurfaceKind::Console, id: "main".to_owned() }
}

/// The console's one person.
pub fn person() -> Person {
    Person { surface: SurfaceKind::Console, id: "you".to_owned() }
}

impl Console {
    /// A console that writes plain lines.
    pub fn plain(output: impl Write + Send + 'static) -> Self {
        Self { output: Output::Plain(Mutex::new(Box::new(output))), shown: Mutex::default() }
    }

    /// A console that writes above a line-edited prompt.
    pub fn prompt() -> Self {
        let printer = ExternalPrinter::default();
        Self { output: Output::Prompt(printer.sender(), Mutex::new(Some(printer))), shown: Mutex::default() }
    }

    fn print(&self, lines: &str) -> io::Result<()> {
        match &self.output {
            Output::Plain(output) => {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(output, "{lines}")?;
                output.flush()
            }
            Output::Prompt(printer, _) => printer.send(lines.to_owned()).map_err(io::Error::other),
        }
    }

    fn remember(&self, event: String, text: String) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|(known, _)| *known != event);
        shown.push_back((event, text));
        if shown.len() > REMEMBERED {
            shown.pop_front();
        }
    }

    fn recall(&self, event: &str) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().find(|(known, _)| known == event).map(|(_, text)| text.clone()).unwrap_or_default()
    }
}

/// What a message looks like: asides are indented.
fn layout(message: &Outbound) -> String {
    let text = text::plain(message.markdown.trim_end());
    match message.weight {
        Weight::Answer => text,
        Weight::Notice => text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    }
}

/// The lines of `new` that were not the end of `old` already.
fn added<'a>(old: &str, new: &'a str) -> Vec<&'a str> {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let known = (0..=old.len().min(new.len())).rev().find(|&n| {
        // Either the new text goes on from the whole old one, or its beginning was cut away.
        new[..n] == old[..n] && n == old.len() || new[..n] == old[old.len() - n..]
    });
    let common = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    new[known.unwrap_or(0).max(common)..].to_vec()
}

fn unwritable(error: &io::Error) -> SendError {
    SendError::Refused { surface: SurfaceKind::Console, message: error.to_string() }
}

impl Surface for Console {
    fn kind(&self) -> SurfaceKind {
        SurfaceKind::Console
    }

    fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        async move {
            let event = Uuid::now_v7().to_string();
            let text = layout(message);
            self.print(&text).map_err(|error| unwritable(&error))?;
            self.remember(event.clone(), text);
            Ok(event)
        }
        .boxed()
    }

    fn edit<'a>(
        &'a self,
        _: &'a Room,
        event_id: &'a str,
        message: &'a Outbound,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        async move {
            let text = layout(message);
            let before = self.recall(event_id);
            let lines = added(&before, &text);
            if !lines.is_empty() {
                self.print(&lines.join("\n")).map_err(|error| unwritable(&error))?;
            }
            self.remember(event_id.to_owned(), text);
            Ok(())
        }
        .boxed()
    }

    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn edit_interval(&self) -> Duration {
        Duration::ZERO
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Takes chat lines from `input` until it ends, and returns when all of them have been answered in full.
///
/// With `one_by_one`, a line is taken when the one before has been answered in full.
pub async fn read_lines(input: impl AsyncRead, inbox: &dyn Inbox, one_by_one: bool) -> io::Result<()> {
    let lines = FramedRead::new(input, LinesCodec::new_with_max_length(LINE_MAX));
    let mut lines = std::pin::pin!(lines);
    let all = TaskTracker::new();
    all.close();
    while let Some(line) = lines.next().await {
        let line = line.map_err(|error| match error {
            LinesCodecError::MaxLineLengthExceeded => {
                io::Error::new(io::ErrorKind::InvalidData, format!("a line has more than {LINE_MAX} bytes"))
            }
            LinesCodecError::Io(error) => error,
        })?;
        let (this, accepted) = take(&line, inbox, &all).await;
        if accepted.is_err() {
            break;
        }
        if one_by_one {
            this.wait().await;
        }
    }
    all.wait().await;
    Ok(())
}

/// Hands one line over. The tracker is empty when it has been answered in full; so is `all` when every line has.
async fn take(line: &str, inbox: &dyn Inbox, all: &TaskTracker) -> (TaskTracker, Result<(), InboxError>) {
    let this = TaskTracker::new();
    this.close();
    if line.trim().is_empty() {
        return (this, Ok(()));
    }
    let message = Inbound {
        room: room(),
        event_id: Uuid::now_v7().to_string(),
        sender: person(),
        at: Timestamp::now(),
        text: line.trim_end_matches('\r').to_owned(),
        quoted: None,
        thread: None,
        addressed: true,
        pending: Some(this.token()),
    };
    let accepted = inbox.accept(message).await;
    if !this.is_empty() {
        let (token, waited) = (all.token(), this.clone());
        tokio::spawn(async move {
            waited.wait().await;
            drop(token);
        });
    }
    (this, accepted)
}

/// Runs the prompt until the person ends it (Ctrl-C, Ctrl-D) or `stopping` is cancelled. What is under way then goes on.
pub async fn run_prompt(
    console: &Console,
    inbox: &dyn Inbox,
    history: PathBuf,
    stopping: CancellationToken,
) -> io::Result<()> {
    let printer = match &console.output {
        Output::Prompt(_, printer) => printer.lock().unwrap_or_else(PoisonError::into_inner).take(),
        Output::Plain(_) => None,
    };
    let printer = printer.ok_or_else(|| io::Error::other("this console has no prompt, or one that runs already"))?;
    let history = FileBackedHistory::with_file(HISTORY, history).map_err(io::Error::other)?;
    let mut editor = Reedline::create().with_external_printer(printer).with_history(Box::new(history));
    let (sender, mut lines) = mpsc::channel(1);
    // The editor blocks in the terminal; its thread ends with the process at the latest.
    std::thread::Builder::new().name("prompt".to_owned()).spawn(move || {
        let prompt = DefaultPrompt::new(DefaultPromptSegment::Empty, DefaultPromptSegment::Empty);
        while let Ok(Signal::Success(line)) = editor.read_line(&prompt) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    let all = TaskTracker::new();
    all.close();
    while let Some(Some(line)) = stopping.run_until_cancelled(lines.recv()).await {
        let (_, accepted) = take(&line, inbox, &all).await;
        if accepted.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_edit_shows_what_is_new() {
        for (old, new, lines) in [
            ("a\nb", "a\nb\nc", vec!["c"]),
            ("a\nb …", "a\nb ✓\nc", vec!["b ✓", "c"]),
            ("a\nb\nc", "b\nc\nd", vec!["d"]),
            ("a", "a", vec![]),
            ("a", "b", vec!["b"]),
            ("", "a", vec!["a"]),
            ("a\na", "a\na\na", vec!["a"]),
        ] {
            assert_eq!(added(old, new), lines, "{old:?} {new:?}");
        }
    }

    #[test]
    fn what_is_printed_cannot_move_the_cursor() {
        let message = Outbound {
            weight: Weight::Notice,
            markdown: "\x1b[2Jgone\nhere".into(),
            reply_to: None,
            mention: None,
            thread: None,
            transaction: String::new(),
        };
        assert_eq!(layout(&message), "  [2Jgone\n  here");
    }

    /// Answers each line after those that came later have been taken.
    #[derive(Default)]
    struct Slow {
        taken: Arc<Mutex<Vec<String>>>,
        under_way: Arc<Mutex<usize>>,
    }

    impl Inbox for Slow {
        fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
            async move {
                let mut under_way = self.under_way.lock().expect("no test panics holding it");
                *under_way += 1;
                let line = format!("{} of {}", message.text, *under_way);
                self.taken.lock().expect("no test panics holding it").push(line);
                let under_way = Arc::clone(&self.under_way);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    *under_way.lock().expect("no test panics holding it") -= 1;
                    drop(message);
                });
                Ok(())
            }
            .boxed()
        }

        fn may_invite(&self, _: &Person) -> bool {
            false
        }
    }

    #[tokio::test(start_paused = true)]
    async fn piped_lines_wait_for_each_other_unless_told_not_to() {
        for (one_by_one, expected) in [(true, ["a of 1", "b of 1"]), (false, ["a of 1", "b of 2"])] {
            let inbox = Slow::default();
            read_lines(&b"a\n\nb\n"[..], &inbox, one_by_one).await.expect("it can be read");
            assert_eq!(*inbox.taken.lock().expect("no test panics holding it"), expected);
            assert_eq!(*inbox.under_way.lock().expect("no test panics holding it"), 0, "all has been answered");
        }
    }
}
