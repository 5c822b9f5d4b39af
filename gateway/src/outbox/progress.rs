//! Drafts: one message that is edited while something goes on.
//!
//! Nothing of a draft is journaled, and nothing of it is sent after the message that ends it. A first text that its surface
//! has before that and shows only afterwards is taken out of the room again: a request that is broken off is carried out all
//! the same by a server that has read it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{
    Address, Draft, Outbox,
    gate::Gate,
    lane::{Backoff, LONGEST_TAKING_OUT},
};
use crate::{
    chat::{Outbound, Room, SendError, SharedSurface, Weight},
    failpoint, text,
};

/// How often the time in a draft is brought up to date when nothing else happens.
const TICK: Duration = Duration::from_secs(15);
/// How long the last text may take on a surface that has no pace, or a very fast one.
const SHORTEST_CLOSE: Duration = Duration::from_millis(500);
/// What people see in the place of what came too late.
const TOO_LATE: &str = "it came after its end";

/// One message that is edited while something goes on (MTX-8, PROJ-5): a draft. The newest text wins; the surface's pace
/// is kept; journaled messages to the room go first. It is not journaled itself. When it is dropped, nothing more is
/// shown of it.
pub struct Progress {
    text: watch::Sender<Shown>,
    draft: Arc<Draft>,
    closing: CancellationToken,
    over: oneshot::Receiver<()>,
    patience: Duration,
}

/// What a draft says, and since when that has been so, where it is to be told.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    since: Option<Instant>,
}

impl Shown {
    fn render(&self) -> String {
        match self.since.map(|since| since.elapsed()) {
            Some(elapsed) if elapsed >= Duration::from_secs(1) => format!("{} ({})", self.text, text::span(elapsed)),
            _ => self.text.clone(),
        }
    }
}

impl Progress {
    /// Nothing is sent until there is a first text.
    ///
    /// `draft` is the transaction of the post that will end it, such as `turn-<turn>`: from the commit of that post in
    /// the same room on, nothing more is shown. The draft itself is sent under `draft-<draft>`.
    pub fn new(outbox: &Outbox, to: Address, draft: impl Into<String>) -> Self {
        Self::start(outbox, to, draft.into(), None)
    }

    /// Takes a draft of an earlier run up again. If it is found in the room, at `since` (the begin of what it tells of) or
    /// later, that message is edited on; otherwise it begins anew.
    pub fn resume(outbox: &Outbox, to: Address, draft: impl Into<String>, since: Timestamp) -> Self {
        Self::start(outbox, to, draft.into(), Some(since))
    }

    fn start(outbox: &Outbox, to: Address, ended_by: String, since: Option<Timestamp>) -> Self {
        let transaction = format!("draft-{ended_by}");
        let (text, texts) = watch::channel(Shown::default());
        let (ending, over) = oneshot::channel();
        let closing = CancellationToken::new();
        let pace = outbox.surface(to.room.surface).map_or(Duration::ZERO, |surface| surface.edit_interval());
        let (draft, gate) = outbox.enter(&to.room, ended_by);
        let place = Place { outbox: outbox.clone(), to, draft: Arc::clone(&draft) };
        let closed = closing.clone();
        let mut writing = Writing {
            place,
            gate,
            transaction,
            texts,
            closing: closed,
            under_way: None,
            begun: Timestamp::now(),
            event: None,
            resumed: since,
            doubtful: since.is_some(),
        };
        outbox.inner.tasks.spawn_to_end("draft", async move {
            writing.run().await;
            drop(ending);
            writing.take_out_what_comes_late().await;
        });
        Self { text, draft, closing, over, patience: pace.max(SHORTEST_CLOSE) }
    }

    /// Shows a new text in the place of the one before.
    pub fn show(&self, text: impl Into<String>) {
        self.text.send_replace(Shown { text: text.into(), since: None });
    }

    /// Shows a new text that ends with the time since `since`, which goes on by itself.
    pub fn show_since(&self, text: impl Into<String>, since: Instant) {
        self.text.send_replace(Shown { text: text.into(), since: Some(since) });
    }

    /// Ends it: tries once to show the last text, unless the post that ends it was committed or a journaled message to
    /// the room is on its way. Waits for that no longer than the surface's pace (at least half a second where that is
    /// shorter); then nothing more is begun.
    ///
    /// Called *before* the commit of the post that ends it, the last text is seen; after it, this returns as soon as
    /// nothing is being sent.
    pub async fn close(mut self) {
        self.closing.cancel();
        // The other half is dropped when nothing more is shown.
        if tokio::time::timeout(self.patience, &mut self.over).await.is_err() {
            debug!(draft = self.draft.ended_by, "the last text of a draft was not shown in time");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.draft.sealed.cancel();
    }
}

/// A draft's place in its room, as long as it is written.
struct Place {
    outbox: Outbox,
    to: Address,
    draft: Arc<Draft>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.outbox.exit(&self.to.room, &self.draft);
    }
}

/// A draft that is being written.
struct Writing {
    place: Place,
    gate: Arc<Gate>,
    transaction: String,
    texts: watch::Receiver<Shown>,
    closing: CancellationToken,
    /// What a lane did not wait for.
    under_way: Option<UnderWay>,
    /// Since when it can be there.
    begun: Timestamp,
    /// The surface's id of it, once it is there.
    event: Option<String>,
    /// Since when it may be there from an earlier run, as long as it has not been looked for.
    resumed: Option<Timestamp>,
    /// An earlier try, or run, may have sent it with another text.
    doubtful: bool,
}

/// A request of a draft, in a task of its own.
type UnderWay = oneshot::Receiver<Came>;

/// What a surface is asked for, to show a text.
struct Request {
    surface: SharedSurface,
    room: Room,
    /// As of the draft.
    event: Option<String>,
    resumed: Option<Timestamp>,
    /// As it is sent where the draft is not there yet.
    message: Outbound,
}

/// What has come of a request.
struct Came {
    /// As of the draft, from here on.
    event: Option<String>,
    resumed: Option<Timestamp>,
    outcome: Result<How, SendError>,
}

/// How a text is shown.
enum How {
    /// As a message.
    Sent,
    /// In the place of another text.
    Edited,
}

impl Request {
    /// Sends or edits the draft.
    async fn carry_out(self) -> Came {
        let Self { surface, room, mut event, mut resumed, message } = self;
        let outcome = show(&surface, &room, &mut event, &mut resumed, message).await;
        Came { event, resumed, outcome }
    }
}

async fn show(
    surface: &SharedSurface,
    room: &Room,
    event: &mut Option<String>,
    resumed: &mut Option<Timestamp>,
    message: Outbound,
) -> Result<How, SendError> {
    if let Some(since) = *resumed {
        *event = match surface.find(room, &message.transaction, since).await {
            Err(SendError::Refused { message, .. }) => {
                warn!(%room, message, "a draft of an earlier run cannot be looked for");
                None
            }
            found => found?,
        };
        *resumed = None;
    }
    if let Some(event) = event {
        // A message of its own, which calls nobody.
        let edit = Outbound { transaction: Uuid::now_v7().to_string(), reply_to: None, mention: None, ..message };
        failpoint::around("edit_draft", surface.edit(room, event, &edit)).await?;
        return Ok(How::Edited);
    }
    *event = Some(failpoint::around("send_draft", surface.send(room, &message)).await?);
    Ok(How::Sent)
}

/// What has come of showing a text.
enum Said {
    /// It is shown.
    Shown,
    /// It is not, or not for certain; the surface may ask to wait.
    NotShown(Option<Duration>),
    /// Nothing more can be shown.
    Over,
}

impl Writing {
    async fn run(&mut self) {
        let (sealed, closing) = (self.place.draft.sealed.clone(), self.closing.clone());
        // Whether there is a text that was not shown yet.
        let mut due = false;
        let mut backoff = Backoff::default();
        loop {
            if !due {
                let ticking = self.event.is_some() && self.texts.borrow().since.is_some();
                tokio::select! {
                    biased;
                    () = sealed.cancelled() => return,
                    changed = self.texts.changed() => if changed.is_err() { return },
                    // There is no text that was not seen.
                    () = closing.cancelled() => return,
                    () = tokio::time::sleep(TICK), if ticking => {}
                }
            }
            // No text follows a closing, so what is shown after this is the last.
            let last = closing.is_cancelled();
            let wait = match self.say().await {
                Said::Over => return,
                _ if last => return,
                Said::Shown => {
                    (due, backoff) = (false, Backoff::default());
                    Duration::ZERO
                }
                Said::NotShown(asked) => {
                    due = true;
                    backoff.next(asked)
                }
            };
            let wait = wait.max(self.surface().map_or(Duration::ZERO, |surface| surface.edit_interval()));
            tokio::select! {
                biased;
                () = sealed.cancelled() => return,
                // Nobody waits for the pace at the end.
                () = closing.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn surface(&self) -> Option<SharedSurface> {
        self.place.outbox.surface(self.place.to.room.surface)
    }

    /// Shows the newest text, when the room is free for it.
    async fn say(&mut self) -> Said {
        let gate = Arc::clone(&self.gate);
        let sealed = self.place.draft.sealed.clone();
        let _pass = tokio::select! {
            biased;
            // Also when the room has become free again: what ends it may have been sent meanwhile.
            () = sealed.cancelled() => return Said::Over,
            pass = gate.pass() => pass,
            () = self.closing.cancelled() => return Said::Over,
        };
        let Some(surface) = self.surface() else { return Said::NotShown(None) };
        loop {
            let earlier = self.under_way.take();
            let is_earlier = earlier.is_some();
            let mut under_way = earlier.unwrap_or_else(|| self.begin(&surface));
            let Some(came) = gate.bounded(&mut under_way).await else {
                self.under_way = Some(under_way);
                return Said::NotShown(None);
            };
            // It ends without a word when the surface panics.
            let said = came.map_or(Said::Over, |came| self.take(came));
            if !is_earlier || !matches!(said, Said::Shown) {
                return said;
            }
            // What is there now is older than the newest text.
            if sealed.is_cancelled() {
                return Said::Over;
            }
            if gate.is_claimed() {
                return Said::NotShown(None);
            }
        }
    }

    /// Asks the surface to show the newest text.
    fn begin(&mut self, surface: &SharedSurface) -> UnderWay {
        let newest = self.texts.borrow_and_update().render();
        let request = Request {
            surface: Arc::clone(surface),
            room: self.place.to.room.clone(),
            event: self.event.clone(),
            resumed: self.resumed,
            message: self.outbound(newest),
        };
        let (came, under_way) = oneshot::channel();
        self.place.outbox.inner.tasks.spawn_to_end("draft's request", async move {
            // Fails when nobody wants to know any more.
            drop(came.send(request.carry_out().await));
        });
        under_way
    }

    fn take(&mut self, came: Came) -> Said {
        let Came { event, resumed, outcome } = came;
        (self.event, self.resumed) = (event, resumed);
        match outcome {
            Ok(How::Edited) => {
                self.doubtful = false;
                Said::Shown
            }
            // The surface may have known the transaction, with the text of an earlier try.
            Ok(How::Sent) if self.doubtful => Said::NotShown(None),
            Ok(How::Sent) => Said::Shown,
            Err(SendError::Transient { message, retry_after, .. }) => {
                debug!(room = %self.place.to.room, message, "a draft was not taken");
                self.doubtful |= retry_after.is_none();
                Said::NotShown(retry_after)
            }
            Err(SendError::Refused { message, .. }) => {
                warn!(room = %self.place.to.room, message, "a draft is refused, and shown no more");
                Said::Over
            }
        }
    }

    /// What is still under way may be shown after what ended the draft. An edit changes what stands before that; a first
    /// text stands after it, and is taken out.
    async fn take_out_what_comes_late(mut self) {
        let Some(mut under_way) = self.under_way.take() else { return };
        let stopping = self.place.outbox.inner.tasks.stopping();
        let came = match stopping.run_until_cancelled(&mut under_way).await {
            Some(came) => came,
            // The next gateway finds it, and edits it on.
            None if !self.place.draft.is_ended() => return,
            None => under_way.await,
        };
        let (Ok(came), Some(surface)) = (came, self.surface()) else { return };
        let room = &self.place.to.room;
        let event = match came {
            _ if !self.place.draft.is_ended() => return,
            Came { event: Some(event), outcome: Ok(How::Sent), .. } => event,
            // It may be there all the same.
            Came { event: None, outcome: Err(SendError::Transient { retry_after: None, .. }), .. } => {
                match surface.find(room, &self.transaction, self.resumed.unwrap_or(self.begun)).await {
                    Ok(Some(event)) => event,
                    _ => return,
                }
            }
            _ => return,
        };
        let transaction = format!("late-{}", self.transaction);
        let (began, mut backoff) = (Instant::now(), Backoff::default());
        while began.elapsed() < LONGEST_TAKING_OUT {
            failpoint::reach("before", "take_back");
            let taken = surface.take_back(room, &event, &transaction, TOO_LATE).await;
            failpoint::reach("after", "take_back");
            let asked = match taken {
                Ok(_) => return,
                Err(SendError::Refused { message, .. }) => {
                    warn!(%room, message, "a draft that came too late stays");
                    return;
                }
                Err(SendError::Transient { retry_after, .. }) => retry_after,
            };
            if stopping.run_until_cancelled(tokio::time::sleep(backoff.next(asked))).await.is_none() {
                return;
            }
        }
    }

    fn outbound(&self, markdown: String) -> Outbound {
        Outbound {
            weight: Weight::Notice,
            markdown,
            reply_to: self.place.to.reply_to.clone(),
            mention: self.place.to.mention.clone(),
            thread: self.place.to.thread.clone(),
            answers: Vec::new(),
            transaction: self.transaction.clone(),
        }
    }
}
