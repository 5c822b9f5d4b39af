//! Who made an event happen and what it came from, as they stand in the file: a word, and behind a
//! space the id that belongs to it.

use std::borrow::Cow;

use crate::{Actor, Cause};

/// A column that is not of this form.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no known word with the id that belongs to it")]
pub(crate) struct Unreadable(String);

impl Actor {
    pub(crate) fn stored(&self) -> Cow<'static, str> {
        match self {
            Self::Gateway => "gateway".into(),
            Self::System => "system".into(),
            Self::Person(id) => format!("person {id}").into(),
            Self::Sled(id) => format!("sled {id}").into(),
        }
    }

    pub(crate) fn from_stored(text: &str) -> Result<Self, Unreadable> {
        Ok(match parts(text) {
            ("gateway", None) => Self::Gateway,
            ("system", None) => Self::System,
            ("person", Some(id)) => Self::Person(id.to_owned()),
            ("sled", Some(id)) => Self::Sled(id.to_owned()),
            _ => return Err(Unreadable(text.to_owned())),
        })
    }
}

impl Cause {
    pub(crate) fn stored(&self) -> Cow<'static, str> {
        match self {
            Self::None => "none".into(),
            Self::Command(id) => format!("command {id}").into(),
            Self::Event(id) => format!("event {id}").into(),
        }
    }

    pub(crate) fn from_stored(text: &str) -> Result<Self, Unreadable> {
        Ok(match parts(text) {
            ("none", None) => Self::None,
            ("command", Some(id)) => Self::Command(id.to_owned()),
            ("event", Some(id)) => Self::Event(id.parse().map_err(|_| Unreadable(text.to_owned()))?),
            _ => return Err(Unreadable(text.to_owned())),
        })
    }
}

fn parts(text: &str) -> (&str, Option<&str>) {
    text.split_once(' ').map_or((text, None), |(word, id)| (word, Some(id)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn what_is_stored_is_read_again(id: String, event: u128) {
            let actors = [Actor::Gateway, Actor::System, Actor::Person(id.clone()), Actor::Sled(id.clone())];
            for actor in actors {
                prop_assert_eq!(Actor::from_stored(&actor.stored()).unwrap(), actor);
            }
            for cause in [Cause::None, Cause::Command(id), Cause::Event(Uuid::from_u128(event))] {
                prop_assert_eq!(Cause::from_stored(&cause.stored()).unwrap(), cause);
            }
        }
    }

    #[test]
    fn nothing_else_is_read() {
        for text in ["", "nobody", "gateway ", "person", "sled", " person a", r#"{"type":"gateway"}"#] {
            Actor::from_stored(text).unwrap_err();
        }
        for text in ["", "none ", "command", "event", "event 7", r#"{"type":"none"}"#] {
            Cause::from_stored(text).unwrap_err();
        }
    }
}
