//! One attempt of a turn, from its hand-over to its end, over broken links and nodes that are away.
//!
//! Whatever goes wrong: when [`Turns::follow`] returns, the attempt is over, as far as the engine can be made to end it.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use link::{
    CallError, SledClient,
    requests::{Outcome, Permissions, Refusal as Refused, RefusalKind, StopRequest, TurnEvent, TurnRequest},
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{info, warn};
use uuid::Uuid;

use super::{End, Turn, Turns, questions::OPEN_MAX, told::limited};
use crate::{
    failpoint,
    outbox::{Post, Progress},
    refusal::{Kind, Refusal},
    text,
};

/// Beyond the grace that a sled has for stopping a turn, how long it may take to say so; also how long reaching it may take.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long a stop waits for a hand-over that is under way.
const HANDING_PATIENCE: Duration = Duration::from_secs(1);
/// How long ending a turn's container is tried, when its sled does not end the turn.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node is tried that is away, from the first try that failed on.
const PATIENCE: Duration = Duration::from_mins(2);
/// The first wait between two tries; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a turn's events must have been read for that the node counts as reached, though nothing was said. It is more than
/// opening them may take.
const STEADY: Duration = Duration::from_secs(30);
/// The first version of the link whose sleds ask for permission.
const ASKS: u32 = 2;
/// When a node has been away for so long, people are told what is waited for.
const TOLD_AFTER: Duration = Duration::from_secs(3);
/// How many questions of one turn are told.
const QUESTIONS_MAX: u32 = 200;
/// How many rate limits of one turn are told.
const LIMITS_MAX: u32 = 20;
/// How many events of one turn are read: more than a sled stores of two attempts.
const EVENTS_MAX: u32 = 40_000;
/// Lines of tool calls that the progress message shows.
const TOOL_LINES: usize = 20;

/// How far a turn has been read, over all its attempts. What follows from an event has an id that is derived from it, so
/// that reading it again under a later gateway tells nobody anything twice.
#[derive(Default)]
pub(super) struct Reading {
    /// The present attempt's number, if the sled may have it.
    pub(super) handed: Option<u32>,
    backoff: Backoff,
    /// The last event that was read.
    seen: u64,
    /// How many were.
    events: u32,
    /// The number of the last attempt that was read of.
    pub(super) attempt: u32,
    /// Whether the agent has started.
    pub(super) agent_ran: bool,
    /// Whether the agent has the people's words.
    pub(super) heard: bool,
    /// How many rate limits were told.
    limits: u32,
    /// Whether others were not, and the log has heard of that.
    muted: bool,
    /// How many questions were told.
    questions: u32,
    /// Whether others were not, and the room has heard of that.
    declined: bool,
    lines: Vec<String>,
}

impl Reading {
    fn show(&mut self, activity: &Progress, line: &str) {
        self.lines.push(line.to_owned());
        let from = self.lines.len().saturating_sub(TOOL_LINES);
        self.lines.drain(..from);
        self.show_again(activity);
    }

    /// Shows what the agent did last, in the place of something else.
    fn show_again(&self, activity: &Progress) {
        activity.show(if self.lines.is_empty() { "The agent works.".to_owned() } else { self.lines.join("\n") });
    }
}

impl Turns {
    /// Hands the attempt over, where that is still to be done, and follows it to its end.
    pub(super) async fn follow(&self, turn: &Turn, request: Option<TurnRequest>, reading: &mut Reading) -> End {
        reading.handed = request.is_none().then_some(turn.attempt);
        reading.backoff = Backoff::default();
        let went = turn.cancel.run_until_cancelled(Box::pin(self.go_on(turn, request, reading))).await;
        let (outcome, why) = match went {
            Some(Err(refusal)) if reading.handed.is_some() => (self.give_up(turn, reading.handed, refusal).await, None),
            Some(outcome) => (outcome, None),
            None => (self.stop(turn, reading.handed).await.map(by_request), self.why(turn.id)),
        };
        // An end that came before its beginning was read tells as well.
        let seen = matches!(
            outcome,
            Ok(Outcome::Answered { .. }
                | Outcome::Stopped { processes: 1.., .. }
                | Outcome::Stopped { killed: true, .. })
        );
        reading.agent_ran |= seen;
        End { outcome, agent_ran: reading.agent_ran, why }
    }

    /// Ends a turn that cannot be followed any more. `refusal` says why, and is its outcome unless it had one already.
    pub(super) async fn give_up(&self, turn: &Turn, handed: Option<u32>, refusal: Refusal) -> Result<Outcome, Refusal> {
        warn!(turn = %turn.id, %refusal, "a turn is given up, and ended");
        match self.stop(turn, handed).await? {
            // It had ended already, and this is its end.
            outcome @ (Outcome::Answered { .. } | Outcome::Failed { .. }) => Ok(outcome),
            Outcome::Stopped { .. } | Outcome::Interrupted => Err(refusal),
        }
    }

    /// Hands over and follows over broken links and a node that is away, as long as it may come back.
    async fn go_on(
        &self,
        turn: &Turn,
        mut request: Option<TurnRequest>,
        reading: &mut Reading,
    ) -> Result<Outcome, Refusal> {
        loop {
            let began = Instant::now();
            let mut reaching = self.inner.parts.nodes.sled(turn.session.project);
            let reached = if let Ok(reached) = tokio::time::timeout(TOLD_AFTER, &mut reaching).await {
                reached
            } else {
                turn.activity.show_since(
                    "The project's container is being started; an image that is lost is built first",
                    began,
                );
                let reached = reaching.await;
                if reached.is_ok() {
                    reading.show_again(&turn.activity);
                }
                reached
            };
            let tried = began.elapsed();
            let trouble = match reached {
                Ok(sled) => match self.advance(&sled, turn, &mut request, reading).await {
                    Ok(outcome) => return Ok(outcome),
                    Err(error @ (CallError::Closed(_) | CallError::Dropped | CallError::Timeout(_))) => {
                        Refusal::unavailable(format!("the link to the sled broke again and again: {error}"))
                            .hint("`docker logs musher-<name>` on the host may tell why; `doctor` checks the rest.")
                    }
                    Err(CallError::Refused(refused))
                        if refused.kind == RefusalKind::UnknownTurn && request.is_none() =>
                    {
                        return Ok(Outcome::Interrupted);
                    }
                    // A sled that ends says so, too, until it is gone: the turn that it has interrupted goes to the next one.
                    Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Busy => Refusal::unavailable(
                        "the sled takes no turn: it is ending, or works on something else and does not stop it",
                    )
                    .hint("Write again in a while; `doctor` may tell more."),
                    Err(error) if request.is_some() => {
                        return Err(Refusal::internal("the sled did not take the message", error));
                    }
                    Err(error) => return Err(Refusal::internal("the sled's answer cannot be used", error)),
                },
                Err(refusal) if matches!(refusal.kind, Kind::Usage | Kind::Config) => return Err(refusal),
                Err(refusal) => refusal,
            };
            let Some(wait) = reading.backoff.next() else { return Err(trouble) };
            if reading.backoff.lasted().max(tried) >= TOLD_AFTER {
                turn.activity.show(format!("{}\nIt is tried again.", trouble.to_markdown()));
            }
            info!(turn = %turn.id, %trouble, ?wait, "the sled is tried again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One link's worth of a turn.
    async fn advance(
        &self,
        sled: &SledClient,
        turn: &Turn,
        request: &mut Option<TurnRequest>,
        reading: &mut Reading,
    ) -> Result<Outcome, CallError> {
        if let Some(wanted) = request {
            if wanted.permissions != Permissions::Bypass && sled.link().peer().protocol < ASKS {
                // It would not ask (SEC-8). An idle container is made anew on the present image at the next rebuild.
                let message = "its sled is of an older version, whose agents do not ask for permission".to_owned();
                return Err(CallError::Refused(Refused { kind: RefusalKind::Invalid, message }));
            }
            // From the first try on it may run, whatever the answer is.
            reading.handed = Some(wanted.attempt);
            match self.put(sled, turn, wanted).await {
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Busy => {
                    self.make_room(sled).await?;
                    self.put(sled, turn, wanted).await?;
                }
                // An earlier gateway, with other settings, has handed this attempt over.
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Mismatch && wanted.attempt > 1 => {}
                taken => taken?,
            }
            self.inner.parts.nodes.heard(turn.session.project);
            *request = None;
            reading.backoff = Backoff::default();
        }
        self.convey_decided(turn, sled).await;
        let began = Instant::now();
        let read = self.read(sled, turn, reading).await;
        // An agent may work for hours without a word: links that break meanwhile do not add up.
        if began.elapsed() >= STEADY {
            reading.backoff = Backoff::default();
        }
        read
    }

    /// Hands the attempt over, in a task of its own: it is not broken off half-way when somebody stops the turn meanwhile.
    async fn put(&self, sled: &SledClient, turn: &Turn, request: &TurnRequest) -> Result<(), CallError> {
        let handing = Arc::clone(&turn.handing).lock_owned().await;
        let (sled, id, request) = (sled.clone(), turn.id, request.clone());
        let (done, put) = oneshot::channel();
        self.inner.parts.tasks.spawn_to_end("handing a turn over", async move {
            failpoint::reach("before", "put_turn");
            let put = sled.put_turn(id, &request).await;
            failpoint::reach("after", "put_turn");
            drop(handing);
            // Whoever waited may have been stopped.
            drop(done.send(put));
        });
        put.await.unwrap_or(Err(CallError::Dropped)).map(drop)
    }

    /// Ends the turn that a sled works on and this gateway does not know: nobody waits for its answer.
    async fn make_room(&self, sled: &SledClient) -> Result<(), CallError> {
        let Some(stranger) = sled.status().await?.turn else { return Ok(()) };
        let known = {
            let running = self.inner.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            running.contains_key(&stranger.id)
        };
        if !known {
            warn!(turn = %stranger.id, "a turn that nobody knows is stopped");
            match failpoint::around("stop_turn", sled.stop_turn(stranger.id, &self.ending(None))).await {
                // It may have ended meanwhile; whether there is room now, the next hand-over tells.
                Ok(_) | Err(CallError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&self, sled: &SledClient, turn: &Turn, reading: &mut Reading) -> Result<Outcome, CallError> {
        let activity = &turn.activity;
        let mut events = sled.turn_events(turn.id, reading.seen);
        loop {
            let record = events.next().await.ok_or(CallError::Dropped)??;
            self.inner.parts.nodes.heard(turn.session.project);
            reading.events += 1;
            if reading.events > EVENTS_MAX {
                return Err(CallError::Malformed("a turn tells more than any sled stores of one".to_owned()));
            }
            let before = (std::mem::replace(&mut reading.seen, record.seq), std::mem::take(&mut reading.backoff));
            match record.event {
                TurnEvent::Accepted(request) => reading.attempt = request.attempt,
                TurnEvent::Started { session_found } => {
                    reading.agent_ran = true;
                    if !session_found {
                        self.tell(
                            turn,
                            "memory",
                            "The agent has lost its memory of this conversation; it begins afresh.",
                        )
                        .await;
                    }
                }
                TurnEvent::Heard => reading.heard = true,
                TurnEvent::Spoke { text } => reading.show(activity, &text::one_line(&text, 300)),
                TurnEvent::ToolCalled { name, summary } => {
                    reading.show(activity, &format!("· {} {}", text::one_line(&name, 40), text::code(&summary)));
                }
                // A container says what it wants: rooms are not flooded.
                TurnEvent::PermissionAsked { request, tool, summary, deadline } => {
                    let may_be_told = reading.questions < QUESTIONS_MAX;
                    if may_be_told && self.asked(turn, sled, &request, &tool, &summary, deadline).await {
                        reading.questions += 1;
                    } else {
                        if let Err(error) = self.decline(turn, sled, &request).await {
                            // It is read again over the next link.
                            (reading.seen, reading.backoff) = before;
                            return Err(error);
                        }
                        if !std::mem::replace(&mut reading.declined, true) {
                            let told = format!(
                                "Not every question of the agent is asked here: at most {OPEN_MAX} are open at once, and \
                                 {QUESTIONS_MAX} in a turn. The others are denied at once."
                            );
                            self.tell(turn, "declined", &told).await;
                        }
                    }
                }
                TurnEvent::PermissionSettled { request, decision } => self.settled(turn, &request, decision).await,
                TurnEvent::RateLimited { retry_after_secs } if reading.limits < LIMITS_MAX => {
                    reading.limits += 1;
                    self.tell(turn, &format!("limit-{}", record.seq), &limited(record.at, retry_after_secs)).await;
                }
                TurnEvent::RateLimited { .. } => {
                    if !std::mem::replace(&mut reading.muted, true) {
                        warn!(turn = %turn.id, "a turn tells too much; not all of it is passed on");
                    }
                }
                TurnEvent::Finished { outcome, .. } => return Ok(outcome),
            }
        }
    }

    /// Tells a room something of a turn, once for each `what`.
    pub(super) async fn tell(&self, turn: &Turn, what: &str, markdown: &str) {
        let post = Post::notice(super::quiet(&turn.to), format!("turn-{}-{what}", turn.id), markdown);
        self.post(post.because_of(turn.cause())).await;
    }

    /// Posts something of a turn, as often as it takes.
    pub(super) async fn post(&self, post: Post) {
        let posting =
            self.until_journaled("something of a turn is told", || self.inner.parts.outbox.post(post.clone()));
        if posting.await.is_none() {
            info!(post.transaction, "not told: the gateway stops before");
        }
    }

    /// Ends a turn. A sled that does not do it in time loses its container: a turn cannot hold a stop up. What was never
    /// handed over needs no end; `handed` is the attempt that may have been.
    async fn stop(&self, turn: &Turn, handed: Option<u32>) -> Result<Outcome, Refusal> {
        let not_begun = Outcome::Stopped { processes: 0, killed: false };
        let Some(attempt) = handed else { return Ok(not_begun) };
        let project = turn.session.project;
        // A hand-over that hangs on a sick link cannot hold the stop up. The sled ends it when it comes after all.
        drop(tokio::time::timeout(HANDING_PATIENCE, turn.handing.lock()).await);
        let why = match tokio::time::timeout(STOP_MARGIN, self.inner.parts.nodes.sled(project)).await {
            Ok(Ok(sled)) => match self.end_turn(&sled.patience(STOP_MARGIN), turn.id, attempt).await {
                Ok(outcome) => return Ok(outcome),
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::UnknownTurn => return Ok(not_begun),
                Err(error) => error.to_string(),
            },
            Ok(Err(refusal)) => refusal.sentence(),
            Err(elapsed) => elapsed.to_string(),
        };
        warn!(turn = %turn.id, why, "the sled does not stop the turn; its container is killed");
        self.kill(project).await
    }

    async fn end_turn(&self, sled: &SledClient, turn: Uuid, attempt: u32) -> Result<Outcome, CallError> {
        failpoint::reach("before", "stop_turn");
        let outcome = sled.stop_turn(turn, &self.ending(Some(attempt))).await;
        failpoint::reach("after", "stop_turn");
        outcome
    }

    async fn kill(&self, project: Uuid) -> Result<Outcome, Refusal> {
        let mut why = "the engine does not answer".to_owned();
        let killing = async {
            for wait in Backoff::default() {
                match self.inner.parts.nodes.kill(project).await {
                    Ok(()) => return true,
                    Err(refusal) => why = refusal.sentence(),
                }
                tokio::time::sleep(wait).await;
            }
            false
        };
        if tokio::time::timeout(KILL_PATIENCE, killing).await == Ok(true) {
            return Ok(Outcome::Stopped { processes: 0, killed: true });
        }
        Err(Refusal::internal("the turn could not be ended, and may still run", why)
            .hint("The next message ends it first; `doctor` checks the engine."))
    }

    fn ending(&self, attempt: Option<u32>) -> StopRequest {
        let grace_ms = u64::try_from(self.inner.parts.settings.stop_grace.as_millis()).unwrap_or(u64::MAX);
        StopRequest { attempt, grace_ms }
    }
}

/// How a turn ended that was asked to: one that its sled found interrupted would have been tried again but for that.
fn by_request(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Interrupted => Outcome::Stopped { processes: 0, killed: false },
        outcome => outcome,
    }
}

/// The waits between tries of a node that is away, as long as it is worth it. A try may take as long as many waits: what
/// ends them is the clock.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    /// When the first try failed.
    since: Option<Instant>,
}

impl Backoff {
    /// How long the node has been away.
    fn lasted(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.since.get_or_insert_with(Instant::now);
        let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.tries)).min(LONGEST_WAIT);
        self.tries += 1;
        (self.lasted() < PATIENCE).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits for a node each try of which takes so long.
    async fn waits(each: Duration) -> Vec<Duration> {
        let mut waits = Vec::new();
        for wait in Backoff::default() {
            waits.push(wait);
            tokio::time::sleep(wait + each).await;
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_away_is_tried_for_minutes_and_not_for_ever() {
        let waits = waits(Duration::ZERO).await;
        assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
        let all: Duration = waits.iter().sum();
        assert!(all >= PATIENCE && all < PATIENCE + LONGEST_WAIT, "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn tries_that_take_long_count_with_the_waits() {
        assert_eq!(waits(Duration::from_secs(40)).await.len(), 3);
    }
}
