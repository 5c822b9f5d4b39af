//! The container's environment, read once at the start and handed in, and what of it each kind of child process gets.
//!
//! Nothing else in this crate reads or sets environment variables.

use std::collections::BTreeMap;

/// Variables that say something about one process or one login, not about the container.
const OF_A_PROCESS: [&str; 13] = [
    "HOME",
    "HOSTNAME",
    "LOGNAME",
    "MAIL",
    "OLDPWD",
    "PWD",
    "SHELL",
    "SHLVL",
    "TERM",
    "TMUX",
    "USER",
    "XDG_RUNTIME_DIR",
    "_",
];

/// Where programs are looked for when the container does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Environment variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// This process's own. Names and values that are not UTF-8 are left out.
    pub fn of_this_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Where programs are looked for.
    pub fn path(&self) -> &str {
        self.get("PATH").unwrap_or(DEFAULT_PATH)
    }

    /// For SSH sessions: the container's variables without those of this process, the PATH once more as `MUSHER_PATH` (login shells set their
    /// own PATH first; the image's profile puts this one back), and a UTF-8 locale.
    pub fn for_sessions(&self) -> Self {
        let mut variables: BTreeMap<_, _> = self
            .variables
            .iter()
            .filter(|(name, _)| !OF_A_PROCESS.contains(&name.as_str()) && !name.starts_with("SSH_"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        variables.insert("PATH".to_owned(), self.path().to_owned());
        variables.insert("MUSHER_PATH".to_owned(), self.path().to_owned());
        variables.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
        Self { variables }
    }

    /// For an agent: the container's variables, with loopback kept from any proxy, because the model endpoint is there.
    pub fn for_agents(&self) -> Self {
        let mut own = self.clone();
        own.variables.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
        for name in ["NO_PROXY", "no_proxy"] {
            let others = self.get(name).filter(|others| !others.is_empty());
            let hosts = others
                .map_or_else(|| "127.0.0.1,localhost".to_owned(), |others| format!("{others},127.0.0.1,localhost"));
            own.variables.insert(name.to_owned(), hosts);
        }
        own
    }

    /// For `git` run at a person's request: nothing that changes what git does, no terminal, no pager, no editor, no question. How it
    /// reaches an ssh remote is the system's configuration's to say, which `GIT_SSH_COMMAND` would override.
    pub fn for_git(&self) -> Self {
        let own = self.variables.iter().filter(|(name, _)| !name.starts_with("GIT_"));
        let mut own: Self = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        own.extend([
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_PAGER", "cat"),
            ("GIT_EDITOR", "false"),
            ("SSH_ASKPASS_REQUIRE", "never"),
            ("LANG", "C.UTF-8"),
        ]);
        own.variables.remove("LC_ALL");
        own
    }
}

impl<N: Into<String>, V: Into<String>> Extend<(N, V)> for Environment {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, variables: I) {
        self.variables.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let mut own = Self::default();
        own.extend(variables);
        own
    }
}

impl<'a> IntoIterator for &'a Environment {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.variables.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(environment: &Environment) -> Vec<String> {
        environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn sessions_get_the_containers_variables_but_not_this_processs() {
        let own: Environment =
            [("PATH", "/opt/rust/bin:/usr/bin"), ("HOME", "/home/dev"), ("PWD", "/"), ("SSL_CERT_FILE", "/etc/ca.pem")]
                .into_iter()
                .collect();
        let wanted = [
            "LANG=C.UTF-8",
            "MUSHER_PATH=/opt/rust/bin:/usr/bin",
            "PATH=/opt/rust/bin:/usr/bin",
            "SSL_CERT_FILE=/etc/ca.pem",
        ];
        assert_eq!(shown(&own.for_sessions()), wanted);
    }

    #[test]
    fn agents_reach_loopback_without_a_proxy() {
        let own: Environment = [("NO_PROXY", "corp.example")].into_iter().collect();
        assert_eq!(own.for_agents().get("NO_PROXY"), Some("corp.example,127.0.0.1,localhost"));
        assert_eq!(own.for_agents().get("no_proxy"), Some("127.0.0.1,localhost"));
    }

    #[test]
    fn git_is_not_steered_by_the_environment() {
        let own: Environment =
            [("GIT_DIR", "/elsewhere"), ("GIT_SSH_COMMAND", "ssh"), ("HOME", "/home/dev"), ("LC_ALL", "de_DE")]
                .into_iter()
                .collect();
        let git = own.for_git();
        assert_eq!((git.get("GIT_DIR"), git.get("LC_ALL"), git.get("HOME")), (None, None, Some("/home/dev")));
        assert_eq!((git.get("GIT_TERMINAL_PROMPT"), git.get("GIT_SSH_COMMAND")), (Some("0"), None));
    }
}
