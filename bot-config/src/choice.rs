//! Settings that are one word out of a few.

use std::fmt;
use std::str::FromStr;

use crate::error::ValueError;
use crate::read::nearest;
use crate::value::Text;

macro_rules! choices {
    ($(
        $(#[$meta:meta])*
        $vis:vis enum $Name:ident {
            $( $(#[$vmeta:meta])* $Variant:ident = $word:literal, )+
        }
        $(; later { $($later:literal => $instead:literal,)+ } )?
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $Name { $( $(#[$vmeta])* $Variant, )+ }

        impl $Name {
            /// The word that bot.toml has for it.
            $vis fn as_str(self) -> &'static str {
                match self { $( Self::$Variant => $word, )+ }
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $Name {
            type Err = ValueError;

            fn from_str(word: &str) -> Result<Self, ValueError> {
                match word {
                    $( $word => Ok(Self::$Variant), )+
                    $($( $later => Err(ValueError(format!(
                        "cannot be \"{}\": this version does not have it yet; {}", $later, $instead
                    ))), )+)?
                    _ => Err(unknown_word(word, &[$($word),+])),
                }
            }
        }

        impl Text for $Name {
            fn shape() -> String {
                one_of(&[$($word),+])
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn unknown_word(word: &str, words: &[&'static str]) -> ValueError {
    let error = ValueError::must_be(one_of(words));
    match nearest(word, words.iter().copied()) {
        Some(near) => ValueError(format!("{error}; did you mean \"{near}\"?")),
        None => error,
    }
}

choices! {
    /// Where people talk.
    pub(crate) enum Transport {
        /// The terminal that `musher up` runs on.
        Console = "console",
        /// Rooms of a Matrix homeserver.
        Matrix = "matrix",
    }

    /// What answers in a project's room, as the file names it.
    pub(crate) enum RuntimeKind {
        /// Claude Code.
        Claude = "claude",
        /// The practice agent: built in, it repeats what it is told.
        Echo = "echo",
        /// A program that speaks Claude Code's stream-json.
        Command = "command",
    }

    /// Whether an agent asks people before it uses a tool.
    pub enum Permissions {
        /// It may do everything inside its container: the container is the fence.
        AllowInContainer = "allow-in-container",
        /// It asks in the room, and waits for an answer.
        Ask = "ask",
    }

    /// What a message does that comes while a turn runs (CHAT-7).
    pub enum RoomMode {
        /// It waits for the turn's end.
        Queue = "queue",
        /// It ends the turn, and a new one answers what was not answered.
        Interrupt = "interrupt",
    }

    /// How the model key is shown to the model's endpoint.
    pub enum Auth {
        /// In the header `x-api-key`.
        ApiKey = "api-key",
        /// In the header `authorization`, as a bearer token.
        Bearer = "bearer",
        /// Not at all: the server wants none.
        None = "none",
    }

    /// What a project's container reaches.
    pub enum Network {
        /// Everything that the host reaches, except the host itself and other projects.
        Open = "open",
        /// Nothing.
        None = "none",
    };
    later { "allowlist" => "use \"none\", or \"open\"", }

    /// Where stacks take their toolchains from.
    pub enum Toolchains {
        /// The language's own releases, pinned by digest.
        Upstream = "upstream",
        /// Debian packages alone, for hosts that reach only a Debian mirror.
        Distro = "distro",
    }
}
