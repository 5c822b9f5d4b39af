//! One attempt of a turn: find or start the agent, hand it its words, wait where the model's service has it wait, and see to it that nothing of it
//! lives when the end is stored, but for an agent that waits for the next turn.
//!
//! It ends the agent's tree before it says how the turn ended (invariant 6), whatever happens.

use std::time::Duration;

use jiff::Timestamp;
use link::requests::{Agent, FailureReason, Outcome, TurnEvent, TurnRequest, Usage};
use tokio::time::Instant;

use crate::agent;
use crate::agent::live::LiveAgent;
use crate::agent::stream_json::{self, Limit, LimitTold};
use crate::attempt::{Answer, Attempt, Conversation, Wishes, Words};
use crate::permissions::Questions;
use crate::record::Recorder;
use crate::supervised::StartError;
use crate::text::error_line;
use crate::turns::Site;
use crate::warm::Kind;

/// What an agent that has the people's words is told when the service's limit has lifted.
const GO_ON: &str = "Go on.";

/// How often an attempt waits for a limit to lift.
const MAX_WAITS: u32 = 8;

/// The longest of such waits, whatever the service says.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// How an attempt went.
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// What the agent says that it used.
    pub usage: Option<Usage>,
}

/// Runs an attempt to its end. When it returns, no process of it lives but an agent that waits for the session's next turn.
pub async fn run(request: &TurnRequest, site: &Site, recorder: &mut Recorder, wishes: &mut Wishes) -> Verdict {
    let questions = Questions::new(request.attempt, request.permissions);
    let mut attempt = Attempt::new(recorder, questions, request.attempt);
    let outcome = match converse(request, site, &mut attempt, wishes).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let reason = FailureReason::NotStarted { error: error_line(&error) };
            attempt.with_last_lines(Outcome::Failed { reason, last_lines: Vec::new() })
        }
    };
    Verdict { outcome, usage: attempt.usage }
}

async fn converse(
    request: &TurnRequest,
    site: &Site,
    attempt: &mut Attempt<'_>,
    wishes: &mut Wishes,
) -> Result<Outcome, StartError> {
    let (session, kind) = (request.session.id, Kind::of(request));
    let keep = Duration::from_secs(request.keep_warm_secs);
    site.warm.make_room(session).await;
    let mut waiting = site.warm.take(session, &kind).await;
    let mut told_started = false;
    let mut limits = Limits::default();
    loop {
        let waited = waiting.is_some();
        let (agent, Memory { session_found, words_found }) = match waiting.take() {
            Some(agent) => (agent, Memory { session_found: true, words_found: true }),
            None => start(request, attempt, site).await?,
        };
        let started = if std::mem::replace(&mut told_started, true) {
            Vec::new()
        } else {
            vec![TurnEvent::Started { session_found }]
        };
        let text = match &request.afresh {
            _ if attempt.told.heard && session_found => GO_ON,
            Some(afresh) if !session_found || !words_found => afresh,
            _ => &request.prompt,
        };
        let echoes = matches!(request.agent, Agent::Claude { .. });
        let words = Words { text, waited, echoes, keep: !keep.is_zero() };
        match attempt.converse(agent, words, started, wishes).await {
            Conversation::Over(outcome) => return Ok(outcome),
            Conversation::Kept(outcome, agent) => {
                site.warm.keep(session, kind, *agent, keep).await;
                return Ok(outcome);
            }
            Conversation::NotTaken => {
                tracing::info!(%session, "a waiting agent did not take its words; another is started");
            }
            Conversation::Limited(limit) => {
                let Some(wait) = limits.wait(&limit, Timestamp::now(), site.limit_backoff) else {
                    let reason = FailureReason::Reported { text: limit.text };
                    return Ok(attempt.with_last_lines(Outcome::Failed { reason, last_lines: Vec::new() }));
                };
                // An agent that tries again by itself may have told of the limit, but not how long it lasts.
                if std::mem::replace(&mut attempt.told.limited, LimitTold::Wait) != LimitTold::Wait {
                    let retry_after_secs = Some(wait.as_secs());
                    if let Err(error) = attempt.recorder.record(vec![TurnEvent::RateLimited { retry_after_secs }]).await
                    {
                        let reason = FailureReason::Protocol { error: error_line(&error) };
                        return Ok(Outcome::Failed { reason, last_lines: Vec::new() });
                    }
                }
                tracing::info!(%session, secs = wait.as_secs(), "the model's service limits the rate; the turn waits");
                if let Some(outcome) = wait_out(Instant::now() + wait, &mut attempt.questions, wishes).await {
                    return Ok(outcome);
                }
            }
        }
    }
}

/// What an agent that is started has of before.
struct Memory {
    /// Its session, or none is expected.
    session_found: bool,
    /// The people's words that an earlier attempt gave it, or none are expected. One that was killed soon after may have lost them.
    words_found: bool,
}

async fn start(request: &TurnRequest, attempt: &Attempt<'_>, site: &Site) -> Result<(LiveAgent, Memory), StartError> {
    let (mut request, surroundings) = (request.clone(), site.surroundings.clone());
    // Who has the words of this attempt remembers them.
    request.session.resumed |= attempt.told.heard;
    let times = 0..=MAX_WAITS + 1;
    let earlier: Vec<_> = (1..request.attempt)
        .flat_map(|number| times.clone().map(move |nth| (number, nth)))
        .map(|(number, nth)| stream_json::words_id(attempt.recorder.turn(), number, nth))
        .collect();
    let prepared = tokio::task::spawn_blocking(move || {
        let words_found = earlier.is_empty() || agent::remembers(&request, &surroundings, &earlier)?;
        Ok::<_, std::io::Error>((agent::prepare(&request, &surroundings)?, words_found))
    });
    let (launch, words_found) = prepared.await.map_err(std::io::Error::other)??;
    let memory = Memory { session_found: launch.session_found, words_found };
    Ok((LiveAgent::start(launch, &site.workspace, &site.supervision).await?, memory))
}

/// The limits that an attempt has met.
#[derive(Debug, Default)]
struct Limits {
    waits: u32,
}

impl Limits {
    /// How long to wait for `limit` to lift; `None` when that was done often enough. `backoff` is for a limit of which nobody says when it lifts,
    /// or which should have lifted by now.
    fn wait(&mut self, limit: &Limit, now: Timestamp, backoff: Duration) -> Option<Duration> {
        self.waits += 1;
        if self.waits > MAX_WAITS {
            return None;
        }
        let left = limit.resets_at.map(|at| at.saturating_sub(now.as_second()));
        let wait = match left.and_then(|left| u64::try_from(left).ok()) {
            Some(secs) if secs > 0 => Duration::from_secs(secs),
            _ => backoff,
        };
        Some(wait.min(LONGEST_WAIT))
    }
}

/// Waits, unless people want the turn to end: then how it ended.
async fn wait_out(until: Instant, questions: &mut Questions, wishes: &mut Wishes) -> Option<Outcome> {
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return None,
            Some(stop) = wishes.stops.recv() => return Some(stop.reason.without_agent()),
            Some(Answer { request, allow, reply }) = wishes.answers.recv() => {
                // Nothing is open while no agent lives.
                reply.send(questions.answer(&request, allow).map(|(decision, _)| decision)).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use link::requests::Permissions;

    use super::*;
    use crate::attempt::{Stop, StopReason};

    const BACKOFF: Duration = Duration::from_mins(5);

    fn wait(limits: &mut Limits, resets_at: Option<i64>) -> Option<u64> {
        let now = Timestamp::from_second(1000).unwrap();
        limits.wait(&Limit { resets_at, text: String::new() }, now, BACKOFF).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_limit_is_waited_for_until_it_lifts_and_not_for_ever() {
        let table = [
            (Some(1060), 60),
            (None, 300),
            (Some(1000), 300),
            (Some(-5), 300),
            (Some(i64::MIN), 300),
            (Some(i64::MAX), 24 * 3600),
        ];
        for (resets_at, wanted) in table {
            assert_eq!(wait(&mut Limits::default(), resets_at), Some(wanted), "{resets_at:?}");
        }
        let mut limits = Limits::default();
        for _ in 0..MAX_WAITS {
            assert!(wait(&mut limits, None).is_some());
        }
        assert_eq!(wait(&mut limits, None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_lasts_as_long_as_nobody_stops_it() {
        let (stop, stops) = mpsc::channel(1);
        let (answer, answers) = mpsc::channel(1);
        let mut wishes = Wishes { stops, answers };
        let mut questions = Questions::new(1, Permissions::Ask { timeout_secs: 1 });
        let began = Instant::now();
        let (reply, replied) = oneshot::channel();
        answer.send(Answer { request: "1-1".to_owned(), allow: true, reply }).await.unwrap();
        assert_eq!(wait_out(began + BACKOFF, &mut questions, &mut wishes).await, None);
        assert_eq!((began.elapsed(), replied.await), (BACKOFF, Ok(None)));

        for (reason, wanted) in [
            (StopReason::Person, Outcome::Stopped { processes: 0, killed: false }),
            (StopReason::Shutdown, Outcome::Interrupted),
        ] {
            let began = Instant::now();
            stop.send(Stop { grace: BACKOFF, reason }).await.unwrap();
            assert_eq!(wait_out(began + BACKOFF, &mut questions, &mut wishes).await, Some(wanted));
            assert_eq!(began.elapsed(), Duration::ZERO);
        }
    }
}
