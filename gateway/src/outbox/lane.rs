//! Delivery to one room: the oldest undelivered message, again and again, until there is none.
//!
//! A lane takes what to send from its stream and from nowhere else, so that messages leave in the order of the journal
//! whoever committed them. It ends when nothing is left; what is committed in that very moment starts another.

use std::{fmt::Display, panic::AssertUnwindSafe, sync::Arc, sync::atomic::Ordering, time::Duration};

use futures_util::FutureExt;
use journal::{Actor, Append, AppendError, Appended, Cause, Expected, Loaded, NewEvent, ReadError, StreamId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    Outbox, Outcome, Settled, Step,
    events::{self, Entry, OutboxEvent, Queued, TakenBack, Undelivered},
    gate::Gate,
    parts,
};
use crate::{
    chat::{Outbound, Room, SendError, SharedSurface},
    failpoint, text,
};

/// The first wait after a send that failed; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two tries, where the surface does not ask for a longer one.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// The shortest wait that a surface can ask for: it may say zero, again and again.
const SHORTEST_ASKED: Duration = Duration::from_millis(100);
/// How long a message that its surface does not take is tried, counted from its first try since the start of the
/// process; the next failure after it is the last.
pub(super) const LONGEST_TRYING: Duration = Duration::from_hours(24);
/// The same for a message that is to be taken out of its room: everything else for the room waits behind it, and its sender
/// had better do it than hear of it late.
pub(super) const LONGEST_TAKING_OUT: Duration = Duration::from_mins(10);
/// How long it is asked whether an earlier try has arrived where the surface does not say; then its transaction is all there is to
/// lean on. Everything else for the room waits so long.
pub(super) const LONGEST_LOOKING: Duration = Duration::from_mins(10);
/// How much is shown of a message that was refused, and of the reason, in characters.
const REFUSED_CHARS: usize = 300;
/// How long before the end of the process a message must be begun to be sent, so that there is time for it.
const TIME_TO_SEND: Duration = Duration::from_secs(1);
/// So many events after a snapshot there is another one.
pub(super) const SNAPSHOT_EVERY: u64 = 64;

/// The waits between tries.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_WAIT)
    }
}

impl Backoff {
    /// The next wait: what the surface asks for, or else twice the one before.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        if let Some(asked) = asked {
            // Who is asked again before the time hears the same, and asks for longer. Beyond this it is given up in any case.
            return asked.clamp(SHORTEST_ASKED, LONGEST_TRYING);
        }
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST_WAIT);
        wait
    }
}

/// Drains a room.
pub(super) async fn run(outbox: Outbox, room: Room, gate: Arc<Gate>) {
    let _claim = gate.claim().await;
    let (stream, stopping) = (events::stream(&room), outbox.inner.tasks.stopping());
    let mut lane = Lane { outbox, room, stream, stopping, known: Loaded::default(), loaded: false, tried: 0 };
    if let Err(Stopped) = lane.drain().await {
        lane.outbox.leave(&lane.room, lane.tried);
    }
}

/// The gateway stops, and something cannot be done before its end; the next start does it.
struct Stopped;

/// Why a message is not delivered.
enum Lost {
    /// The surface refuses it for good, in these words.
    Refused(String),
    /// Sending it panicked.
    Panicked,
    /// The surface has not taken it for too long, lastly in these words.
    NotTaken(String, Duration),
    /// Its text is not there any more.
    Erased,
}

impl Lost {
    fn reason(&self) -> String {
        match self {
            Self::Refused(message) => text::one_line(message, REFUSED_CHARS),
            Self::Panicked => "a fault in the gateway; its log tells more".to_owned(),
            Self::NotTaken(message, longest) => {
                format!("not taken for {}: {}", text::span(*longest), text::one_line(message, REFUSED_CHARS))
            }
            Self::Erased => "its text was erased before".to_owned(),
        }
    }
}

struct Lane {
    outbox: Outbox,
    room: Room,
    stream: StreamId,
    stopping: CancellationToken,
    /// What is on its way, as far as the stream was read.
    known: Loaded<Undelivered>,
    loaded: bool,
    /// The version at which the last message was queued that was tried.
    tried: u64,
}

impl Lane {
    async fn drain(&mut self) -> Result<(), Stopped> {
        loop {
            match self.outbox.step(&self.room, &self.known.state) {
                Step::Read => self.read().await?,
                Step::Send(surface) => {
                    let Some(entry) = self.known.state.due().cloned() else { continue };
                    self.deliver(&entry, &surface).await?;
                    self.keep_snapshot().await;
                }
                Step::End => return Ok(()),
            }
        }
    }

    /// Reads what was committed since it last did.
    async fn read(&mut self) -> Result<(), Stopped> {
        let mut backoff = Backoff::default();
        loop {
            match self.read_once().await {
                Ok(()) => return Ok(()),
                Err(error) => self.hold_on("the outbox of a room cannot be read", error, &mut backoff).await?,
            }
        }
    }

    async fn read_once(&mut self) -> Result<(), ReadError> {
        let journal = &self.outbox.inner.journal;
        if !self.loaded {
            self.known = journal.load_snapshot(&self.stream).await?;
            self.loaded = true;
            return Ok(());
        }
        for event in journal.read(&self.stream, self.known.version).await? {
            if let Err(error) = self.known.advance(&event) {
                self.loaded = false;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tries until the message is delivered or given up, and that is journaled. One that is too long for its surface goes in
    /// parts, and is delivered with the last of them.
    async fn deliver(&mut self, entry: &Entry, surface: &SharedSurface) -> Result<(), Stopped> {
        let Some(mut text) = self.text(entry.send.text).await? else {
            return self.give_up(entry, None, Vec::new(), &Lost::Erased).await;
        };
        self.tried = entry.version;
        let (mut number, mut parts) = (1, Vec::new());
        // What is only told if a message cannot be taken out is not cut before that.
        let longest = if entry.send.takes_back.is_some() { usize::MAX } else { surface.longest() };
        loop {
            let (markdown, rest) = parts::cut(text, longest);
            let part = entry.send.part(markdown, number, rest.is_none());
            let event_id = match self.deliver_part(entry, surface, &part).await? {
                Ok(event_id) => event_id,
                Err(lost) => return self.give_up(entry, Some(&part), parts, &lost).await,
            };
            let Some(rest) = rest else { return self.delivered(entry, event_id, parts).await };
            parts.push(event_id);
            (text, number) = (rest, number + 1);
        }
    }

    /// Tries until the surface has a part; gives the surface's id of it.
    async fn deliver_part(
        &mut self,
        entry: &Entry,
        surface: &SharedSurface,
        part: &Outbound,
    ) -> Result<Result<String, Lost>, Stopped> {
        // Whether an earlier life has come as far as to this part, only the surface knows.
        let mut doubt = Doubt { unsure: self.outbox.is_unsure(&self.room, entry.version), looking: None };
        let (began, mut backoff) = (Instant::now(), Backoff::default());
        loop {
            let (why, asked) = match self.attempt(entry, surface, part, &mut doubt).await {
                Ok(event_id) => return Ok(Ok(event_id)),
                Err(Failed::Lost(lost)) => return Ok(Err(lost)),
                Err(Failed::NotTaken(why, asked)) => (why, asked),
            };
            let longest = if entry.send.takes_back.is_some() { LONGEST_TAKING_OUT } else { LONGEST_TRYING };
            let wait = backoff.next(asked);
            // A wait that is asked for and ends too late is no reason to be silent until then.
            if began.elapsed() >= longest || (longest < LONGEST_TRYING && wait > longest) {
                return Ok(Err(Lost::NotTaken(why, longest)));
            }
            warn!(room = %self.room, transaction = part.transaction, why, ?wait, "a message was not taken");
            self.take_out_first(entry, surface).await?;
            match asked {
                Some(_) => self.wait_as_asked(wait).await?,
                None => self.pause(wait).await?,
            }
            self.outbox.inner.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes out of the room what is to be taken out, if that is due before a message that is tried again.
    async fn take_out_first(&mut self, entry: &Entry, surface: &SharedSurface) -> Result<(), Stopped> {
        if entry.send.takes_back.is_some() {
            return Ok(());
        }
        self.read().await?;
        while let Some(first) = self.known.state.due().filter(|due| due.send.takes_back.is_some()).cloned() {
            Box::pin(self.deliver(&first, surface)).await?;
        }
        Ok(())
    }

    /// One try. What an earlier one may have sent is looked for first: a server forgets transaction ids.
    async fn attempt(
        &self,
        entry: &Entry,
        surface: &SharedSurface,
        message: &Outbound,
        doubt: &mut Doubt,
    ) -> Result<String, Failed> {
        let attempt = async {
            if let Some(TakenBack { event_id, why }) = &entry.send.takes_back {
                // Again it comes to the same, so an earlier try is not looked for.
                failpoint::reach("before", "take_back");
                let taken = surface.take_back(&self.room, event_id, &message.transaction, why).await;
                failpoint::reach("after", "take_back");
                return taken;
            }
            if doubt.unsure {
                match surface.find(&self.room, &message.transaction, entry.at).await {
                    Ok(Some(event_id)) => {
                        info!(room = %self.room, transaction = message.transaction, "a message was there already");
                        return Ok(event_id);
                    }
                    Ok(None) => *doubt = Doubt::default(),
                    // Whoever may not look may hardly send; if so, the same transaction is all there is to lean on.
                    Err(SendError::Refused { message: why, .. }) => {
                        warn!(room = %self.room, why, "an earlier try cannot be looked for");
                        *doubt = Doubt::default();
                    }
                    Err(transient) if doubt.is_to_look_on(&transient) => return Err(transient),
                    Err(transient) => warn!(room = %self.room, %transient, "an earlier try cannot be looked for"),
                }
            }
            failpoint::reach("before", "send");
            let sent = surface.send(&self.room, message).await;
            failpoint::reach("after", "send");
            sent
        };
        // A fault in one delivery must not hold its room up for ever.
        match AssertUnwindSafe(attempt).catch_unwind().await {
            Ok(Ok(event_id)) => Ok(event_id),
            Ok(Err(SendError::Refused { message, .. })) => Err(Failed::Lost(Lost::Refused(message))),
            Ok(Err(SendError::Transient { message, retry_after, .. })) => {
                // A surface that asks to wait has not taken it; any other failure may have come after it was taken.
                doubt.unsure |= retry_after.is_none();
                Err(Failed::NotTaken(message, retry_after))
            }
            Err(_) => Err(Failed::Lost(Lost::Panicked)),
        }
    }

    async fn text(&self, id: Uuid) -> Result<Option<String>, Stopped> {
        let mut backoff = Backoff::default();
        loop {
            match self.outbox.inner.journal.texts(vec![id]).await {
                Ok(mut texts) => return Ok(texts.remove(&id)),
                Err(error) => self.hold_on("the text of a message cannot be read", error, &mut backoff).await?,
            }
        }
    }

    async fn delivered(&mut self, entry: &Entry, event_id: String, parts: Vec<String>) -> Result<(), Stopped> {
        let transaction = entry.send.transaction.clone();
        let event = OutboxEvent::Delivered { transaction, event_id: event_id.clone(), parts };
        self.settle(entry, || Ok(vec![NewEvent::encode(&event)?])).await?;
        let is_message = entry.send.takes_back.is_none();
        self.outbox.inner.delivered.fetch_add(u64::from(is_message), Ordering::Relaxed);
        self.tell(entry, Outcome::Delivered(event_id));
        Ok(())
    }

    /// Gives a message up, from this part on; the surface has those before. Where people can be told, in its place, they are.
    async fn give_up(
        &mut self,
        entry: &Entry,
        part: Option<&Outbound>,
        parts: Vec<String>,
        lost: &Lost,
    ) -> Result<(), Stopped> {
        let transaction = &entry.send.transaction;
        let reason = lost.reason();
        error!(room = %self.room, transaction, reason, "a message is given up");
        // Once: when the notice is refused too, the log and the stream tell.
        let notice = part.filter(|_| !matches!(lost, Lost::Erased) && entry.send.refused.is_none());
        let event = OutboxEvent::GivenUp { transaction: transaction.clone(), reason: reason.clone(), parts };
        let events = || {
            let mut events = vec![NewEvent::encode(&event)?];
            if let Some(part) = notice {
                events.push(not_sent(&entry.send, part, &reason)?);
            }
            Ok(events)
        };
        self.settle(entry, events).await?;
        // Of what stays where it was taken back from, its sender is told.
        let is_message = entry.send.takes_back.is_none();
        *self.outbox.places().given_up.entry(self.room.clone()).or_default() += u64::from(is_message);
        self.tell(entry, Outcome::GivenUp);
        Ok(())
    }

    /// Journals what has become of a message, as long as nobody else has: the stream must be as it is known.
    async fn settle(
        &mut self,
        entry: &Entry,
        events: impl Fn() -> Result<Vec<NewEvent>, AppendError>,
    ) -> Result<(), Stopped> {
        let mut backoff = Backoff::default();
        while self.known.state.has(&entry.send.transaction) {
            match self.settle_once(entry, &events).await {
                Ok(appended) => {
                    for event in &appended.events {
                        if self.known.advance(event).is_err() {
                            // It says what is wrong, too.
                            self.loaded = false;
                            self.read().await?;
                        }
                    }
                }
                // Something was committed meanwhile.
                Err(AppendError::Conflict { .. }) => self.read().await?,
                Err(error) => {
                    self.hold_on("what has become of a message cannot be journaled", error, &mut backoff).await?;
                }
            }
        }
        Ok(())
    }

    async fn settle_once(
        &self,
        entry: &Entry,
        events: &impl Fn() -> Result<Vec<NewEvent>, AppendError>,
    ) -> Result<Appended, AppendError> {
        let append = Append {
            stream: self.stream.clone(),
            expected: Expected::Version(self.known.version),
            events: events()?,
            key: None,
            actor: Actor::Gateway,
            cause: Cause::Event(entry.event),
        };
        self.outbox.inner.journal.append(append).await
    }

    fn tell(&self, entry: &Entry, outcome: Outcome) {
        let (transaction, answers) = (entry.send.transaction.clone(), entry.send.answers.clone());
        self.outbox.settled(&Settled {
            room: self.room.clone(),
            transaction,
            answers,
            failed: entry.send.failed,
            outcome,
        });
    }

    /// Keeps lane and start from reading long streams.
    async fn keep_snapshot(&mut self) {
        if self.known.state.tail < SNAPSHOT_EVERY {
            return;
        }
        match self.outbox.inner.journal.snapshot(&self.stream, &self.known).await {
            Ok(()) => self.known.state.tail = 0,
            // It saves time and nothing else.
            Err(error) => warn!(room = %self.room, %error, "a snapshot of the outbox cannot be kept"),
        }
    }

    /// Waits before the journal is asked again.
    async fn hold_on(&self, what: &str, error: impl Display, backoff: &mut Backoff) -> Result<(), Stopped> {
        error!(room = %self.room, %error, "{what}");
        self.pause(backoff.next(None)).await
    }

    /// Waits as long as the surface asks for, also while the gateway stops, if it stops for long enough.
    async fn wait_as_asked(&self, wait: Duration) -> Result<(), Stopped> {
        let until = Instant::now() + wait;
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => {
                let deadline = self.outbox.inner.tasks.deadline();
                if deadline.is_none_or(|deadline| until + TIME_TO_SEND > deadline) {
                    return Err(Stopped);
                }
                tokio::time::sleep_until(until).await;
                Ok(())
            }
            () = tokio::time::sleep_until(until) => Ok(()),
        }
    }

    /// Waits, and not any more once the gateway stops.
    async fn pause(&self, wait: Duration) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => Err(Stopped),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

/// Whether the surface may have a message already.
#[derive(Default)]
struct Doubt {
    /// An earlier try may have arrived.
    unsure: bool,
    /// Since when it has been looked for in vain.
    looking: Option<Instant>,
}

impl Doubt {
    /// Whether to go on looking after one more look that has failed.
    fn is_to_look_on(&mut self, why: &SendError) -> bool {
        if matches!(why, SendError::Transient { retry_after: Some(_), .. }) {
            return true;
        }
        if self.looking.get_or_insert_with(Instant::now).elapsed() < LONGEST_LOOKING {
            return true;
        }
        // Where it does not take the message either, it is away and not one that does not let us look.
        self.looking = None;
        false
    }
}

/// Why one try has come to nothing.
enum Failed {
    /// Trying again may help; how long the surface asks to wait.
    NotTaken(String, Option<Duration>),
    /// Trying again is of no use.
    Lost(Lost),
}

/// What a room is told in the place of a message that its surface refuses, or of what is left of it from a part on; plain,
/// for the form may be what was refused. Of a message that stays in the room its writer is told.
fn not_sent(send: &Queued, part: &Outbound, reason: &str) -> Result<NewEvent, AppendError> {
    if send.takes_back.is_some() {
        let transaction = format!("{}-refused", send.transaction);
        let (text, refused) = (Uuid::now_v7(), Some(send.transaction.clone()));
        let notice = Queued { transaction, text, refused, takes_back: None, ..send.clone() };
        return Ok(notice.encode(&format!("⚠ {}\nThe reason: {reason}.", part.markdown))?);
    }
    let what = if part.transaction == send.transaction { "A message" } else { "The rest of a message" };
    let begins = text::one_line(&part.markdown, REFUSED_CHARS);
    let notice = Queued {
        transaction: format!("{}-refused", send.transaction),
        weight: send.weight,
        text: Uuid::now_v7(),
        reply_to: None,
        mention: None,
        thread: None,
        answers: Vec::new(),
        failed: false,
        refused: Some(send.transaction.clone()),
        takes_back: None,
    };
    Ok(notice.encode(&format!("⚠ {what} could not be sent: {reason}. It begins: {begins}"))?)
}
