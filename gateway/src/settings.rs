//! From bot.toml, environment and host to what the parts of the gateway need. Nothing here is kept; no part sees bot.toml.

use std::{
    fs,
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bot_config::{
    Auth as AuthSetting, Config, ConfigError, KeySource, MatrixLogin, Network as NetworkSetting, PasswordSource,
    Permissions as PermissionSetting, RoomMode, Runtime, Surface as Transport, Toolchains as ToolchainSetting,
};
use jiff::SignedDuration;
use link::requests::{Agent, GitIdentity, Permissions};
use musher_docker::{BaseImage, Proxies};
use reqwest::Url;
use stacks::Toolchains;

use crate::{
    chat::matrix::{Login, MatrixSettings},
    containers::ContainerSettings,
    dispatch::core::Limits,
    doctor::Check,
    home::Home,
    model::{Auth, Key, Model},
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
        Err(error @ ConfigError::Invalid(_)) => {
            Err(Refusal::config(error.to_string())
                .hint("`musher config example` prints every setting with its meaning."))
        }
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
    /// The model's endpoint.
    pub model: Model,
    /// Who may speak.
    pub people: People,
    /// What `doctor` is told beforehand.
    pub known: Vec<Check>,
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
    let key = model_key(config, environment, home, &user_home);
    let (agent, practice) = agent(config, &key);
    let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
    let known = vec![agent_check(&agent, practice), key_check(config, &key, environment)];
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
            identity: identity(config)?,
            stop_grace: config.stop_grace(),
            permissions: match config.agent.permissions {
                PermissionSetting::AllowInContainer => Permissions::Bypass,
                PermissionSetting::Ask => Permissions::Ask { timeout_secs: config.permission_timeout().as_secs() },
            },
            keep_warm: config.agent.keep_warm(),
        },
        model: model(config, key, &user_home)?,
        people: people(config),
        known,
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
        Refusal::config(format!("the proxy variables cannot be carried into containers: {error}"))
            .hint("Set them without user name and password; a secret must not enter a container.")
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
                    Refusal::internal(format!("the certificates in {} cannot be read", path.display()), error)
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

fn model_key(config: &Config, environment: &Environment<'_>, home: &Home, user_home: &Path) -> Key {
    match config.model.key() {
        Some(KeySource::Secret(name)) => Key::File(Secrets::new(home).path(name)),
        Some(KeySource::File(path)) => Key::File(path.resolve(user_home)),
        None => environment.get("ANTHROPIC_API_KEY").map_or(Key::None, Key::Given),
    }
}

fn model(config: &Config, key: Key, user_home: &Path) -> Result<Model, Refusal> {
    let base = match &config.model.base_url {
        Some(url) => url.as_url().as_str(),
        None => MODEL_BASE,
    };
    let base = Url::parse(base).map_err(|error| Refusal::internal("the model's address cannot be read", error))?;
    let mut headers = HeaderMap::new();
    for (name, value) in config.model.headers.iter() {
        let name: HeaderName =
            name.parse().map_err(|_| Refusal::config(format!("`{name}` in `[model] headers` is no header name")))?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| {
            Refusal::config(format!(
                "the value of `{name}` in `[model] headers` contains characters that a header cannot"
            ))
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let auth = match config.model.auth {
        AuthSetting::ApiKey => Auth::ApiKey,
        AuthSetting::Bearer => Auth::Bearer,
    };
    // Without the setting, the host's own trust store counts, which the client uses by itself.
    let extra =
        config.images.extra_ca_certificates.is_some().then(|| certificates(config, user_home)).transpose()?.flatten();
    Model::new(base, auth, key, headers, extra.as_deref())
}

/// Which agent answers, and whether it is the practice agent for want of a key.
fn agent(config: &Config, key: &Key) -> (Agent, bool) {
    let claude = || Agent::Claude { model: config.agent.model.clone() };
    match config.agent.runtime() {
        Some(Runtime::Claude) => (claude(), false),
        Some(Runtime::Command(argv)) => (Agent::Command { argv: argv.to_vec() }, false),
        Some(Runtime::Echo) => (Agent::Echo { notice: None }, false),
        None if !matches!(key, Key::None) => (claude(), false),
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

fn key_check(config: &Config, key: &Key, environment: &Environment<'_>) -> Check {
    match key {
        Key::File(path) => match secrets::read(path) {
            Ok(key) if !key.is_empty() => Check::good("model key", format!("in {}", path.display())),
            Ok(_) => Check::bad(
                "model key",
                format!("{} is empty", path.display()),
                Some("store it with `musher secrets set`".to_owned()),
            ),
            Err(error) => Check::bad(
                "model key",
                format!("{}: {error}", path.display()),
                Some("store it with `musher secrets set`".to_owned()),
            ),
        },
        Key::Given(_) => {
            Check::good("model key", "in the gateway's environment; a secret (`musher secrets set`) is safer")
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
