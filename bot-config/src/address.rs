//! Where other servers are: URLs, the engine, the address to listen on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::{Host, Url};

use crate::error::ValueError;
use crate::value::Text;

macro_rules! urls {
    ($( $(#[$meta:meta])* $Name:ident: $shape:literal if $valid:expr; )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $Name(Url);

        impl $Name {
            /// The URL; it has no credentials, query or fragment.
            pub fn as_url(&self) -> &Url {
                &self.0
            }
        }

        impl FromStr for $Name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let valid: fn(&Url) -> bool = $valid;
                let url = web_url(text).filter(valid);
                url.map(Self).ok_or_else(|| ValueError::must_be($shape))
            }
        }

        impl Text for $Name {
            fn shape() -> String {
                $shape.to_owned()
            }

            fn text(&self) -> String {
                self.0.to_string()
            }
        }
    )+};
}

urls! {
    /// A server that we send credentials to: https, or http on this host's loopback.
    ServerUrl: "an https URL (http on loopback alone) without credentials or query"
        if |url| url.scheme() == "https" || on_loopback(url);

    /// A mirror of signed packages: http or https.
    MirrorUrl: "an http or https URL without credentials or query" if |_| true;
}

/// An http or https URL that says where, and nothing else.
fn web_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let bare =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    (bare && matches!(url.scheme(), "http" | "https")).then_some(url)
}

fn on_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Where the engine's API answers. Nothing but a Unix socket or loopback is accepted: the API is root on its host, and
/// plain TCP has no lock. Displayed as `unix:///path` or `tcp://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineHost {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// Plain HTTP on loopback.
    Tcp {
        /// `localhost`, or a loopback address as it stands in a URL.
        host: String,
        /// The port.
        port: u16,
    },
}

impl fmt::Display for EngineHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl FromStr for EngineHost {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Some(path) = text.strip_prefix("unix://")
            && path.starts_with('/')
            && !path.contains(char::is_control)
        {
            return Ok(Self::Unix(path.into()));
        }
        let rest = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://"));
        rest.and_then(|rest| web_url(&format!("http://{rest}")))
            .filter(|url| on_loopback(url) && url.path() == "/")
            .and_then(|url| {
                let (host, port) = (url.host_str()?.to_owned(), url.port()?);
                Some(Self::Tcp { host, port })
            })
            .ok_or_else(|| ValueError::must_be(Self::shape()))
    }
}

impl Text for EngineHost {
    fn shape() -> String {
        "`unix:///` and the socket's path, or `tcp://127.0.0.1:` and a port; other hosts are refused, because the \
         engine's API there has no lock"
            .to_owned()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}
