//! Answers as models give them, whole, cut, huge and hostile.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn tokens(input: u64, output: u64, cache_read: u64, cache_write: u64) -> Tokens {
    Tokens { input, output, cache_read, cache_write }
}

/// A streamed answer of these texts, that ends its lines so.
fn stream(texts: &[&str], end: &str) -> String {
    let start = json!({
        "type": "message_start",
        "message": {
            "id": "msg_1", "model": "claude-x", "content": [],
            "usage": { "input_tokens": 3, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 500, "output_tokens": 1 },
        },
    });
    let mut events = vec![("message_start", start), ("ping", json!({ "type": "ping" }))];
    for text in texts {
        let delta = json!({ "type": "text_delta", "text": text });
        events.push(("content_block_delta", json!({ "type": "content_block_delta", "index": 0, "delta": delta })));
    }
    let usage = json!({ "output_tokens": 40, "input_tokens": 4, "cache_read_input_tokens": null });
    let delta = json!({ "stop_reason": "end_turn" });
    events.push(("message_delta", json!({ "type": "message_delta", "delta": delta, "usage": usage })));
    events.push(("message_stop", json!({ "type": "message_stop" })));
    let events: Vec<_> =
        events.iter().map(|(name, data)| format!("event: {name}{end}data: {data}{end}{end}")).collect();
    events.concat()
}

fn json_answer(text: &str) -> String {
    json!({
        "id": "msg_1", "type": "message", "model": "claude-x",
        "content": [{ "type": "text", "text": text, "usage": { "output_tokens": 999_999 } }],
        "usage": {
            "input_tokens": 4, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 500, "output_tokens": 40,
            "server_tool_use": { "web_search_requests": 1 },
        },
    })
    .to_string()
}

fn meter(content_type: &str, parts: &[&[u8]]) -> Meter {
    let mut meter = Meter::new(content_type);
    for part in parts {
        meter.read(part);
    }
    meter
}

fn counted(content_type: &str, answer: &str) -> Counted {
    meter(content_type, &[answer.as_bytes()]).counted()
}

fn whole() -> Counted {
    Counted { model: "claude-x".to_owned(), tokens: tokens(4, 40, 500, 20) }
}

/// `text` cut at these places.
fn cut<'t>(text: &'t str, places: &[prop::sample::Index]) -> Vec<&'t [u8]> {
    let mut ends: Vec<_> = places.iter().map(|place| place.index(text.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(text.len());
    let mut begin = 0;
    ends.into_iter().map(|end| &text.as_bytes()[mem::replace(&mut begin, end)..end]).collect()
}

#[test]
fn counts_are_cumulative_and_taken_once() {
    for end in ["\n", "\r\n", "\r"] {
        let mut answer = stream(&["Hello", " wörld"], end);
        assert_eq!(counted("text/event-stream; charset=utf-8", &answer), whole(), "{end:?}");
        assert!(meter("text/event-stream", &[answer.as_bytes()]).complete());
        answer.push_str(&stream(&[], end).replace("40", "70"));
        assert_eq!(counted("text/event-stream", &answer), whole(), "nothing after the end counts");
    }
    let pretty = serde_json::from_str::<serde_json::Value>(&json_answer("a \"quoted\" }] text\\"));
    let pretty = serde_json::to_string_pretty(&pretty.expect("it is JSON")).expect("it is JSON");
    assert_eq!(counted("application/json", &pretty), whole());
    assert!(meter("application/json", &[pretty.as_bytes()]).complete());
}

#[test]
fn an_answer_that_broke_off_counts_what_was_seen() {
    let answer = stream(&["x".repeat(100).as_str(), "0123456789"], "\n");
    let before = answer.find("event: message_delta").expect("it is there");
    let seen = counted("text/event-stream", &answer[..before]);
    assert_eq!(seen.tokens, tokens(3, 28, 500, 20), "110 bytes of text, 4 to a token");
    // The data of the last line stands there, its line end does not.
    let delta = answer[before..].find("\n\n").expect("it ends");
    assert_eq!(counted("text/event-stream", &answer[..before + delta]), whole());
    assert_eq!(counted("text/event-stream", ""), Counted { model: NAMELESS.to_owned(), tokens: Tokens::default() });

    let answer = json_answer(&"x".repeat(1000));
    let cut = answer.find("\"usage\":{\"cache").expect("it is there");
    let seen = counted("application/json", &answer[..cut]);
    assert_eq!(seen.tokens.output, (cut as u64).div_ceil(4));
}

#[test]
fn what_is_huge_is_passed_over_and_not_held() {
    let huge = "y".repeat(HELD_MAX + 1);
    let mut meter = Meter::new("text/event-stream");
    for part in stream(&["a", &huge], "\n").as_bytes().chunks(1000) {
        meter.read(part);
        let Form::Events(events) = &meter.form else { panic!("these are events") };
        assert!(events.line.capacity() + events.data.capacity() <= 4 * HELD_MAX);
    }
    assert_eq!(meter.counted(), whole());
    let mut meter = Meter::new("application/json");
    for part in json_answer(&huge).as_bytes().chunks(1000) {
        meter.read(part);
        let Form::Json(json) = &meter.form else { panic!("this is JSON") };
        assert!(json.member.capacity() <= 2 * HELD_MAX);
    }
    assert_eq!(meter.counted(), whole());
    // A line, or a nesting, without end.
    let mut lines = Meter::new("text/event-stream");
    let mut nested = Meter::new("application/json");
    for _ in 0..100 {
        lines.read(&[b'['; 10_000]);
        nested.read(&[b'['; 10_000]);
    }
    assert!(lines.counted().tokens.output >= 200_000);
    assert!(nested.counted().tokens.output >= 200_000);
}

#[test]
fn hostile_values_spoil_nothing_else() {
    let start = r#"{"type":"message_start","message":{"model":["x"],"usage":{"input_tokens":-5,"output_tokens":"many","cache_read_input_tokens":7.5,"cache_creation_input_tokens":9}}}"#;
    let lines = format!("data: {start}\n\ndata: 7\n\ndata: {{\"type\":{{}}}}\n\ndata: [\n\nnonsense\n\n");
    assert_eq!(counted("text/event-stream", &lines).tokens, tokens(0, 0, 0, 9));
    let huge = format!(r#"{{"model":"a\u0000b","usage":{{"input_tokens":{},"output_tokens":1}}}}"#, u64::MAX);
    let seen = counted("application/json", &huge);
    assert_eq!((seen.model.as_str(), seen.tokens), (NAMELESS, tokens(u64::MAX, 1, 0, 0)));
    assert_eq!(seen.tokens.total(), u64::MAX);
}

proptest! {
    #[test]
    fn any_cutting_counts_the_same(
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        texts in prop::collection::vec(".{0,40}", 0..5),
        end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
    ) {
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let answer = stream(&texts, end);
        prop_assert_eq!(meter("text/event-stream", &cut(&answer, &places)).counted(), whole());
        let answer = json_answer(&texts.concat());
        prop_assert_eq!(meter("application/json", &cut(&answer, &places)).counted(), whole());
    }

    #[test]
    fn an_answer_that_broke_off_anywhere_counts_no_less_than_before_and_the_same_however_it_is_cut(
        until in any::<prop::sample::Index>(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let answer = stream(&["some text", "and more"], "\r\n");
        let begun = &answer[..until.index(answer.len() + 1)];
        let seen = meter("text/event-stream", &cut(begun, &places)).counted();
        prop_assert_eq!(&seen, &counted("text/event-stream", begun));
        let Tokens { input, output, cache_read, cache_write } = seen.tokens;
        prop_assert!(input <= 4 && output <= 40 && cache_read <= 500 && cache_write <= 20);
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for content_type in ["text/event-stream", "application/json", ""] {
            let mut meter = Meter::new(content_type);
            meter.read(&bytes);
            prop_assert!(meter.counted().tokens.total() <= 300);
        }
    }
}
