//! What a container may and may not, told by the engine and from inside, and where secrets are not (invariants 7, 8).

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    images,
    model::{Gate, Model, Step},
    ssh::{self, Door},
    wait,
};

#[tokio::test]
async fn the_engine_describes_a_hardened_container() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("hard", "--cpus 1.5 --memory 1g").await?;
    let container = engine::inspect(&home.container("hard").await?).await?;
    let host = &container["HostConfig"];
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert!(empty(&host["CapAdd"]), "{}", host["CapAdd"]);
    assert_eq!(host["Privileged"], Value::Bool(false));
    let options: Vec<&str> = host["SecurityOpt"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(options.iter().any(|option| option.starts_with("no-new-privileges")), "{options:?}");
    assert!(!options.iter().any(|option| option.contains("unconfined")), "{options:?}");
    assert!(empty(&host["Devices"]), "{}", host["Devices"]);
    for shared in ["PidMode", "IpcMode", "UTSMode", "UsernsMode"] {
        assert_ne!(host[shared], "host", "{shared}");
    }
    assert_eq!(host["RestartPolicy"]["Name"].as_str().filter(|name| !name.is_empty()).unwrap_or("no"), "no");
    assert_eq!(host["NanoCpus"], 1_500_000_000_u64);
    assert_eq!(
        (&host["Memory"], &host["MemorySwap"]),
        (&(1_u64 << 30).into(), &(1_u64 << 30).into()),
        "no swap is added"
    );
    assert_eq!(host["PidsLimit"], 4096);
    assert_eq!(host["ShmSize"], 1_u64 << 30);

    let user = container["Config"]["User"].as_str().context("a container has a user")?;
    assert_eq!(user.split(':').next(), Some(home.owner().to_string().as_str()), "{user}");
    let ports = container["NetworkSettings"]["Ports"].as_object().context("a container has ports")?;
    let bound: Vec<&Value> = ports.values().filter_map(Value::as_array).flatten().collect();
    assert_eq!(bound.len(), 1, "one port, that of sshd: {ports:?}");
    assert!(bound.iter().all(|port| port["HostIp"] == "127.0.0.1"), "on loopback only: {ports:?}");
    let port: u16 = bound[0]["HostPort"].as_str().context("a bound port has a number")?.parse()?;
    assert!(port < 32_768, "below the ephemeral range: {port}");

    for mount in container["Mounts"].as_array().into_iter().flatten() {
        let source = mount["Source"].as_str().unwrap_or_default();
        let of_the_person =
            Path::new(source).starts_with(home.state().join("projects")) || Path::new(source) == home.project("hard");
        assert!(of_the_person, "only the project's own folders are mounted, and no socket: {mount}");
    }
    let networks: Vec<&String> =
        container["NetworkSettings"]["Networks"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
    let held = home.holdings().await?.networks;
    assert!(
        networks.len() == 1 && held.contains(networks[0]),
        "on the gateway's own network alone: {networks:?}, {held:?}"
    );
    let network: Vec<Value> = serde_json::from_str(&engine::docker(&["network", "inspect", networks[0]]).await?)?;
    assert_eq!(network[0]["Options"]["com.docker.network.bridge.enable_icc"], "false");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn nothing_inside_has_power_or_reaches_other_projects() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("one", "").await?;
    gateway.make("two", "").await?;
    let status = ssh::command(&home, Door::Port, "one", "cat /proc/[0-9]*/status 2>/dev/null").await?;
    let values =
        |key: &str| -> Vec<&str> { status.lines().filter_map(|line| line.strip_prefix(key)).map(str::trim).collect() };
    assert!(values("Name:").contains(&"sled"), "the sled is there:\n{status}");
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert!(values(set).iter().all(|mask| mask.bytes().all(|digit| digit == b'0')), "{set} {:?}", values(set));
    }
    assert!(values("NoNewPrivs:").iter().all(|set| *set == "1"), "{:?}", values("NoNewPrivs:"));
    for ids in values("Uid:") {
        assert!(ids.split_whitespace().all(|id| id == home.owner().to_string()), "nothing runs as another user: {ids}");
    }
    let other = engine::inspect(&home.container("two").await?).await?;
    let networks = other["NetworkSettings"]["Networks"].as_object().context("it has a network")?;
    let address =
        networks.values().next().and_then(|network| network["IPAddress"].as_str()).context("it has an address")?;
    let knock = |address: &str| format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/2222' 2>/dev/null; echo $?");
    let own = ssh::command(&home, Door::Port, "one", &knock("127.0.0.1")).await?;
    assert_eq!(own, "0\n", "its own sshd answers, so the knock is a good one");
    let reached = ssh::command(&home, Door::Port, "one", &knock(address)).await?;
    assert_ne!(reached, "0\n", "project one reaches project two at {address}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn the_model_key_is_nowhere_but_with_the_gateway() -> Result<()> {
    images::ready().await?;
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("slow", [Step::Wait(gate.clone()), Step::say("There I am.")]);
    let home = Home::new("", &format!("{}\napi_key_secret = \"model-key\"", Home::agent_tables(&model)))?;
    home.run(["secrets", "set", "model-key"], &format!("{}\n", model.key())).await?.success()?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("secret", "").await?;
    gateway.write("be slow").await?;
    let request = model.wait_asked("slow").await?;
    assert_eq!(request.header("x-api-key"), [model.key()], "the gateway adds the key");
    assert_eq!(request.header("authorization"), [""; 0], "and lets no other credential pass");

    let key = model.key();
    let name = home.container("secret").await?;
    let described = engine::docker(&["container", "inspect", &name]).await?;
    assert!(!described.contains(key), "docker inspect shows the key");
    let image = engine::inspect(&name).await?["Image"].as_str().context("it has an image")?.to_owned();
    assert!(
        !engine::docker(&["history", "--no-trunc", &image]).await?.contains(key),
        "the image's history shows the key"
    );

    let environments =
        ssh::command(&home, Door::Port, "secret", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
            .await?;
    assert!(environments.contains("ANTHROPIC_BASE_URL"), "the agent runs and is seen:\n{environments}");
    assert!(!environments.contains(key), "a process inside holds the key");
    // The pattern comes on standard input, so that it stands in no command line.
    let search = "grep --recursive --files-with-matches --fixed-strings --file=- /home /workspace /etc /tmp /run /var 2>/dev/null; true";
    let found = ssh::run(&home, "ssh", [&Door::Port.host("secret"), search], &format!("{key}\n"), wait::LONG)
        .await?
        .success()?;
    assert_eq!(found, "", "files inside hold the key");

    gate.open();
    gateway.expect("There I am.", wait::LONG).await?;
    let said = gateway.all();
    let printed = gateway.finish().await?;
    assert!(!said.contains(key) && !printed.contains(key), "the gateway prints the key");
    let secrets = home.state().join("secrets");
    assert_eq!(
        files_with(&home.state(), key)?.len(),
        1,
        "the key lies in one file: {:?}",
        files_with(&home.state(), key)?
    );
    assert!(files_with(&home.state(), key)?.iter().all(|path| path.starts_with(&secrets)));
    let listed = home.run(["secrets", "list"], "").await?.success()?;
    assert!(listed.contains("model-key") && !listed.contains(key), "{listed}");
    Ok(())
}

#[tokio::test]
async fn the_door_to_the_model_is_narrow() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("slow", [Step::Wait(gate.clone()), Step::say("There I am.")]);
    model.on("from a shell", [Step::say("Hello, shell.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("narrow", "").await?;
    gateway.write("be slow").await?;
    model.wait_asked("slow").await?;
    let environments = ssh::command(&home, Door::Port, "narrow", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'").await?;
    let base =
        environments.lines().find_map(|line| line.strip_prefix("ANTHROPIC_BASE_URL=")).context("the agent runs")?;

    // What the agent's endpoint lets through, by whomever in the container it is asked.
    let body = r#"{"tools":[{"name":"Bash"}],"messages":[{"role":"user","content":"from a shell"}]}"#;
    let ask = format!(
        "curl -s -H 'content-type: application/json' -H 'x-api-key: mine' -H 'authorization: Bearer mine' -H 'cookie: mine=1' -d '{body}' {base}/v1/messages"
    );
    let answer = ssh::command(&home, Door::Port, "narrow", &ask).await?;
    assert!(answer.contains("Hello, shell."), "{answer}");
    let asked = model.asked("from a shell");
    assert_eq!(asked[0].header("x-api-key"), [model.key()], "the gateway's key takes the place of one's own");
    for dropped in ["authorization", "cookie"] {
        assert_eq!(asked[0].header(dropped), [""; 0], "{dropped} is dropped");
    }
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/files"),
        ("GET", "/v1/messages"),
        ("DELETE", "/v1/messages"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/messages/../files"),
        ("POST", "/v1/messages/%2e%2e/files"),
        ("POST", "//v1/messages"),
        ("POST", "/"),
    ] {
        let knock = format!("curl -s --path-as-is -o /dev/null -w '%{{http_code}}' -X {method} -d '{{}}' {base}{path}");
        let status = ssh::command(&home, Door::Port, "narrow", &knock).await?;
        assert!(status.starts_with('4'), "{method} {path} is refused: {status}");
    }
    assert_eq!(model.strays(), [""; 0], "nothing else reached the model's service");
    assert_eq!(
        model.requests().iter().filter(|request| request.said.is_empty()).count(),
        0,
        "nor did an empty request"
    );
    gate.open();
    gateway.expect("There I am.", wait::LONG).await?;
    gateway.finish().await.map(drop)
}

fn empty(value: &Value) -> bool {
    value.as_array().is_none_or(Vec::is_empty)
}

/// The files below `directory` that contain `needle`.
fn files_with(directory: &Path, needle: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = vec![];
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            found.extend(files_with(&path, needle)?);
        } else if meta.is_file() && fs::read(&path)?.windows(needle.len()).any(|window| window == needle.as_bytes()) {
            found.push(path);
        }
    }
    Ok(found)
}
