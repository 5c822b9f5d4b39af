//! Against a real engine, which these tests need: images, hardened containers, exec, sshd without capabilities.
//!
//! Everything they make carries a label of its own and is gone afterwards, but for the layers of the base image, which
//! are the cache of the next run.

mod building;
mod containers;
mod harness;
mod ssh;
