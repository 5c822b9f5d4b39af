//! Agents that wait for their session's next turn, so that it need not wait for a start (SLED-7).
//!
//! A waiting agent holds no turn and says nothing: one that begins to work by itself is ended, and nobody hears what it says. It is given to
//! a turn that would have started the very same; anything else of its session ends it first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use link::requests::{Agent, GitIdentity, Permissions, TurnRequest};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent::live::{LiveAgent, Sound};
use crate::agent::stream_json;
use crate::lines::Line;
use crate::room::{Left, Room};
use crate::supervised::News;

/// How many agents wait at most, by how much room is left. The one that has waited longest goes first.
fn most(left: Left) -> usize {
    match left {
        Left::Short => 0,
        Left::Enough => FEW,
        Left::Ample => 16,
    }
}

/// So many take little enough for nobody to look at room on their account more often than [`LOOK_EVERY`] and at each start of a turn.
const FEW: usize = 4;

/// The longest that an agent waits, whatever is asked for.
const LONGEST: Duration = Duration::from_hours(24);

/// How often memory is looked at while agents wait.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What must be the same for an agent to take another turn, besides the session. All else that it was started with is the sled's own and
/// the same for as long as the sled lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    agent: Agent,
    identity: Option<GitIdentity>,
    permissions: Permissions,
}

impl Kind {
    /// What `request` asks for.
    pub fn of(request: &TurnRequest) -> Self {
        Self { agent: request.agent.clone(), identity: request.identity.clone(), permissions: request.permissions }
    }
}

/// The agents that wait. Clones are handles of the same.
#[derive(Clone)]
pub struct Warm {
    shared: Arc<Shared>,
}

struct Shared {
    room: Room,
    waiting: Mutex<Waiting>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Waiting {
    /// By session. One that is being ended stays until it is dead, so that no other is started beside it.
    places: HashMap<Uuid, Place>,
    next: u64,
    over: bool,
}

struct Place {
    number: u64,
    kind: Kind,
    since: Instant,
    wishes: mpsc::Sender<Wish>,
    /// It was asked to end.
    goes: bool,
}

/// One waiting agent, and not another of its session after it.
struct Handle {
    session: Uuid,
    number: u64,
    wishes: mpsc::Sender<Wish>,
}

enum Wish {
    /// Hand the agent over.
    Take(oneshot::Sender<LiveAgent>),
    /// End it.
    End,
}

impl Warm {
    /// Nobody waits yet. Where room is short by `room`, nobody goes on waiting.
    pub fn new(room: Room) -> Self {
        Self { shared: Arc::new(Shared { room, waiting: Mutex::default(), tasks: TaskTracker::new() }) }
    }

    /// The agent of `session`, if one of that kind waits. When there is none, none of the session lives.
    pub async fn take(&self, session: Uuid, kind: &Kind) -> Option<LiveAgent> {
        let (place, fits) = {
            let waiting = self.waiting();
            let place = waiting.places.get(&session)?;
            (place.handle(session), place.kind == *kind)
        };
        if fits {
            let (give, given) = oneshot::channel();
            if place.wishes.send(Wish::Take(give)).await.is_ok()
                && let Ok(agent) = given.await
            {
                self.shared.forget(&place);
                return Some(agent);
            }
        } else {
            tracing::info!(%session, "a waiting agent is ended: its session's next turn wants another");
        }
        self.end(&place).await;
        None
    }

    /// Lets an agent wait for `keep`. When too many wait, the one that has waited longest is ended.
    pub async fn keep(&self, session: Uuid, kind: Kind, agent: LiveAgent, keep: Duration) {
        let (wishes, wished) = mpsc::channel(4);
        let since = Instant::now();
        let Some(own) = self.admit(session, kind, since, wishes) else {
            agent.end().await;
            return;
        };
        let (shared, until) = (self.shared.clone(), since + keep.min(LONGEST));
        self.shared.tasks.spawn(async move {
            wait(agent, wished, until).await;
            shared.forget(&own);
        });
        if let Some(place) = self.one_too_many(FEW) {
            // It need not be waited for: it does no harm until it is dead.
            tracing::info!(session = %place.session, "a waiting agent is ended: too many wait");
        }
    }

    /// A place; `None` where none is given any more.
    fn admit(&self, session: Uuid, kind: Kind, since: Instant, wishes: mpsc::Sender<Wish>) -> Option<Handle> {
        let mut waiting = self.waiting();
        if waiting.over {
            return None;
        }
        let place = Place { number: waiting.next, kind, since, wishes, goes: false };
        waiting.next += 1;
        let own = place.handle(session);
        waiting.places.insert(session, place);
        Some(own)
    }

    /// Of more than `unasked`, asks one to end that there is no room for.
    fn one_too_many(&self, unasked: usize) -> Option<Handle> {
        if self.waiting().count() <= unasked {
            return None;
        }
        let most = most(self.shared.room.left());
        let mut waiting = self.waiting();
        if waiting.count() > most { waiting.dismiss_oldest(None) } else { None }
    }

    /// Ends agents that wait until room is no longer short, but not the one of `session`.
    pub async fn make_room(&self, session: Uuid) {
        while self.waiting().count() > 0 && self.shared.room.left() == Left::Short {
            let Some(oldest) = self.waiting().dismiss_oldest(Some(session)) else { return };
            tracing::warn!(session = %oldest.session, "a waiting agent is ended: memory or processes are short");
            self.end(&oldest).await;
        }
    }

    /// Ends those that there is no room for, for as long as it is polled.
    pub async fn watch_room(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            while let Some(oldest) = self.one_too_many(0) {
                tracing::info!(session = %oldest.session, "a waiting agent is ended: there is no room for so many");
                self.end(&oldest).await;
            }
        }
    }

    /// Ends all and takes no more. Returns when none lives.
    pub async fn shut_down(&self) {
        {
            let mut waiting = self.waiting();
            waiting.over = true;
            waiting.places.iter().for_each(|(session, place)| place.handle(*session).ask_to_end());
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Ends a waiting agent. Returns when it is dead, or taken.
    async fn end(&self, place: &Handle) {
        place.wishes.send(Wish::End).await.ok();
        place.wishes.closed().await;
        self.shared.forget(place);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting()
    }
}

impl Shared {
    /// Lets go of a place whose agent waits no more.
    fn forget(&self, place: &Handle) {
        let mut waiting = self.waiting();
        if waiting.places.get(&place.session).is_some_and(|there| there.number == place.number) {
            waiting.places.remove(&place.session);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Whoever panicked while holding it left a map that is whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// How many wait and are not about to go.
    fn count(&self) -> usize {
        self.places.values().filter(|place| !place.goes).count()
    }

    /// Asks who has waited longest, but for `spared`, to end. No other look finds it.
    fn dismiss_oldest(&mut self, spared: Option<Uuid>) -> Option<Handle> {
        let others = self.places.iter_mut().filter(|(session, place)| Some(**session) != spared && !place.goes);
        let (session, place) = others.min_by_key(|(_, place)| (place.since, place.number))?;
        place.goes = true;
        let handle = place.handle(*session);
        handle.ask_to_end();
        Some(handle)
    }
}

impl Place {
    fn handle(&self, session: Uuid) -> Handle {
        Handle { session, number: self.number, wishes: self.wishes.clone() }
    }
}

impl Handle {
    fn ask_to_end(&self) {
        // A full queue holds such a wish already, a closed one means that it is just ending.
        self.wishes.try_send(Wish::End).ok();
    }
}

/// Waits with an agent until it is wanted or to be ended; it is dead or handed over when this returns.
async fn wait(mut agent: LiveAgent, mut wishes: mpsc::Receiver<Wish>, until: Instant) {
    loop {
        tokio::select! {
            biased;
            wish = wishes.recv() => match wish {
                Some(Wish::Take(give)) => {
                    if !is_quiet(&mut agent).await {
                        break;
                    }
                    match give.send(agent) {
                        Ok(()) => return,
                        Err(back) => agent = back,
                    }
                }
                Some(Wish::End) | None => break,
            },
            sound = agent.next() => if !still_waits(&sound) {
                break;
            },
            () = tokio::time::sleep_until(until) => break,
        }
    }
    agent.end().await;
}

/// Whether all that an agent has said by now, and nobody has read, leaves it waiting: the next turn would take it for its own.
async fn is_quiet(agent: &mut LiveAgent) -> bool {
    // What has arrived is known when the runtime has looked.
    tokio::task::yield_now().await;
    while let Some(sound) = agent.next().now_or_never() {
        if !still_waits(&sound) {
            return false;
        }
    }
    true
}

fn still_waits(sound: &Sound) -> bool {
    match sound {
        Sound::Output(Line::Whole(line)) if !stream_json::is_work(line) => true,
        Sound::Output(_) => {
            tracing::warn!("a waiting agent is ended: it began to work by itself");
            false
        }
        Sound::Silent | Sound::Deaf | Sound::News(News::Gone(_)) => false,
        Sound::Error(_) | Sound::News(News::Settled { .. }) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;
    use crate::supervised::Supervised;

    /// What becomes of an agent that has said `line` when somebody wants it before that was read.
    async fn taken_after(line: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let child = Command::new("sh")
            .args(["-c", r#"printf '%s\n' "$1"; touch "$2"; read end"#, "agent", line])
            .arg(&said)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (tree, _supervisor) = Supervised::alone(child);
        let agent = LiveAgent::of(tree);
        while !said.exists() {
            tokio::task::yield_now().await;
        }
        let (wishes, wished) = mpsc::channel(1);
        let (give, given) = oneshot::channel();
        wishes.send(Wish::Take(give)).await.unwrap();
        let waits = tokio::spawn(wait(agent, wished, Instant::now() + LONGEST));
        let taken = given.await.is_ok();
        waits.abort();
        taken
    }

    #[tokio::test]
    async fn an_agent_that_has_begun_to_work_is_not_handed_over_though_nobody_has_read_it_yet() {
        assert!(taken_after(r#"{"type":"keep_alive"}"#).await);
        assert!(!taken_after(r#"{"type":"assistant","message":{"content":[]}}"#).await);
        assert!(!taken_after(r#"{"type":"result","is_error":false,"result":"by the way"}"#).await);
    }
}
