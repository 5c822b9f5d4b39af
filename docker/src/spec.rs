//! What a project's container is to be, and the engine's request that follows from it (invariant 8, PROJ-9).
//!
//! The hardening is not a choice of the caller: no field here can loosen it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount as ApiMount, MountType, PortBinding, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use crate::{EngineInfo, LABEL_GATEWAY, LABEL_PROJECT, LABEL_PROJECT_ID, NetworkId, RUN_FOLDER, SSH_PORT, WORKSPACE};

/// The label of one attempt to create a container, by which a half-made one is found again.
pub(crate) const LABEL_ATTEMPT: &str = "dev.musher.attempt";

const GIB: u64 = 1 << 30;
/// The log of a container is the sled's own; the engine keeps this many files of it.
const LOG_FILES: u32 = 2;

/// A project's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name in the engine.
    pub name: String,
    /// Its image's tag.
    pub image: String,
    /// The project's name, for the label.
    pub project: String,
    /// The project's id, for the label that finds it.
    pub project_id: String,
    /// The gateway's id, for the label.
    pub gateway_id: String,
    /// Whom it runs as. Never 0.
    pub uid: u32,
    /// Whom it runs as. Never 0.
    pub gid: u32,
    /// The host's folders and files in it. A source that is missing is an error, never an empty folder.
    pub mounts: Vec<Mount>,
    /// The port of the host's loopback behind which sshd answers. None on [`Network::None`].
    pub port: Option<u16>,
    /// What it may use.
    pub limits: Limits,
    /// What it reaches.
    pub network: Network,
    /// Its environment beside the image's. No secret may be in it (invariant 7).
    pub env: Vec<(String, String)>,
}

/// A folder or file of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is on the host; absolute.
    pub host: PathBuf,
    /// Where it is in the container; absolute.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What a container reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Nothing, and nothing reaches it but `exec`.
    None,
    /// A bridge on which it sees no other container.
    Bridge(NetworkId),
}

/// What a container may use (PROJ-9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub milli_cpus: u32,
    /// Memory in bytes; swap adds nothing to it.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Open files of one process.
    pub nofile: u32,
    /// Shared memory in bytes.
    pub shm_bytes: u64,
    /// The engine's log of it in bytes.
    pub log_bytes: u64,
}

impl Limits {
    /// What an editor's server can live with: all processors, 4 GiB or half the host's memory, 4096 processes, 65536
    /// files (or what the engine can allow), 1 GiB of shared memory, 20 MiB of log.
    pub fn defaults(host: &EngineInfo) -> Self {
        Self {
            milli_cpus: host.cpus.saturating_mul(1000),
            memory_bytes: (4 * GIB).min(host.memory_bytes / 2),
            pids: 4096,
            nofile: host.nofile_ceiling.map_or(65536, |ceiling| ceiling.min(65536)),
            shm_bytes: GIB,
            log_bytes: 20 << 20,
        }
    }
}

/// A container that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// It would run as root.
    #[error("nothing in a container runs as uid 0 or gid 0")]
    Root,
    /// A path that the engine would misread.
    #[error("{} is no absolute path of text", .0.display())]
    Path(PathBuf),
    /// The engine's own socket would be in it.
    #[error("the engine's socket {} has no place in a container", .0.display())]
    EngineSocket(PathBuf),
    /// A port without a network.
    #[error("a container without a network publishes no port")]
    PortWithoutNetwork,
    /// A variable that the engine would misread.
    #[error("{0:?} is no name of an environment variable")]
    Variable(String),
}

impl ContainerSpec {
    /// The engine's request. `engine_address` is what must not be mounted.
    pub(crate) fn body(&self, attempt: &str, engine_address: &str) -> Result<ContainerCreateBody, SpecError> {
        if self.uid == 0 || self.gid == 0 {
            return Err(SpecError::Root);
        }
        let network_mode = match (&self.network, self.port) {
            (Network::None, Some(_)) => return Err(SpecError::PortWithoutNetwork),
            (Network::None, None) => "none".to_owned(),
            (Network::Bridge(id), _) => id.as_str().to_owned(),
        };
        let mounts = self.mounts.iter().map(|mount| bind(mount, engine_address)).collect::<Result<Vec<_>, _>>()?;
        let env = self.env.iter().map(|(name, value)| variable(name, value)).collect::<Result<Vec<_>, _>>()?;
        let container_port = format!("{SSH_PORT}/tcp");
        let binding =
            |port: u16| PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(port.to_string()) };
        let Limits { milli_cpus, memory_bytes, pids, nofile, shm_bytes, log_bytes } = self.limits;
        let host = HostConfig {
            cap_drop: Some(vec!["ALL".to_owned()]),
            privileged: Some(false),
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            // The image brings its init; an engine's own may not be installed.
            init: Some(false),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            nano_cpus: Some(i64::from(milli_cpus) * 1_000_000),
            memory: Some(signed(memory_bytes)),
            memory_swap: Some(signed(memory_bytes)),
            pids_limit: Some(i64::from(pids)),
            ulimits: Some(vec![ResourcesUlimits {
                name: Some("nofile".to_owned()),
                soft: Some(i64::from(nofile)),
                hard: Some(i64::from(nofile)),
            }]),
            shm_size: Some(signed(shm_bytes)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-file".to_owned(), LOG_FILES.to_string()),
                    ("max-size".to_owned(), (log_bytes / u64::from(LOG_FILES)).max(1).to_string()),
                ])),
            }),
            tmpfs: Some(HashMap::from([(
                RUN_FOLDER.to_owned(),
                format!("rw,nosuid,nodev,noexec,size=16m,mode=0700,uid={},gid={}", self.uid, self.gid),
            )])),
            mounts: Some(mounts),
            network_mode: Some(network_mode),
            port_bindings: self.port.map(|port| HashMap::from([(container_port.clone(), Some(vec![binding(port)]))])),
            ipc_mode: Some("private".to_owned()),
            ..HostConfig::default()
        };
        Ok(ContainerCreateBody {
            image: Some(self.image.clone()),
            user: Some(format!("{}:{}", self.uid, self.gid)),
            working_dir: Some(WORKSPACE.to_owned()),
            hostname: Some(hostname(&self.project)),
            env: Some(env),
            exposed_ports: self.port.map(|_| vec![container_port]),
            labels: Some(HashMap::from([
                (LABEL_PROJECT.to_owned(), self.project.clone()),
                (LABEL_PROJECT_ID.to_owned(), self.project_id.clone()),
                (LABEL_GATEWAY.to_owned(), self.gateway_id.clone()),
                (LABEL_ATTEMPT.to_owned(), attempt.to_owned()),
            ])),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        })
    }
}

fn bind(mount: &Mount, engine_address: &str) -> Result<ApiMount, SpecError> {
    let text = |path: &Path| {
        let absolute = path.is_absolute().then_some(path).and_then(Path::to_str);
        absolute.map(str::to_owned).ok_or_else(|| SpecError::Path(path.to_owned()))
    };
    // `/var/run` is a link to `/run`; both spellings, and every folder above, would carry the socket in.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let socket = Path::new(engine_address);
    if socket.is_absolute() && real(socket).starts_with(real(&mount.host)) {
        return Err(SpecError::EngineSocket(mount.host.clone()));
    }
    Ok(ApiMount {
        typ: Some(MountType::BIND),
        source: Some(text(&mount.host)?),
        target: Some(text(&mount.target)?),
        read_only: Some(mount.read_only),
        ..ApiMount::default()
    })
}

fn variable(name: &str, value: &str) -> Result<String, SpecError> {
    let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if named && !value.contains('\0') {
        Ok(format!("{name}={value}"))
    } else {
        Err(SpecError::Variable(name.to_owned()))
    }
}

/// A project's name is shorter and stricter than a host name may be, but it is not this crate's rule.
fn hostname(project: &str) -> String {
    project.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect()
}

/// The API's sizes are signed; what does not fit is as good as no limit and is bounded there.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::CgroupVersion;

    fn host(memory_bytes: u64) -> EngineInfo {
        EngineInfo {
            version: "1".to_owned(),
            api_version: "1.41".to_owned(),
            operating_system: String::new(),
            kernel: String::new(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            memory_bytes,
            cgroup: CgroupVersion::V1,
            swap_limit: true,
            storage_driver: "overlay2".to_owned(),
            data_root: "/var/lib/docker".to_owned(),
            nofile_ceiling: None,
        }
    }

    fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "musher-x".to_owned(),
            image: "musher-node:0".to_owned(),
            project: "x".to_owned(),
            project_id: "p".to_owned(),
            gateway_id: "g".to_owned(),
            uid: 1000,
            gid: 1001,
            mounts: vec![Mount { host: "/srv/x".into(), target: "/workspace".into(), read_only: false }],
            port: None,
            limits: Limits::defaults(&host(8 * GIB)),
            network: Network::None,
            env: vec![("A".to_owned(), "b c".to_owned())],
        }
    }

    #[test]
    fn defaults_leave_half_of_a_small_host() {
        assert_eq!(Limits::defaults(&host(64 * GIB)).memory_bytes, 4 * GIB);
        assert_eq!(Limits::defaults(&host(2 * GIB)).memory_bytes, GIB);
        let limits = Limits::defaults(&host(2 * GIB));
        assert_eq!((limits.milli_cpus, limits.pids, limits.nofile, limits.shm_bytes), (2000, 4096, 65536, GIB));
        let bounded = |ceiling| Limits::defaults(&EngineInfo { nofile_ceiling: Some(ceiling), ..host(GIB) }).nofile;
        assert_eq!((bounded(20000), bounded(1_048_576)), (20000, 65536));
    }

    /// The whole request, so that nothing can be loosened without being seen here.
    #[test]
    fn the_request_is_hardened() {
        let body = spec().body("1", "/var/run/docker.sock").expect("a request");
        let mut json = serde_json::to_value(&body).expect("JSON");
        let host: BTreeMap<String, serde_json::Value> =
            serde_json::from_value(json["HostConfig"].take()).expect("a host configuration");
        let expected = serde_json::json!({
            "CapDrop": ["ALL"],
            "Init": false,
            "IpcMode": "private",
            "LogConfig": {"Type": "json-file", "Config": {"max-file": "2", "max-size": "10485760"}},
            "Memory": 4_294_967_296_u64,
            "MemorySwap": 4_294_967_296_u64,
            "Mounts": [{"Target": "/workspace", "Source": "/srv/x", "Type": "bind", "ReadOnly": false}],
            "NanoCpus": 2_000_000_000_u64,
            "NetworkMode": "none",
            "PidsLimit": 4096,
            "Privileged": false,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges:true"],
            "ShmSize": 1_073_741_824,
            "Tmpfs": {"/run/musher": "rw,nosuid,nodev,noexec,size=16m,mode=0700,uid=1000,gid=1001"},
            "Ulimits": [{"Name": "nofile", "Soft": 65536, "Hard": 65536}],
        });
        assert_eq!(serde_json::to_value(host).expect("JSON"), expected);
        assert_eq!(json["User"], "1000:1001");
        assert_eq!(json["Env"], serde_json::json!(["A=b c"]));
        assert_eq!(
            json["Labels"],
            serde_json::json!({
                "dev.musher.project": "x",
                "dev.musher.project-id": "p",
                "dev.musher.gateway": "g",
                "dev.musher.attempt": "1",
            })
        );
        assert!(json.get("ExposedPorts").is_none_or(serde_json::Value::is_null));
    }

    #[test]
    fn a_port_is_published_on_loopback_alone() {
        let spec =
            ContainerSpec { port: Some(20022), network: Network::Bridge(crate::network::tests::id("n")), ..spec() };
        let host = spec.body("1", "/run/docker.sock").expect("a request").host_config.expect("a host configuration");
        assert_eq!(
            serde_json::to_value(host.port_bindings).expect("JSON"),
            serde_json::json!({"2222/tcp": [{"HostIp": "127.0.0.1", "HostPort": "20022"}]})
        );
        assert_eq!(host.network_mode.as_deref(), Some("n"));
    }

    #[test]
    fn contradictions_are_refused() {
        let refusal = |spec: ContainerSpec| spec.body("1", "/run/musher-test/engine.sock").expect_err("a refusal");
        let mounted = |host: &str| ContainerSpec {
            mounts: vec![Mount { host: host.into(), target: "/x".into(), read_only: true }],
            ..spec()
        };
        assert_eq!(refusal(ContainerSpec { uid: 0, ..spec() }), SpecError::Root);
        assert_eq!(refusal(ContainerSpec { gid: 0, ..spec() }), SpecError::Root);
        assert_eq!(refusal(ContainerSpec { port: Some(1), ..spec() }), SpecError::PortWithoutNetwork);
        assert_eq!(refusal(mounted("srv")), SpecError::Path("srv".into()));
        for host in ["/run/musher-test/engine.sock", "/run/musher-test", "/run", "/"] {
            assert_eq!(refusal(mounted(host)), SpecError::EngineSocket(host.into()));
        }
        for name in ["", "A=B", "A B"] {
            let spec = ContainerSpec { env: vec![(name.to_owned(), String::new())], ..spec() };
            assert_eq!(refusal(spec), SpecError::Variable(name.to_owned()));
        }
    }
}
