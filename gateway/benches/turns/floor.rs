//! What there is no way around on this machine, measured in the same run.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};

use crate::{figures::Samples, node::sled};

/// How often each is done.
const TIMES: usize = 40;

/// A page appended to a file, and on the disk: what one commit costs at least.
pub fn flush() -> Result<Samples> {
    let folder = tempfile::tempdir()?;
    let mut file = File::create(folder.path().join("file"))?;
    let mut samples = Samples::default();
    for _ in 0..TIMES {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        samples.extend([began.elapsed()]);
    }
    Ok(samples)
}

/// The practice agent started without anything around it, to its first line.
pub fn start() -> Result<Samples> {
    let sled = sled()?;
    let mut samples = Samples::default();
    for _ in 0..TIMES {
        let began = Instant::now();
        let mut agent = Command::new(&sled).arg("echo-agent").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let words = br#"{"type":"user","message":{"role":"user","content":"hello"}}"#;
        let mut input = agent.stdin.take().context("its input")?;
        input.write_all(words)?;
        input.write_all(b"\n")?;
        drop(input);
        let mut output = BufReader::new(agent.stdout.take().context("its output")?).lines();
        output.next().context("its answer")??;
        samples.extend([began.elapsed()]);
        // To its end, so that it can write the rest.
        for line in output {
            line?;
        }
        agent.wait()?;
    }
    Ok(samples)
}
