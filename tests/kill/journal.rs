//! What `musher journal tail` prints, as far as it tells of attempts. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// The event that begins another attempt of a turn.
const RESUMED: &str = "session.turn_resumed";

/// The number of the last attempt of each turn that had more than one.
pub fn attempts(printed: &str) -> BTreeMap<String, u64> {
    let mut attempts = BTreeMap::new();
    for line in printed.lines() {
        let Some((_, rest)) = line.split_once(RESUMED) else { continue };
        let Some(data) = rest.find('{').and_then(|at| data(&rest[at..])) else { continue };
        if let (Some(turn), Some(attempt)) = (data["turn"].as_str(), data["attempt"].as_u64()) {
            let last = attempts.entry(turn.to_owned()).or_insert(0);
            *last = attempt.max(*last);
        }
    }
    attempts
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
    fn attempts_are_read_from_what_is_printed() {
        let printed = "\
            7 2026-01-02T03:04:05.006Z session/a b@3 session.turn_begun v1 by gateway {\"turn\":\"t1\",\"answers\":[]}\n\
            8 2026-01-02T03:04:05.007Z session/a b@4 session.turn_resumed v1 by gateway {\"turn\":\"t1\",\"attempt\":2}\n\
            9 2026-01-02T03:04:05.008Z session/a c@4 session.turn_resumed v1 by gateway {\"turn\":\"t2\",\"attempt\":2} «x»\n\
            9 2026-01-02T03:04:05.008Z session/a c@5 session.turn_resumed v1 by gateway {\"turn\":\"t2\",\"attempt\":3}\n";
        assert_eq!(attempts(printed), BTreeMap::from([("t1".to_owned(), 2), ("t2".to_owned(), 3)]));
        assert_eq!(about(printed, "t1").lines().count(), 2);
    }
}
