//! From bot.toml, environment and host to what the parts of the gateway need. Nothing here is kept; no part sees bot.toml.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bot_config::{
    Auth as AuthSetting, Config, ConfigError, Headers, KeySource, MatrixLogin, ModelKey, Network as NetworkSetting,
    PasswordSource, Permissions as PermissionSetting, RoomMode, Runtime, Surface as Transport,
    Toolchains as ToolchainSetting,
};
use jiff::SignedDuration;
use link::requests::{Agent, GitIdentity, Permissions};
use musher_docker::{BaseImage, PlanError, Proxies};
use reqwest::Url;
use stacks::Toolchains;

use crate::{
    author::Author,
    chat::matrix::{Login, MatrixSettings},
    containers::ContainerSettings,
    dispatch::core::Limits,
    doctor::{self, Check},
    git,
    home::Home,
    model::{Auth, Endpoint, Key, Models},
    people::People,
    projects::{Owner, place},
    refusal::Refusal,
    rooms::Mode,
    secrets::{self, Secrets},
    turns::TurnSettings,
    usage::Budget,
};

/// Where the model API answers unless bot.toml says otherwise.
const MODEL_BASE: &str = "https://api.anthropic.com";
/// The trust store of Debian and its like.
const HOST_TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The user that runs containers of folders that belong to root.
const DEFAULT_UID: u32 = 1000;

/// What the process was started with, handed in so that tests need no environment of their own.
pub struct Environment<'a> {
    /// Looks a variable up.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The running binary.
    pub musher: PathBuf,
}

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// Either spelling, the lower case one first, as curl has it.
    fn proxy(&self, name: &str) -> Option<String> {
        self.get(name).or_else(|| self.get(&name.to_uppercase()))
    }

    /// The person's home directory.
    pub fn home(&self) -> Result<PathBuf, Refusal> {
        let home = self
            .get("HOME")
            .map(PathBuf::from)
            .ok_or_else(|| Refusal::config("HOME is not set").hint("Set it to your home directory."))?;
        if home.is_dir() {
            Ok(home)
        } else {
            Err(Refusal::config(format!("HOME is {}, which is not a directory", home.display()))
                .hint("Set it to your home directory."))
        }
    }
}

/// Reads bot.toml of a state directory; without one everything has its default.
pub fn load(home: &Home) -> Result<Config, Refusal> {
    match Config::load(&home.config_file()) {
        Ok(config) => Ok(config),
        Err(ConfigError::NotFound { .. }) => Ok(Config::default()),
        // Each problem says what to do about it.
        Err(error @ ConfigError::Invalid(_)) => Err(Refusal::config(error.to_string())),
        Err(error) => Err(Refusal::config("the settings cannot be read").hint(error.to_string())),
    }
}

/// Everything that the parts of a gateway are made with.
pub struct Settings {
    /// Containers and images.
    pub containers: ContainerSettings,
    /// Where projects may lie.
    pub places: place::Rules,
    /// The dispatcher's limits.
    pub limits: Limits,
    /// Turns.
    pub turns: TurnSettings,
    /// Whose name commits carry.
    pub author: Author,
    /// Git remotes.
    pub git: git::Settings,
    /// The model's endpoint.
    pub model: Models,
    /// Projects that have a model of their own, by name.
    pub model_projects: Vec<String>,
    /// Who may speak.
    pub people: People,
    /// What `doctor` is told beforehand.
    pub known: Vec<Check>,
    /// Whether the prompt may have colours (<https://no-color.org>).
    pub colours: bool,
    /// What the practice agent's user should know; nothing when a real agent answers.
    pub practice: bool,
    /// The Matrix account, where that is the transport.
    pub matrix: Option<MatrixSettings>,
    /// How rooms take messages during a turn, as long as nobody there says otherwise.
    pub mode: Mode,
    /// For how long texts are kept; for ever without.
    pub retention: Option<SignedDuration>,
    /// What projects may use of the model.
    pub budget: Budget,
}

/// Translates the settings of one gateway.
pub fn resolve(config: &Config, environment: &Environment<'_>, home: &Home) -> Result<Settings, Refusal> {
    let user_home = environment.home()?;
    let found = endpoints(config, environment, home, &user_home)?;
    let (agent, practice) = agent(config, &found);
    let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
    let author =
        Author::new(identity(config)?, &user_home, environment.get("XDG_CONFIG_HOME").map(PathBuf::from).as_deref());
    let mut known = vec![agent_check(&agent, practice), key_check(config, &found.general, environment)];
    known.extend(found.own.iter().map(|(name, endpoint)| own_check(name, endpoint)));
    let model_projects = found.own.keys().cloned().collect();
    Ok(Settings {
        containers: containers(config, environment, &user_home, &agent)?,
        places: place::Rules {
            roots: config.projects.roots.iter().map(|root| root.resolve(&user_home)).collect(),
            home: user_home.clone(),
            state: home.root().to_owned(),
            taken: Vec::new(),
            own,
            fallback: fallback_owner(config, own),
        },
        limits: Limits {
            window: config.coalesce_window(),
            max_window: config.coalesce_max(),
            max_queue: config.max_queue.get().into(),
            max_turns: config.max_concurrent_turns.get().into(),
        },
        turns: TurnSettings {
            agent,
            author: author.clone(),
            stop_grace: config.stop_grace(),
            permissions: match config.agent.permissions {
                PermissionSetting::AllowInContainer => Permissions::Bypass,
                PermissionSetting::Ask => Permissions::Ask { timeout_secs: config.permission_timeout().as_secs() },
            },
            keep_warm: config.agent.keep_warm(),
        },
        author,
        git: git(config, environment, &user_home)?,
        model: models(config, found, &user_home)?,
        model_projects,
        people: people(config),
        known,
        colours: environment.get("NO_COLOR").is_none(),
        practice,
        matrix: matrix(config, home, &user_home)?,
        mode: match config.mode {
            RoomMode::Queue => Mode::Queue,
            RoomMode::Interrupt => Mode::Interrupt,
        },
        retention: config.retention_days.map(|days| SignedDuration::from_hours(24 * i64::from(days.get()))),
        budget: Budget::from(&config.budget),
    })
}

/// Who gets folders that belong to root; without root's rights, nobody but the gateway's own user.
pub fn fallback_owner(config: &Config, own: Owner) -> Owner {
    if own.uid != 0 {
        return own;
    }
    let uid = config.projects.uid.map_or(DEFAULT_UID, Into::into);
    Owner { uid, gid: config.projects.gid.map_or(uid, Into::into) }
}

fn people(config: &Config) -> People {
    let ids = |users: &[bot_config::UserId]| users.iter().map(|user| user.as_str().to_owned()).collect::<Vec<_>>();
    People::new(crate::chat::SurfaceKind::Matrix, &ids(&config.admins), &ids(&config.allowed_users))
}

fn identity(config: &Config) -> Result<Option<GitIdentity>, Refusal> {
    match (&config.git_user_name, &config.git_user_email) {
        (Some(name), Some(email)) => Ok(Some(GitIdentity { name: name.clone(), email: email.clone() })),
        (None, None) => Ok(None),
        _ => Err(Refusal::config("`git_user_name` and `git_user_email` go together")
            .hint("Set both in bot.toml, or neither.")),
    }
}

/// What settings say of git remotes; without a word of theirs, the host's own ssh tells which servers are known.
fn git(config: &Config, environment: &Environment<'_>, user_home: &Path) -> Result<git::Settings, Refusal> {
    let proxies = ["http_proxy", "https_proxy", "all_proxy"].into_iter().filter_map(|name| environment.proxy(name));
    Ok(git::Settings {
        allow_hosts: config.git.allow_hosts.iter().map(|host| host.as_str().to_owned()).collect(),
        known_hosts: match &config.git.known_hosts {
            Some(files) => files.iter().map(|file| file.resolve(user_home)).collect(),
            None => vec![user_home.join(".ssh/known_hosts"), "/etc/ssh/ssh_known_hosts".into()],
        },
        proxies: proxies.filter_map(|address| git::reach::proxy_host(&address)).collect(),
        extra_pem: extra_certificates(config, user_home)?,
    })
}

/// What settings say of images and containers.
pub fn containers(
    config: &Config,
    environment: &Environment<'_>,
    user_home: &Path,
    agent: &Agent,
) -> Result<ContainerSettings, Refusal> {
    let images = &config.images;
    let base = match &images.base {
        Some(reference) => BaseImage::Own { reference: reference.as_str().to_owned() },
        None => {
            BaseImage::Bootstrap { mirror: images.debian_mirror.as_ref().map(|mirror| mirror.as_url().to_string()) }
        }
    };
    let proxies = Proxies::new(
        environment.proxy("http_proxy").as_deref(),
        environment.proxy("https_proxy").as_deref(),
        environment.proxy("no_proxy").as_deref(),
    );
    let proxies = proxies.map_err(|error| {
        let hint = match &error {
            PlanError::Credentials { .. } => {
                "Set it without user name and password; a secret must not enter a container."
            }
            PlanError::Hosts { .. } => "Set it to names and addresses with commas between them.",
            _ => "Set it to an address such as `http://proxy.example.org:3128`, or unset it.",
        };
        Refusal::config(format!("the proxy variables cannot be carried into containers: {error}")).hint(hint)
    })?;
    let sled = environment.musher.parent().unwrap_or(Path::new("/")).join("sled");
    Ok(ContainerSettings {
        engine: config.engine.host.as_ref().map(ToString::to_string).or_else(|| environment.get("DOCKER_HOST")),
        base,
        toolchains: match images.toolchains {
            ToolchainSetting::Upstream => Toolchains::Upstream,
            ToolchainSetting::Distro => Toolchains::Distro,
        },
        // Without a runtime in bot.toml a key may come any day: the program is there for it.
        with_agent: matches!(agent, Agent::Claude { .. }) || config.agent.runtime().is_none(),
        npm_registry: environment.get("npm_config_registry").or_else(|| environment.get("NPM_CONFIG_REGISTRY")),
        ca_bundle: certificates(config, user_home)?,
        proxies,
        sled,
        #[expect(clippy::cast_precision_loss, reason = "processors are far below 2^52 billionths")]
        cpus: config.projects.default_cpus.map(|cpus| cpus.nano_cpus() as f64 / 1e9),
        memory: config.projects.default_memory.map(bot_config::Memory::bytes),
        pids: config.projects.pids.into(),
        network: config.projects.network == NetworkSetting::Open,
    })
}

/// The certificates to trust: those that bot.toml names, or the host's own trust store.
fn certificates(config: &Config, user_home: &Path) -> Result<Option<Vec<u8>>, Refusal> {
    match &config.images.extra_ca_certificates {
        Some(files) => {
            let mut bundle = Vec::new();
            for file in files {
                let path = file.resolve(user_home);
                let pem = fs::read(&path).map_err(|error| {
                    Refusal::config(format!("the certificates in {} cannot be read: {error}", path.display()))
                        .hint("Mend `[images] extra_ca_certificates` in bot.toml.")
                })?;
                bundle.extend(pem);
                bundle.push(b'\n');
            }
            Ok((!bundle.is_empty()).then_some(bundle))
        }
        None => match fs::read(HOST_TRUST) {
            Ok(bundle) => Ok(Some(bundle)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(Refusal::internal(format!("the host's certificates in {HOST_TRUST} cannot be read"), error))
            }
        },
    }
}

/// The certificates that bot.toml names. Without the setting the host's own trust store counts, which clients use by themselves.
fn extra_certificates(config: &Config, user_home: &Path) -> Result<Option<Vec<u8>>, Refusal> {
    Ok(config.images.extra_ca_certificates.is_some().then(|| certificates(config, user_home)).transpose()?.flatten())
}

/// Where models answer: for every project, and for those that have one of their own.
struct Endpoints {
    general: Endpoint,
    own: BTreeMap<String, Endpoint>,
}

impl Endpoints {
    /// Whether there is a model that can be asked.
    fn any(&self) -> bool {
        let answers = |endpoint: &Endpoint| endpoint.auth == Auth::None || !matches!(endpoint.key, Key::None);
        answers(&self.general) || self.own.values().any(answers)
    }
}

fn endpoints(
    config: &Config,
    environment: &Environment<'_>,
    home: &Home,
    user_home: &Path,
) -> Result<Endpoints, Refusal> {
    let translated = |section: &str, setting: bot_config::Endpoint<'_>| {
        let base = setting.base_url.map_or(MODEL_BASE, |url| url.as_url().as_str());
        let base = Url::parse(base).map_err(|error| Refusal::internal("the model's address cannot be read", error))?;
        let auth = match setting.auth {
            AuthSetting::ApiKey => Auth::ApiKey,
            AuthSetting::Bearer => Auth::Bearer,
            AuthSetting::None => Auth::None,
        };
        let key = match setting.key {
            ModelKey::Stored(KeySource::Secret(name)) => Key::File(Secrets::new(home).path(name)),
            ModelKey::Stored(KeySource::File(path)) => Key::File(path.resolve(user_home)),
            ModelKey::Environment => environment.get("ANTHROPIC_API_KEY").map_or(Key::None, Key::Given),
            ModelKey::None => Key::None,
        };
        Ok::<_, Refusal>(Endpoint { base, auth, key, headers: headers(section, setting.headers)? })
    };
    let own = config
        .model
        .of_projects()
        .map(|(name, setting)| Ok((name.to_owned(), translated(&format!("[model.projects.{name}]"), setting)?)));
    Ok(Endpoints { general: translated("[model]", config.model.general())?, own: own.collect::<Result<_, Refusal>>()? })
}

/// Refuses keys of models that bot.toml names and that are not to be had: every request would fail for want of them.
pub fn check_keys(config: &Config, environment: &Environment<'_>, home: &Home) -> Result<(), Refusal> {
    let (store, user_home) = (Secrets::new(home), environment.home()?);
    let own = config.model.of_projects().map(|(_, setting)| setting);
    for setting in std::iter::once(config.model.general()).chain(own) {
        match setting.key {
            ModelKey::Stored(KeySource::Secret(name)) => drop(store.get(name)?),
            ModelKey::Stored(KeySource::File(path)) => {
                let path = path.resolve(&user_home);
                secrets::read(&path).map_err(|error| {
                    Refusal::config(format!("the model key in {} cannot be read: {error}", path.display()))
                        .hint("Mend `api_key_file` in bot.toml, or the file.")
                })?;
            }
            ModelKey::Environment | ModelKey::None => {}
        }
    }
    Ok(())
}

/// Headers to add to requests, which `section` of bot.toml names.
fn headers(section: &str, named: &Headers) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in named.iter() {
        let name: HeaderName =
            name.parse().map_err(|_| Refusal::config(format!("`{name}` in `{section}` is no header name")))?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| {
            Refusal::config(format!("the value of `{name}` in `{section}` contains characters that a header cannot"))
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn models(config: &Config, found: Endpoints, user_home: &Path) -> Result<Models, Refusal> {
    // Without the setting, the host's own trust store counts, which the client uses by itself.
    let extra =
        config.images.extra_ca_certificates.is_some().then(|| certificates(config, user_home)).transpose()?.flatten();
    Models::new(found.general, found.own, extra.as_deref())
}

/// Which agent answers, and whether it is the practice agent for want of a key.
fn agent(config: &Config, found: &Endpoints) -> (Agent, bool) {
    let claude = || Agent::Claude { model: config.agent.model.clone() };
    match config.agent.runtime() {
        Some(Runtime::Claude) => (claude(), false),
        Some(Runtime::Command(argv)) => (Agent::Command { argv: argv.to_vec() }, false),
        Some(Runtime::Echo) => (Agent::Echo { notice: None }, false),
        None if found.any() => (claude(), false),
        None => {
            let notice = "I am the practice agent: I only repeat what you say. For a real one, start musher with ANTHROPIC_API_KEY set, \
                          or store a key: `musher secrets set model-key < key-file`, and `[model] api_key_secret = \"model-key\"` in bot.toml.";
            (Agent::Echo { notice: Some(notice.to_owned()) }, true)
        }
    }
}

fn agent_check(agent: &Agent, practice: bool) -> Check {
    let found = match agent {
        Agent::Claude { model } => format!(
            "Claude Code {}, model {}",
            musher_docker::CLAUDE_CODE_VERSION,
            model.as_deref().unwrap_or("of its own choice")
        ),
        Agent::Command { argv } => format!("the command {}", shell_words::join(argv)),
        Agent::Echo { .. } if practice => "the practice agent, because there is no model key".to_owned(),
        Agent::Echo { .. } => "the practice agent".to_owned(),
    };
    Check::good("agent", found)
}

fn key_check(config: &Config, general: &Endpoint, environment: &Environment<'_>) -> Check {
    match &general.key {
        Key::File(path) => stored_check("model key", path, ""),
        Key::Given(_) => {
            Check::good("model key", "in the gateway's environment; a secret (`musher secrets set`) is safer")
        }
        Key::None if general.auth == Auth::None => {
            Check::good("model key", format!("none is sent to {}", general.base))
        }
        Key::None if config.agent.runtime().is_some_and(|runtime| runtime == Runtime::Claude) => Check::bad(
            "model key",
            "none",
            Some("store it with `musher secrets set`, and name it in `[model] api_key_secret`".to_owned()),
        ),
        Key::None => {
            Check::good("model key", if environment.get("ANTHROPIC_API_KEY").is_some() { "not used" } else { "none" })
        }
    }
}

/// A project's own model.
fn own_check(project: &str, endpoint: &Endpoint) -> Check {
    let (name, base) = (doctor::own_model(project), &endpoint.base);
    match &endpoint.key {
        Key::File(path) => stored_check(&name, path, &format!("{base}, key ")),
        Key::Given(_) => Check::good(name, format!("{base}, key in the gateway's environment")),
        Key::None if endpoint.auth == Auth::None => Check::good(name, format!("{base}, no key is sent")),
        Key::None => Check::bad(
            name,
            format!("{base}, no key"),
            Some(format!("name one in `[model.projects.{project}]` or `[model]`")),
        ),
    }
}

fn stored_check(name: &str, path: &Path, before: &str) -> Check {
    let hint = Some("store it with `musher secrets set`".to_owned());
    match secrets::read(path) {
        Ok(key) if !key.is_empty() => Check::good(name, format!("{before}in {}", path.display())),
        Ok(_) => Check::bad(name, format!("{before}in {}, which is empty", path.display()), hint),
        Err(error) => Check::bad(name, format!("{before}in {}: {error}", path.display()), hint),
    }
}

fn matrix(config: &Config, home: &Home, user_home: &Path) -> Result<Option<MatrixSettings>, Refusal> {
    let Transport::Matrix(account) = &config.surface else { return Ok(None) };
    let store = Secrets::new(home);
    let login = match &account.login {
        MatrixLogin::Password { username, password } => {
            let password = match password {
                PasswordSource::Plain(password) => password.expose().to_owned(),
                PasswordSource::Secret(name) => store.get(name)?,
                PasswordSource::File(path) => {
                    let path = path.resolve(user_home);
                    secrets::read(&path).map_err(|error| {
                        Refusal::internal(format!("the password in {} cannot be read", path.display()), error)
                            .hint("Mend `password_file` in bot.toml.")
                    })?
                }
            };
            Login::Password { username: username.clone(), password: password.into() }
        }
        MatrixLogin::AccessToken(name) => Login::Token { access_token: store.get(name)?.into() },
    };
    Ok(Some(MatrixSettings {
        homeserver: account.homeserver.as_url().clone(),
        login,
        room_ids: config.room_ids.iter().chain(&config.ambient_rooms).map(|room| room.as_str().to_owned()).collect(),
        ambient: config.ambient_rooms.iter().map(|room| room.as_str().to_owned()).collect(),
        store_dir: home.matrix(),
        device_name: "musher".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Kind;

    /// What is said of this bot.toml, in a state directory that has nothing else.
    fn refused(text: &str) -> Refusal {
        let folder = tempfile::tempdir().expect("there is room");
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        fs::write(folder.path().join("broken.pem"), broken).expect("there is room");
        let config = Config::parse(text, Path::new("bot.toml")).expect("it is well formed");
        let user_home = folder.path().to_str().expect("it is text").to_owned();
        let variable = move |asked: &str| (asked == "HOME").then(|| user_home.clone());
        let environment = Environment { variable: &variable, musher: "/opt/musher".into() };
        let checked = resolve(&config, &environment, &home).and_then(|_| check_keys(&config, &environment, &home));
        checked.expect_err(text)
    }

    #[test]
    fn what_a_setting_names_and_is_not_there_is_a_mistake_in_the_settings() {
        for (text, what, hint) in [
            (
                "[model]\napi_key_secret = \"nope\"",
                "bot.toml names the secret `nope`, which is not there",
                "musher secrets set nope",
            ),
            (
                "[model.projects.myapp]\napi_key_secret = \"nope\"",
                "bot.toml names the secret `nope`, which is not there",
                "musher secrets set nope",
            ),
            ("[model]\napi_key_file = \"/nope\"", "the model key in /nope cannot be read", "`api_key_file`"),
            (
                "[images]\nextra_ca_certificates = [\"/nope.pem\"]",
                "the certificates in /nope.pem cannot be read",
                "`[images] extra_ca_certificates`",
            ),
            (
                "[images]\nextra_ca_certificates = [\"~/broken.pem\"]",
                "the certificates in `[images] extra_ca_certificates` cannot be used",
                "PEM",
            ),
        ] {
            let refusal = refused(text);
            assert_eq!(refusal.kind, Kind::Config, "{refusal}");
            assert!(refusal.what.contains(what), "{refusal}");
            assert!(refusal.hint.as_ref().is_some_and(|told| told.contains(hint)), "{refusal}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_carried_on_is_refused_with_what_is_wrong_about_it() {
        let settings = |name: &'static str, value: &'static str| {
            let variable = move |asked: &str| (asked == name).then(|| value.to_owned());
            let environment = Environment { variable: &variable, musher: "/opt/musher".into() };
            containers(&Config::default(), &environment, Path::new("/"), &Agent::Claude { model: None })
        };
        for (name, value, hint) in [
            ("http_proxy", "user:hush@proxy:3128", "without user name and password"),
            ("https_proxy", "socks5://proxy:1080", "`http://proxy.example.org:3128`"),
            ("no_proxy", "a\u{7f}b", "commas"),
        ] {
            let refusal = settings(name, value).expect_err("it cannot be carried on");
            assert!(refusal.what.contains(name) && !refusal.what.contains("hush"), "{refusal}");
            assert!(refusal.hint.as_ref().is_some_and(|told| told.contains(hint)), "{refusal}");
        }
        let taken = settings("no_proxy", "localhost, 127.0.0.1").expect("it is an ordinary one");
        assert_eq!(taken.proxies.variables()[0], ("no_proxy", "localhost,127.0.0.1".to_owned()));
    }
}
