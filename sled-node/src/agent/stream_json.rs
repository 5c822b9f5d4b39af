//! stream-json, the protocol that agents speak: a JSON object a line, the words in on standard input, what happens out on standard output.
//!
//! Everything that comes out is hostile and leaves this module bounded. It starts nothing and keeps no time of its own.

use std::borrow::Cow;

use link::requests::{FailureReason, Outcome, TurnEvent, Usage};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::permissions::Question;
use crate::text::{MAX_ERROR, error_line, lines, one_line, paragraphs};

/// Longest line of an agent's output, in bytes; a longer one breaks the protocol.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// Longest text of one event, in bytes: with its escapes it fits the link's line.
pub const MAX_TEXT: usize = 400 * 1024;

/// Longest summary of a tool call, in characters.
const MAX_SUMMARY: usize = 200;

/// Longest summary of a tool call that people decide on, in characters.
const MAX_ASKED_SUMMARY: usize = 2000;

/// Longest name of a tool, in characters.
const MAX_NAME: usize = 80;

/// Longest name that an agent gives a request, in bytes.
const MAX_REQUEST_ID: usize = 200;

/// The id of the words that an attempt gives its agents, the `nth` time from 0. The agent keeps it in its memory, where a later attempt looks for it.
pub fn words_id(turn: &str, attempt: u32, nth: u32) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{turn}#{attempt} {nth}").as_bytes())
}

/// The line that hands an agent its words. By `id` it is known again when the agent echoes it; the CLI lets a line go whose id it has seen
/// before, so each gets a fresh one.
pub fn prompt_line(words: &str, id: Uuid) -> Vec<u8> {
    line(&json!({ "type": "user", "uuid": id, "message": { "role": "user", "content": words } }))
}

/// The line that lets an agent use a tool as it asked to.
pub fn allow(request: &str, input: &RawValue) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Allowed<'a> {
        behavior: &'static str,
        /// Byte for byte as it came.
        updated_input: &'a RawValue,
    }
    control_success(request, Allowed { behavior: "allow", updated_input: input })
}

/// The line that does not, and says why.
pub fn deny(request: &str, why: &str) -> Vec<u8> {
    control_success(request, json!({ "behavior": "deny", "message": why }))
}

/// The line that answers what cannot be answered, so that the agent does not wait for it.
pub fn control_error(request: &str, error: &str) -> Vec<u8> {
    let response = json!({ "subtype": "error", "request_id": request, "error": error });
    line(&json!({ "type": "control_response", "response": response }))
}

fn control_success(request_id: &str, response: impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Success<'a, R> {
        subtype: &'static str,
        request_id: &'a str,
        #[serde(rename = "response")]
        content: R,
    }
    #[derive(Serialize)]
    struct Line<T> {
        r#type: &'static str,
        response: T,
    }
    let response = Success { subtype: "success", request_id, content: response };
    line(&Line { r#type: "control_response", response })
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and what was JSON already: nothing that could not be written.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Whether a line of an agent that was told nothing means that it works all the same. Its waiting must not be taken for work: it may tell of
/// what became of its tools, or what its limits are.
pub fn is_work(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Told {
        r#type: String,
        #[serde(default)]
        subtype: String,
    }
    let Ok(told) = serde_json::from_slice::<Told>(line) else { return false };
    match told.r#type.as_str() {
        "assistant" | "control_request" | "result" | "user" => true,
        "system" => told.subtype == "init",
        _ => false,
    }
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
    /// The agent is ready: its start is over.
    Ready,
    /// It asks for permission, after what was still held back.
    Asked(Vec<TurnEvent>, Question),
    /// It no longer wants to know what it asked under this name of its own.
    Withdrawn(String),
    /// It wants something, under this name of its own, that nobody here can do.
    Unanswerable(String),
    /// It works at something else than its words, which it has not echoed yet.
    Unasked,
    /// The turn's result, after what was still held back.
    End(Vec<TurnEvent>, Outcome, Option<Usage>),
    /// The service's limit has ended it, after what was still held back: it is to go on later.
    Limited(Vec<TurnEvent>, Limit, Option<Usage>),
    /// Not a line of the protocol.
    Noise,
}

/// A hard limit of the model's service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// When it lifts, in seconds since 1970, if the service said.
    pub resets_at: Option<i64>,
    /// What the agent says of it.
    pub text: String,
}

/// What people were told of an attempt and are not told again, whichever of its agents it was of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    /// The agent has the people's words.
    pub heard: bool,
    /// How far they know that the service limits the rate.
    pub limited: LimitTold,
}

/// What people were told of a limit that the agent has not got over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LimitTold {
    /// Nothing, or there is none.
    #[default]
    Nothing,
    /// That there is one.
    Met,
    /// And how long the turn waits for it.
    Wait,
}

/// Understands what an agent says from when it gets its words to its result.
#[derive(Debug, Default)]
pub struct Listener {
    /// The id of the words that it was given.
    words: Uuid,
    told: Told,
    /// Until it echoes those very words it does not work at them.
    unechoed: bool,
    /// What the agent said last: its answer, if nothing follows but the result.
    held: Option<String>,
    /// The service has refused, and the agent has not spoken since.
    refused: Option<Refused>,
}

/// A refusal of the model's service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    /// When it lifts, in seconds since 1970, if the service said.
    resets_at: Option<i64>,
}

impl Listener {
    /// For an agent that was given `words` when so much was told.
    pub fn new(words: Uuid, told: Told) -> Self {
        Self { words, told, ..Self::default() }
    }

    /// For an agent that has waited and echoes its words: it may have begun to work by itself meanwhile, and what it says of that is not of this turn.
    pub fn await_echo(&mut self) {
        self.unechoed = true;
    }

    /// What was told by now.
    pub fn told(&self) -> Told {
        self.told
    }

    /// Takes a line.
    pub fn hear(&mut self, line: &[u8]) -> Heard {
        #[derive(Deserialize)]
        struct Kind {
            r#type: String,
        }
        let Ok(Kind { r#type }) = serde_json::from_slice(line) else { return Heard::Noise };
        match r#type.as_str() {
            "assistant" | "control_request" | "result" if self.unechoed => Heard::Unasked,
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
                if let Ok(RateLimit { rate_limit_info: info }) = serde_json::from_slice(line) {
                    // A warning is no refusal, and a refusal that is lifted none any more.
                    self.refused = (info.status == "rejected").then_some(Refused { resets_at: info.resets_at });
                }
                Heard::Events(Vec::new())
            }
            "system" => match serde_json::from_slice(line) {
                Ok(System { subtype, .. }) if subtype == "init" => Heard::Ready,
                Ok(system) => Heard::Events(self.system(&system)),
                Err(_) => Heard::Events(Vec::new()),
            },
            "user" => Heard::Events(serde_json::from_slice(line).map_or(Vec::new(), |user| self.user(&user))),
            "control_request" => serde_json::from_slice(line).map_or(Heard::Noise, |request| self.control(request)),
            "control_cancel_request" => serde_json::from_slice(line)
                .map_or(Heard::Noise, |Withdrawal { request_id }| Heard::Withdrawn(request_id)),
            // What later versions may say.
            _ => Heard::Events(Vec::new()),
        }
    }

    /// What was held back, for a turn that ends without a result.
    pub fn flush(&mut self) -> Vec<TurnEvent> {
        self.held.take().map(|text| TurnEvent::Spoke { text }).into_iter().collect()
    }

    /// An echo of the words shows that the agent has them.
    fn user(&mut self, user: &User) -> Vec<TurnEvent> {
        let given = user.uuid.as_deref().map(|id| Uuid::parse_str(id) == Ok(self.words));
        if user.is_replay && given.unwrap_or(true) {
            self.unechoed &= given.is_none();
            self.has_words()
        } else {
            // A tool's result.
            Vec::new()
        }
    }

    fn has_words(&mut self) -> Vec<TurnEvent> {
        if std::mem::replace(&mut self.told.heard, true) { Vec::new() } else { vec![TurnEvent::Heard] }
    }

    fn control(&mut self, request: ControlRequest) -> Heard {
        let ControlRequest { request_id, request } = request;
        if request_id.len() > MAX_REQUEST_ID {
            return Heard::Noise;
        }
        match (request.subtype.as_str(), request.tool_name, request.input) {
            ("can_use_tool", Some(tool), Some(input)) => {
                let (tool, summary) = (one_line(&tool, MAX_NAME), asked_summary(&tool, &input));
                Heard::Asked(self.flush(), Question { agents_id: request_id, tool, summary, input })
            }
            _ => Heard::Unanswerable(request_id),
        }
    }

    fn assistant(&mut self, said: Assistant) -> Vec<TurnEvent> {
        if let Some(error) = said.error {
            // The CLI's own word, not the model's; the result says it again.
            if error == "rate_limit" {
                self.refused.get_or_insert(Refused { resets_at: None });
            }
            return Vec::new();
        }
        self.told.limited = LimitTold::Nothing;
        self.refused = None;
        let mut events = self.has_words();
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
                        summary: one_line(&subject(&name, &input), MAX_SUMMARY),
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
            // An error of the model's service can come as if the agent had said it.
            self.held.take_if(|held| *held == paragraphs(&text, MAX_TEXT));
            let text = paragraphs(&text, MAX_ERROR);
            if result.api_error_status == Some(429) || self.refused.is_some() {
                return Heard::Limited(
                    self.flush(),
                    Limit { resets_at: self.refused.and_then(|refused| refused.resets_at), text },
                    usage,
                );
            }
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

    /// The CLI tries again by itself when the service says 429: told, once until it goes on.
    fn system(&mut self, system: &System) -> Vec<TurnEvent> {
        if system.subtype != "api_retry" || system.error_status != Some(429) || self.told.limited != LimitTold::Nothing
        {
            return Vec::new();
        }
        self.told.limited = LimitTold::Met;
        vec![TurnEvent::RateLimited { retry_after_secs: None }]
    }
}

/// The last lines of the output are added by whoever has them.
fn failed(reason: FailureReason) -> Outcome {
    Outcome::Failed { reason, last_lines: Vec::new() }
}

/// What people decide by: what the tool is to be used on, and below it all else that it is given. Where it does not show all, it says so.
fn asked_summary(tool: &str, input: &RawValue) -> String {
    let whole = match serde_json::from_str(input.get()) {
        Ok(Value::Object(arguments)) => all_arguments(tool, &arguments),
        Ok(input) => one_line(&subject(tool, &input), usize::MAX),
        // Nested too deep for that, or with half a character in it: who allows it allows it all the same, so that it is shown as it came.
        Err(_) => one_line(input.get(), usize::MAX),
    };
    let length = whole.chars().count();
    if length <= MAX_ASKED_SUMMARY {
        return whole;
    }
    let shown: String = whole.chars().take(MAX_ASKED_SUMMARY).collect();
    format!("{shown}… ({} more characters)", length - MAX_ASKED_SUMMARY)
}

/// Every argument of a tool, that which matters first. It stands without its name where it is one line; what takes several stands below its name and
/// further in, so that no line of it is taken for another argument.
fn all_arguments(tool: &str, arguments: &Map<String, Value>) -> String {
    let matters = |name: &str| subject_key(tool) == Some(name);
    let first = arguments.iter().filter(|(name, _)| matters(name));
    let rest = arguments.iter().filter(|(name, _)| !matters(name));
    let mut shown = Vec::new();
    for (name, value) in first.chain(rest) {
        let said = value.as_str().map(lines).unwrap_or_default();
        let (bare, name) = (matters(name), one_line(name, MAX_NAME));
        match said.as_slice() {
            [] => shown.push(format!("{name}: {}", one_line(&value.to_string(), usize::MAX))),
            [line] if bare => shown.push(line.trim_start().to_owned()),
            [line] => shown.push(format!("{name}: {}", line.trim_start())),
            several => {
                shown.push(format!("{name}:"));
                shown.extend(several.iter().map(|line| format!("  {line}")));
            }
        }
    }
    shown.join("\n")
}

/// What a tool is used on: the argument that matters, or all of them.
fn subject<'a>(tool: &str, input: &'a Value) -> Cow<'a, str> {
    match (subject_key(tool).and_then(|name| input.get(name)).and_then(Value::as_str), input) {
        (Some(argument), _) => argument.into(),
        (None, Value::Null) => "".into(),
        (None, Value::Object(arguments)) if arguments.is_empty() => "".into(),
        (None, _) => input.to_string().into(),
    }
}

/// The name of the argument that matters; of tools that are not known here, none.
fn subject_key(tool: &str) -> Option<&'static str> {
    Some(match tool {
        "Bash" => "command",
        "Edit" | "MultiEdit" | "Read" | "Write" => "file_path",
        "NotebookEdit" => "notebook_path",
        "Glob" | "Grep" => "pattern",
        "Task" => "description",
        "WebFetch" => "url",
        "WebSearch" => "query",
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Assistant {
    message: Message,
    parent_tool_use_id: Option<String>,
    /// The kind of failure that the CLI tells of in the agent's place.
    error: Option<String>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default, rename = "isReplay")]
    is_replay: bool,
    uuid: Option<String>,
}

#[derive(Deserialize)]
struct ControlRequest {
    request_id: String,
    request: Wanted,
}

#[derive(Deserialize)]
struct Wanted {
    subtype: String,
    tool_name: Option<String>,
    input: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Withdrawal {
    request_id: String,
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
    api_error_status: Option<u16>,
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
