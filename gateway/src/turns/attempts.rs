//! A turn's attempts, from the first to the one that ends it.
//!
//! It must not journal the end: that is one transaction with the answer, and its caller's.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use link::requests::{AgentSession, Outcome, TurnRequest};
use tracing::{error, info};

use super::{End, Turn, Turns, following::Reading, quiet};
use crate::{outbox::Post, prompt, refusal::Refusal};

/// How many attempts a turn has (DESIGN, What exactly-once means).
const ATTEMPTS: u32 = 2;

impl Turns {
    /// Carries a turn to an end that people see, also where musher itself has a fault: the session goes on (CHAT-10).
    pub(super) async fn carry_to_end(&self, turn: &Turn, taken_up: bool) -> End {
        let mut reading = Reading::default();
        // Of what a panic leaves half done only `reading` is looked at again, which any moment leaves usable.
        let carrying = AssertUnwindSafe(self.carry(turn, taken_up, &mut reading)).catch_unwind();
        if let Ok(end) = carrying.await {
            return end;
        }
        error!(turn = %turn.id, "carrying a turn has panicked; the turn is ended");
        let fault = || {
            Refusal::internal("a fault in musher itself broke this off", "its log tells where")
                .hint("Write again to go on.")
        };
        let ending = AssertUnwindSafe(self.give_up(turn, reading.handed, fault())).catch_unwind();
        let outcome =
            ending.await.unwrap_or_else(|_| Err(fault().hint("It may still run; the next message ends it first.")));
        End { outcome, agent_ran: reading.agent_ran, why: self.why(turn.id) }
    }

    /// Carries a turn through its attempts.
    async fn carry(&self, turn: &Turn, taken_up: bool, reading: &mut Reading) -> End {
        let mut attempt = 1;
        let mut hand_over = !taken_up;
        loop {
            let request = if hand_over { self.request(turn, attempt, reading).await.map(Some) } else { Ok(None) };
            let end = match request {
                Ok(request) => Box::pin(self.follow(turn, request, reading)).await,
                Err(refusal) => End { outcome: Err(refusal), agent_ran: reading.agent_ran, why: None },
            };
            attempt = attempt.max(reading.attempt);
            let again = matches!(end.outcome, Ok(Outcome::Interrupted)) && end.why.is_none() && attempt < ATTEMPTS;
            if !again {
                return end;
            }
            attempt += 1;
            if turn.attempt < attempt {
                info!(turn = %turn.id, attempt, "an interrupted turn is tried again");
                let told = "⚠ The agent was interrupted before it answered. It goes on by itself.";
                let post = Post::notice(quiet(&turn.to), format!("turn-{}-interrupted", turn.id), told);
                let post = post.because_of(turn.cause());
                let resuming = self.until_journaled("an interrupted turn is tried again", || {
                    self.inner.parts.sessions.resume(&turn.session, turn.id, attempt, post.clone())
                });
                // The next start finds it interrupted.
                let Some(()) = resuming.await else { return end };
            }
            hand_over = true;
        }
    }

    /// Tells the room, once, that the agent does not hear all that was said.
    async fn tell_left_out(&self, turn: &Turn, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let told = Refusal::usage(format!(
            "that is more than the agent can be told at once: {} kB were left out of the middle of what is longest",
            bytes.div_ceil(1000)
        ))
        .hint("Put long texts into files in the workspace, and name those.");
        self.tell(turn, "left-out", &told.to_markdown()).await;
    }

    /// What the sled is asked for. The same turn, attempt and reading make the same request, also under a later gateway.
    async fn request(&self, turn: &Turn, attempt: u32, reading: &Reading) -> Result<TurnRequest, Refusal> {
        let words = self.inner.parts.sessions.words(&turn.messages).await?;
        self.tell_left_out(turn, prompt::left_out(&words)).await;
        let settings = &self.inner.parts.settings;
        let prompt = if attempt == 1 { prompt::render(&words) } else { prompt::render_again(&words, reading.heard) };
        let resumed = turn.memory.resumed || (attempt > 1 && reading.agent_ran);
        Ok(TurnRequest {
            session: AgentSession { id: turn.memory.id, resumed },
            agent: settings.agent.clone(),
            prompt,
            identity: settings.author.now(),
            attempt,
            permissions: settings.permissions,
            keep_warm_secs: settings.keep_warm.as_secs(),
            // An agent that died before it put its memory away has lost the words that it had heard. Otherwise the prompt has them,
            // and twice they may be more than a sled takes.
            afresh: (attempt > 1 && reading.heard).then(|| prompt::render_again(&words, false)),
        })
    }
}
