//! Models of single projects, `[model.projects.<name>]`, and what of `[model]` counts for them.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use crate::address::ServerUrl;
use crate::choice::Auth;
use crate::names::{ConfigPath, Headers, SecretName};
use crate::read::nearest;
use crate::settings::Model;
use crate::value::{Problems, Value, quoted, wrong_type};

const KEYS: [&str; 5] = ["base_url", "auth", "headers", "api_key_secret", "api_key_file"];

static NO_HEADERS: Headers = Headers::none();

/// Where the model key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource<'c> {
    /// In the secret of this name.
    Secret(&'c SecretName),
    /// In a file.
    File(&'c ConfigPath),
}

/// Which key requests carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKey<'c> {
    /// The one that bot.toml names.
    Stored(KeySource<'c>),
    /// The one in the gateway's environment, if there is one: bot.toml says nothing.
    Environment,
    /// None: the model wants none.
    None,
}

/// Where requests to the model go, and what is added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<'c> {
    /// Where the model API answers; nothing for the provider's own address.
    pub base_url: Option<&'c ServerUrl>,
    /// How the key is sent.
    pub auth: Auth,
    /// Which key.
    pub key: ModelKey<'c>,
    /// Headers to add.
    pub headers: &'c Headers,
}

/// What differs from `[model]` for one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProjectModel {
    base_url: Option<ServerUrl>,
    auth: Option<Auth>,
    headers: Option<Headers>,
    api_key_secret: Option<SecretName>,
    api_key_file: Option<ConfigPath>,
}

/// The projects that have a model of their own, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectModels(BTreeMap<String, ProjectModel>);

pub(crate) fn stored<'c>(secret: Option<&'c SecretName>, file: Option<&'c ConfigPath>) -> Option<KeySource<'c>> {
    secret.map(KeySource::Secret).or(file.map(KeySource::File))
}

impl Model {
    /// Where bot.toml says that the general key is; nothing when it says nothing.
    pub fn key(&self) -> Option<KeySource<'_>> {
        stored(self.api_key_secret.as_ref(), self.api_key_file.as_ref())
    }

    /// What counts for every project that has nothing of its own.
    pub fn general(&self) -> Endpoint<'_> {
        let key = match (self.key(), self.auth) {
            (Some(source), _) => ModelKey::Stored(source),
            (None, Auth::None) => ModelKey::None,
            (None, Auth::ApiKey | Auth::Bearer) => ModelKey::Environment,
        };
        Endpoint { base_url: self.base_url.as_ref(), auth: self.auth, key, headers: &self.headers }
    }

    /// The projects that have something of their own, by name, and what counts for each.
    ///
    /// A project with an address of its own gets nothing that was meant for another: neither the general key nor the general headers.
    pub fn of_projects(&self) -> impl Iterator<Item = (&str, Endpoint<'_>)> {
        self.projects.0.iter().map(|(name, own)| (name.as_str(), own.over(self.general())))
    }
}

impl ProjectModel {
    fn key(&self) -> Option<KeySource<'_>> {
        stored(self.api_key_secret.as_ref(), self.api_key_file.as_ref())
    }

    fn over<'c>(&'c self, general: Endpoint<'c>) -> Endpoint<'c> {
        let auth = self.auth.unwrap_or(general.auth);
        let (base_url, inherited, headers) = match &self.base_url {
            Some(own) => (Some(own), ModelKey::None, &NO_HEADERS),
            None => (general.base_url, general.key, general.headers),
        };
        let key = match (self.key(), auth) {
            (Some(source), _) => ModelKey::Stored(source),
            (None, Auth::None) => ModelKey::None,
            (None, Auth::ApiKey | Auth::Bearer) => inherited,
        };
        Endpoint { base_url, auth, key, headers: self.headers.as_ref().unwrap_or(headers) }
    }

    /// What is wrong about it however `[model]` reads; `name` is the project's.
    fn contradiction(&self, name: &str) -> Option<String> {
        let table = format!("[model.projects.{name}]");
        if self.api_key_secret.is_some() && self.api_key_file.is_some() {
            return Some(format!(
                "`api_key_file` and `api_key_secret` in `{table}` both say where the key is; keep one of them"
            ));
        }
        match (self.key(), self.auth, &self.base_url) {
            (Some(_), Some(Auth::None), _) => {
                Some(format!("`auth = \"none\"` in `{table}` sends no key; take out either that or the key"))
            }
            (None, Some(Auth::ApiKey | Auth::Bearer) | None, Some(_)) => Some(format!(
                "`base_url` in `{table}` needs a key of its own, because the general one goes nowhere else: name it by \
                 `api_key_secret` or `api_key_file`, or say `auth = \"none\"` if the server wants none"
            )),
            _ => None,
        }
    }
}

impl Value for ProjectModel {
    fn kind() -> String {
        format!("a table with {}", KEYS.join(", "))
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return wrong_type(name, value, problems);
        };
        let (mut own, mut good) = (Self::default(), true);
        for (key, value) in table {
            let shown = format!("`{}` of {name}", key.get_ref().escape_debug());
            good &= match key.get_ref().as_ref() {
                "base_url" => Value::read(&shown, value, problems).map(|read| own.base_url = read).is_some(),
                "auth" => Value::read(&shown, value, problems).map(|read| own.auth = read).is_some(),
                "headers" => Value::read(&shown, value, problems).map(|read| own.headers = read).is_some(),
                "api_key_secret" => {
                    Value::read(&shown, value, problems).map(|read| own.api_key_secret = read).is_some()
                }
                "api_key_file" => Value::read(&shown, value, problems).map(|read| own.api_key_file = read).is_some(),
                other => {
                    let hint = match nearest(other, KEYS.into_iter()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("there are {}", KEYS.join(", ")),
                    };
                    problems.push(key.span().start, format!("{shown} is no setting of a project's model; {hint}"));
                    false
                }
            };
        }
        good.then_some(own)
    }

    fn to_toml(&self) -> Option<String> {
        let base_url = self.base_url.to_toml().map(|value| format!("base_url = {value}"));
        let auth = self.auth.to_toml().map(|value| format!("auth = {value}"));
        let headers = self.headers.to_toml().map(|value| format!("headers = {value}"));
        let secret = self.api_key_secret.to_toml().map(|value| format!("api_key_secret = {value}"));
        let file = self.api_key_file.to_toml().map(|value| format!("api_key_file = {value}"));
        let entries: Vec<_> = [base_url, auth, headers, secret, file].into_iter().flatten().collect();
        Some(format!("{{ {} }}", entries.join(", ")))
    }
}

impl Value for ProjectModels {
    fn kind() -> String {
        "a table of projects' names and their models".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return wrong_type(name, value, problems);
        };
        let mut projects = BTreeMap::new();
        for (project, value) in table {
            let (project_name, offset) = (project.get_ref().as_ref(), project.span().start);
            let shown = format!("`{}` in {name}", project_name.escape_debug());
            if !is_project_name(project_name) {
                problems.push(
                    offset,
                    format!(
                        "{shown} is no project's name: a small letter, then at most 30 small letters, digits or `-`"
                    ),
                );
            } else if let Some(own) = ProjectModel::read(&shown, value, problems) {
                if let Some(contradiction) = own.contradiction(project_name) {
                    problems.push(offset, contradiction);
                }
                projects.insert(project_name.to_owned(), own);
            }
        }
        (projects.len() == table.len()).then_some(Self(projects))
    }

    fn to_toml(&self) -> Option<String> {
        let entry = |(name, own): (&String, &ProjectModel)| Some(format!("{} = {}", quoted(name), own.to_toml()?));
        let entries: Vec<_> = self.0.iter().filter_map(entry).collect();
        Some(if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) })
    }
}

/// As `new project` takes them (PROJ-1).
fn is_project_name(name: &str) -> bool {
    name.len() <= 31
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// What contradicts itself between `[model]` and its projects: nothing says how a key is sent, or a request without one goes to the
/// provider. The name of the setting or table that is at fault, and why.
pub(crate) fn contradictions(model: &Model) -> Vec<String> {
    let mut found = Vec::new();
    if model.auth == Auth::None && model.key().is_some() {
        found.push("`model.auth = \"none\"` sends no key; take out either that or the key".to_owned());
    }
    if model.auth == Auth::None && model.base_url.is_none() {
        found.push("`model.auth = \"none\"` needs `model.base_url`: the provider's own address wants a key".to_owned());
    }
    for (name, own) in &model.projects.0 {
        if own.contradiction(name).is_some() {
            continue;
        }
        let endpoint = own.over(model.general());
        let table = format!("[model.projects.{name}]");
        if endpoint.auth == Auth::None && own.key().is_some() {
            found.push(format!("`{table}` has a key, and `model.auth = \"none\"` sends none; say `auth` in `{table}`"));
        }
        if endpoint.auth != Auth::None && endpoint.key == ModelKey::None {
            found.push(format!("`{table}` says how a key is sent, and there is none; name one there"));
        }
        if own.auth == Some(Auth::None) && endpoint.base_url.is_none() {
            found.push(format!(
                "`auth = \"none\"` in `{table}` needs a `base_url`: the provider's own address wants a key"
            ));
        }
    }
    found
}
