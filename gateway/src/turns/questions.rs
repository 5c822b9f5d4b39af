//! What agents ask leave for (MTX-11): a question is told in its room, and a person who may decides it.
//!
//! That something was allowed is journaled here before the sled hears of it: approvals never come from inside a
//! container (DESIGN, invariant 9). The deadline is the sled's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use link::{
    CallError, SledClient,
    requests::{Decision, PERMISSION_ID_CHARS, RefusalKind},
};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Turn, Turns};
use crate::{
    chat::{Person, Room, Weight},
    commands::grammar::Command,
    dispatch::SessionKey,
    failpoint,
    outbox::{Address, Post},
    people::Role,
    refusal::Refusal,
    text,
};

/// Bytes of a question's name, each two hexadecimal digits.
const NAME_BYTES: usize = 3;
/// How much of it stands in a line.
const LINE_CHARS: usize = 120;
/// How much of what a question is about is shown, in characters.
const ABOUT_CHARS: usize = 2_100;
/// How many questions of one turn may be open; a sled has the same bound.
const OPEN_MAX: usize = 16;
/// How long a word on a question may wait for turns that are being taken up, and may have asked it.
const TAKE_UP_PATIENCE: Duration = Duration::from_secs(15);

/// A person's word on a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Approve,
    /// It may not.
    Deny,
}

/// What was decided, on its way to its sled.
#[derive(Debug)]
#[must_use = "the sled has not heard of it yet"]
pub struct Word {
    name: String,
    question: Question,
    allow: bool,
}

/// A question that is open.
#[derive(Debug, Clone)]
struct Question {
    turn: Uuid,
    session: SessionKey,
    request: String,
    /// What it is about, as it was told.
    about: String,
    /// The batch's senders.
    senders: Vec<Person>,
    /// What was decided by an earlier gateway or a moment ago.
    decided: Option<bool>,
    /// The event that told it, once that is known.
    event_id: Option<String>,
}

/// All open questions, by the names that people use.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: Mutex<HashMap<String, Question>>,
    /// What was decided in turns that were taken up, until the question is read again.
    decided: Mutex<HashMap<(Uuid, String), bool>>,
    /// Told of each question that is asked.
    asked: Notify,
}

impl Questions {
    /// Nothing of a turn that is over is open any more.
    pub(super) fn forget(&self, turn: Uuid) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, question| question.turn != turn);
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _), _| *known != turn);
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::usage(format!("no question {} is open here", text::code(name)))
        .hint("It may have been answered, or its time is over.")
}

/// The name of a question: the same under every gateway, and hard to write by chance.
fn name(turn: Uuid, request: &str) -> String {
    let digest = Sha256::digest(format!("{turn} {request}"));
    hex::encode(&digest[..NAME_BYTES])
}

impl Turns {
    /// What was decided before the gateway ended; the sled may not have heard of it.
    pub(super) fn questions_decided(&self, turn: &Turn, decided: &[(String, bool)]) {
        let mut known = self.inner.questions.decided.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(decided.iter().map(|(request, allow)| ((turn.id, request.clone()), *allow)));
    }

    /// The agent asks.
    pub(super) async fn asked(
        &self,
        turn: &Turn,
        sled: &SledClient,
        request: String,
        tool: &str,
        summary: &str,
        deadline: Timestamp,
    ) {
        let key = (turn.id, request.clone());
        let decided = self.inner.questions.decided.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let about = format!("{} {}", text::one_line(tool, 40), text::code(summary));
        let name = name(turn.id, &request);
        let question = Question {
            turn: turn.id,
            session: turn.session.clone(),
            request,
            about: about.clone(),
            senders: turn.messages.iter().map(|message| message.sender.clone()).collect(),
            decided,
            event_id: None,
        };
        {
            let mut open = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner);
            let of_turn = open.values().filter(|known| known.turn == turn.id).count();
            let taken =
                open.get(&name).is_some_and(|known| (known.turn, &known.request) != (turn.id, &question.request));
            let named = question.request.len() <= PERMISSION_ID_CHARS;
            if of_turn >= OPEN_MAX || taken || !named {
                // The sled denies it at its deadline.
                return warn!(turn = %turn.id, of_turn, taken, named, "a question is not asked");
            }
            open.insert(name.clone(), question.clone());
        }
        self.inner.questions.asked.notify_waiters();
        if let Some(allow) = decided {
            drop(self.convey(sled, &question, allow).await);
            return;
        }
        if self.is_taken_up(turn.id) {
            self.find_question(&name, &turn.session.room).await;
        }
        let (approve, deny) = (Command::Approve { question: name.clone() }, Command::Deny { question: name.clone() });
        // What does not fit a line is shown in a block: people allow what they see.
        let whole = text::one_line(summary, ABOUT_CHARS);
        let shown = if text::one_line(summary, LINE_CHARS) == whole {
            about
        } else {
            format!("{}\n{}", text::one_line(tool, 40), text::code_block(&whole))
        };
        let until = deadline.strftime("%H:%M:%S UTC");
        let post = Post {
            to: Address { pending: None, ..turn.to.clone() },
            weight: Weight::Answer,
            markdown: format!("⚠ The agent asks for leave: {shown}\n`{approve}` or `{deny}`, until {until}."),
            transaction: question_transaction(&name),
            answers: Vec::new(),
            failed: false,
        };
        if let Err(refusal) = self.inner.parts.outbox.post(post).await {
            tracing::error!(turn = %turn.id, %refusal, "a question is not told");
        }
    }

    /// An earlier gateway may have told it: then people react to that event.
    async fn find_question(&self, name: &str, room: &Room) {
        let transaction = question_transaction(name);
        match self.inner.parts.outbox.event_of(room, &transaction).await {
            Ok(Some(event_id)) => self.question_told(&transaction, &event_id),
            Ok(None) => {}
            Err(refusal) => warn!(name, %refusal, "the event of a question is not known"),
        }
    }

    /// A question is answered, by whomever.
    pub(super) async fn settled(&self, turn: &Turn, request: &str, decision: Decision) {
        let name = name(turn.id, request);
        let question = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        info!(turn = %turn.id, name, ?decision, "a question is settled");
        if let (Some(question), Decision::TimedOut) = (question, decision) {
            let told = format!("Nobody answered in time, so this was denied: {}", question.about);
            self.tell(turn, &format!("timeout-{name}"), &told).await;
        }
    }

    fn open_question(&self, name: &str) -> Option<Question> {
        self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until a question is known, as long as a turn that was taken up may still have asked it.
    pub async fn expect_question(&self, name: &str) {
        drop(self.expect(|turns| turns.open_question(name)).await);
    }

    /// The question that was told by this event, as [`Turns::expect_question`] waits for one.
    pub async fn expect_question_at(&self, room: &Room, event_id: &str) -> Option<String> {
        self.expect(|turns| turns.question_at(room, event_id)).await
    }

    async fn expect<T>(&self, look: impl Fn(&Self) -> Option<T>) -> Option<T> {
        let waiting = async {
            loop {
                let asked = self.inner.questions.asked.notified();
                let found = look(self);
                if found.is_some() || !self.takes_up() {
                    return found;
                }
                asked.await;
            }
        };
        tokio::time::timeout(TAKE_UP_PATIENCE, waiting).await.ok().flatten()
    }

    /// The project of the turn that asks the open question of this name.
    pub fn project_of(&self, name: &str) -> Option<Uuid> {
        self.open_question(name).map(|question| question.session.project)
    }

    /// Journals a person's word on the question of this name. The sled has not heard of it yet: see [`Turns::carry_word`].
    pub async fn decide(
        &self,
        name: &str,
        verdict: Verdict,
        by: &Person,
        role: Role,
        room: &Room,
    ) -> Result<Word, Refusal> {
        let question = self.open_question(name).ok_or_else(|| unknown(name))?;
        if question.session.room != *room && role != Role::Admin {
            return Err(unknown(name));
        }
        if role != Role::Admin && !question.senders.contains(by) {
            return Err(Refusal::usage("this question is not yours to answer")
                .hint("Those who asked for the turn may, and the `admins` in bot.toml."));
        }
        let sessions = &self.inner.parts.sessions;
        let wanted = verdict == Verdict::Approve;
        let allow = sessions.decide(&question.session, question.turn, &question.request, wanted, by).await?;
        let allow = allow.ok_or_else(|| unknown(name))?;
        if let Some(open) = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            open.decided = Some(allow);
        }
        Ok(Word { name: name.to_owned(), question, allow })
    }

    /// Carries a journaled word to its sled; what to tell people. A sled that is away is told by the turn's own task as
    /// soon as it is back.
    pub async fn carry_word(&self, word: Word) -> Result<String, Refusal> {
        let Word { name, question, allow } = word;
        let sled = self.inner.parts.nodes.sled(question.session.project).await?;
        let about = &question.about;
        match self.convey(&sled, &question, allow).await {
            Ok(Decision::Allowed) => Ok(format!("Allowed: {about}")),
            Ok(Decision::Denied) => Ok(format!("Denied: {about}")),
            Ok(Decision::TimedOut) => Ok(format!("That came too late; it was denied: {about}")),
            Err(CallError::Refused(refused))
                if matches!(refused.kind, RefusalKind::UnknownTurn | RefusalKind::UnknownPermission) =>
            {
                Err(unknown(&name))
            }
            Err(error) => Err(Refusal::unavailable(format!("the node has not heard of it yet: {error}"))
                .hint("It is told again when it is back, if its time is not over then.")),
        }
    }

    /// Tells a sled that was away what was decided meanwhile.
    pub(super) async fn convey_decided(&self, turn: &Turn, sled: &SledClient) {
        let decided: Vec<_> = {
            let open = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.values().filter(|question| question.turn == turn.id && question.decided.is_some()).cloned().collect()
        };
        for question in decided {
            if let Some(allow) = question.decided {
                drop(self.convey(sled, &question, allow).await);
            }
        }
    }

    /// Notes under which event a question was told.
    pub fn question_told(&self, transaction: &str, event_id: &str) {
        let mut open = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, question) in open.iter_mut().filter(|(name, _)| question_transaction(name) == transaction) {
            question.event_id = Some(event_id.to_owned());
        }
        drop(open);
        self.inner.questions.asked.notify_waiters();
    }

    /// The question that was told by this event, if one is open.
    pub fn question_at(&self, room: &Room, event_id: &str) -> Option<String> {
        let open = self.inner.questions.open.lock().unwrap_or_else(PoisonError::into_inner);
        let told = open
            .iter()
            .find(|(_, question)| question.session.room == *room && question.event_id.as_deref() == Some(event_id));
        told.map(|(name, _)| name.clone())
    }

    async fn convey(&self, sled: &SledClient, question: &Question, allow: bool) -> Result<Decision, CallError> {
        failpoint::reach("before", "answer_permission");
        let heard = sled.answer_permission(question.turn, &question.request, allow).await;
        failpoint::reach("after", "answer_permission");
        heard.inspect_err(|error| warn!(turn = %question.turn, %error, "the sled has not heard of a decision"))
    }
}

fn question_transaction(name: &str) -> String {
    format!("question-{name}")
}
