//! The one table of settings. Each entry is a field, its default, its documentation and its line in the example.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::address::{EngineHost, MirrorUrl, ServerUrl};
use crate::choice::{Auth, Network, Permissions, RoomMode, RuntimeKind, Toolchains, Transport};
use crate::endpoint::ProjectModels;
use crate::money::{Prices, Usd};
use crate::names::{ConfigPath, Headers, HostName, ImageRef, RoomRef, Secret, SecretName, SshHost, UserId};
use crate::quantity::{Cpus, Memory, Millis, Secs, SecsOrZero};
use crate::value::{Problems, Value};

/// What the example and the search for the nearest key know of a setting.
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) kind: String,
    /// As TOML; nothing where "not set" is the default.
    pub(crate) default: Option<String>,
    /// A value to show where the default shows too little.
    pub(crate) sample: Option<&'static str>,
    /// The setting that this one is another way of saying.
    pub(crate) instead_of: Option<&'static str>,
    pub(crate) doc: Vec<&'static str>,
}

/// A table of the file; the top level has the empty name.
pub(crate) trait Section {
    fn name(&self) -> &'static str;
    fn about(&self) -> Vec<&'static str>;
    /// The settings, with the values that they have here as defaults.
    fn settings(&self) -> Vec<Setting>;
    /// Reads one setting: whether that worked, or nothing when there is no such key.
    fn read(&mut self, key: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<bool>;
}

/// The key as errors name it.
pub(crate) fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        pub struct $Name:ident in $section:literal {
            $(
                $(#[doc = $doc:literal])+
                $vis:vis $key:ident: $T:ty = $default:expr
                    $(, eg $sample:literal)? $(, instead_of $other:literal)?;
            )+
        }
        $( with { $( $(#[doc = $with_doc:literal])+ pub $with:ident: $With:ty; )+ } )?
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $Name {
            $( $(#[doc = $doc])+ $vis $key: $T, )+
            $($( $(#[doc = $with_doc])+ pub $with: $With, )+)?
        }

        impl Default for $Name {
            fn default() -> Self {
                Self { $( $key: $default, )+ $($( $with: <$With>::default(), )+)? }
            }
        }

        impl Section for $Name {
            fn name(&self) -> &'static str {
                $section
            }

            fn about(&self) -> Vec<&'static str> {
                vec![$($about.trim()),+]
            }

            fn settings(&self) -> Vec<Setting> {
                vec![$( Setting {
                    key: stringify!($key),
                    kind: <$T as Value>::kind(),
                    default: self.$key.to_toml(),
                    sample: None $(.or(Some($sample)))?,
                    instead_of: None $(.or(Some($other)))?,
                    doc: vec![$($doc.trim()),+],
                } ),+]
            }

            fn read(
                &mut self,
                key: &str,
                value: &Spanned<DeValue<'_>>,
                problems: &mut Problems<'_>,
            ) -> Option<bool> {
                let name = format!("`{}`", dotted($section, key));
                match key {
                    $( stringify!($key) => {
                        let read = <$T as Value>::read(&name, value, problems);
                        Some(read.map(|value| self.$key = value).is_some())
                    } )+
                    _ => None,
                }
            }
        }
    )+};
}

sections! {
    /// Everything that bot.toml says.
    pub struct Config in "" {
        /// Where people talk to the bot: on the terminal that `musher up` runs on, or in Matrix rooms.
        pub(crate) transport: Transport = Transport::Console;
        /// The Matrix homeserver. This and the other Matrix settings may stand here unused under "console".
        pub(crate) homeserver: Option<ServerUrl> = None, eg r#""https://matrix.example.org""#;
        /// The bot's own Matrix account, for a login by password.
        pub(crate) username: Option<String> = None, eg r#""musher""#;
        /// The bot's password: the name of a secret that `musher secrets set` has stored.
        pub(crate) password_secret: Option<SecretName> = None, eg r#""matrix-password""#;
        /// The bot's password: a file that holds it.
        pub(crate) password_file: Option<ConfigPath> = None, eg r#""~/.musher/secrets/matrix-password""#, instead_of "password_secret";
        /// The bot's password itself. For trying things out: it stands here for all who read this file.
        pub(crate) password: Option<Secret> = None, eg r#""correct horse battery staple""#, instead_of "password_secret";
        /// A login by access token, in place of username and password: the name of a secret.
        pub(crate) access_token_secret: Option<SecretName> = None, eg r#""matrix-token""#, instead_of "username and password_secret";
        /// The Matrix rooms that the bot is in from the start. Invitations from people below add to them.
        pub room_ids: Vec<RoomRef> = Vec::new(), eg r##"["!abc:example.org", "#team:example.org"]"##;
        /// Who may speak to the bot on Matrix, beside the admins. Empty means nobody; with `admins` empty too,
        /// "matrix" is refused.
        pub allowed_users: Vec<UserId> = Vec::new(), eg r#"["@ann:example.org"]"#;
        /// Who may speak to the bot on Matrix and also do what concerns everybody.
        pub admins: Vec<UserId> = Vec::new(), eg r#"["@you:example.org"]"#;
        /// Rooms in which every message is for the bot, without a mention.
        pub ambient_rooms: Vec<RoomRef> = Vec::new(), eg r##"["#team:example.org"]"##;
        /// Messages are answered together when each follows the one before within this time …
        pub(crate) coalesce_window_ms: Millis = Millis(1500);
        /// … but the first of them waits no longer than this. Not below `coalesce_window_ms`.
        pub(crate) coalesce_max_ms: Millis = Millis(8000);
        /// How long a turn that is stopped may take to end by itself before it is killed.
        pub(crate) stop_grace_ms: Millis = Millis(5000);
        /// How many messages may wait in a conversation. Past that the sender is told.
        pub max_queue: NonZeroU16 = const { NonZeroU16::new(100).unwrap() };
        /// How many turns run at once, over all conversations. The rest wait in order.
        pub max_concurrent_turns: NonZeroU16 = const { NonZeroU16::new(4).unwrap() };
        /// What a message does that comes while a turn runs: "queue" lets it wait for the turn's end, "interrupt" ends
        /// the turn and answers anew. Each room can change it for itself with `mode`.
        pub mode: RoomMode = RoomMode::Queue;
        /// How long an agent's question for permission waits before it counts as denied.
        pub(crate) permission_timeout_secs: Secs = Secs(300);
        /// Whether a reaction to such a question answers it in encrypted rooms too. Reactions travel unencrypted, so the
        /// homeserver could forge one. In unencrypted rooms they always count; `!approve` and `!deny` count there too.
        pub reaction_approvals: bool = false;
        /// For how many days the texts of messages and answers are kept. After that they are erased for good from the
        /// journals of the gateway and of the sleds in the containers; what happened, and when, stays. The homeserver and
        /// agents keep theirs. Not set: for ever.
        pub retention_days: Option<NonZeroU16> = None, eg "90";
        /// The name that commits made by agents carry. Not set: the one in this host's own git settings (`~/.gitconfig`).
        pub git_user_name: Option<String> = None, eg r#""Ann Other""#;
        /// The mail address that commits made by agents carry. Goes with `git_user_name`.
        pub git_user_email: Option<String> = None, eg r#""ann@example.org""#;
        /// How other machines reach this host by ssh; shown where the bot tells how to open a project.
        pub ssh_host: Option<SshHost> = None, eg r#""ann@build.example.org""#;
    }
    with {
        /// Where people talk: `transport` and what it needs, once all of it is there.
        pub surface: Surface;
        /// `[agent]`
        pub agent: Agent;
        /// `[model]`
        pub model: Model;
        /// `[budget]`
        pub budget: Budget;
        /// `[projects]`
        pub projects: Projects;
        /// `[git]`
        pub git: Git;
        /// `[images]`
        pub images: Images;
        /// `[engine]`
        pub engine: Engine;
        /// `[http]`
        pub http: Http;
    }

    /// What answers in a project's room.
    pub struct Agent in "agent" {
        /// Claude Code; "echo", the practice agent, which only repeats what you say; or a command of your own that speaks
        /// Claude Code's stream-json. Not set: "claude" when there is a model key, otherwise "echo".
        pub(crate) runtime: Option<RuntimeKind> = None, eg r#""claude""#;
        /// The command and its arguments, as found inside the container. Needs `runtime = "command"`.
        pub(crate) command: Vec<String> = Vec::new(), eg r#"["my-agent", "--stream-json"]"#, instead_of "runtime = \"claude\"";
        /// The model that the agent is told to use. Not set: the agent's own choice.
        pub model: Option<String> = None, eg r#""claude-sonnet-4-5""#;
        /// Whether the agent asks people in the room before it uses a tool that changes something, and waits up to
        /// `permission_timeout_secs`. This helps people to keep an eye on it; it is no fence. The container is.
        pub permissions: Permissions = Permissions::AllowInContainer;
        /// How long an agent's process stays up after a turn, so that the conversation's next turn begins at once. Takes
        /// memory meanwhile. 0: it ends with the turn.
        pub(crate) keep_warm_secs: SecsOrZero = SecsOrZero(120);
    }

    /// The model's endpoint. Its key stays with the gateway and never enters a container.
    pub struct Model in "model" {
        /// Where the model API answers. Not set: the provider's own address.
        pub base_url: Option<ServerUrl> = None, eg r#""https://llm.example.org""#;
        /// How the key is sent: in the header `x-api-key`, as a bearer token in `authorization`, or not at all, for a
        /// server of your own that wants none. "none" needs `base_url`.
        pub auth: Auth = Auth::ApiKey;
        /// Headers to add to every request, such as a company's gateway may want, in place of the agent's own; to
        /// `anthropic-beta` the values are added. The key is not one of them.
        pub headers: Headers = Headers::default(), eg r#"{ "x-team" = "tools" }"#;
        /// The model key: the name of a secret that `musher secrets set` has stored. With neither this nor `api_key_file`,
        /// `ANTHROPIC_API_KEY` counts, as the gateway's environment has it at its start.
        pub(crate) api_key_secret: Option<SecretName> = None, eg r#""model-key""#;
        /// The model key: a file that holds it.
        pub(crate) api_key_file: Option<ConfigPath> = None, eg r#""~/.musher/secrets/model-key""#, instead_of "api_key_secret";
        /// What is otherwise for single projects, by their names: any of the settings above, in `[model.projects.myapp]`. A
        /// project with a `base_url` of its own gets neither the key nor the headers from above: name a key there, or say
        /// `auth = "none"`.
        pub(crate) projects: ProjectModels = ProjectModels::default(),
            eg r#"{ "myapp" = { base_url = "http://127.0.0.1:8080", auth = "none" } }"#;
    }

    /// What a project may use of the model in a day, by UTC. Counted by the gateway from the model's own answers. Once it
    /// is used up the turn that runs goes on to its end, messages wait, the room is told, and at 00:00 UTC they go on.
    pub struct Budget in "budget" {
        /// Tokens per project and day, of all kinds together: input, output, cache reads and cache writes.
        /// Not set: no limit.
        pub daily_tokens: Option<NonZeroU64> = None, eg "20000000";
        /// US dollars per project and day. Needs `prices`; a model that has none there counts at the highest of them.
        /// Not set: no limit.
        pub daily_usd: Option<Usd> = None, eg "25.00";
        /// What models cost, in US dollars per million tokens of each kind: for `daily_usd`, and for what `cost` says.
        /// A name stands for all models whose names begin with it; the longest one that fits counts.
        pub prices: Prices = Prices::default(),
            eg "{ \"claude-sonnet\" = { input = 3.00, output = 15.00, cache_read = 0.30, cache_write = 3.75 } }";
    }

    /// Projects and the limits of their containers.
    pub struct Projects in "projects" {
        /// Folders under which projects may be made. The first is where they go unless `--path` says otherwise.
        pub roots: Vec<ConfigPath> = vec![ConfigPath::in_home("musher")];
        /// Processors per project. Not set: no limit.
        pub default_cpus: Option<Cpus> = None, eg "2.5";
        /// Memory per project; swap is not added. Not set: 4 GiB, or half the host's if that is less.
        pub default_memory: Option<Memory> = None, eg r#""4g""#;
        /// Processes and threads per project. At least 64.
        pub pids: NonZeroU32 = const { NonZeroU32::new(4096).unwrap() };
        /// The user that containers run as, where the project's folder belongs to root. Never 0. Not set: 1000.
        pub uid: Option<NonZeroU32> = None, eg "1000";
        /// The group that goes with `uid`. Never 0. Not set: the same number as `uid`.
        pub gid: Option<NonZeroU32> = None, eg "1000";
        /// What containers reach: all that the host reaches, or nothing. Counts for those that are there, too: with
        /// "none", one that has a network is made anew without one at the gateway's next start, even while it runs.
        pub network: Network = Network::Open;
    }

    /// Git servers that projects come from. A credential is a secret whose name says where it counts:
    /// `musher secrets set git:https://example.org` with `user:token`, or `musher secrets set git:ssh://example.org` with a
    /// private key; the longest name that fits counts. It never enters a container.
    pub struct Git in "git" {
        /// Servers in private networks that repositories may come from, by the names or addresses that stand in the
        /// repositories' addresses.
        pub allow_hosts: Vec<HostName> = Vec::new(), eg r#"["git.example.lan", "10.0.0.7"]"#;
        /// Files with the host keys of SSH servers, as OpenSSH writes them. Not set: `~/.ssh/known_hosts` and
        /// `/etc/ssh/ssh_known_hosts`.
        pub known_hosts: Option<Vec<ConfigPath>> = None, eg r#"["~/.ssh/known_hosts"]"#;
    }

    /// How images are made.
    pub struct Images in "images" {
        /// Toolchains from the languages' own releases, or from Debian packages alone.
        pub toolchains: Toolchains = Toolchains::Upstream;
        /// An image to build on, by digest. Not set: one is bootstrapped from a Debian mirror.
        pub base: Option<ImageRef> = None,
            eg r#""registry.example.org/debian@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#;
        /// The Debian mirror to use. Not set: Debian's own.
        pub debian_mirror: Option<MirrorUrl> = None, eg r#""http://mirror.example.org/debian""#;
        /// PEM files of further certificate authorities for images and containers. Not set: this host's
        /// own trust store is carried in. An empty list: nothing is.
        pub extra_ca_certificates: Option<Vec<ConfigPath>> = None, eg r#"["/etc/ssl/certs/company.pem"]"#;
    }

    /// The container engine.
    pub struct Engine in "engine" {
        /// Where its API answers. Not set: `DOCKER_HOST`, then the usual sockets.
        pub host: Option<EngineHost> = None, eg r#""unix:///run/docker.sock""#;
    }

    /// The gateway's own HTTP door: `/healthz` and `/metrics`.
    pub struct Http in "http" {
        /// Where it listens.
        pub listen: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7717);
    }
}

/// Where people talk.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Surface {
    /// The terminal.
    #[default]
    Console,
    /// Matrix rooms.
    Matrix(MatrixAccount),
}

/// The bot's account on a homeserver.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixAccount {
    /// The homeserver.
    pub homeserver: ServerUrl,
    /// How the bot logs in there.
    pub login: MatrixLogin,
}

/// How the bot logs in.
#[derive(Debug, Clone, PartialEq)]
pub enum MatrixLogin {
    /// By name and password.
    Password {
        /// The account's name, or its whole user id.
        username: String,
        /// Where the password is.
        password: PasswordSource,
    },
    /// By the access token that this secret holds.
    AccessToken(SecretName),
}

/// Where the bot's password is.
#[derive(Debug, Clone, PartialEq)]
pub enum PasswordSource {
    /// In bot.toml itself.
    Plain(Secret),
    /// In a file.
    File(ConfigPath),
    /// In the secret of this name.
    Secret(SecretName),
}

/// What answers in a project's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime<'c> {
    /// Claude Code.
    Claude,
    /// The practice agent: built in, it repeats what it is told.
    Echo,
    /// A program and its arguments, never empty.
    Command(&'c [String]),
}

impl Config {
    /// How long a batch stays open after its latest message.
    pub fn coalesce_window(&self) -> Duration {
        self.coalesce_window_ms.duration()
    }

    /// How long a batch stays open after its first message; not below [`Config::coalesce_window`].
    pub fn coalesce_max(&self) -> Duration {
        self.coalesce_max_ms.duration()
    }

    /// How long a stopped turn may take to end by itself.
    pub fn stop_grace(&self) -> Duration {
        self.stop_grace_ms.duration()
    }

    /// How long a question for permission waits.
    pub fn permission_timeout(&self) -> Duration {
        self.permission_timeout_secs.duration()
    }

    /// The tables below the top level, in the order of the example.
    pub(crate) fn sections(&mut self) -> [&mut dyn Section; 8] {
        [
            &mut self.agent,
            &mut self.model,
            &mut self.budget,
            &mut self.projects,
            &mut self.git,
            &mut self.images,
            &mut self.engine,
            &mut self.http,
        ]
    }
}

impl Agent {
    /// What is to answer; nothing when that is decided at start by whether a model key is there.
    pub fn runtime(&self) -> Option<Runtime<'_>> {
        self.runtime.map(|kind| match kind {
            RuntimeKind::Claude => Runtime::Claude,
            RuntimeKind::Echo => Runtime::Echo,
            RuntimeKind::Command => Runtime::Command(&self.command),
        })
    }

    /// How long an agent's process stays up after a turn; zero: not at all.
    pub fn keep_warm(&self) -> Duration {
        self.keep_warm_secs.duration()
    }
}
