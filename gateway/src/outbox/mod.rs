//! What is sent to people: journaled before it counts, in order per room, tried again until it is delivered or given
//! up visibly (DUR-2).
//!
//! Every message has an id, its *transaction*, that is derived from what it tells: told again, it is found and not
//! sent twice. One that is too long for its surface is sent in parts, each under an id of its own, and stays one message:
//! one post, one outcome. That somebody's message is taken out of a room is on its way as a message is. A room has a lane, and memory, only while something is on its way to it. What is only shown for the
//! time being, a [`Progress`], is not journaled and gives way to what is.
//!
//! It must not know what its messages are about, nor look behind [`Surface`](crate::chat::Surface).

mod events;
mod gate;
mod lane;
mod parts;
mod progress;
mod sent;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use journal::{Append, AppendError, Appended, Cause, Loaded, Problem, ReadError, Reader};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tracing::warn;

use self::{events::Undelivered, gate::Gate};
use crate::{
    chat::{Mark, Person, Room, SharedSurface, SurfaceKind, Weight},
    refusal::Refusal,
    store::Journal,
    tasks::Tasks,
};

pub use self::{events::TakenBack, progress::Progress};

/// Where an answer goes, and on whose behalf.
#[derive(Debug, Clone)]
pub struct Address {
    /// The room.
    pub room: Room,
    /// The thread in it.
    pub thread: Option<String>,
    /// The event that is answered.
    pub reply_to: Option<String>,
    /// Whom to mention.
    pub mention: Option<Person>,
    /// Held until what is posted to this address is delivered or given up, or was so already. In memory alone: after a
    /// restart nobody waits for it.
    pub pending: Option<TaskTrackerToken>,
}

/// A message to be sent.
#[derive(Debug, Clone)]
pub struct Post {
    /// Where it goes.
    pub to: Address,
    /// Its weight.
    pub weight: Weight,
    /// Its text, Markdown. Credentials in URLs are masked before it is stored.
    pub markdown: String,
    /// Its id in its room, derived from what it tells, such as `turn-<turn>`. A second post under it is the same one:
    /// the first stands, whatever the second says.
    pub transaction: String,
    /// The events that it answers.
    pub answers: Vec<String>,
    /// Whether it tells that what they asked for failed.
    pub failed: bool,
    /// The message that is taken out of the room in place of sending this; its text is told where that one stays.
    pub takes_back: Option<TakenBack>,
    /// What it follows from, where it answers nothing: otherwise that is the last event that it answers.
    pub cause: Cause,
}

impl Post {
    /// The answer to an event.
    pub fn answer(to: Address, event_id: &str, markdown: String) -> Self {
        let (transaction, answers) = (format!("answer-{event_id}"), vec![event_id.to_owned()]);
        Self { weight: Weight::Answer, answers, ..Self::notice(to, transaction, markdown) }
    }

    /// An aside that answers nothing.
    pub fn notice(to: Address, transaction: String, markdown: impl Into<String>) -> Self {
        let markdown = markdown.into();
        let answers = Vec::new();
        Self {
            to,
            weight: Weight::Notice,
            markdown,
            transaction,
            answers,
            failed: false,
            takes_back: None,
            cause: Cause::None,
        }
    }

    /// That an event is taken out of its room, with `why` in its place. `otherwise` is what whom `to` mentions is told, with
    /// the surface's reason, where it stays.
    pub fn take_back(to: Address, event_id: &str, why: &str, otherwise: impl Into<String>) -> Self {
        let (event_id, why) = (event_id.to_owned(), why.to_owned());
        let transaction = format!("take-back-{event_id}");
        let takes_back = Some(TakenBack { event_id, why });
        Self { weight: Weight::Answer, takes_back, ..Self::notice(to, transaction, otherwise) }
    }

    /// The same, and what it follows from.
    #[must_use]
    pub fn because_of(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

/// What a message has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The surface has given it this event id, or the last of its parts.
    Delivered(String),
    /// The surface refuses it for good, did not take it for too long, or its text was erased before.
    GivenUp,
}

/// That a message was delivered or given up, journaled already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its room.
    pub room: Room,
    /// Its id there.
    pub transaction: String,
    /// The events that it answers.
    pub answers: Vec<String>,
    /// Whether it tells that they failed.
    pub failed: bool,
    /// What it has come to.
    pub outcome: Outcome,
}

/// A message that its room has not got yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnTheWay {
    /// What it says, Markdown.
    pub text: String,
    /// Since when.
    pub queued: Timestamp,
}

/// What has been sent since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were delivered.
    pub delivered: u64,
    /// Tries after the first one of a message.
    pub retries: u64,
    /// Messages that were given up.
    pub given_up: u64,
    /// Messages that are on their way now, as [`Outbox::undelivered`] has them.
    pub undelivered: usize,
}

/// Sends to all surfaces. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    tasks: Tasks,
    places: Mutex<Places>,
    /// Told of each surface that is added.
    arrived: Notify,
    listeners: Mutex<Vec<mpsc::UnboundedSender<Settled>>>,
    delivered: AtomicU64,
    retries: AtomicU64,
}

/// Where messages can go now, and where some are on their way.
#[derive(Default)]
struct Places {
    surfaces: HashMap<SurfaceKind, SharedSurface>,
    busy: HashMap<Room, Busy>,
    /// How many messages were given up.
    given_up: HashMap<Room, u64>,
}

/// A room that something is on its way to, or that a draft is shown in.
#[derive(Default)]
struct Busy {
    /// A lane runs. None does while the surface is not there, nor after the stop has cut a wait short that would outlast it.
    lane: bool,
    /// Something was committed since the lane last began to read.
    woken: bool,
    /// As far as is known; exact when the lane has read what was committed.
    undelivered: usize,
    /// How many of these are messages, and not what is to be taken out of the room.
    messages: usize,
    /// What was queued up to this version of the stream may have been sent by a lane that ended before it knew.
    unsure_up_to: u64,
    /// By transaction, who waits for it.
    held: HashMap<String, Vec<TaskTrackerToken>>,
    drafts: Vec<Arc<Draft>>,
    gate: Arc<Gate>,
}

/// A draft that is shown in a room.
struct Draft {
    /// The transaction of the post that ends it.
    ended_by: String,
    /// Cancelled when nothing more of it may be sent.
    sealed: CancellationToken,
    /// Whether the post that ends it was committed.
    is_ended: AtomicBool,
}

impl Draft {
    fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.sealed.cancel();
    }

    fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }
}

/// What a lane does next.
enum Step {
    /// Reads what was committed.
    Read,
    /// Sends the oldest to this surface.
    Send(SharedSurface),
    /// Ends; whoever commits next starts another.
    End,
}

impl Outbox {
    /// Finds what is undelivered. It is sent when its surfaces are added.
    pub async fn open(journal: Journal, tasks: Tasks) -> Result<Self, Refusal> {
        let loaded = journal.load_all_snapshots::<Undelivered>(events::STREAM).await.map_err(unreadable)?;
        let mut busy = HashMap::new();
        for (stream, loaded) in loaded {
            if loaded.state.is_empty() {
                continue;
            }
            let room = Room::parse(&stream.id).ok_or_else(|| {
                Refusal::internal("the outbox cannot be read from the journal", format!("{stream} names no room"))
            })?;
            let Loaded { state, version, .. } = &loaded;
            let (undelivered, messages) = (state.len(), state.messages().count());
            let found = Busy { undelivered, messages, unsure_up_to: *version, ..Busy::default() };
            busy.insert(room, found);
        }
        let places = Mutex::new(Places { surfaces: HashMap::new(), busy, given_up: HashMap::new() });
        let (delivered, retries) = Default::default();
        let listeners = Mutex::default();
        let arrived = Notify::new();
        let inner = Inner { journal, tasks, places, arrived, listeners, delivered, retries };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes a surface known. What is undelivered in its rooms begins to be sent.
    pub fn add(&self, surface: SharedSurface) {
        let kind = surface.kind();
        let mut places = self.places();
        places.surfaces.insert(kind, surface);
        for (room, busy) in &mut places.busy {
            if room.surface == kind && busy.undelivered > 0 {
                self.wake(room, busy);
            }
        }
        for (room, busy) in &places.busy {
            if busy.undelivered > 0 && !places.may_reach(room) {
                warn!(%room, undelivered = busy.undelivered, "messages wait for a surface that is not configured any more");
            }
        }
        drop(places);
        self.inner.arrived.notify_waiters();
    }

    /// The surface of a kind, once it is there.
    pub async fn arrival(&self, kind: SurfaceKind) -> SharedSurface {
        loop {
            let arrived = self.inner.arrived.notified();
            if let Some(surface) = self.surface(kind) {
                return surface;
            }
            arrived.await;
        }
    }

    /// The surface of a kind.
    pub fn surface(&self, kind: SurfaceKind) -> Option<SharedSurface> {
        self.places().surfaces.get(&kind).cloned()
    }

    /// Shows on a message what became of it, where its surface is there.
    pub fn mark(&self, room: &Room, event_id: &str, mark: Mark) {
        if let Some(surface) = self.surface(room.surface) {
            surface.mark(room, event_id, mark);
        }
    }

    /// Journals messages and the events that they follow from in one transaction, all or nothing; then they are sent.
    /// Gives the outcomes of `with`.
    ///
    /// A post whose transaction was journaled before is there already: it is left out, and the rest is done all the
    /// same. The very same commit again (the same `with`, and posts that differ in nothing but their texts) has the
    /// first outcome. Once begun it is carried out, also when the caller stops waiting.
    ///
    /// Drafts whose end is one of the posts show nothing more (see [`Progress::new`]).
    ///
    /// # Errors
    /// When the journal refuses; nothing has changed then. The refusal's source is the journal's own error: an
    /// [`AppendError::Conflict`] of one of `with` wants to be decided anew, and an [`AppendError::KeyReused`] is always
    /// about a key of `with`.
    pub async fn commit(&self, posts: Vec<Post>, with: Vec<Append>) -> Result<Vec<Appended>, Refusal> {
        let (done, outcome) = oneshot::channel();
        let this = self.clone();
        self.inner.tasks.spawn_to_end("commit", async move {
            // Fails when the caller has stopped waiting.
            drop(done.send(this.carry_out(posts, with).await));
        });
        outcome
            .await
            .unwrap_or(Err(AppendError::Closed))
            .map_err(|error| Refusal::internal("the message could not be journaled", error))
    }

    /// Journals one message, which is then sent.
    ///
    /// # Errors
    /// As [`Outbox::commit`].
    pub async fn post(&self, post: Post) -> Result<(), Refusal> {
        self.commit(vec![post], Vec::new()).await.map(drop)
    }

    /// How many messages are on their way. What waits for a surface that is not coming is left out.
    pub fn undelivered(&self) -> usize {
        let places = self.places();
        places.busy.iter().filter(|(room, _)| places.may_reach(room)).map(|(_, busy)| busy.messages).sum()
    }

    /// How many messages are on their way to a room, or are to be taken out of it.
    pub fn undelivered_in(&self, room: &Room) -> usize {
        self.places().busy.get(room).map_or(0, |busy| busy.undelivered)
    }

    /// The messages that are on their way to a room, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn on_the_way(&self, room: &Room) -> Result<Vec<OnTheWay>, Refusal> {
        if self.undelivered_in(room) == 0 {
            return Ok(Vec::new());
        }
        let known = self.inner.journal.load_snapshot::<Undelivered>(&events::stream(room)).await.map_err(unreadable)?;
        let texts = known.state.messages().map(|entry| entry.send.text).collect();
        let mut texts = self.inner.journal.texts(texts).await.map_err(unreadable)?;
        Ok(known
            .state
            .messages()
            .map(|entry| OnTheWay {
                text: texts.remove(&entry.send.text).unwrap_or_else(|| "(erased)".to_owned()),
                queued: entry.at,
            })
            .collect())
    }

    /// How many messages to a room were given up since the start.
    pub fn given_up_in(&self, room: &Room) -> u64 {
        self.places().given_up.get(room).copied().unwrap_or_default()
    }

    /// When the oldest message was queued that is on its way. What waits for a surface that is not coming is left out: its
    /// text may be erased, and it is given up then, should the surface come after all.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn oldest(&self) -> Result<Option<Timestamp>, Refusal> {
        let rooms: Vec<_> = {
            let places = self.places();
            let on_their_way = |(room, busy): &(&Room, &Busy)| busy.undelivered > 0 && places.may_reach(room);
            places.busy.iter().filter(on_their_way).map(|(room, _)| events::stream(room)).collect()
        };
        let mut oldest: Option<Timestamp> = None;
        for stream in rooms {
            let known = self.inner.journal.load_snapshot::<Undelivered>(&stream).await.map_err(unreadable)?;
            if let Some(entry) = known.state.first() {
                oldest = Some(oldest.map_or(entry.at, |oldest| oldest.min(entry.at)));
            }
        }
        Ok(oldest)
    }

    /// What has been sent since the start.
    pub fn counts(&self) -> Counts {
        let given_up = self.places().given_up.values().sum();
        Counts {
            delivered: self.inner.delivered.load(Ordering::Relaxed),
            retries: self.inner.retries.load(Ordering::Relaxed),
            given_up,
            undelivered: self.undelivered(),
        }
    }

    /// Tells from now on what becomes of messages. It ends with the outbox. What was settled just
    /// before a crash is not told again: the stream has it.
    pub fn outcomes(&self) -> mpsc::UnboundedReceiver<Settled> {
        let (listener, outcomes) = mpsc::unbounded_channel();
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        outcomes
    }
}

/// What lanes and drafts need of it.
impl Outbox {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.inner.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry_out(&self, posts: Vec<Post>, with: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        let (mut ids, mut waiting, mut queue) = (HashSet::new(), Vec::new(), Vec::new());
        for mut post in posts {
            let (room, transaction) = (post.to.room.clone(), post.transaction.clone());
            waiting.push((room.clone(), transaction.clone(), post.to.pending.take()));
            // The same twice in one commit is one post, too: the journal would refuse the key.
            if ids.insert((room, transaction)) {
                queue.push(events::queue(post)?);
            }
        }
        self.seal_drafts(&ids);
        let (queued, outcomes) = self.append(queue, with).await?;
        let mut places = self.places();
        for new in queued.iter().filter(|queued| !queued.repeated).flat_map(|queued| &queued.events) {
            if let Some(room) = Room::parse(&new.stream.id) {
                let busy = places.busy.entry(room).or_default();
                busy.undelivered += 1;
                busy.messages += 1;
            }
        }
        for (room, transaction, pending) in waiting {
            let busy = places.busy.entry(room.clone()).or_default();
            // If it is settled already, the lane that is woken lets it go.
            busy.held.entry(transaction).or_default().extend(pending);
            self.wake(&room, busy);
        }
        Ok(outcomes)
    }

    /// One transaction of all that is not there yet; the outcomes of the posts that are in it, and of `with`.
    async fn append(
        &self,
        mut posts: Vec<Append>,
        with: Vec<Append>,
    ) -> Result<(Vec<Appended>, Vec<Appended>), AppendError> {
        // What is there already, by the position of its transaction.
        let mut there: Vec<(u64, Append)> = Vec::new();
        let (refused, position) = loop {
            match self.append_once(&posts, &with).await {
                Err(AppendError::KeyReused { key, stream, position }) => {
                    match posts.iter().position(|post| post.key.as_ref() == Some(&key)) {
                        Some(at) => there.push((position, posts.remove(at))),
                        None => break (AppendError::KeyReused { key, stream, position }, position),
                    }
                }
                done => return done,
            }
        };
        // A key of `with` was used before. If that was together with posts that have just been left out, this may be the
        // very same commit, which also left others out.
        there.retain(|(of, _)| *of == position);
        let same: Vec<_> = there.into_iter().map(|(_, post)| post).collect();
        if !posts.is_empty() || same.is_empty() {
            return Err(refused);
        }
        match self.append_once(&same, &with).await {
            Err(AppendError::KeyReused { .. }) => Err(refused),
            done => done,
        }
    }

    async fn append_once(
        &self,
        posts: &[Append],
        with: &[Append],
    ) -> Result<(Vec<Appended>, Vec<Appended>), AppendError> {
        // Posts come first, so that their keys are looked at first.
        let mut outcomes = self.inner.journal.append_all([posts, with].concat()).await?;
        let of_with = outcomes.split_off(posts.len());
        Ok((outcomes, of_with))
    }

    fn seal_drafts(&self, ended_by: &HashSet<(Room, String)>) {
        let places = self.places();
        for (room, transaction) in ended_by {
            let drafts = places.busy.get(room).map_or(&[][..], |busy| &busy.drafts);
            drafts.iter().filter(|draft| draft.ended_by == *transaction).for_each(|draft| draft.end());
        }
    }

    /// Makes sure that a lane reads what was committed up to now.
    fn wake(&self, room: &Room, busy: &mut Busy) {
        busy.woken = true;
        if !busy.lane {
            busy.lane = true;
            let lane = lane::run(self.clone(), room.clone(), Arc::clone(&busy.gate));
            self.inner.tasks.spawn_to_end("outbox", lane);
        }
    }

    /// What the lane of a room does next, if `state` is what it knows.
    fn step(&self, room: &Room, state: &Undelivered) -> Step {
        let mut places = self.places();
        let Places { surfaces, busy: rooms, .. } = &mut *places;
        let Some(busy) = rooms.get_mut(room) else { return Step::End };
        if busy.woken {
            busy.woken = false;
            return Step::Read;
        }
        // All that was committed before this moment is in `state`.
        (busy.undelivered, busy.messages) = (state.len(), state.messages().count());
        busy.held.retain(|transaction, _| state.has(transaction));
        match surfaces.get(&room.surface) {
            Some(surface) if !state.is_empty() => Step::Send(Arc::clone(surface)),
            _ => {
                busy.lane = false;
                places.forget_idle(room);
                Step::End
            }
        }
    }

    /// The lane of a room ends with something undelivered that it may have sent.
    fn leave(&self, room: &Room, unsure_up_to: u64) {
        if let Some(busy) = self.places().busy.get_mut(room) {
            busy.lane = false;
            busy.unsure_up_to = busy.unsure_up_to.max(unsure_up_to);
        }
    }

    /// Whether what was queued at this version may have been sent by a lane before.
    fn is_unsure(&self, room: &Room, version: u64) -> bool {
        self.places().busy.get(room).is_some_and(|busy| version <= busy.unsure_up_to)
    }

    fn enter(&self, room: &Room, ended_by: String) -> (Arc<Draft>, Arc<Gate>) {
        let draft = Arc::new(Draft { ended_by, sealed: CancellationToken::new(), is_ended: AtomicBool::new(false) });
        let mut places = self.places();
        let busy = places.busy.entry(room.clone()).or_default();
        busy.drafts.push(Arc::clone(&draft));
        (draft, Arc::clone(&busy.gate))
    }

    fn exit(&self, room: &Room, draft: &Arc<Draft>) {
        let mut places = self.places();
        if let Some(busy) = places.busy.get_mut(room) {
            busy.drafts.retain(|other| !Arc::ptr_eq(other, draft));
            places.forget_idle(room);
        }
    }

    fn settled(&self, settled: &Settled) {
        let mut listeners = self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.send(settled.clone()).is_ok());
    }
}

impl Places {
    /// Whether what is on its way to this room can arrive in this run. A gateway talks on one surface: where there is another
    /// one, the room's is not coming.
    fn may_reach(&self, room: &Room) -> bool {
        self.surfaces.is_empty() || self.surfaces.contains_key(&room.surface)
    }

    fn forget_idle(&mut self, room: &Room) {
        let idle = |busy: &Busy| !busy.lane && !busy.woken && busy.undelivered == 0 && busy.drafts.is_empty();
        if self.busy.get(room).is_some_and(idle) {
            self.busy.remove(room);
        }
    }
}

/// Checks that the snapshots of all rooms are what their events make.
///
/// # Errors
/// When the journal cannot be read.
pub fn verify(reader: &Reader) -> Result<Vec<Problem>, ReadError> {
    reader.verify_snapshots::<Undelivered>(events::STREAM)
}

fn unreadable(error: ReadError) -> Refusal {
    Refusal::internal("the outbox cannot be read from the journal", error)
}

#[cfg(test)]
mod tests;
