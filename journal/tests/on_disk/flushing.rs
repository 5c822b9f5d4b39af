//! JRNL-7: what was acknowledged has been flushed to the disk before, so that it is there after a
//! power cut. What is flushed when is told by `watched.c`, between the calls of the process and the
//! system. The child is this test itself.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use journal::{Expected, Journal, NewEvent, SystemClock};
use uuid::Uuid;

use crate::fixture::{CounterEvent, append_raw, counter, keyed, marked};

/// Set for the child: the file to append to.
const CHILD: &str = "JOURNAL_WATCHED";

/// Set for the child: where it tells an `A` after each acknowledgement, and `watched.c` its letters.
const TOLD: &str = "TOLD";

/// So many that the log is moved into the file meanwhile.
const APPENDS: u64 = 200;

#[test]
fn nothing_is_acknowledged_before_it_is_flushed() {
    if let Some(path) = env::var_os(CHILD) {
        return append_and_tell(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    // As the system names it, without links.
    let root = folder.path().canonicalize().unwrap();
    let library = root.join("watched.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/on_disk/watched.c");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-O2", source, "-ldl", "-o"]).arg(&library).status();
    assert!(made.unwrap().success());
    let place = root.join("journal");
    fs::create_dir(&place).unwrap();
    for opened in ["made", "opened again"] {
        let told = root.join("told");
        File::create(&told).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "flushing::nothing_is_acknowledged_before_it_is_flushed"])
            .env(CHILD, place.join("journal.db"))
            .env(TOLD, &told)
            .env("LD_PRELOAD", &library)
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let told = fs::read_to_string(&told).unwrap();
        assert_eq!(check(&told), Ok(APPENDS), "{opened}: {told:.500}");
        let (_, since_first) = told.split_once('A').unwrap();
        let (moved, _) = since_first.rsplit_once('A').unwrap();
        assert!(moved.contains('f'), "{opened}: nothing was moved out of the log");
    }
}

fn append_and_tell(path: &Path) {
    let mut told = OpenOptions::new().append(true).open(env::var_os(TOLD).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::open(path, Arc::new(SystemClock)).unwrap();
        for n in 0..APPENDS {
            let event = NewEvent::encode(&CounterEvent::Labelled("x".repeat(40_000))).unwrap();
            let text = Uuid::now_v7();
            let event = if n % 3 == 1 { event.with_text(text, marked(text, 1)) } else { event };
            let append = append_raw(&counter("flushed"), Expected::Any, vec![event]);
            let append = if n % 2 == 1 { keyed(&text.to_string(), append) } else { append };
            journal.append(append).await.unwrap();
            told.write_all(b"A").unwrap();
        }
        journal.close().await;
    });
}

/// How many appends were acknowledged, if a power cut at any moment leaves all of them.
fn check(told: &str) -> Result<u64, &'static str> {
    let (mut written, mut log_waits, mut file_waits, mut named) = (false, false, false, false);
    let mut acknowledged = 0;
    for letter in told.chars() {
        match letter {
            'W' if file_waits => return Err("the log is written over and what was moved out of it not flushed"),
            'W' => (written, log_waits) = (true, true),
            'F' => log_waits = false,
            'w' if log_waits => return Err("what is moved out of the log is not flushed there"),
            'w' => file_waits = true,
            'f' => file_waits = false,
            'D' => named |= written,
            'A' if !written => return Err("acknowledged, not written"),
            'A' if log_waits => return Err("acknowledged, not flushed"),
            'A' if !named => return Err("acknowledged, and the log's name not flushed"),
            'A' => {
                acknowledged += 1;
                written = false;
            }
            _ => return Err("no letter of these"),
        }
    }
    Ok(acknowledged)
}

#[test]
fn what_a_power_cut_would_take_is_found() {
    assert_eq!(check("DwfWFDAWWFAWFwwfWFWFA"), Ok(3));
    for (told, lost) in [
        ("A", "acknowledged, not written"),
        ("WFDAA", "acknowledged, not written"),
        ("WFDAWA", "acknowledged, not flushed"),
        ("WFDAFWAF", "acknowledged, not flushed"),
        ("DWFA", "acknowledged, and the log's name not flushed"),
        ("WFDAWw", "what is moved out of the log is not flushed there"),
        ("WFDAWFwW", "the log is written over and what was moved out of it not flushed"),
    ] {
        assert_eq!(check(told), Err(lost), "{told}");
    }
}
