//! The Matrix surface: a bot account on a homeserver (MTX-1, MTX-4, MTX-5, MTX-9).
//!
//! matrix-sdk lives in this folder alone, and none of its types leaves it. The surface knows nothing of
//! projects and commands; it hands messages to the inbox and moves its position in the homeserver's
//! stream only after the inbox has taken them. It never logs out.
//!
//! `login` opens or restores the session, `sync` receives, `walk` closes gaps, `parked` sees to rooms whose gaps take long, `handover`
//! gives the inbox what `intake` reads in single events, `rooms` joins and declines, `ambient` knows where every message counts, `answered` which have their answer, `encrypted` refuses,
//! `send`, `marks` and `typing` speak, `replaced` knows where a room's people have gone on, `take_back` takes out what was said, `find` looks for what was said, `html` formats, `failure` reads errors.

mod ambient;
mod answered;
mod encrypted;
mod failure;
mod find;
mod handover;
mod html;
mod intake;
mod login;
mod marks;
mod parked;
mod replaced;
mod rooms;
mod seen;
mod send;
mod sync;
mod take_back;
mod typing;
mod walk;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use matrix_sdk::{
    Client,
    ruma::{OwnedRoomId, RoomOrAliasId},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use self::{ambient::Ambient, marks::Marks, parked::Parked, seen::Seen, typing::Typing};
use super::{Inbox, Mark, Outbound, Person, Room, SendError, Surface, SurfaceKind};
use crate::refusal::Refusal;

/// What the surface needs to know to start.
#[derive(Debug, Clone)]
pub struct MatrixSettings {
    /// The homeserver's base URL for clients.
    pub homeserver: Url,
    /// How to become the bot.
    pub login: Login,
    /// Rooms, by id (`!…`) or alias (`#…`), that are joined at start where that is allowed.
    pub room_ids: Vec<String>,
    /// Rooms, by id or alias, in which every message is meant for the bot.
    pub ambient: Vec<String>,
    /// The folder for session and store. It belongs to the surface alone.
    pub store_dir: PathBuf,
    /// The name that people see for the bot's device, set when it logs in anew.
    pub device_name: String,
}

/// How to become the bot.
#[derive(Debug, Clone)]
pub enum Login {
    /// With a password, which makes a device of our own.
    Password {
        /// The user's localpart, or its full id.
        username: String,
        /// Its password.
        password: Secret,
    },
    /// With an access token; user and device are those that the homeserver names for it.
    Token {
        /// The token.
        access_token: Secret,
    },
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why the surface could not start.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// The homeserver refuses the password.
    #[error("{homeserver} does not accept the password of {username}")]
    WrongPassword {
        /// The homeserver.
        homeserver: String,
        /// Whose password it was to be.
        username: String,
    },
    /// The homeserver does not know the configured access token.
    #[error("{homeserver} does not know the access token")]
    UnknownToken {
        /// The homeserver.
        homeserver: String,
    },
    /// The homeserver refuses the login for a reason of its own.
    #[error("{homeserver} refuses the login: {reason}")]
    LoginRefused {
        /// The homeserver.
        homeserver: String,
        /// Its own word.
        reason: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// Nobody answers, or something else than a homeserver does.
    #[error("{homeserver} cannot be reached as a Matrix homeserver: {reason}")]
    Unreachable {
        /// The homeserver.
        homeserver: String,
        /// What happened.
        reason: String,
    },
    /// The stored session is of another account than the settings name.
    #[error("the Matrix store belongs to {stored}, and the settings name {configured}")]
    OtherAccount {
        /// User and homeserver of the store.
        stored: String,
        /// User or homeserver of the settings.
        configured: String,
        /// Where the store is.
        store_dir: PathBuf,
    },
    /// Something in `room_ids` or `ambient` is not a room.
    #[error("`{0}` is neither a room id nor a room alias")]
    NotARoom(String),
    /// Session or store cannot be read or written.
    #[error("the Matrix store in {store_dir} cannot be used")]
    Store {
        /// Where the store is.
        store_dir: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl MatrixError {
    /// How long to wait at least before trying again.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LoginRefused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What ends the gateway: nearly all of it is for a person to set right. A store that fails may be well at the next start.
    pub fn into_refusal(self) -> Refusal {
        let (what, hint) = (self.to_string(), self.hint());
        match self {
            Self::Store { source, .. } => Refusal::internal(what, source),
            _ => Refusal::config(what),
        }
        .hint(hint)
    }

    /// What the person can do about it, one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::WrongPassword { .. } => "Check username and password in bot.toml; the account must exist on that homeserver.".to_owned(),
            Self::UnknownToken { .. } => {
                "Put a fresh access token of the bot into the secret that access_token_secret names; it must not belong to a session that was logged out.".to_owned()
            }
            Self::LoginRefused { retry_after: Some(wait), .. } => format!("Try again in {} s.", wait.as_secs().max(1)),
            Self::LoginRefused { .. } => "Check the account on the homeserver, and that it allows this kind of login.".to_owned(),
            Self::Unreachable { .. } => {
                "Check homeserver in bot.toml: it is the base URL for clients, such as https://matrix.example.org, and must be reachable from this machine.".to_owned()
            }
            Self::OtherAccount { store_dir, .. } => format!(
                "Set username and homeserver back, or move {} away to start as the other account.",
                store_dir.display()
            ),
            Self::NotARoom(_) => "Write room_ids and ambient_rooms like \"!abc:example.org\" or \"#name:example.org\".".to_owned(),
            Self::Store { store_dir, .. } => {
                format!("Check that {} is readable, writable and not full; moved away, the bot logs in anew.", store_dir.display())
            }
        }
    }
}

/// A bot account on a homeserver, seen as a surface.
pub struct MatrixSurface {
    /// Itself, for what it runs beside the sync loop.
    this: Weak<Self>,
    settings: MatrixSettings,
    inbox: Arc<dyn Inbox>,
    shutdown: CancellationToken,
    /// What runs beside the sync loop: joining, declining, looking for rooms, refusing, typing.
    tasks: TaskTracker,
    /// Replaced when the bot had to log in anew.
    client: watch::Sender<Client>,
    /// Why nothing is received, if so.
    trouble: watch::Sender<Option<String>>,
    /// Whether the client knows its rooms and which are encrypted: it has the answer to a sync since it was opened.
    rooms_known: AtomicBool,
    /// Whether the inbox has taken what the first sync since the client was opened told.
    synced: AtomicBool,
    /// How long the sync loop waits for what the homeserver does not give.
    patience: Duration,
    parked: Parked,
    seen: Mutex<Seen>,
    /// Since when what is on its way to a room has waited for the bot to follow its people.
    left_behind: Mutex<HashMap<OwnedRoomId, Instant>>,
    typing: Typing,
    marks: Mutex<Marks>,
    /// Told when there is a mark to be shown.
    marked: Notify,
    ambient: Ambient,
    /// Encrypted rooms in which people were told that nothing is taken.
    refused: Mutex<HashSet<OwnedRoomId>>,
    /// Rooms that are being joined or declined.
    rooms_in_hand: Mutex<HashSet<OwnedRoomId>>,
}

impl MatrixSurface {
    /// Opens the stored session or logs in, and gives the surface with the loop that receives.
    ///
    /// The loop ends some time after `shutdown`, when everything that the surface runs has ended; it
    /// should be awaited, not dropped, so that nobody sees the bot typing for ever. A homeserver that
    /// cannot be reached is an error only when there is no session yet; otherwise the loop waits for it.
    pub async fn start(
        settings: MatrixSettings,
        inbox: Arc<dyn Inbox>,
        shutdown: CancellationToken,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static), MatrixError> {
        Self::start_with(settings, inbox, shutdown, sync::PATIENCE).await
    }

    /// As [`MatrixSurface::start`], with another patience for what the homeserver does not give.
    async fn start_with(
        settings: MatrixSettings,
        inbox: Arc<dyn Inbox>,
        shutdown: CancellationToken,
        patience: Duration,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static), MatrixError> {
        if let Some(wrong) =
            settings.room_ids.iter().chain(&settings.ambient).find(|room| RoomOrAliasId::parse(room).is_err())
        {
            return Err(MatrixError::NotARoom(wrong.clone()));
        }
        let client = login::connect(&settings).await?;
        let ambient = Ambient::named(&settings.ambient);
        let surface = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            settings,
            inbox,
            shutdown,
            tasks: TaskTracker::new(),
            client: watch::Sender::new(client),
            trouble: watch::Sender::new(Some("the first sync is not done".to_owned())),
            rooms_known: AtomicBool::new(false),
            synced: AtomicBool::new(false),
            patience,
            parked: Parked::default(),
            seen: Mutex::new(Seen::default()),
            left_behind: Mutex::default(),
            typing: Typing::default(),
            marks: Mutex::new(Marks::new(Instant::now())),
            marked: Notify::new(),
            ambient,
            refused: Mutex::new(HashSet::new()),
            rooms_in_hand: Mutex::new(HashSet::new()),
        });
        let receiving = Arc::clone(&surface).run();
        Ok((surface, receiving))
    }

    /// Waits until the homeserver has answered, and all that it said is taken.
    pub async fn in_touch(&self) {
        // Its other end is the surface's own: there is nothing that could end it.
        drop(self.trouble.subscribe().wait_for(Option::is_none).await);
    }

    /// The bot's name, as people write it after an `@`.
    pub fn bot(&self) -> String {
        self.client().user_id().map(|user| user.localpart().to_owned()).unwrap_or_default()
    }

    /// Whether the inbox listens to this user.
    fn listens_to(&self, user: &str) -> bool {
        self.inbox.listens_to(&Person { surface: SurfaceKind::Matrix, id: user.to_owned() })
    }

    fn client(&self) -> Client {
        self.client.borrow().clone()
    }

    /// The client, once it knows its rooms.
    fn knowing_client(&self) -> Option<Client> {
        // In this order: a new one is put in its place after it is said that the rooms are not known.
        let client = self.client();
        self.rooms_known.load(Ordering::Acquire).then_some(client)
    }
}

impl fmt::Debug for MatrixSurface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MatrixSurface").field("homeserver", &self.settings.homeserver.as_str()).finish_non_exhaustive()
    }
}

impl Surface for MatrixSurface {
    fn kind(&self) -> SurfaceKind {
        SurfaceKind::Matrix
    }

    fn send<'a>(&'a self, room: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        self.put(room, message, None).boxed()
    }

    fn longest(&self) -> usize {
        send::LONGEST
    }

    fn edit<'a>(
        &'a self,
        room: &'a Room,
        event_id: &'a str,
        message: &'a Outbound,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        async move { self.put(room, message, Some(event_id)).await.map(drop) }.boxed()
    }

    fn find<'a>(
        &'a self,
        room: &'a Room,
        transaction: &'a str,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        self.find_sent(room, transaction, since).boxed()
    }

    fn mark(&self, room: &Room, event_id: &str, mark: Mark) {
        if let Err(error) = self.want_mark(room, event_id, mark) {
            tracing::warn!(%room, event_id, %error, "a mark is not shown");
        }
    }

    fn take_back<'a>(
        &'a self,
        room: &'a Room,
        event_id: &'a str,
        transaction: &'a str,
        why: &'a str,
    ) -> BoxFuture<'a, Result<String, SendError>> {
        self.redact(room, event_id, transaction, why).boxed()
    }

    fn typing<'a>(&'a self, room: &'a Room, on: bool) -> BoxFuture<'a, ()> {
        self.show_typing(room, on);
        std::future::ready(()).boxed()
    }

    fn edit_interval(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn health(&self) -> Result<(), String> {
        self.trouble.borrow().clone().or_else(|| self.parked.trouble()).map_or(Ok(()), Err)
    }
}

/// Locks what no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
