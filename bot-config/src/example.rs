//! `bot.toml.example`, written from the table of settings.

use crate::settings::{Config, Section, Setting};

const HEADER: &str = "\
# Musher's settings: every one there is, with its default where it has one, otherwise with an example.
# `musher config example` prints this file, `musher config check` checks yours.
#
# Take the # off a setting to set it. A setting with ## is another way of saying what one without says: use one of the
# two. Paths begin with / or ~/. What is not known or contradicts itself is refused, with its line.
";

/// The text of `bot.toml.example`.
pub fn example() -> String {
    let mut config = Config::default();
    let mut text = HEADER.to_owned();
    text.extend(config.settings().iter().map(entry));
    for section in config.sections() {
        text.push('\n');
        text.extend(section.about().iter().flat_map(|line| ["# ", line, "\n"]));
        text.extend(["[", section.name(), "]\n"]);
        text.extend(section.settings().iter().map(entry));
    }
    text
}

fn entry(setting: &Setting) -> String {
    let Setting { key, kind, default, sample, instead_of, doc } = setting;
    let doc: String = doc.iter().flat_map(|line| ["# ", line, "\n"]).collect();
    let default = default.as_deref();
    let about_default = default.map_or_else(|| "not set".to_owned(), |value| format!("default {value}"));
    let (mark, instead) = match instead_of {
        Some(other) => ("##", format!("; instead of {other}")),
        None => ("#", String::new()),
    };
    let value = sample.or(default).unwrap_or_default();
    format!("\n{doc}# [{kind}; {about_default}{instead}]\n{mark}{key} = {value}\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::dotted;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("bot.toml")).map_err(|error| format!("{error}\n{text}")).unwrap()
    }

    /// Every setting of every section.
    fn settings() -> Vec<(&'static str, Setting)> {
        let mut config = Config::default();
        let mut all: Vec<_> = config.settings().into_iter().map(|setting| ("", setting)).collect();
        for section in config.sections() {
            let name = section.name();
            all.extend(section.settings().into_iter().map(|setting| (name, setting)));
        }
        all
    }

    fn assign(section: &str, key: &str, value: &str) -> String {
        if section.is_empty() { format!("{key} = {value}\n") } else { format!("[{section}]\n{key} = {value}\n") }
    }

    #[test]
    fn the_committed_example_is_the_generated_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bot.toml.example");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, example()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(committed == example(), "stale; regenerate: UPDATE=1 cargo test -p bot-config example");
    }

    #[test]
    fn the_example_says_the_defaults_and_parses_when_uncommented() {
        assert_eq!(parse(&example()), Config::default());
        let uncommented: String = example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(['#', ' ']) => setting,
                _ => line,
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = parse(&uncommented);
        assert_eq!(config.agent.runtime(), Some(crate::Runtime::Claude));
        parse(&uncommented.replace("transport = \"console\"", "transport = \"matrix\""));
    }

    /// Each setting alone: its default changes nothing, its sample changes something, a date is refused by name.
    #[test]
    fn every_key_is_read() {
        for (section, setting) in settings() {
            let Setting { key, default, sample, .. } = setting;
            let companion = match key {
                "command" => "runtime = \"command\"\n",
                "daily_usd" => "prices = { \"x\" = { input = 1, output = 1, cache_read = 1, cache_write = 1 } }\n",
                _ => "",
            };
            if let Some(sample) = sample {
                let set = parse(&(assign(section, key, sample) + companion));
                assert_ne!(set, Config::default(), "{key}");
            }
            match default {
                Some(_) if key == "command" => {}
                Some(default) => assert_eq!(parse(&assign(section, key, &default)), Config::default(), "{key}"),
                None => assert!(sample.is_some(), "{key} has nothing to show"),
            }
            let bad = Config::parse(&assign(section, key, "1979-05-27"), Path::new("bot.toml"));
            let error = bad.unwrap_err().to_string();
            let expected = format!("`{}` must be", dotted(section, key));
            assert!(error.contains(&expected) && error.contains(", not a date"), "{error}");
        }
    }
}
