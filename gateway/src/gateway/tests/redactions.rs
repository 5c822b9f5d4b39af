//! What is left of what was said when it is taken back.

use super::*;
use crate::{
    chat::Redacted,
    intake::told::UNSAID,
    outbox::{Address, Post},
};

impl Life {
    async fn edit(&self, event_id: &str, edit_id: &str, text: &str) {
        let (event_id, edit_id, text) = (event_id.to_owned(), edit_id.to_owned(), text.to_owned());
        let edit = Edited { room: room(), event_id, edit_id, sender: ann(), text };
        self.gateway.intake.edited(edit).await.expect("it is taken");
    }

    async fn redact(&self, room: Room, event_id: &str) {
        let redaction_id = format!("{event_id}-redaction");
        let redaction = Redacted { room, event_id: event_id.to_owned(), redaction_id, by: bob() };
        self.gateway.intake.redacted(redaction).await.expect("it is taken");
    }

    /// What waits in the room.
    async fn waiting(&self) -> Vec<String> {
        let sessions = &self.gateway.intake.sessions;
        let mut waiting = Vec::new();
        for (_, session) in sessions.busy(|_| true).await {
            let words = sessions.words(&session.waiting).await.expect("they are readable");
            waiting.extend(words.into_iter().map(|words| words.text));
        }
        waiting
    }

    async fn deliver(&self) {
        while self.gateway.outbox.undelivered() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Whether a file of the state directory has these words.
fn is_kept(folder: &tempfile::TempDir, words: &str) -> bool {
    let files = std::fs::read_dir(folder.path().join("state")).expect("it is readable");
    let paths = files.map(|entry| entry.expect("it is readable").path()).filter(|path| path.is_file());
    let mut bytes = paths.map(|path| std::fs::read(path).expect("it is readable"));
    bytes.any(|bytes| bytes.windows(words.len()).any(|part| part == words.as_bytes()))
}

#[tokio::test]
async fn a_message_whose_edit_is_taken_back_waits_no_longer_and_nothing_of_the_edit_is_kept() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    life.work("$one", "app").await;
    life.say("$two", "as it was").await;
    life.say("$three", "said beside it").await;
    life.edit("$two", "$first", "once edited").await;
    life.edit("$two", "$second", "with the token xyzzy").await;

    // An edit before the one that holds is nothing that the message says, nor is one of another room.
    life.redact(room(), "$first").await;
    life.redact(Room { id: "!b:example.org".into(), ..room() }, "$second").await;
    assert_eq!(life.waiting().await, ["with the token xyzzy", "said beside it"]);

    // As after a crash, it comes again.
    for _ in 0..2 {
        life.redact(room(), "$second").await;
        assert_eq!(life.waiting().await, ["said beside it"]);
    }
    let told = loop {
        let heard = life.hear().await;
        if heard.markdown == UNSAID {
            break heard;
        }
    };
    assert_eq!((told.reply_to.as_deref(), told.mention), (Some("$two"), Some(ann())));
    life.deliver().await;
    assert!(life.heard.sent.try_recv().is_err(), "it is told once");
    life.end().await;
    assert!(!is_kept(&folder, "xyzzy") && is_kept(&folder, "said beside it"));
}

#[tokio::test]
async fn an_answer_that_is_taken_back_is_erased() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    let to = Address { room: room(), thread: None, reply_to: None, mention: None, pending: None };
    for (event_id, text) in [("$a", "the key is xyzzy"), ("$b", "the key is well kept")] {
        life.gateway.outbox.post(Post::answer(to.clone(), event_id, text.into())).await.expect("it is journaled");
        life.hear().await;
        life.deliver().await;
    }
    life.redact(Room { id: "!b:example.org".into(), ..room() }, "$1").await;
    life.redact(room(), "$0").await;
    life.end().await;
    assert!(!is_kept(&folder, "xyzzy") && is_kept(&folder, "well kept"));
}
