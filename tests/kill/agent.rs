//! What the stand-in for the model says: an answer that names every message it was asked about.

use std::{sync::Arc, time::Duration};

use ::tests::model::{Gate, Model, Request, Step};
use serde_json::{Value, json};

use crate::{
    ledger::{Asked, wanted},
    plan::{Effort, Plan},
    record::Record,
};

/// How an answer begins.
const ANSWER: &str = "answer:";

/// In the command line of every tool that the stand-in calls, so that one that is left is known.
pub const TOOL_MARK: &str = "0987654";

/// What the agent puts among the people's words by itself.
const OWN_WORDS: [&str; 3] = ["<system-reminder>", "[Request interrupted", "Continue from where you left off."];

/// Has the model answer by the plan, and writes down what it was asked.
pub fn teach(model: &Model, plan: Arc<Plan>, record: Arc<Record>) {
    model.otherwise(move |request| {
        let prompts = prompts(&request.body);
        let steps = steps(&plan, request, &prompts);
        record.asked(|at| Asked { at, prompts, after_tool: request.tool_result.is_some() });
        steps
    });
}

fn steps(plan: &Plan, request: &Request, prompts: &[String]) -> Vec<Step> {
    let numbers: Vec<u32> = prompts.iter().flat_map(|prompt| wanted(prompt)).collect();
    let names: Vec<String> = numbers.iter().map(|number| format!("m{number}")).collect();
    let answer = Step::say(format!("{ANSWER} {}", names.join(" ")));
    let efforts = || numbers.iter().filter_map(|number| plan.effort(*number));
    let tool = efforts().filter_map(|effort| if let Effort::Work(ms) = effort { Some(ms) } else { None }).max();
    let wait = efforts().filter_map(|effort| if let Effort::Say(ms) = effort { Some(ms) } else { None }).max();
    match (tool, wait) {
        (Some(ms), _) if request.tool_result.is_none() => {
            // What it leaves behind does not end by itself, nor for being asked to.
            let left = format!("trap \"\" HUP TERM; while :; do sleep 9{TOOL_MARK}; done");
            let command = format!(
                "setsid sh -c '{left}' </dev/null >/dev/null 2>&1 & sleep {}.{:03}{TOOL_MARK}; echo slept",
                ms / 1000,
                ms % 1000
            );
            vec![Step::call("Bash", json!({ "command": command }))]
        }
        (None, Some(ms)) => vec![Step::Wait(opens_after(Duration::from_millis(ms))), answer],
        _ => vec![answer],
    }
}

fn opens_after(wait: Duration) -> Gate {
    let gate = Gate::closed();
    let opened = gate.clone();
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        opened.open();
    });
    gate
}

/// The texts of the user's side after the last answer, the agent's own reminders apart. Where they ask for nothing, the agent
/// was interrupted after it had answered and is asked for that again: then also those before, as far as one that asks for
/// something. An agent that is interrupted and resumed may put words into the model's mouth; those are no answer.
fn prompts(body: &Value) -> Vec<String> {
    let messages = body["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let answers = |message: &Value| {
        message["role"] == "assistant" && texts(message).iter().any(|text| text.trim_start().starts_with(ANSWER))
    };
    let own = |text: &String| OWN_WORDS.iter().any(|words| text.trim_start().starts_with(words));
    let since = |from: usize| -> Vec<String> {
        let people = messages[from..].iter().filter(|message| message["role"] == "user");
        people.flat_map(texts).filter(|text| !own(text)).collect()
    };
    let asks = |prompts: &Vec<String>| prompts.iter().any(|prompt| !wanted(prompt).is_empty());
    // After the last answer, after the one before, …, and from the beginning.
    let mut told = (1..=messages.len()).rev().filter(|end| answers(&messages[end - 1])).chain([0]).map(since);
    let latest = told.next().unwrap_or_default();
    if asks(&latest) { latest } else { told.find(asks).unwrap_or(latest) }
}

fn texts(message: &Value) -> Vec<String> {
    let blocks = match &message["content"] {
        Value::Array(blocks) => blocks.as_slice(),
        bare => std::slice::from_ref(bare),
    };
    let text = |block: &Value| block.as_str().or_else(|| block["text"].as_str()).map(str::to_owned);
    blocks.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_what_came_since_the_last_answer_without_the_agents_own_words() {
        let body = json!({ "messages": [
            { "role": "user", "content": "m1 please answer" },
            { "role": "assistant", "content": [{ "type": "text", "text": "answer: m1" }] },
            { "role": "user", "content": [
                { "type": "text", "text": "<system-reminder>be good</system-reminder>" },
                { "type": "text", "text": "m2 please answer" },
            ] },
            { "role": "assistant", "content": [{ "type": "text", "text": "No response requested." }] },
            { "role": "user", "content": "You were interrupted." },
        ] });
        assert_eq!(prompts(&body), ["m2 please answer", "You were interrupted."]);
    }

    #[test]
    fn who_is_asked_again_after_its_answer_is_asked_for_what_that_was_about() {
        let note = json!({ "role": "user", "content": "You were interrupted." });
        let mut messages = vec![
            json!({ "role": "user", "content": "m1 please answer" }),
            json!({ "role": "assistant", "content": "answer: m1" }),
            json!({ "role": "user", "content": "m2 please answer" }),
            json!({ "role": "assistant", "content": "answer: m2" }),
            note.clone(),
        ];
        assert_eq!(prompts(&json!({ "messages": messages })), ["m2 please answer", "You were interrupted."]);
        messages.extend([json!({ "role": "assistant", "content": "answer: m2" }), note.clone()]);
        let twice = ["m2 please answer", "You were interrupted.", "You were interrupted."];
        assert_eq!(prompts(&json!({ "messages": messages })), twice);
        assert_eq!(prompts(&json!({ "messages": [note] })), ["You were interrupted."]);
    }
}
