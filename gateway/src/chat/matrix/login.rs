//! Becoming the bot: restoring the stored session, or logging in, with one store per device (MTX-1).
//!
//! `session.json` names the device, and the device names its store, so the two cannot be mixed up: a new
//! login has a new device and with it a new store, and the old one stays aside. Only the homeserver's
//! word that it does not know the token leads to a new login. There is no logout here.

use std::path::PathBuf;

use jiff::Timestamp;
use matrix_sdk::{
    Client, SessionMeta, SessionTokens,
    authentication::matrix::MatrixSession,
    config::RequestConfig,
    ruma::{
        OwnedDeviceId, OwnedUserId,
        api::{
            IncomingResponse,
            client::{
                account::whoami,
                session::login::v3 as login,
                uiaa::{MatrixUserIdentifier, UiaaResponse, UserIdentifier},
            },
        },
        assign,
        exports::http,
    },
    store::{RoomLoadSettings, StateStoreDataKey, StateStoreDataValue},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use url::Url;

use super::{Login, MatrixError, MatrixSettings, failure::Failure, parked::Places};
use crate::home::{make_private, write_private};

/// How long one request may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// Under this key the position is in the device's store.
const POSITION_KEY: &[u8] = b"dev.musher.position";
/// Under this key stands which rooms are set aside. Older stores have none.
const PARKED_KEY: &[u8] = b"dev.musher.parked";

/// Who the bot is, as it is stored in `session.json`. No `Debug`: it holds the token.
#[derive(Clone, Serialize, Deserialize)]
struct Session {
    homeserver: Url,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    access_token: String,
}

/// Up to where the inbox has taken everything, in all rooms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Position {
    /// A place in the homeserver's stream.
    Token {
        /// A token of the sync stream.
        token: String,
        /// The position was reached with another store: this one knows nothing of the rooms yet, and cannot
        /// go on from there.
        store_is_new: bool,
    },
    /// The place was lost with the store; what was said since then may not have been taken.
    Time {
        /// The moment.
        since: Timestamp,
    },
}

impl Position {
    /// The token from which this store can go on.
    pub(super) fn resumable(&self) -> Option<&str> {
        match self {
            Self::Token { token, store_is_new: false } => Some(token),
            _ => None,
        }
    }
}

/// What a new device's store takes over from the old one's.
#[derive(Debug)]
struct Carried {
    position: Position,
    parked: Places,
}

/// Restores the stored session; logs in where there is none, or where the homeserver does not know it any more.
pub(super) async fn connect(settings: &MatrixSettings) -> Result<Client, MatrixError> {
    make_private(&settings.store_dir).map_err(|error| store_error(settings, error))?;
    let Some(stored) = read_session(settings)? else {
        let session = log_in(settings, None).await?;
        return begin(settings, session, None).await;
    };
    check_account(settings, &stored)?;
    let session = match &settings.login {
        Login::Token { access_token } if access_token.expose() != stored.access_token => {
            identify(settings, access_token.expose()).await?
        }
        _ => stored.clone(),
    };
    if session.user_id != stored.user_id {
        return Err(other_account(settings, &stored, session.user_id.as_str()));
    }
    if session.device_id != stored.device_id {
        let carried = carried(settings, &stored).await;
        return begin(settings, session, carried).await;
    }
    let client = resume(settings, &session).await?;
    match client.whoami().await {
        Ok(who)
            if who.user_id == session.user_id
                && who.device_id.as_ref().is_none_or(|device| *device == session.device_id) =>
        {
            if session.access_token != stored.access_token {
                write_session(settings, &session)?;
            }
            Ok(client)
        }
        Ok(who) => Err(other_account(settings, &stored, who.user_id.as_str())),
        Err(error) => match Failure::from(error) {
            Failure::UnknownToken { soft } => renew(settings, soft).await,
            failure => {
                warn!("the stored session could not be checked: {}", failure.reason());
                Ok(client)
            }
        },
    }
}

/// Logs in anew after the homeserver said that it does not know the token. A `soft` logout keeps device
/// and store; otherwise both are new, and only the position in the stream is carried over.
pub(super) async fn renew(settings: &MatrixSettings, soft: bool) -> Result<Client, MatrixError> {
    let Some(stored) = read_session(settings)? else {
        let session = log_in(settings, None).await?;
        return begin(settings, session, None).await;
    };
    info!(user = %stored.user_id, soft, "the homeserver does not know the session any more, logging in anew");
    let session = log_in(settings, soft.then(|| stored.device_id.clone())).await?;
    if session.user_id != stored.user_id {
        return Err(other_account(settings, &stored, session.user_id.as_str()));
    }
    let carried = if session.device_id == stored.device_id { None } else { carried(settings, &stored).await };
    begin(settings, session, carried).await
}

/// The position that was stored last.
pub(super) async fn position(client: &Client) -> Result<Option<Position>, Failure> {
    let stored = client.state_store().get_custom_value(POSITION_KEY).await.map_err(local)?;
    stored.map(|bytes| serde_json::from_slice(&bytes).map_err(local)).transpose()
}

/// Stores the position.
pub(super) async fn set_position(client: &Client, position: &Position) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(position).map_err(local)?;
    client.state_store().set_custom_value_no_read(POSITION_KEY, bytes).await.map_err(local)
}

/// From where on rooms are not heard that are set aside.
pub(super) async fn parked(client: &Client) -> Result<Places, Failure> {
    let stored = client.state_store().get_custom_value(PARKED_KEY).await.map_err(local)?;
    stored.map_or(Ok(Places::new()), |bytes| serde_json::from_slice(&bytes).map_err(local))
}

/// Stores which rooms are set aside.
pub(super) async fn set_parked(client: &Client, places: &Places) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(places).map_err(local)?;
    client.state_store().set_custom_value_no_read(PARKED_KEY, bytes).await.map_err(local)
}

fn local(error: impl std::error::Error) -> Failure {
    Failure::Local { reason: format!("the Matrix store failed: {error}") }
}

/// Makes the session the stored one and opens it.
async fn begin(settings: &MatrixSettings, session: Session, carried: Option<Carried>) -> Result<Client, MatrixError> {
    // The position first: once session.json names the device, its store is complete.
    if let Some(Carried { position, parked }) = carried {
        let client = open(settings, Some(&session)).await?;
        let failed = |failure: Failure| store_error(settings, failure.reason().to_owned());
        set_parked(&client, &parked).await.map_err(failed)?;
        let position = match position {
            Position::Token { token, .. } => Position::Token { token, store_is_new: true },
            time @ Position::Time { .. } => time,
        };
        set_position(&client, &position).await.map_err(failed)?;
    }
    write_session(settings, &session)?;
    resume(settings, &session).await
}

/// Opens the session's store with the session in it.
async fn resume(settings: &MatrixSettings, session: &Session) -> Result<Client, MatrixError> {
    let client = open(settings, Some(session)).await?;
    let position = position(&client).await.map_err(|failure| store_error(settings, failure.reason().to_owned()))?;
    // The SDK drops an answer whose token it has stored already. Where it got further than the inbox, that
    // would lose messages, so it is put back.
    let store = client.state_store();
    match position.as_ref().and_then(Position::resumable) {
        Some(token) => {
            store.set_kv_data(StateStoreDataKey::SyncToken, StateStoreDataValue::SyncToken(token.to_owned())).await
        }
        None => store.remove_kv_data(StateStoreDataKey::SyncToken).await,
    }
    .map_err(|error| store_error(settings, error))?;
    let session = MatrixSession {
        meta: SessionMeta { user_id: session.user_id.clone(), device_id: session.device_id.clone() },
        tokens: SessionTokens { access_token: session.access_token.clone(), refresh_token: None },
    };
    client
        .matrix_auth()
        .restore_session(session, RoomLoadSettings::default())
        .await
        .map_err(|error| store_error(settings, error))?;
    Ok(client)
}

/// A client on the session's store, or on none; nothing is sent.
async fn open(settings: &MatrixSettings, session: Option<&Session>) -> Result<Client, MatrixError> {
    let mut builder = Client::builder()
        .homeserver_url(&settings.homeserver)
        // The token goes to the homeserver that the operator named, and to no other.
        .respect_login_well_known(false)
        .request_config(RequestConfig::new().disable_retry().timeout(PATIENCE));
    if let Some(session) = session {
        let store = store_path(settings, session);
        make_private(&store).map_err(|error| store_error(settings, error))?;
        builder = builder.sqlite_store(store, None);
    }
    builder.build().await.map_err(|error| store_error(settings, error))
}

/// The position of the old device's store, and what is set aside there; without it, the inbox is asked for the newest message that
/// it knows.
async fn carried(settings: &MatrixSettings, old: &Session) -> Option<Carried> {
    let read = async {
        let client = open(settings, Some(old)).await.map_err(local)?;
        let Some(position) = position(&client).await? else { return Ok::<_, Failure>(None) };
        Ok(Some(Carried { position, parked: parked(&client).await? }))
    };
    read.await
        .inspect_err(|failure| warn!("the old device's position is lost: {}", failure.reason()))
        .unwrap_or_default()
}

/// Asks the homeserver for a session; nothing is stored.
async fn log_in(settings: &MatrixSettings, device: Option<OwnedDeviceId>) -> Result<Session, MatrixError> {
    let (username, password) = match &settings.login {
        Login::Password { username, password } => (username, password),
        Login::Token { access_token } => return identify(settings, access_token.expose()).await,
    };
    let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(username.clone()));
    let info = login::LoginInfo::Password(login::Password::new(user, password.expose().to_owned()));
    let request = assign!(login::Request::new(info), {
        device_id: device,
        initial_device_display_name: Some(settings.device_name.clone()),
    });
    // Not the SDK's own login: that would make keys for the device in whatever store is open.
    match open(settings, None).await?.send(request).await {
        Ok(answer) => Ok(Session {
            homeserver: settings.homeserver.clone(),
            user_id: answer.user_id,
            device_id: answer.device_id,
            access_token: answer.access_token,
        }),
        Err(error) => Err(match Failure::from(error) {
            Failure::Permanent { forbidden: true, .. } => {
                MatrixError::WrongPassword { homeserver: settings.homeserver.to_string(), username: username.clone() }
            }
            failure => login_error(settings, failure),
        }),
    }
}

/// Asks the homeserver whose token this is.
async fn identify(settings: &MatrixSettings, token: &str) -> Result<Session, MatrixError> {
    let unreachable = |failure: Failure| login_error(settings, failure);
    let url = settings
        .homeserver
        .join("_matrix/client/v3/account/whoami")
        .map_err(|error| unreachable(Failure::Local { reason: error.to_string() }))?;
    let ask = async {
        // Not the SDK's own request: it needs a session, and a session makes keys.
        let answer =
            open(settings, None).await?.http_client().get(url).bearer_auth(token).timeout(PATIENCE).send().await;
        let answer = answer.map_err(|error| unreachable(Failure::from(matrix_sdk::HttpError::from(error))))?;
        let status = answer.status();
        let body =
            answer.bytes().await.map_err(|error| unreachable(Failure::from(matrix_sdk::HttpError::from(error))))?;
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        whoami::v3::Response::try_from_http_response(response).map_err(|error| {
            unreachable(Failure::from(matrix_sdk::HttpError::from(error.map(UiaaResponse::MatrixError))))
        })
    };
    let who = ask.await?;
    let device_id = who.device_id.ok_or_else(|| MatrixError::LoginRefused {
        homeserver: settings.homeserver.to_string(),
        reason: format!("the access token of {} belongs to no device", who.user_id),
        retry_after: None,
    })?;
    Ok(Session {
        homeserver: settings.homeserver.clone(),
        user_id: who.user_id,
        device_id,
        access_token: token.to_owned(),
    })
}

fn login_error(settings: &MatrixSettings, failure: Failure) -> MatrixError {
    let homeserver = settings.homeserver.to_string();
    match failure {
        Failure::UnknownToken { .. } => MatrixError::UnknownToken { homeserver },
        Failure::Permanent { reason, .. } => MatrixError::LoginRefused { homeserver, reason, retry_after: None },
        Failure::Transient { reason, retry_after: Some(wait) } => {
            MatrixError::LoginRefused { homeserver, reason, retry_after: Some(wait) }
        }
        failure => MatrixError::Unreachable { homeserver, reason: failure.reason().to_owned() },
    }
}

fn check_account(settings: &MatrixSettings, stored: &Session) -> Result<(), MatrixError> {
    if stored.homeserver != settings.homeserver {
        return Err(other_account(settings, stored, settings.homeserver.as_str()));
    }
    match &settings.login {
        Login::Password { username, .. } if !is_user(username, &stored.user_id) => {
            Err(other_account(settings, stored, username))
        }
        _ => Ok(()),
    }
}

/// Whether a username, a localpart or a full id, is this user.
fn is_user(username: &str, user: &OwnedUserId) -> bool {
    let bare = username.strip_prefix('@').unwrap_or(username);
    username == user.as_str() || bare == user.localpart()
}

fn other_account(settings: &MatrixSettings, stored: &Session, configured: &str) -> MatrixError {
    MatrixError::OtherAccount {
        stored: format!("{} on {}", stored.user_id, stored.homeserver),
        configured: configured.to_owned(),
        store_dir: settings.store_dir.clone(),
    }
}

fn store_error(settings: &MatrixSettings, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> MatrixError {
    MatrixError::Store { store_dir: settings.store_dir.clone(), source: source.into() }
}

/// A device's own store. The homeserver chooses the device's name, so it does not become a path as it is.
fn store_path(settings: &MatrixSettings, session: &Session) -> PathBuf {
    let digest = Sha256::digest(session.device_id.as_bytes());
    settings.store_dir.join(format!("device-{}", hex::encode(&digest[..8])))
}

fn session_path(settings: &MatrixSettings) -> PathBuf {
    settings.store_dir.join("session.json")
}

fn read_session(settings: &MatrixSettings) -> Result<Option<Session>, MatrixError> {
    match std::fs::read(session_path(settings)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| store_error(settings, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(store_error(settings, error)),
    }
}

fn write_session(settings: &MatrixSettings, session: &Session) -> Result<(), MatrixError> {
    let bytes = serde_json::to_vec_pretty(session).map_err(|error| store_error(settings, error))?;
    write_private(&session_path(settings), &bytes).map_err(|error| store_error(settings, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use matrix_sdk::ruma::{device_id, room_id, user_id};

    use super::*;
    use crate::{
        chat::matrix::{Secret, walk::Until},
        refusal::Kind,
    };

    /// Settings for a homeserver that refuses connections: nothing here may need one.
    fn settings(store_dir: PathBuf) -> MatrixSettings {
        MatrixSettings {
            homeserver: Url::parse("http://127.0.0.1:1").expect("a URL"),
            login: Login::Password { username: "musher".to_owned(), password: Secret::from("secret".to_owned()) },
            room_ids: Vec::new(),
            ambient: Vec::new(),
            store_dir,
            device_name: "Musher".to_owned(),
        }
    }

    fn session(settings: &MatrixSettings, device: &str) -> Session {
        Session {
            homeserver: settings.homeserver.clone(),
            user_id: user_id!("@musher:example.org").to_owned(),
            device_id: device.into(),
            access_token: "token".to_owned(),
        }
    }

    async fn sync_token(client: &Client) -> Option<String> {
        let stored = client.state_store().get_kv_data(StateStoreDataKey::SyncToken).await.expect("it can be read");
        stored.and_then(StateStoreDataValue::into_sync_token)
    }

    #[tokio::test]
    async fn a_stored_session_is_restored_without_the_homeserver_and_keeps_its_position() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = settings(dir.path().join("matrix"));
        make_private(&settings.store_dir).expect("it can be made");
        write_session(&settings, &session(&settings, "DEVICE")).expect("it can be written");
        let mode = |path: PathBuf| path.metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(settings.store_dir.clone()), mode(session_path(&settings))), (0o700, 0o600));

        let client = connect(&settings).await.expect("it is restored");
        assert_eq!(client.device_id(), Some(device_id!("DEVICE")));
        assert_eq!(position(&client).await, Ok(None));
        let taken = Position::Token { token: "s1".to_owned(), store_is_new: false };
        set_position(&client, &taken).await.expect("it can be stored");
        // The SDK is further than the inbox.
        let further = StateStoreDataValue::SyncToken("s2".to_owned());
        client.state_store().set_kv_data(StateStoreDataKey::SyncToken, further).await.expect("it can be stored");
        drop(client);

        let client = connect(&settings).await.expect("it is restored");
        assert_eq!(position(&client).await, Ok(Some(taken)));
        assert_eq!(sync_token(&client).await.as_deref(), Some("s1"));
    }

    #[tokio::test]
    async fn a_new_device_has_a_store_of_its_own_and_takes_over_the_position_and_what_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = settings(dir.path().to_owned());
        let (old, new) = (session(&settings, "OLD"), session(&settings, "../NEW"));
        let client = begin(&settings, old.clone(), None).await.expect("it opens");
        set_position(&client, &Position::Token { token: "s1".to_owned(), store_is_new: false })
            .await
            .expect("it can be stored");
        assert_eq!(parked(&client).await, Ok(Places::new()), "nothing was ever set aside");
        let places = Places::from([
            (room_id!("!a:example.org").to_owned(), Until::Token("s0".to_owned())),
            (room_id!("!b:example.org").to_owned(), Until::Time(Timestamp::UNIX_EPOCH)),
        ]);
        set_parked(&client, &places).await.expect("it can be stored");
        drop(client);

        let carried = carried(&settings, &old).await;
        let client = begin(&settings, new.clone(), carried).await.expect("it opens");
        assert_eq!(parked(&client).await, Ok(places));
        assert_eq!(position(&client).await, Ok(Some(Position::Token { token: "s1".to_owned(), store_is_new: true })));
        assert_eq!(sync_token(&client).await, None);
        let (old, new) = (store_path(&settings, &old), store_path(&settings, &new));
        assert_ne!(old, new);
        assert!(old.is_dir() && new.is_dir());
        assert_eq!(new.parent(), Some(dir.path()));
    }

    #[tokio::test]
    async fn other_accounts_and_damaged_sessions_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut settings = settings(dir.path().to_owned());
        let unreachable = connect(&settings).await.expect_err("there is no session and nobody answers");
        assert!(matches!(unreachable, MatrixError::Unreachable { .. }), "{unreachable:?}");
        assert_eq!(dir.path().read_dir().expect("it is there").count(), 0);

        write_session(&settings, &session(&settings, "DEVICE")).expect("it can be written");
        let before = std::fs::read(session_path(&settings)).expect("it is there");
        settings.login =
            Login::Password { username: "@musher:elsewhere.org".to_owned(), password: Secret::from("x".to_owned()) };
        let other = connect(&settings).await.expect_err("another user");
        assert!(matches!(other, MatrixError::OtherAccount { .. }), "{other:?}");
        settings.homeserver = Url::parse("http://127.0.0.1:2").expect("a URL");
        settings.login = Login::Token { access_token: Secret::from("token".to_owned()) };
        let other = connect(&settings).await.expect_err("another homeserver");
        assert!(matches!(other, MatrixError::OtherAccount { .. }), "{other:?}");
        assert_eq!(std::fs::read(session_path(&settings)).expect("it is there"), before);

        std::fs::write(session_path(&settings), "{").expect("it can be written");
        let damaged = connect(&settings).await.expect_err("it is damaged");
        assert!(matches!(damaged, MatrixError::Store { .. }), "{damaged:?}");
        assert_eq!(std::fs::read(session_path(&settings)).expect("it is there"), b"{");
        // The disk may be well at the next start, and settings are not by themselves.
        let (damaged, other) = (damaged.into_refusal(), other.into_refusal());
        assert_eq!((damaged.kind, other.kind), (Kind::Internal, Kind::Config));
        assert!(damaged.sentence().contains("cannot be used: "), "what happened is told: {damaged}");
    }

    #[test]
    fn a_stored_position_is_read_back_whatever_its_kind() {
        let token = |store_is_new| Position::Token { token: "s1".to_owned(), store_is_new };
        let time = Position::Time { since: Timestamp::from_second(1_700_000_000).expect("a time") };
        for (position, resumable) in [(token(false), Some("s1")), (token(true), None), (time, None)] {
            let stored = serde_json::to_string(&position).expect("it can be written");
            assert_eq!(serde_json::from_str::<Position>(&stored).expect("it can be read"), position, "{stored}");
            assert_eq!(position.resumable(), resumable);
        }
    }

    #[test]
    fn usernames_are_localparts_or_full_ids() {
        let user = user_id!("@musher:example.org").to_owned();
        for same in ["musher", "@musher", "@musher:example.org"] {
            assert!(is_user(same, &user), "{same}");
        }
        for other in ["mush", "@musher:elsewhere.org", "ann", ""] {
            assert!(!is_user(other, &user), "{other}");
        }
    }
}
