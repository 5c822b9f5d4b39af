//! The practice agent: it repeats what it was told. It is a process like any other agent, so that trying out takes the real way.

use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::path::Path;

use serde_json::json;

use super::stream_json;

/// The command line of the practice agent.
pub fn argv(sled: &Path, notice: Option<&str>) -> Vec<OsString> {
    let mut argv = vec![sled.into(), "echo-agent".into()];
    argv.extend(notice.map(|notice| format!("--notice={notice}").into()));
    argv
}

/// Answers each user line of `input` until it ends; the first answer begins with `notice`.
pub fn run(mut notice: Option<String>, input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    for line in input.lines() {
        let words = stream_json::read_prompt(&line?)?;
        let mut answer = notice.take().map_or_else(String::new, |notice| format!("{notice}\n\n"));
        answer.push_str("You said: ");
        answer.push_str(&words);
        for said in [
            json!({"type": "assistant", "message": {"role": "assistant", "content": [{"type": "text", "text": answer}]}}),
            json!({"type": "result", "subtype": "success", "is_error": false, "result": answer}),
        ] {
            writeln!(output, "{said}")?;
        }
        output.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn it_says_what_it_was_told_and_the_notice_once() {
        let input =
            [stream_json::prompt_line("hello\n\"you\"", Uuid::nil()), stream_json::prompt_line("again", Uuid::nil())]
                .concat();
        let mut output = Vec::new();
        run(Some("No key yet.".to_owned()), input.as_slice(), &mut output).unwrap();
        let answers: Vec<String> = output
            .split(|byte| *byte == b'\n')
            .filter_map(|line| {
                serde_json::from_slice::<serde_json::Value>(line).ok()?["result"].as_str().map(str::to_owned)
            })
            .collect();
        assert_eq!(answers, ["No key yet.\n\nYou said: hello\n\"you\"", "You said: again"]);
    }
}
