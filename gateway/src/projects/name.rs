//! Names of projects (PROJ-1). Pure.

use crate::{refusal::Refusal, text};

/// Names that mean something else: doors, networks, verbs of `members`, ourselves.
const RESERVED: [&str; 10] =
    ["add", "all", "control", "gateway", "host", "localhost", "musher", "none", "remove", "sled"];

/// Checks a name: `[a-z][a-z0-9-]{0,30}`, not reserved.
pub fn check(name: &str) -> Result<(), Refusal> {
    let mut letters = name.bytes();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.len() <= 31;
    if !well_formed {
        return Err(Refusal::usage(format!("{} cannot be a project's name", text::code(name)))
            .hint("A name is a lower-case letter, then lower-case letters, digits or dashes, 31 at most: for example `my-app2`."));
    }
    if RESERVED.contains(&name) {
        return Err(Refusal::usage(format!("{} is reserved and cannot be a project's name", text::code(name)))
            .hint(format!("Choose another one, such as `my-{name}`.")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_strict() {
        for good in ["a", "myapp", "my-app2", "a234567890123456789012345678901"] {
            check(good).unwrap_or_else(|refusal| panic!("{good}: {refusal}"));
        }
        for bad in
            ["", "A", "1a", "-a", "a_b", "a b", "ä", "a/b", "..", "a2345678901234567890123456789012", "a\n", "host"]
        {
            check(bad).expect_err(bad);
        }
    }
}
