//! The model's answer on the wire: server-sent events, or one JSON object when streaming was not asked for.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};

use super::Step;

/// The tool call after whose result `next` of `rule` follows. Its form is the service's own.
pub(super) fn tool_use_id(rule: usize, next: usize) -> String {
    format!("toolu_{rule}x{next}")
}

/// Rule and step that follow the result of the tool call `id`.
pub(super) fn position(id: &str) -> Option<(usize, usize)> {
    let (rule, next) = id.strip_prefix("toolu_")?.split_once('x')?;
    Some((rule.parse().ok()?, next.parse().ok()?))
}

/// The answer as events; each step waits for the one before.
pub(super) fn stream(tool_use_id: String, steps: Vec<Step>) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let start = event("message_start", json!({ "message": message(&json!([]), &Value::Null) }));
    let rest = stream::iter(steps).then(move |step| {
        let id = tool_use_id.clone();
        async move {
            match step {
                Step::Wait(gate) => {
                    gate.passed().await;
                    Bytes::new()
                }
                step => ending(&id, &step),
            }
        }
    });
    stream::once(async move { start }).chain(rest).filter(|chunk| std::future::ready(!chunk.is_empty())).map(Ok)
}

/// The answer as one object.
pub(super) async fn whole(tool_use_id: &str, steps: Vec<Step>) -> Value {
    let (mut content, mut reason) = (vec![], Value::Null);
    for step in steps {
        if let Step::Wait(gate) = &step {
            gate.passed().await;
        }
        if let Some((block, _, why)) = block(tool_use_id, &step) {
            content.push(block);
            reason = why.into();
        }
    }
    message(&content.into(), &reason)
}

/// The events of the step that ends an answer.
fn ending(tool_use_id: &str, step: &Step) -> Bytes {
    let Some((mut block, delta, reason)) = block(tool_use_id, step) else { return Bytes::new() };
    match block["type"].as_str() {
        Some("text") => block["text"] = "".into(),
        _ => block["input"] = json!({}),
    }
    let events = [
        event("content_block_start", json!({ "index": 0, "content_block": block })),
        event("content_block_delta", json!({ "index": 0, "delta": delta })),
        event("content_block_stop", json!({ "index": 0 })),
        event(
            "message_delta",
            json!({ "delta": { "stop_reason": reason, "stop_sequence": null }, "usage": { "output_tokens": 10 } }),
        ),
        event("message_stop", json!({})),
    ];
    events.concat().into()
}

/// A step's content block, the delta that fills it when streamed, and the reason for stopping after it.
fn block(tool_use_id: &str, step: &Step) -> Option<(Value, Value, &'static str)> {
    match step {
        Step::Wait(_) | Step::Limit(_) => None,
        Step::Say(text) => {
            Some((json!({ "type": "text", "text": text }), json!({ "type": "text_delta", "text": text }), "end_turn"))
        }
        Step::Call { tool, input } => Some((
            json!({ "type": "tool_use", "id": tool_use_id, "name": tool, "input": input }),
            json!({ "type": "input_json_delta", "partial_json": input.to_string() }),
            "tool_use",
        )),
    }
}

fn message(content: &Value, stop_reason: &Value) -> Value {
    json!({
        "id": format!("msg_{}", uuid::Uuid::now_v7().simple()),
        "type": "message",
        "role": "assistant",
        "model": "stand-in",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": { "input_tokens": 100, "output_tokens": 10 },
    })
}

fn event(kind: &str, mut data: Value) -> Bytes {
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n").into()
}
