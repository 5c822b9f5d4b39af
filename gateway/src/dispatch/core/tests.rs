//! The rules of the dispatcher: by example, by a model of the gateway around it, and by a reference for its order.

use std::time::Duration;

use uuid::Uuid;

use super::Limits;
use crate::{
    chat::{Room, SurfaceKind},
    dispatch::SessionKey,
};

mod examples;
mod fairness;
mod model;
mod properties;

const LIMITS: Limits =
    Limits { window: Duration::from_millis(1500), max_window: Duration::from_secs(8), max_queue: 100, max_turns: 4 };

fn session(project: u8, room: u8) -> SessionKey {
    SessionKey {
        project: Uuid::from_u128(u128::from(project)),
        room: Room { surface: SurfaceKind::Console, id: format!("room{room}") },
        thread: None,
    }
}
