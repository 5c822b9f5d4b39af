//! stream-json, the protocol that agents speak: a JSON object a line, the words in on standard input, what happens out on standard output.
//!
//! Everything that comes out is hostile and leaves this module bounded. It starts nothing and keeps no time of its own.

use jiff::Timestamp;
use link::requests::{FailureReason, Outcome, TurnEvent, Usage};
use serde::Deserialize;
use serde_json::Value;

use crate::text::{MAX_ERROR, error_line, one_line, paragraphs};

/// Longest line of an agent's output, in bytes; a longer one breaks the protocol.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// Longest text of one event, in bytes: with its escapes it fits the link's line.
pub const MAX_TEXT: usize = 400 * 1024;

/// Longest summary of a tool call, in characters.
const MAX_SUMMARY: usize = 200;

/// Longest name of a tool, in characters.
const MAX_NAME: usize = 80;

/// The line that hands an agent its words.
pub fn prompt_line(words: &str) -> Vec<u8> {
    let line = serde_json::json!({ "type": "user", "message": { "role": "user", "content": words } });
    format!("{line}\n").into_bytes()
}

/// The words of such a line: the practice agent's ear.
pub fn read_prompt(line: &str) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Line {
        message: Message,
    }
    #[derive(Deserialize)]
    struct Message {
        content: String,
    }
    serde_json::from_str::<Line>(line).map(|line| line.message.content)
}

/// What a line of an agent's output amounts to.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// So many events, or none.
    Events(Vec<TurnEvent>),
    /// The turn's result, after what was still held back.
    End(Vec<TurnEvent>, Outcome, Option<Usage>),
    /// Not a line of the protocol.
    Noise,
}

/// Understands one turn's lines.
#[derive(Debug, Default)]
pub struct Listener {
    /// What the agent said last: its answer, if nothing follows but the result.
    held: Option<String>,
    /// The present rate limit was told of.
    limited: bool,
}

impl Listener {
    /// Takes a line; `now` turns a moment into a duration.
    pub fn hear(&mut self, line: &[u8], now: Timestamp) -> Heard {
        #[derive(Deserialize)]
        struct Kind {
            r#type: String,
        }
        let Ok(Kind { r#type }) = serde_json::from_slice(line) else { return Heard::Noise };
        match r#type.as_str() {
            "assistant" => {
                serde_json::from_slice(line).map_or(Heard::Noise, |said| Heard::Events(self.assistant(said)))
            }
            "result" => match serde_json::from_slice(line) {
                Ok(result) => self.result(result),
                Err(error) => {
                    let error = format!("its result line is malformed: {}", error_line(&error));
                    Heard::End(self.flush(), failed(FailureReason::Protocol { error }), None)
                }
            },
            "rate_limit_event" => {
                Heard::Events(serde_json::from_slice(line).map_or(Vec::new(), |limit| self.rate_limit(&limit, now)))
            }
            "system" => Heard::Events(serde_json::from_slice(line).map_or(Vec::new(), |system| self.system(&system))),
            // Tool results, echoes and what later versions may say.
            _ => Heard::Events(Vec::new()),
        }
    }

    /// What was held back, for a turn that ends without a result.
    pub fn flush(&mut self) -> Vec<TurnEvent> {
        self.held.take().map(|text| TurnEvent::Spoke { text }).into_iter().collect()
    }

    fn assistant(&mut self, said: Assistant) -> Vec<TurnEvent> {
        self.limited = false;
        let mut events = Vec::new();
        for block in said.message.content {
            match block {
                // What a helper of the agent's says is for the agent.
                Block::Text { text } if said.parent_tool_use_id.is_none() && !text.trim().is_empty() => {
                    events.append(&mut self.flush());
                    self.held = Some(paragraphs(&text, MAX_TEXT));
                }
                Block::ToolUse { name, input } => {
                    events.append(&mut self.flush());
                    events.push(TurnEvent::ToolCalled {
                        summary: summary(&name, &input),
                        name: one_line(&name, MAX_NAME),
                    });
                }
                Block::Text { .. } | Block::Other => {}
            }
        }
        events
    }

    fn result(&mut self, result: ResultLine) -> Heard {
        let usage = result.usage.map(|used| Usage {
            input_tokens: used
                .input_tokens
                .saturating_add(used.cache_creation_input_tokens)
                .saturating_add(used.cache_read_input_tokens),
            output_tokens: used.output_tokens,
            cost_usd: result.total_cost_usd.filter(|cost| cost.is_finite()),
        });
        let said = result.result.filter(|text| !text.trim().is_empty());
        if result.is_error {
            let text = said
                .or_else(|| (!result.errors.is_empty()).then(|| result.errors.join("\n")))
                .unwrap_or(result.subtype);
            // The CLI says an error of the model's service as if the agent had said it.
            self.held.take_if(|held| *held == paragraphs(&text, MAX_TEXT));
            let text = paragraphs(&text, MAX_ERROR);
            return Heard::End(self.flush(), failed(FailureReason::Reported { text }), usage);
        }
        let text = match said {
            Some(said) => {
                let text = paragraphs(&said, MAX_TEXT);
                self.held.take_if(|held| *held == text);
                text
            }
            None => self.held.take().unwrap_or_default(),
        };
        Heard::End(self.flush(), Outcome::Answered { text }, usage)
    }

    /// Soft warnings are not told; a hard limit is, once.
    fn rate_limit(&mut self, limit: &RateLimit, now: Timestamp) -> Vec<TurnEvent> {
        if limit.rate_limit_info.status != "rejected" {
            return Vec::new();
        }
        let resets_at = limit.rate_limit_info.resets_at;
        self.limited_for(resets_at.map(|at| u64::try_from(at.saturating_sub(now.as_second())).unwrap_or(0)))
    }

    /// The CLI tries again by itself when the service says 429.
    fn system(&mut self, system: &System) -> Vec<TurnEvent> {
        if system.subtype != "api_retry" || system.error_status != Some(429) {
            return Vec::new();
        }
        self.limited_for(None)
    }

    fn limited_for(&mut self, retry_after_secs: Option<u64>) -> Vec<TurnEvent> {
        if std::mem::replace(&mut self.limited, true) {
            return Vec::new();
        }
        vec![TurnEvent::RateLimited { retry_after_secs }]
    }
}

/// The last lines of the output are added by whoever has them.
fn failed(reason: FailureReason) -> Outcome {
    Outcome::Failed { reason, last_lines: Vec::new() }
}

/// One line that tells what a tool is used on: the argument that matters, or all of them.
fn summary(tool: &str, input: &Value) -> String {
    let key = match tool {
        "Bash" => "command",
        "Edit" | "MultiEdit" | "Read" | "Write" => "file_path",
        "NotebookEdit" => "notebook_path",
        "Glob" | "Grep" => "pattern",
        "Task" => "description",
        "WebFetch" => "url",
        "WebSearch" => "query",
        _ => "",
    };
    match (input.get(key).and_then(Value::as_str), input) {
        (Some(argument), _) => one_line(argument, MAX_SUMMARY),
        (None, Value::Null) => String::new(),
        (None, Value::Object(arguments)) if arguments.is_empty() => String::new(),
        (None, _) => one_line(&input.to_string(), MAX_SUMMARY),
    }
}

#[derive(Deserialize)]
struct Assistant {
    message: Message,
    parent_tool_use_id: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Vec<Block>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        name: String,
        #[serde(default)]
        input: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct ResultLine {
    #[serde(default)]
    subtype: String,
    is_error: bool,
    result: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
    usage: Option<Used>,
    total_cost_usd: Option<f64>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the protocol's own names")]
struct Used {
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    cache_creation_input_tokens: u64,
    #[serde(default)]
    cache_read_input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

#[derive(Deserialize)]
struct RateLimit {
    rate_limit_info: RateLimitInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RateLimitInfo {
    status: String,
    /// Seconds since 1970.
    resets_at: Option<i64>,
}

#[derive(Deserialize)]
struct System {
    subtype: String,
    error_status: Option<u16>,
}

#[cfg(test)]
#[path = "stream_json_tests.rs"]
mod tests;
