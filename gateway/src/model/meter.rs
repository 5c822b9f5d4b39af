//! Reads what the model has counted out of its answer, as the answer passes by. Pure; it changes nothing and holds nothing
//! back, and what it holds is bounded whatever the answer is.

#[cfg(test)]
mod tests;

use std::mem;

use serde::{Deserialize, Deserializer};

use crate::usage::Tokens;

/// The largest event of a stream, or member of a JSON answer, that is looked into, in bytes. Larger ones carry content.
const HELD_MAX: usize = 256 * 1024;
/// Longer names of models are none.
const NAME_MAX: usize = 100;
/// What the model is called that does not say its name.
pub(super) const NAMELESS: &str = "unknown model";
/// About so many bytes of an answer, or of a request, make a token, where the model did not get to count them.
pub(super) const BYTES_PER_TOKEN: u64 = 4;

/// What an answer was counted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The model, by the name that it answered with.
    pub model: String,
    /// Its tokens.
    pub tokens: Tokens,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Meter {
    form: Form,
    seen: Seen,
}

#[derive(Debug)]
enum Form {
    Events(Events),
    Json(Json),
}

impl Meter {
    /// For an answer with this content type: events where it says so, otherwise one JSON object.
    pub fn new(content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let events = essence.eq_ignore_ascii_case("text/event-stream");
        let form = if events { Form::Events(Events::default()) } else { Form::Json(Json::default()) };
        Self { form, seen: Seen::default() }
    }

    /// The next bytes of the answer, cut anywhere.
    pub fn read(&mut self, chunk: &[u8]) {
        match &mut self.form {
            Form::Events(events) => events.read(chunk, &mut self.seen),
            Form::Json(json) => json.read(chunk, &mut self.seen),
        }
    }

    /// Whether the answer has said that it is complete: nothing after this counts.
    pub fn complete(&self) -> bool {
        self.seen.stopped
    }

    /// What was counted up to here. Where the answer broke off before the model's own count of its output, that is
    /// taken from the length of what was seen.
    pub fn counted(&mut self) -> Counted {
        if let Form::Events(events) = &mut self.form {
            // What stands in a last event that was not ended by an empty line counts too.
            events.line_ended(&mut self.seen);
            events.event_ended(&mut self.seen);
        }
        let Seen { model, mut tokens, final_count, content, .. } = mem::take(&mut self.seen);
        if !final_count {
            tokens.output = tokens.output.max(content.div_ceil(BYTES_PER_TOKEN));
        }
        Counted { model: model.unwrap_or_else(|| NAMELESS.to_owned()), tokens }
    }
}

/// What an answer has said so far.
#[derive(Debug, Default)]
struct Seen {
    model: Option<String>,
    tokens: Tokens,
    /// The output was counted by the model to its end.
    final_count: bool,
    /// Bytes of content.
    content: u64,
    stopped: bool,
}

/// An event of a stream, or a member of a JSON answer as an object of its own: what of it counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    #[serde(rename = "type", deserialize_with = "lenient")]
    kind: Option<String>,
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    usage: Option<Usage>,
    #[serde(deserialize_with = "lenient")]
    message: Option<Message>,
    #[serde(deserialize_with = "lenient")]
    delta: Option<Delta>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    usage: Option<Usage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(rename = "input_tokens", deserialize_with = "lenient")]
    input: Option<u64>,
    #[serde(rename = "output_tokens", deserialize_with = "lenient")]
    output: Option<u64>,
    #[serde(rename = "cache_read_input_tokens", deserialize_with = "lenient")]
    cache_read: Option<u64>,
    #[serde(rename = "cache_creation_input_tokens", deserialize_with = "lenient")]
    cache_write: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    #[serde(deserialize_with = "lenient")]
    text: Option<String>,
    #[serde(deserialize_with = "lenient")]
    thinking: Option<String>,
    #[serde(deserialize_with = "lenient")]
    partial_json: Option<String>,
}

/// A value of another type than expected does not spoil the rest.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Good(T),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Good(value) => Some(value),
        Either::Other(_) => None,
    })
}

impl Seen {
    fn event(&mut self, data: &[u8]) {
        if self.stopped {
            return;
        }
        // What is no JSON object counts nothing.
        let Ok(said) = serde_json::from_slice::<Said>(data) else { return };
        match said.kind.as_deref() {
            Some("message_start") => {
                let Message { model, usage } = said.message.unwrap_or_default();
                self.named(model);
                self.count(usage);
            }
            Some("content_block_delta") => {
                let Delta { text, thinking, partial_json } = said.delta.unwrap_or_default();
                self.content +=
                    [text, thinking, partial_json].iter().flatten().map(|text| text.len() as u64).sum::<u64>();
            }
            Some("message_delta") => self.final_count |= self.count(said.usage),
            Some("message_stop") => self.stopped = true,
            _ => {}
        }
    }

    /// A member of a JSON answer, without the braces around it.
    fn member(&mut self, member: &[u8]) {
        if self.stopped {
            return;
        }
        let Ok(said) = serde_json::from_slice::<Said>(&[b"{", member, b"}"].concat()) else { return };
        self.named(said.model);
        self.final_count |= self.count(said.usage);
    }

    fn named(&mut self, model: Option<String>) {
        let fits =
            |model: &String| (1..=NAME_MAX).contains(&model.len()) && model.bytes().all(|b| b.is_ascii_graphic());
        self.model = model.filter(fits).or(self.model.take());
    }

    /// Counts are cumulative, so the largest is the last. Whether the output was among them.
    fn count(&mut self, usage: Option<Usage>) -> bool {
        let Some(usage) = usage else { return false };
        for (counted, now) in [
            (&mut self.tokens.input, usage.input),
            (&mut self.tokens.output, usage.output),
            (&mut self.tokens.cache_read, usage.cache_read),
            (&mut self.tokens.cache_write, usage.cache_write),
        ] {
            *counted = (*counted).max(now.unwrap_or_default());
        }
        usage.output.is_some()
    }
}

/// A stream of events (the HTML standard's `text/event-stream`), as far as its data goes.
#[derive(Debug, Default)]
struct Events {
    /// The line that has begun.
    line: Vec<u8>,
    /// The data of the event that has begun.
    data: Vec<u8>,
    /// The event is too large to be looked into.
    large: bool,
    /// A line feed here belongs to the carriage return before it.
    after_return: bool,
}

impl Events {
    fn read(&mut self, mut chunk: &[u8], seen: &mut Seen) {
        while let Some(first) = chunk.first() {
            if mem::take(&mut self.after_return) && *first == b'\n' {
                chunk = &chunk[1..];
                continue;
            }
            let Some(end) = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.extend(chunk, seen);
                return;
            };
            self.extend(&chunk[..end], seen);
            self.after_return = chunk[end] == b'\r';
            chunk = &chunk[end + 1..];
            self.line_ended(seen);
        }
    }

    fn extend(&mut self, part: &[u8], seen: &mut Seen) {
        if self.line.len() + self.data.len() + part.len() > HELD_MAX {
            self.large = true;
            seen.content += (self.line.len() + self.data.len()) as u64;
            self.line.truncate(1);
            self.data.clear();
        }
        if self.large {
            seen.content += part.len() as u64;
            // One byte is enough to know that the line is not empty.
            self.line.extend(part.first().filter(|_| self.line.is_empty()));
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn line_ended(&mut self, seen: &mut Seen) {
        if self.line.is_empty() {
            self.event_ended(seen);
        } else if let Some(value) = self.line.strip_prefix(b"data:").filter(|_| !self.large) {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        self.line.clear();
    }

    fn event_ended(&mut self, seen: &mut Seen) {
        if !mem::take(&mut self.large) && !self.data.is_empty() {
            seen.event(&self.data);
        }
        self.data.clear();
    }
}

/// One JSON object, of which the members that are small enough are looked into.
#[derive(Debug, Default)]
struct Json {
    /// The member that has begun.
    member: Vec<u8>,
    /// It is too large to be looked into.
    large: bool,
    depth: u32,
    in_text: bool,
    escaped: bool,
}

impl Json {
    fn read(&mut self, chunk: &[u8], seen: &mut Seen) {
        seen.content += chunk.len() as u64;
        for &byte in chunk {
            if self.in_text {
                self.in_text = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                self.hold(byte);
                continue;
            }
            match byte {
                b'{' | b'[' => {
                    if self.depth > 0 {
                        self.hold(byte);
                    }
                    self.depth = self.depth.saturating_add(1);
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.member_ended(seen);
                        seen.stopped = true;
                    } else {
                        self.hold(byte);
                    }
                }
                b',' if self.depth == 1 => self.member_ended(seen),
                _ => {
                    self.in_text = byte == b'"';
                    self.hold(byte);
                }
            }
        }
    }

    fn hold(&mut self, byte: u8) {
        self.large |= self.member.len() >= HELD_MAX;
        if !self.large {
            self.member.push(byte);
        }
    }

    fn member_ended(&mut self, seen: &mut Seen) {
        if !mem::take(&mut self.large) {
            seen.member(&self.member);
        }
        self.member.clear();
    }
}
