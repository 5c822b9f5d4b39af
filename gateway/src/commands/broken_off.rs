//! What people are told of a command that the gateway's end broke off. Pure: words only.

use super::grammar::{self, Command, Said};
use crate::{refusal::Refusal, text};

/// The answer to the command that was `written` so, under which an earlier gateway ended.
pub fn answer(written: &str) -> Refusal {
    let what = match written.trim() {
        "" => "a command".to_owned(),
        written => text::code(written),
    };
    let hint = match grammar::read(written) {
        Said::Command(Command::New(_)) => {
            "What was half made of it is being removed, unless it was finished: `projects` tells. Write it again if it is not there."
        }
        _ => "`projects` and `status` tell how things stand; write it again if it is still wanted.",
    };
    Refusal::unavailable(format!("the gateway ended while {what} was carried out")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_broke_off_is_named_as_it_was_written_without_what_is_secret() {
        for (written, told) in [
            (
                "!git push",
                "⚠ The gateway ended while `!git push` was carried out.\n\
                 `projects` and `status` tell how things stand; write it again if it is still wanted.",
            ),
            (
                "new project app --git https://ann:s3cret@h.example/app",
                "⚠ The gateway ended while `new project app --git https://…@h.example/app` was carried out.\n\
                 What was half made of it is being removed, unless it was finished: `projects` tells. Write it again if it is not there.",
            ),
            (
                "",
                "⚠ The gateway ended while a command was carried out.\n\
                 `projects` and `status` tell how things stand; write it again if it is still wanted.",
            ),
        ] {
            assert_eq!(answer(written).to_markdown(), told);
        }
    }
}
