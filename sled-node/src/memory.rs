//! How much memory is left in this container, by its cgroup (v1 or v2) and by the machine.
//!
//! It reads, at the moment of asking; it ends nothing.

use std::path::{Path, PathBuf};

/// Memory is short when less than this part of what there may be is left.
const SHORT: u64 = 8;

/// It is ample when at least this part is.
const AMPLE: u64 = 2;

/// Where the kernel tells of memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Where cgroups are mounted: `/sys/fs/cgroup`.
    pub cgroups: PathBuf,
    /// Where processes are: `/proc`.
    pub proc: PathBuf,
}

/// How much is left of the container's memory or of the machine's, whichever is nearer its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Less than an eighth: what is not needed should go.
    Short,
    /// Enough for what is there.
    Enough,
    /// At least half.
    Ample,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    limit: u64,
    left: u64,
    /// What files take that were used again: the kernel parts with that, too, but not gladly.
    cached: u64,
}

impl Room {
    fn judged(self) -> Left {
        match self {
            Self { limit, left, .. } if left < limit / SHORT => Left::Short,
            Self { limit, left, cached } if left + cached < limit / AMPLE => Left::Enough,
            Self { .. } => Left::Ample,
        }
    }
}

impl Memory {
    /// How much is left. What cannot be read limits nothing.
    pub fn left(&self) -> Left {
        [self.of_cgroup(), self.of_machine()].into_iter().flatten().map(Room::judged).min().unwrap_or(Left::Ample)
    }

    fn of_cgroup(&self) -> Option<Room> {
        let groups = std::fs::read_to_string(self.proc.join("self/cgroup")).unwrap_or_default();
        let v1 = self.cgroups.join("memory");
        // In a container whose cgroups are not namespaced the path is the host's, and what is mounted is the container's own.
        let places = groups.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start_matches('/'));
            match controllers {
                "" => Some(self.cgroups.join(path)),
                _ if controllers.split(',').any(|name| name == "memory") => Some(v1.join(path)),
                _ => None,
            }
        });
        let places: Vec<PathBuf> = places.chain([v1.clone(), self.cgroups.clone()]).collect();
        places.iter().find_map(|place| room(place, &V2).or_else(|| room(place, &V1)))
    }

    fn of_machine(&self) -> Option<Room> {
        let info = std::fs::read_to_string(self.proc.join("meminfo")).ok()?;
        let kilobytes = |name| field(&info, name)?.checked_mul(1024);
        Some(Room { limit: kilobytes("MemTotal:")?, left: kilobytes("MemAvailable:")?, cached: 0 })
    }
}

/// The names of a cgroup version's files.
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
fn room(place: &Path, files: &Files) -> Option<Room> {
    let number = |name: &str| std::fs::read_to_string(place.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(files.limit).filter(|limit| *limit < 1 << 60)?;
    let stat = std::fs::read_to_string(place.join("memory.stat")).unwrap_or_default();
    let used = number(files.used)?.saturating_sub(field(&stat, files.cache).unwrap_or(0));
    let cached = field(&stat, files.active).unwrap_or(0).min(used);
    Some(Room { limit, left: limit.saturating_sub(used), cached })
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
        Memory { cgroups: folder.path().join("cgroup"), proc: folder.path().join("proc") }.left()
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
    fn what_is_not_there_limits_nothing() {
        assert_eq!(left(&[]), Left::Ample);
        let unread = [("proc/meminfo", "?"), ("cgroup/memory.max", "?"), ("proc/self/cgroup", "x\n1:y\n")];
        assert_eq!(left(&unread), Left::Ample);
    }
}
