//! The one thread that writes. Everything that waits goes into one transaction, and nothing is
//! acknowledged before COMMIT has come back: one wait for the disk serves them all. A request is
//! checked in full before it writes anything, so that one that is refused leaves no trace in the
//! transaction and the others alone.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::{ContextV7, Uuid};

use crate::append::{Prepared, Stamped};
use crate::group::{Group, Hope, Queue};
use crate::heads::Heads;
use crate::snapshot::{self, Encoded};
use crate::{AppendError, Clock, StorageError, store, texts};

/// How long an erasure waits for those who read from the log, before it leaves them alone.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

/// However slow the disk, a request is kept waiting for others no more than a fourth of this.
const SLOWEST_COMMIT: Duration = Duration::from_millis(8);

/// Where a request's outcome goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

pub(crate) enum Message {
    Request(Request),
    /// Take no more; what is already waiting is still written.
    Close,
}

pub(crate) enum Request {
    /// Appends that succeed or fail together. None of them is without events.
    Append { appends: Vec<Prepared>, reply: Reply<Vec<Prepared>> },
    /// Erase texts and say how many there were.
    Erase { which: Erasure, reply: Reply<u64> },
    /// Keep a snapshot, unless a later one is there.
    Keep { snapshot: Encoded, reply: Reply<()> },
}

/// Which texts to erase.
pub(crate) enum Erasure {
    Ids(Vec<Uuid>),
    Before { time: Timestamp, at_most: usize },
}

/// A request that was carried out or refused, to be answered when the transaction has ended.
enum Settled {
    Append { reply: Reply<Vec<Prepared>>, outcome: Result<Vec<Prepared>, AppendError> },
    Erase { reply: Reply<u64>, outcome: Result<u64, AppendError> },
    Keep { reply: Reply<()>, outcome: Result<(), AppendError> },
}

impl Settled {
    /// Carries a request out in the transaction that is open; without one it has failed already.
    fn by(request: Request, open: Result<&mut Stamped<'_>, &StorageError>) -> Self {
        let open = open.map_err(|error| AppendError::Storage(error.clone()));
        match request {
            Request::Append { mut appends, reply } => {
                let outcome = open.and_then(|open| open.append_all(&mut appends)).map(|()| appends);
                Self::Append { reply, outcome }
            }
            Request::Erase { which, reply } => {
                Self::Erase { reply, outcome: open.and_then(|open| Ok(texts::erase(open.connection, &which)?)) }
            }
            Request::Keep { snapshot, reply } => {
                Self::Keep { reply, outcome: open.and_then(|open| snapshot::keep(open.connection, &snapshot)) }
            }
        }
    }

    /// What the request makes the whole transaction fail of.
    fn failure(&self) -> Option<&StorageError> {
        let error = match self {
            Self::Append { outcome, .. } => outcome.as_ref().err(),
            Self::Erase { outcome, .. } => outcome.as_ref().err(),
            Self::Keep { outcome, .. } => outcome.as_ref().err(),
        };
        match error {
            Some(AppendError::Storage(error)) => Some(error),
            _ => None,
        }
    }

    /// Position of the last event that the request has added.
    fn position(&self) -> Option<u64> {
        match self {
            Self::Append { outcome: Ok(appends), .. } => appends.last().and_then(Prepared::added),
            _ => None,
        }
    }

    /// The same request, failed: its transaction is not in the file.
    fn failed(mut self, error: &StorageError) -> Self {
        let error = AppendError::Storage(error.clone());
        match &mut self {
            Self::Append { outcome, .. } => *outcome = Err(error),
            Self::Erase { outcome, .. } => *outcome = Err(error),
            Self::Keep { outcome, .. } => *outcome = Err(error),
        }
        self
    }

    /// A caller that no longer waits has given up hearing of it, nothing else.
    fn answer(self) {
        match self {
            Self::Append { reply, outcome } => drop(reply.send(outcome)),
            Self::Erase { reply, outcome } => drop(reply.send(outcome)),
            Self::Keep { reply, outcome } => drop(reply.send(outcome)),
        }
    }
}

/// Dropped field by field: when `position` goes, and with it its receivers learn of the end, the
/// file is closed.
pub(crate) struct Writer {
    connection: Connection,
    clock: Arc<dyn Clock>,
    ids: ContextV7,
    heads: Heads,
    /// The log holds bytes that were erased.
    log_remembers: bool,
    /// Of the next group: it waits a fraction of what it took to write the last one.
    hope: Hope,
    position: watch::Sender<u64>,
}

impl Writer {
    pub(crate) fn new(connection: Connection, clock: Arc<dyn Clock>, position: watch::Sender<u64>) -> Self {
        Self {
            connection,
            clock,
            ids: ContextV7::new(),
            heads: Heads::default(),
            log_remembers: false,
            hope: Hope::default(),
            position,
        }
    }

    pub(crate) fn spawn(self, messages: mpsc::Receiver<Message>) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("journal".to_owned()).spawn(move || self.run(Queue::new(messages)))
    }

    fn run(mut self, mut queue: Queue) {
        let mut settled = Vec::new();
        loop {
            // Where several are likely to ask again at once, the transaction is opened meanwhile.
            let first = if self.hope.requests > 1 {
                None
            } else {
                let Some(first) = queue.wait() else { return };
                Some(first)
            };
            let began = Instant::now();
            let mut group = Group::new(first, &mut queue, self.hope);
            self.commit(&mut group, &mut settled);
            let (taken, waited) = (group.taken, group.waited);
            let patience = began.elapsed().saturating_sub(waited).min(SLOWEST_COMMIT) / 4;
            self.hope = Hope { requests: taken + queue.len(), patience };
            settled.drain(..).for_each(Settled::answer);
        }
    }

    /// Writes a group and wakes the subscribers. What is settled is on the disk and can be answered.
    fn commit(&mut self, group: &mut Group<'_>, settled: &mut Vec<Settled>) {
        match self.write(group, settled) {
            Ok(()) => {
                if let Some(position) = settled.iter().filter_map(Settled::position).max() {
                    self.position.send_replace(position);
                }
            }
            Err(error) => {
                self.heads.clear();
                let failed: Vec<_> = settled.drain(..).map(|done| done.failed(&error)).collect();
                settled.extend(failed);
                if group.taken == 0 {
                    // It could not be begun, and they have waited as long as it was tried.
                    settled.extend(group.early().map(|request| Settled::by(request, Err(&error))));
                }
                tracing::error!(%error, requests = settled.len(), "a transaction failed and was rolled back");
            }
        }
        // One that finds nothing to erase leaves nothing in the log that was not there before.
        let erases = settled.iter().any(|done| matches!(done, Settled::Erase { outcome: Ok(1..), .. }));
        self.log_remembers |= erases;
        self.forget(if erases { LOG_PATIENCE } else { Duration::ZERO });
    }

    /// Empties the log of what was erased, if need be and nobody just reads from it.
    fn forget(&mut self, patience: Duration) {
        if !self.log_remembers {
            return;
        }
        match store::empty_log(&self.connection, patience) {
            Ok(true) => self.log_remembers = false,
            Ok(false) => tracing::debug!("the log is being read and cannot be emptied yet"),
            Err(error) => tracing::warn!(%error, "the log could not be emptied of what was erased"),
        }
    }

    /// One transaction with all requests in order. An error of `SQLite` fails them all, since it
    /// does not always say how much of the transaction it took with it.
    fn write(&mut self, group: &mut Group<'_>, settled: &mut Vec<Settled>) -> Result<(), StorageError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.heads.check(&transaction)?;
        let mut open = Stamped::new(&transaction, &*self.clock, &self.ids, &mut self.heads)?;
        for request in group {
            let done = Settled::by(request, Ok(&mut open));
            let failed = done.failure().cloned();
            settled.push(done);
            if let Some(error) = failed {
                return Err(error);
            }
        }
        drop(open);
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use tempfile::TempDir;

    use super::*;
    use crate::{Actor, Append, Appended, Cause, Expected, NewEvent, StreamId};

    fn writer() -> (TempDir, Writer, watch::Receiver<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let connection = store::open_writer(&folder.path().join("journal.db")).unwrap();
        let (committed, position) = watch::channel(0);
        let writer = Writer::new(connection, Arc::new(Timestamp::UNIX_EPOCH), committed);
        (folder, writer, position)
    }

    /// Commits appends, in one group if it holds them; the outcome of each.
    fn commit(writer: &mut Writer, group: Vec<Vec<Append>>) -> Vec<Result<Vec<Appended>, AppendError>> {
        let (asking, messages) = mpsc::channel(group.len());
        let ask = |appends| {
            let (reply, outcome) = oneshot::channel();
            let appends = Vec::into_iter(appends).map(|append| Prepared::new(append).unwrap()).collect();
            asking.try_send(Message::Request(Request::Append { appends, reply })).unwrap();
            outcome
        };
        let outcomes: Vec<_> = group.into_iter().map(ask).collect();
        let mut settled = Vec::new();
        let mut queue = Queue::new(messages);
        while queue.len() > 0 {
            writer.commit(&mut Group::new(None, &mut queue, Hope::default()), &mut settled);
        }
        settled.into_iter().for_each(Settled::answer);
        let appended = |appends: Vec<Prepared>| appends.into_iter().map(Prepared::outcome).collect();
        outcomes.into_iter().map(|mut outcome| outcome.try_recv().unwrap().map(appended)).collect()
    }

    fn one(stream: &str, expected: Expected, key: Option<&str>, data: &str) -> Vec<Append> {
        let data = RawValue::from_string(data.to_owned()).unwrap();
        vec![Append {
            stream: StreamId::new("s", stream),
            expected,
            events: vec![NewEvent::raw("thing.happened", 1, false, data).unwrap()],
            key: key.map(str::to_owned),
            actor: Actor::System,
            cause: Cause::None,
        }]
    }

    #[test]
    fn one_request_that_is_refused_leaves_its_group_alone() {
        let (_folder, mut writer, position) = writer();
        let mut half_refused = one("d", Expected::Any, Some("free"), "4");
        half_refused.extend(one("a", Expected::NoStream, None, "4"));
        let outcomes = commit(
            &mut writer,
            vec![
                one("a", Expected::NoStream, None, "1"),
                one("a", Expected::NoStream, None, "2"),
                one("b", Expected::Any, Some("k"), "3"),
                one("b", Expected::Any, Some("k"), "3"),
                one("b", Expected::Any, Some("k"), "9"),
                half_refused,
                one("d", Expected::NoStream, Some("free"), "5"),
                one("a", Expected::Version(1), None, "6"),
            ],
        );
        let seen: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome.as_deref() {
                Ok([new]) => format!("{} at {} {}", new.last_version, new.position, new.repeated),
                Ok(_) => panic!("one append each"),
                Err(refused) => refused.to_string(),
            })
            .collect();
        insta::assert_snapshot!(seen.join("\n"), @r#"
        1 at 1 false
        stream s/a is at version 1, expected no stream
        1 at 2 false
        1 at 2 true
        key "k" for stream s/b was used for other events at position 2
        stream s/a is at version 1, expected no stream
        1 at 3 false
        2 at 4 false
        "#);
        assert_eq!(*position.borrow(), 4);
    }

    #[test]
    fn an_error_in_the_commit_fails_the_whole_group() {
        let (_folder, mut writer, position) = writer();
        commit(&mut writer, vec![one("a", Expected::NoStream, None, "1")]);
        // A violation that SQLite looks for at COMMIT and not before.
        writer
            .connection
            .execute_batch(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER spoil AFTER INSERT ON events WHEN NEW.data = '\"bad\"'
                    BEGIN INSERT INTO child VALUES (1); END;",
            )
            .unwrap();
        let outcomes = commit(
            &mut writer,
            vec![
                one("b", Expected::NoStream, None, "2"),
                one("b", Expected::NoStream, None, "3"),
                one("c", Expected::NoStream, Some("k"), "\"bad\""),
                one("d", Expected::NoStream, None, "4"),
            ],
        );
        assert_eq!(outcomes.len(), 4);
        for outcome in outcomes {
            assert!(matches!(outcome, Err(AppendError::Storage(_))));
        }
        assert_eq!((store::position(&writer.connection).unwrap(), *position.borrow()), (1, 1));
        // The writer goes on, and nothing of the failed group is left.
        let outcomes = commit(
            &mut writer,
            vec![one("c", Expected::NoStream, Some("k"), "5"), one("b", Expected::NoStream, None, "6")],
        );
        let positions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap()[0].position).collect();
        assert_eq!((positions, *position.borrow()), (vec![2, 3], 3));
    }

    #[test]
    fn who_comes_later_is_not_failed_with_those_who_waited() {
        let (folder, mut writer, _position) = writer();
        let (asking, messages) = mpsc::channel(8);
        let mut queue = Queue::new(messages);
        let ask = |stream: &str| {
            let (reply, outcome) = oneshot::channel();
            let append = one(stream, Expected::NoStream, None, "1").remove(0);
            let appends = vec![Prepared::new(append).unwrap()];
            asking.try_send(Message::Request(Request::Append { appends, reply })).unwrap();
            outcome
        };
        let early = [ask("a"), ask("b")];
        let stranger = Connection::open(folder.path().join("journal.db")).unwrap();
        stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
        writer.connection.busy_timeout(Duration::ZERO).unwrap();
        let mut settled = Vec::new();
        let mut group = Group::new(None, &mut queue, Hope::default());
        let mut later = ask("c");
        writer.commit(&mut group, &mut settled);
        settled.drain(..).for_each(Settled::answer);
        for mut outcome in early {
            assert!(matches!(outcome.try_recv().unwrap(), Err(AppendError::Storage(_))));
        }
        stranger.execute_batch("ROLLBACK").unwrap();
        writer.commit(&mut Group::new(None, &mut queue, Hope::default()), &mut settled);
        settled.drain(..).for_each(Settled::answer);
        assert_eq!(later.try_recv().unwrap().unwrap()[0].added(), Some(1));
    }

    #[test]
    fn what_another_program_appended_is_seen() {
        let (folder, writer, _position) = writer();
        let connection = store::open_writer(&folder.path().join("journal.db")).unwrap();
        let other = Writer::new(connection, Arc::new(Timestamp::UNIX_EPOCH), watch::channel(0).0);
        let mut writers = [writer, other];
        let outcomes = commit(&mut writers[1], vec![one("a", Expected::Version(1), None, "1")]);
        assert!(matches!(outcomes[0], Err(AppendError::Conflict { actual: 0, .. })), "remembered as missing");
        for (turn, version) in [0, 1, 0].into_iter().zip(0..) {
            let expected = Expected::Version(version);
            let group = vec![one("a", expected, None, "1"), one("a", expected, None, "2")];
            let outcomes = commit(&mut writers[turn], group);
            assert_eq!(outcomes[0].as_ref().unwrap()[0].last_version, version + 1);
            assert!(matches!(outcomes[1], Err(AppendError::Conflict { .. })));
        }
    }

    #[test]
    fn more_streams_than_are_remembered_keep_their_versions() {
        let (_folder, mut writer, _position) = writer();
        let streams = crate::heads::LIMIT + 2;
        for version in 0..2 {
            let appends = (0..streams).map(|stream| one(&stream.to_string(), Expected::Version(version), None, "1"));
            for outcome in commit(&mut writer, appends.collect()) {
                assert_eq!(outcome.unwrap()[0].last_version, version + 1);
            }
        }
        let all_at_once = (0..streams).flat_map(|stream| one(&stream.to_string(), Expected::Version(2), None, "1"));
        let outcomes = commit(&mut writer, vec![all_at_once.collect()]).remove(0).unwrap();
        assert!(outcomes.len() == streams && outcomes.iter().all(|new| new.last_version == 3));
    }

    #[test]
    fn what_waits_when_it_is_closed_is_written_whatever_its_number() {
        let (folder, writer, _position) = writer();
        let (asking, messages) = mpsc::channel(1000);
        let mut asked = Vec::new();
        for at in 0..700 {
            if at == 300 {
                asking.try_send(Message::Close).unwrap();
            }
            let (reply, outcome) = oneshot::channel();
            let appends = vec![Prepared::new(one("a", Expected::Version(at), None, "1").remove(0)).unwrap()];
            asking.try_send(Message::Request(Request::Append { appends, reply })).unwrap();
            asked.push(outcome);
        }
        writer.spawn(messages).unwrap().join().unwrap();
        for (mut outcome, position) in asked.into_iter().zip(1..) {
            assert_eq!(outcome.try_recv().unwrap().unwrap()[0].added(), Some(position));
        }
        asking.try_send(Message::Close).unwrap_err();
        let connection = store::open_reader(&folder.path().join("journal.db")).unwrap();
        assert_eq!(store::position(&connection).unwrap(), 700);
    }

    #[test]
    fn a_full_disk_fails_the_whole_group() {
        let (_folder, mut writer, position) = writer();
        let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |writer: &Writer, pages: i64| {
            writer.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        limit(&writer, pages + 4);
        let large = format!("\"{}\"", "x".repeat(100_000));
        let group = || {
            vec![
                one("a", Expected::NoStream, None, "1"),
                one("b", Expected::NoStream, None, "2"),
                one("c", Expected::NoStream, None, &large),
            ]
        };
        assert!(commit(&mut writer, group()).iter().all(|o| matches!(o, Err(AppendError::Storage(_)))));
        assert_eq!((store::position(&writer.connection).unwrap(), *position.borrow()), (0, 0));
        limit(&writer, 1_000_000);
        assert!(commit(&mut writer, group()).iter().all(Result::is_ok));
        assert_eq!(*position.borrow(), 3);
    }
}
