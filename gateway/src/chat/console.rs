//! The console: one room, one person, who is admin. A line-edited prompt on a terminal, plain lines otherwise.
//!
//! `lines` reads, `printing` writes. Nothing here waits for the terminal on a thread that others need.

mod lines;
mod printing;
mod waits;

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SendError as Unprinted, channel},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use journal::Clock;
use pulldown_cmark::{Event, Parser, Tag};
use reedline::{
    DefaultPrompt, DefaultPromptSegment, ExternalPrinter, FileBackedHistory, History, HistoryItem, HistoryItemId,
    HistorySessionId, Reedline, SearchQuery, Signal,
};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::{codec::FramedRead, sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use uuid::Uuid;

use self::{lines::Lines, printing::Printing, waits::Waits};
use super::{Inbound, Inbox, InboxError, Mark, Outbound, Person, Room, SendError, Surface, SurfaceKind, Weight};
use crate::{refusal::Refusal, text};

/// Messages whose text is remembered, so that an edit can show what is new.
const REMEMBERED: usize = 64;
/// Lines of history that the prompt keeps.
const HISTORY: usize = 2000;
/// The first wait before a line is offered again that could not be journaled; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How long the prompt may take to give the terminal back.
const PROMPT_END: Duration = Duration::from_secs(1);

/// The console.
pub struct Console {
    printing: Printing,
    /// What is sent is printed above the prompt, where there is one; its editor takes this when it starts.
    prompt: Option<Mutex<Option<ExternalPrinter<String>>>>,
    /// Whether the prompt has colours.
    colours: bool,
    shown: Mutex<VecDeque<(String, String)>>,
    waits: Waits,
    /// Why the last line that was offered is not taken, while that is so.
    trouble: Mutex<Option<String>>,
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
    ///
    /// # Errors
    /// When the thread that prints cannot be started.
    pub fn plain(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let printing = Printing::start(move |lines| {
            writeln!(output, "{lines}")?;
            output.flush()
        })?;
        Ok(Self {
            printing,
            prompt: None,
            colours: false,
            shown: Mutex::default(),
            waits: Waits::default(),
            trouble: Mutex::default(),
        })
    }

    /// A console that writes above a line-edited prompt, with or without `colours`.
    ///
    /// # Errors
    /// As [`Console::plain`].
    pub fn prompt(colours: bool) -> io::Result<Self> {
        // Without a queue: what the editor has is on the terminal the next moment, and what it has not is not lost with it.
        let printer = ExternalPrinter::new(0);
        let editor = printer.sender();
        let printing = Printing::start(move |lines| match editor.send(lines) {
            Ok(()) => Ok(()),
            // The prompt has ended; the terminal is as it was before.
            Err(Unprinted(lines)) => writeln!(io::stdout(), "{lines}"),
        })?;
        Ok(Self {
            printing,
            prompt: Some(Mutex::new(Some(printer))),
            colours,
            shown: Mutex::default(),
            waits: Waits::default(),
            trouble: Mutex::default(),
        })
    }

    fn layout(&self, message: &Outbound) -> String {
        layout(message, if self.prompt.is_some() { ("\x1b[1m", "\x1b[22m") } else { ("", "") })
    }

    fn troubled_by(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
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

/// What a message looks like: asides are indented, what is strong stands between `marks`.
fn layout(message: &Outbound, marks: (&str, &str)) -> String {
    let text = emphasised(&legible(&message.markdown), marks);
    match message.weight {
        Weight::Answer => text,
        Weight::Notice => text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    }
}

/// Chat text as a terminal without a prompt shows it.
pub fn plain(markdown: &str) -> String {
    emphasised(&legible(markdown), ("", ""))
}

/// Text that a terminal does not act on. Nothing is left of sequences for terminals, as those who wrote them meant it; what a
/// question is about comes as [`text::code`] without the characters that begin one, and so is shown whole.
fn legible(markdown: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(markdown.len()), markdown.trim_end());
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        rest = after_sequence(rest).unwrap_or(rest);
    }
    out.push_str(rest);
    text::plain(&out)
}

/// What comes after a control sequence (CSI) or a command (OSC), whose ESC stood before `rest`. Nothing where none ends.
fn after_sequence(rest: &str) -> Option<&str> {
    if let Some(parameters) = rest.strip_prefix('[') {
        let last = parameters.trim_start_matches(|c| matches!(c, ' '..='?'));
        return last.strip_prefix(|c| matches!(c, '@'..='~'));
    }
    // Nothing beyond its line is hidden by one that has no end.
    let line = rest.strip_prefix(']')?.split('\n').next()?;
    let end = line.find(['\x07', '\x1b', '\u{9c}'])?;
    let after = &rest[1 + end..];
    ["\x07", "\x1b\\", "\u{9c}"].iter().find_map(|end| after.strip_prefix(end))
}

/// The Markdown with `marks` for the `**` around what is strong on one line; all else stays as it is written.
fn emphasised(markdown: &str, marks: (&str, &str)) -> String {
    let mut cuts = Vec::new();
    for (event, range) in Parser::new(markdown).into_offset_iter() {
        let strong = &markdown[range.clone()];
        if matches!(event, Event::Start(Tag::Strong))
            && !strong.contains('\n')
            && strong.strip_prefix("**").is_some_and(|rest| rest.ends_with("**"))
        {
            cuts.push((range.start, marks.0));
            cuts.push((range.end - 2, marks.1));
        }
    }
    cuts.sort_unstable_by_key(|(at, _)| *at);
    let (mut out, mut from) = (String::with_capacity(markdown.len()), 0);
    for (at, mark) in cuts {
        out.push_str(&markdown[from..at]);
        out.push_str(mark);
        from = at + 2;
    }
    out + &markdown[from..]
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
            let text = self.layout(message);
            self.printing.print(text.clone()).await.map_err(|error| unwritable(&error))?;
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
            let text = self.layout(message);
            let before = self.recall(event_id);
            let lines = added(&before, &text);
            if !lines.is_empty() {
                self.printing.print(lines.join("\n")).await.map_err(|error| unwritable(&error))?;
            }
            self.remember(event_id.to_owned(), text);
            Ok(())
        }
        .boxed()
    }

    /// What was printed cannot be looked for: a console has no history, and ends with its gateway.
    fn find<'a>(&'a self, _: &'a Room, _: &'a str, _: Timestamp) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        async { Ok(None) }.boxed()
    }

    /// That a line waits is told once; what else becomes of it is seen.
    fn mark(&self, _: &Room, event_id: &str, mark: Mark) {
        match mark {
            Mark::Accepted => {}
            Mark::Waiting => self.waits.begin(event_id, &self.printing),
            Mark::Running | Mark::Delivered | Mark::Failed => self.waits.end(event_id),
        }
    }

    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn edit_interval(&self) -> Duration {
        // Steps of a build that take no time at all would fill the screen.
        Duration::from_millis(500)
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn health(&self) -> Result<(), String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

/// Takes chat lines from `input` until it ends, and returns when all of them have been answered in full. A line that is none
/// is told on the console, and passed over; one that cannot be journaled is told, too, and offered until it is.
///
/// With `one_by_one`, a line is taken when the one before has been answered in full.
///
/// # Errors
/// When `input` cannot be read, or the console not be written to; what is under way has ended by then.
pub async fn read_lines(
    console: &Console,
    input: impl AsyncRead,
    inbox: &dyn Inbox,
    clock: &dyn Clock,
    one_by_one: bool,
) -> io::Result<()> {
    let all = TaskTracker::new();
    all.close();
    let read = take_lines(console, input, inbox, clock, one_by_one, &all).await;
    all.wait().await;
    read
}

async fn take_lines(
    console: &Console,
    input: impl AsyncRead,
    inbox: &dyn Inbox,
    clock: &dyn Clock,
    one_by_one: bool,
    all: &TaskTracker,
) -> io::Result<()> {
    let mut lines = std::pin::pin!(FramedRead::new(input, Lines::default()).enumerate());
    while let Some((index, line)) = lines.next().await {
        let line = match line? {
            Ok(line) => line,
            Err(unfit) => {
                let told = Refusal::usage(format!("line {} was not taken: {unfit}", index + 1)).hint(unfit.hint());
                console.printing.print(told.to_markdown()).await?;
                continue;
            }
        };
        let Some(this) = take(console, &line, inbox, clock, all, &CancellationToken::new()).await? else { break };
        if one_by_one {
            this.wait().await;
        }
    }
    Ok(())
}

/// Hands one line over, again and again while the journal refuses it. The tracker is empty when it has been answered in full;
/// so is `all` when every line has. `None` when the gateway is stopping, or `ended` cuts the tries short.
async fn take(
    console: &Console,
    line: &str,
    inbox: &dyn Inbox,
    clock: &dyn Clock,
    all: &TaskTracker,
    ended: &CancellationToken,
) -> io::Result<Option<TaskTracker>> {
    let this = TaskTracker::new();
    this.close();
    if line.trim().is_empty() {
        return Ok(Some(this));
    }
    let message = Inbound {
        room: room(),
        event_id: Uuid::now_v7().to_string(),
        sender: person(),
        at: clock.now(),
        text: line.trim_end_matches('\r').to_owned(),
        quoted: None,
        thread: None,
        addressed: true,
        with_file: false,
        pending: Some(this.token()),
    };
    let (token, waited) = (all.token(), this.clone());
    tokio::spawn(async move {
        waited.wait().await;
        drop(token);
    });
    let taken = offer(console, message, inbox, ended).await;
    console.troubled_by(None);
    Ok(taken?.then_some(this))
}

/// Whether it is taken in the end.
async fn offer(console: &Console, message: Inbound, inbox: &dyn Inbox, ended: &CancellationToken) -> io::Result<bool> {
    let mut wait = FIRST_WAIT;
    loop {
        let unjournaled = match inbox.accept(message.clone()).await {
            Ok(()) => return Ok(true),
            Err(InboxError::Stopping) => return Ok(false),
            Err(InboxError::Journal(error)) => error,
        };
        console.troubled_by(Some("a line could not be journaled; it is tried again".to_owned()));
        // Once: a disk that is full stays so for some time.
        if wait == FIRST_WAIT {
            let told = Refusal::internal("this line is not taken yet", unjournaled).hint(
                "It is tried again until it is; make room on the disk, if that is full. Later lines wait for it.",
            );
            console.printing.print(told.to_markdown()).await?;
        }
        if ended.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return Ok(false);
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Runs the prompt until the person ends it (Ctrl-C, Ctrl-D) or `stopping` is cancelled. What is under way then goes on.
/// Lines go into the file `history`, as far as they may.
pub async fn run_prompt(
    console: &Console,
    inbox: &dyn Inbox,
    clock: &dyn Clock,
    (history, may): (PathBuf, fn(&str) -> bool),
    stopping: CancellationToken,
) -> io::Result<()> {
    let printer =
        console.prompt.as_ref().and_then(|printer| printer.lock().unwrap_or_else(PoisonError::into_inner).take());
    let printer = printer.ok_or_else(|| io::Error::other("this console has no prompt, or one that runs already"))?;
    let history = Discreet(FileBackedHistory::with_file(HISTORY, history).map_err(io::Error::other)?, may);
    let (ending, ended) = channel::<()>();
    let editing = Editing { stop: Arc::default(), ended };
    let mut editor = Reedline::create()
        .with_external_printer(printer)
        .with_history(Box::new(history))
        // One paste is one message: a line of it that reads like a command must not be carried out.
        .use_bracketed_paste(true)
        .with_ansi_colors(console.colours)
        .with_break_signal(Arc::clone(&editing.stop));
    // Dropped before `editing` is, so that the thread does not wait for a line to be taken.
    let (sender, mut lines) = mpsc::channel(1);
    // Who leaves the prompt does not wait for a disk that is full.
    let left = CancellationToken::new();
    let leaving = left.clone().drop_guard();
    // The editor blocks in the terminal.
    std::thread::Builder::new().name("prompt".to_owned()).spawn(move || {
        let prompt = DefaultPrompt::new(DefaultPromptSegment::Empty, DefaultPromptSegment::Empty);
        let broken_off = loop {
            match editor.read_line(&prompt) {
                Ok(Signal::Success(line)) => {
                    if sender.blocking_send(line).is_err() {
                        break false;
                    }
                }
                last => break matches!(last, Ok(Signal::ExternalBreak(_))),
            }
        };
        drop(editor);
        if broken_off {
            println!();
        }
        drop((leaving, ending));
    })?;
    let all = TaskTracker::new();
    all.close();
    let taking = async {
        while let Some(line) = lines.recv().await {
            if take(console, &line, inbox, clock, &all, &left).await?.is_none() {
                break;
            }
        }
        Ok(())
    };
    stopping.run_until_cancelled(taking).await.unwrap_or(Ok(()))
}

/// Says something where the prompt has ended. A terminal that takes no output does not hold the end up.
pub fn last_words(text: String) {
    let (said, ended) = channel::<()>();
    std::thread::spawn(move || {
        // Where the terminal is gone nobody hears it.
        drop(writeln!(io::stdout(), "{text}"));
        drop(said);
    });
    if ended.recv_timeout(PROMPT_END) == Err(RecvTimeoutError::Timeout) {
        warn!("the terminal takes no output");
    }
}

/// The editor's thread. When this is dropped, the thread ends and the terminal is as it was before.
struct Editing {
    stop: Arc<AtomicBool>,
    /// Closed by the thread at its end.
    ended: Receiver<()>,
}

impl Drop for Editing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A terminal that takes no output must not hold the end up.
        if self.ended.recv_timeout(PROMPT_END) == Err(RecvTimeoutError::Timeout) {
            warn!("the prompt did not give the terminal back");
        }
    }
}

/// A history that lines with credentials do not get into, nor those that may not by the rule beside it.
struct Discreet(FileBackedHistory, fn(&str) -> bool);

impl History for Discreet {
    fn save(&mut self, item: HistoryItem) -> reedline::Result<HistoryItem> {
        let line = &item.command_line;
        if text::masked(line) == *line && self.1(line) { self.0.save(item) } else { Ok(item) }
    }

    fn load(&self, id: HistoryItemId) -> reedline::Result<HistoryItem> {
        self.0.load(id)
    }

    fn count(&self, query: SearchQuery) -> reedline::Result<i64> {
        self.0.count(query)
    }

    fn search(&self, query: SearchQuery) -> reedline::Result<Vec<HistoryItem>> {
        self.0.search(query)
    }

    fn update(&mut self, id: HistoryItemId, updater: &dyn Fn(HistoryItem) -> HistoryItem) -> reedline::Result<()> {
        self.0.update(id, updater)
    }

    fn clear(&mut self) -> reedline::Result<()> {
        self.0.clear()
    }

    fn delete(&mut self, id: HistoryItemId) -> reedline::Result<()> {
        self.0.delete(id)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn session(&self) -> Option<HistorySessionId> {
        self.0.session()
    }
}

#[cfg(test)]
mod tests;
