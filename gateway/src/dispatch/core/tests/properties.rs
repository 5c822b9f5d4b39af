//! Whatever happens, in whatever order, with deaths in between.

use std::time::Duration;

use proptest::{
    collection::{btree_set, vec},
    prelude::*,
    sample::Index,
};
use uuid::Uuid;

use super::{
    LIMITS,
    model::{Model, Step},
    session,
};
use crate::{
    dispatch::{
        Common, SessionKey,
        core::{Limits, Scope},
    },
    people::Role,
};

fn project() -> impl Strategy<Value = Uuid> {
    (0..3u8).prop_map(|project| session(project, 0).project)
}

fn key() -> impl Strategy<Value = SessionKey> {
    (0..3u8, 0..2u8, any::<bool>()).prop_map(|(project, room, thread)| SessionKey {
        thread: thread.then(|| "thread".to_owned()),
        ..session(project, room)
    })
}

fn say() -> impl Strategy<Value = Step> {
    (key(), any::<bool>(), prop::option::of("one|two"), any::<bool>()).prop_map(
        |(session, admin, thread, interrupts)| {
            let rights = if admin { Role::Admin } else { Role::Member };
            Step::Say { session, common: Common { rights, thread: thread.map(Into::into) }, interrupts }
        },
    )
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        (0..2u8, btree_set(project(), 0..=3))
            .prop_map(|(room, projects)| Scope::Room { room: session(0, room).room, projects }),
        project().prop_map(Scope::Project),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => say(),
        4 => (0..3000u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        6 => any::<(Index, Index)>().prop_map(|(which, how)| Step::End { which, how }),
        1 => any::<Index>().prop_map(Step::Edit),
        2 => any::<(Index, bool)>().prop_map(|(which, late)| Step::Remove { which, late }),
        2 => scope().prop_map(Step::Stop),
        1 => project().prop_map(Step::Pause),
        1 => project().prop_map(Step::Unpause),
        1 => (0..6u8).prop_map(|after| Step::Die { after }),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (any::<bool>(), 1..6usize, 1..4usize).prop_map(|(coalesces, max_queue, max_turns)| {
        let window = if coalesces { LIMITS.window } else { Duration::ZERO };
        Limits { window, max_queue, max_turns, ..LIMITS }
    })
}

proptest! {
    /// Every message ends answered once, or visibly failed, stopped, dropped, removed or refused once. Order is kept
    /// within a session, rights and threads are never merged, one turn runs at a time per session and per project, and never more than
    /// the limit. Nothing that could start waits beyond its window, every stop is reported and leaves nothing that it covers,
    /// and at the end the core is empty. The model checks all that on each effect.
    #[test]
    fn every_message_ends_once(limits in limits(), steps in vec(step(), 1..120)) {
        let mut model = Model::new(limits);
        for step in steps {
            model.step(step)?;
        }
        model.drain()?;
    }
}
