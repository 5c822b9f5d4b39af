//! `musher journal …`: looking at the journal beside the gateway that owns it.
//!
//! It reads, and writes nothing. What people said is shown to whoever may read the state directory anyway.

use std::{
    collections::HashMap,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use jiff::fmt::strtime;
use journal::{Actor, Cause, Journal, ReadError, Reader, Recorded, StreamId};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    gateway::Identity, git::audit, home::Home, outbox, projects::Project, refusal::Refusal, rooms::Remembered,
    sessions::Session, store, text, usage::Tally,
};

/// How often the journal is looked at for what is new.
const PAUSE: Duration = Duration::from_millis(200);
/// Events that are read at once.
const PAGE: usize = 500;
/// How much of a text is shown in a line, in characters.
const TEXT_CHARS: usize = 200;

fn open(path: &Path) -> Result<Reader, Refusal> {
    if !path.exists() {
        return Err(Refusal::usage("there is no journal here yet")
            .hint("`musher up` makes one; `--home` names another state directory."));
    }
    open_existing(path)
}

/// Opens a journal that is there, to look at it.
pub(crate) fn open_existing(path: &Path) -> Result<Reader, Refusal> {
    Journal::open_read_only(path).map_err(store::Journal::unopened)
}

fn unreadable(error: ReadError) -> Refusal {
    Refusal::internal("the journal cannot be read", error)
}

/// Prints the last `lines` events of all streams, and with `follow` what comes, until it is interrupted.
pub fn tail(home: &Home, lines: u64, follow: bool) -> Result<(), Refusal> {
    let reader = open(&home.journal())?;
    let mut position = reader.position().map_err(unreadable)?.saturating_sub(lines);
    loop {
        let events = reader.read_all(position, PAGE).map_err(unreadable)?;
        let all = events.len() < PAGE;
        position = events.last().map_or(position, |event| event.position);
        if !print(&reader, &events)? || (all && !follow) {
            return Ok(());
        }
        if all {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Prints one stream.
pub fn show(home: &Home, stream: &str) -> Result<(), Refusal> {
    let reader = open(&home.journal())?;
    let (kind, id) = stream.split_once('/').ok_or_else(|| {
        Refusal::usage(format!("{} is no stream", text::code(stream)))
            .hint("A stream is written as its kind, a slash and its id, as `musher journal tail` shows it.")
    })?;
    let events = reader.read(&StreamId::new(kind.to_owned(), id), 0).map_err(unreadable)?;
    if events.is_empty() {
        return Err(Refusal::usage(format!("there is no stream {}", text::code(stream)))
            .hint("`musher journal tail` shows what streams there are."));
    }
    print(&reader, &events).map(drop)
}

/// Goes over the whole journal: its form, and that every snapshot is what its events make. Whether all is well.
pub fn verify(home: &Home) -> Result<bool, Refusal> {
    let reader = open(&home.journal())?;
    let mut seen = reader.verify().map_err(unreadable)?;
    let problems = &mut seen.problems;
    problems.extend(reader.verify_snapshots::<Session>("session").map_err(unreadable)?);
    problems.extend(reader.verify_snapshots::<Remembered>("room").map_err(unreadable)?);
    problems.extend(outbox::verify(&reader).map_err(unreadable)?);
    problems.extend(reader.verify_snapshots::<Tally>("usage").map_err(unreadable)?);
    problems.extend(reader.verify_fold::<Project>("project").map_err(unreadable)?);
    problems.extend(reader.verify_fold::<Identity>("gateway").map_err(unreadable)?);
    problems.extend(reader.verify_fold::<audit::Uses>(audit::STREAM).map_err(unreadable)?);
    println!("{seen}");
    Ok(seen.problems.is_empty())
}

/// Prints events; `false` when nobody reads on.
fn print(reader: &Reader, events: &[Recorded]) -> Result<bool, Refusal> {
    let ids: Vec<Uuid> = events.iter().flat_map(|event| text_ids(&event.data)).collect();
    let texts = reader.texts(ids).map_err(unreadable)?;
    let mut out = io::stdout().lock();
    for event in events {
        if writeln!(out, "{}", line(event, &texts)).is_err() {
            return Ok(false);
        }
    }
    Ok(out.flush().is_ok())
}

/// The ids that an event's data names texts by.
fn text_ids(data: &serde_json::value::RawValue) -> Vec<Uuid> {
    let data: Value = serde_json::from_str(data.get()).unwrap_or_default();
    ["text", "quoted"].iter().filter_map(|key| data.get(key)?.as_str()?.parse().ok()).collect()
}

fn line(event: &Recorded, texts: &HashMap<Uuid, String>) -> String {
    let time = strtime::format("%Y-%m-%dT%H:%M:%S.%3fZ", event.time).unwrap_or_else(|_| event.time.to_string());
    let actor = match &event.actor {
        Actor::Gateway => "gateway".to_owned(),
        Actor::System => "system".to_owned(),
        Actor::Person(id) => id.clone(),
        Actor::Sled(id) => format!("sled {id}"),
    };
    let cause = match &event.cause {
        Cause::None => String::new(),
        Cause::Command(id) => format!(" because of {id}"),
        Cause::Event(id) => format!(" because of {id}"),
    };
    let said: Vec<_> = text_ids(&event.data)
        .iter()
        .map(|id| match texts.get(id) {
            Some(text) => format!(" «{}»", text::one_line(text, TEXT_CHARS)),
            None => " «erased»".to_owned(),
        })
        .collect();
    let line = format!(
        "{} {time} {}@{} {} by {actor}{cause} {}{}",
        event.position,
        event.stream,
        event.version,
        event.kind,
        event.data.get(),
        said.concat()
    );
    text::plain(&line)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::refusal::Kind;

    #[test]
    fn a_newer_journal_is_named_with_both_versions_and_the_way_back() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("journal.db");
        drop(Journal::open(&path, Arc::new(jiff::Timestamp::UNIX_EPOCH)).expect("it can be made"));
        let file = rusqlite::Connection::open(&path).expect("it opens");
        let supported: i64 = file.pragma_query_value(None, "user_version", |row| row.get(0)).expect("it has one");
        file.pragma_update(None, "user_version", supported + 1).expect("it can be written");
        let looked_at = open(&path).map(drop).expect_err("it is not read");
        let owned = store::Journal::open(&path, Arc::new(jiff::Timestamp::UNIX_EPOCH)).map(drop);
        let owned = store::Journal::unopened(owned.expect_err("it is not opened"));
        for refused in [looked_at, owned] {
            // A start is not tried again and again.
            assert_eq!(refused.kind, Kind::Config);
            let said = refused.to_string();
            let versions =
                format!("has schema version {}, this program reads up to version {supported}", supported + 1);
            assert!(said.contains(&versions), "{said}");
            let backup = format!("journal.db.backup-v{supported}");
            assert!(said.contains("newer musher") && said.contains(&backup), "{said}");
        }
    }

    #[test]
    fn an_older_journal_is_named_with_what_brings_it_up_to_date() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("journal.db");
        drop(Journal::open(&path, Arc::new(jiff::Timestamp::UNIX_EPOCH)).expect("it can be made"));
        let file = rusqlite::Connection::open(&path).expect("it opens");
        file.pragma_update(None, "user_version", 1).expect("it can be written");
        let refused = open(&path).expect_err("it is not read").to_string();
        let said = "has schema version 1, this program reads version";
        assert!(refused.contains(said) && refused.contains("`musher up` brings it up to date"), "{refused}");
    }
}
