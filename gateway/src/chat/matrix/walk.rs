//! Walking back through a room's history, to hand over what was said in a gap.
//!
//! A gap may be of any length, and nothing in it may be left out: the walk goes back page by page until it
//! meets the frontier, and then forwards again, oldest first. Of the pages it keeps so many as a bound
//! allows, the oldest ones, for they are wanted first; of the others it keeps the tokens, and asks again.

use jiff::Timestamp;
use matrix_sdk::{
    Room as SdkRoom,
    deserialized_responses::TimelineEvent,
    room::{Messages, MessagesOptions},
    ruma::{OwnedUserId, ServerName, UInt, api::client::filter::RoomEventFilter, assign},
};
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::{
    MatrixSurface,
    answered::Answered,
    failure::Failure,
    intake::{self, Own, Reading},
    sync::{Halt, Hearing},
};

/// How many events a page has.
const PAGE: u32 = 100;
/// How many bytes of events a walk keeps.
const KEPT: usize = 4 << 20;
/// What a walk looks at.
const WALKED_TYPES: [&str; 5] =
    ["m.room.message", "m.room.encrypted", "m.room.member", "m.room.redaction", "m.reaction"];

/// Where a walk ends, if it does not meet the bot's coming into the room before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Until {
    /// A token of the stream.
    Token(String),
    /// What was said before this, by the clock of our own homeserver, counts no more.
    Time(Timestamp),
}

/// The walk's turning point is reached, or the way to it is closed.
#[derive(Debug)]
pub(super) struct Walk {
    until: Until,
    /// Newest first.
    pages: Vec<Page>,
    /// How many of the newest pages have given their events up already.
    given_up: usize,
    /// The bytes of the events in `pages`.
    kept: usize,
    /// How many bytes it keeps.
    bound: usize,
    /// Whether the homeserver did not give everything up to `until`.
    cut: bool,
}

#[derive(Debug)]
struct Page {
    from: String,
    /// Where the next older page begins; `None` at the last.
    end: Option<String>,
    /// Oldest first; `None` when they are to be asked for again.
    events: Option<Vec<TimelineEvent>>,
}

impl Walk {
    /// Walks back from `from`, and learns what was answered. What is longer than there is time for fails as what does not answer.
    pub(super) async fn back(
        surface: &MatrixSurface,
        room: &SdkRoom,
        from: String,
        until: Until,
        own: &Own<'_>,
        answered: &mut Answered,
        hearing: &Hearing<'_>,
    ) -> Result<Self, Halt> {
        let mut walk = Self { until, pages: Vec::new(), given_up: 0, kept: 0, bound: KEPT, cut: false };
        let mut from = Some(from);
        while let Some(start) = from {
            if !walk.pages.is_empty() && hearing.is_late() {
                return Err(Halt::Failed(Failure::Transient { reason: "it is long".to_owned(), retry_after: None }));
            }
            let Some(page) = surface.page_back(room, &start, walk.until.token(), hearing).await? else {
                walk.cut = true;
                break;
            };
            let end = page.end.filter(|end| *end != start);
            page.chunk.iter().for_each(|event| answered.learn(event, own));
            let (events, over) = walk.until.of_page(page.chunk, own);
            from = if over { None } else { end };
            walk.keep(Page { from: start, end: from.clone(), events: Some(events) });
        }
        let (pages, cut) = (walk.pages.len(), walk.cut);
        info!(room = %room.room_id(), pages, cut, "walked back through what was said meanwhile");
        Ok(walk)
    }

    /// The events of the oldest page that was not given yet, oldest first; `None` after the newest.
    pub(super) async fn forward(
        &mut self,
        surface: &MatrixSurface,
        room: &SdkRoom,
        own: &Own<'_>,
        hearing: &Hearing<'_>,
    ) -> Result<Option<Vec<TimelineEvent>>, Halt> {
        let Some(page) = self.pages.pop() else { return Ok(None) };
        if let Some(events) = page.events {
            return Ok(Some(events));
        }
        let to = page.end.as_deref().or(self.until.token());
        let (mut newest_first, mut from) = (Vec::new(), Some(page.from));
        // A homeserver may give less at once than it did before.
        while let Some(start) = from {
            let Some(again) = surface.page_back(room, &start, to, hearing).await? else {
                self.cut = true;
                break;
            };
            from = again.end.filter(|end| *end != start && Some(end.as_str()) != to);
            newest_first.extend(again.chunk);
        }
        Ok(Some(self.until.of_page(newest_first, own).0))
    }

    /// A name for what the homeserver did not give of this walk, if so: the same when the walk is done again, whatever
    /// was said since.
    pub(super) fn missed(&self) -> Option<String> {
        self.cut.then(|| self.until.name())
    }

    fn keep(&mut self, page: Page) {
        let size =
            |page: &Page| -> usize { page.events.iter().flatten().map(|event| event.raw().json().get().len()).sum() };
        self.kept += size(&page);
        self.pages.push(page);
        // The page that has just come is the oldest yet, and stays.
        while self.kept > self.bound && self.given_up + 1 < self.pages.len() {
            let newest = &mut self.pages[self.given_up];
            self.kept -= size(newest);
            newest.events = None;
            self.given_up += 1;
        }
    }
}

impl Until {
    /// A name for the gap that ends there.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Token(token) => token.clone(),
            Self::Time(since) => since.to_string(),
        }
    }

    fn token(&self) -> Option<&str> {
        match self {
            Self::Token(token) => Some(token),
            Self::Time(_) => None,
        }
    }

    /// What counts of a page, oldest first, and whether nothing older counts.
    fn of_page(&self, mut newest_first: Vec<TimelineEvent>, own: &Own<'_>) -> (Vec<TimelineEvent>, bool) {
        let mut over = false;
        if let Some(joined) = newest_first.iter().position(|event| is_own_join(event, own)) {
            newest_first.truncate(joined);
            over = true;
        }
        if let Self::Time(since) = self {
            // An event bears any time that its sender's homeserver likes. Only our own one's clock is believed: what
            // others date back is given, for the inbox knows what it has had.
            let counts_no_more =
                |event: &TimelineEvent| is_older(event, *since) && is_from(event, own.user.server_name());
            if newest_first.iter().all(|event| is_older(event, *since))
                && let Some(end) = newest_first.iter().position(counts_no_more)
            {
                newest_first.truncate(end);
                over = true;
            }
            newest_first.retain(|event| !counts_no_more(event));
        }
        newest_first.reverse();
        (newest_first, over)
    }
}

/// Whether the event was sent before this, by its sender's homeserver.
pub(super) fn is_older(event: &TimelineEvent, since: Timestamp) -> bool {
    let sent = event.timestamp().map(|sent| i64::from(sent.get()));
    sent.is_some_and(|sent| sent < since.as_millisecond())
}

/// Whether the event was sent by a user of this homeserver, which has dated it then.
fn is_from(event: &TimelineEvent, server: &ServerName) -> bool {
    event.sender().is_some_and(|sender| sender.server_name() == server)
}

/// Whether the bot came into the room by this event: what stands before was not said to it.
pub(super) fn is_own_join(event: &TimelineEvent, own: &Own<'_>) -> bool {
    event.raw().deserialize().is_ok_and(|event| matches!(intake::read(event, own), Reading::Joined))
}

/// One page of a room's history, newest first.
pub(super) async fn page(
    room: &SdkRoom,
    from: Option<&str>,
    to: Option<&str>,
    types: &[&str],
    senders: Option<Vec<OwnedUserId>>,
) -> Result<Messages, Failure> {
    let filter = assign!(RoomEventFilter::with_lazy_loading(), {
        types: Some(types.iter().map(|kind| (*kind).to_owned()).collect()),
        senders,
    });
    let options = assign!(MessagesOptions::backward(), {
        from: from.map(str::to_owned), to: to.map(str::to_owned), limit: UInt::from(PAGE), filter,
    });
    Ok(room.messages(options).await?)
}

impl MatrixSurface {
    /// A page of a walk, tried as long as there is time; `None` when the homeserver will never give it.
    async fn page_back(
        &self,
        room: &SdkRoom,
        from: &str,
        to: Option<&str>,
        hearing: &Hearing<'_>,
    ) -> Result<Option<Messages>, Halt> {
        let what = format!("the history of {}", room.room_id());
        let deadline = hearing.page_deadline(self.patience);
        let page = self.persist(&what, hearing, deadline, || page(room, Some(from), to, &WALKED_TYPES, None)).await?;
        if let Some(page) = &page {
            debug!(room = %room.room_id(), events = page.chunk.len(), end = page.end, "a page of history");
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::{serde::Raw, user_id};
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    fn own() -> Own<'static> {
        Own { user: user_id!("@musher:example.org"), names: Vec::new(), redacts_in_content: true }
    }

    fn event(id: &str, at_ms: i64) -> TimelineEvent {
        let event = json!({
            "type": "m.room.message", "event_id": id, "sender": "@ann:example.org", "origin_server_ts": at_ms,
            "content": {"msgtype": "m.text", "body": "x".repeat(100)},
        });
        TimelineEvent::from_plaintext(Raw::from_json(to_raw_value(&event).expect("an event")))
    }

    /// By another homeserver.
    fn dated(id: &str, at_ms: i64) -> TimelineEvent {
        let mut dated: Value = event(id, at_ms).raw().deserialize_as().expect("an event");
        dated["sender"] = json!("@ann:elsewhere.org");
        TimelineEvent::from_plaintext(Raw::from_json(to_raw_value(&dated).expect("an event")))
    }

    fn join() -> TimelineEvent {
        let event = json!({
            "type": "m.room.member", "event_id": "$join", "sender": "@musher:example.org", "origin_server_ts": 1,
            "state_key": "@musher:example.org", "content": {"membership": "join"},
        });
        TimelineEvent::from_plaintext(Raw::from_json(to_raw_value(&event).expect("an event")))
    }

    fn ids(events: &[TimelineEvent]) -> Vec<String> {
        events.iter().filter_map(TimelineEvent::event_id).map(|id| id.to_string()).collect()
    }

    #[test]
    fn a_page_ends_where_the_bot_came_in_and_a_time_ends_it_only_as_a_whole() {
        let since = Until::Time(Timestamp::from_millisecond(100).expect("a time"));
        let token = Until::Token("s1".to_owned());
        for (until, page, counts, over) in [
            (&token, vec![event("$2", 5), event("$1", 5)], vec!["$1", "$2"], false),
            (&token, vec![event("$2", 5), join(), event("$1", 5)], vec!["$2"], true),
            (&token, vec![], vec![], false),
            (&since, vec![event("$3", 150), event("$2", 0), event("$1", 120)], vec!["$1", "$3"], false),
            (&since, vec![event("$2", 99), event("$1", 98)], vec![], true),
            // Another homeserver dates as it likes.
            (&since, vec![dated("$2", 0), dated("$1", 0)], vec!["$1", "$2"], false),
            (&since, vec![event("$3", 150), dated("$2", 0), event("$1", 120)], vec!["$1", "$2", "$3"], false),
            (&since, vec![dated("$3", 0), event("$2", 99), dated("$1", 0)], vec!["$3"], true),
            (&since, vec![], vec![], false),
            (&since, vec![event("$2", 150), join()], vec!["$2"], true),
        ] {
            let (events, ended) = until.of_page(page, &own());
            assert_eq!((ids(&events), ended), (counts.into_iter().map(str::to_owned).collect(), over), "{until:?}");
        }
    }

    #[test]
    fn a_long_walk_keeps_the_oldest_pages_only() {
        let until = Until::Token("s1".to_owned());
        let mut walk = Walk { until, pages: Vec::new(), given_up: 0, kept: 0, bound: 1000, cut: false };
        for n in 0..10 {
            // Two pages fit.
            let events = vec![event(&format!("${n}a"), 1), event(&format!("${n}b"), 1)];
            walk.keep(Page { from: format!("t{n}"), end: None, events: Some(events) });
            assert!(walk.kept <= walk.bound, "{}", walk.kept);
        }
        let kept: Vec<bool> = walk.pages.iter().map(|page| page.events.is_some()).collect();
        assert_eq!(kept, [false, false, false, false, false, false, false, false, true, true]);
        // A page that is too large alone is kept all the same: it comes next.
        let large = (0..20).map(|n| event(&format!("$l{n}"), 1)).collect();
        walk.keep(Page { from: "large".to_owned(), end: None, events: Some(large) });
        assert_eq!(walk.pages.iter().filter(|page| page.events.is_some()).count(), 1);
    }
}
