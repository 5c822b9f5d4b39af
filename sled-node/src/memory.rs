//! How much memory is left in this container, by its cgroup (v1 or v2) and by the machine.
//!
//! It reads, at the moment of asking; it ends nothing.

use std::path::{Path, PathBuf};

/// Memory is short when less than this part of what there may be is left.
const SHORT: u64 = 8;

/// Where the kernel tells of memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Where cgroups are mounted: `/sys/fs/cgroup`.
    pub cgroups: PathBuf,
    /// Where processes are: `/proc`.
    pub proc: PathBuf,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    limit: u64,
    left: u64,
}

impl Room {
    fn is_short(self) -> bool {
        self.left < self.limit / SHORT
    }
}

impl Memory {
    /// Whether so little is left that what is not needed should go. What cannot be read limits nothing.
    pub fn is_short(&self) -> bool {
        [self.of_cgroup(), self.of_machine()].into_iter().flatten().any(Room::is_short)
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
        Some(Room { limit: kilobytes("MemTotal:")?, left: kilobytes("MemAvailable:")? })
    }
}

/// The names of a cgroup version's files.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// What of `memory.stat` is used and can be had back at once.
    cache: &'static str,
}

const V2: Files = Files { limit: "memory.max", used: "memory.current", cache: "inactive_file" };
const V1: Files = Files { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", cache: "total_inactive_file" };

/// `None` where there is no limit: v2 says `max`, v1 a number beyond any memory.
fn room(place: &Path, files: &Files) -> Option<Room> {
    let number = |name: &str| std::fs::read_to_string(place.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(files.limit).filter(|limit| *limit < 1 << 60)?;
    let stat = std::fs::read_to_string(place.join("memory.stat")).unwrap_or_default();
    let used = number(files.used)?.saturating_sub(field(&stat, files.cache).unwrap_or(0));
    Some(Room { limit, left: limit.saturating_sub(used) })
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

    /// Whether memory is short where the files have these contents.
    fn check(files: &[(&str, &str)]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Memory { cgroups: folder.path().join("cgroup"), proc: folder.path().join("proc") }.is_short()
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let v2 = |place: &str, limit: &str, used: &str, cache: &str| {
            check(&[
                ("proc/self/cgroup", "0::/slice/own\n"),
                (&format!("cgroup/{place}memory.max"), limit),
                (&format!("cgroup/{place}memory.current"), used),
                (&format!("cgroup/{place}memory.stat"), &format!("anon 5\ninactive_file {cache}\nactive_file 9")),
            ])
        };
        for place in ["", "slice/own/"] {
            assert!(!v2(place, "1000\n", "100\n", "0"));
            assert!(v2(place, "1000\n", "900\n", "0"));
            // Cache that the kernel can have back is not in the way.
            assert!(!v2(place, "1000\n", "900\n", "300"));
            assert!(!v2(place, "max\n", "900\n", "0"));
        }
        let v1 = |place: &str, limit: &str| {
            check(&[
                ("proc/self/cgroup", "11:cpu,cpuacct:/x\n4:memory:/docker/own\n0::/\n"),
                (&format!("cgroup/memory/{place}memory.limit_in_bytes"), limit),
                (&format!("cgroup/memory/{place}memory.usage_in_bytes"), "950\n"),
                (&format!("cgroup/memory/{place}memory.stat"), "inactive_file 800\ntotal_inactive_file 1\n"),
            ])
        };
        for place in ["", "docker/own/"] {
            assert!(v1(place, "1000\n"));
            assert!(!v1(place, "10000\n"));
            assert!(!v1(place, "9223372036854771712\n"));
        }
    }

    #[test]
    fn the_machines_memory_counts_too() {
        let machine = |available: u64| {
            check(&[(
                "proc/meminfo",
                &format!("MemTotal:        8000 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n"),
            )])
        };
        assert!(machine(900));
        assert!(!machine(1100));
    }

    #[test]
    fn what_is_not_there_limits_nothing() {
        assert!(!check(&[]));
        assert!(!check(&[("proc/meminfo", "?"), ("cgroup/memory.max", "?"), ("proc/self/cgroup", "x\n1:y\n")]));
    }
}
