//! What the agent sent to the model, read the way a model reads it.

use axum::http::{HeaderMap, Uri};
use serde_json::Value;

/// One request of `POST /v1/messages`.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// Header names in lower case, and their values, lossily UTF-8.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Value,
    /// All text of people since the model last spoke, one block a line. The agent's own reminders are among it.
    pub said: String,
    /// The tool call whose result this request brings.
    pub tool_result: Option<String>,
    /// Whether it belongs to a turn: the agent offers its tools only then. Side requests, such as one
    /// for a session's title, offer none.
    pub for_turn: bool,
}

impl Request {
    pub(super) fn read(uri: &Uri, headers: &HeaderMap, body: Value) -> Self {
        let news = since_the_model_spoke(&body);
        let blocks: Vec<&Value> = news.iter().flat_map(blocks).collect();
        let said = blocks.iter().filter_map(|block| text(block)).collect::<Vec<_>>().join("\n");
        let tool_result = blocks
            .iter()
            .rfind(|block| block["type"] == "tool_result")
            .and_then(|block| block["tool_use_id"].as_str())
            .map(str::to_owned);
        let for_turn = body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        Self { target: uri.to_string(), headers, body, said, tool_result, for_turn }
    }

    /// The values of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The whole conversation as the agent told it, one text block a line, the model's own words included.
    pub fn conversation(&self) -> String {
        let messages = self.body["messages"].as_array().map_or(&[][..], Vec::as_slice);
        messages.iter().flat_map(blocks).filter_map(text).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn streams(&self) -> bool {
        self.body["stream"] == Value::Bool(true)
    }
}

fn since_the_model_spoke(body: &Value) -> &[Value] {
    let messages = body["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let from = messages.iter().rposition(|message| message["role"] == "assistant").map_or(0, |at| at + 1);
    &messages[from..]
}

/// A message's content is a list of blocks, or bare text, which stands for one.
fn blocks(message: &Value) -> &[Value] {
    match &message["content"] {
        Value::Array(blocks) => blocks,
        bare => std::slice::from_ref(bare),
    }
}

fn text(block: &Value) -> Option<&str> {
    block.as_str().or_else(|| (block["type"] == "text").then(|| block["text"].as_str())?)
}
