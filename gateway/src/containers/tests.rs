//! Against an engine that is played: what is asked of it, for each way in which it may answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use axum::{
    Json, Router,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use musher_docker::{LABEL_GATEWAY, LABEL_PROJECT, LABEL_PROJECT_ID};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::*;

/// What the played engine has, and what it was asked to do.
#[derive(Default)]
struct Played {
    security_options: Vec<&'static str>,
    /// By their ids, which are their names.
    containers: BTreeMap<String, Container>,
    /// How the next starts are refused; after that they succeed.
    refusals: VecDeque<(u16, &'static str)>,
    /// The port of the host that all containers' doors have.
    port: Option<u16>,
    images: BTreeSet<String>,
    /// Whether another gateway removes the first layer that it finds built for another, as soon as that is begun.
    meddles: bool,
    /// Method and path of everything but questions.
    asked: Vec<String>,
}

struct Container {
    state: &'static str,
    network: String,
    labels: Value,
}

type SharedPlayed = Arc<Mutex<Played>>;

impl Played {
    fn answer(&mut self, method: &Method, uri: &Uri, body: &Value) -> Response {
        let refused = |status: u16, message: &str| {
            (StatusCode::from_u16(status).expect("a status"), Json(json!({"message": message}))).into_response()
        };
        let done = StatusCode::NO_CONTENT.into_response();
        if method != Method::GET {
            self.asked.push(format!("{method} {}", uri.path()));
        }
        let path: Vec<_> = uri.path().split('/').skip(1).collect();
        match (method.as_str(), path.as_slice()) {
            ("GET", ["version"]) => Json(json!({"ApiVersion": "1.47"})).into_response(),
            ("GET", ["info"]) => Json(json!({
                "ServerVersion": "27", "Architecture": "x86_64", "NCPU": 2, "MemTotal": 8_u64 << 30, "CgroupVersion": "2",
                "SecurityOptions": self.security_options,
            }))
            .into_response(),
            ("GET", ["networks"]) => {
                let network = json!({"Id": "bridge-id", "Options": {"com.docker.network.bridge.enable_icc": "false"}});
                Json(json!([network])).into_response()
            }
            ("GET", ["containers", "json"]) => {
                let listed = self.containers.iter().map(|(name, Container { state, labels, .. })| {
                    json!({"Id": name, "Names": [format!("/{name}")], "Image": "i", "State": state, "Labels": labels})
                });
                Json(listed.collect::<Value>()).into_response()
            }
            ("GET", ["containers", name, "json"]) => match self.containers.get(*name) {
                Some(Container { state, network, labels }) => Json(json!({
                    "Id": name, "Name": format!("/{name}"), "State": {"Status": state},
                    "Config": {"Image": "i", "Labels": labels}, "HostConfig": {
                        "NetworkMode": network,
                        "PortBindings": self.port.map(|port| json!({"2222/tcp": [{"HostPort": port.to_string()}]})),
                    },
                }))
                .into_response(),
                None => refused(404, "no such container"),
            },
            ("POST", ["containers", "create"]) => {
                let name = uri.query().and_then(|query| query.strip_prefix("name=")).expect("a name").to_owned();
                let name = name.split('&').next().expect("a name").to_owned();
                if self.containers.contains_key(&name) {
                    return refused(409, "the name is taken");
                }
                let network = body["HostConfig"]["NetworkMode"].as_str().expect("a network").to_owned();
                let made = Container { state: "created", network, labels: body["Labels"].clone() };
                self.containers.insert(name.clone(), made);
                (StatusCode::CREATED, Json(json!({"Id": name, "Warnings": []}))).into_response()
            }
            ("POST", ["containers", name, "start"]) => {
                if let Some((status, message)) = self.refusals.pop_front() {
                    return refused(status, message);
                }
                self.containers.get_mut(*name).expect("one that is there").state = "running";
                done
            }
            ("POST", ["containers", name, "unpause"]) => {
                let container = self.containers.get_mut(*name).expect("one that is there");
                if container.state != "paused" {
                    return refused(500, "it is not paused");
                }
                container.state = "running";
                done
            }
            ("GET", ["images", name, "json"]) if self.images.contains(&tag(name)) => {
                Json(json!({"Id": name})).into_response()
            }
            ("GET", ["images", ..]) => refused(404, "no such image"),
            ("DELETE", ["images", name]) => {
                self.images.remove(&tag(name));
                Json(json!([])).into_response()
            }
            ("POST", ["build"]) => {
                let query = uri.query().expect("it has a tag");
                let built = tag(query.split('&').find_map(|part| part.strip_prefix("t=")).expect("it has a tag"));
                self.asked.push(built.split(':').next().expect("a name").to_owned());
                if self.meddles && built.starts_with("musher-agent:") {
                    self.meddles = false;
                    self.images.retain(|image| !image.starts_with("musher-agent-fetch:"));
                    return refused(500, "pull access denied");
                }
                self.images.insert(built);
                Json(json!({"stream": "done\n"})).into_response()
            }
            ("DELETE", ["containers", name]) => {
                self.containers.remove(*name);
                done
            }
            _ => refused(501, "the played engine knows no such request"),
        }
    }
}

/// A tag as it stands in an address.
fn tag(name: &str) -> String {
    name.replace("%3A", ":")
}

async fn answer(State(played): State<SharedPlayed>, method: Method, uri: Uri, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or_default();
    played.lock().expect("no poison").answer(&method, &uri, &body)
}

/// A project, and the containers of its gateway on a played engine.
struct Scene {
    folder: tempfile::TempDir,
    played: SharedPlayed,
    containers: Containers,
    id: Uuid,
    project: Project,
}

impl Scene {
    /// `network` is the setting.
    fn new(network: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("project")).expect("it can be made");
        let played = SharedPlayed::default();
        let listener = UnixListener::bind(path("engine.sock")).expect("it can be bound");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&played));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = ContainerSettings {
            engine: Some(format!("unix://{}", path("engine.sock").display())),
            base: BaseImage::Bootstrap { mirror: None },
            toolchains: Toolchains::Distro,
            with_agent: false,
            npm_registry: None,
            ca_bundle: None,
            proxies: Proxies::default(),
            sled: PathBuf::new(),
            cpus: None,
            memory: None,
            pids: 64,
            network,
        };
        let home = Home::open(&path("state")).expect("it can be made");
        let containers = Containers::new(Uuid::now_v7(), home, settings, Stacks::builtin());
        let project = Project {
            spec: Some(Spec::example(path("project"))),
            directory: Some((place::identity(&path("project")).expect("it is there"), Owner { uid: 1000, gid: 1000 })),
            image: Some("i".to_owned()),
            ..Project::default()
        };
        Self { folder, played, containers, id: Uuid::now_v7(), project }
    }

    /// The project's container as an earlier start made it.
    fn has(self, state: &'static str, network: &str) -> Self {
        self.has_another("old", state, network)
    }

    fn has_another(self, name: &str, state: &'static str, network: &str) -> Self {
        let labels = json!({
            LABEL_GATEWAY: self.containers.gateway.to_string(),
            LABEL_PROJECT_ID: self.id.to_string(),
            LABEL_PROJECT: "app",
        });
        let container = Container { state, network: network.to_owned(), labels };
        self.played().containers.insert(name.to_owned(), container);
        self
    }

    fn played(&self) -> std::sync::MutexGuard<'_, Played> {
        self.played.lock().expect("no poison")
    }

    async fn start(&self) -> Result<Started, StartError> {
        self.containers.start(self.id, &self.project, |port| Ok(port + 1)).await
    }

    /// What is there, by name, and the network that it is on.
    fn left(&self) -> Vec<(String, String)> {
        self.played().containers.iter().map(|(name, container)| (name.clone(), container.network.clone())).collect()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.played().asked)
    }
}

#[tokio::test]
async fn an_engine_that_remaps_users_is_refused_before_anything_is_made() {
    for option in ["name=rootless", "name=userns"] {
        let scene = Scene::new(true).has("exited", "bridge-id");
        scene.played().security_options.push(option);
        let StartError::Refused(refusal) = scene.start().await.expect_err("it cannot work") else {
            panic!("it is no matter of ports or images");
        };
        assert_eq!(refusal.kind, crate::refusal::Kind::Unavailable);
        assert!(refusal.what.contains("rootless"), "{refusal}");
        assert!(refusal.hint.as_ref().is_some_and(|hint| hint.contains("DOCKER_HOST")), "{refusal}");
        scene.containers.check(None).await.expect_err("no project can be made");
        assert_eq!(scene.asked(), Vec::<String>::new());
        let doctor = crate::doctor::Doctor {
            home: scene.containers.home.clone(),
            containers: Arc::new(scene.containers),
            owner: Owner { uid: 1000, gid: 1000 },
            known: Arc::default(),
            model_projects: Arc::default(),
        };
        let report = doctor.run(None).await;
        let engine = report.checks.iter().find(|check| check.name == "engine").expect("it was looked at");
        assert!(!engine.ok && engine.hint.is_some(), "{engine:?}");
    }
}

#[test]
fn a_build_that_failed_says_why_first_and_what_to_do_before_its_log() {
    let stack = Layer::Stack(StackName::try_from("rust".to_owned()).expect("it is a name"));
    let told = |layer: &Layer, log: &[&str], toolchains| {
        let failure = BuildFailure {
            layer: layer.clone(),
            step: 2,
            steps: 4,
            message: "the command returned a non-zero code: 6".into(),
            log: log.iter().map(|line| (*line).to_owned()).collect(),
        };
        not_built(failure, toolchains).to_markdown()
    };
    let log = ["Step 2/4 : RUN curl", " ---> Running in 1f", "curl: (6) Could not resolve host: x.example"];
    insta::assert_snapshot!(told(&stack, &log, Toolchains::Upstream), @r#"
    ⚠ Layer stack-rust of the image failed at step 2 of 4: `curl: (6) Could not resolve host: x.example`: its last lines follow.
    If a download failed, try again, or put `toolchains = "distro"` under `[images]` in bot.toml and restart musher: then toolchains come from the Debian mirror (docs/stacks.md).
    ```
    Step 2/4 : RUN curl
    ---> Running in 1f
    curl: (6) Could not resolve host: x.example
    the command returned a non-zero code: 6
    ```
    "#);
    let failed = told(&stack, &log, Toolchains::Distro);
    assert!(!failed.contains("distro") && failed.contains("try again"), "{failed}");
    assert!(!told(&Layer::Base, &log, Toolchains::Upstream).contains("distro"), "its packages come from Debian anyway");
    for log in [&[][..], &log[..1], &log[..2]] {
        let failed = told(&stack, log, Toolchains::Upstream);
        assert!(
            failed.starts_with("⚠ Layer stack-rust of the image failed at step 2 of 4: `the command returned"),
            "{failed}"
        );
    }
}

/// Two gateways that build the same on one engine have the layer in common from which the agent is taken.
#[tokio::test]
async fn a_layer_that_another_gateway_removed_is_built_again() {
    let mut scene = Scene::new(true);
    scene.containers.settings.with_agent = true;
    scene.containers.settings.sled = scene.folder.path().join("sled");
    std::fs::write(&scene.containers.settings.sled, "a sled").expect("it can be written");
    let plan = scene.containers.plan(None, Owner { uid: 1000, gid: 1000 }).await.expect("it can be planned");
    let there = plan.layers().filter(|(layer, _)| ["root", "base"].contains(&layer.to_string().as_str()));
    scene.played().images.extend(there.map(|(_, tag)| tag.to_owned()));
    scene.played().meddles = true;
    scene.containers.ensure_image(&plan, &mut |_| ()).await.expect("it is built");
    let built: Vec<_> = scene.asked().into_iter().filter(|asked| asked.starts_with("musher-")).collect();
    let [fetch, agent, node] = ["musher-agent-fetch", "musher-agent", "musher-node"];
    assert_eq!(built, [fetch, agent, fetch, agent, node]);
    let left: Vec<_> = scene.played().images.iter().filter(|image| image.starts_with(fetch)).cloned().collect();
    assert_eq!(left, [""; 0], "nothing is left of it");
}

#[tokio::test]
async fn more_processors_than_the_host_has_are_refused_beforehand_by_who_wants_them() {
    for (asked, default, words) in [
        (None, None, None),
        (None, Some(2.0), None),
        (Some(2.0), Some(16.0), None),
        (Some(3.0), None, Some("`--cpus 3`")),
        (None, Some(16.0), Some("`[projects] default_cpus` is 16")),
    ] {
        let mut scene = Scene::new(true);
        scene.containers.settings.cpus = default;
        let refusal = scene.containers.check(asked).await.err().map(|refusal| refusal.to_string());
        assert_eq!(refusal.is_some(), words.is_some(), "{asked:?} {default:?}: {refusal:?}");
        assert!(refusal.unwrap_or_default().contains(words.unwrap_or_default()), "{asked:?} {default:?}");
    }
}

#[test]
fn a_container_that_stopped_by_itself_is_told_by_its_project_and_where_to_look() {
    let started = Started {
        id: ContainerId::new("f".repeat(64)),
        name: "musher-app-2".into(),
        project: "app".into(),
        port: None,
    };
    let refusal = started.refused(EngineError::ContainerStopped { container: started.id.to_string() });
    insta::assert_snapshot!(refusal.to_string(), @r"
    the container of `app` stopped by itself.
      `docker logs musher-app-2` on the host may tell why; `doctor` checks the rest.
    ");
}

/// `[projects] network` counts for containers that are there already: they are kept, or made anew.
#[tokio::test]
async fn a_container_has_the_network_that_the_setting_says() {
    for (network, state, had, has) in [
        (false, "running", "bridge-id", "none"),
        (false, "running", "", "none"),
        (false, "exited", "bridge-id", "none"),
        (false, "created", "default", "none"),
        (false, "paused", "bridge-id", "none"),
        (true, "exited", "none", "bridge-id"),
    ] {
        let scene = Scene::new(network).has(state, had);
        let started = scene.start().await.expect("it is made anew");
        assert_eq!(started.name, "musher-app", "{network} {state} {had}");
        assert_eq!(scene.left(), [("musher-app".to_owned(), has.to_owned())], "{network} {state} {had}");
    }
    for (network, state, had) in [
        (false, "running", "none"),
        (false, "exited", "none"),
        (true, "running", "bridge-id"),
        (true, "exited", "bridge-id"),
        // What runs in it goes on; `doctor` tells.
        (true, "running", "none"),
        (true, "paused", "none"),
    ] {
        let scene = Scene::new(network).has(state, had);
        let started = scene.start().await.expect("it runs, or can be started");
        assert_eq!((started.name.as_str(), started.project.as_str()), ("old", "app"));
        assert_eq!(scene.left(), [("old".to_owned(), had.to_owned())], "{network} {state} {had}");
    }
}

#[tokio::test]
async fn no_container_keeps_a_network_that_it_must_not_have_when_its_project_cannot_be_started() {
    let scene = Scene::new(false).has("running", "bridge-id");
    std::fs::remove_dir(scene.folder.path().join("project")).expect("it is there");
    scene.start().await.expect_err("its folder is gone");
    assert_eq!(scene.left(), []);
}

/// What an engine says of a network that was pruned, of one that it has lost, and of a container that is in its way.
#[tokio::test]
async fn a_stopped_container_that_cannot_start_is_made_anew_once() {
    for status in [404, 409, 500] {
        let scene = Scene::new(true).has("exited", "bridge-id");
        scene.played().refusals.push_back((status, "network bridge-id not found"));
        assert_eq!(scene.start().await.expect("a new one starts").name, "musher-app");
        let made = ["POST /containers/old/start", "DELETE /containers/old", "POST /containers/create"];
        assert_eq!(scene.asked(), [made.as_slice(), &["POST /containers/musher-app/start"]].concat());
    }
    let scene = Scene::new(true).has("exited", "bridge-id");
    scene.played().refusals.extend([(500, "the first fault"), (500, "the second fault"), (500, "of another port")]);
    let StartError::Refused(refusal) = scene.start().await.expect_err("neither starts") else {
        panic!("it is no matter of ports or images");
    };
    assert!(refusal.what.contains("the second fault"), "{refusal}");
    assert_eq!(scene.left(), []);
}

#[tokio::test]
async fn a_folder_that_is_gone_or_is_none_any_more_is_told_with_what_to_do() {
    let scene = Scene::new(true);
    let path = scene.folder.path().join("project");
    std::fs::rename(&path, scene.folder.path().join("elsewhere")).expect("it can be moved");
    for (stands, words) in [(false, "is gone"), (true, "another folder stands at")] {
        if stands {
            std::fs::write(&path, "a file").expect("it can be written");
        }
        let StartError::Refused(refusal) = scene.start().await.expect_err("it has no folder") else {
            panic!("it is no matter of ports or images");
        };
        assert!(refusal.what.contains(words) && refusal.kind == crate::refusal::Kind::Config, "{refusal}");
        assert!(refusal.hint.as_ref().is_some_and(|hint| hint.contains("`delete project app`")), "{refusal}");
    }
}

/// With what runs in it: the turn, and who is there by SSH.
#[tokio::test]
async fn a_container_that_somebody_paused_goes_on() {
    let scene = Scene::new(true).has("paused", "bridge-id");
    assert_eq!(scene.start().await.expect("it goes on").name, "old");
    assert_eq!(scene.asked(), ["POST /containers/old/unpause"]);
    assert_eq!(scene.start().await.expect("it runs").name, "old");
    let engine = scene.containers.engine().expect("it answers");
    engine.unpause(&ContainerId::new("old")).await.expect("whoever paused it was faster");
}

/// An engine may make a container and be too slow to say so.
#[tokio::test]
async fn of_two_containers_that_which_runs_is_the_projects_and_both_are_removed() {
    for (first, second) in [("running", "created"), ("created", "running"), ("exited", "paused")] {
        let scene = Scene::new(true).has_another("one", first, "bridge-id").has_another("two", second, "bridge-id");
        let right = if first == "running" { "one" } else { "two" };
        assert_eq!(scene.start().await.expect("it runs").name, right, "{first} {second}");
        scene.containers.remove(scene.id).await.expect("they can be removed");
        assert_eq!(scene.left(), []);
    }
}

impl Scene {
    /// A sled of the project that the engine does not see; gives, once somebody has asked it to end, what the engine had been
    /// asked for by then.
    fn runs_unseen(&self) -> tokio::task::JoinHandle<Vec<String>> {
        let folder = self.containers.home.project(self.id).sled();
        std::fs::create_dir_all(&folder).expect("it can be made");
        let sled = UnixListener::bind(folder.join(takeover::SOCKET)).expect("it can be bound");
        let played = Arc::clone(&self.played);
        tokio::spawn(async move {
            let (_asking, _) = sled.accept().await.expect("it is asked");
            played.lock().expect("no poison").asked.clone()
        })
    }
}

/// An engine that was killed while it started a container, and started again, says so of one that runs.
#[tokio::test]
async fn a_container_that_runs_unseen_is_ended_and_started() {
    let scene = Scene::new(true).has("exited", "bridge-id");
    scene.played().refusals.push_back((500, "id already in use"));
    let unseen = scene.runs_unseen();
    assert_eq!(scene.start().await.expect("it starts").name, "old");
    assert_eq!(unseen.await.expect("it was asked"), ["POST /containers/old/start"]);
    assert_eq!(scene.asked(), ["POST /containers/old/start", "POST /containers/old/start"]);
}

/// An engine forgets what it removes, whatever runs in it.
#[tokio::test]
async fn what_runs_unseen_is_ended_before_its_container_is_removed() {
    let scene = Scene::new(true).has_another("one", "exited", "bridge-id").has_another("two", "running", "bridge-id");
    let unseen = scene.runs_unseen();
    scene.containers.remove(scene.id).await.expect("they can be removed");
    assert_eq!(unseen.await.expect("it was asked"), ["DELETE /containers/two"]);
    assert_eq!(scene.left(), []);
}

/// Such an engine may also keep the port of a container for nobody, until it ends in order.
#[tokio::test]
async fn another_port_is_tried_once_where_a_container_does_not_start() {
    let scene = Scene::new(true).has("created", "bridge-id");
    let port = scene.project.spec.as_ref().expect("it has one").port;
    scene.played().refusals.extend([(500, "the port is kept"); 2]);
    let started = scene.start().await.expect("another port is free");
    assert_eq!(started.port, Some(port + 1));
    assert_eq!(scene.left(), [("musher-app".to_owned(), "bridge-id".to_owned())]);
}

#[tokio::test]
async fn what_runs_unseen_is_ended_before_a_container_goes_whose_port_is_taken() {
    let scene = Scene::new(true).has("created", "bridge-id");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("it has one").port();
    scene.played().port = Some(port);
    scene.played().refusals.push_back((500, "the port is taken"));
    let unseen = scene.runs_unseen();
    assert!(matches!(scene.start().await, Err(StartError::PortTaken(taken)) if taken == port));
    assert_eq!(unseen.await.expect("it was asked"), ["POST /containers/old/start"]);
    assert_eq!(scene.left(), []);
}

/// Without its container nobody would find what does not end.
#[tokio::test(start_paused = true)]
async fn a_container_stays_while_what_runs_in_it_unseen_does_not_end() {
    let scene = Scene::new(true).has("exited", "bridge-id");
    let folder = scene.containers.home.project(scene.id).sled();
    std::fs::create_dir_all(&folder).expect("it can be made");
    let _stuck = UnixListener::bind(folder.join(takeover::SOCKET)).expect("it can be bound");
    let refusal = scene.containers.remove(scene.id).await.expect_err("it runs on");
    assert!(refusal.hint.is_some_and(|hint| hint.contains("sled serve")), "a person can end it");
    assert_eq!(scene.left(), [("old".to_owned(), "bridge-id".to_owned())]);
}

/// Some disks have another number after a boot; the folder is the same.
#[tokio::test]
async fn a_project_starts_on_a_renumbered_disk_and_not_in_another_folder() {
    let mut scene = Scene::new(true);
    let (identity, owner) = scene.project.directory.expect("it has one");
    let known = crate::projects::Identity { device: identity.device + 1, born_ns: Some(1), ..identity };
    scene.project.directory = Some((known, owner));
    let StartError::Refused(refusal) = scene.start().await.expect_err("it was made at another time") else {
        panic!("it is no matter of ports or images");
    };
    assert!(refusal.what.contains("another folder stands at"), "{refusal}");
    assert_eq!(refusal.kind, crate::refusal::Kind::Config, "nobody tries again for two minutes");
    if identity.born_ns.is_some() {
        scene.project.directory = Some((crate::projects::Identity { born_ns: identity.born_ns, ..known }, owner));
        scene.start().await.expect("it is the same folder");
    }
}
