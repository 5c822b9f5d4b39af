//! Settings that are right each by itself and wrong together. A setting whose value could not be read counts as
//! there: its own problem is enough.

use std::num::NonZeroU32;

use crate::choice::{RuntimeKind, Transport};
use crate::endpoint;
use crate::read::Seen;
use crate::settings::{Config, MatrixAccount, MatrixLogin, PasswordSource, Surface};
use crate::value::Problems;

const PASSWORDS: [&str; 3] = ["password_secret", "password_file", "password"];

/// What says where the model is, and with which key.
const MODEL: [&str; 5] =
    ["model.base_url", "model.auth", "model.api_key_secret", "model.api_key_file", "model.projects"];

const MIN_PIDS: u32 = 64;

/// Notes every contradiction outside the Matrix login.
pub(crate) fn contradictions(config: &Config, seen: &Seen, problems: &mut Problems<'_>) {
    let valid = |key: &str| seen.get(key).is_none_or(|found| found.valid);

    if let Some(key) = seen.get("coalesce_max_ms").or(seen.get("coalesce_window_ms"))
        && config.coalesce_max_ms < config.coalesce_window_ms
        && valid("coalesce_max_ms")
        && valid("coalesce_window_ms")
    {
        let (max, window) = (config.coalesce_max_ms.0, config.coalesce_window_ms.0);
        problems.push(key.offset, format!(
            "`coalesce_max_ms` ({max}) is less than `coalesce_window_ms` ({window}); raise the one or lower the other"
        ));
    }
    for key in ["git_user_name", "git_user_email"] {
        let value = if key == "git_user_name" { &config.git_user_name } else { &config.git_user_email };
        if let (Some(found), Some(value)) = (seen.get(key), value)
            && value.contains(['<', '>'])
        {
            problems.push(found.offset, format!("`{key}` must not contain `<` or `>`; git puts them there itself"));
        }
    }

    let command = seen.get("agent.command");
    match (config.agent.runtime, command, seen.get("agent.runtime")) {
        (Some(RuntimeKind::Command), None, Some(runtime)) => problems.push(
            runtime.offset,
            "`agent.runtime = \"command\"` needs `agent.command`, such as `command = [\"my-agent\"]`",
        ),
        (Some(RuntimeKind::Command), Some(found), _) if found.valid && config.agent.command.is_empty() => {
            problems.push(found.offset, "`agent.command` is empty; name the program first, then its arguments");
        }
        (Some(RuntimeKind::Claude | RuntimeKind::Echo), Some(found), _) | (None, Some(found), None) => problems.push(
            found.offset,
            "`agent.command` needs `agent.runtime = \"command\"`; set that, or take `agent.command` out",
        ),
        _ => {}
    }
    if let (Some(_), Some(file)) = (seen.get("model.api_key_secret"), seen.get("model.api_key_file")) {
        problems.push(
            file.offset,
            "`model.api_key_file` and `model.api_key_secret` both say where the model key is; keep one of them",
        );
    }

    if let Some(at) = seen.get("model.auth").or(seen.get("model.projects"))
        && MODEL.iter().all(|key| valid(key))
    {
        for contradiction in endpoint::contradictions(&config.model) {
            problems.push(at.offset, contradiction);
        }
    }

    if let Some(usd) = seen.get("budget.daily_usd")
        && config.budget.daily_usd.is_some_and(|usd| usd.micros() == 0)
    {
        problems.push(usd.offset, "`budget.daily_usd` must be more than 0; take it out for no limit");
    }
    if let Some(usd) = seen.get("budget.daily_usd")
        && config.budget.prices.is_empty()
        && valid("budget.prices")
    {
        problems.push(
            usd.offset,
            "`budget.daily_usd` needs a price to count with; add one such as `prices = { \"claude\" = { input = 3.00, \
             output = 15.00, cache_read = 0.30, cache_write = 3.75 } }`, or set `daily_tokens` instead",
        );
    }

    if let Some(roots) = seen.get("projects.roots")
        && roots.valid
        && config.projects.roots.is_empty()
    {
        problems.push(roots.offset, "`projects.roots` is empty; name at least one folder, such as \"~/musher\"");
    }
    if let Some(pids) = seen.get("projects.pids")
        && config.projects.pids < const { NonZeroU32::new(MIN_PIDS).unwrap() }
    {
        problems.push(
            pids.offset,
            format!("`projects.pids` must be at least {MIN_PIDS}; editors and agents need that many"),
        );
    }
}

/// Checks what is said about Matrix, and makes it the config's surface where it is asked for and complete.
pub(crate) fn surface(config: &mut Config, seen: &Seen, problems: &mut Problems<'_>) {
    let passwords: Vec<_> = PASSWORDS.iter().filter_map(|key| Some((*key, seen.get(*key)?.offset))).collect();
    if let Some(((first, _), others)) = passwords.split_first() {
        for (key, offset) in others {
            let message = format!("`{key}` and `{first}` both say where the password is; keep one of them");
            problems.push(*offset, message);
        }
    }
    if seen.contains_key("access_token_secret") {
        let username = seen.get("username").map(|found| ("username", found.offset));
        for (key, offset) in username.iter().chain(&passwords) {
            let message = format!("`{key}` and `access_token_secret` are two ways to log in; keep one of them");
            problems.push(*offset, message);
        }
    }

    let Some(transport) = seen.get("transport").filter(|_| config.transport == Transport::Matrix) else {
        return;
    };
    let mut needs = |key: &str, what: &str| {
        problems.push(transport.offset, format!("`transport = \"matrix\"` needs {key}, such as `{what}`"));
    };
    if !seen.contains_key("homeserver") {
        needs("`homeserver`", "homeserver = \"https://matrix.example.org\"");
    }
    if !seen.contains_key("access_token_secret") {
        if !seen.contains_key("username") {
            needs("`username` (or `access_token_secret`)", "username = \"musher\"");
        }
        if passwords.is_empty() {
            needs(
                "one of `password_secret`, `password_file` and `password` (or `access_token_secret`)",
                "password_secret = \"matrix-password\"",
            );
        }
    }
    let nobody = |key: &str, users: &[_]| users.is_empty() && seen.get(key).is_none_or(|found| found.valid);
    if nobody("allowed_users", &config.allowed_users) && nobody("admins", &config.admins) {
        problems.push(
            transport.offset,
            "`allowed_users` and `admins` are both empty, so the bot would answer nobody; name yourself, such as \
             `admins = [\"@you:example.org\"]`",
        );
    }
    if let Some((homeserver, login)) = config.homeserver.clone().zip(login(config)) {
        config.surface = Surface::Matrix(MatrixAccount { homeserver, login });
    }
}

fn login(config: &Config) -> Option<MatrixLogin> {
    if let Some(token) = config.access_token_secret.clone() {
        return Some(MatrixLogin::AccessToken(token));
    }
    let secret = config.password_secret.clone().map(PasswordSource::Secret);
    let file = config.password_file.clone().map(PasswordSource::File);
    let plain = config.password.clone().map(PasswordSource::Plain);
    Some(MatrixLogin::Password { username: config.username.clone()?, password: secret.or(file).or(plain)? })
}
