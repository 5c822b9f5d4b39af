//! Projects: what they are, where they lie, how they come to be and go.
//!
//! [`Registry`] holds what the journal says of them. [`saga`] makes and removes them. Everything beneath is small
//! and either pure or about one thing on the disk.

mod claims;
pub mod clone;
pub mod clone_worker;
mod cloning;
mod contents;
pub mod folder;
mod heritage;
pub mod keys;
mod leftovers;
pub mod name;
pub mod place;
pub mod project;
mod removal;
pub mod repository;
pub mod saga;
pub mod ssh_config;
pub mod steps;
pub mod welcome;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{PoisonError, RwLock},
};

use journal::{Actor, Append, AppendError, Cause, Expected, Loaded, NewEvent, StreamId};
use uuid::Uuid;

use self::claims::Claims;
pub use project::{Identity, Made, Owner, Project, ProjectEvent, Spec, Stage, Step};

use crate::{chat::Person, people::Role, refusal::Refusal, store::Journal};

/// The way on for who wants what a project is there for.
pub fn listed(_: &str) -> String {
    "`projects` lists them.".to_owned()
}

/// The way on for who may want to make it.
pub fn listed_or_made(name: &str) -> String {
    let name = if name::check(name).is_ok() { name } else { "myapp" };
    format!("`projects` lists them; `new project {name}` makes one.")
}

/// What is told who names a project that is not there: one of `known` that is nearly called so, otherwise what `way` says.
pub(crate) fn no_project<'k>(name: &str, known: impl Iterator<Item = &'k str>, way: fn(&str) -> String) -> Refusal {
    let nearest = known
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    Refusal::usage(format!("there is no project {}", crate::text::code(name))).hint(match nearest {
        Some((_, known)) => format!("Did you mean `{known}`?"),
        None => way(name),
    })
}

/// All projects, as the journal tells them. Changed by [`Registry::append`] alone, so that what is here and what a
/// fold of the log gives cannot differ.
pub struct Registry {
    journal: Journal,
    projects: RwLock<BTreeMap<Uuid, Loaded<Project>>>,
    /// Held from the look at a project's version until the change is folded.
    appending: tokio::sync::Mutex<()>,
    /// Held while a name, a folder and a port are being taken.
    reserving: tokio::sync::Mutex<()>,
    /// Which of them are being made or removed just now.
    claims: Claims,
}

impl Registry {
    /// Folds all projects from the journal.
    pub async fn open(journal: Journal) -> Result<Self, Refusal> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Refusal::internal("the projects cannot be read from the journal", error.to_string())
        };
        let loaded = journal.load_all::<Project>(project::STREAM).await.map_err(|error| unreadable(&error))?;
        let mut projects = BTreeMap::new();
        for (stream, project) in loaded {
            projects.insert(stream.id.parse().map_err(|error| unreadable(&error))?, project);
        }
        Ok(Self {
            journal,
            projects: RwLock::new(projects),
            appending: tokio::sync::Mutex::default(),
            reserving: tokio::sync::Mutex::default(),
            claims: Claims::default(),
        })
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<Uuid, Loaded<Project>>) -> T) -> T {
        look(&self.projects.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The project with this id, whatever its stage.
    pub fn get(&self, id: Uuid) -> Option<Project> {
        self.read(|projects| projects.get(&id).map(|loaded| loaded.state.clone()))
    }

    /// The project that has this name now: names of removed ones are free.
    pub fn by_name(&self, name: &str) -> Option<(Uuid, Project)> {
        self.all().into_iter().find(|(_, project)| project.spec.as_ref().is_some_and(|spec| spec.name == name))
    }

    /// All projects that are not removed, oldest first.
    pub fn all(&self) -> Vec<(Uuid, Project)> {
        self.read(|projects| {
            let live = projects.iter().filter(|(_, loaded)| loaded.state.stage != Stage::Removed);
            live.map(|(id, loaded)| (*id, loaded.state.clone())).collect()
        })
    }

    /// The deleted projects that had this folder, the newest first, back to the one that did not take it as it was. Such as
    /// never came to be had nothing.
    pub fn once_at(&self, path: &Path) -> Vec<Project> {
        self.read(|projects| {
            let mut line = Vec::new();
            for Loaded { state: project, .. } in projects.values().rev() {
                let Some(spec) = project.spec.as_ref().filter(|spec| spec.path == path) else { continue };
                if project.came_to_be && project.stage == Stage::Removed {
                    line.push(project.clone());
                    if !spec.adopt {
                        break;
                    }
                }
            }
            line
        })
    }

    /// Those of [`Registry::all`] that this person, who may speak, may use.
    pub fn used_by(&self, person: &Person, role: Role) -> impl Iterator<Item = (Uuid, Project)> {
        self.all().into_iter().filter(move |(_, project)| project.admits(person, role))
    }

    /// The registered project of that name; a refusal that helps when there is none, and names only such as are `shown`:
    /// one that is nearly called so, otherwise what `way` says ([`listed`], [`listed_or_made`]).
    pub fn registered(
        &self,
        name: &str,
        shown: impl Fn(&Project) -> bool,
        way: fn(&str) -> String,
    ) -> Result<(Uuid, Project), Refusal> {
        match self.by_name(name) {
            Some((id, project)) if project.stage == Stage::Registered => Ok((id, project)),
            Some((id, project)) if project.stage == Stage::Making => Err(if self.is_at_work_on(id) {
                Refusal::usage(format!("project `{name}` is still being made")).hint("Wait for its reply.")
            } else {
                Refusal::usage(format!("project `{name}` could not be made, and is still half there"))
                    .hint(format!("`delete project {name}` removes it."))
            }),
            Some((id, _)) if self.is_at_work_on(id) => {
                Err(Refusal::usage(format!("project `{name}` is being removed"))
                    .hint("`projects` shows how far it is."))
            }
            Some(_) => Err(Refusal::usage(format!("project `{name}` could not be removed to the end"))
                .hint(format!("`delete project {name}` tries it again."))),
            None => {
                let all = self.all();
                let shown = all.iter().filter(|(_, project)| shown(project));
                let names = shown.filter_map(|(_, project)| Some(project.spec.as_ref()?.name.as_str()));
                Err(no_project(name, names, way))
            }
        }
    }

    /// Which projects are being made or removed just now.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether the project is being made or removed just now. One that is neither, and not registered, was left by a failure.
    pub fn is_at_work_on(&self, id: Uuid) -> bool {
        self.claims.is_claimed(id)
    }

    /// The project as the journal has it by now: after an append that failed, of which nobody may know how far it came.
    async fn reread(&self, id: Uuid) -> Result<Project, Refusal> {
        let _held = self.appending.lock().await;
        let stream = StreamId::new(project::STREAM, id);
        let loaded = self
            .journal
            .load::<Project>(&stream)
            .await
            .map_err(|error| Refusal::internal("the project cannot be read from the journal", error.to_string()))?;
        let state = loaded.state.clone();
        self.projects.write().unwrap_or_else(PoisonError::into_inner).insert(id, loaded);
        Ok(state)
    }

    /// Appends events to a project's stream and takes them in. Refused, with nothing changed, when they cannot follow
    /// what the project is by now.
    pub async fn append(
        &self,
        id: Uuid,
        events: &[ProjectEvent],
        actor: Actor,
        cause: Cause,
    ) -> Result<Project, Refusal> {
        let failed =
            |error: &dyn std::fmt::Display| Refusal::internal("the change could not be journaled", error.to_string());
        let _held = self.appending.lock().await;
        let stream = StreamId::new(project::STREAM, id);
        let mut loaded = self.read(|projects| projects.get(&id).cloned().unwrap_or_default());
        let appended = loop {
            loaded.state.may_all(events).map_err(|error| failed(&error))?;
            let append = Append {
                stream: stream.clone(),
                expected: Expected::Version(loaded.version),
                events: NewEvent::encode_all(events).map_err(|error| failed(&error))?,
                key: None,
                actor: actor.clone(),
                cause: cause.clone(),
            };
            match self.journal.append(append).await {
                Ok(appended) => break appended,
                // An earlier caller was cut off between its append and the fold: the journal knows more than we do.
                Err(AppendError::Conflict { actual, .. }) if actual > loaded.version => {
                    loaded = self.journal.load::<Project>(&stream).await.map_err(|error| failed(&error))?;
                }
                Err(error) => return Err(failed(&error)),
            }
        };
        for recorded in &appended.events {
            loaded.advance(recorded).map_err(|error| failed(&error))?;
        }
        let state = loaded.state.clone();
        self.projects.write().unwrap_or_else(PoisonError::into_inner).insert(id, loaded);
        Ok(state)
    }
}
