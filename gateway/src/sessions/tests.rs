use std::sync::Arc;

use journal::{StreamId, SystemClock};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    chat::{SurfaceKind, Weight},
    outbox::Address,
    tasks::Tasks,
};

struct Setting {
    folder: tempfile::TempDir,
    sessions: Sessions,
    key: SessionKey,
}

async fn open(folder: &tempfile::TempDir) -> Sessions {
    let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it opens");
    let outbox = Outbox::open(journal.clone(), Tasks::new()).await.expect("it opens");
    Sessions::new(journal, outbox)
}

async fn setting() -> Setting {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sessions = open(&folder).await;
    let room = Room { surface: SurfaceKind::Matrix, id: "!a:example.org".into() };
    Setting { folder, sessions, key: SessionKey { project: Uuid::now_v7(), room, thread: None } }
}

fn ann() -> Person {
    Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() }
}

/// What she does by an event.
fn by_ann(event_id: &str) -> (Actor, Cause) {
    (Actor::Person(ann().to_string()), Cause::Command(event_id.into()))
}

fn edit(key: &SessionKey, event_id: &str, edit_id: &str, text: &str) -> Edited {
    let (room, sender) = (key.room.clone(), ann());
    Edited { room, event_id: event_id.into(), edit_id: edit_id.into(), sender, text: text.into() }
}

fn said(key: &SessionKey, event_id: &str) -> Inbound {
    Inbound {
        room: key.room.clone(),
        event_id: event_id.into(),
        sender: ann(),
        at: "2026-01-02T03:04:05Z".parse().expect("it is a time"),
        text: event_id.into(),
        quoted: Some(format!("quoted by {event_id}")),
        thread: None,
        addressed: true,
        with_file: false,
        pending: None,
    }
}

impl Setting {
    async fn say(&self, event_id: &str) -> Accepted {
        let said = said(&self.key, event_id);
        self.sessions.accept(&self.key, &said, event_id, Role::Member, false).await.expect("it is accepted")
    }

    async fn edit(&self, event_id: &str, edit_id: &str, text: &str) -> bool {
        self.editing(event_id, edit_id, text).await == Editing::Taken
    }

    async fn editing(&self, event_id: &str, edit_id: &str, text: &str) -> Editing {
        self.sessions.edit(&edit(&self.key, event_id, edit_id, text), |_| true).await.expect("it is read")
    }

    async fn begin(&self, event_ids: &[&str]) -> (Uuid, Option<Begun>) {
        let turn = Uuid::now_v7();
        (turn, self.sessions.begin(&self.key, turn, event_ids).await.expect("it begins"))
    }

    async fn finish(&self, turn: Uuid, ending: Ending, agent_ran: bool) -> Vec<String> {
        let finishing = self.sessions.finish(&self.key, turn, ending, agent_ran, Vec::new(), Vec::new());
        finishing.await.expect("it ends").into_iter().map(|message| message.event_id).collect()
    }

    /// What the next gateway finds.
    async fn left(&self) -> Left {
        let journal = self.sessions.inner.journal.clone();
        let outbox = Outbox::open(journal.clone(), Tasks::new()).await.expect("it opens");
        Sessions::new(journal, outbox).recover().await.expect("it is readable")
    }

    async fn waiting(&self) -> Vec<String> {
        self.left().await.waiting.into_iter().map(|(_, message)| message.event_id).collect()
    }

    fn live(&self) -> usize {
        self.sessions.live().len()
    }
}

#[tokio::test]
async fn a_message_is_accepted_once_and_waits_over_a_restart() {
    let setting = setting().await;
    assert_eq!(setting.say("$1").await, Accepted::New { behind: false });
    assert_eq!(setting.say("$2").await, Accepted::New { behind: false });
    assert_eq!(setting.say("$1").await, Accepted::Seen);
    let elsewhere = SessionKey { project: Uuid::now_v7(), ..setting.key.clone() };
    let again = setting.sessions.accept(&elsewhere, &said(&setting.key, "$1"), "$1", Role::Admin, false).await;
    assert_eq!(again.expect("it was there before its sender chose another project"), Accepted::Seen);

    assert_eq!(setting.waiting().await, ["$1", "$2"]);
    let left = setting.left().await;
    let (key, message) = &left.waiting[1];
    assert_eq!((key, message.number, message.rights), (&setting.key, 2, Role::Member));
    let words = setting.sessions.words(std::slice::from_ref(message)).await.expect("they are readable");
    assert_eq!((words[0].text.as_str(), words[0].quoted.as_deref()), ("$2", Some("quoted by $2")));
    let next = Sessions::new(setting.sessions.inner.journal.clone(), setting.sessions.inner.outbox.clone());
    next.recover().await.expect("it is readable");
    assert_eq!(next.newest(SurfaceKind::Matrix), Some(message.at));
}

#[tokio::test]
async fn a_session_is_pinned_resumed_reset_and_found_unfinished() {
    let setting = setting().await;
    setting.say("$1").await;
    let (one, first) = setting.begin(&["$1"]).await;
    let first = first.expect("there is something to answer").memory;
    assert!(!first.resumed);
    let left = setting.left().await;
    assert_eq!((left.unfinished.len(), left.waiting.len()), (1, 0));
    assert_eq!(left.unfinished[0].running.messages[0].event_id, "$1");
    setting.finish(one, Ending::Failed, false).await;
    assert_eq!(setting.live(), 0, "an idle session is not kept");

    setting.say("$2").await;
    let (two, second) = setting.begin(&["$2"]).await;
    assert_eq!(second.expect("it begins").memory, first, "the agent never ran");
    setting.finish(two, Ending::Answered, true).await;
    setting.say("$3").await;
    let (three, third) = setting.begin(&["$3"]).await;
    let third = third.expect("it begins").memory;
    assert_eq!(third, AgentSession { resumed: true, ..first.clone() });

    // During a turn: its own memory stays, and the next is fresh.
    setting.sessions.reset(&setting.key, &ann(), Cause::None).await.expect("it resets");
    assert_eq!(setting.sessions.memory(&setting.key, three).await.expect("it runs").id, first.id);
    setting.finish(three, Ending::Stopped, true).await;
    setting.say("$4").await;
    let fresh = setting.begin(&["$4"]).await.1.expect("it begins").memory;
    assert!(!fresh.resumed && fresh.id != first.id);
}

#[tokio::test]
async fn what_was_edited_or_taken_out_before_its_turn_is_so_in_the_turn() {
    let setting = setting().await;
    for event in ["$1", "$2", "$3", "$4"] {
        setting.say(event).await;
    }
    let bob = Person { id: "@bob:example.org".into(), ..ann() };
    assert!(setting.edit("$2", "$2e", "two").await, "it is edited");
    let by_bob = Edited { sender: bob, ..edit(&setting.key, "$2", "$2f", "mine") };
    let by_bob = setting.sessions.edit(&by_bob, |_| true).await.expect("it is read");
    assert_eq!(by_bob, Editing::PassedOver, "it is somebody else's");
    assert!(!setting.edit("$9", "$9e", "nine").await, "it is unknown");
    let removed = setting
        .sessions
        .remove(&setting.key, &["$3", "$9"], Removal::Cancelled, by_ann("$cancel"), |_| Vec::new(), Vec::new())
        .await
        .expect("it is removed");
    assert_eq!(removed.iter().map(|message| message.event_id.as_str()).collect::<Vec<_>>(), ["$3"]);

    let (turn, begun) = setting.begin(&["$1", "$2", "$3"]).await;
    let messages = begun.expect("some are left").messages;
    let words = setting.sessions.words(&messages).await.expect("they are readable");
    assert_eq!(words.iter().map(|words| words.text.as_str()).collect::<Vec<_>>(), ["$1", "two"]);
    assert!(!setting.edit("$1", "$1e", "late").await, "its turn runs");
    assert_eq!(setting.waiting().await, ["$4"]);
    setting.finish(turn, Ending::Answered, true).await;

    setting
        .sessions
        .remove(&setting.key, &["$4"], Removal::Redacted, by_ann("$redaction"), |_| Vec::new(), Vec::new())
        .await
        .expect("it is removed");
    assert!(setting.begin(&["$4"]).await.1.is_none(), "nothing is left to answer");
    assert_eq!(setting.live(), 0);
}

#[tokio::test]
async fn an_edit_is_taken_once_however_often_it_comes_and_leaves_nothing_of_before() {
    let setting = setting().await;
    let texts = async || {
        let ids = (0..=MAX_EDITS).map(|n| text_id(&setting.key.room, "$1", TextOf::Words(n))).collect();
        let texts = setting.sessions.inner.journal.texts(ids).await.expect("they are readable");
        texts.into_values().collect::<Vec<_>>()
    };
    setting.say("$1").await;
    assert!(setting.edit("$1", "$e1", "one").await);
    assert!(setting.edit("$1", "$e2", "two").await);
    for _ in 0..MAX_EDITS {
        assert!(!setting.edit("$1", "$e1", "one").await, "it was taken before");
    }
    assert_eq!(texts().await, ["two"]);
    let session = setting.sessions.inner.journal.read(&stream(&setting.key), 0).await.expect("it is readable");
    let edits: Vec<_> = session.into_iter().filter(|event| event.kind == "message.edited").collect();
    let causes: Vec<_> = edits.into_iter().map(|event| event.cause).collect();
    assert_eq!(causes, ["$e1", "$e2"].map(|edit| Cause::Command(edit.into())));

    // As a gateway does that ends between the new text and the erasure of the old one.
    let half = async |edits: u64, edit_id: &str| {
        let id = text_id(&setting.key.room, "$1", TextOf::Words(edits));
        let edited = SessionEvent::Edited { event_id: "$1".into(), text: id };
        let append = Append {
            stream: stream(&setting.key),
            expected: Expected::Any,
            events: vec![encode(&edited).expect("it can be encoded").with_text(id, edit_id)],
            key: Some(seen_key(&setting.key.room, edit_id)),
            actor: Actor::Person(ann().to_string()),
            cause: Cause::None,
        };
        setting.sessions.inner.journal.append(append).await.expect("the journal takes it");
    };
    half(3, "$e3").await;
    assert_eq!(texts().await.len(), 2);
    let next = Sessions::new(setting.sessions.inner.journal.clone(), setting.sessions.inner.outbox.clone());
    next.recover().await.expect("it is readable");
    assert_eq!(texts().await, ["$e3"], "the next gateway erases it");
    half(4, "$e4").await;
    let next = Sessions::new(setting.sessions.inner.journal.clone(), setting.sessions.inner.outbox.clone());
    next.accept(&setting.key, &said(&setting.key, "$2"), "$2", Role::Member, false).await.expect("it is accepted");
    let again = next.edit(&edit(&setting.key, "$1", "$e4", "$e4"), |_| true).await.expect("it is taken");
    assert_eq!(again, Editing::PassedOver, "it was taken before");
    assert_eq!(texts().await, ["$e4"], "and the edit erases it when it comes again");
}

#[tokio::test]
async fn an_edit_too_many_is_told_from_one_that_was_taken() {
    let setting = setting().await;
    setting.say("$1").await;
    for number in 1..=MAX_EDITS {
        assert_eq!(setting.editing("$1", &format!("$e{number}"), "new").await, Editing::Taken);
    }
    assert_eq!(setting.editing("$1", "$one-more", "newer").await, Editing::TooOften);
    assert_eq!(setting.editing("$1", "$one-more", "newer").await, Editing::TooOften, "however often it comes");
    assert_eq!(setting.editing("$1", &format!("$e{MAX_EDITS}"), "new").await, Editing::PassedOver);
    let (_, begun) = setting.begin(&["$1"]).await;
    let words = setting.sessions.words(&begun.expect("it waits").messages).await.expect("they are readable");
    assert_eq!(words[0].text, "new");
    assert_eq!(setting.editing("$1", "$late", "late").await, Editing::PassedOver, "its turn runs");
}

#[tokio::test]
async fn a_superseded_turn_gives_its_messages_back_at_the_front() {
    let setting = setting().await;
    setting.say("$1").await;
    let (turn, _) = setting.begin(&["$1"]).await;
    assert_eq!(setting.say("$2").await, Accepted::New { behind: true });
    assert_eq!(setting.finish(turn, Ending::Superseded, true).await, ["$1"]);
    assert_eq!(setting.waiting().await, ["$1", "$2"]);
    let (_, begun) = setting.begin(&["$1", "$2"]).await;
    assert_eq!(begun.expect("both wait").messages.len(), 2);
}

#[tokio::test]
async fn what_was_redacted_does_not_wait_again() {
    let setting = setting().await;
    setting.say("$1").await;
    setting.say("$2").await;
    let (turn, _) = setting.begin(&["$1", "$2"]).await;
    let origin = (Actor::Gateway, Cause::None);
    let redacting =
        setting.sessions.remove(&setting.key, &["$1"], Removal::Redacted, origin, |_| Vec::new(), Vec::new());
    assert_eq!(redacting.await.expect("it is taken out").len(), 1);
    assert_eq!(setting.finish(turn, Ending::Superseded, true).await, ["$2"]);
    assert_eq!(setting.waiting().await, ["$2"]);
}

#[tokio::test]
async fn an_end_and_its_answer_are_one_transaction_and_happen_once() {
    let setting = setting().await;
    setting.say("$1").await;
    let (turn, _) = setting.begin(&["$1"]).await;
    let post = || Post {
        to: Address {
            room: setting.key.room.clone(),
            thread: None,
            reply_to: None,
            mention: None,
            pending: Some(TaskTracker::new().token()),
        },
        weight: Weight::Answer,
        markdown: "done".to_owned(),
        transaction: format!("turn-{turn}"),
        answers: vec!["$1".to_owned()],
        failed: false,
        takes_back: None,
        cause: Cause::None,
    };
    let count = Append {
        stream: StreamId::new("usage", "one"),
        expected: Expected::Any,
        events: vec![encode(&SessionEvent::TurnResumed { turn, attempt: 1 }).expect("it can be encoded")],
        key: None,
        actor: Actor::Gateway,
        cause: Cause::None,
    };
    for _ in 0..2 {
        let with = vec![count.clone()];
        let ended = setting.sessions.finish(&setting.key, turn, Ending::Answered, true, vec![post()], with).await;
        ended.expect("it ends, once");
    }
    assert!(setting.left().await.unfinished.is_empty());
    let journal = &setting.sessions.inner.journal;
    let sends = journal.read(&StreamId::new("outbox", &setting.key.room), 0).await.expect("it is readable");
    let session = journal.read(&stream(&setting.key), 0).await.expect("it is readable");
    let finished = session.last().expect("it is not empty");
    assert_eq!(sends.len(), 1);
    assert_eq!(finished.kind, "session.turn_finished");
    assert_eq!(finished.position.abs_diff(sends[0].position), 1, "side by side in one transaction");
    let counts = journal.read(&count.stream, 0).await.expect("it is readable");
    assert_eq!(counts.len(), 1);
    assert_eq!(counts[0].position, finished.position + 1, "in the same");
}

#[tokio::test]
async fn a_question_is_decided_once() {
    let setting = setting().await;
    setting.say("$1").await;
    let (turn, _) = setting.begin(&["$1"]).await;
    let decide = async |allow| {
        let cause = Cause::Command("$word".into());
        setting.sessions.decide(&setting.key, turn, "q1", allow, &ann(), cause).await.expect("it is journaled")
    };
    assert_eq!(decide(false).await, Some(false));
    assert_eq!(decide(true).await, Some(false), "the first word holds");
    assert_eq!(setting.left().await.unfinished[0].running.decided, [("q1".to_owned(), false)]);
    setting.finish(turn, Ending::Answered, true).await;
    assert_eq!(decide(true).await, None, "the turn is over");
}

#[tokio::test]
async fn every_event_says_who_did_it_and_what_it_follows_from() {
    let setting = setting().await;
    for event in ["$1", "$2"] {
        setting.say(event).await;
    }
    let (turn, _) = setting.begin(&["$1"]).await;
    let cause = Cause::Command("$word".into());
    setting.sessions.decide(&setting.key, turn, "q1", true, &ann(), cause).await.expect("it is journaled");
    let to = Address { room: setting.key.room.clone(), thread: None, reply_to: None, mention: None, pending: None };
    let post = Post::notice(to, "again".into(), "again");
    setting.sessions.resume(&setting.key, turn, 2, post).await.expect("it is journaled");
    let (removing, by) = (&["$2"], by_ann("$stop"));
    let removed = setting.sessions.remove(&setting.key, removing, Removal::Stopped, by, |_| Vec::new(), Vec::new());
    removed.await.expect("it is removed");
    setting.finish(turn, Ending::Answered, true).await;
    setting.sessions.reset(&setting.key, &ann(), Cause::Command("$reset".into())).await.expect("it resets");
    let events = setting.sessions.inner.journal.read(&stream(&setting.key), 0).await.expect("it is readable");
    let told: Vec<_> = events.into_iter().map(|event| (event.kind, event.actor, event.cause)).collect();
    let (ann, sled) = (by_ann("").0, Actor::Sled(setting.key.project.to_string()));
    let expected = [
        ("session.opened", &ann, "$1"),
        ("message.accepted", &ann, "$1"),
        ("message.accepted", &ann, "$2"),
        ("session.turn_begun", &Actor::Gateway, "$1"),
        ("session.permission_decided", &ann, "$word"),
        ("session.turn_resumed", &Actor::Gateway, "$1"),
        ("message.removed", &ann, "$stop"),
        ("session.turn_finished", &sled, "$1"),
        ("session.opened", &ann, "$reset"),
    ];
    let expected = expected.map(|(kind, actor, cause)| (kind.into(), actor.clone(), Cause::Command(cause.into())));
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_redaction_erases_what_was_said_whatever_became_of_it() {
    let setting = setting().await;
    setting.say("$1").await;
    assert!(setting.edit("$1", "$1e", "brouhaha").await);
    let (turn, begun) = setting.begin(&["$1"]).await;
    setting.finish(turn, Ending::Answered, true).await;
    let messages = begun.expect("it begins").messages;
    let said = |words: Vec<Words>| words.into_iter().map(|words| (words.text, words.quoted)).next().expect("one");
    let words = setting.sessions.words(&messages).await.expect("they are readable");
    assert_eq!(said(words), ("brouhaha".to_owned(), Some("quoted by $1".to_owned())));
    setting.sessions.erase_said(&setting.key.room, "$1").await.expect("it is erased");
    let words = setting.sessions.words(&messages).await.expect("they are readable");
    assert_eq!(said(words), ("(erased)".to_owned(), None));
    let bytes = std::fs::read(setting.folder.path().join("journal.db")).expect("it is a file");
    assert!(!bytes.windows(8).any(|bytes| bytes == b"brouhaha"), "the bytes are gone from the file");
}

#[tokio::test]
async fn many_at_once_are_in_nobodys_way() {
    let setting = setting().await;
    let ann = ann();
    for round in 0..10 {
        let (one, two) = (format!("${round}a"), format!("${round}b"));
        let (first, second, reset) = tokio::join!(
            setting.say(&one),
            setting.say(&two),
            setting.sessions.reset(&setting.key, &ann, Cause::None),
        );
        assert!(first != Accepted::Seen && second != Accepted::Seen);
        reset.expect("it resets");
        let (turn, begun) = setting.begin(&[&one, &two]).await;
        assert_eq!(begun.expect("it begins").messages.len(), 2);
        let (reset, _) = tokio::join!(
            setting.sessions.reset(&setting.key, &ann, Cause::None),
            setting.finish(turn, Ending::Answered, true),
        );
        reset.expect("it resets");
    }
    let left = setting.left().await;
    assert!(left.unfinished.is_empty() && left.waiting.is_empty());
}

#[tokio::test]
async fn a_snapshot_is_what_the_events_make() {
    let setting = setting().await;
    for round in 0..40 {
        let event = format!("${round}");
        setting.say(&event).await;
        let (turn, _) = setting.begin(&[&event]).await;
        if round < 39 {
            setting.finish(turn, Ending::Answered, true).await;
        }
    }
    let path = setting.folder.path().join("journal.db");
    let reader = journal::Journal::open_read_only(&path).expect("it opens");
    assert!(reader.verify().expect("it is readable").snapshots > 0);
    assert!(reader.verify_snapshots::<Session>(STREAM).expect("it is readable").is_empty());
    assert_eq!(setting.left().await.unfinished.len(), 1);
}

#[tokio::test]
async fn what_a_session_that_cannot_be_read_still_needs_is_not_guessed() {
    let setting = setting().await;
    setting.say("$1").await;
    let oldest = setting.sessions.oldest().await.expect("it is readable");
    assert_eq!(oldest, setting.left().await.waiting[0].1.accepted);
    assert!(oldest.is_some());

    let foreign = crate::rooms::RoomEvent::CommandAnswered { event_id: "$1".into() };
    let append = Append {
        stream: stream(&setting.key),
        expected: Expected::Any,
        events: vec![NewEvent::encode(&foreign).expect("it can be encoded")],
        key: None,
        actor: Actor::Gateway,
        cause: Cause::None,
    };
    setting.sessions.inner.journal.append(append).await.expect("the journal takes it");
    let said = said(&setting.key, "$2");
    let accepted = setting.sessions.accept(&setting.key, &said, "$2", Role::Member, false).await;
    accepted.expect_err("it is not what it was thought to be");

    setting.sessions.oldest().await.expect_err("something waits in it, nobody knows since when");
    assert_eq!(setting.sessions.busy(|_| true).await, [], "it is left out where that does no harm");
    let Setting { sessions, key, .. } = &setting;
    assert!(sessions.is_in(key.project, &key.room), "it counts for its room");
}
