use super::*;
use crate::chat::{Edited, Missed, Reacted, Redacted};

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

fn plain() -> Console {
    Console::plain(io::sink()).expect("a thread")
}

fn prompt() -> Console {
    Console::prompt(true).expect("a thread")
}

fn message(weight: Weight, markdown: &str) -> Outbound {
    let markdown = markdown.to_owned();
    Outbound {
        weight,
        markdown,
        reply_to: None,
        mention: None,
        thread: None,
        answers: Vec::new(),
        transaction: String::new(),
    }
}

#[test]
fn on_the_command_line_nothing_is_marked_as_strong() {
    assert_eq!(
        super::plain("- **rust** (built in): `*.rs`\n- **two** `**`\x1b[2J\n"),
        "- rust (built in): `*.rs`\n- two `**`"
    );
}

#[test]
fn what_is_printed_cannot_move_the_cursor() {
    let message = message(Weight::Notice, "\x1b[2Jgone\n**here**");
    assert_eq!(plain().layout(&message), "  gone\n  here");
    assert_eq!(prompt().layout(&message), "  gone\n  \x1b[1mhere\x1b[22m");
}

#[test]
fn of_what_is_for_a_terminal_no_litter_is_left() {
    for (markdown, shown) in [
        ("a \x1b[31mred\x1b[0m b\x1b[?25l\x1b[1;2H", "a red b"),
        ("\x1b]0;title\x07a \x1b]8;;https://h/\x1b\\link\x1b]8;;\x1b\\ b", "a link b"),
        ("no end \x1b[31\nof \x1b]0;it\nb \x07c", "no end [31\nof ]0;it\nb c"),
        ("\x1b", ""),
        ("\x1bé \x1b[é \x1b]é", "é [é ]é"),
        ("https://ann:to\x1b[0mk@h", "https://…@h"),
    ] {
        assert_eq!(super::plain(markdown), shown, "{markdown:?}");
    }
}

#[test]
fn what_is_hostile_is_printed_and_does_nothing() {
    for hostile in text::hostile() {
        for markdown in [hostile.clone(), format!("**{hostile}**"), format!("- `{hostile}`\n{hostile}")] {
            for weight in [Weight::Answer, Weight::Notice] {
                let message = message(weight, &markdown);
                let plain = plain().layout(&message);
                assert!(!plain.contains(text::is_unsafe), "{plain:?}");
                // What makes words strong is our own.
                let prompt = prompt().layout(&message).replace("\x1b[1m", "").replace("\x1b[22m", "");
                assert!(!prompt.contains(text::is_unsafe), "{prompt:?}");
            }
        }
    }
}

#[test]
fn strong_words_stand_without_their_asterisks() {
    for (markdown, shown) in [
        ("**myapp** is ready", "<myapp> is ready"),
        ("- **a** (rust): `**b**`, **c `d`**", "- <a> (rust): `**b**`, <c `d`>"),
        ("***x*** *y*", "*<x>* *y*"),
        ("2 ** 3 ** 4, **open", "2 ** 3 ** 4, **open"),
        ("**a\nb**", "**a\nb**"),
        ("```\n**x**\n```\n**y**", "```\n**x**\n```\n<y>"),
        ("```\n**x**", "```\n**x**"),
        ("> **quoted**\n\n__x__ **é**", "> <quoted>\n\n__x__ <é>"),
    ] {
        assert_eq!(emphasised(markdown, ("<", ">")), shown);
    }
}

#[test]
fn lines_with_credentials_stay_out_of_the_history() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("history");
    let inner = FileBackedHistory::with_file(HISTORY, file.clone()).expect("it can be made");
    let mut history = Discreet(inner, |line| line != "private");
    for line in ["new project a --git https://ann:tok@h/a.git", "private", "new project b --git https://h/b.git"] {
        history.save(HistoryItem::from_command_line(line)).expect("it is taken");
    }
    drop(history);
    let kept = std::fs::read_to_string(file).expect("it was written");
    assert_eq!(kept, "new project b --git https://h/b.git\n");
}

const NOON: Timestamp = Timestamp::constant(1_700_000_000, 0);

/// Answers each line after those that came later have been taken.
#[derive(Default)]
struct Slow {
    taken: Arc<Mutex<Vec<String>>>,
    under_way: Arc<Mutex<usize>>,
    /// How often it cannot write a line down yet.
    failing: Mutex<usize>,
    /// The ids of what it was offered.
    offered: Mutex<Vec<String>>,
    /// Whose health is looked at whenever it is offered something, and what it was.
    looked_at: Option<Arc<Console>>,
    health: Mutex<Vec<Result<(), String>>>,
}

impl Inbox for Slow {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        async move {
            self.offered.lock().expect("no test panics holding it").push(message.event_id.clone());
            let health = self.looked_at.iter().map(|console| console.health());
            self.health.lock().expect("no test panics holding it").extend(health);
            let failing = self.failing.lock().expect("no test panics holding it").checked_sub(1);
            if let Some(left) = failing {
                *self.failing.lock().expect("no test panics holding it") = left;
                return Err(InboxError::Journal("the disk is full".into()));
            }
            let mut under_way = self.under_way.lock().expect("no test panics holding it");
            *under_way += 1;
            let line = format!("{} of {}", message.text, *under_way);
            assert_eq!(message.at, NOON);
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

    fn edited(&self, _: Edited) -> BoxFuture<'_, Result<(), InboxError>> {
        unreachable!("a console's lines stay as they are")
    }

    fn redacted(&self, _: Redacted) -> BoxFuture<'_, Result<(), InboxError>> {
        unreachable!("a console's lines stay as they are")
    }

    fn reacted(&self, _: Reacted) -> BoxFuture<'_, Result<(), InboxError>> {
        unreachable!("a console has no reactions")
    }

    fn missed(&self, _: Missed) -> BoxFuture<'_, Result<(), InboxError>> {
        unreachable!("a console gives all that is typed")
    }

    fn newest(&self, _: SurfaceKind) -> BoxFuture<'_, Result<Option<Timestamp>, InboxError>> {
        unreachable!("a console has no position")
    }

    fn listens_to(&self, _: &Person) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn piped_lines_wait_for_each_other_unless_told_not_to() {
    for (one_by_one, expected) in [(true, ["a of 1", "b of 1"]), (false, ["a of 1", "b of 2"])] {
        let inbox = Slow::default();
        read_lines(&plain(), &b"a\n\nb\n"[..], &inbox, &NOON, one_by_one).await.expect("it can be read");
        assert_eq!(*inbox.taken.lock().expect("no test panics holding it"), expected);
        assert_eq!(*inbox.under_way.lock().expect("no test panics holding it"), 0, "all has been answered");
    }
}

/// An output that a test looks at.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no test panics holding it").clone()).expect("it is text")
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics holding it").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_bad_line_is_told_and_passed_over() {
    let (inbox, page) = (Slow::default(), Page::default());
    let console = Console::plain(page.clone()).expect("a thread");
    let long = "x".repeat(lines::LINE_MAX + 1);
    let input = [b"a\n\xff\n", long.as_bytes(), b"\nb\n"].concat();
    read_lines(&console, &input[..], &inbox, &NOON, false).await.expect("it can be read");
    assert_eq!(*inbox.taken.lock().expect("no test panics holding it"), ["a of 1", "b of 2"]);
    assert_eq!(*inbox.under_way.lock().expect("no test panics holding it"), 0, "all has been answered");
    insta::assert_snapshot!(page.text(), @r"
    ⚠ Line 2 was not taken: it is not UTF-8.
    Convert it, for example with `iconv`.
    ⚠ Line 3 was not taken: it has more than 262144 bytes.
    Put it into a file in the workspace, and name that.
    ");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_cannot_be_journaled_is_told_and_offered_until_it_is() {
    let (inbox, page) = (Slow { failing: Mutex::new(3), ..Slow::default() }, Page::default());
    let console = Console::plain(page.clone()).expect("a thread");
    read_lines(&console, &b"a\nb\n"[..], &inbox, &NOON, false).await.expect("it can be read");
    assert_eq!(*inbox.taken.lock().expect("no test panics holding it"), ["a of 1", "b of 2"]);
    assert_eq!(*inbox.under_way.lock().expect("no test panics holding it"), 0, "all has been answered");
    let offered = inbox.offered.lock().expect("no test panics holding it").clone();
    assert_eq!(offered.len(), 5);
    assert!(offered[..4].iter().all(|id| *id == offered[0]) && offered[4] != offered[0], "{offered:?}");
    insta::assert_snapshot!(page.text(), @r"
    ⚠ This line is not taken yet: the disk is full.
    It is tried again until it is; make room on the disk, if that is full. Later lines wait for it.
    ");
}

#[tokio::test(start_paused = true)]
async fn a_console_is_well_when_its_lines_are_taken() {
    let console = Arc::new(plain());
    let inbox = Slow { failing: Mutex::new(2), looked_at: Some(Arc::clone(&console)), ..Slow::default() };
    assert_eq!(console.health(), Ok(()), "nobody has typed anything");
    read_lines(&console, &b"a\nb\n"[..], &inbox, &NOON, false).await.expect("it can be read");
    let refused = Err("a line could not be journaled; it is tried again".to_owned());
    let seen = inbox.health.lock().expect("no test panics holding it").clone();
    assert_eq!(seen, [Ok(()), refused.clone(), refused, Ok(())]);
    assert_eq!(console.health(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn that_lines_wait_is_told_once_where_it_takes_longer_than_a_moment() {
    let page = Page::default();
    let console = Console::plain(page.clone()).expect("a thread");
    let mark = |event_id: &str, mark: Mark| console.mark(&room(), event_id, mark);
    let moment = async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        // What was printed before this is written.
        console.printing.print("-".to_owned()).await.expect("it is written");
        page.0.lock().expect("no test panics holding it").split_off(0)
    };
    for event_id in ["begins at once", "is cancelled"] {
        mark(event_id, Mark::Accepted);
        mark(event_id, Mark::Waiting);
    }
    mark("begins at once", Mark::Running);
    mark("is cancelled", Mark::Delivered);
    assert_eq!(moment().await, b"-\n");
    mark("one", Mark::Waiting);
    mark("one", Mark::Waiting);
    assert_eq!(moment().await, b"  (waits; `queue` shows what is before it)\n-\n");
    mark("two", Mark::Waiting);
    mark("three", Mark::Waiting);
    mark("one", Mark::Running);
    assert_eq!(moment().await, b"  (2 lines wait; `queue` shows what is before it)\n-\n");
    assert_eq!(moment().await, b"-\n", "it was told");
    // Its turn was interrupted by another line.
    mark("one", Mark::Waiting);
    assert_eq!(moment().await, b"  (waits; `queue` shows what is before it)\n-\n");
}

#[tokio::test(start_paused = true)]
async fn an_input_that_breaks_off_does_so_after_what_is_under_way() {
    let inbox = Slow::default();
    let input = broken_off();
    let broken = read_lines(&plain(), input, &inbox, &NOON, false).await.expect_err("it breaks off");
    assert_eq!(broken.to_string(), "as asked");
    assert_eq!(*inbox.taken.lock().expect("no test panics holding it"), ["a of 1"]);
    assert_eq!(*inbox.under_way.lock().expect("no test panics holding it"), 0, "it has been answered");
}

/// One line, and then an error.
fn broken_off() -> impl AsyncRead {
    let pieces = [Ok(&b"a\n"[..]), Err(io::Error::other("as asked"))];
    tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces))
}

/// An output that takes a line when it is let to; it gives up some time.
struct Stuck(Receiver<()>, Page);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)
    }
}

#[tokio::test]
async fn a_terminal_that_takes_nothing_holds_nobody_up_and_nothing_is_delivered_before_it_is_written() {
    let ((go_on, stuck), page) = (channel(), Page::default());
    let console = Console::plain(Stuck(stuck, page.clone())).expect("a thread");
    let (first, second) = (message(Weight::Answer, "one"), message(Weight::Answer, "two"));
    let here = room();
    let mut sending = std::pin::pin!(console.send(&here, &first));
    // This runtime has one thread: it would stand still, and nobody let the terminal go on.
    tokio::select! {
        biased;
        sent = &mut sending => panic!("{sent:?}"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    assert_eq!(page.text(), "one\n");
    go_on.send(()).expect("it is stuck");
    let event = sending.await.expect("it is written");
    go_on.send(()).expect("it is there");
    console.edit(&here, &event, &message(Weight::Answer, "one\nmore")).await.expect("it is written");
    go_on.send(()).expect("it is there");
    console.send(&here, &second).await.expect("it is written");
    assert_eq!(page.text(), "one\nmore\ntwo\n");
    // What cannot be written is not delivered.
    drop(go_on);
    assert!(matches!(console.send(&here, &second).await, Err(SendError::Refused { .. })));
}

#[tokio::test]
async fn what_is_sent_is_delivered_when_the_editor_has_it() {
    let console = prompt();
    let printer = console.prompt.as_ref().and_then(|printer| printer.lock().expect("nobody panics").take());
    let printer = printer.expect("nobody has taken it");
    let (here, said) = (room(), message(Weight::Answer, "one"));
    let mut sending = std::pin::pin!(console.send(&here, &said));
    tokio::select! {
        biased;
        sent = &mut sending => panic!("{sent:?}"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    assert_eq!(printer.get_line().as_deref(), Some("one"));
    sending.await.expect("the editor has it");
}
