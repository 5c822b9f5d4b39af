//! State from events. The same step makes the state of a whole stream at start-up and keeps a live
//! state up to date after an append, so that the two cannot differ.

use crate::{Decoded, DomainEvent, ReadError, Recorded};

/// A state that is made of one stream's events and of nothing else: no clock, no I/O.
pub trait Fold: Default + Send + 'static {
    /// The events that it is made of.
    type Event: DomainEvent;
    /// What it says of an event that cannot follow from those before it; [`Infallible`] if every
    /// event can.
    ///
    /// [`Infallible`]: std::convert::Infallible
    type Error: std::error::Error + Send + Sync + 'static;

    /// Takes one event in.
    ///
    /// # Errors
    /// When the event cannot follow from those before it. The state is of no more use then.
    fn apply(&mut self, event: &Self::Event, recorded: &Recorded) -> Result<(), Self::Error>;
}

/// A state and the version of its stream up to which it is made; the default is that of a stream
/// without events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded<F> {
    /// The state.
    pub state: F,
    /// Version of the last event in it; 0 when there was none. What the next append expects.
    pub version: u64,
}

impl<F: Fold> Loaded<F> {
    /// Takes in the next event of the same stream, such as one of [`crate::Appended::events`]. An
    /// event that the state has already in it changes nothing.
    ///
    /// # Errors
    /// When the event is not the next one, does not decode, is unknown and not to be skipped, or
    /// is refused by the state. The state is of no more use then: load it again.
    pub fn advance(&mut self, recorded: &Recorded) -> Result<(), ReadError> {
        let Recorded { stream, version, .. } = recorded;
        let (stream, version, expected) = (|| stream.clone(), *version, self.version + 1);
        if version < expected {
            return Ok(());
        }
        if version > expected {
            return Err(ReadError::Gap { stream: stream(), expected, found: version });
        }
        match recorded.decode::<F::Event>() {
            Ok(Decoded::Known(event)) => {
                self.state.apply(&event, recorded).map_err(|error| ReadError::Apply {
                    stream: stream(),
                    version,
                    source: Box::new(error),
                })?;
            }
            Ok(Decoded::Unknown) if recorded.skippable => {}
            Ok(Decoded::Unknown) => {
                let kind = recorded.kind.to_string();
                return Err(ReadError::UnknownKind { stream: stream(), version, kind });
            }
            Err(source) => {
                return Err(ReadError::Decode { stream: stream(), version, source });
            }
        }
        self.version = version;
        Ok(())
    }
}
