//! `[model]` and `[model.projects.<name>]`: which key and which headers go to which address.

use std::path::Path;

use bot_config::{Auth, Config, Endpoint, KeySource, ModelKey};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("bot.toml")).map_err(|error| error.to_string())
}

/// Address, auth, key and headers, as one line.
fn shown(endpoint: Endpoint<'_>) -> String {
    let base = endpoint.base_url.map_or("the provider", |url| url.as_url().as_str());
    let key = match endpoint.key {
        ModelKey::Stored(KeySource::Secret(name)) => format!("secret {name}"),
        ModelKey::Stored(KeySource::File(path)) => format!("file {path}"),
        ModelKey::Environment => "environment".to_owned(),
        ModelKey::None => "no key".to_owned(),
    };
    let headers: Vec<_> = endpoint.headers.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
    format!("{base} {} {key} [{}]", endpoint.auth, headers.join(" "))
}

/// What counts for the project `app`, and for all others.
fn resolved(text: &str) -> (String, String) {
    let config = parse(text).expect(text);
    let app = config.model.of_projects().find(|(name, _)| *name == "app").expect("it is named").1;
    (shown(app), shown(config.model.general()))
}

#[test]
fn a_project_has_what_it_says_and_the_rest_of_what_all_have() {
    let general = "[model]\nbase_url = \"https://llm.example.org\"\nauth = \"bearer\"\nheaders = { x-team = \"a\" }\napi_key_secret = \"general\"\n";
    let all = "https://llm.example.org/ bearer secret general [x-team=a]";
    for (own, app) in [
        ("", all),
        ("headers = { x-team = \"b\" }", "https://llm.example.org/ bearer secret general [x-team=b]"),
        ("api_key_secret = \"own\"", "https://llm.example.org/ bearer secret own [x-team=a]"),
        ("auth = \"api-key\"\napi_key_file = \"/k\"", "https://llm.example.org/ api-key file /k [x-team=a]"),
        ("auth = \"none\"", "https://llm.example.org/ none no key [x-team=a]"),
    ] {
        assert_eq!(
            resolved(&format!("{general}[model.projects.app]\n{own}")),
            (app.to_owned(), all.to_owned()),
            "{own}"
        );
    }
}

/// Neither the key nor the headers that were meant for one address go to another.
#[test]
fn an_address_of_its_own_gets_nothing_of_the_general_one() {
    for general in [
        "",
        "[model]\napi_key_secret = \"general\"\nheaders = { x-token = \"secret\" }\n",
        "[model]\nbase_url = \"https://llm.example.org\"\nauth = \"bearer\"\napi_key_file = \"/general\"\nheaders = { x-token = \"secret\" }\n",
    ] {
        let base = "[model.projects.app]\nbase_url = \"http://127.0.0.1:8080\"\n";
        let (app, _) = resolved(&format!("{general}{base}auth = \"none\""));
        assert_eq!(app, "http://127.0.0.1:8080/ none no key []");
        let (app, _) = resolved(&format!(
            "{general}{base}auth = \"bearer\"\napi_key_secret = \"own\"\nheaders = {{ x-a = \"b\" }}"
        ));
        assert_eq!(app, "http://127.0.0.1:8080/ bearer secret own [x-a=b]");
        let refused = parse(&format!("{general}{base}")).expect_err("there is no key for it");
        assert!(refused.contains("needs a key of its own") && refused.contains("auth = \"none\""), "{refused}");
    }
}

#[test]
fn without_a_word_of_a_key_it_is_the_environments() {
    let config = parse("").expect("it is empty");
    assert_eq!(shown(config.model.general()), "the provider api-key environment []");
    let config = parse("[model]\nbase_url = \"http://localhost:1\"\nauth = \"none\"").expect("a server of one's own");
    assert_eq!((config.model.general().auth, config.model.general().key), (Auth::None, ModelKey::None));
}

#[test]
fn what_contradicts_itself_is_refused_with_its_line() {
    for (text, wanted) in [
        ("[model]\nauth = \"none\"", "bot.toml:2: `model.auth = \"none\"` needs `model.base_url`"),
        (
            "[model]\nbase_url = \"http://localhost:1\"\nauth = \"none\"\napi_key_file = \"/k\"",
            "bot.toml:3: `model.auth = \"none\"` sends no key",
        ),
        (
            "[model]\nbase_url = \"http://localhost:1\"\nauth = \"none\"\n[model.projects.app]\napi_key_file = \"/k\"",
            "`[model.projects.app]` has a key, and `model.auth = \"none\"` sends none",
        ),
        (
            "[model]\nbase_url = \"http://localhost:1\"\nauth = \"none\"\n[model.projects.app]\nauth = \"bearer\"",
            "`[model.projects.app]` says how a key is sent, and there is none",
        ),
        (
            "[model.projects.app]\nauth = \"none\"",
            "bot.toml:1: `auth = \"none\"` in `[model.projects.app]` needs a `base_url`",
        ),
        (
            "[model.projects.app]\nbase_url = \"http://localhost:1\"",
            "bot.toml:1: `base_url` in `[model.projects.app]` needs a key of its own",
        ),
        (
            "[model.projects.app]\nauth = \"none\"\nbase_url = \"http://localhost:1\"\napi_key_file = \"/k\"",
            "bot.toml:1: `auth = \"none\"` in `[model.projects.app]` sends no key",
        ),
        (
            "[model.projects.app]\napi_key_secret = \"k\"\napi_key_file = \"/k\"",
            "bot.toml:1: `api_key_file` and `api_key_secret` in `[model.projects.app]` both say",
        ),
        ("[model.projects.My_App]\nauth = \"bearer\"", "`My_App` in `model.projects` is no project's name"),
        (
            "[model.projects.app]\nbase_ulr = \"x\"",
            "bot.toml:2: `base_ulr` of `app` in `model.projects` is no setting of a project's model; did you mean `base_url`?",
        ),
        (
            "[model.projects.app]\nbase_url = \"http://llm.example.org\"\nauth = \"none\"",
            "bot.toml:2: `base_url` of `app` in `model.projects` must be an https URL (http on loopback alone)",
        ),
        (
            "[model.projects.app]\nheaders = { Authorization = \"x\" }",
            "bot.toml:2: `Authorization` in `headers` of `app` in `model.projects` is set by the gateway itself",
        ),
        ("[model]\nprojects = [\"app\"]", "`model.projects` must be a table of projects' names"),
    ] {
        let refused = parse(text).expect_err(text);
        assert!(refused.contains(wanted), "{text}\n=> {refused}");
    }
}
