//! Where the engine is: an address that was given, or the first local socket that answers (PROJ-16).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::EngineError;

/// An engine's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    /// `host:port`, plain HTTP.
    Tcp(String),
}

/// Chooses: what was given, else the first local socket where somebody listens.
pub(crate) fn choose(host: Option<&str>) -> Result<Address, EngineError> {
    let candidates = match host.map(parse).transpose()? {
        Some(Address::Unix(path)) => vec![path],
        Some(tcp) => return Ok(tcp),
        None => local_sockets(),
    };
    first_that_answers(&candidates, |path| UnixStream::connect(path).map(drop)).map(Address::Unix)
}

fn parse(host: &str) -> Result<Address, EngineError> {
    let unsupported = || EngineError::UnsupportedHost { host: host.to_owned() };
    let (scheme, rest) = host.split_once("://").unwrap_or(("unix", host));
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
        "tcp" | "http" => {
            let rest = rest.trim_end_matches('/');
            let port =
                rest.rsplit_once(':').and_then(|(name, port)| port.parse::<u16>().ok().filter(|_| !name.is_empty()));
            let plain = !rest.contains(['/', '@', '?', '#']);
            port.filter(|_| plain).map(|_| Address::Tcp(rest.to_owned())).ok_or_else(unsupported)
        }
        _ => Err(unsupported()),
    }
}

/// Docker of the system, Podman of the system. A user's own are rootless, and cannot be used
/// ([`EngineError::Remapped`]).
fn local_sockets() -> Vec<PathBuf> {
    vec![PathBuf::from("/var/run/docker.sock"), PathBuf::from("/run/podman/podman.sock")]
}

/// The hard limit on open files of the process behind a local socket, where that process lacks the capability
/// to raise it. `None` where nothing is known.
pub(crate) async fn nofile_ceiling(address: &str) -> Option<u32> {
    let socket = Some(address).filter(|address| address.starts_with('/'))?;
    let pid = tokio::net::UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()?;
    let read = async |file: &str| tokio::fs::read_to_string(format!("/proc/{pid}/{file}")).await.ok();
    let status = read("status").await?;
    if may_raise_limits(&status)? { None } else { hard_nofile(&read("limits").await?) }
}

/// From `/proc/<pid>/status`: whether the process has `CAP_SYS_RESOURCE`.
fn may_raise_limits(status: &str) -> Option<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(effective.trim(), 16).ok()? & CAP_SYS_RESOURCE != 0)
}

/// From `/proc/<pid>/limits`: `Max open files  <soft>  <hard>  files`; `unlimited` is no number.
fn hard_nofile(limits: &str) -> Option<u32> {
    let row = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

/// A socket that is there and closed to this user is worth more of a word than one that is absent.
fn first_that_answers(
    candidates: &[PathBuf],
    connect: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf, EngineError> {
    let mut closed = None;
    for path in candidates {
        match connect(path) {
            Ok(()) => return Ok(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && closed.is_none() => {
                closed = Some(path.clone());
            }
            Err(_) => {}
        }
    }
    Err(match closed {
        Some(socket) => EngineError::PermissionDenied { socket },
        None => {
            EngineError::NotRunning { address: candidates.first().map(|p| p.display().to_string()).unwrap_or_default() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let unix = |path: &str| Some(Address::Unix(PathBuf::from(path)));
        let tcp = |address: &str| Some(Address::Tcp(address.to_owned()));
        let table = [
            ("unix:///run/x.sock", unix("/run/x.sock")),
            ("/run/x.sock", unix("/run/x.sock")),
            ("tcp://127.0.0.1:2375", tcp("127.0.0.1:2375")),
            ("http://[::1]:2375/", tcp("[::1]:2375")),
            ("tcp://127.0.0.1", None),
            ("tcp://user:word@host:2375", None),
            ("https://host:2376", None),
            ("ssh://host", None),
            ("unix://run/x.sock", None),
            ("docker.sock", None),
            ("", None),
        ];
        for (host, expected) in table {
            assert_eq!(parse(host).ok(), expected, "{host}");
        }
    }

    #[test]
    fn a_process_that_may_not_raise_its_limits_is_known() {
        assert_eq!(may_raise_limits("Name:\tdockerd\nCapEff:\t000001fffeffffff\n"), Some(false));
        assert_eq!(may_raise_limits("CapEff:\t000001ffffffffff\n"), Some(true));
        assert_eq!(may_raise_limits("Name:\tx\n"), None);
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             96365                96365                processes \n\
                      Max open files            1024                 20000                files     \n";
        assert_eq!(hard_nofile(limits), Some(20000));
        assert_eq!(hard_nofile("Max open files            unlimited            unlimited            files\n"), None);
    }

    fn pick(answers: [Result<(), io::ErrorKind>; 2]) -> Result<usize, EngineError> {
        let sockets = local_sockets();
        let place = |path: &Path| sockets.iter().position(|s| s == path).expect("a listed socket");
        first_that_answers(&sockets, |path| answers[place(path)].map_err(io::Error::from)).map(|path| place(&path))
    }

    /// A rootless engine cannot be used, so that its socket must not be preferred to one that is yet to come.
    #[test]
    fn no_users_own_socket_is_looked_for() {
        assert!(local_sockets().iter().all(|socket| !socket.starts_with("/run/user")));
    }

    #[test]
    fn the_first_socket_that_answers_is_taken() {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        assert!(matches!(pick([Ok(()), Ok(())]), Ok(0)));
        assert!(matches!(pick([Err(PermissionDenied), Ok(())]), Ok(1)));
        assert!(matches!(pick([Err(ConnectionRefused), Ok(())]), Ok(1)));
        for (answers, first) in [
            ([Err(NotFound), Err(PermissionDenied)], "/run/podman/podman.sock"),
            ([Err(PermissionDenied), Err(PermissionDenied)], "/var/run/docker.sock"),
        ] {
            let closed = pick(answers);
            assert!(matches!(closed, Err(EngineError::PermissionDenied { socket }) if socket == Path::new(first)));
        }
        let none = pick([Err(NotFound), Err(ConnectionRefused)]);
        assert!(matches!(none, Err(EngineError::NotRunning { address }) if address == "/var/run/docker.sock"));
    }
}
