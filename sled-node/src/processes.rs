//! Trees of processes as `/proc` shows them, and how to end one so that nothing of it is left.
//!
//! A process is known by its id and its start time together, so that an id that was given away again is not mistaken for it.
//! This module never touches a process outside the tree that it is asked about.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process, not just its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pid: i32,
    /// Clock ticks between the machine's start and its own.
    started: u64,
}

/// What `/proc/<pid>/stat` tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    process: Process,
    parent: i32,
    /// Ended with all its threads, and waiting for its parent to notice. Where the first thread alone has ended, the others work on.
    zombie: bool,
    /// By a signal, or by a debugger.
    stopped: bool,
}

/// All descendants of the process `root`, zombies included, at about this moment: one that is orphaned while this looks can be missed,
/// and is found by looking again.
pub fn descendants(root: i32) -> io::Result<Vec<Process>> {
    Ok(below(root, &table()?).into_iter().map(|stat| stat.process).collect())
}

/// How many descendants of `root` are alive.
pub fn count_alive(root: i32) -> io::Result<usize> {
    Ok(below(root, &table()?).into_iter().filter(|stat| !stat.zombie).count())
}

/// The living descendants of `root` that are neither its child `agent` nor among `adopted`, or `None` if one of them is at work for
/// the agent itself: hangs below it with no adopted process between.
pub fn leftovers(root: i32, agent: i32, adopted: &HashSet<Process>) -> io::Result<Option<Vec<Process>>> {
    Ok(leftovers_of(&table()?, root, agent, adopted))
}

fn leftovers_of(table: &[Stat], root: i32, agent: i32, adopted: &HashSet<Process>) -> Option<Vec<Process>> {
    let is_own = |stat: &Stat| stat.process.pid == agent || adopted.contains(&stat.process);
    let all = below(root, table);
    // An adopted process whose parent has died hangs below the root: nobody speaks with it any more.
    let below_agent: HashSet<Process> = below(agent, table).into_iter().map(|stat| stat.process).collect();
    let by_pid: HashMap<i32, &Stat> = all.iter().map(|stat| (stat.process.pid, stat)).collect();
    let mut left = Vec::new();
    for stat in all.iter().filter(|stat| !stat.zombie) {
        if stat.process.pid == agent || (adopted.contains(&stat.process) && below_agent.contains(&stat.process)) {
            continue;
        }
        // Ends: `by_pid` is a tree below the root.
        let mut nearest_own = by_pid.get(&stat.parent);
        while let Some(parent) = nearest_own.filter(|parent| !is_own(parent)) {
            nearest_own = by_pid.get(&parent.parent);
        }
        if nearest_own.is_some_and(|own| own.process.pid == agent) {
            return None;
        }
        left.push(stat.process);
    }
    Some(left)
}

/// All living processes that were started with the environment variable `name=value`: the second-best way to know a tree,
/// for when the supervisor above it is gone. A process can clear its environment; one that does is not found.
pub fn marked(name: &str, value: &str) -> io::Result<Vec<Process>> {
    let wanted = format!("{name}={value}").into_bytes();
    let has_it =
        |stat: &Stat| environment(stat.process.pid).split(|byte| *byte == 0).any(|variable| variable == wanted);
    Ok(table()?.into_iter().filter(|stat| !stat.zombie && has_it(stat)).map(|stat| stat.process).collect())
}

/// What a process was started with. An environment that cannot be read belongs to another user, or to nobody any more.
fn environment(pid: i32) -> Vec<u8> {
    let of = |path: &Path| std::fs::read(path.join("environ")).ok().filter(|environment| !environment.is_empty());
    let process = format!("/proc/{pid}");
    // A first thread that has ended has none any more, and the others have it still.
    let of_others = || {
        let mut threads = std::fs::read_dir(format!("{process}/task")).ok()?.flatten();
        threads.find_map(|thread| of(&thread.path()))
    };
    of(Path::new(&process)).or_else(of_others).unwrap_or_default()
}

/// Whether a process is there and does nothing until it is told to go on.
pub fn is_stopped(pid: u32) -> bool {
    matches!(read_stat(Path::new(&format!("/proc/{pid}/stat"))), Ok(Some(Stat { stopped: true, .. })))
}

/// Sends `signal` to `process` if it is still the same one; one that is gone is no error.
pub fn signal(process: Process, signal: Signal) -> io::Result<()> {
    let path = format!("/proc/{}/stat", process.pid);
    match read_stat(Path::new(&path))? {
        Some(stat) if stat.process == process => {}
        _ => return Ok(()),
    }
    match kill(Pid::from_raw(process.pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Kills everything that `list` finds: stops each process first, until a look finds none that was not stopped, so that nothing
/// can fork out of reach, and then kills them all.
///
/// While it runs, nobody may reap: what dies keeps its id, so that a process that forks and exits over and over runs out of ids
/// instead of being missed for ever. Something can still have slipped through; the caller looks again.
pub fn kill_all(list: impl Fn() -> io::Result<Vec<Process>>) -> io::Result<()> {
    let mut stopped = HashSet::new();
    loop {
        let fresh: Vec<Process> = list()?.into_iter().filter(|process| stopped.insert(*process)).collect();
        if fresh.is_empty() {
            break;
        }
        for process in fresh {
            signal(process, Signal::SIGSTOP)?;
        }
    }
    stopped.into_iter().try_for_each(|process| signal(process, Signal::SIGKILL))
}

fn below(root: i32, table: &[Stat]) -> Vec<Stat> {
    let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
    for stat in table {
        children.entry(stat.parent).or_default().push(*stat);
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut looked_at = 0;
    while let Some(stat) = found.get(looked_at) {
        let more = children.remove(&stat.process.pid).unwrap_or_default();
        found.extend(more);
        looked_at += 1;
    }
    found
}

fn table() -> io::Result<Vec<Stat>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
            && let Some(stat) = read_stat(&entry.path().join("stat"))?
        {
            all.push(stat);
        }
    }
    Ok(all)
}

/// `None` when the process is gone.
fn read_stat(path: &Path) -> io::Result<Option<Stat>> {
    match std::fs::read(path) {
        Ok(stat) => parse_stat(&stat).map(Some).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is not in the form of proc(5)", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// proc(5): `pid (comm) state ppid …`, number of threads in field 20, start time in field 22. The name may hold anything, `)` and spaces too.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(&stat[..stat.iter().position(|byte| *byte == b' ')?]).ok()?.parse().ok()?;
    let mut fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let threads: i64 = fields.nth(15)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    let (zombie, stopped) = (matches!(state, "Z" | "X") && threads <= 1, matches!(state, "T" | "t"));
    Some(Stat { process: Process { pid, started }, parent, zombie, stopped })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let rest = "S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        for name in ["sh", "a b", "x) Z 1 (", ")"] {
            let stat = parse_stat(format!("42 ({name}) {rest}").as_bytes()).unwrap();
            assert_eq!(
                stat,
                Stat { process: Process { pid: 42, started: 987_654 }, parent: 7, zombie: false, stopped: false },
                "{name}"
            );
        }
    }

    #[test]
    fn who_has_threads_that_work_is_not_dead() {
        let table = [("S", 1, false), ("Z", 1, true), ("Z", 0, true), ("X", 0, true), ("Z", 2, false), ("R", 2, false)];
        for (state, threads, zombie) in table {
            let stat = format!("42 (sh) {state} 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 {threads} 0 987654 1 1");
            assert_eq!(parse_stat(stat.as_bytes()).unwrap().zombie, zombie, "{stat}");
        }
    }

    #[test]
    fn a_tree_is_what_hangs_below_its_root() {
        let stat = |pid, parent| Stat { process: Process { pid, started: 1 }, parent, zombie: false, stopped: false };
        let table = [stat(2, 1), stat(5, 4), stat(4, 3), stat(3, 2), stat(9, 1), stat(6, 3)];
        let mut pids: Vec<i32> = below(2, &table).into_iter().map(|stat| stat.process.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4, 5, 6]);
    }

    #[test]
    fn what_a_turn_leaves_is_told_from_what_the_agent_has() {
        let stat = |pid, parent| Stat { process: Process { pid, started: 1 }, parent, zombie: false, stopped: false };
        // The root 1 has the agent 2, which has the servers 3 and 4; 4 has a helper 5 that it had at its start.
        let start = vec![stat(2, 1), stat(3, 2), stat(4, 2), stat(5, 4), stat(99, 0)];
        let adopted: HashSet<Process> = [3, 4, 5].map(|pid| Process { pid, started: 1 }).into();
        let check = |more: &[Stat], wanted: Option<&[i32]>| {
            let table = [start.as_slice(), more].concat();
            let left = leftovers_of(&table, 1, 2, &adopted);
            let pids = left.map(|left| left.into_iter().map(|process| process.pid).collect::<Vec<_>>());
            assert_eq!(pids.as_deref(), wanted, "{more:?}");
        };
        check(&[], Some(&[]));
        // An orphan, and its child.
        check(&[stat(7, 1), stat(8, 7)], Some(&[7, 8]));
        // A process that a server has started since.
        check(&[stat(7, 3), stat(8, 7)], Some(&[7, 8]));
        // The agent's own work, at any depth; a dead one is none.
        check(&[stat(7, 2)], None);
        check(&[stat(9, 1), stat(7, 2), stat(8, 7)], None);
        check(&[Stat { zombie: true, ..stat(7, 2) }], Some(&[]));
        // An id that was given away again is not the server that had it.
        let table =
            [stat(2, 1), Stat { process: Process { pid: 3, started: 9 }, parent: 2, zombie: false, stopped: false }];
        assert_eq!(leftovers_of(&table, 1, 2, &adopted), None);
        // A server whose parent has died serves nobody.
        let table = [stat(2, 1), stat(5, 1)];
        assert_eq!(leftovers_of(&table, 1, 2, &adopted), Some(vec![Process { pid: 5, started: 1 }]));
    }

    #[test]
    fn this_process_is_seen_and_another_start_time_is_another_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let stat = read_stat(Path::new("/proc/self/stat")).unwrap().unwrap();
        assert_eq!(stat.process.pid, own);
        // A signal for a process that had this id before must not reach us.
        signal(Process { started: stat.process.started - 1, ..stat.process }, Signal::SIGKILL).unwrap();
    }

    proptest! {
        #[test]
        fn no_stat_makes_it_panic(stat: Vec<u8>) {
            parse_stat(&stat);
        }
    }
}
