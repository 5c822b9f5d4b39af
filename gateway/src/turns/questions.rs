//! What agents ask permission for (MTX-11): a question is told in its room, and a person who may decides it.
//!
//! That something was allowed is journaled here before the sled hears of it: approvals never come from inside a
//! container (DESIGN, invariant 9). The deadline is the sled's.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use journal::Cause;
use link::{
    CallError, SledClient,
    requests::{Decision, PERMISSION_ID_CHARS, RefusalKind},
};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::Instant};
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

/// What the transactions of questions begin with.
const QUESTION: &str = "question-";
/// Bytes of a question's name, each two hexadecimal digits.
const NAME_BYTES: usize = 3;
/// How much of it stands in a line.
const LINE_CHARS: usize = 120;
/// How much of what a question is about is shown, in characters.
const ABOUT_CHARS: usize = 2_100;
/// How many questions of one turn may be open; a sled has the same bound.
pub(super) const OPEN_MAX: usize = 16;
/// How long a reaction may wait for the homeserver's answer to our question, which it may have overtaken. All that comes waits
/// with it.
const TELLING_PATIENCE: Duration = Duration::from_secs(2);
/// How long a word on a question may wait for turns that are being taken up, and may have asked it.
const TAKE_UP_PATIENCE: Duration = Duration::from_secs(15);

/// For so long nothing else waits for what a reaction was put on, in a room where one has waited in vain.
const RECOVERY: Duration = Duration::from_mins(1);

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
    question: Question,
    /// What holds: the first word on it.
    allow: bool,
    /// What this one was.
    wanted: bool,
}

/// A question that is open.
#[derive(Debug, Clone)]
struct Question {
    /// What people call it.
    name: String,
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

impl Question {
    /// The id of the message that tells it.
    fn transaction(&self) -> String {
        format!("{QUESTION}{}", id(self.turn, &self.request))
    }
}

/// A turn, and what its sled calls one of its questions.
type Key = (Uuid, String);

/// The questions of the turns that run.
#[derive(Debug, Default)]
pub(super) struct Questions {
    known: Mutex<Known>,
    /// What was decided in turns that were taken up, until the question is read again.
    decided: Mutex<HashMap<Key, bool>>,
    /// Told of each question that is asked.
    asked: Notify,
    /// When a reaction has waited in vain for the question that it was put on, of each room for a while.
    in_vain: Mutex<HashMap<Room, Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    open: HashMap<Key, Question>,
    /// Whose the names are that people use. A name stays its question's until the turn is over: who answers late must not
    /// answer another one.
    names: HashMap<String, Key>,
}

impl Known {
    /// The open question of this name, or of this id: under that the one of an earlier gateway is known before its turn has
    /// been read again.
    fn called(&self, name: &str) -> Option<&Question> {
        match self.names.get(name) {
            Some(key) => self.open.get(key),
            None => self.open.values().find(|question| Turns::question_told_by(&question.transaction()) == Some(name)),
        }
    }

    /// The name of a question: its own, or the first of those that it may have that is no other's.
    fn name(&mut self, (turn, request): &Key) -> Option<String> {
        let is_free = |name: &String| self.names.get(name).is_none_or(|of| (of.0, &of.1) == (*turn, request));
        let name = names(*turn, request).find(is_free)?;
        self.names.insert(name.clone(), (*turn, request.clone()));
        Some(name)
    }
}

impl Questions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of a turn that is over is open any more.
    pub(super) fn forget(&self, turn: Uuid) {
        let mut known = self.known();
        known.open.retain(|(of, _), _| *of != turn);
        known.names.retain(|_, (of, _)| *of != turn);
        drop(known);
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _), _| *known != turn);
    }

    /// By room, when a reaction has waited in vain, as far as that counts.
    fn in_vain(&self) -> MutexGuard<'_, HashMap<Room, Instant>> {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.retain(|_, since| since.elapsed() < RECOVERY);
        in_vain
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::usage(format!("no question {} is open here", text::code(name)))
        .hint("It may have been answered, or its time is over.")
}

/// What tells a question from all others that are ever asked. Sleds choose the names of requests: none of them stands in it.
fn id(turn: Uuid, request: &str) -> Uuid {
    Uuid::new_v5(&turn, request.as_bytes())
}

/// The names that a question may have, hard to write by chance. The first one is enough but for one in thousands.
pub(super) fn names(turn: Uuid, request: &str) -> impl Iterator<Item = String> {
    (0_u32..).map(move |nth| {
        let more = if nth == 0 { String::new() } else { format!(" {nth}") };
        let digest = Sha256::digest(format!("{turn} {request}{more}"));
        hex::encode(&digest[..NAME_BYTES])
    })
}

impl Turns {
    /// What was decided before the gateway ended; the sled may not have heard of it.
    pub(super) fn questions_decided(&self, turn: &Turn, decided: &[(String, bool)]) {
        let mut known = self.inner.questions.decided.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(decided.iter().map(|(request, allow)| ((turn.id, request.clone()), *allow)));
    }

    /// The agent asks. Whether the room hears of it; one that it does not is to be declined.
    pub(super) async fn asked(
        &self,
        turn: &Turn,
        sled: &SledClient,
        request: &str,
        tool: &str,
        summary: &str,
        deadline: Timestamp,
    ) -> bool {
        let key = (turn.id, request.to_owned());
        let decided = self.inner.questions.decided.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let tool = text::one_line(tool, 40);
        let whole = text::lines(summary, ABOUT_CHARS);
        let about = format!("{tool} {}", text::code(&whole.replace('\n', " ⏎ ")));
        let question = {
            let mut known = self.inner.questions.known();
            let of_turn = known.open.keys().filter(|(of, _)| *of == turn.id).count();
            let named = key.1.len() <= PERMISSION_ID_CHARS;
            let free = if of_turn < OPEN_MAX && named { known.name(&key) } else { None };
            let Some(name) = free else {
                warn!(turn = %turn.id, of_turn, named, "a question is not asked");
                return false;
            };
            let question = Question {
                name,
                turn: turn.id,
                session: turn.session.clone(),
                request: request.to_owned(),
                about: about.clone(),
                senders: turn.messages.iter().map(|message| message.sender.clone()).collect(),
                decided,
                event_id: None,
            };
            known.open.insert(key, question.clone());
            question
        };
        self.inner.questions.asked.notify_waiters();
        if let Some(allow) = decided {
            drop(self.convey(sled, &question, allow).await);
            return true;
        }
        if self.is_taken_up(turn.id) {
            self.find_question(&question).await;
        }
        let name = || question.name.clone();
        let (approve, deny) = (Command::Approve { question: name() }, Command::Deny { question: name() });
        // What a line does not show as it is, is shown in a block: people allow what they see.
        let shown = if text::one_line(summary, LINE_CHARS) == whole && !whole.contains('`') {
            about
        } else {
            format!("{tool}\n{}", text::code_block(&whole))
        };
        let until = deadline.strftime("%H:%M:%S UTC");
        let post = Post {
            to: Address { pending: None, ..turn.to.clone() },
            weight: Weight::Answer,
            markdown: format!("⚠ The agent asks for permission: {shown}\n`{approve}` or `{deny}`, until {until}."),
            transaction: question.transaction(),
            answers: Vec::new(),
            failed: false,
            takes_back: None,
            cause: turn.cause(),
        };
        // Nobody answers what they have not heard.
        self.post(post).await;
        true
    }

    /// Denies a question that the room does not hear of: nobody can answer it, so the agent does not wait for its deadline.
    ///
    /// # Errors
    /// When the link broke, and the sled may not have heard.
    pub(super) async fn decline(&self, turn: &Turn, sled: &SledClient, request: &str) -> Result<(), CallError> {
        match self.rule(sled, turn.id, request, false).await {
            Err(error @ (CallError::Closed(_) | CallError::Dropped | CallError::Timeout(_))) => Err(error),
            // It was settled before, or is no question that a sled can be told of.
            _ => Ok(()),
        }
    }

    /// An earlier gateway may have told it: then people react to that event.
    async fn find_question(&self, question: &Question) {
        let transaction = question.transaction();
        match self.inner.parts.outbox.event_of(&question.session.room, &transaction).await {
            Ok(Some(event_id)) => self.question_told(&transaction, &event_id),
            Ok(None) => {}
            Err(refusal) => warn!(question.name, %refusal, "the event of a question is not known"),
        }
    }

    /// A question is answered, by whomever.
    pub(super) async fn settled(&self, turn: &Turn, request: &str, decision: Decision) {
        let key = (turn.id, request.to_owned());
        let Some(question) = self.inner.questions.known().open.remove(&key) else { return };
        // Whoever waits for it waits for nothing.
        self.inner.questions.asked.notify_waiters();
        info!(turn = %turn.id, question.name, ?decision, "a question is settled");
        if decision == Decision::TimedOut {
            let told = format!("Nobody answered in time, so this was denied: {}", question.about);
            self.tell(turn, &format!("timeout-{}", id(turn.id, request)), &told).await;
        }
    }

    fn open_question(&self, name: &str) -> Option<Question> {
        self.inner.questions.known().called(name).cloned()
    }

    /// Waits until a question is known, as long as a turn that was taken up may still have asked it.
    pub async fn expect_question(&self, name: &str) {
        let taking_up = |turns: &Self| turns.takes_up(|_| true);
        drop(self.expect(TAKE_UP_PATIENCE, |turns| turns.open_question(name), taking_up).await);
    }

    /// The question that was told by this event, as [`Turns::expect_question`] waits for one; also as long as one of the room is on
    /// its way there: people see it before we hear that they do. All that is said waits meanwhile, and so once for all that is
    /// reacted to in a while.
    pub async fn expect_question_at(&self, room: &Room, event_id: &str) -> Option<String> {
        let taking_up = |turns: &Self| turns.takes_up(|of| of == room);
        let may_come = |turns: &Self| turns.is_telling(room) || taking_up(turns);
        let in_vain = self.inner.questions.in_vain().contains_key(room);
        let patience = match taking_up(self) {
            true if !in_vain => TAKE_UP_PATIENCE,
            _ if self.is_telling(room) => TELLING_PATIENCE,
            _ => Duration::ZERO,
        };
        let found = self.expect(patience, |turns| turns.question_at(room, event_id), may_come).await;
        if found.is_none() && taking_up(self) {
            self.inner.questions.in_vain().entry(room.clone()).or_insert_with(Instant::now);
        }
        found
    }

    /// Whether a question is open in this room of which we do not know under which event it was told.
    fn is_telling(&self, room: &Room) -> bool {
        let known = self.inner.questions.known();
        known.open.values().any(|question| question.session.room == *room && question.event_id.is_none())
    }

    /// What `look` finds, as long as it may come.
    async fn expect<T>(
        &self,
        patience: Duration,
        look: impl Fn(&Self) -> Option<T>,
        may_come: impl Fn(&Self) -> bool,
    ) -> Option<T> {
        let waiting = async {
            loop {
                let asked = self.inner.questions.asked.notified();
                let found = look(self);
                if found.is_some() || !may_come(self) {
                    return found;
                }
                asked.await;
            }
        };
        tokio::time::timeout(patience, waiting).await.ok().flatten()
    }

    /// The project of the turn that asks the open question of this name.
    pub fn project_of(&self, name: &str) -> Option<Uuid> {
        self.open_question(name).map(|question| question.session.project)
    }

    /// Journals a person's word on the question of this name, given by the event `cause`. The sled has not heard of it yet: see [`Turns::carry_word`].
    pub async fn decide(
        &self,
        name: &str,
        verdict: Verdict,
        by: &Person,
        role: Role,
        room: &Room,
        cause: Cause,
    ) -> Result<Word, Refusal> {
        let question = self.open_question(name).ok_or_else(|| unknown(name))?;
        // Also in another room: theirs may have been replaced by it.
        if role != Role::Admin && !question.senders.contains(by) {
            if question.session.room != *room {
                return Err(unknown(name));
            }
            return Err(Refusal::usage("this question is not yours to answer")
                .hint("Those who asked for the turn may, and the `admins` in bot.toml."));
        }
        let sessions = &self.inner.parts.sessions;
        let wanted = verdict == Verdict::Approve;
        let allow = sessions.decide(&question.session, question.turn, &question.request, wanted, by, cause).await?;
        let allow = allow.ok_or_else(|| unknown(name))?;
        let key = (question.turn, question.request.clone());
        if let Some(open) = self.inner.questions.known().open.get_mut(&key) {
            open.decided = Some(allow);
        }
        Ok(Word { question, allow, wanted })
    }

    /// Carries a journaled word to its sled; what to tell people. A sled that is away is told by the turn's own task as
    /// soon as it is back.
    pub async fn carry_word(&self, word: Word) -> Result<String, Refusal> {
        let Word { question, allow, wanted } = word;
        let about = &question.about;
        let already = if allow == wanted { "" } else { " already, and that holds" };
        let allowed = format!("Allowed{already}: {about}");
        let denied = format!("Denied{already}: {about}");
        let why = match self.inner.parts.nodes.sled(question.session.project).await {
            Ok(sled) => match self.convey(&sled, &question, allow).await {
                Ok(Decision::Allowed) => return Ok(allowed),
                Ok(Decision::Denied) => return Ok(denied),
                Ok(Decision::TimedOut) => return Ok(format!("That came too late; it was denied: {about}")),
                Err(CallError::Refused(refused))
                    if matches!(refused.kind, RefusalKind::UnknownTurn | RefusalKind::UnknownPermission) =>
                {
                    return Err(unknown(&question.name));
                }
                Err(error) => error.to_string(),
            },
            Err(refusal) => refusal.sentence(),
        };
        // It is journaled, and nothing takes it back: no refusal.
        let holds = if allow { allowed } else { denied };
        let why = why.trim_end_matches('.');
        Ok(format!(
            "{holds}\nThe sled has not heard of it yet ({why}). It is told when it is back, if that is in time."
        ))
    }

    /// Tells a sled that was away what was decided meanwhile.
    pub(super) async fn convey_decided(&self, turn: &Turn, sled: &SledClient) {
        let decided: Vec<_> = {
            let known = self.inner.questions.known();
            known
                .open
                .values()
                .filter(|question| question.turn == turn.id && question.decided.is_some())
                .cloned()
                .collect()
        };
        for question in decided {
            if let Some(allow) = question.decided {
                drop(self.convey(sled, &question, allow).await);
            }
        }
    }

    /// Notes under which event a question was told.
    pub fn question_told(&self, transaction: &str, event_id: &str) {
        let mut known = self.inner.questions.known();
        for question in known.open.values_mut().filter(|question| question.transaction() == transaction) {
            question.event_id = Some(event_id.to_owned());
        }
        drop(known);
        self.inner.questions.asked.notify_waiters();
    }

    /// The id of the question that was told under this transaction, if that is one; it serves as its name.
    pub fn question_told_by(transaction: &str) -> Option<&str> {
        transaction.strip_prefix(QUESTION)
    }

    /// The question that was told by this event, if one is open: in its turn's room, or in one that has taken that one's place.
    pub fn question_at(&self, room: &Room, event_id: &str) -> Option<String> {
        let known = self.inner.questions.known();
        let told = known.open.values().find(|question| {
            question.session.room.surface == room.surface && question.event_id.as_deref() == Some(event_id)
        });
        told.map(|question| question.name.clone())
    }

    async fn convey(&self, sled: &SledClient, question: &Question, allow: bool) -> Result<Decision, CallError> {
        self.rule(sled, question.turn, &question.request, allow).await
    }

    async fn rule(&self, sled: &SledClient, turn: Uuid, request: &str, allow: bool) -> Result<Decision, CallError> {
        failpoint::reach("before", "answer_permission");
        let heard = sled.answer_permission(turn, request, allow).await;
        failpoint::reach("after", "answer_permission");
        heard.inspect_err(|error| warn!(%turn, %error, "the sled has not heard of a decision"))
    }
}
