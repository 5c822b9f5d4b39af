//! What is accepted, what it means, and what holds for any text.

#![expect(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bot_config::{
    Config, ConfigError, Cpus, EngineHost, HostName, ImageRef, KeySource, MatrixLogin, Memory, PasswordSource,
    Permissions, Price, RoomMode, RoomRef, Runtime, SshHost, Surface, Usd, example,
};
use proptest::prelude::*;

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("bot.toml")).unwrap()
}

#[test]
fn the_defaults_are_the_ones_that_are_promised() {
    let config = Config::default();
    assert_eq!(config.surface, Surface::Console);
    assert_eq!(config.coalesce_window(), Duration::from_millis(1500));
    assert_eq!(config.coalesce_max(), Duration::from_secs(8));
    assert_eq!(config.stop_grace(), Duration::from_secs(5));
    assert_eq!(config.permission_timeout(), Duration::from_mins(5));
    assert_eq!((config.max_queue.get(), config.max_concurrent_turns.get()), (100, 4));
    assert_eq!(config.projects.pids.get(), 4096);
    assert_eq!(config.projects.roots[0].resolve(Path::new("/home/ann")), Path::new("/home/ann/musher"));
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:7717");
    assert_eq!((config.agent.runtime(), config.model.key()), (None, None));
    assert_eq!(config.images.extra_ca_certificates, None);
    assert_eq!(parse(""), config);
}

const MATRIX: &str =
    "transport = \"matrix\"\nhomeserver = \"http://127.0.0.1:8008\"\nadmins = [\"@me:localhost:8008\"]\n";

#[test]
fn each_way_to_log_in() {
    let login = |text: &str| match parse(&format!("{MATRIX}{text}")).surface {
        Surface::Matrix(account) => account.login,
        Surface::Console => panic!("asked for matrix"),
    };
    let password = |text: &str| match login(&format!("username = \"musher\"\n{text}")) {
        MatrixLogin::Password { username, password } if username == "musher" => password,
        other => panic!("{other:?}"),
    };
    assert!(matches!(password("password = \"x\""), PasswordSource::Plain(secret) if secret.expose() == "x"));
    assert!(matches!(password("password_secret = \"pw\""), PasswordSource::Secret(name) if name.as_str() == "pw"));
    let PasswordSource::File(file) = password("password_file = \"~/pw\"") else { panic!("asked for a file") };
    assert_eq!(file.resolve(Path::new("/home/ann")), Path::new("/home/ann/pw"));
    let MatrixLogin::AccessToken(token) = login("access_token_secret = \"token\"") else { panic!("asked for a token") };
    assert_eq!(token.as_str(), "token");
}

#[test]
fn agent_model_and_limits() {
    let config = parse(
        "[agent]\nruntime = \"command\"\ncommand = [\"a\", \"b\"]\n[model]\napi_key_file = \"/k\"\nheaders.X-Team = \"t\"\n\
         [projects]\ndefault_cpus = 2\ndefault_memory = \"2GiB\"\n[images]\nextra_ca_certificates = []\n",
    );
    assert_eq!(config.agent.runtime(), Some(Runtime::Command(&["a".to_owned(), "b".to_owned()])));
    assert!(matches!(config.model.key(), Some(KeySource::File(path)) if path.as_str() == "/k"));
    let headers: Vec<_> = config.model.headers.iter().map(|(name, value)| (name, value.expose())).collect();
    assert_eq!(headers, [("x-team", "t")]);
    assert_eq!(config.projects.default_cpus.map(Cpus::nano_cpus), Some(2_000_000_000));
    assert_eq!(config.projects.default_memory.map(Memory::bytes), Some(2 << 30));
    assert_eq!(config.images.extra_ca_certificates, Some(Vec::new()));
    let claude = parse("[agent]\nruntime = \"claude\"");
    assert_eq!(claude.agent.runtime(), Some(Runtime::Claude));
}

#[test]
fn budgets_and_prices() {
    let config = parse(
        "mode = \"interrupt\"\nreaction_approvals = true\nretention_days = 30\n\
         [agent]\npermissions = \"ask\"\nkeep_warm_secs = 0\n\
         [budget]\ndaily_tokens = 2_000_000\ndaily_usd = 2.5\n\
         prices.claude = { input = 3, output = 15, cache_read = 0.3, cache_write = 3.75 }\n\
         [budget.prices.claude-opus]\ninput = 0.000001\noutput = 1_000_000\ncache_read = 0\ncache_write = 0.50\n",
    );
    assert_eq!((config.mode, config.reaction_approvals), (RoomMode::Interrupt, true));
    assert_eq!(config.retention_days.map(Into::into), Some(30u16));
    assert_eq!((config.agent.permissions, config.agent.keep_warm()), (Permissions::Ask, Duration::ZERO));
    assert_eq!(config.budget.daily_tokens.map(Into::into), Some(2_000_000u64));
    assert_eq!(config.budget.daily_usd.map(Usd::micros), Some(2_500_000));
    let micros = |model: &str| {
        let Price { input, output, cache_read, cache_write } = config.budget.prices.of(model)?;
        Some([input, output, cache_read, cache_write].map(Usd::micros))
    };
    assert_eq!(micros("claude-sonnet-4"), Some([3_000_000, 15_000_000, 300_000, 3_750_000]));
    assert_eq!(micros("claude-opus-4"), Some([1, 1_000_000_000_000, 0, 500_000]), "the longest beginning counts");
    assert_eq!((micros("claud"), micros("gpt")), (None, None));
    let highest = config.budget.prices.highest();
    assert_eq!((highest.input.micros(), highest.output.micros()), (3_000_000, 1_000_000_000_000));
    assert_eq!([highest.input, highest.cache_write].map(|usd| usd.to_string()), ["3.00", "3.75"]);
    let defaults = Config::default();
    assert_eq!(defaults.agent.keep_warm(), Duration::from_mins(2));
    assert_eq!((defaults.mode, defaults.reaction_approvals, defaults.retention_days), (RoomMode::Queue, false, None));
    assert_eq!((defaults.budget.daily_tokens, defaults.budget.daily_usd), (None, None));
}

#[test]
fn shapes() {
    let memory = |text: &str| text.parse().map(Memory::bytes).ok();
    for text in ["256m", "256MB", "262144k", "268435456b", "256 MiB"] {
        assert_eq!(memory(text), Some(256 << 20), "{text}");
    }
    for text in ["", "m", "512", "1.5g", "-1g", "4x", "0g", "99999999t", "18446744073709551616b", "४g"] {
        assert_eq!(memory(text), None, "{text}");
    }
    let host = |text: &str| text.parse::<EngineHost>().map(|host| host.to_string()).ok();
    assert_eq!(host("unix:///run/docker.sock").as_deref(), Some("unix:///run/docker.sock"));
    assert_eq!(host("http://localhost:2375").as_deref(), Some("tcp://localhost:2375"));
    assert_eq!(host("tcp://[::1]:2375/").as_deref(), Some("tcp://[::1]:2375"));
    for text in
        ["tcp://127.0.0.1", "tcp://127.0.0.1.example.org:1", "http://a@localhost:1", "http://localhost:1/x", "ssh://h"]
    {
        assert_eq!(host(text), None, "{text}");
    }
    for room in ["!a:b", "#team:example.org:8448", "!a:[::1]", &format!("!{}", "x".repeat(43))] {
        assert!(room.parse::<RoomRef>().is_ok(), "{room}");
    }
    for room in ["", "!:b", "!a", "a:b", "@a:b", "!a b:c", "#a:b/c"] {
        assert!(room.parse::<RoomRef>().is_err(), "{room}");
    }
    for (host, good) in
        [("h", true), ("a@h.example.org", true), ("a@b@c", false), ("-h", false), ("h;x", false), ("@h", false)]
    {
        assert_eq!(host.parse::<SshHost>().is_ok(), good, "{host}");
    }
    for (host, good) in [
        ("git.example.lan", true),
        ("10.0.0.7", true),
        ("fd00::1", true),
        ("Git.example", false),
        ("[fd00::1]", false),
        ("FD00::1", false),
        ("h:22", false),
        ("a@h", false),
        ("-h", false),
        ("", false),
    ] {
        assert_eq!(host.parse::<HostName>().is_ok(), good, "{host}");
    }
    let digest = "0".repeat(64);
    assert!(format!("r.example.org:5000/debian:trixie@sha256:{digest}").parse::<ImageRef>().is_ok());
    assert!(format!("-x@sha256:{digest}").parse::<ImageRef>().is_err());
    let path = |text| {
        parse(&format!("password_file = \"/x\"\nprojects.roots = [\"{text}\"]")).projects.roots[0]
            .resolve(Path::new("/h"))
    };
    assert_eq!(["~", "~/", "~/a/b", "/~/a"].map(path), ["/h", "/h", "/h/a/b", "/~/a"].map(PathBuf::from));
}

/// The example with every setting set.
fn everything() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(['#', ' ']) => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    example().lines().map(uncomment).collect::<Vec<_>>().concat()
}

fn check_any(text: &str) -> Result<(), TestCaseError> {
    match Config::parse(text, Path::new("bot.toml")) {
        Ok(config) => {
            prop_assert!(config.coalesce_max() >= config.coalesce_window());
            prop_assert!(config.agent.runtime() != Some(Runtime::Command(&[])));
        }
        Err(ConfigError::Invalid(problems)) => {
            prop_assert!(!problems.is_empty());
            let lines = text.matches('\n').count() + 1;
            for problem in problems {
                prop_assert!((1..=lines).contains(&problem.line), "{}", problem);
                prop_assert!(!problem.message.contains(char::is_control), "{}", problem);
            }
        }
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in any::<String>()) {
        check_any(&text)?;
    }

    #[test]
    fn anything_like_toml_is_parsed_or_refused(text in "([a-z_\"]{1,9} ?[=.] ?[-\\[\\]{}\"a-z0-9.,]{0,9}\n|\\[[a-z]{1,6}\\]\n){0,12}") {
        check_any(&text)?;
    }

    #[test]
    fn a_damaged_example_is_parsed_or_refused(at in any::<prop::sample::Index>(), length in 0usize..40, with in ".{0,8}") {
        let mut chars: Vec<char> = everything().chars().collect();
        let start = at.index(chars.len());
        let end = (start + length).min(chars.len());
        chars.splice(start..end, with.chars());
        check_any(&chars.into_iter().collect::<String>())?;
    }

    #[test]
    fn memory_round_trips(bytes in (256u64 << 20)..=i64::MAX as u64, shift in 0u32..40) {
        let memory = Memory::from_bytes((bytes >> shift << shift).max(256 << 20)).unwrap();
        prop_assert_eq!(memory.to_string().parse(), Ok(memory));
    }

    #[test]
    fn amounts_of_dollars_are_exact(micros in 0u64..=1_000_000_000_000) {
        let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        let price = format!("prices.x = {{ input = 0, output = {text}, cache_read = 0, cache_write = 0 }}");
        let config = parse(&format!("[budget]\n{price}\ndaily_usd = {text}"));
        let usd = config.budget.daily_usd.unwrap();
        prop_assert_eq!((usd.micros(), config.budget.prices.highest().output), (micros, usd));
        prop_assert_eq!(parse(&format!("[budget]\n{price}\ndaily_usd = {usd}")), config);
    }

    #[test]
    fn cpus_round_trip(cpus in 0.01f64..1024.0) {
        let cpus: Cpus = cpus.to_string().parse().unwrap();
        prop_assert_eq!(cpus.to_string().parse(), Ok(cpus));
    }

    #[test]
    fn a_secret_is_never_printed(secret in "[A-Z0-9]{12}") {
        let lines = [
            "password = \"X\"",
            "password = \"\\qX\"",
            "password = X",
            "password = [\"X\"]",
            "password_secret = \"0X\"",
            "password_file = \"X\"",
            "homeserver = \"https://a:X@example.org\"",
            "model.headers.x-team = \"X\"",
            "model.headers.x-api-key = \"X\"",
        ];
        for line in lines.map(|line| line.replace('X', &secret)) {
            for more in ["", "max_queue = 0"] {
                let printed = match Config::parse(&format!("{line}\n{more}"), Path::new("bot.toml")) {
                    Ok(config) => format!("{config:?} {config:#?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!printed.contains(&secret), "{}", printed);
            }
        }
        let config = parse(&format!("{MATRIX}username = \"musher\"\npassword = \"{secret}\""));
        let printed = format!("{config:?} {config:#?}");
        prop_assert!(!printed.contains(&secret), "{}", printed);
    }
}
