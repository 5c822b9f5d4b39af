//! The way to the model: whose key goes where, and what a container can ask (SEC-3).

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    images,
    model::{Gate, Model, Step, Wants},
    process,
    ssh::{self, Door},
    wait,
};

/// Streams of the model at once that one project must be able to have.
const CROWD: usize = 200;

/// What a proxy is set to that nobody may use: nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

/// Stores a secret as a person does.
async fn store(home: &Home, name: &str, value: &str) -> Result<()> {
    home.run(["secrets", "set", name], value).await.and_then(process::Output::success).map(drop)
}

/// The project's container, and since when it runs: the same as long as nobody touches it.
async fn container(home: &Home, project: &str) -> Result<String> {
    let container = home.container(project).await?;
    engine::docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &container]).await
}

#[tokio::test]
async fn a_key_that_is_changed_counts_at_once_and_touches_no_container() -> Result<()> {
    images::ready().await?;
    let model = Model::start().await?;
    model.on("", [Step::say("Here I am.")]);
    let tables = format!("{}\napi_key_secret = \"model-key\"", Home::agent_tables(&model));
    let home = Home::new("", &tables)?;
    store(&home, "model-key", model.key()).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("rotating", "").await?;
    assert!(gateway.ask("hello").await?.contains("Here I am."));
    let before = container(&home, "rotating").await?;

    model.want(Wants::Key("the-second-key".into()));
    let refused = gateway.ask("hello again").await?;
    assert!(
        refused.contains('⚠') && !refused.contains("Here I am."),
        "the first key does not count any more: {refused}"
    );
    store(&home, "model-key", "the-second-key\n").await?;
    let answer = gateway.ask("and now").await?;
    assert!(answer.contains("Here I am."), "{answer}");
    assert_eq!(before, container(&home, "rotating").await?, "the container is the same, and runs since then");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_project_has_a_model_of_its_own_and_the_general_key_does_not_go_there() -> Result<()> {
    images::ready().await?;
    let (general, local, company) = (Model::start().await?, Model::start().await?, Model::start().await?);
    for (model, name) in [(&general, "general"), (&local, "local"), (&company, "company")] {
        model.on("", [Step::say(format!("The {name} model says so."))]);
    }
    local.want(Wants::Nothing);
    let tables = format!(
        "{}\nheaders = {{ x-team = \"all\" }}\n\n[model.projects.local]\nbase_url = \"{}\"\nauth = \"none\"\n\n\
         [model.projects.company]\nbase_url = \"{}\"\nauth = \"bearer\"\napi_key_secret = \"company-key\"",
        Home::agent_tables(&general),
        local.base_url(),
        company.base_url()
    );
    // What is on this host is not asked through a proxy.
    let home = Home::new("", &tables)?
        .with_variable("ANTHROPIC_API_KEY", general.key())
        .with_variable("no_proxy", "")
        .with_variable("NO_PROXY", "")
        .with_variable("http_proxy", NOBODY);
    store(&home, "company-key", company.key()).await?;
    let mut gateway = Gateway::console(&home).await?;
    // It names whom it does not know.
    let doctor = gateway.ask("doctor").await?;
    assert!(doctor.contains("there is no project") && doctor.contains("no key is sent"), "{doctor}");
    for name in ["local", "company", "other"] {
        gateway.make(name, "").await?;
        let answer = gateway.ask("who are you?").await?;
        let wanted = if name == "other" { "general" } else { name };
        assert!(answer.contains(&format!("The {wanted} model says so.")), "{name}: {answer}");
    }
    let doctor = gateway.ask("doctor").await?;
    assert!(!doctor.contains("there is no project"), "{doctor}");
    for (model, others) in [(&local, &general), (&company, &general), (&general, &company)] {
        ensure!(!model.requests().is_empty(), "it was asked");
        for request in model.requests() {
            let all = format!("{:?}", request.headers);
            assert!(!all.contains(others.key()), "a key went elsewhere");
            assert_eq!(request.header("x-team").len(), usize::from(model.key() == general.key()), "{all}");
        }
    }
    gateway.finish().await.map(drop)
}

/// A subscription's token, as far as that can be tried without one: what the stand-in wants is what the agent's own program sends when it holds
/// such a token itself.
#[tokio::test]
async fn a_bearer_token_of_a_subscription_gets_through_in_the_form_that_the_agent_would_send() -> Result<()> {
    images::ready().await?;
    let model = Model::start().await?;
    model.on("", [Step::say("You have subscribed.")]);
    model.want(Wants::Subscription("sk-ant-oat01-stand-in".into()));
    let tables = |headers: &str| {
        format!("{}\nauth = \"bearer\"\napi_key_secret = \"token\"\n{headers}", Home::agent_tables(&model))
    };
    let home = Home::new("", &tables("headers = { anthropic-beta = \"oauth-2025-04-20\" }"))?;
    store(&home, "token", "sk-ant-oat01-stand-in").await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("subscribed", "").await?;
    let answer = gateway.ask("hello").await?;
    assert!(answer.contains("You have subscribed."), "{answer}");
    gateway.finish().await?;
    let asked = model.requests().into_iter().find(|request| request.for_turn).context("it was asked")?;
    let betas = asked.header("anthropic-beta");
    assert!(
        matches!(betas[..], [betas] if betas.contains("claude-code-") && betas.ends_with(",oauth-2025-04-20")),
        "the agent's own betas are still there: {betas:?}"
    );
    assert!(asked.header("x-api-key").is_empty());

    // Without the header it is what the service would refuse.
    home.configure("", &tables(""))?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.ask("switch subscribed").await?;
    let answer = gateway.ask("hello again").await?;
    assert!(answer.contains('⚠') && !answer.contains("You have subscribed."), "{answer}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn two_hundred_streams_pass_at_once_and_nothing_beside_the_table_does() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("crowd", [Step::Wait(gate.clone()), Step::say("For everybody.")]);
    model.on("alone", [Step::say("Not held up.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("crowded", "").await?;

    let url = "http://127.0.0.1:2223/v1/messages";
    let body = json!({
        "model": "x", "stream": true, "tools": [{ "name": "Bash" }], "messages": [{ "role": "user", "content": "crowd" }],
    });
    let script = format!(
        "mkdir crowd && cd crowd && for n in $(seq {CROWD}); do \
         curl --silent --no-buffer --max-time 300 --data '{body}' --output $n {url} & done; wait; \
         grep --files-with-matches message_stop * | wc --lines"
    );
    let crowd = {
        let home = &home;
        async move { ssh::command(home, Door::Proxy, "crowded", &script).await }
    };
    let meanwhile = async {
        wait::until("all of the crowd is at the model", wait::LONG, || async {
            Ok((model.asked("crowd").len() == CROWD).then_some(()))
        })
        .await?;
        // All of them have begun to be answered, and none is whole.
        wait::until("all of the crowd has read something", wait::LONG, || async {
            let begun = "cd crowd && grep --files-with-matches message_start * | wc --lines; grep --files-with-matches message_stop * | wc --lines";
            let begun = ssh::command(&home, Door::Proxy, "crowded", begun).await?;
            Ok((begun.split_whitespace().collect::<Vec<_>>() == [&CROWD.to_string(), "0"]).then_some(()))
        })
        .await?;
        let answer = gateway.ask("alone").await?;
        ensure!(answer.contains("Not held up."), "{answer}");
        gate.open();
        Ok(())
    };
    let (printed, ()) = tokio::try_join!(crowd, meanwhile)?;
    assert_eq!(printed.split_whitespace().next(), Some(CROWD.to_string().as_str()), "{printed}");

    // Through the real sled, and as its clients write it.
    for (line, wanted) in [
        ("--path-as-is http://127.0.0.1:2223/v1/x/../messages", "404"),
        ("--path-as-is http://127.0.0.1:2223/%2e%2e/v1/messages", "404"),
        ("http://127.0.0.1:2223//v1/messages", "404"),
        ("http://127.0.0.1:2223/v1/files", "404"),
        ("http://127.0.0.1:2223/git/web/example.org/x", "404"),
        ("--request DELETE http://127.0.0.1:2223/v1/messages", "404"),
        ("--header 'host: evil.example.org' http://127.0.0.1:2223/v1/messages", "421"),
        ("--request-target http://evil.example.org/v1/messages http://127.0.0.1:2223/v1/messages", "421"),
    ] {
        let curl =
            format!("curl --silent --output /dev/null --write-out '%{{http_code}}' --max-time 60 --data '{{}}' {line}");
        assert_eq!(ssh::command(&home, Door::Proxy, "crowded", &curl).await?, wanted, "{line}");
    }
    assert_eq!(model.strays(), Vec::<String>::new());
    gateway.finish().await.map(drop)
}
