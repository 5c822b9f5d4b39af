//! Which mark is to be shown next: the newest of every message, at a pace that leaves room for messages.
//!
//! No clock and no homeserver here. What a homeserver shows of ours is known while this run has shown it, or has
//! asked for it; of a message that an earlier run may have marked it is unknown, and asked for first.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use matrix_sdk::ruma::{OwnedEventId, OwnedRoomId};
use tokio::time::Instant;

use crate::chat::Mark;

/// How long a message has to wait before that is shown. An ordinary message never waits so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many reactions may be shown in a row.
const BURST: u32 = 3;
/// So often one more. With the redaction that it will cost, this takes half of what a stock homeserver allows.
const PACE: Duration = Duration::from_secs(20);
/// The shortest pause after the homeserver wanted no messages, or failed.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause of our own choice.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often a receipt is tried.
const RECEIPT_TRIES: u32 = 5;
/// How many messages are kept in mind that carry a reaction or shall.
const CAPACITY: usize = 1024;
/// How many messages are remembered as never marked.
const LIVE: usize = 4096;

/// A message, by room and event.
pub(in crate::chat::matrix) type Key = (OwnedRoomId, OwnedEventId);

/// A reaction of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The message waits.
    Waits,
    /// It will not be answered.
    Failed,
}

impl Sign {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Waits, Self::Failed];

    /// As it is shown: with the selector that clients send too, so that equal signs are counted together.
    pub(super) fn emoji(self) -> &'static str {
        match self {
            Self::Waits => "⏳\u{FE0F}",
            Self::Failed => "⚠\u{FE0F}",
        }
    }

    /// Its name in transaction ids.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waits => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// Something to be done at the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Say that everything up to this message is read.
    Read(Key),
    /// Ask which reactions of ours are on the message.
    Ask(Key),
    /// Put one on it.
    Show(Key, Sign),
    /// Take one off it.
    TakeBack(Key, Sign, OwnedEventId),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is done; for [`Action::Show`] with the reaction's event.
    Done,
    /// The reaction is there.
    Shown(OwnedEventId),
    /// These are there.
    Found(Vec<(Sign, OwnedEventId)>),
    /// Trying again may help, after this time if the homeserver named one.
    Later(Option<Duration>),
    /// It will never be done.
    Never,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Do(Action),
    /// Nothing before this moment; or before something changes.
    Wait(Option<Instant>),
}

#[derive(Debug)]
struct Entry {
    wanted: Option<Sign>,
    /// From when on it is to be shown.
    due: Instant,
    /// What is on the message; `None` while that is unknown.
    shown: Option<Vec<(Sign, OwnedEventId)>>,
    /// The homeserver has refused to show it.
    refused: bool,
}

impl Entry {
    /// Whether nothing is left to be done, now or later.
    fn is_over(&self) -> bool {
        let Some(shown) = &self.shown else { return false };
        match self.wanted {
            None => shown.is_empty(),
            // Kept: it is to be taken back.
            Some(Sign::Waits) => false,
            Some(Sign::Failed) => shown.iter().map(|(sign, _)| *sign).eq([Sign::Failed]),
        }
    }
}

#[derive(Debug)]
struct Receipt {
    event: OwnedEventId,
    tries: u32,
}

/// The marks that are wanted, and those that are shown.
#[derive(Debug)]
pub(in crate::chat::matrix) struct Marks {
    /// The newest accepted message of each room whose receipt is not told yet.
    read: HashMap<OwnedRoomId, Receipt>,
    entries: HashMap<Key, Entry>,
    /// The entries, in the order in which they are served.
    order: VecDeque<Key>,
    /// The entry whose action is being carried out: what is on its message is not known until that is done.
    busy: Option<Key>,
    /// Messages that carry no reaction of ours: they came in this run.
    live: HashSet<Key>,
    live_order: VecDeque<Key>,
    /// Until then the pace is spent in advance.
    spent_until: Instant,
    /// Nothing is sent before.
    paused_until: Instant,
    pause: Duration,
}

impl Marks {
    pub(in crate::chat::matrix) fn new(now: Instant) -> Self {
        Self {
            read: HashMap::new(),
            entries: HashMap::new(),
            order: VecDeque::new(),
            busy: None,
            live: HashSet::new(),
            live_order: VecDeque::new(),
            spent_until: now,
            paused_until: now,
            pause: PAUSE,
        }
    }

    /// A message has come that no earlier run can have marked.
    pub(in crate::chat::matrix) fn live(&mut self, room: OwnedRoomId, event: OwnedEventId) {
        let key = (room, event);
        if self.live.insert(key.clone()) {
            self.live_order.push_back(key);
        }
        if self.live_order.len() > LIVE
            && let Some(oldest) = self.live_order.pop_front()
        {
            self.live.remove(&oldest);
        }
    }

    /// The homeserver wanted no message: marks stay back until it has wanted one again.
    pub(in crate::chat::matrix) fn yield_to_messages(&mut self, now: Instant, asked: Option<Duration>) {
        self.paused_until = self.paused_until.max(now + asked.unwrap_or_default() + PAUSE);
    }

    /// Takes over what has become of a message.
    pub(super) fn want(&mut self, now: Instant, key: Key, mark: Mark) {
        let wanted = match mark {
            Mark::Accepted => {
                self.read.insert(key.0.clone(), Receipt { event: key.1.clone(), tries: 0 });
                None
            }
            Mark::Waiting => Some(Sign::Waits),
            Mark::Running | Mark::Delivered => None,
            Mark::Failed => Some(Sign::Failed),
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.wanted != wanted {
                entry.wanted = wanted;
                entry.due = due(now, wanted);
            }
            if entry.is_over() && self.busy.as_ref() != Some(&key) {
                self.forget(&key);
            }
            return;
        }
        let live = self.live.contains(&key);
        // A message that is accepted again will be marked again, and nothing is wrong about it yet.
        if mark == Mark::Accepted || live && wanted.is_none() {
            return;
        }
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        let entry = Entry { wanted, due: due(now, wanted), shown: live.then(Vec::new), refused: false };
        self.entries.insert(key.clone(), entry);
        self.order.push_back(key);
    }

    /// What is to be done. What it gives is to be carried out, and reported by [`Marks::done`].
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if let Some((room, Receipt { event, .. })) = self.read.iter().next() {
            // Receipts are no messages, but a homeserver in trouble is left alone.
            if now < self.paused_until {
                return Next::Wait(Some(self.paused_until));
            }
            return Next::Do(Action::Read((room.clone(), event.clone())));
        }
        let free = self.spent_until.checked_sub(PACE * (BURST - 1)).unwrap_or(now);
        let mut earliest: Option<Instant> = None;
        for key in &self.order {
            let Some(entry) = self.entries.get(key) else { continue };
            let (at, action) = match (&entry.shown, entry.wanted) {
                (None, _) => (entry.due, Action::Ask(key.clone())),
                (Some(shown), wanted) => match (shown.iter().find(|(sign, _)| Some(*sign) != wanted), wanted) {
                    (Some((sign, reaction)), _) => (now, Action::TakeBack(key.clone(), *sign, reaction.clone())),
                    (None, Some(sign)) if shown.is_empty() => (entry.due.max(free), Action::Show(key.clone(), sign)),
                    (None, _) => continue,
                },
            };
            let at = at.max(self.paused_until);
            if at <= now {
                if let Action::Show(key, _) = &action {
                    self.spent_until = self.spent_until.max(now) + PACE;
                    // From now on there may be one.
                    self.live.remove(key);
                }
                self.busy = Some(key.clone());
                return Next::Do(action);
            }
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
        }
        Next::Wait(earliest)
    }

    /// Takes over what came of an action.
    pub(super) fn done(&mut self, now: Instant, action: Action, outcome: Outcome) {
        self.busy = None;
        if let Outcome::Later(asked) = outcome {
            self.paused_until = self.paused_until.max(now + self.pause.max(asked.unwrap_or_default()));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            match action {
                Action::Read((room, _)) => {
                    if let Some(receipt) = self.read.get_mut(&room) {
                        receipt.tries += 1;
                    }
                    // The next message brings a newer one.
                    self.read.retain(|_, receipt| receipt.tries < RECEIPT_TRIES);
                }
                Action::Show(key, _) => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        // Without an answer it may have come through.
                        if asked.is_none() {
                            entry.shown = None;
                        }
                        if entry.is_over() {
                            self.forget(&key);
                            return;
                        }
                    }
                    self.serve_last(key);
                }
                Action::Ask(key) | Action::TakeBack(key, ..) => self.serve_last(key),
            }
            return;
        }
        self.pause = PAUSE;
        let key = match &action {
            Action::Read((room, event)) => {
                // A newer one may be wanted already.
                if self.read.get(room).is_some_and(|receipt| receipt.event == *event) {
                    self.read.remove(room);
                }
                return;
            }
            Action::Ask(key) | Action::Show(key, _) | Action::TakeBack(key, ..) => key.clone(),
        };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        match (action, outcome) {
            (Action::Ask(_), Outcome::Found(found)) => {
                let useless = entry.refused && found.is_empty() && entry.wanted.is_some();
                entry.shown = Some(found);
                if useless {
                    self.forget(&key);
                    return;
                }
            }
            // The event is not to be had, and no reaction on it either.
            (Action::Ask(_), _) => entry.shown = Some(Vec::new()),
            (Action::Show(_, sign), Outcome::Shown(reaction)) => {
                entry.shown.get_or_insert_default().push((sign, reaction));
            }
            (Action::Show(..), _) if entry.refused => {
                self.forget(&key);
                return;
            }
            // It may be there already: a homeserver refuses the same reaction twice.
            (Action::Show(..), _) => {
                entry.refused = true;
                entry.shown = None;
            }
            (Action::TakeBack(_, _, reaction), _) => {
                entry.shown.get_or_insert_default().retain(|(_, shown)| *shown != reaction);
            }
            (Action::Read(_), _) => {}
        }
        if entry.is_over() {
            self.forget(&key);
        }
    }

    /// The others first, next time.
    fn serve_last(&mut self, key: Key) {
        if let Some(at) = self.order.iter().position(|other| *other == key) {
            self.order.remove(at);
            self.order.push_back(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        self.entries.remove(key);
        self.order.retain(|other| other != key);
    }
}

fn due(now: Instant, wanted: Option<Sign>) -> Instant {
    if wanted == Some(Sign::Waits) { now + PATIENCE } else { now }
}

#[cfg(test)]
mod tests;
