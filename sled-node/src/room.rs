//! How much room is left in this container: memory, by its cgroup (v1 or v2) and by the machine, and
//! processes, by its cgroup. A thread counts as a process there.
//!
//! It reads, at the moment of asking; it ends nothing.

use std::path::{Path, PathBuf};

/// Room is short when less than this part of what there may be is left.
const SHORT: u64 = 8;

/// It is ample when at least this part is.
const AMPLE: u64 = 2;

/// Where the kernel tells of room.
#[derive(Debug, Clone)]
pub struct Room {
    /// Where cgroups are mounted: `/sys/fs/cgroup`.
    pub cgroups: PathBuf,
    /// Where processes are: `/proc`.
    pub proc: PathBuf,
}

/// How much is left of the container's memory, of its processes, or of the machine's memory, whichever is nearest its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Less than an eighth: what is not needed should go.
    Short,
    /// Enough for what is there.
    Enough,
    /// At least half.
    Ample,
}

/// Memory in bytes, or processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Amount {
    limit: u64,
    left: u64,
    /// What files take that were used again: the kernel parts with that, too, but not gladly.
    cached: u64,
}

impl Amount {
    fn judged(self) -> Left {
        match self {
            Self { limit, left, .. } if left < limit / SHORT => Left::Short,
            Self { limit, left, cached } if left + cached < limit / AMPLE => Left::Enough,
            Self { .. } => Left::Ample,
        }
    }
}

impl Room {
    /// How much is left. What cannot be read limits nothing.
    pub fn left(&self) -> Left {
        let memory = self.of_cgroup("memory", |place| memory(place, &V2).or_else(|| memory(place, &V1)));
        let all = [memory, self.of_cgroup("pids", processes), self.of_machine()];
        all.into_iter().flatten().map(Amount::judged).min().unwrap_or(Left::Ample)
    }

    /// What `read` finds in the first of the container's own cgroups that has it.
    fn of_cgroup(&self, controller: &str, read: impl Fn(&Path) -> Option<Amount>) -> Option<Amount> {
        let groups = std::fs::read_to_string(self.proc.join("self/cgroup")).unwrap_or_default();
        let v1 = self.cgroups.join(controller);
        // In a container whose cgroups are not namespaced the path is the host's, and what is mounted is the container's own.
        let places = groups.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start_matches('/'));
            match controllers {
                "" => Some(self.cgroups.join(path)),
                _ if controllers.split(',').any(|name| name == controller) => Some(v1.join(path)),
                _ => None,
            }
        });
        let places: Vec<PathBuf> = places.chain([v1.clone(), self.cgroups.clone()]).collect();
        places.iter().find_map(|place| read(place))
    }

    fn of_machine(&self) -> Option<Amount> {
        let info = std::fs::read_to_string(self.proc.join("meminfo")).ok()?;
        let kilobytes = |name| field(&info, name)?.checked_mul(1024);
        Some(Amount { limit: kilobytes("MemTotal:")?, left: kilobytes("MemAvailable:")?, cached: 0 })
    }
}

/// The names of a cgroup version's files on memory.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// What of `memory.stat` is used and can be had back at once.
    cache: &'static str,
    /// What can be had back later.
    active: &'static str,
}

const V2: Files = Files { limit: "memory.max", used: "memory.current", cache: "inactive_file", active: "active_file" };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
    active: "total_active_file",
};

/// `None` where there is no limit: v2 says `max`, v1 a number beyond any memory.
fn memory(place: &Path, files: &Files) -> Option<Amount> {
    let limit = number(place, files.limit).filter(|limit| *limit < 1 << 60)?;
    let stat = std::fs::read_to_string(place.join("memory.stat")).unwrap_or_default();
    let used = number(place, files.used)?.saturating_sub(field(&stat, files.cache).unwrap_or(0));
    let cached = field(&stat, files.active).unwrap_or(0).min(used);
    Some(Amount { limit, left: limit.saturating_sub(used), cached })
}

/// `None` where there is no limit: both versions say `max`.
fn processes(place: &Path) -> Option<Amount> {
    let limit = number(place, "pids.max")?;
    Some(Amount { limit, left: limit.saturating_sub(number(place, "pids.current")?), cached: 0 })
}

/// The number that a file consists of.
fn number(place: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(place.join(file)).ok()?.trim().parse().ok()
}

/// The number that follows `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much is left where the files have these contents.
    fn left(files: &[(&str, &str)]) -> Left {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Room { cgroups: folder.path().join("cgroup"), proc: folder.path().join("proc") }.left()
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let v2 = |place: &str, limit: &str, used: &str, cache: &str| {
            left(&[
                ("proc/self/cgroup", "0::/slice/own\n"),
                (&format!("cgroup/{place}memory.max"), limit),
                (&format!("cgroup/{place}memory.current"), used),
                (&format!("cgroup/{place}memory.stat"), &format!("anon 5\ninactive_file {cache}\nactive_file 9")),
            ])
        };
        for place in ["", "slice/own/"] {
            assert_eq!(v2(place, "1000\n", "500\n", "0"), Left::Ample);
            // The nine of active files count as left here, and not where memory is short.
            assert_eq!(v2(place, "1000\n", "509\n", "0"), Left::Ample);
            assert_eq!(v2(place, "1000\n", "510\n", "0"), Left::Enough);
            assert_eq!(v2(place, "1000\n", "876\n", "0"), Left::Short);
            assert_eq!(v2(place, "1000\n", "900\n", "0"), Left::Short);
            // Cache that the kernel can have back is not in the way.
            assert_eq!(v2(place, "1000\n", "900\n", "300"), Left::Enough);
            assert_eq!(v2(place, "max\n", "900\n", "0"), Left::Ample);
        }
        let v1 = |place: &str, limit: &str| {
            left(&[
                ("proc/self/cgroup", "11:cpu,cpuacct:/x\n4:memory:/docker/own\n0::/\n"),
                (&format!("cgroup/memory/{place}memory.limit_in_bytes"), limit),
                (&format!("cgroup/memory/{place}memory.usage_in_bytes"), "950\n"),
                (&format!("cgroup/memory/{place}memory.stat"), "inactive_file 800\ntotal_inactive_file 1\n"),
            ])
        };
        for place in ["", "docker/own/"] {
            assert_eq!(v1(place, "1000\n"), Left::Short);
            assert_eq!(v1(place, "1800\n"), Left::Enough);
            assert_eq!(v1(place, "10000\n"), Left::Ample);
            assert_eq!(v1(place, "9223372036854771712\n"), Left::Ample);
        }
    }

    #[test]
    fn the_machines_memory_counts_too() {
        let machine = |available: u64| {
            left(&[(
                "proc/meminfo",
                &format!("MemTotal:        8000 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n"),
            )])
        };
        assert_eq!(machine(900), Left::Short);
        assert_eq!(machine(1100), Left::Enough);
        assert_eq!(machine(4000), Left::Ample);
    }

    #[test]
    fn processes_count_too() {
        for place in ["cgroup/", "cgroup/pids/"] {
            let processes = |limit: &str, used: &str| {
                left(&[
                    ("proc/self/cgroup", "7:pids:/docker/own\n0::/\n"),
                    ("proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 5000 kB\n"),
                    (&format!("{place}pids.max"), limit),
                    (&format!("{place}pids.current"), used),
                ])
            };
            assert_eq!(processes("64\n", "57\n"), Left::Short);
            assert_eq!(processes("64\n", "33\n"), Left::Enough);
            assert_eq!(processes("64\n", "32\n"), Left::Ample);
            assert_eq!(processes("max\n", "4000\n"), Left::Ample);
        }
    }

    #[test]
    fn what_is_not_there_limits_nothing() {
        assert_eq!(left(&[]), Left::Ample);
        let unread = [("proc/meminfo", "?"), ("cgroup/memory.max", "?"), ("proc/self/cgroup", "x\n1:y\n")];
        assert_eq!(left(&unread), Left::Ample);
    }
}
