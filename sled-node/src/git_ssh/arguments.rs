//! What git gives to ssh, read strictly: options, a destination, and one command in git's own quoting.
//!
//! Pure; it judges the form alone. Whether the place is the project's remote is the gateway's to say.

use std::ffi::OsString;

use link::git::{Service, SshRequest};

/// The option by which git has its variable passed on.
const SEND_PROTOCOL: &str = "SendEnv=GIT_PROTOCOL";

/// Longest user or host, in bytes.
const MAX_NAME: usize = 255;

/// Longest path, in bytes.
const MAX_PATH: usize = 4096;

/// Longest `GIT_PROTOCOL`, in bytes.
const MAX_PROTOCOL: usize = 64;

/// One call of ssh by git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is to be run there.
    pub service: Service,
    /// Where.
    pub place: SshRequest,
}

/// Arguments that git does not give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not UTF-8.
    #[error("an argument is not text in UTF-8")]
    NotText,
    /// An option that git does not use.
    #[error("the option {0:?} is none that git gives to ssh")]
    Option(String),
    /// Something is missing at the end.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// No port.
    #[error("{0:?} is no port")]
    Port(String),
    /// Something is there twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// Not a user's or a host's name.
    #[error("{0:?} is no user and host")]
    Destination(String),
    /// Not a service with a path in git's quoting.
    #[error(
        "the command is neither git-upload-pack nor git-receive-pack with one quoted path: only fetch and push go this way"
    )]
    Command,
    /// Something after the command.
    #[error("there is more after the command")]
    Surplus,
}

impl Unfit {
    /// Whether ssh itself may know what to do with such arguments.
    pub fn is_for_ssh(&self) -> bool {
        match self {
            Self::NotText
            | Self::Option(_)
            | Self::Missing("the command")
            | Self::Twice(_)
            | Self::Command
            | Self::Surplus => true,
            Self::Missing(_) | Self::Port(_) | Self::Destination(_) => false,
        }
    }
}

/// Reads `args`; `protocol` is the environment's `GIT_PROTOCOL`, which counts where an option asks to send it.
pub fn parse(args: &[OsString], protocol: Option<&str>) -> Result<Call, Unfit> {
    let mut args = args.iter().map(|arg| arg.to_str().ok_or(Unfit::NotText));
    let mut next = |what| args.next().unwrap_or(Err(Unfit::Missing(what)));
    let (mut port, mut user, mut sends_protocol) = (None, None, false);
    let destination = loop {
        match next("the host")? {
            // The gateway chooses the address; it allocates no terminal.
            "-4" | "-6" | "-T" => {}
            "-p" => once(&mut port, port_of(next("the port after -p")?)?, "the port")?,
            "-l" => once(&mut user, next("the user after -l")?, "the user")?,
            // The others are about ssh's own connection, of which there is none.
            "-o" => sends_protocol |= next("the setting after -o")? == SEND_PROTOCOL,
            option if option.starts_with('-') => return Err(Unfit::Option(option.to_owned())),
            destination => break destination,
        }
    };
    let command = next("the command")?;
    if args.next().is_some() {
        return Err(Unfit::Surplus);
    }
    let host = match destination.rsplit_once('@') {
        None => destination,
        Some((name, host)) => {
            once(&mut user, name, "the user")?;
            host
        }
    };
    let is_name = |name: &str| {
        (1..=MAX_NAME).contains(&name.len())
            && !name.starts_with('-')
            && !name.contains(|c: char| c.is_control() || c.is_whitespace())
    };
    if !is_name(host) || !user.is_none_or(is_name) {
        return Err(Unfit::Destination(destination.chars().take(MAX_NAME).collect()));
    }
    let (program, quoted) = command.split_once(' ').ok_or(Unfit::Command)?;
    let service = Service::named(program).ok_or(Unfit::Command)?;
    let path = unquote(quoted).filter(|path| (1..=MAX_PATH).contains(&path.len())).ok_or(Unfit::Command)?;
    let protocol = protocol.filter(|protocol| {
        sends_protocol && protocol.len() <= MAX_PROTOCOL && protocol.bytes().all(|b| b.is_ascii_graphic())
    });
    Ok(Call {
        service,
        place: SshRequest {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path,
            protocol: protocol.map(str::to_owned),
        },
    })
}

fn once<T>(place: &mut Option<T>, value: T, what: &'static str) -> Result<(), Unfit> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Unfit::Twice(what)),
    }
}

fn port_of(text: &str) -> Result<u16, Unfit> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| Unfit::Port(text.chars().take(MAX_NAME).collect()))
}

/// The text that git's quoting stands for: all of it in single quotes, but `'` and `!`, which stand outside behind a backslash.
fn unquote(quoted: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = quoted.strip_prefix('\'')?;
    loop {
        let (literal, after) = rest.split_once('\'').filter(|(literal, _)| !literal.contains('!'))?;
        text.push_str(literal);
        if after.is_empty() {
            return Some(text);
        }
        let escaped = after.strip_prefix('\\')?;
        let character = escaped.chars().next().filter(|c| matches!(c, '\'' | '!'))?;
        text.push(character);
        rest = escaped[1..].strip_prefix('\'')?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(args: &[&str]) -> Result<Call, Unfit> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        parse(&args, Some("version=2"))
    }

    fn place(user: Option<&str>, host: &str, port: Option<u16>, path: &str, protocol: Option<&str>) -> SshRequest {
        SshRequest {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
            protocol: protocol.map(str::to_owned),
        }
    }

    #[test]
    fn what_git_gives() {
        let table: [(&[&str], Service, SshRequest); 5] = [
            (
                &["-o", "SendEnv=GIT_PROTOCOL", "git@example.org", "git-upload-pack 'a/b.git'"],
                Service::UploadPack,
                place(Some("git"), "example.org", None, "a/b.git", Some("version=2")),
            ),
            (
                &["-4", "-p", "2222", "example.org", "git-receive-pack '/srv/it'\\''s'\\!' here'"],
                Service::ReceivePack,
                place(None, "example.org", Some(2222), "/srv/it's! here", None),
            ),
            (
                &["-6", "-T", "me@::1", "git-upload-pack '~me/x'"],
                Service::UploadPack,
                place(Some("me"), "::1", None, "~me/x", None),
            ),
            (
                &["-o", "BatchMode=yes", "-l", "me", "h", "git-upload-pack '/x'"],
                Service::UploadPack,
                place(Some("me"), "h", None, "/x", None),
            ),
            (&["a@b@h", "git-upload-pack '/x'"], Service::UploadPack, place(Some("a@b"), "h", None, "/x", None)),
        ];
        for (args, service, place) in table {
            assert_eq!(parsed(args), Ok(Call { service, place }), "{args:?}");
        }
    }

    #[test]
    fn what_git_does_not_give_is_refused() {
        let option = |text: &str| Unfit::Option(text.to_owned());
        let destination = |text: &str| Unfit::Destination(text.to_owned());
        let table: [(&[&str], Unfit); 24] = [
            (&[], Unfit::Missing("the host")),
            (&["h"], Unfit::Missing("the command")),
            (&["-p"], Unfit::Missing("the port after -p")),
            (&["-oProxyCommand=x", "h", "git-upload-pack '/x'"], option("-oProxyCommand=x")),
            (&["-F", "/tmp/x", "h", "git-upload-pack '/x'"], option("-F")),
            (&["--", "h", "git-upload-pack '/x'"], option("--")),
            (&["-p", "0", "h", "c"], Unfit::Port("0".to_owned())),
            (&["-p", "+22", "h", "c"], Unfit::Port("+22".to_owned())),
            (&["-p", "65536", "h", "c"], Unfit::Port("65536".to_owned())),
            (&["-p", "1", "-p", "2", "h", "c"], Unfit::Twice("the port")),
            (&["-l", "a", "b@h", "c"], Unfit::Twice("the user")),
            (&["", "c"], destination("")),
            (&["@h", "c"], destination("@h")),
            (&["u@", "c"], destination("u@")),
            (&["u@-oProxyCommand=x", "c"], destination("u@-oProxyCommand=x")),
            (&["h\nost", "c"], destination("h\nost")),
            (&["h", "c", "d"], Unfit::Surplus),
            (&["h", "git-upload-pack"], Unfit::Command),
            (&["h", "git-upload-pack ''"], Unfit::Command),
            (&["h", "git-upload-pack /x"], Unfit::Command),
            (&["h", "git-upload-pack '/x'; id"], Unfit::Command),
            (&["h", "git-upload-pack '/x' '/y'"], Unfit::Command),
            (&["h", "git-upload-archive '/x'"], Unfit::Command),
            (&["h", "/bin/sh -c 'x'"], Unfit::Command),
        ];
        for (args, unfit) in table {
            let is_for_ssh = !matches!(args, [] | ["-p" | "" | "@h" | "u@" | "h\nost" | "u@-oProxyCommand=x", ..])
                || matches!(args, ["-p", "1", ..]);
            assert_eq!(unfit.is_for_ssh(), is_for_ssh, "{args:?}");
            assert_eq!(parsed(args), Err(unfit), "{args:?}");
        }
        let long = format!("git-upload-pack '{}'", "x".repeat(MAX_PATH + 1));
        assert_eq!(parsed(&["h", &long]), Err(Unfit::Command));
    }

    #[test]
    fn a_protocol_of_another_form_stays_behind() {
        let args = ["-o", "SendEnv=GIT_PROTOCOL", "h", "git-upload-pack '/x'"].map(OsString::from);
        for protocol in ["version=2\nX", "version=2 ", &"x".repeat(65)] {
            assert_eq!(parse(&args, Some(protocol)).unwrap().place.protocol, None, "{protocol:?}");
        }
    }

    /// git's `sq_quote_buf`.
    fn quote(text: &str) -> String {
        format!("'{}'", text.replace('\'', r"'\''").replace('!', r"'\!'"))
    }

    proptest! {
        #[test]
        fn quoting_is_undone(text in r"(?s:.*)|['!\\ a]*") {
            prop_assert_eq!(unquote(&quote(&text)), Some(text));
        }

        #[test]
        fn nothing_but_gits_own_quoting_is_undone(text in r"(?s:.*)|'['!\\ a]*'") {
            if let Some(path) = unquote(&text) {
                prop_assert_eq!(quote(&path), text);
            }
        }

        #[test]
        fn no_arguments_make_it_panic(args in proptest::collection::vec(r"-[4pol]|(?s:.{0,20})", 0..6)) {
            let args: Vec<OsString> = args.iter().map(Into::into).collect();
            let _ = parse(&args, None);
        }
    }
}
