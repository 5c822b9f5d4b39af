//! Samples and how they are shown: all of them, in the order in which they were taken.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Durations of one kind.
#[derive(Default)]
pub struct Samples(Vec<Duration>);

impl Extend<Duration> for Samples {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, samples: T) {
        self.0.extend(samples);
    }
}

impl From<Vec<Duration>> for Samples {
    fn from(samples: Vec<Duration>) -> Self {
        Self(samples)
    }
}

impl Samples {
    /// The smallest sample that `percent` of them do not exceed.
    pub fn percentile(&self, percent: usize) -> Result<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).copied().context("nothing was measured")
    }

    /// Prints the percentiles, and whether the bound on one of them is kept; gives what is to be told of one that is not.
    pub fn report(&self, what: &str, bound: Option<(usize, Duration)>) -> Result<Option<String>> {
        let (p50, p95, p99) = (self.percentile(50)?, self.percentile(95)?, self.percentile(99)?);
        let [p50, p95, p99, max] = [p50, p95, p99, self.percentile(100)?].map(milliseconds);
        println!("{what}: p50 {p50} p95 {p95} p99 {p99} max {max} ms, of {}", self.0.len());
        let Some((percent, limit)) = bound else { return Ok(None) };
        let found = self.percentile(percent)?;
        let missed = (found > limit)
            .then(|| format!("{what}: p{percent} is {} ms, more than {}", milliseconds(found), milliseconds(limit)));
        Ok(missed)
    }

    /// Prints every sample.
    pub fn raw(&self) {
        let shown: Vec<_> = self.0.iter().copied().map(milliseconds).collect();
        println!("  raw, ms: {}", shown.join(" "));
    }
}

/// Milliseconds with one digit behind the point.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

/// From one moment of the wall clock, in microseconds, to another.
pub fn between(from: i64, to: i64) -> Result<Duration> {
    let micros = u64::try_from(to - from).context("the wall clock went back")?;
    Ok(Duration::from_micros(micros))
}

/// This process's resident memory, and the part of it that belongs to no file, in bytes.
pub fn resident() -> Result<(i64, i64)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| -> Result<i64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a line of /proc/self/status")?;
        let kib: i64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    };
    Ok((of("VmRSS:")?, of("RssAnon:")?))
}

/// The processor time that a process has used, and that its children have that are gone.
pub fn worked(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may have spaces: the 12th to 15th are the times, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(") ").context("a name in /proc/<pid>/stat")?;
    let ticks = fields.split(' ').skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// The machine, and how busy it is.
pub fn machine() -> Result<()> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|found| found.1);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("{count} × {}; kernel {}", model.unwrap_or("unknown"), kernel.trim());
    load("before")
}

/// The load of the last minute: others' work on the machine shows in it, and the benchmark's own.
pub fn load(when: &str) -> Result<()> {
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("load {when}: {}", load.split(' ').next().unwrap_or_default());
    Ok(())
}
