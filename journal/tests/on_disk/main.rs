//! The journal on a real file, through its public face alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod appending;
mod fixture;
mod flushing;
mod folding;
mod forgetting;
mod killing;
mod linking;
mod looking;
mod migrating;
mod opening;
mod reading;
mod remembering;
mod subscribing;
