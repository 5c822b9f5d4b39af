//! `stacks list` and `stacks check`: which stacks there are, and what is wrong with a person's own (STK-2). It reads
//! the state directory's `stacks/`, and builds nothing.

use stacks::{Checked, Origin, Stack, Stacks, Toolchains};

use crate::{home::Home, refusal::Refusal, text};

/// How much of what a stack says of itself is shown, in characters.
const WORDS_MAX: usize = 200;

/// What a check came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all is in order.
    pub ok: bool,
    /// What was found, as chat text; as terminal text it reads the same.
    pub text: String,
}

/// All stacks in their order of preference, with what they are for these toolchains.
pub fn list(stacks: &Stacks, toolchains: Toolchains) -> String {
    let lines = stacks.by_preference().map(|stack| line(stack, toolchains));
    lines.collect::<Vec<_>>().join("\n")
}

fn line(stack: &Stack, toolchains: Toolchains) -> String {
    let whose = match stack.origin() {
        Origin::BuiltIn => "built in",
        Origin::Own(_) => "your own",
    };
    let patterns: Vec<_> = stack.patterns().iter().map(|pattern| text::code(&pattern.to_string())).collect();
    let server = stack.server(toolchains).map(|server| format!("; server {}", text::code(server)));
    format!(
        "- **{}** ({whose}, priority {}): {}{}{}",
        stack.name(),
        stack.priority(),
        patterns.join(", "),
        server.unwrap_or_default(),
        lacks(stack, toolchains),
    )
}

/// `; it lacks …`, or nothing.
pub fn lacks(stack: &Stack, toolchains: Toolchains) -> String {
    let missing = stack.missing(toolchains);
    missing.map(|missing| format!("; it lacks {}", text::one_line(missing, WORDS_MAX))).unwrap_or_default()
}

/// Reads all of a person's own stacks, or the one of this name, and tells everything that is wrong with them.
///
/// # Errors
/// When there is no stack of that name, or the folder cannot be read.
pub fn check(home: &Home, name: Option<&str>) -> Result<Outcome, Refusal> {
    let folder = home.stacks();
    let all = Stacks::check(&folder).map_err(|error| Refusal::config(error.to_string()))?;
    let chosen: Vec<&Checked> = all.iter().filter(|checked| name.is_none_or(|name| called(checked) == name)).collect();
    match name {
        Some(name) if chosen.is_empty() => {
            let names: Vec<_> = all.iter().map(|checked| text::code(&called(checked))).collect();
            let there = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
            Err(Refusal::usage(format!("there is no stack {} in {}", text::code(name), folder.display()))
                .hint(format!("There are: {there}.")))
        }
        None if chosen.is_empty() => {
            let text = format!("There are no stacks of your own in {}.", folder.display());
            Ok(Outcome { ok: true, text })
        }
        _ => Ok(told(&chosen)),
    }
}

fn called(checked: &Checked) -> String {
    checked.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn told(checked: &[&Checked]) -> Outcome {
    let mut lines = Vec::new();
    for checked in checked {
        match &checked.result {
            Ok(_) => lines.push(format!("- ✓ {}: in order", text::code(&called(checked)))),
            Err(faults) => lines.extend(faults.iter().map(|fault| format!("- ✗ {}", text::plain(&fault.to_string())))),
        }
    }
    Outcome { ok: checked.iter().all(|checked| checked.result.is_ok()), text: lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_told_with_what_it_lacks() {
        let stacks = Stacks::builtin();
        let shown = |toolchains| list(&stacks, toolchains);
        let of = |shown: &str, name: &str| {
            let start = format!("- **{name}**");
            shown.lines().find(|line| line.starts_with(&start)).map(str::to_owned).expect("it is listed")
        };
        assert_eq!(
            of(&shown(Toolchains::Upstream), "rust"),
            "- **rust** (built in, priority 10): `Cargo.toml`, `rust-toolchain.toml`, `rust-toolchain`; server `rust-analyzer`"
        );
        let jvm = of(&shown(Toolchains::Distro), "jvm");
        assert!(jvm.ends_with("; it lacks a language server: Debian packages none for Java"), "{jvm}");
        let jvm = of(&shown(Toolchains::Upstream), "jvm");
        assert!(jvm.ends_with("; server `jdtls`"), "{jvm}");
    }
}
