//! Every secret of the whole run of a test executable, and where none of them may be (SEC-1).
//!
//! Whatever part of the harness hands a secret out makes it here or tells of it here; what the gateway makes itself is told of
//! when it is found where it belongs. The matcher ([`Matcher`]) knows each in every form in which it is likely to turn up.
//! At the end of each test a home, a console and a client look through what they have seen ([`judge`]); the test
//! `end_to_end/secrets.rs` looks everywhere. A find is told by its place and its kind, never by its value.

mod forms;
mod home;
mod matcher;
mod processes;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, bail};

pub use home::{in_folder, learn};
pub use matcher::Matcher;
pub use processes::Watch;

/// The shortest secret: what is shorter turns up by chance.
const SHORTEST: usize = 12;

/// What a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A model's key or token.
    ModelKey,
    /// The value of a header that goes to a model.
    Header,
    /// What somebody has with a git server over the web.
    GitToken,
    /// A private key for a git server.
    GitKey,
    /// The password of an account on the homeserver.
    MatrixPassword,
    /// An access token of the homeserver's.
    MatrixToken,
    /// The private key of a project's door.
    DoorKey,
    /// The private key of the sshd in a container.
    HostKey,
    /// What somebody has typed as part of an address.
    Typed,
    /// No secret, but something that a search has to find.
    Canary,
}

/// A place in which some secrets may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// `bot.toml`.
    Settings,
    /// The folder `secrets/`.
    Store,
    /// The session of the bot on the homeserver.
    Session,
    /// The private half of a project's door.
    DoorKey,
    /// What the container's sshd reads.
    ContainerDoor,
    /// What people have said in a room themselves.
    Said,
    /// What the homeserver keeps: what was said, until it purges that, and the tokens that it has given out.
    Homeserver,
    /// Everywhere else.
    Elsewhere,
}

/// All that may be anywhere.
const ALLOWED: [(Area, Kind); 13] = [
    (Area::Settings, Kind::MatrixPassword),
    (Area::Settings, Kind::Header),
    (Area::Store, Kind::ModelKey),
    (Area::Store, Kind::GitToken),
    (Area::Store, Kind::GitKey),
    (Area::Store, Kind::MatrixPassword),
    (Area::Store, Kind::MatrixToken),
    (Area::Session, Kind::MatrixToken),
    (Area::DoorKey, Kind::DoorKey),
    (Area::ContainerDoor, Kind::HostKey),
    (Area::Said, Kind::Typed),
    (Area::Homeserver, Kind::MatrixToken),
    (Area::Homeserver, Kind::Typed),
];

/// A secret where it must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Find {
    /// What was looked through.
    pub place: String,
    /// What was found.
    pub kind: Kind,
    /// In which form.
    pub form: Form,
}

/// How a secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As it is.
    Plain,
    /// In base64, somewhere in what was encoded.
    Base64,
    /// In hexadecimal digits.
    Hex,
    /// As part of an address.
    Percent,
}

impl std::fmt::Display for Find {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({:?}) in {}", self.kind, self.form, self.place)
    }
}

/// All secrets so far.
#[derive(Default)]
struct Registry {
    known: HashSet<Vec<u8>>,
    patterns: Vec<(Vec<u8>, Kind, Form)>,
    /// Of all patterns; made when it is wanted.
    matcher: Option<Arc<Matcher>>,
}

/// The run's. A search has to know what other tests have made, too.
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

impl Registry {
    fn with<T>(act: impl FnOnce(&mut Self) -> T) -> T {
        let mut guard: MutexGuard<'_, Option<Self>> = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        act(guard.get_or_insert_default())
    }

    fn add(&mut self, kind: Kind, forms: impl IntoIterator<Item = (Vec<u8>, Form)>) {
        for (pattern, form) in forms {
            if self.known.insert(pattern.clone()) {
                self.patterns.push((pattern, kind, form));
                self.matcher = None;
            }
        }
    }
}

/// A new secret: letters and digits, of which no other is a part. A canary can be a project's name.
pub fn mint(kind: Kind) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let value = match kind {
        Kind::ModelKey => format!("sk-test-{random}"),
        Kind::Canary => format!("c{}", &random[..24]),
        _ => random,
    };
    register(kind, &value);
    value
}

/// Tells of a secret that was made elsewhere. One that is too short to be told from chance is a fault of the test.
pub fn register(kind: Kind, value: &str) {
    assert!(value.len() >= SHORTEST, "a secret of {} bytes is found everywhere", value.len());
    Registry::with(|registry| registry.add(kind, forms::of_bytes(value.as_bytes())));
}

/// Tells of a private key, as OpenSSH writes it.
pub fn register_key(kind: Kind, key: &str) -> Result<()> {
    let forms = forms::of_key(key)?;
    Registry::with(|registry| registry.add(kind, forms));
    Ok(())
}

/// Finds all secrets of which has been told so far.
pub fn matcher() -> Result<Arc<Matcher>> {
    Registry::with(|registry| {
        if let Some(matcher) = &registry.matcher {
            return Ok(Arc::clone(matcher));
        }
        let matcher = Arc::new(Matcher::new(&registry.patterns)?);
        registry.matcher = Some(Arc::clone(&matcher));
        Ok(matcher)
    })
}

/// What of the kinds found in a place must not be there.
pub fn forbidden(area: Area, place: &str, found: &BTreeSet<(Kind, Form)>) -> Vec<Find> {
    let wrong = found.iter().filter(|(kind, _)| !ALLOWED.contains(&(area, *kind)));
    wrong.map(|(kind, form)| Find { place: place.to_owned(), kind: *kind, form: *form }).collect()
}

/// What must not be in `bytes`.
pub fn in_bytes(area: Area, place: &str, bytes: &[u8]) -> Result<Vec<Find>> {
    Ok(forbidden(area, place, &matcher()?.bytes(bytes)))
}

/// Fails where something was found that is no canary.
pub fn none(finds: &[Find]) -> Result<()> {
    let finds: Vec<String> = finds.iter().filter(|find| find.kind != Kind::Canary).map(ToString::to_string).collect();
    if finds.is_empty() {
        return Ok(());
    }
    bail!("secrets are where they must not be:\n{}", finds.join("\n"))
}

/// Fails the test from within a destructor, unless it has failed already; then it is told beside that.
pub fn judge(finds: Result<Vec<Find>>) {
    let Err(error) = finds.and_then(|finds| none(&finds)) else { return };
    assert!(std::thread::panicking(), "{error:#}");
    eprintln!("{error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_in_one_place_is_not_in_another() -> Result<()> {
        let (key, typed) = (mint(Kind::ModelKey), mint(Kind::Typed));
        let text = format!("{key} https://ann:{typed}@example.org");
        assert_eq!(in_bytes(Area::Store, "x", key.as_bytes())?, []);
        assert_eq!(in_bytes(Area::Said, "x", typed.as_bytes())?, []);
        let found = in_bytes(Area::Said, "a room", text.as_bytes())?;
        assert_eq!(found, [Find { place: "a room".into(), kind: Kind::ModelKey, form: Form::Plain }]);
        let told = none(&found).expect_err("it was found").to_string();
        assert!(told.contains("ModelKey (Plain) in a room") && !told.contains(&key), "{told}");
        none(&in_bytes(Area::Elsewhere, "x", mint(Kind::Canary).as_bytes())?)
    }

    #[test]
    fn a_test_that_left_a_secret_fails() {
        let find = Find { place: "x".into(), kind: Kind::GitToken, form: Form::Hex };
        assert!(std::panic::catch_unwind(|| judge(Ok(vec![find]))).is_err());
        judge(Ok(vec![Find { place: "x".into(), kind: Kind::Canary, form: Form::Plain }]));
    }
}
