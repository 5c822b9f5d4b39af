//! Which addresses a git remote may be at: nothing of a private network that `[git] allow_hosts` does not name (PROJ-3).
//!
//! A name is looked up once, judged by what it stands for, and the connection goes to the addresses that were judged: who answers
//! for the name cannot answer otherwise the second time.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::remote::{Remote, is_loopback_name};
use crate::{refusal::Refusal, text};

/// Why a host is not connected to.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// Nothing is known of it.
    #[error("the host {} cannot be found", text::code(host))]
    NotFound {
        /// As it was asked for.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// It is in a private network.
    #[error("the host {} is in a private network ({address})", text::code(host))]
    Private {
        /// As it was asked for.
        host: String,
        /// One of its addresses.
        address: IpAddr,
    },
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotFound { host, source } => {
                Self::internal(format!("the host {} cannot be found", text::code(&host)), source)
                    .hint("Check the address.")
            }
            Denied::Private { ref host, .. } => Self::config(denied.to_string()).hint(format!(
                "If the repository is meant to come from there, add {host:?} to `[git] allow_hosts` in bot.toml."
            )),
        }
    }
}

/// Looks a name up.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The rules. Cheap to clone.
#[derive(Clone)]
pub struct Reach {
    /// Hosts that may be in private networks, as addresses of repositories name them.
    allowed: Arc<[String]>,
    /// Hosts of web proxies, which are wherever the operator has them.
    proxies: Arc<[String]>,
    lookup: Lookup,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("allowed", &self.allowed).field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

impl Reach {
    /// Rules with the system's own lookup.
    pub fn new(allowed: Vec<String>, proxies: Vec<String>) -> Self {
        let lookup: Lookup = Arc::new(|host| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((host, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        });
        Self { allowed: allowed.into(), proxies: proxies.into(), lookup }
    }

    /// The same rules with a lookup of a test's own.
    #[cfg(test)]
    pub(super) fn with_lookup(mut self, found: &'static [(&'static str, &'static str)]) -> Self {
        self.lookup = Arc::new(move |host| {
            let found = found.iter().filter(|(name, _)| *name == host).map(|(_, address)| address.parse());
            let found: Vec<IpAddr> = found.map(|address| address.expect("it is an address")).collect();
            Box::pin(async move { if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) } })
        });
        self
    }

    /// Whether a remote may be reached. What connects afterwards by itself must be told no credential before it is judged anew.
    ///
    /// # Errors
    /// When it may not, or cannot be found.
    pub async fn check(&self, remote: &Remote) -> Result<(), Refusal> {
        let (host, by_proxy) = match remote {
            Remote::Web(web) => (web.bare_host(), !self.proxies.is_empty() && !is_loopback_name(web.bare_host())),
            Remote::Ssh(ssh) => (ssh.bare_host(), false),
            Remote::Local(_) => return Ok(()),
        };
        match self.addresses(host, 0).await {
            // Behind a proxy only the proxy may know names; what it would reach under this one nobody can judge here.
            Err(Denied::NotFound { .. }) if by_proxy && self.allows(host) => Ok(()),
            Err(Denied::NotFound { .. }) if by_proxy => Err(Refusal::config(format!(
                "the host {} cannot be found here, so it is not known whether it is in a private network",
                text::code(host)
            ))
            .hint(format!(
                "Check the address. If only the web proxy knows that host, add {host:?} to `[git] allow_hosts` in bot.toml."
            ))),
            checked => checked.map(drop).map_err(Refusal::from),
        }
    }

    /// The addresses to connect to for a host, without brackets.
    ///
    /// # Errors
    /// When there is none that may be connected to.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Denied> {
        let not_found = |source| Denied::NotFound { host: host.to_owned(), source };
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => (self.lookup)(host.to_owned()).await.map_err(not_found)?,
        };
        let first = *found.first().ok_or_else(|| not_found(io::ErrorKind::NotFound.into()))?;
        let allowed: Vec<_> = found.into_iter().filter(|address| self.may(host, *address)).collect();
        if allowed.is_empty() {
            return Err(Denied::Private { host: host.to_owned(), address: first });
        }
        Ok(allowed.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// Judges a host that is an address itself, which no resolver is asked for.
    ///
    /// # Errors
    /// When it may not be connected to.
    pub fn literal(&self, host: &str) -> Result<(), Denied> {
        match host.parse::<IpAddr>() {
            Ok(address) if !self.may(host, address) => Err(Denied::Private { host: host.to_owned(), address }),
            _ => Ok(()),
        }
    }

    fn may(&self, host: &str, address: IpAddr) -> bool {
        if is_loopback_name(host) {
            // This host, named as such, and never anything else under that name.
            return address.to_canonical().is_loopback();
        }
        is_public(address) || self.allows(host)
    }

    /// Whether bot.toml names this host.
    fn allows(&self, host: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == host)
    }
}

/// For the web client: names are looked up here, and it connects to what this gives.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_ascii_lowercase();
            if this.proxies.contains(&host) {
                let found = (this.lookup)(host).await?;
                return Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs);
            }
            let found = this.addresses(&host, 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The host of a proxy's address, as the environment has it: with or without a scheme.
pub fn proxy_host(address: &str) -> Option<String> {
    let with_scheme = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let url = url::Url::parse(&with_scheme).ok()?;
    Some(url.host_str()?.trim_matches(['[', ']']).to_ascii_lowercase())
}

/// Whether an address is one of the open internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Carrier-grade NAT (RFC 6598), protocol assignments (RFC 6890), benchmarking (RFC 2544).
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, third, .., last_but_one, last] = address.segments();
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    if (first, second) == (0x64, 0xff9b) {
        // An IPv4 address behind NAT64 (RFC 6052).
        return embedded(last_but_one, last);
    }
    if first == 0x2002 {
        // An IPv4 address behind 6to4 (RFC 3056).
        return embedded(second, third);
    }
    // Global unicast, less documentation (RFC 3849) and Teredo (RFC 4380).
    first & 0xe000 == 0x2000 && (first, second) != (0x2001, 0x0db8) && (first, second) != (0x2001, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_open_internet_are_told_from_others() {
        for address in
            ["93.184.216.34", "100.63.0.1", "172.32.0.1", "2606:2800::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"]
        {
            assert!(is_public(address.parse().expect("it is an address")), "{address}");
        }
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
        ] {
            assert!(!is_public(address.parse().expect("it is an address")), "{address}");
        }
    }

    #[tokio::test]
    async fn private_addresses_need_a_name_that_bot_toml_has() {
        let reach =
            Reach::new(vec!["git.lan".into(), "10.0.0.7".into(), "listed.example".into()], vec!["proxy.lan".into()])
                .with_lookup(&[
                    ("git.lan", "10.0.0.7"),
                    ("evil.example", "127.0.0.1"),
                    ("mixed.example", "10.0.0.7"),
                    ("mixed.example", "93.184.216.34"),
                    ("good.example", "93.184.216.34"),
                    ("localhost", "127.0.0.1"),
                    ("localhost", "10.0.0.7"),
                    ("proxy.lan", "10.0.0.1"),
                ]);
        let found = async |host: &str| match reach.addresses(host, 7).await {
            Ok(found) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(denied) => denied.to_string(),
        };
        for (host, expected) in [
            ("git.lan", "10.0.0.7:7"),
            ("10.0.0.7", "10.0.0.7:7"),
            ("10.0.0.8", "the host `10.0.0.8` is in a private network (10.0.0.8)"),
            ("evil.example", "the host `evil.example` is in a private network (127.0.0.1)"),
            ("mixed.example", "93.184.216.34:7"),
            ("good.example", "93.184.216.34:7"),
            ("localhost", "127.0.0.1:7"),
            ("127.0.0.1", "127.0.0.1:7"),
            ("::1", "[::1]:7"),
            ("unknown.example", "the host `unknown.example` cannot be found"),
            ("proxy.lan", "the host `proxy.lan` is in a private network (10.0.0.1)"),
        ] {
            assert_eq!(found(host).await, expected, "{host}");
        }
        assert!(reach.literal("169.254.169.254").is_err() && reach.literal("10.0.0.7").is_ok());
        let resolved = async |host: &str| reach.resolve(host.parse().expect("it is a name")).await.map(Iterator::count);
        assert_eq!(resolved("proxy.lan").await.expect("a proxy is where it is"), 1);
        assert!(resolved("evil.example").await.is_err());

        let check = async |text: &str| {
            let remote = Remote::parse(text, std::path::Path::new("/")).expect("it is an address");
            reach.check(&remote).await.map_err(|refusal| refusal.to_string())
        };
        assert_eq!(check("https://good.example/a").await, Ok(()));
        assert_eq!(check("https://listed.example/a").await, Ok(()), "the proxy may know it");
        let refusal = check("https://unknown.example/a").await.expect_err("nobody knows where that is");
        assert!(refusal.contains("add \"unknown.example\" to `[git] allow_hosts`"), "{refusal}");
        assert_eq!(check("http://localhost/a").await, Ok(()), "no proxy is asked for this host");
        check("git@unknown.example:a").await.expect_err("no proxy is asked for ssh");
        let refusal = check("git@evil.example:a").await.expect_err("it is private");
        assert!(refusal.contains("add \"evil.example\" to `[git] allow_hosts`"), "{refusal}");
    }

    #[test]
    fn proxies_are_written_in_several_ways() {
        for (address, host) in [
            ("http://Proxy.lan:3128", Some("proxy.lan")),
            ("proxy.lan:3128", Some("proxy.lan")),
            ("http://[::1]:1", Some("::1")),
            ("", None),
        ] {
            assert_eq!(proxy_host(address).as_deref(), host, "{address}");
        }
    }
}
