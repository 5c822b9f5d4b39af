//! Who may speak, and with which rights (SEC-4). An empty allow-list means nobody (invariant 12).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::chat::{Person, SurfaceKind};

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Works on projects.
    Member,
    /// Also decides for the whole gateway.
    Admin,
}

/// The people whom the gateway listens to.
#[derive(Debug, Clone, Default)]
pub struct People {
    admins: BTreeSet<Person>,
    members: BTreeSet<Person>,
}

impl People {
    /// The lists of bot.toml, whose ids are the surface's own.
    pub fn new(surface: SurfaceKind, admins: &[String], members: &[String]) -> Self {
        let qualified = |ids: &[String]| ids.iter().map(|id| Person { surface, id: id.clone() }).collect();
        Self { admins: qualified(admins), members: qualified(members) }
    }

    /// What this person may do; `None` means that the gateway does not listen. The console's user is admin.
    pub fn role(&self, person: &Person) -> Option<Role> {
        if person.surface == SurfaceKind::Console || self.admins.contains(person) {
            Some(Role::Admin)
        } else if self.members.contains(person) {
            Some(Role::Member)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_means_nobody() {
        let ann = Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() };
        assert_eq!(People::default().role(&ann), None);
        let people = People::new(SurfaceKind::Matrix, &["@bob:example.org".into()], std::slice::from_ref(&ann.id));
        assert_eq!(people.role(&ann), Some(Role::Member));
        assert_eq!(people.role(&Person { id: "@bob:example.org".into(), ..ann.clone() }), Some(Role::Admin));
        assert_eq!(people.role(&Person { id: "@ann:example.org.evil".into(), ..ann }), None);
        assert_eq!(people.role(&Person { surface: SurfaceKind::Console, id: "you".into() }), Some(Role::Admin));
    }
}
