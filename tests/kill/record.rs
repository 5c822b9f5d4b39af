//! The ledger while it is being written: shared by all that see something, with the time since the beginning.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::tests::person::Message;

use crate::{
    ledger::{Asked, Fault, Heard, Ledger, Outage, Said},
    plan::Target,
};

/// What has been seen so far.
#[derive(Debug)]
pub struct Record {
    began: Instant,
    ledger: Mutex<Ledger>,
}

impl Record {
    /// An empty one that begins now.
    pub fn new() -> Self {
        Self { began: Instant::now(), ledger: Mutex::default() }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
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
