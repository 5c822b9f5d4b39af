//! The end-to-end tests of Musher: the main job on real parts, through public doors alone.
//!
//! Each test has a home, a gateway and a project of its own, so they run side by side on one engine; only the
//! homeserver and the images are shared. Nothing is faked but the model.

mod away;
mod budget;
mod confinement;
mod console;
mod dialogue;
mod durability;
mod editors;
mod failpoints;
mod git_clone;
mod git_inside;
mod hostile;
mod journal;
mod limits;
mod matrix;
mod members;
mod model;
mod modes;
mod prose;
mod questions;
mod queue;
mod refusals;
mod restart;
mod scene;
mod secrets;
mod stacks;
mod stacks_languages;
mod turns;
mod undo;
mod warm;
