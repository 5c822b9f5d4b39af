//! The ledger while it is being written: shared by all that see something, with the time since the beginning.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ::tests::person::Message;

use crate::{
    ledger::{Asked, Fault, Heard, Ledger, Outage, Said},
    plan::Target,
};

/// Longer than any run.
const DAY: Duration = Duration::from_hours(24);

/// What has been seen so far.
#[derive(Debug)]
pub struct Record {
    began: Instant,
    /// The same moment as a time of the day (UTC).
    began_at: Duration,
    ledger: Mutex<Ledger>,
}

impl Record {
    /// An empty one that begins now.
    pub fn new() -> Self {
        let since_the_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let of_day = Duration::from_secs(since_the_epoch.as_secs() % DAY.as_secs());
        let began_at = of_day + Duration::from_nanos(since_the_epoch.subsec_nanos().into());
        Self { began: Instant::now(), began_at, ledger: Mutex::default() }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A time of the day (UTC) that came since the beginning.
    pub fn at(&self, of_day: Duration) -> Duration {
        let since = (of_day + DAY).saturating_sub(self.began_at);
        since.checked_sub(DAY).unwrap_or(since)
    }

    /// The ledger as it is now.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something worth knowing when a fault is told.
    pub fn note(&self, what: impl Into<String>) {
        let entry = (self.now(), what.into());
        self.ledger().notes.push(entry);
    }

    /// A fault that shows outside the rooms.
    pub fn found(&self, fault: Fault, what: impl Into<String>) {
        self.ledger().found.push((fault, what.into()));
    }

    /// The model was asked.
    pub fn asked(&self, asked: impl FnOnce(Duration) -> Asked) {
        let asked = asked(self.now());
        self.ledger().asked.push(asked);
    }

    /// The person said something.
    pub fn said(&self, said: Said) {
        self.ledger().said.push(said);
    }

    /// The bot said something.
    pub fn heard(&self, room: usize, message: &Message) {
        let marks = &message.content["dev.musher"];
        let answers = marks["answers"].as_array().into_iter().flatten();
        let heard = Heard {
            at: self.now(),
            room,
            text: message.kind == "m.text",
            edit: message.edits.is_some(),
            body: message.body.clone(),
            answers: answers.filter_map(|event| event.as_str().map(str::to_owned)).collect(),
            transaction: marks["transaction"].as_str().unwrap_or_default().to_owned(),
        };
        self.ledger().heard.push(heard);
    }

    /// A part was killed between `from` and now, and what starts it again is not ours.
    pub fn killed(&self, what: Target, from: Duration) {
        let to = self.now();
        self.ledger().outages.push(Outage { what, from, to });
    }

    /// A gateway was found that had ended by itself.
    pub fn ended(&self) {
        let now = self.now();
        self.ledger().ended.push(now);
    }

    /// A part is away from now on; gives what to hand to [`Record::back`].
    pub fn away(&self, what: Target) -> usize {
        let from = self.now();
        let mut ledger = self.ledger();
        // Until it is known when it came back, it is away for ever.
        ledger.outages.push(Outage { what, from, to: Duration::MAX });
        ledger.outages.len() - 1
    }

    /// A part is back.
    pub fn back(&self, outage: usize) {
        let now = self.now();
        if let Some(outage) = self.ledger().outages.get_mut(outage) {
            outage.to = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_the_day_is_a_moment_also_beyond_midnight() {
        let record = Record { began_at: Duration::from_secs(86_390), ..Record::new() };
        for (of_day, since) in [(86_390, 0), (86_395, 5), (0, 10), (20, 30)] {
            assert_eq!(record.at(Duration::from_secs(of_day)), Duration::from_secs(since), "{of_day} s");
        }
    }
}
