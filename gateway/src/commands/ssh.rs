//! `ssh`: how a project is opened over SSH, from here and from other machines (SSH-2).

use musher_docker::WORKSPACE;
use uuid::Uuid;

use super::{Asked, Commands};
use crate::{
    home::Home,
    projects::{Spec, welcome},
    refusal::Refusal,
};

impl Commands {
    /// Tells the doors of the project.
    pub(super) fn ssh(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let Some(spec) = project.spec else { return Err(Refusal::usage("that project is gone")) };
        let super::Inner { home, ssh_host, sagas, .. } = &*self.inner;
        Ok(ways_in(id, &spec, home, ssh_host.as_deref(), sagas.doors.ports))
    }
}

/// The ways in, for people. `ports` says whether there are port doors; without one, another machine has no way of its own.
fn ways_in(id: Uuid, spec: &Spec, home: &Home, ssh_host: Option<&str>, ports: bool) -> String {
    let Spec { name, port, .. } = spec;
    let config = home.ssh_config();
    let config = shell_words::quote(&config.to_string_lossy()).into_owned();
    let mut lines = vec![format!("- starts the container when needed: `ssh -F {config} {name}.musher`")];
    if ports {
        lines.push(format!("- by the port {port} of this host's loopback: `ssh -F {config} {name}.musher-port`"));
    }
    lines.push(format!(
        "- editors: put `Include {config}` as the first line of your `~/.ssh/config`, then open the remote host \
         `{name}.musher`, folder `{WORKSPACE}`"
    ));
    if ports {
        lines.push(welcome::another_machine(id, spec, home, ssh_host));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_in_is_told_that_there_is() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        let spec = Spec { port: 22_200, ..Spec::example("/srv/app") };
        let told = |host, ports| {
            let told = ways_in(Uuid::nil(), &spec, &home, host, ports);
            told.replace(&*folder.path().to_string_lossy(), "~")
        };
        insta::assert_snapshot!(told(Some("you@server"), true), @r"
        - starts the container when needed: `ssh -F ~/state/ssh_config app.musher`
        - by the port 22200 of this host's loopback: `ssh -F ~/state/ssh_config app.musher-port`
        - editors: put `Include ~/state/ssh_config` as the first line of your `~/.ssh/config`, then open the remote host `app.musher`, folder `/workspace`
        - another machine: `ssh -i <key> -J you@server -p 22200 -o HostKeyAlias=musher-00000000-0000-0000-0000-000000000000 dev@127.0.0.1`, with a copy of the key `~/state/projects/00000000-0000-0000-0000-000000000000/ssh/id_ed25519` (docs/editors.md)
        ");
        let unset = "- another machine: set `ssh_host` in bot.toml to how this host is reached (docs/editors.md)";
        assert_eq!(told(None, true).lines().last(), Some(unset));
        let alone = told(Some("you@server"), false);
        assert!(alone.lines().count() == 2 && !alone.contains("another machine"), "{alone}");
    }
}
