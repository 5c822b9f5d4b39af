//! One attempt of a turn, as its agent's lines make it: what it says is stored, what it asks is passed on, and why it is to end is remembered.
//!
//! [`Attempt::converse`] is one conversation with one process, from the words that it is given to the moment when it is dead or waits for more
//! (invariant 6). Which process that is, and whether another follows, is [`super::running`]'s to say.

use std::time::Duration;

use jiff::Timestamp;
use journal::AppendError;
use link::requests::{Decision, FailureReason, Outcome, TurnEvent, Usage};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::live::{DoesNotListen, LiveAgent, Sound};
use crate::agent::stream_json::{self, Heard, Limit, Listener, Told};
use crate::lines::{Line, Tail};
use crate::permissions::{Questions, Step};
use crate::record::Recorder;
use crate::supervised::{News, until};
use crate::supervisor::Gone;
use crate::text::error_line;

/// How long an agent has after its result to put its session away.
const WIND_UP: Duration = Duration::from_secs(5);

/// What an agent that overstays, or breaks the protocol, has for ending.
pub const GRACE: Duration = Duration::from_secs(1);

/// A wish that the turn end.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// What its processes have between being asked and being killed.
    pub grace: Duration,
    /// Whose wish it is.
    pub reason: StopReason,
}

/// Why a turn is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A person asked for it.
    Person,
    /// The sled ends.
    Shutdown,
}

impl StopReason {
    /// How a turn ends for this reason while no agent of it lives.
    pub fn without_agent(self) -> Outcome {
        match self {
            Self::Person => Outcome::Stopped { processes: 0, killed: false },
            Self::Shutdown => Outcome::Interrupted,
        }
    }
}

/// A person's answer to a permission question.
#[derive(Debug)]
pub struct Answer {
    /// The question.
    pub request: String,
    /// Whether the tool may be used.
    pub allow: bool,
    /// Told the decision that holds when it is stored, `None` if there is no such question; dropped if it could not be stored.
    pub reply: oneshot::Sender<Option<Decision>>,
}

/// What people want of a turn that runs.
pub struct Wishes {
    /// That it end.
    pub stops: mpsc::Receiver<Stop>,
    /// Their answers to its questions.
    pub answers: mpsc::Receiver<Answer>,
}

/// What is known of an attempt, over all the agent's processes that it takes.
pub struct Attempt<'a> {
    pub recorder: &'a mut Recorder,
    pub questions: Questions,
    /// Its number, from 1.
    number: u32,
    /// How often words were given.
    given: u32,
    /// What people were told.
    pub told: Told,
    /// What the agent says to have used so far.
    pub usage: Option<Usage>,
    tail: Tail,
}

/// What an agent is told, and what then.
pub struct Words<'a> {
    /// The words.
    pub text: &'a str,
    /// The agent has waited since an earlier turn: if it ends before it says anything, it did not get the words.
    pub waited: bool,
    /// It echoes its words. If it has waited, what it says before that is not of this turn.
    pub echoes: bool,
    /// Whether it shall wait for the next turn when it has answered.
    pub keep: bool,
}

/// How a conversation went.
pub enum Conversation {
    /// The agent did not take the words, and is dead.
    NotTaken,
    /// The service's limit has ended it, and the agent is dead.
    Limited(Limit),
    /// It is over, and the agent waits.
    Kept(Outcome, Box<LiveAgent>),
    /// It is over, and the agent is dead.
    Over(Outcome),
}

/// Why a conversation is to end, the first reason that came.
enum End {
    Result(Outcome),
    Limited(Limit),
    NotTaken,
    Broken(String),
    Unstored(String),
    Stopped(StopReason),
}

/// The present conversation.
struct Talk {
    agent: LiveAgent,
    listener: Listener,
    /// The agent has not said anything yet, and may not have the words.
    untaken: bool,
    end: Option<End>,
}

impl Talk {
    /// People want the end: nothing may follow on this conversation, neither a wait for a limit nor another agent.
    fn stopped(&mut self, reason: StopReason) {
        if matches!(self.end, None | Some(End::Limited(_) | End::NotTaken)) {
            self.end = Some(End::Stopped(reason));
        }
    }

    fn say(&mut self, line: Vec<u8>) {
        if self.agent.say(line) == Err(DoesNotListen) {
            self.end.get_or_insert_with(|| End::Broken("it does not read the answers to what it asks".to_owned()));
        }
    }
}

impl<'a> Attempt<'a> {
    /// Nothing has been said yet.
    pub fn new(recorder: &'a mut Recorder, questions: Questions, number: u32) -> Self {
        Self { recorder, questions, number, given: 0, told: Told::default(), usage: None, tail: Tail::default() }
    }

    /// Gives the agent its words and hears it to its end, or to the point from which it waits. `started` is stored before anything that it says;
    /// the words go ahead of it, because they are not to wait for the disk (SLED-7): that the attempt was accepted is stored already.
    pub async fn converse(
        &mut self,
        agent: LiveAgent,
        words: Words<'_>,
        started: Vec<TurnEvent>,
        wishes: &mut Wishes,
    ) -> Conversation {
        let id = stream_json::words_id(self.recorder.turn(), self.number, self.given);
        self.given += 1;
        let mut listener = Listener::new(id, self.told);
        if words.waited && words.echoes {
            listener.await_echo();
        }
        let mut talk = Talk { agent, listener, untaken: words.waited, end: None };
        let said = talk.agent.say(stream_json::prompt_line(words.text, id));
        if said == Err(DoesNotListen) && words.waited {
            talk.end = Some(End::NotTaken);
        }
        self.store(&mut talk, started).await;
        let gone = self.listen(&mut talk, words.keep, wishes).await;
        self.conclude(talk, gone).await
    }

    /// Hears the agent until every process of it is gone, or until it waits (`None`).
    async fn listen(&mut self, talk: &mut Talk, keep: bool, wishes: &mut Wishes) -> Option<Gone> {
        let mut ending: Option<Instant> = None;
        let mut ends = false;
        let mut settling = false;
        let mut overstayed = false;
        let gone = loop {
            if let Some(end) = &talk.end
                && !std::mem::replace(&mut ends, true)
            {
                // Who stopped it said how long it has, and the supervisor keeps to that.
                ending = (!matches!(end, End::Stopped(_))).then(|| Instant::now() + WIND_UP);
                settling = keep && matches!(end, End::Result(Outcome::Answered { .. }));
                if settling {
                    talk.agent.settle().await;
                } else {
                    talk.agent.hang_up();
                    if matches!(end, End::Broken(_) | End::Unstored(_) | End::NotTaken) {
                        talk.agent.stop(GRACE).await;
                    }
                }
                let denied = self.questions.close_all();
                self.store(talk, denied).await;
            }
            let deadline = self.questions.next_deadline();
            tokio::select! {
                sound = talk.agent.next() => match sound {
                    Sound::News(News::Gone(gone)) => break gone,
                    Sound::News(News::Settled { busy: false }) if settling && talk.agent.converses() => return None,
                    Sound::News(News::Settled { .. }) => {
                        // It would notice the end of what it has under way, and might act on it: it ends with it. Or it has closed its
                        // streams.
                        talk.agent.hang_up();
                        talk.agent.stop(GRACE).await;
                    }
                    // Nor can it say anything any more.
                    Sound::Deaf | Sound::Silent if talk.untaken && talk.end.is_none() => talk.end = Some(End::NotTaken),
                    // An agent that closes its streams ends in its own way.
                    Sound::Deaf | Sound::Silent => {}
                    Sound::Output(line) => self.take(talk, line).await,
                    Sound::Error(Line::Whole(line) | Line::Cut(line)) => self.tail.push(&line),
                },
                Some(stop) = wishes.stops.recv() => {
                    // Also where it was ending already.
                    (settling, ending) = (false, None);
                    talk.stopped(stop.reason);
                    talk.agent.stop(stop.grace).await;
                }
                Some(answer) = wishes.answers.recv() => self.answer(talk, answer).await,
                () = until(deadline) => {
                    for step in self.questions.time_out(Instant::now()) {
                        self.step(talk, step).await;
                    }
                }
                () = until(ending), if !overstayed => {
                    overstayed = true;
                    settling = false;
                    talk.agent.stop(GRACE).await;
                }
            }
        };
        for sound in talk.agent.last_words().await {
            match sound {
                Sound::Output(line) => self.take(talk, line).await,
                // Why it failed may stand there, whatever its result was.
                Sound::Error(Line::Whole(line) | Line::Cut(line)) => self.tail.push(&line),
                Sound::News(_) | Sound::Deaf | Sound::Silent => {}
            }
        }
        Some(gone)
    }

    async fn take(&mut self, talk: &mut Talk, line: Line) {
        talk.untaken = false;
        let line = match line {
            Line::Whole(line) => line,
            Line::Cut(line) => {
                self.tail.push(&line);
                talk.end.get_or_insert_with(|| End::Broken("a line of its output is longer than 8 MiB".to_owned()));
                return;
            }
        };
        if talk.end.is_some() {
            // After the result, or after it was told to end, an agent has nothing to say that belongs to the turn.
            return;
        }
        let heard = talk.listener.hear(&line);
        self.told = talk.listener.told();
        match heard {
            Heard::Events(events) => {
                self.store(talk, events).await;
            }
            Heard::Ready => talk.agent.ready().await,
            Heard::Asked(events, question) => {
                self.store(talk, events).await;
                let step = self.questions.ask(question, Instant::now(), Timestamp::now());
                self.step(talk, step).await;
            }
            Heard::Withdrawn(agents_id) => {
                let step = self.questions.withdraw(&agents_id);
                self.step(talk, step).await;
            }
            Heard::Unanswerable(agents_id) => {
                talk.say(stream_json::control_error(&agents_id, "this is not known here"));
            }
            Heard::End(events, outcome, usage) => {
                self.used(&mut talk.agent, usage);
                talk.end = Some(End::Result(outcome));
                self.store(talk, events).await;
            }
            Heard::Limited(events, limit, usage) => {
                self.used(&mut talk.agent, usage);
                talk.end = Some(End::Limited(limit));
                self.store(talk, events).await;
            }
            Heard::Unasked => {
                tracing::warn!("a waiting agent is ended: it worked by itself when its words came");
                talk.end = Some(End::NotTaken);
            }
            Heard::Noise => self.tail.push(&line),
        }
    }

    /// Settles a question. Stored before anybody is told, so that the decision that was told is the one that is found later.
    async fn answer(&mut self, talk: &mut Talk, Answer { request, allow, reply }: Answer) {
        let answered = self.questions.answer(&request, allow);
        let decision = answered.as_ref().map(|(decision, _)| *decision);
        let step = answered.map(|(_, step)| step).unwrap_or_default();
        if self.step(talk, step).await {
            // Who asked may have gone away.
            reply.send(decision).ok();
        }
    }

    /// Stores what a step says and then tells the agent; false if it could not be stored.
    async fn step(&mut self, talk: &mut Talk, step: Step) -> bool {
        let stored = self.store(talk, step.events).await;
        if stored && let Some(line) = step.line {
            talk.say(line);
        }
        stored
    }

    /// Stores events. What cannot be stored was not said: the turn fails then.
    async fn store(&mut self, talk: &mut Talk, events: Vec<TurnEvent>) -> bool {
        if matches!(talk.end, Some(End::Unstored(_))) {
            return false;
        }
        match self.recorder.record(events).await {
            Ok(()) => true,
            Err(error) => {
                talk.end = Some(unstored(&error));
                false
            }
        }
    }

    fn used(&mut self, agent: &mut LiveAgent, used: Option<Usage>) {
        let Some(mut used) = used else { return };
        used.cost_usd = used.cost_usd.map(|total| agent.spent_in_turn(total));
        let before = self.usage.take().unwrap_or_default();
        self.usage = Some(Usage {
            input_tokens: before.input_tokens.saturating_add(used.input_tokens),
            output_tokens: before.output_tokens.saturating_add(used.output_tokens),
            cost_usd: match (before.cost_usd, used.cost_usd) {
                (Some(before), Some(used)) => Some(before + used),
                (before, used) => before.or(used),
            },
        });
    }

    async fn conclude(&mut self, mut talk: Talk, gone: Option<Gone>) -> Conversation {
        let mut last = talk.listener.flush();
        // However it ended, what it had asked ended with it.
        last.extend(self.questions.close_all());
        self.store(&mut talk, last).await;
        let failed = |reason| Outcome::Failed { reason, last_lines: Vec::new() };
        let outcome = match (talk.end, gone) {
            (Some(End::Result(outcome)), None) => return Conversation::Kept(outcome, Box::new(talk.agent)),
            (Some(End::Limited(limit)), _) => return Conversation::Limited(limit),
            (Some(End::NotTaken), _) => return Conversation::NotTaken,
            (None, Some(_)) if talk.untaken => return Conversation::NotTaken,
            (Some(End::Result(outcome)), Some(_)) => outcome,
            (Some(End::Broken(error) | End::Unstored(error)), _) => failed(FailureReason::Protocol { error }),
            (Some(End::Stopped(StopReason::Shutdown)), _) => Outcome::Interrupted,
            (Some(End::Stopped(StopReason::Person)), gone) => {
                let (processes, killed) = gone.map_or((0, false), |gone| (gone.processes, gone.killed));
                Outcome::Stopped { processes, killed }
            }
            (None, gone) => {
                let (code, signal) = gone.map_or((None, None), |gone| (gone.code, gone.signal));
                failed(FailureReason::Exited { code, signal })
            }
        };
        Conversation::Over(self.with_last_lines(outcome))
    }

    /// A failure shows the last lines of what the agent wrote.
    pub fn with_last_lines(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Failed { reason, .. } => {
                Outcome::Failed { reason, last_lines: std::mem::take(&mut self.tail).into_lines() }
            }
            outcome => outcome,
        }
    }
}

fn unstored(error: &AppendError) -> End {
    tracing::error!(error = error as &dyn std::error::Error, "a turn's output cannot be stored");
    End::Unstored(format!("its output could not be stored: {}", error_line(error)))
}
