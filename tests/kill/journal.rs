//! What `musher journal tail` prints, as far as it tells of attempts. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// The event that begins a turn.
const BEGUN: &str = "session.turn_begun";

/// The event that begins another attempt of a turn.
const RESUMED: &str = "session.turn_resumed";

/// A turn that was tried more than once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// The number of its last attempt.
    pub attempts: u64,
    /// The events that it answers.
    pub answers: Vec<String>,
}

/// The turns that had more than one attempt.
pub fn retried(printed: &str) -> BTreeMap<String, Retried> {
    let mut turns: BTreeMap<String, Retried> = BTreeMap::new();
    for data in of_kind(printed, RESUMED) {
        if let (Some(turn), Some(attempt)) = (data["turn"].as_str(), data["attempt"].as_u64()) {
            let turn = turns.entry(turn.to_owned()).or_default();
            turn.attempts = attempt.max(turn.attempts);
        }
    }
    for data in of_kind(printed, BEGUN) {
        if let Some(turn) = data["turn"].as_str().and_then(|turn| turns.get_mut(turn)) {
            let events = data["answers"].as_array().into_iter().flatten();
            turn.answers.extend(events.filter_map(|answer| answer["event_id"].as_str().map(str::to_owned)));
        }
    }
    turns
}

/// The data of all events of a kind.
fn of_kind(printed: &str, kind: &str) -> impl Iterator<Item = Value> {
    let lines = printed.lines().filter_map(move |line| Some(line.split_once(kind)?.1));
    lines.filter_map(|rest| data(&rest[rest.find('{')?..]))
}

/// The lines that name the turn.
pub fn about(printed: &str, turn: &str) -> String {
    printed.lines().filter(|line| line.contains(turn)).collect::<Vec<_>>().join("\n")
}

/// The first value of the text; people's words may follow it.
fn data(text: &str) -> Option<Value> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_were_tried_again_are_read_from_what_is_printed() {
        let printed = "\
            7 2026-01-02T03:04:05.006Z session/a b@3 session.turn_begun v1 by gateway {\"turn\":\"t1\",\"answers\":[{\"event_id\":\"$1\",\"sender\":\"@ann:x\"}]}\n\
            8 2026-01-02T03:04:05.007Z session/a b@4 session.turn_resumed v1 by gateway {\"turn\":\"t1\",\"attempt\":2}\n\
            9 2026-01-02T03:04:05.008Z session/a c@4 session.turn_resumed v1 by gateway {\"turn\":\"t2\",\"attempt\":2} «x»\n\
            9 2026-01-02T03:04:05.008Z session/a c@5 session.turn_resumed v1 by gateway {\"turn\":\"t2\",\"attempt\":3}\n";
        let [first, second] =
            [(2, vec!["$1".to_owned()]), (3, vec![])].map(|(attempts, answers)| Retried { attempts, answers });
        assert_eq!(retried(printed), BTreeMap::from([("t1".to_owned(), first), ("t2".to_owned(), second)]));
        assert_eq!(about(printed, "t1").lines().count(), 2);
    }
}
