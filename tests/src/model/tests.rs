use std::time::Duration;

use super::*;

/// Sends one request whose last words are `content`; gives status and body.
async fn ask(model: &Model, key: &str, messages: Value, stream: bool) -> Result<(u16, String)> {
    let response = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/v1/messages?beta=true", model.base_url()))
        .header("x-api-key", key)
        .json(&json!({ "stream": stream, "tools": [{ "name": "Bash" }], "messages": messages }))
        .send()
        .await?;
    Ok((response.status().as_u16(), response.text().await?))
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": [{ "type": "text", "text": text }] }])
}

#[tokio::test]
async fn the_key_is_wanted() -> Result<()> {
    let model = Model::start().await?;
    let (status, body) = ask(&model, "another", user("hello"), true).await?;
    assert_eq!(status, 401);
    assert!(body.contains("authentication_error"), "{body}");
    assert_eq!(model.requests().len(), 1, "a refused request is recorded all the same");
    Ok(())
}

#[tokio::test]
async fn a_subscriptions_token_is_wanted_in_its_own_form() -> Result<()> {
    let model = Model::start().await?;
    let token = secrets::mint(Kind::ModelKey);
    model.want(Wants::Subscription(token.clone()));
    let bearer = format!("Bearer {token}");
    let good = (bearer.as_str(), None, "a,oauth-2025-04-20", "You are a Claude agent, and so on");
    for ((bearer, key, beta, system), status) in [
        (good, 200),
        (("Bearer other", good.1, good.2, good.3), 401),
        ((good.0, Some(&token), good.2, good.3), 401),
        ((good.0, good.1, "a,b", good.3), 401),
        ((good.0, good.1, good.2, "You are somebody"), 401),
    ] {
        let mut request = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .post(format!("{}/v1/messages", model.base_url()))
            .header("authorization", bearer)
            .header("anthropic-beta", beta)
            .json(&json!({ "system": [{ "type": "text", "text": system }], "messages": user("hello") }));
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        assert_eq!(request.send().await?.status(), status, "{bearer} {key:?} {beta} {system}");
    }
    model.want(Wants::Nothing);
    assert_eq!(ask(&model, model.key(), user("hello"), false).await?.0, 401, "a key that nobody wants");
    Ok(())
}

#[tokio::test]
async fn says_what_the_first_fitting_rule_says() -> Result<()> {
    let model = Model::start().await?;
    model.on("blue", [Step::say("It is blue.")]);
    model.on("", [Step::say("It is anything.")]);
    let (_, body) = ask(&model, model.key(), user("is it blue?"), false).await?;
    assert!(body.contains("It is blue."), "{body}");
    let (_, body) = ask(&model, model.key(), user("is it red?"), false).await?;
    assert!(body.contains("It is anything."), "{body}");
    assert_eq!(model.asked("blue").len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_tool_call_is_followed_by_the_next_step() -> Result<()> {
    let model = Model::start().await?;
    model.on("list", [Step::call("Bash", json!({ "command": "ls" })), Step::say("Nothing there.")]);
    let (_, body) = ask(&model, model.key(), user("list it"), false).await?;
    let answer: Value = serde_json::from_str(&body)?;
    assert_eq!(answer["stop_reason"], "tool_use");
    let call = &answer["content"][0];
    let messages = json!([
        { "role": "user", "content": "list it" },
        { "role": "assistant", "content": [call] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": call["id"], "content": "" }] },
    ]);
    let (_, body) = ask(&model, model.key(), messages, false).await?;
    assert!(body.contains("Nothing there."), "{body}");
    assert_eq!(model.asked("list").len(), 1, "a tool's result is not asked again");
    Ok(())
}

#[tokio::test]
async fn a_stream_is_made_of_the_events_in_order() -> Result<()> {
    let model = Model::start().await?;
    model.on("", [Step::say("Yes.")]);
    let (_, body) = ask(&model, model.key(), user("so?"), true).await?;
    let kinds: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, expected);
    Ok(())
}

#[tokio::test]
async fn a_closed_gate_holds_the_answer_back() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("", [Step::Wait(gate.clone()), Step::say("At last.")]);
    let asking = ask(&model, model.key(), user("well?"), true);
    tokio::pin!(asking);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut asking).await;
    assert!(early.is_err(), "answered before the gate was opened: {early:?}");
    gate.open();
    let (_, body) = tokio::time::timeout(wait::SHORT, asking).await??;
    assert!(body.contains("At last."), "{body}");
    Ok(())
}

#[tokio::test]
async fn only_what_came_after_the_models_last_words_counts_as_said() -> Result<()> {
    let model = Model::start().await?;
    let messages = json!([
        { "role": "user", "content": "first" },
        { "role": "assistant", "content": "ok" },
        { "role": "user", "content": [{ "type": "text", "text": "second" }, { "type": "text", "text": "reminder" }] },
    ]);
    ask(&model, model.key(), messages, false).await?;
    let requests = model.requests();
    assert_eq!(requests[0].said, "second\nreminder");
    assert_eq!(requests[0].conversation(), "first\nok\nsecond\nreminder");
    Ok(())
}

#[tokio::test]
async fn at_the_rate_limit_it_says_whether_asking_again_helps() -> Result<()> {
    let model = Model::start().await?;
    model.on("soft", [Step::Limit(Limit::Soft(7))]);
    model.on("hard", [Step::Limit(Limit::Hard)]);
    for (said, retry_after, should_retry) in [("soft", Some("7"), None), ("hard", None, Some("false"))] {
        let response = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .post(format!("{}/v1/messages", model.base_url()))
            .header("x-api-key", model.key())
            .json(&json!({ "tools": [{ "name": "Bash" }], "messages": user(said) }))
            .send()
            .await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(response.status(), 429, "{said}");
        assert_eq!((header("retry-after"), header("x-should-retry")), (retry_after, should_retry), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn what_no_rule_fits_is_answered_anew_each_time() -> Result<()> {
    let model = Model::start().await?;
    model.on("blue", [Step::say("It is blue.")]);
    let mut times = 0;
    model.otherwise(move |request| {
        times += 1;
        match &request.tool_result {
            None => vec![Step::call("Bash", json!({ "command": "true" }))],
            Some(id) => vec![Step::say(format!("request {times} brings {id}"))],
        }
    });
    let (_, body) = ask(&model, model.key(), user("is it red?"), false).await?;
    let answer: Value = serde_json::from_str(&body)?;
    let id = answer["content"][0]["id"].as_str().context("a tool call has an id")?;
    let result =
        json!([{ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": id, "content": "ok" }] }]);
    let (_, body) = ask(&model, model.key(), result, false).await?;
    assert!(body.contains(&format!("request 2 brings {id}")), "{body}");
    let (_, body) = ask(&model, model.key(), user("is it blue?"), false).await?;
    assert!(body.contains("It is blue."), "{body}");
    Ok(())
}
