//! An agent that answers with times of the wall clock: when it had started, when it had the words, when it wrote its result.

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::json;

/// How this program is asked to be the agent.
pub const ARGUMENT: &str = "be-the-agent";

/// What such an answer tells, in microseconds of the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The process ran.
    pub started: i64,
    /// It had read the words.
    pub heard: i64,
    /// It was about to write its result line.
    pub answered: i64,
}

impl Times {
    /// Reads an answer.
    pub fn read(answer: &str) -> Result<Self> {
        let times: Vec<i64> = answer.split(' ').map(str::parse).collect::<Result<_, _>>().context(answer.to_owned())?;
        let [started, heard, answered] = times[..] else { anyhow::bail!("{answer} is no answer of the agent") };
        Ok(Self { started, heard, answered })
    }
}

/// Answers each line of words.
pub fn run() -> Result<()> {
    let now = || Timestamp::now().as_microsecond();
    let started = now();
    let mut output = std::io::stdout();
    for words in std::io::stdin().lock().lines() {
        words?;
        let answer = format!("{started} {} {}", now(), now());
        let line = json!({"type": "result", "subtype": "success", "is_error": false, "result": answer});
        writeln!(output, "{line}")?;
        output.flush()?;
    }
    Ok(())
}
