//! What is refused, and the exact words.

use std::path::Path;

use bot_config::{Config, ConfigError};

/// Each text, and under it what it is refused with.
fn refusals(cases: &[&str]) -> String {
    let refusal = |text: &&str| {
        let error = Config::parse(text, Path::new("bot.toml"));
        format!("{text}\n=> {}\n\n", error.expect_err(text))
    };
    cases.iter().map(refusal).collect::<Vec<_>>().concat()
}

#[test]
fn unknown_keys() {
    insta::assert_snapshot!(refusals(&[
        "max_queue = 5\n\ncoalesce_windw_ms = 1",
        "allowed_user = []",
        "colour = \"red\"",
        "[model]\napi_key = \"s3cret\"",
        "[agnet]\nruntime = \"echo\"",
        "[web.page]\nx = 1",
        "[agent]\ncomand = [\"x\"]",
        "[agent]\nruntime = \"echo\"\nallowed_users = []",
        "roots = [\"/srv\"]",
        "[projects]\nheaders = {}",
        "agent = \"claude\"",
        "[[agent]]\nruntime = \"echo\"",
        "\"a\\u001Bb\" = 1",
    ]), @r##"
    max_queue = 5

    coalesce_windw_ms = 1
    => bot.toml:3: unknown key `coalesce_windw_ms`; did you mean `coalesce_window_ms`?

    allowed_user = []
    => bot.toml:1: unknown key `allowed_user`; did you mean `allowed_users`?

    colour = "red"
    => bot.toml:1: unknown key `colour`; `musher config example` shows every key

    [model]
    api_key = "s3cret"
    => bot.toml:2: unknown key `model.api_key`; did you mean `model.api_key_secret`?

    [agnet]
    runtime = "echo"
    => bot.toml:1: unknown section `[agnet]`; did you mean `[agent]`?

    [web.page]
    x = 1
    => bot.toml:1: unknown section `[web]`; `musher config example` shows every section

    [agent]
    comand = ["x"]
    => bot.toml:2: unknown key `agent.comand`; did you mean `agent.command`?

    [agent]
    runtime = "echo"
    allowed_users = []
    => bot.toml:3: unknown key `agent.allowed_users`; it belongs above the first `[section]`

    roots = ["/srv"]
    => bot.toml:1: unknown key `roots`; it belongs under `[projects]`

    [projects]
    headers = {}
    => bot.toml:2: unknown key `projects.headers`; it belongs under `[model]`

    agent = "claude"
    => bot.toml:1: `agent` is a section; write `[agent]` on a line of its own

    [[agent]]
    runtime = "echo"
    => bot.toml:1: `agent` is a section; write `[agent]` on a line of its own

    "a\u001Bb" = 1
    => bot.toml:1: unknown key `a\u{1b}b`; `musher config example` shows every key
    "##);
}

#[test]
fn wrong_values() {
    insta::assert_snapshot!(refusals(&[
        "transport = \"matrx\"",
        "[agent]\nruntime = \"shell\"",
        "[agent]\npermissions = \"never\"\nkeep_warm_secs = 700000",
        "mode = \"que\"\nreaction_approvals = \"yes\"\nretention_days = 0",
        "[projects]\nnetwork = \"allowlist\"",
        "max_queue = 0",
        "max_queue = \"5\"",
        "max_concurrent_turns = 2.5",
        "stop_grace_ms = -1",
        "permission_timeout_secs = 0",
        "coalesce_window_ms = 99999999999999999999",
        "allowed_users = \"@ann:example.org\"",
        "allowed_users = [\"@ann:example.org\",\n  \"bob\",\n  7]",
        "room_ids = [\"!abc\"]",
        "ambient_rooms = [\"#team:\"]",
        "homeserver = \"matrix.example.org\"",
        "homeserver = \"http://matrix.example.org\"",
        "homeserver = \"https://bot:pw@matrix.example.org\"",
        "password_secret = \"two words\"",
        "password_file = \"secrets/password\"",
        "username = \"\"",
        "ssh_host = \"-oProxyCommand=x\"",
        "git_user_name = \"Ann <ann@example.org>\"",
        "[projects]\nroots = [\"~ann/projects\"]",
        "[projects]\nroots = []",
        "[projects]\ndefault_cpus = nan",
        "[projects]\ndefault_memory = \"255m\"",
        "[projects]\ndefault_memory = 4",
        "[projects]\npids = 5",
        "[projects]\nuid = 0\ngid = 0",
        "[images]\nbase = \"debian:trixie\"",
        "[images]\ndebian_mirror = \"ftp://mirror.example.org\"",
        "[engine]\nhost = \"tcp://10.0.0.1:2375\"",
        "[engine]\nhost = \"unix://docker.sock\"",
        "[http]\nlisten = \"localhost:80\"",
        "[model.headers]\nHost = \"x\"\nX-Api-Key = \"x\"\nconnection = \"x\"\n\"a b\" = \"x\"\nok = \"x\\ny\"\nn = 1",
        "[model.headers]\nX-Team = \"a\"\nx-team = \"b\"",
    ]), @r##"
    transport = "matrx"
    => bot.toml:1: `transport` must be "console" or "matrix"; did you mean "matrix"?

    [agent]
    runtime = "shell"
    => bot.toml:2: `agent.runtime` must be "claude", "echo" or "command"

    [agent]
    permissions = "never"
    keep_warm_secs = 700000
    => bot.toml:2: `agent.permissions` must be "allow-in-container" or "ask"
    bot.toml:3: `agent.keep_warm_secs` must be a number of seconds, 0 to 86400

    mode = "que"
    reaction_approvals = "yes"
    retention_days = 0
    => bot.toml:1: `mode` must be "queue" or "interrupt"
    bot.toml:2: `reaction_approvals` must be true or false, not text
    bot.toml:3: `retention_days` must be a whole number, 1 to 65535

    [projects]
    network = "allowlist"
    => bot.toml:2: `projects.network` cannot be "allowlist": this version does not have it yet; use "none", or "open"

    max_queue = 0
    => bot.toml:1: `max_queue` must be a whole number, 1 to 65535

    max_queue = "5"
    => bot.toml:1: `max_queue` must be a whole number, 1 to 65535, not text

    max_concurrent_turns = 2.5
    => bot.toml:1: `max_concurrent_turns` must be a whole number, 1 to 65535, not a fraction

    stop_grace_ms = -1
    => bot.toml:1: `stop_grace_ms` must be a number of milliseconds, 0 to 600000

    permission_timeout_secs = 0
    => bot.toml:1: `permission_timeout_secs` must be a number of seconds, 1 to 604800

    coalesce_window_ms = 99999999999999999999
    => bot.toml:1: `coalesce_window_ms` must be a number of milliseconds, 0 to 600000

    allowed_users = "@ann:example.org"
    => bot.toml:1: `allowed_users` must be a list, each entry a Matrix user id such as `@you:example.org`, not text

    allowed_users = ["@ann:example.org",
      "bob",
      7]
    => bot.toml:2: entry 2 of `allowed_users` must be a Matrix user id such as `@you:example.org`
    bot.toml:3: entry 3 of `allowed_users` must be a Matrix user id such as `@you:example.org`, not a whole number

    room_ids = ["!abc"]
    => bot.toml:1: entry 1 of `room_ids` must be a Matrix room id or alias such as `!abc:example.org` or `#team:example.org`

    ambient_rooms = ["#team:"]
    => bot.toml:1: entry 1 of `ambient_rooms` must be a Matrix room id or alias such as `!abc:example.org` or `#team:example.org`

    homeserver = "matrix.example.org"
    => bot.toml:1: `homeserver` must be an https URL (http on loopback alone) without credentials or query

    homeserver = "http://matrix.example.org"
    => bot.toml:1: `homeserver` must be an https URL (http on loopback alone) without credentials or query

    homeserver = "https://bot:pw@matrix.example.org"
    => bot.toml:1: `homeserver` must be an https URL (http on loopback alone) without credentials or query

    password_secret = "two words"
    => bot.toml:1: `password_secret` must be the name of a secret: a letter, then at most 63 letters, digits, `_` or `-`

    password_file = "secrets/password"
    => bot.toml:1: `password_file` must be a path that begins with `/` or `~/`

    username = ""
    => bot.toml:1: `username` must be a text, not empty and without control characters

    ssh_host = "-oProxyCommand=x"
    => bot.toml:1: `ssh_host` must be a host, or `user@host`

    git_user_name = "Ann <ann@example.org>"
    => bot.toml:1: `git_user_name` must not contain `<` or `>`; git puts them there itself

    [projects]
    roots = ["~ann/projects"]
    => bot.toml:2: entry 1 of `projects.roots` must be a path that begins with `/` or `~/`

    [projects]
    roots = []
    => bot.toml:2: `projects.roots` is empty; name at least one folder, such as "~/musher"

    [projects]
    default_cpus = nan
    => bot.toml:2: `projects.default_cpus` must be a number of processors such as 1.5, from 0.01 to 1024

    [projects]
    default_memory = "255m"
    => bot.toml:2: `projects.default_memory` must be a size such as "512m" or "4g", at least 256m

    [projects]
    default_memory = 4
    => bot.toml:2: `projects.default_memory` must be a size such as "512m" or "4g", at least 256m, not a whole number

    [projects]
    pids = 5
    => bot.toml:2: `projects.pids` must be at least 64; editors and agents need that many

    [projects]
    uid = 0
    gid = 0
    => bot.toml:2: `projects.uid` must be a whole number, 1 to 4294967294
    bot.toml:3: `projects.gid` must be a whole number, 1 to 4294967294

    [images]
    base = "debian:trixie"
    => bot.toml:2: `images.base` must be an image by its digest, such as `debian@sha256:` and 64 hexadecimal digits

    [images]
    debian_mirror = "ftp://mirror.example.org"
    => bot.toml:2: `images.debian_mirror` must be an http or https URL without credentials or query

    [engine]
    host = "tcp://10.0.0.1:2375"
    => bot.toml:2: `engine.host` must be `unix:///` and the socket's path, or `tcp://127.0.0.1:` and a port; other hosts are refused, because the engine's API there has no lock

    [engine]
    host = "unix://docker.sock"
    => bot.toml:2: `engine.host` must be `unix:///` and the socket's path, or `tcp://127.0.0.1:` and a port; other hosts are refused, because the engine's API there has no lock

    [http]
    listen = "localhost:80"
    => bot.toml:2: `http.listen` must be an IP address and a port such as "127.0.0.1:7717"

    [model.headers]
    Host = "x"
    X-Api-Key = "x"
    connection = "x"
    "a b" = "x"
    ok = "x\ny"
    n = 1
    => bot.toml:2: `Host` in `model.headers` is set by the gateway itself; take it out
    bot.toml:3: `X-Api-Key` in `model.headers` is set by the gateway itself; take it out
    bot.toml:4: `connection` in `model.headers` is set by the gateway itself; take it out
    bot.toml:5: `a b` in `model.headers` is no header name
    bot.toml:6: `ok` in `model.headers` must be a text of printable ASCII characters
    bot.toml:7: `n` in `model.headers` must be a text, not empty and without control characters, not a whole number

    [model.headers]
    X-Team = "a"
    x-team = "b"
    => bot.toml:3: `x-team` in `model.headers` is there already; case does not matter
    "##);
}

#[test]
fn contradictions() {
    insta::assert_snapshot!(refusals(&[
        "coalesce_max_ms = 1000",
        "coalesce_window_ms = 9000",
        "transport = \"matrix\"",
        "transport = \"matrix\"\nhomeserver = \"example.org\"\nallowed_users = [\"me\"]\naccess_token_secret = \"token\"",
        "transport = \"matrix\"\nhomeserver = \"https://example.org\"\nadmins = [\"@me:example.org\"]\npassword = \"x\"",
        "password = \"x\"\npassword_file = \"/x\"\npassword_secret = \"x\"",
        "username = \"musher\"\npassword = \"x\"\naccess_token_secret = \"token\"",
        "[agent]\nruntime = \"command\"",
        "[agent]\nruntime = \"command\"\ncommand = []",
        "[agent]\ncommand = [\"x\"]",
        "[agent]\nruntime = \"echo\"\ncommand = [\"x\"]",
        "[agent]\nruntime = \"ehco\"\ncommand = [\"x\"]",
        "[model]\napi_key_secret = \"k\"\napi_key_file = \"/k\"",
    ]), @r##"
    coalesce_max_ms = 1000
    => bot.toml:1: `coalesce_max_ms` (1000) is less than `coalesce_window_ms` (1500); raise the one or lower the other

    coalesce_window_ms = 9000
    => bot.toml:1: `coalesce_max_ms` (8000) is less than `coalesce_window_ms` (9000); raise the one or lower the other

    transport = "matrix"
    => bot.toml:1: `transport = "matrix"` needs `homeserver`, such as `homeserver = "https://matrix.example.org"`
    bot.toml:1: `transport = "matrix"` needs `username` (or `access_token_secret`), such as `username = "musher"`
    bot.toml:1: `transport = "matrix"` needs one of `password_secret`, `password_file` and `password` (or `access_token_secret`), such as `password_secret = "matrix-password"`
    bot.toml:1: `allowed_users` and `admins` are both empty, so the bot would answer nobody; name yourself, such as `admins = ["@you:example.org"]`

    transport = "matrix"
    homeserver = "example.org"
    allowed_users = ["me"]
    access_token_secret = "token"
    => bot.toml:2: `homeserver` must be an https URL (http on loopback alone) without credentials or query
    bot.toml:3: entry 1 of `allowed_users` must be a Matrix user id such as `@you:example.org`

    transport = "matrix"
    homeserver = "https://example.org"
    admins = ["@me:example.org"]
    password = "x"
    => bot.toml:1: `transport = "matrix"` needs `username` (or `access_token_secret`), such as `username = "musher"`

    password = "x"
    password_file = "/x"
    password_secret = "x"
    => bot.toml:1: `password` and `password_secret` both say where the password is; keep one of them
    bot.toml:2: `password_file` and `password_secret` both say where the password is; keep one of them

    username = "musher"
    password = "x"
    access_token_secret = "token"
    => bot.toml:1: `username` and `access_token_secret` are two ways to log in; keep one of them
    bot.toml:2: `password` and `access_token_secret` are two ways to log in; keep one of them

    [agent]
    runtime = "command"
    => bot.toml:2: `agent.runtime = "command"` needs `agent.command`, such as `command = ["my-agent"]`

    [agent]
    runtime = "command"
    command = []
    => bot.toml:3: `agent.command` is empty; name the program first, then its arguments

    [agent]
    command = ["x"]
    => bot.toml:2: `agent.command` needs `agent.runtime = "command"`; set that, or take `agent.command` out

    [agent]
    runtime = "echo"
    command = ["x"]
    => bot.toml:3: `agent.command` needs `agent.runtime = "command"`; set that, or take `agent.command` out

    [agent]
    runtime = "ehco"
    command = ["x"]
    => bot.toml:2: `agent.runtime` must be "claude", "echo" or "command"; did you mean "echo"?

    [model]
    api_key_secret = "k"
    api_key_file = "/k"
    => bot.toml:3: `model.api_key_file` and `model.api_key_secret` both say where the model key is; keep one of them
    "##);
}

#[test]
fn budgets() {
    insta::assert_snapshot!(refusals(&[
        "[budget]\ndaily_tokens = 0\ndaily_usd = -1",
        "[budget]\ndaily_usd = 5",
        "[budget]\ndaily_usd = 0.0\nprices = {}",
        "[budget]\ndaily_usd = 1000000.01\nprices = 3",
        "[budget]\ndaily_tokens = 9223372036854775808",
        "[budget.prices.claude]\ninput = 3\noutput = 15.1234567\ncache_read = \"0.3\"\ncache_wrte = 3.75",
        "[budget.prices]\n\"\" = {}\n\"a b\" = {}\nclaude = 3\nok = { input = nan, output = 1e3, cache_read = 0x1, cache_write = 0 }",
        "[budget.price]\ninput = 3",
        "daily_tokens = 7",
    ]), @r##"
    [budget]
    daily_tokens = 0
    daily_usd = -1
    => bot.toml:2: `budget.daily_tokens` must be a whole number, 1 to 9223372036854775807
    bot.toml:3: `budget.daily_usd` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point
    bot.toml:3: `budget.daily_usd` needs a price to count with; add one such as `prices = { "claude" = { input = 3.00, output = 15.00, cache_read = 0.30, cache_write = 3.75 } }`, or set `daily_tokens` instead

    [budget]
    daily_usd = 5
    => bot.toml:2: `budget.daily_usd` needs a price to count with; add one such as `prices = { "claude" = { input = 3.00, output = 15.00, cache_read = 0.30, cache_write = 3.75 } }`, or set `daily_tokens` instead

    [budget]
    daily_usd = 0.0
    prices = {}
    => bot.toml:2: `budget.daily_usd` must be more than 0; take it out for no limit
    bot.toml:2: `budget.daily_usd` needs a price to count with; add one such as `prices = { "claude" = { input = 3.00, output = 15.00, cache_read = 0.30, cache_write = 3.75 } }`, or set `daily_tokens` instead

    [budget]
    daily_usd = 1000000.01
    prices = 3
    => bot.toml:2: `budget.daily_usd` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point
    bot.toml:3: `budget.prices` must be a table of the beginnings of models' names and their prices, not a whole number

    [budget]
    daily_tokens = 9223372036854775808
    => bot.toml:2: `budget.daily_tokens` must be a whole number, 1 to 9223372036854775807

    [budget.prices.claude]
    input = 3
    output = 15.1234567
    cache_read = "0.3"
    cache_wrte = 3.75
    => bot.toml:1: `claude` in `budget.prices` lacks cache_write; name all four, 0 where it costs nothing
    bot.toml:3: `output` of `claude` in `budget.prices` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point
    bot.toml:4: `cache_read` of `claude` in `budget.prices` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point, not text
    bot.toml:5: `cache_wrte` of `claude` in `budget.prices` is no price; did you mean `cache_write`?

    [budget.prices]
    "" = {}
    "a b" = {}
    claude = 3
    ok = { input = nan, output = 1e3, cache_read = 0x1, cache_write = 0 }
    => bot.toml:2: `` in `budget.prices` is no beginning of a model's name
    bot.toml:3: `a b` in `budget.prices` is no beginning of a model's name
    bot.toml:4: `claude` in `budget.prices` must be a table of the prices `input`, `output`, `cache_read` and `cache_write`, not a whole number
    bot.toml:5: `cache_read` of `ok` in `budget.prices` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point
    bot.toml:5: `input` of `ok` in `budget.prices` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point
    bot.toml:5: `output` of `ok` in `budget.prices` must be an amount of US dollars such as 2.50, at most 1000000, with at most 6 places after the point

    [budget.price]
    input = 3
    => bot.toml:1: unknown key `budget.price`; did you mean `budget.prices`?

    daily_tokens = 7
    => bot.toml:1: unknown key `daily_tokens`; it belongs under `[budget]`
    "##);
}

#[test]
fn no_toml() {
    insta::assert_snapshot!(refusals(&[
        "password = hunter2",
        "password = \"hunter2\nmax_queue = 1",
        "max_queue = 1\nmax_queue = 2",
        "[agent]\n\n[agent]",
        "[agent\nruntime",
    ]), @r##"
    password = hunter2
    => bot.toml:1: string values must be quoted, expected literal string

    password = "hunter2
    max_queue = 1
    => bot.toml:1: invalid basic string, expected `"`

    max_queue = 1
    max_queue = 2
    => bot.toml:2: duplicate key

    [agent]

    [agent]
    => bot.toml:3: duplicate key

    [agent
    runtime
    => bot.toml:1: unclosed table, expected `]`
    bot.toml:2: key with no value, expected `=`
    "##);
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bot.toml");
    assert!(matches!(Config::load(&path), Err(ConfigError::NotFound { path: of }) if of == path));
    assert!(matches!(Config::load(folder.path()), Err(ConfigError::Unreadable { .. })));

    std::fs::write(&path, b"# one\nusername = \"m\xfcsher\"\n").unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}:2: not UTF-8; save the file as UTF-8 text", path.display()));

    std::fs::write(&path, "max_queue = 7\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().max_queue.get(), 7);
}
