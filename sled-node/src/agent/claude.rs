//! The Claude Code CLI: its command line, its settings, and whether it still has a session.
//!
//! Tried with 2.1.197. The container is the fence, so it may use every tool (SEC-8); the repository's own instructions count. Where it is to ask
//! first, the repository's settings, hooks and MCP servers do not, because they could answer in people's place.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use link::requests::{AgentSession, Permissions};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

/// Telemetry, self-update and whatever else is not the model itself: off (SEC-8). So is what goes on behind a turn's result, because a turn
/// ends with it and so do its processes: the CLI would notice that, and take turns that nobody asked for.
pub const SETTINGS: [(&str, &str); 9] = [
    // With --add-dir it reads the instructions there even where the repository's settings do not count.
    ("CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD", "1"),
    ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1"),
    ("CLAUDE_CODE_DISABLE_CRON", "1"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("CLAUDE_CODE_DISABLE_WORKFLOWS", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("DISABLE_BUG_COMMAND", "1"),
    ("DISABLE_ERROR_REPORTING", "1"),
    ("DISABLE_TELEMETRY", "1"),
];

/// For every session: many turns of one process, whose words it echoes when it has them.
const ALWAYS: [&str; 7] = [
    "claude",
    "-p",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--verbose",
    "--replay-user-messages",
    // It would wake up between turns, or ask what an answer of yes or no does not answer.
    "--disallowed-tools=ScheduleWakeup,AskUserQuestion,EnterPlanMode",
];

/// Where nobody is asked.
const BYPASS: [&str; 1] = ["--dangerously-skip-permissions"];

/// Where people are.
const ASK: [&str; 4] =
    ["--permission-prompt-tool=stdio", "--setting-sources=user", "--strict-mcp-config", "--add-dir=."];

/// How much of a session's file is looked through, in bytes: for a conversation from its beginning, for words at its end.
const MAX_SEARCH: u64 = 64 * 1024 * 1024;

/// Longest line that is understood there, in bytes.
const MAX_LINE: u64 = 8 * 1024 * 1024;

/// How much of its end is looked through for where it ends, in bytes: each start does that.
const MAX_END: u64 = 2 * MAX_LINE;

/// The command line, and whether the session's memory is as expected.
pub fn argv(
    session: &AgentSession,
    model: Option<&str>,
    permissions: Permissions,
    home: &Path,
) -> Result<(Vec<OsString>, bool)> {
    let memory = memory(home, session.id)?;
    if let Memory::Unusable(files) = &memory {
        // The CLI would neither resume this session nor begin another under its id.
        for file in files {
            tracing::warn!(file = %file.display(), "a session's file holds no conversation and is set aside");
            std::fs::rename(file, file.with_extension("jsonl.unusable"))?;
        }
    }
    if let Memory::Found(path, file) = &memory {
        point_at_end(path, file, session.id)?;
    }
    let found = matches!(memory, Memory::Found(..));
    let mut argv: Vec<OsString> = ALWAYS.map(Into::into).into();
    let permissions = match permissions {
        Permissions::Bypass => BYPASS.as_slice(),
        Permissions::Ask { .. } => ASK.as_slice(),
    };
    argv.extend(permissions.iter().map(Into::into));
    argv.push(if found { "--resume" } else { "--session-id" }.into());
    argv.push(session.id.to_string().into());
    if let Some(model) = model {
        argv.push(format!("--model={model}").into());
    }
    Ok((argv, found || !session.resumed))
}

enum Memory {
    /// In this file.
    Found(PathBuf, File),
    Absent,
    /// Files of that session without a conversation, such as a crash right after the start leaves, and what is no file at all.
    Unusable(Vec<PathBuf>),
}

/// Looks for the session in `~/.claude/projects/<folder>/<id>.jsonl`. It can be resumed if a line of it is part of a conversation.
fn memory(home: &Path, session: Uuid) -> Result<Memory> {
    let mut unusable = Vec::new();
    for (path, file) in files(home, session)? {
        match file {
            Some(file) if any_entry(BufReader::new(&file), Entry::is_of_conversation)? => {
                return Ok(Memory::Found(path, file));
            }
            _ => unusable.push(path),
        }
    }
    Ok(if unusable.is_empty() { Memory::Absent } else { Memory::Unusable(unusable) })
}

/// Sees to it that the session is resumed where it ended. When the CLI is asked to end it writes down where that was. It resumes there, also when it
/// was killed since, unless the last entry leads back to that place; one that was cut off on the way, or begun elsewhere, leads nowhere, and all that
/// was said in between would be forgotten.
fn point_at_end(path: &Path, mut file: &File, session: Uuid) -> Result<()> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(MAX_END);
    file.seek(SeekFrom::Start(from))?;
    // What is not looked through may hold such a note.
    let (mut noted, mut end, mut outdated) = (from > 0, None, false);
    any_entry(BufReader::new(file), |entry| {
        if entry.r#type == NOTE {
            (noted, outdated) = (true, false);
        } else if entry.is_of_conversation() && !entry.is_sidechain && entry.uuid.is_some() {
            (end, outdated) = (entry.uuid.clone(), noted);
        }
        false
    })?;
    let Some(end) = end.filter(|_| outdated) else { return Ok(()) };
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    // A line that was cut off stays apart from what follows it.
    let before = if last == *b"\n" { "" } else { "\n" };
    let note = json!({ "type": NOTE, "leafUuid": end, "sessionId": session });
    tracing::info!(%session, "the session was killed since it last ended: it is resumed at its end");
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    let mut file = OpenOptions::new().append(true).custom_flags(flags).open(path)?;
    file.write_all(format!("{before}{note}\n").as_bytes())
}

/// Whether one of the lines by which the agent was handed words stands in the session. The latest are looked through.
pub fn remembers(home: &Path, session: Uuid, words: &[Uuid]) -> Result<bool> {
    for (_, file) in files(home, session)? {
        let Some(mut file) = file else { continue };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_SEARCH)))?;
        if any_entry(BufReader::new(file), |entry| entry.is_one_of(words))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where the session may lie, and what is there if it is a file.
fn files(home: &Path, session: Uuid) -> Result<Vec<(PathBuf, Option<File>)>> {
    let projects = match std::fs::read_dir(home.join(".claude/projects")) {
        Ok(projects) => projects,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for project in projects {
        let path = project?.path().join(format!("{session}.jsonl"));
        match open_regular(&path) {
            Ok(file) => files.push((path, file)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Opens a regular file; `None` if it is something else. Whoever works in the project can put anything there, such as a pipe, and may exchange it meanwhile.
fn open_regular(path: &Path) -> Result<Option<File>> {
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map(Some)
}

/// The line in which the CLI notes where a session ended.
const NOTE: &str = "last-prompt";

/// What of a session's line matters here.
#[derive(Deserialize)]
struct Entry {
    r#type: String,
    uuid: Option<String>,
    /// Whether it is a conversation between agents.
    #[serde(default, rename = "isSidechain")]
    is_sidechain: bool,
}

impl Entry {
    fn is_of_conversation(&self) -> bool {
        matches!(self.r#type.as_str(), "user" | "assistant")
    }

    fn is_one_of(&self, words: &[Uuid]) -> bool {
        let uuid = self.uuid.as_deref().and_then(|uuid| Uuid::parse_str(uuid).ok());
        self.r#type == "user" && uuid.is_some_and(|uuid| words.contains(&uuid))
    }
}

fn any_entry(file: impl BufRead, mut wanted: impl FnMut(&Entry) -> bool) -> Result<bool> {
    let mut file = file.take(MAX_SEARCH);
    let mut line = Vec::new();
    while file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
        if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
            file.skip_until(b'\n')?;
        }
        // A line that was not written to its end is none.
        if serde_json::from_slice::<Entry>(&line).is_ok_and(|entry| wanted(&entry)) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of the command line and whether the session was found, with a session file of that content.
    fn check(file: Option<&str>, resumed: bool) -> (String, bool) {
        let home = tempfile::tempdir().unwrap();
        let session = AgentSession { id: Uuid::nil(), resumed };
        let folder = home.path().join(".claude/projects/-workspace");
        let path = folder.join(format!("{}.jsonl", session.id));
        if let Some(content) = file {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(&path, content).unwrap();
        }
        let (argv, found) = argv(&session, None, Permissions::Bypass, home.path()).unwrap();
        let how = argv[argv.len() - 2].to_str().unwrap().to_owned();
        // Either the file is resumed, or it does not stand in the way.
        assert_eq!(path.exists(), how == "--resume");
        (how, found)
    }

    #[test]
    fn a_session_is_resumed_if_it_is_there_whatever_is_expected() {
        let talk = "{\"type\":\"queue-operation\"}\n{\"type\":\"user\",\"message\":{}}\n{\"type\":\"assi";
        let table = [
            (None, false, "--session-id", true),
            (None, true, "--session-id", false),
            (Some(talk), true, "--resume", true),
            (Some(talk), false, "--resume", true),
            (Some(""), true, "--session-id", false),
            (Some(""), false, "--session-id", true),
            (Some("{\"type\":\"queue-operation\"}\n\u{0}\n"), true, "--session-id", false),
        ];
        for (file, resumed, how, found) in table {
            assert_eq!(check(file, resumed), (how.to_owned(), found), "{file:?}, resumed: {resumed}");
        }
    }

    #[test]
    fn words_are_remembered_where_their_line_was_written_to_its_end() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".claude/projects/-workspace");
        let [session, words, others] = [1, 2, 3].map(Uuid::from_u128);
        let remembers = || remembers(home.path(), session, &[others, words]).unwrap();
        assert!(!remembers(), "there is no session");
        std::fs::create_dir_all(&folder).unwrap();
        let line = |kind: &str, uuid: Uuid| format!("{{\"type\":\"{kind}\",\"uuid\":\"{uuid}\",\"message\":{{}}}}");
        let before = format!("{}\n{}\n", line("user", Uuid::nil()), line("assistant", words));
        let whole = line("user", words);
        for (end, remembered) in [("", false), (&whole[..whole.len() - 1], false), (&whole, true)] {
            std::fs::write(folder.join(format!("{session}.jsonl")), format!("{before}{end}")).unwrap();
            assert_eq!(remembers(), remembered, "{end}");
        }
    }

    #[test]
    fn a_session_that_was_killed_is_resumed_at_its_end_and_not_where_it_ended_in_order_before() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".claude/projects/-workspace");
        std::fs::create_dir_all(&folder).unwrap();
        let id = Uuid::from_u128(7);
        let path = folder.join(format!("{id}.jsonl"));
        let said = |kind: &str, uuid: u128| {
            json!({ "type": kind, "uuid": Uuid::from_u128(uuid), "isSidechain": false }).to_string()
        };
        let aside = json!({ "type": "assistant", "uuid": Uuid::from_u128(9), "isSidechain": true }).to_string();
        let note = |leaf: u128| json!({ "type": NOTE, "leafUuid": Uuid::from_u128(leaf), "sessionId": id }).to_string();
        let session = AgentSession { id, resumed: true };
        let after_resuming = |lines: &[String], cut: &str| {
            std::fs::write(&path, format!("{}\n{cut}", lines.join("\n"))).unwrap();
            argv(&session, None, Permissions::Bypass, home.path()).unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let killed = [said("user", 1), note(1), said("user", 2), said("assistant", 3), aside];
        let resumed = after_resuming(&killed, "");
        assert_eq!(resumed, format!("{}\n{}\n", killed.join("\n"), note(3)));
        let resumed = after_resuming(&killed, "{\"type\":\"user\",\"uu");
        assert!(resumed.ends_with(&format!("\n{{\"type\":\"user\",\"uu\n{}\n", note(3))), "{resumed}");
        // Once is enough; and one that ended in order, or never has, is resumed well as it is.
        for lines in [&[said("user", 1), said("assistant", 3), note(3)][..], &[said("user", 1), said("assistant", 3)]] {
            assert_eq!(after_resuming(lines, ""), format!("{}\n", lines.join("\n")));
        }
        // Of a long session the end alone is looked through, and what stands before it may be such a note.
        let filler = format!("{}\n", "x".repeat(1023)).repeat(usize::try_from(MAX_END / 1024).unwrap());
        let long = [note(1), filler, said("user", 2)];
        assert_eq!(after_resuming(&long, ""), format!("{}\n{}\n", long.join("\n"), note(2)));
        let path_of_link = folder.join("elsewhere");
        std::fs::write(&path_of_link, killed.join("\n")).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path_of_link, &path).unwrap();
        argv(&session, None, Permissions::Bypass, home.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path_of_link).unwrap(), killed.join("\n"), "a link is not followed");
    }

    #[test]
    fn what_is_no_regular_file_is_set_aside_unread() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".claude/projects/-workspace");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}.jsonl", Uuid::nil()));
        let resumed = || {
            argv(&AgentSession { id: Uuid::nil(), resumed: true }, None, Permissions::Bypass, home.path()).unwrap().1
        };

        // Opening a pipe that nobody writes to would wait for ever.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!resumed());
        assert!(!path.exists());

        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(!resumed());
        assert!(path.symlink_metadata().is_err());
    }

    #[test]
    fn a_line_without_an_end_is_not_read_to_its_end() {
        let endless = |beginning: &'static str| beginning.as_bytes().chain(std::io::repeat(b'x'));
        assert!(any_entry(BufReader::new(endless("{\"type\":\"user\"}\n")), Entry::is_of_conversation).unwrap());
        assert!(
            !any_entry(BufReader::new(endless("{\"type\":\"queue-operation\"}\n")), Entry::is_of_conversation).unwrap()
        );

        // What follows in a line that is too long is no line, and what follows that line is one.
        let long = |rest: &str| format!("{}{rest}\n", "x".repeat(usize::try_from(MAX_LINE).unwrap()));
        assert!(!any_entry(long("{\"type\":\"user\"}").as_bytes(), Entry::is_of_conversation).unwrap());
        assert!(any_entry(long("\n{\"type\":\"user\"}").as_bytes(), Entry::is_of_conversation).unwrap());
    }

    #[test]
    fn the_command_line() {
        let home = tempfile::tempdir().unwrap();
        let line = |permissions| {
            let session = AgentSession { id: Uuid::nil(), resumed: false };
            let (argv, _) = argv(&session, Some("opus"), permissions, home.path()).unwrap();
            argv.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(line(Permissions::Bypass), @r"
        claude
        -p
        --input-format=stream-json
        --output-format=stream-json
        --verbose
        --replay-user-messages
        --disallowed-tools=ScheduleWakeup,AskUserQuestion,EnterPlanMode
        --dangerously-skip-permissions
        --session-id
        00000000-0000-0000-0000-000000000000
        --model=opus
        ");
        insta::assert_snapshot!(line(Permissions::Ask { timeout_secs: 1 }), @r"
        claude
        -p
        --input-format=stream-json
        --output-format=stream-json
        --verbose
        --replay-user-messages
        --disallowed-tools=ScheduleWakeup,AskUserQuestion,EnterPlanMode
        --permission-prompt-tool=stdio
        --setting-sources=user
        --strict-mcp-config
        --add-dir=.
        --session-id
        00000000-0000-0000-0000-000000000000
        --model=opus
        ");
    }
}
