//! The way to a stream's events. The file has no index from streams to events: 64 streams that are
//! appended to in one transaction would change 64 of its pages. A stream's row says where its last
//! event stands, each event says where the one before it stands, and one far before it, to which
//! one can jump. The jumps are those of a skew-binary list (E. W. Myers, "An applicative
//! random-access stack", 1983): every event is found in a logarithmic number of steps, and an
//! append changes nothing but the stream's row.
//!
//! A link is believed only if the event that stands there is the one that it is to lead to. The row
//! is believed where it names an event of its stream: that none comes after it is for
//! [`crate::Reader::verify`] to see.

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use crate::{ReadError, StreamId, store};

/// Where an event stands; all zeros before a stream's first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) version: u64,
    pub(crate) position: u64,
}

/// Where a stream ends.
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// The stream's row.
    pub(crate) row: i64,
    /// Its last event.
    pub(crate) last: Place,
}

/// What an event is linked to, as positions; 0 where there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) before: u64,
    pub(crate) jump: u64,
}

/// The version that an event's jump leads to; 0 when there is none.
///
/// Versions are summed up from the largest numbers of the form 2ⁿ − 1, each of which is a tree of
/// events; a jump passes over the last tree.
pub(crate) fn jump_version(version: u64) -> u64 {
    let mut passed = 0;
    while passed < version {
        let rest = version - passed;
        let tree = (1 << (rest + 1).ilog2()) - 1;
        if tree == rest {
            break;
        }
        passed += tree;
    }
    passed
}

/// The events on the way of jumps from a stream's last event to its first: all that is needed to
/// link the next one. A logarithmic number of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spine(Vec<Place>);

impl Spine {
    /// Follows the jumps from a stream's end.
    pub(crate) fn read(connection: &Connection, stream: &StreamId, end: End) -> Result<Self, ReadError> {
        let mut way = Way::new(connection, stream, end.row)?;
        let mut places = Vec::new();
        let mut at = end.last;
        while at.version > 0 {
            places.push(at);
            at = Place { version: jump_version(at.version), position: way.links(at)?.jump };
        }
        places.reverse();
        Ok(Self(places))
    }

    /// The stream's last event.
    pub(crate) fn last(&self) -> Place {
        self.0.last().copied().unwrap_or_default()
    }

    /// What the next event is to be linked to.
    pub(crate) fn next(&self) -> Links {
        let last = self.last();
        let target = jump_version(last.version + 1);
        let jump = self.0.iter().rev().find(|place| place.version <= target);
        Links { before: last.position, jump: jump.map_or(0, |jump| jump.position) }
    }

    /// Takes the next event in.
    pub(crate) fn grow(&mut self, position: u64) {
        let version = self.last().version + 1;
        let target = jump_version(version);
        while self.last().version > target {
            self.0.pop();
        }
        self.0.push(Place { version, position });
    }
}

/// Where the events of a stream stand, from one version to another, in order.
pub(crate) fn positions(
    connection: &Connection,
    stream: &StreamId,
    end: End,
    (from, to): (u64, u64),
) -> Result<Vec<u64>, ReadError> {
    let mut way = Way::new(connection, stream, end.row)?;
    let mut at = end.last;
    while at.version > to {
        let links = way.links(at)?;
        let jump = jump_version(at.version);
        at = if jump >= to {
            Place { version: jump, position: links.jump }
        } else {
            Place { version: at.version - 1, position: links.before }
        };
    }
    let mut positions = Vec::new();
    while at.version >= from {
        positions.push(at.position);
        if at.version == from {
            break;
        }
        at = Place { version: at.version - 1, position: way.links(at)?.before };
    }
    positions.reverse();
    Ok(positions)
}

/// Going from event to event of one stream.
struct Way<'a> {
    statement: CachedStatement<'a>,
    stream: &'a StreamId,
    row: i64,
}

impl<'a> Way<'a> {
    fn new(connection: &'a Connection, stream: &'a StreamId, row: i64) -> Result<Self, rusqlite::Error> {
        let statement =
            connection.prepare_cached("SELECT before, jump, stream, version FROM events WHERE position = ?1")?;
        Ok(Self { statement, stream, row })
    }

    /// The links of the stream's event at a place.
    fn links(&mut self, place: Place) -> Result<Links, ReadError> {
        let Place { version, position } = place;
        let found = self
            .statement
            .query_row((position,), |row| {
                let links = Links { before: store::position_of(row, 0)?, jump: store::position_of(row, 1)? };
                Ok((links, row.get::<_, i64>(2)?, store::version_of(row, 3)?))
            })
            .optional()?;
        match found {
            Some((links, row, found)) if (row, found) == (self.row, version) => Ok(links),
            _ => Err(ReadError::Unlinked { stream: self.stream.clone(), version, position }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the definition has it: a jump passes over two trees of the same size, or over the last event.
    #[test]
    fn jumps_are_those_of_a_skew_binary_list() {
        let mut jumps = vec![0_u64];
        for version in 1..5000_u64 {
            let last = version - 1;
            let jump = |version: u64| jumps[usize::try_from(version).unwrap()];
            let (first, second) = (jump(last), jump(jump(last)));
            let merges = first > 0 && last - first == first - second;
            let expected = if merges { second } else { last };
            assert_eq!(jump_version(version), expected, "of {version}");
            jumps.push(expected);
        }
        assert_eq!(jump_version(u64::MAX >> 1), 0);
        assert_eq!(jump_version(1 << 62), (1 << 62) - 1);
    }

    #[test]
    fn a_spine_is_the_way_of_jumps() {
        let mut spine = Spine::default();
        let position = |version: u64| if version == 0 { 0 } else { version * 3 + 1 };
        for version in 1..2000 {
            let links = Links { before: position(version - 1), jump: position(jump_version(version)) };
            assert_eq!(spine.next(), links);
            spine.grow(position(version));
            assert_eq!(spine.last(), Place { version, position: position(version) });
            let mut way = vec![version];
            while jump_version(way[way.len() - 1]) > 0 {
                way.push(jump_version(way[way.len() - 1]));
            }
            let spine: Vec<_> = spine.0.iter().rev().map(|place| place.version).collect();
            assert_eq!(spine, way);
        }
    }

    proptest! {
        #[test]
        fn few_steps_lead_to_any_version(last in 1..=i64::MAX.unsigned_abs(), to in 1..=i64::MAX.unsigned_abs()) {
            let (mut at, to) = (last, to.min(last));
            let mut steps = 0;
            while at > to {
                at = if jump_version(at) >= to { jump_version(at) } else { at - 1 };
                steps += 1;
            }
            prop_assert!(steps <= 4 * 63, "{steps} steps from {last} to {to}");
        }
    }
}
