//! The connection to one engine: who it is, and the bound on every call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::SystemInfoCgroupVersionEnum;

use crate::EngineError;
use crate::sockets::{self, Address};

/// How long the engine may take for a call that is not a build.
pub(crate) const CALL_SECS: u64 = 60;
/// How long a build may say nothing.
const BUILD_SILENCE: Duration = Duration::from_mins(10);
/// Docker 20.10's; Podman 4 says the same.
const OLDEST_API: (u32, u32) = (1, 40);
const OLDEST_API_TEXT: &str = "1.40";

/// A container engine. Cheap to clone; clones share the connection's settings and the locks on builds.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    address: Arc<str>,
    build_silence: Duration,
    locks: Arc<KeyedLocks>,
}

/// What an engine says of itself and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The engine's version.
    pub version: String,
    /// The newest API that it speaks, which is the one that is used.
    pub api_version: String,
    /// Its host's system, such as `Debian GNU/Linux 12 (bookworm)`.
    pub operating_system: String,
    /// Its host's kernel.
    pub kernel: String,
    /// Its host's architecture as the kernel names it.
    pub architecture: String,
    /// The processors that it may use.
    pub cpus: u32,
    /// Its host's memory in bytes.
    pub memory_bytes: u64,
    /// Which cgroup hierarchy limits its containers.
    pub cgroup: CgroupVersion,
    /// Whether memory limits can bound swap too.
    pub swap_limit: bool,
    /// How it stores images.
    pub storage_driver: String,
    /// Where it stores them, on its host.
    pub data_root: String,
    /// The most open files that it can allow a process of a container, where that is known to be bounded: an engine
    /// on this host that may not raise its own limit.
    pub nofile_ceiling: Option<u32>,
}

/// Which cgroup hierarchy an engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// The first.
    V1,
    /// The unified one.
    V2,
}

impl Engine {
    /// Connects to `host` (an address such as `unix:///run/docker.sock`; hand in `DOCKER_HOST` here), or to the first
    /// local socket where an engine listens.
    ///
    /// # Errors
    /// When no engine listens, when its socket is closed to this user, or when the address is of an unserved kind.
    pub fn connect(host: Option<&str>) -> Result<Self, EngineError> {
        let address = sockets::choose(host)?;
        let (docker, text) = match address {
            Address::Unix(path) => {
                let text = path
                    .to_str()
                    .ok_or_else(|| EngineError::UnsupportedHost { host: path.display().to_string() })?
                    .to_owned();
                (Docker::connect_with_unix(&text, CALL_SECS, bollard::API_DEFAULT_VERSION), text)
            }
            Address::Tcp(text) => (Docker::connect_with_http(&text, CALL_SECS, bollard::API_DEFAULT_VERSION), text),
        };
        let docker = docker.map_err(|error| EngineError::from_api("connect", &text, error))?;
        Ok(Self { docker, address: text.into(), build_silence: BUILD_SILENCE, locks: Arc::default() })
    }

    /// The same engine with another bound on how long a build may say nothing (600 s by default).
    #[must_use]
    pub fn with_build_silence(mut self, silence: Duration) -> Self {
        self.build_silence = silence;
        self
    }

    /// The socket's path, or `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks whether the engine answers and is new enough. bollard sends requests without a version, so that the
    /// engine serves its newest; what is left to check is the oldest that will do.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.api_version().await.map(drop)
    }

    async fn api_version(&self) -> Result<String, EngineError> {
        let version = self.call("ask for the engine's version", self.docker.version()).await?;
        let missing = EngineError::Answer { what: "ask for the engine's version", missing: "API version" };
        let text = version.api_version.ok_or(missing)?;
        if parse_version(&text).is_some_and(|found| found >= OLDEST_API) {
            Ok(text)
        } else {
            Err(EngineError::TooOld { found: text, needed: OLDEST_API_TEXT })
        }
    }

    /// What the engine says of itself and its host.
    ///
    /// # Errors
    /// [`EngineError::Remapped`] when no container on it can run as a user of this host, so that none of ours can work.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        const WHAT: &str = "ask what the engine is";
        let api_version = self.api_version().await?;
        let info = self.call(WHAT, self.docker.info()).await?;
        let answer = |missing| EngineError::Answer { what: WHAT, missing };
        let cgroup = match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_1) => CgroupVersion::V1,
            Some(SystemInfoCgroupVersionEnum::_2) => CgroupVersion::V2,
            _ => return Err(answer("cgroup version")),
        };
        if remaps_users(&info.security_options.unwrap_or_default()) {
            return Err(EngineError::Remapped { address: self.address.to_string() });
        }
        Ok(EngineInfo {
            version: info.server_version.ok_or(answer("version"))?,
            api_version,
            operating_system: info.operating_system.unwrap_or_default(),
            kernel: info.kernel_version.unwrap_or_default(),
            architecture: info.architecture.ok_or(answer("architecture"))?,
            cpus: info
                .ncpu
                .and_then(|n| u32::try_from(n).ok())
                .filter(|&n| n > 0)
                .ok_or(answer("number of processors"))?,
            memory_bytes: info
                .mem_total
                .and_then(|n| u64::try_from(n).ok())
                .filter(|&n| n > 0)
                .ok_or(answer("amount of memory"))?,
            cgroup,
            swap_limit: info.swap_limit.unwrap_or(false),
            storage_driver: info.driver.unwrap_or_default(),
            data_root: info.docker_root_dir.unwrap_or_default(),
            nofile_ceiling: sockets::nofile_ceiling(&self.address).await,
        })
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// A handle whose answers may take as long as a build; the caller bounds its silence instead.
    pub(crate) fn docker_for_builds(&self) -> Docker {
        self.docker.clone().with_timeout(Duration::from_hours(24))
    }

    pub(crate) fn build_silence(&self) -> Duration {
        self.build_silence
    }

    pub(crate) fn lock(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.locks.of(key)
    }

    /// One call, head and body, bounded in time.
    pub(crate) async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, EngineError> {
        self.call_within(CALL_SECS, what, call).await
    }

    pub(crate) async fn call_within<T>(
        &self,
        secs: u64,
        what: &'static str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(Duration::from_secs(secs), call).await {
            Ok(Ok(value)) => Ok(value),
            Err(_) | Ok(Err(ApiError::RequestTimeoutError)) => Err(EngineError::Timeout { what, secs }),
            Ok(Err(error)) => Err(self.api_error(what, error)),
        }
    }

    pub(crate) fn api_error(&self, what: &'static str, error: ApiError) -> EngineError {
        EngineError::from_api(what, &self.address, error)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether uids in containers are other users on the host: rootless, or dockerd with `userns-remap`. Each option is a
/// list of key=value pairs.
fn remaps_users(security_options: &[String]) -> bool {
    let mut pairs = security_options.iter().flat_map(|option| option.split(','));
    pairs.any(|pair| matches!(pair, "name=rootless" | "name=userns"))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// One async mutex per key, kept for as long as somebody holds or awaits it.
#[derive(Default)]
struct KeyedLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl KeyedLocks {
    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = map.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        map.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert!(parse_version("1.100") > parse_version("1.41"));
        assert!(parse_version("1.39").expect("a version") < OLDEST_API);
        assert_eq!(parse_version("one"), None);
    }

    #[test]
    fn an_engine_that_remaps_users_is_known_by_its_options() {
        let remaps =
            |options: &[&str]| remaps_users(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>());
        assert!(remaps(&["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]));
        assert!(remaps(&["name=userns"]));
        assert!(!remaps(&["name=apparmor", "name=seccomp,profile=rootless", "name=cgroupns"]));
        assert!(!remaps(&[]));
    }

    #[test]
    fn a_lock_is_shared_while_it_is_held_and_forgotten_after() {
        let locks = KeyedLocks::default();
        let first = locks.of("a");
        assert!(Arc::ptr_eq(&first, &locks.of("a")));
        assert!(!Arc::ptr_eq(&first, &locks.of("b")));
        drop(first);
        let _ = locks.of("c");
        assert_eq!(locks.0.lock().expect("no poison").len(), 1);
    }
}
