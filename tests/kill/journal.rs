//! What `musher journal tail` prints, as far as it tells of turns. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

/// What the kinds of events begin with that tell of a turn.
const OF_TURNS: &str = "session.turn_";

/// A turn by what the gateway journaled of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// The events of the messages that it answers.
    pub answers: Vec<String>,
    /// When it began.
    pub begun: Duration,
    /// The number of its last attempt and when that began, if it had more than one.
    pub again: Option<(u64, Duration)>,
    /// How it ended, and when.
    pub end: Option<(String, Duration)>,
}

/// All turns by their ids. `since` makes a moment of a time of the day (UTC).
pub fn turns(printed: &str, since: impl Fn(Duration) -> Duration) -> BTreeMap<String, Turn> {
    let mut turns: BTreeMap<String, Turn> = BTreeMap::new();
    for line in printed.lines() {
        let Some((head, data)) = line.find('{').map(|at| line.split_at(at)) else { continue };
        let Some(kind) = head.split(' ').find_map(|word| word.strip_prefix(OF_TURNS)) else { continue };
        let (Some(data), Some(at)) = (first_value(data), head.split_whitespace().nth(1).and_then(of_day)) else {
            continue;
        };
        let Some(turn) = data["turn"].as_str().map(|id| turns.entry(id.to_owned()).or_default()) else { continue };
        let at = since(at);
        match kind {
            "begun" => {
                let answers = data["answers"].as_array().into_iter().flatten();
                turn.answers = answers.filter_map(|one| one["event_id"].as_str().map(str::to_owned)).collect();
                turn.begun = at;
            }
            "resumed" => turn.again = data["attempt"].as_u64().map(|attempt| (attempt, at)).max(turn.again),
            "finished" => turn.end = data["ending"].as_str().map(|ending| (ending.to_owned(), at)),
            _ => {}
        }
    }
    turns
}

/// The lines that name the turn.
pub fn about(printed: &str, turn: &str) -> String {
    printed.lines().filter(|line| line.contains(turn)).collect::<Vec<_>>().join("\n")
}

/// The time of the day in `2026-01-02T03:04:05.006Z`.
fn of_day(time: &str) -> Option<Duration> {
    let mut parts = time.split_once('T')?.1.strip_suffix('Z')?.split(':');
    let (hours, minutes): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    Some(Duration::from_secs((hours * 60 + minutes) * 60) + seconds)
}

/// The first value of the text; people's words may follow it.
fn first_value(text: &str) -> Option<Value> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_read_from_what_is_printed() {
        let printed = "\
            7 2026-01-02T00:00:05.006Z session/a b@3 session.turn_begun by gateway because of $1 {\"turn\":\"t1\",\"answers\":[{\"event_id\":\"$1\"},{\"event_id\":\"$2\"}]}\n\
            8 2026-01-02T00:01:05.007Z session/a b@4 session.turn_resumed by gateway {\"turn\":\"t1\",\"attempt\":2}\n\
            9 2026-01-02T01:01:05.008Z session/a b@5 session.turn_finished by sled x {\"turn\":\"t1\",\"ending\":\"answered\"}\n\
            9 2026-01-02T01:01:05.008Z outbox/b@9 send.queued by gateway {\"transaction\":\"turn-t1\"} «session.turn_begun {»\n\
            9 2026-01-02T01:01:06.000Z session/a c@4 session.turn_resumed by gateway {\"turn\":\"t2\",\"attempt\":2} «x»\n\
            9 2026-01-02T01:01:07.000Z session/a c@5 session.turn_resumed by gateway {\"turn\":\"t2\",\"attempt\":3}\n";
        let at = |seconds: u64, millis: u64| Duration::from_secs(seconds) + Duration::from_millis(millis);
        let turns = turns(printed, |of_day| of_day + Duration::from_secs(1));
        let first = Turn {
            answers: vec!["$1".to_owned(), "$2".to_owned()],
            begun: at(6, 6),
            again: Some((2, at(66, 7))),
            end: Some(("answered".to_owned(), at(3666, 8))),
        };
        assert_eq!(turns["t1"], first);
        assert_eq!(turns["t2"].again, Some((3, at(3668, 0))));
        assert_eq!(turns.len(), 2);
        assert_eq!(about(printed, "t1").lines().count(), 4);
    }
}
