//! The typed layer: enums of events to and from their stored form.
//! It knows nothing of `SQLite`.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{DecodeError, EncodeError, NewEvent, Recorded, tagged};

/// Why an older event could not be lifted to the next version.
pub type UpcastError = Box<dyn std::error::Error + Send + Sync>;

/// An enum of events, serialised adjacently tagged: `#[serde(tag = "kind", content = "data")]`,
/// each variant renamed to its kind, `noun.past_tense`.
///
/// A kind once written is never renamed. Its data may change: raise its [`version`] and say in
/// [`upcast`] how the older data becomes the newer.
///
/// [`version`]: DomainEvent::version
/// [`upcast`]: DomainEvent::upcast
pub trait DomainEvent: Serialize + DeserializeOwned {
    /// The kinds of all variants. A stored event of any other kind is [`Decoded::Unknown`].
    const KINDS: &'static [&'static str];

    /// The version in which `kind` is written now, from 1.
    fn version(kind: &str) -> u32 {
        let _ = kind;
        1
    }

    /// Whether programs that do not know `kind` may leave it out of a fold. Stored with each event
    /// when it is written.
    fn skippable(kind: &str) -> bool {
        let _ = kind;
        false
    }

    /// Lifts the data of an event of `kind` from `version` to `version + 1`; called once for each
    /// step up to [`DomainEvent::version`].
    ///
    /// # Errors
    /// When there is no such step, or `data` is not what that version promised.
    fn upcast(kind: &str, version: u32, data: Value) -> Result<Value, UpcastError> {
        let _ = data;
        Err(format!("nothing lifts {kind} from version {version}").into())
    }
}

/// A stored event as its reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<E> {
    /// Of a kind that the reader knows, lifted to its present version.
    Known(E),
    /// Of a kind that the reader does not know. Its bytes are in [`Recorded::data`].
    Unknown,
}

/// What serde makes of an adjacently tagged enum. A unit variant has no content.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tagged<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    data: Option<Box<RawValue>>,
}

impl NewEvent {
    /// The stored form of a typed event.
    ///
    /// # Errors
    /// When `event` does not serialise as [`DomainEvent`] asks.
    pub fn encode<E: DomainEvent>(event: &E) -> Result<Self, EncodeError> {
        let text = serde_json::to_string(event).map_err(EncodeError::Json)?;
        let Tagged { kind, data } = serde_json::from_str(&text).map_err(EncodeError::NotTagged)?;
        let Some(kind) = E::KINDS.iter().find(|listed| **listed == kind) else {
            return Err(EncodeError::UnlistedKind { kind: kind.into_owned() });
        };
        let (kind_version, skippable) = (E::version(kind), E::skippable(kind));
        Self::raw(*kind, kind_version, skippable, data.unwrap_or_else(|| RawValue::NULL.to_owned()))
    }

    /// The stored forms of several typed events, in order.
    ///
    /// # Errors
    /// As [`NewEvent::encode`].
    pub fn encode_all<'a, E: DomainEvent + 'a>(
        events: impl IntoIterator<Item = &'a E>,
    ) -> Result<Vec<Self>, EncodeError> {
        events.into_iter().map(Self::encode).collect()
    }

    /// An event whose meaning the caller does not know, for one who passes events on. `data` is
    /// written in version `kind_version` of the kind, from 1, and its bytes are kept as they are.
    ///
    /// # Errors
    /// When `kind` is not of the form `noun.past_tense`.
    pub fn raw(
        kind: impl Into<Cow<'static, str>>,
        kind_version: u32,
        skippable: bool,
        data: Box<RawValue>,
    ) -> Result<Self, EncodeError> {
        let kind = kind.into();
        if !is_kind(&kind) {
            return Err(EncodeError::KindName { kind: kind.into_owned() });
        }
        Ok(Self { kind, kind_version, skippable, data, texts: Vec::new() })
    }
}

impl Recorded {
    /// Whether another event, of whatever place, time and maker, tells the same of the same stream.
    /// Bytes decide first; data that differs only in white space or in the order of an object's
    /// keys is the same.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.stream == other.stream
            && self.kind == other.kind
            && self.kind_version == other.kind_version
            && self.skippable == other.skippable
            && same_json(self.data.get(), other.data.get())
    }

    /// The event as one of `E`, older data lifted first.
    ///
    /// # Errors
    /// When the kind is one of `E`'s: [`DecodeError::Newer`] when a newer version of this program
    /// has written it, [`DecodeError::Upcast`] when older data cannot be lifted,
    /// [`DecodeError::Malformed`] when the data does not decode.
    pub fn decode<E: DomainEvent>(&self) -> Result<Decoded<E>, DecodeError> {
        if !E::KINDS.contains(&&*self.kind) {
            return Ok(Decoded::Unknown);
        }
        let (kind, found, known) = (&self.kind, self.kind_version, E::version(&self.kind));
        if found > known {
            return Err(DecodeError::Newer { kind: kind.to_string(), found, known });
        }
        let malformed = |source| DecodeError::Malformed { kind: kind.to_string(), version: found, source };
        let mut lifted = None;
        for version in found..known {
            let data = match lifted {
                Some(data) => data,
                None => serde_json::from_str(self.data.get()).map_err(malformed)?,
            };
            let upcast = E::upcast(kind, version, data);
            lifted = Some(upcast.map_err(|source| DecodeError::Upcast { kind: kind.to_string(), version, source })?);
        }
        let lifted = lifted.map(|data| data.to_string());
        let data = lifted.as_deref().unwrap_or_else(|| self.data.get());
        E::deserialize(tagged::Tagged { kind, data }).map(Decoded::Known).map_err(malformed)
    }
}

/// `noun.past_tense`: two words of lower case letters, digits and `_`, each begun by a letter.
fn is_kind(kind: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    kind.split_once('.').is_some_and(|(noun, verb)| word(noun) && word(verb))
}

fn same_json(one: &str, other: &str) -> bool {
    let parse = serde_json::from_str::<Value>;
    one == other || matches!((parse(one), parse(other)), (Ok(one), Ok(other)) if one == other)
}
