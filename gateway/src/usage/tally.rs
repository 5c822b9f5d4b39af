//! What the journal holds of a project's use of the model, and the sums that are folded from it.
//!
//! Stream `usage/<project>`. Pure: it knows neither prices nor budgets nor what time it is. All that it keeps is bounded,
//! whatever names a model or a room gives itself.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{AddAssign, RangeInclusive};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use journal::{DomainEvent, Fold, Recorded, Snapshot};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::chat::Room;

/// The kind of the streams.
pub(super) const STREAM: &str = "usage";
/// Days with use that are kept.
const DAYS: usize = 62;
/// Turns that are kept one by one.
const TURNS: usize = 50;
/// Models that are told apart in one sum; the others are summed as [`OTHER`].
const MODELS: usize = 16;
/// Rooms that are told apart in one day; the others count as no room.
const ROOMS: usize = 64;
/// What the models beyond [`MODELS`] are summed as.
pub const OTHER: &str = "other models";

/// Tokens by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the request, neither read from the cache nor written to it.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
    /// Of the request, read from the cache.
    pub cache_read: u64,
    /// Of the request, written to the cache.
    pub cache_write: u64,
}

impl Tokens {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.input.saturating_add(self.output).saturating_add(self.cache_read).saturating_add(self.cache_write)
    }
}

impl AddAssign for Tokens {
    fn add_assign(&mut self, more: Self) {
        self.input = self.input.saturating_add(more.input);
        self.output = self.output.saturating_add(more.output);
        self.cache_read = self.cache_read.saturating_add(more.cache_read);
        self.cache_write = self.cache_write.saturating_add(more.cache_write);
    }
}

/// What happens to a project's use of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum UsageEvent {
    /// The model has answered, or began to.
    #[serde(rename = "usage.counted")]
    Counted {
        /// The turn that asked; nothing when none ran.
        turn: Option<Uuid>,
        /// The room of that turn.
        room: Option<Room>,
        /// The model, by the name that it answers with.
        model: String,
        /// What it counted.
        #[serde(flatten)]
        tokens: Tokens,
        /// How many requests these are.
        requests: u64,
    },
    /// A turn is over.
    #[serde(rename = "usage.turn_ended")]
    TurnEnded {
        /// Which one.
        turn: Uuid,
        /// Its room.
        room: Room,
        /// How long it took, in milliseconds.
        millis: u64,
    },
}

impl DomainEvent for UsageEvent {
    const KINDS: &'static [&'static str] = &["usage.counted", "usage.turn_ended"];
}

/// What one model was used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Its tokens.
    pub tokens: Tokens,
    /// Requests that it answered.
    pub requests: u64,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.requests = self.requests.saturating_add(more.requests);
    }
}

/// What was used, in a time and a place that its owner knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Turns that ended.
    pub turns: u64,
    /// How long they took together, in milliseconds.
    pub millis: u64,
    /// By model.
    pub models: BTreeMap<String, Amount>,
}

impl Used {
    /// All models together.
    pub fn amount(&self) -> Amount {
        self.models.values().fold(Amount::default(), |mut sum, amount| {
            sum += *amount;
            sum
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.turns == 0 && self.models.is_empty()
    }

    fn add(&mut self, model: &str, amount: Amount) {
        let room = self.models.len() < MODELS || self.models.contains_key(model);
        *self.models.entry(if room { model } else { OTHER }.to_owned()).or_default() += amount;
    }

    fn add_turn(&mut self, millis: u64) {
        self.turns = self.turns.saturating_add(1);
        self.millis = self.millis.saturating_add(millis);
    }

    /// Takes another in.
    pub fn merge(&mut self, other: &Self) {
        self.turns = self.turns.saturating_add(other.turns);
        self.millis = self.millis.saturating_add(other.millis);
        for (model, amount) in &other.models {
            self.add(model, *amount);
        }
    }
}

/// What was used in a room, or in none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    room: Option<Room>,
    used: Used,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Its id.
    pub id: Uuid,
    /// What it used; its count of turns is 1 once it is over.
    pub used: Used,
}

/// A project's use of the model. Days are those of UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    days: BTreeMap<Date, Vec<Place>>,
    turns: VecDeque<Turn>,
}

/// The day of a moment, by UTC.
pub fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

impl Tally {
    /// What was used on these days, in all rooms.
    pub fn sum(&self, days: RangeInclusive<Date>) -> Used {
        let mut sum = Used::default();
        self.places(days).for_each(|place| sum.merge(&place.used));
        sum
    }

    /// What was used on these days, by room; what belongs to no room has none.
    pub fn by_room(&self, days: RangeInclusive<Date>) -> BTreeMap<Option<Room>, Used> {
        let mut rooms: BTreeMap<Option<Room>, Used> = BTreeMap::new();
        for place in self.places(days) {
            rooms.entry(place.room.clone()).or_default().merge(&place.used);
        }
        rooms
    }

    /// A turn, while it is among the latest.
    pub fn turn(&self, id: Uuid) -> Option<&Turn> {
        self.turns.iter().rev().find(|turn| turn.id == id)
    }

    /// The turn that ended last.
    pub fn last_turn(&self) -> Option<&Turn> {
        self.turns.iter().rev().find(|turn| turn.used.turns > 0)
    }

    fn places(&self, days: RangeInclusive<Date>) -> impl Iterator<Item = &Place> {
        // A range that ends before it begins holds nothing; the map would refuse it.
        let days = (days.start() <= days.end()).then_some(days);
        days.into_iter().flat_map(|days| self.days.range(days)).flat_map(|(_, places)| places)
    }

    fn place(&mut self, at: Timestamp, room: Option<&Room>) -> &mut Used {
        let day = day(at);
        self.days.entry(day).or_default();
        // The oldest go. A clock that was wrong once costs one day's place, not all of them.
        while self.days.len() > DAYS {
            let oldest = self.days.keys().copied().find(|known| *known != day);
            oldest.and_then(|oldest| self.days.remove(&oldest));
        }
        let places = self.days.entry(day).or_default();
        let known = |room: Option<&Room>| places.iter().position(|place| place.room.as_ref() == room);
        let index = known(room).or_else(|| if places.len() < ROOMS { None } else { known(None) });
        let index = index.unwrap_or_else(|| {
            let room = if places.len() < ROOMS { room.cloned() } else { None };
            places.push(Place { room, used: Used::default() });
            places.len() - 1
        });
        &mut places[index].used
    }

    fn turn_mut(&mut self, id: Uuid) -> &mut Used {
        let index = self.turns.iter().rposition(|turn| turn.id == id).unwrap_or_else(|| {
            if self.turns.len() >= TURNS {
                self.turns.pop_front();
            }
            self.turns.push_back(Turn { id, used: Used::default() });
            self.turns.len() - 1
        });
        &mut self.turns[index].used
    }
}

impl Fold for Tally {
    type Event = UsageEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &UsageEvent, recorded: &Recorded) -> Result<(), Self::Error> {
        match event {
            UsageEvent::Counted { turn, room, model, tokens, requests } => {
                let amount = Amount { tokens: *tokens, requests: *requests };
                self.place(recorded.time, room.as_ref()).add(model, amount);
                if let Some(turn) = turn {
                    self.turn_mut(*turn).add(model, amount);
                }
            }
            UsageEvent::TurnEnded { turn, room, millis } => {
                self.place(recorded.time, Some(room)).add_turn(*millis);
                self.turn_mut(*turn).add_turn(*millis);
            }
        }
        Ok(())
    }
}

impl Snapshot for Tally {
    const VERSION: u32 = 1;
}
