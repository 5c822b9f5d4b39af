//! From a surface's message to a command or a turn (MTX-4, CHAT-12): who may speak, is it for us, what is it.
//!
//! Who may speak is decided before what was said (invariant 12). What is taken is journaled before the surface may forget
//! it, and handled once however often it comes (DUR-1). Commands never wait for a turn.

pub(crate) mod told;

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use journal::{Actor, Cause};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    chat::{Edited, Inbound, Inbox, InboxError, Mark, Missed, Person, Reacted, Redacted, Room, SurfaceKind},
    commands::{
        Asked, Commands, broken_off,
        exposed::{self, Exposed},
        grammar::{self, Command, Said},
        rights,
    },
    dispatch::{Common, SessionKey, actor::Dispatcher, core::Event},
    followers::tell_pause,
    outbox::{Address, Outbox, Post},
    people::{People, Role},
    projects::{Registry, Stage},
    refusal::Refusal,
    rooms::{Mode, Received, Rooms},
    sessions::{Accepted, Editing, Message, Removal, Sessions},
    tasks::Tasks,
    turns::{Handle, StopRequest, Turns, Verdict, Word},
    usage::Usage,
};

/// How many commands of a room may be under way.
const MAX_COMMANDS: usize = 50;
/// What approves, as a reaction.
const APPROVING: [&str; 2] = ["👍", "✅"];
/// What denies, as a reaction.
const DENYING: [&str; 2] = ["👎", "❌"];

/// Takes what people say.
pub struct Intake {
    /// Who may speak.
    pub people: People,
    /// Whom they talk about.
    pub rooms: Arc<Rooms>,
    /// What waits for agents.
    pub sessions: Sessions,
    /// The projects.
    pub registry: Arc<Registry>,
    /// Carries commands out.
    pub commands: Commands,
    /// Takes words for agents.
    pub dispatcher: Dispatcher<Handle, StopRequest>,
    /// Runs turns, which people answer questions of.
    pub turns: Turns,
    /// Sends answers.
    pub outbox: Outbox,
    /// Whether reactions approve in encrypted rooms, too.
    pub reaction_approvals: bool,
    /// What the model was used for, which may have a project rest.
    pub usage: Usage,
    /// Runs what takes long.
    pub tasks: Tasks,
    /// Turns that may run at the same time.
    pub max_turns: usize,
}

impl Intake {
    /// The project that this person talks about here, as long as it is there.
    fn project(&self, room: &Room, person: &Person) -> Option<Uuid> {
        let id = self.rooms.project_of(room, person)?;
        self.registry.get(id).filter(|project| project.stage == Stage::Registered).map(|_| id)
    }

    async fn take(&self, mut message: Inbound) -> Result<(), InboxError> {
        let Some(role) = self.people.role(&message.sender) else {
            debug!(sender = %message.sender, room = %message.room, "not listened to");
            return Ok(());
        };
        if !message.addressed {
            return Ok(());
        }
        let to = Address {
            room: message.room.clone(),
            thread: message.thread.clone(),
            reply_to: Some(message.event_id.clone()),
            mention: Some(message.sender.clone()),
            pending: message.pending.clone(),
        };
        // What is kept out where it is said does not come in by a reply to it.
        let hide = |quoted: String| exposed::look(&quoted).map_or(quoted, |exposed| exposed.kept);
        message.quoted = message.quoted.map(hide);
        // A command that carries a credential does not stay where others read it. What is meant for the agent is its sender's matter.
        if let Some(Exposed { kept, refusal }) = exposed::look(&message.text) {
            message.text = kept;
            let taken_out = vec![exposed::taken_out(&to, &message.event_id)];
            return self.answer_with(&message, to, refusal.to_markdown(), taken_out).await;
        }
        let project = self.project(&message.room, &message.sender);
        if message.with_file {
            let told = self.file_stays(project).to_markdown();
            if message.text.is_empty() {
                return self.answer(&message, to, told).await;
            }
            // Its caption is taken all the same.
            let beside = Address { mention: None, pending: None, ..to.clone() };
            let post = Post::notice(beside, format!("file-{}", message.event_id), told)
                .because_of(Cause::Command(message.event_id.clone()));
            self.outbox.post(post).await.map_err(unjournaled)?;
        }
        let said = grammar::read(&message.text);
        let exposes = exposed::has_credential(&said, &message.text);
        let taken_out: Vec<_> = exposes.then(|| exposed::taken_out(&to, &message.event_id)).into_iter().collect();
        match said {
            Said::Text(text) if text.is_empty() => self.answer(&message, to, told::NOTHING_SAID.to_owned()).await,
            Said::Text(text) => self.words(message, &text, role, project, to).await,
            Said::Misused(answer) => self.answer_with(&message, to, answer, taken_out).await,
            Said::Command(command) => {
                if !command.is_in_order() && self.rooms.waiting_commands(&message.room) >= MAX_COMMANDS {
                    let told = Refusal::unavailable("too many commands of this room have no answer yet")
                        .hint("Wait for them, and write it again.");
                    return self.answer_with(&message, to, told.to_markdown(), taken_out).await;
                }
                if self.rooms.receive_with(&message, project, taken_out).await.map_err(unjournaled)? {
                    self.outbox.mark(&message.room, &message.event_id, Mark::Accepted);
                    let asked = Asked { by: message.sender, role, to, project, event_id: message.event_id };
                    self.commands.take(command, asked).await?;
                }
                Ok(())
            }
        }
    }

    /// What people are told who send a file, and talk about this project.
    fn file_stays(&self, project: Option<Uuid>) -> Refusal {
        let spec = project.and_then(|id| self.registry.get(id)).and_then(|known| known.spec);
        let name = spec.as_ref().map_or("<project>", |spec| &spec.name);
        Refusal::unavailable("files, pictures and voice messages are not taken from a room in this version").hint(
            format!("Copy it into the workspace with `scp <file> {name}.musher:/workspace/`, or paste it as text."),
        )
    }

    /// Whether this person may use the project now (SEC-4). What was accepted before stays accepted.
    fn admit(&self, project: Uuid, person: &Person, role: Role) -> Result<(), Refusal> {
        self.registry.get(project).map_or(Ok(()), |project| rights::admit(&project, person, role))
    }

    async fn words(
        &self,
        message: Inbound,
        text: &str,
        role: Role,
        project: Option<Uuid>,
        to: Address,
    ) -> Result<(), InboxError> {
        let Some(project) = project else {
            let told = self.commands.how_to_choose(text, &message.sender, role);
            return self.answer(&message, to, told).await;
        };
        if let Err(refusal) = self.admit(project, &message.sender, role) {
            return self.answer(&message, to, refusal.to_markdown()).await;
        }
        // Threads are conversations of their own later; each is answered for itself already.
        let session = SessionKey { project, room: message.room.clone(), thread: None };
        let interrupts = self.rooms.mode(&session.room) == Mode::Interrupt;
        let accepting = self.sessions.accept(&session, &message, text, role, interrupts);
        let accepted = accepting.await.map_err(unjournaled)?;
        let Accepted::New { behind } = accepted else { return Ok(()) };
        let pause = self.usage.paused(project);
        let waits = behind || pause.is_some() || self.turns.running() >= self.max_turns;
        self.outbox.mark(&message.room, &message.event_id, Mark::Accepted);
        if waits {
            self.outbox.mark(&message.room, &message.event_id, Mark::Waiting);
        }
        let event_id: Arc<str> = message.event_id.into();
        if let Some(pending) = message.pending {
            self.turns.hold(&event_id, pending);
        }
        if let Some(pause) = pause {
            let told = tell_pause(&self.outbox, &self.registry, project, &session.room, &pause, 0).await;
            told.unwrap_or_else(|refusal| warn!(%refusal, "a pause is not told"));
        }
        let (common, handle) = (common(role, message.thread), handle(&session, event_id));
        self.tell(Event::Message { session, common, interrupts, message: handle })
    }

    /// Hands over what an earlier gateway left waiting.
    fn hand_over_again(&self, session: SessionKey, message: Message) -> Result<(), Refusal> {
        let Message { event_id, rights, thread, interrupts, .. } = message;
        let message = handle(&session, event_id.into());
        self.tell(Event::Recovered { session, common: common(rights, thread), interrupts, message })
            .map_err(|_| Refusal::unavailable("the gateway is stopping"))
    }

    /// Takes up what an earlier gateway left waiting, in the order in which it came (DUR-7). A turn that it left running
    /// is known to the dispatcher already.
    pub async fn take_up(&self, waiting: Vec<(SessionKey, Message)>) -> Result<(), Refusal> {
        let unanswered = self.rooms.unanswered().await?;
        let mut messages = waiting.into_iter().peekable();
        for (room, received, text) in unanswered {
            while let Some((session, message)) = messages.next_if(|(_, message)| message.position < received.position) {
                self.hand_over_again(session, message)?;
            }
            self.take_command_up(room, received, &text).await?;
        }
        for (session, message) in messages {
            self.hand_over_again(session, message)?;
        }
        Ok(())
    }

    /// What can be repeated is carried out; of the rest people are told that it broke off.
    async fn take_command_up(&self, room: Room, received: Received, text: &str) -> Result<(), Refusal> {
        let Received { event_id, sender, thread, project, sign_on, .. } = received;
        let (role, said) = (self.people.role(&sender), grammar::read(text));
        if let Some(on) = sign_on {
            let (Some(role), Some((verdict, question))) = (role, ruling(said)) else {
                return self.rooms.answer(&room, &event_id, Vec::new()).await;
            };
            self.heed(Sign { room, on, reaction_id: event_id, sender, role, verdict, question }).await;
            return Ok(());
        }
        let to = Address {
            room: room.clone(),
            thread,
            reply_to: Some(event_id.clone()),
            mention: Some(sender.clone()),
            pending: None,
        };
        match (said, role) {
            (Said::Command(command), Some(role)) if command.is_repeatable() => {
                info!(%room, event_id, "a command is taken up");
                let asked = Asked { by: sender, role, to, project, event_id };
                self.commands.take(command, asked).await.map_err(|_| Refusal::unavailable("the gateway is stopping"))
            }
            _ => {
                let told = broken_off::answer(text);
                let post = Post::answer(to, &event_id, told.to_markdown());
                self.rooms.answer(&room, &event_id, vec![post]).await
            }
        }
    }

    async fn edit(&self, mut edit: Edited) -> Result<(), InboxError> {
        let Some(role) = self.people.role(&edit.sender) else { return Ok(()) };
        if edit.text.is_empty() {
            return Ok(());
        }
        // As of a message that is new, what must not stay where others read it is kept nowhere either.
        let refusal = exposed::look(&edit.text).map(|Exposed { kept, refusal }| {
            edit.text = kept;
            refusal
        });
        let exposes = refusal.is_some() || exposed::has_credential(&grammar::read(&edit.text), &edit.text);
        let admitted = |project| self.admit(project, &edit.sender, role).is_ok();
        let editing = self.sessions.edit(&edit, admitted).await.map_err(unjournaled)?;
        debug!(room = %edit.room, event_id = edit.event_id, ?editing, "a message was edited");
        let refusal = refusal.or_else(|| (editing == Editing::TooOften).then(told::edited_too_often));
        if !exposes && refusal.is_none() {
            return Ok(());
        }
        let (room, reply_to) = (edit.room, Some(edit.event_id));
        let to = Address { room, thread: None, reply_to, mention: Some(edit.sender), pending: None };
        // Whatever became of the message.
        let mut posts = Vec::from_iter(exposes.then(|| exposed::taken_out(&to, &edit.edit_id)));
        posts.extend(refusal.map(|refusal| {
            let told = Post::notice(to, format!("edit-{}", edit.edit_id), refusal.to_markdown());
            told.because_of(Cause::Command(edit.edit_id))
        }));
        self.outbox.commit(posts, Vec::new()).await.map(drop).map_err(unjournaled)
    }

    async fn redact(&self, redaction: Redacted) -> Result<(), InboxError> {
        let Redacted { room, event_id, redaction_id, by } = redaction;
        let origin = (Actor::Person(by.to_string()), Cause::Command(redaction_id));
        let edit = self.sessions.edit_by(&room, &event_id).await.map_err(unjournaled)?;
        let gone = edit.as_ref().map_or(&event_id, |edit| &edit.of);
        // What a message said before an edit is erased with that: without the edit there is nothing that it says.
        let is_gone = |message: &&Message| {
            message.event_id == *gone && edit.as_ref().is_none_or(|edit| message.text == edit.text)
        };
        let busy = self.sessions.busy(|key| key.room == room).await;
        for (key, session) in busy {
            let mut running = session.running.iter().flat_map(|running| &running.messages);
            let waits = session.waiting.iter().any(|message| is_gone(&message));
            if !waits && !running.any(|message| is_gone(&message)) {
                continue;
            }
            // Who took the message itself back knows that it is not answered.
            let tell = |removed: &[Message]| match removed {
                [message] if waits && edit.is_some() => vec![told::unsaid(&room, message, &event_id)],
                _ => Vec::new(),
            };
            let removed = self
                .sessions
                .remove(&key, &[gone], Removal::Redacted, origin.clone(), tell, Vec::new())
                .await
                .map_err(unjournaled)?;
            for message in removed {
                self.taken_out(&key, &message)?;
            }
        }
        if let Some(edit) = &edit {
            return self.sessions.erase_edit(edit).await.map_err(unjournaled);
        }
        self.sessions.erase_said(&room, &event_id).await.map_err(unjournaled)?;
        self.outbox.erase_sent(&room, &event_id).await.map(drop).map_err(unjournaled)
    }

    /// A message does not wait any more.
    fn taken_out(&self, key: &SessionKey, message: &Message) -> Result<(), InboxError> {
        drop(self.turns.let_go(&message.event_id));
        self.outbox.mark(&key.room, &message.event_id, Mark::Delivered);
        let message = Handle { session: Arc::new(key.clone()), event_id: message.event_id.as_str().into() };
        self.tell(Event::Removed { message })
    }

    async fn react(&self, reaction: Reacted) -> Result<(), InboxError> {
        let Some(role) = self.people.role(&reaction.sender) else { return Ok(()) };
        let Some(verdict) = verdict_of(&reaction, self.reaction_approvals) else { return Ok(()) };
        let Some(question) = self.question_of(&reaction).await? else { return Ok(()) };
        let Reacted { room, event_id, reaction_id, sender, .. } = reaction;
        let sign = Sign { room, on: event_id, reaction_id, sender, role, verdict, question };
        if self.rooms.receive_sign(&sign.stands_for(), &sign.on).await.map_err(unjournaled)? {
            self.heed(sign).await;
        }
        Ok(())
    }

    /// Does what a sign wants. One on a question that was answered long ago does nothing, and nobody is told.
    async fn heed(&self, sign: Sign) {
        let (commands, turns, rooms, tasks) =
            (self.commands.clone(), self.turns.clone(), Arc::clone(&self.rooms), self.tasks.clone());
        // What is open is decided before anything else is taken; a question of a turn that is being taken up comes yet.
        let at_once = decide(&commands, &turns, &sign).await;
        // Its sled may be away, and what others say must not wait for it.
        self.tasks.spawn("a reaction", async move {
            let decided = if let Some(decided) = at_once {
                Some(decided)
            } else {
                // A sled may take its time until it is back, and a word that is journaled is not dropped meanwhile.
                let of_here = |of: &Room| *of == sign.room;
                while turns.project_of(&sign.question).is_none() && turns.takes_up(of_here) {
                    turns.expect_question(&sign.question).await;
                }
                decide(&commands, &turns, &sign).await
            };
            let told = match decided {
                Some(Ok(word)) => Some(turns.carry_word(word).await),
                Some(Err(refusal)) => Some(Err(refusal)),
                None => None,
            };
            let Sign { room, on, reaction_id, .. } = sign;
            let to = Address { room: room.clone(), thread: None, reply_to: Some(on), mention: None, pending: None };
            let post = |told: Result<_, Refusal>| {
                let markdown = told.unwrap_or_else(|refusal| refusal.to_markdown());
                let post = Post::notice(to, format!("reaction-{reaction_id}"), markdown);
                post.because_of(Cause::Command(reaction_id.clone()))
            };
            rooms.answer_in_the_end(&tasks, &room, &reaction_id, told.map(post).into_iter().collect()).await;
        });
    }

    /// The question that the sign was put on, also when an earlier gateway told it, and its turn is only being taken up, or when
    /// it is being told.
    async fn question_of(&self, reaction: &Reacted) -> Result<Option<String>, InboxError> {
        let Reacted { room, event_id, .. } = reaction;
        let open = self.turns.question_at(room, event_id);
        if open.is_some() {
            return Ok(open);
        }
        if self.turns.takes_up(|of| of == room)
            && let Some(transaction) = self.outbox.transaction_of(room, event_id).await.map_err(unjournaled)?
        {
            return Ok(Turns::question_told_by(&transaction).map(str::to_owned));
        }
        if self.outbox.undelivered_in(room) == 0 {
            return Ok(None);
        }
        // It may be there before the homeserver's answer to us is, or have been told by a gateway that ended before it could
        // journal that: then it is known any moment. All that comes waits until then, and not for long, because nothing names the
        // question that could be journaled.
        Ok(self.turns.expect_question_at(room, event_id).await)
    }

    /// Answers what needs nothing but an answer. It is journaled as seen first: when the same event comes again it may mean
    /// something else.
    async fn answer(&self, message: &Inbound, to: Address, markdown: String) -> Result<(), InboxError> {
        self.answer_with(message, to, markdown, Vec::new()).await
    }

    /// As [`Intake::answer`]; what else follows from the message is journaled as it is seen.
    async fn answer_with(
        &self,
        message: &Inbound,
        to: Address,
        markdown: String,
        posts: Vec<Post>,
    ) -> Result<(), InboxError> {
        if self.rooms.receive_with(message, None, posts).await.map_err(unjournaled)? {
            self.outbox.mark(&message.room, &message.event_id, Mark::Accepted);
            let post = Post::answer(to, &message.event_id, markdown);
            // Not again by its surface: then it would be seen already.
            self.rooms.answer_in_the_end(&self.tasks, &message.room, &message.event_id, vec![post]).await;
        }
        Ok(())
    }

    fn tell(&self, event: Event<Handle, StopRequest>) -> Result<(), InboxError> {
        if self.dispatcher.tell(event) { Ok(()) } else { Err(InboxError::Stopping) }
    }
}

/// What the dispatcher gets of a message.
fn handle(session: &SessionKey, event_id: Arc<str>) -> Handle {
    Handle { session: Arc::new(session.clone()), event_id }
}

/// What a message must share with those that it is answered with.
fn common(rights: Role, thread: Option<String>) -> Common {
    Common { rights, thread: thread.map(Into::into) }
}

/// What a reaction says to a question (MTX-11). In an encrypted room it counts only where `reaction_approvals` wants
/// that: reactions travel in clear even there.
fn verdict_of(reaction: &Reacted, reaction_approvals: bool) -> Option<Verdict> {
    if reaction.encrypted && !reaction_approvals {
        return None;
    }
    match reaction.key.as_str() {
        key if APPROVING.contains(&key) => Some(Verdict::Approve),
        key if DENYING.contains(&key) => Some(Verdict::Deny),
        _ => None,
    }
}

/// What a command says to a question, and to which.
fn ruling(said: Said) -> Option<(Verdict, String)> {
    match said {
        Said::Command(Command::Approve { question }) => Some((Verdict::Approve, question)),
        Said::Command(Command::Deny { question }) => Some((Verdict::Deny, question)),
        _ => None,
    }
}

/// A person's word on a question, given by a sign on the event that told it.
struct Sign {
    room: Room,
    on: String,
    reaction_id: String,
    sender: Person,
    role: Role,
    verdict: Verdict,
    question: String,
}

impl Sign {
    /// The command as which it is journaled: when the gateway ends before it is carried out, the next one does that.
    fn stands_for(&self) -> Inbound {
        let question = self.question.clone();
        let command = match self.verdict {
            Verdict::Approve => Command::Approve { question },
            Verdict::Deny => Command::Deny { question },
        };
        Inbound {
            room: self.room.clone(),
            event_id: self.reaction_id.clone(),
            sender: self.sender.clone(),
            // Surfaces do not tell when. Before everything that was said is where it does not count for how far they go back.
            at: Timestamp::UNIX_EPOCH,
            text: command.to_string(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        }
    }
}

/// Journals what a sign decides, if its question is open.
async fn decide(commands: &Commands, turns: &Turns, sign: &Sign) -> Option<Result<Word, Refusal>> {
    let Sign { room, reaction_id, sender, role, verdict, question, .. } = sign;
    turns.project_of(question)?;
    Some(commands.rule_on(question, *verdict, sender, *role, room, Cause::Command(reaction_id.clone())).await)
}

fn unjournaled(refusal: Refusal) -> InboxError {
    warn!(%refusal, "not journaled");
    InboxError::Journal(Box::new(refusal))
}

impl Inbox for Intake {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(message).boxed()
    }

    fn edited(&self, edit: Edited) -> BoxFuture<'_, Result<(), InboxError>> {
        self.edit(edit).boxed()
    }

    fn redacted(&self, redaction: Redacted) -> BoxFuture<'_, Result<(), InboxError>> {
        self.redact(redaction).boxed()
    }

    fn reacted(&self, reaction: Reacted) -> BoxFuture<'_, Result<(), InboxError>> {
        self.react(reaction).boxed()
    }

    fn missed(&self, missed: Missed) -> BoxFuture<'_, Result<(), InboxError>> {
        async { self.outbox.post(told::missed(missed)).await.map_err(unjournaled) }.boxed()
    }

    fn newest(&self, surface: SurfaceKind) -> BoxFuture<'_, Result<Option<Timestamp>, InboxError>> {
        let newest = self.sessions.newest(surface).max(self.rooms.newest(surface));
        std::future::ready(Ok(newest)).boxed()
    }

    fn listens_to(&self, person: &Person) -> bool {
        self.people.role(person).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reaction_decides_by_its_sign_and_in_an_encrypted_room_only_where_that_is_wanted() {
        let check = |key: &str, expected: Option<Verdict>| {
            for (encrypted, reaction_approvals) in [(false, false), (false, true), (true, false), (true, true)] {
                let reaction = Reacted {
                    room: Room { surface: SurfaceKind::Matrix, id: "!a:b.c".to_owned() },
                    event_id: "$question".to_owned(),
                    reaction_id: "$sign".to_owned(),
                    sender: Person { surface: SurfaceKind::Matrix, id: "@ann:b.c".to_owned() },
                    key: key.to_owned(),
                    encrypted,
                };
                let expected = expected.filter(|_| !encrypted || reaction_approvals);
                assert_eq!(
                    verdict_of(&reaction, reaction_approvals),
                    expected,
                    "{key} {encrypted} {reaction_approvals}"
                );
            }
        };
        check("👍", Some(Verdict::Approve));
        check("✅", Some(Verdict::Approve));
        check("👎", Some(Verdict::Deny));
        check("❌", Some(Verdict::Deny));
        for key in ["", "🎉", "approve", "👍👍", "👍 "] {
            check(key, None);
        }
    }
}
