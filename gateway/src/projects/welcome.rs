//! The reply to `new project` (PROJ-6). Pure.

use musher_docker::{USER, WORKSPACE};
use uuid::Uuid;

use super::{Spec, saga::Created, ssh_config};
use crate::{home::Home, text};

/// What people are told of a project that is there now. `ports` says whether there are port doors.
pub fn welcome(made: &Created, home: &Home, ssh_host: Option<&str>, ports: bool) -> String {
    let Created { project, remarks, took, .. } = made;
    let Some(spec) = &project.spec else { return String::new() };
    let name = &spec.name;
    let config = home.ssh_config();
    let config = shell_words::quote(&config.to_string_lossy()).into_owned();
    let mut lines = vec![
        format!("**{name}** is ready ({}).", text::span(*took)),
        String::new(),
        format!("- files: {}", text::code(&spec.path.to_string_lossy())),
        format!("- stack: {}", project.stack_reason),
        format!("- ssh: `ssh -F {config} {name}.musher`"),
        format!(
            "- editor here: put `Include {config}` as the first line of your `~/.ssh/config`, then open the remote host `{name}.musher`, folder `{WORKSPACE}` (user `{USER}`)"
        ),
    ];
    if ports {
        lines.push(another_machine(made.id, spec, home, ssh_host));
    }
    lines.push(format!("- talk: `switch {name}`, then write here"));
    lines.extend(remarks.iter().map(|remark| format!("- {remark}")));
    lines.push(String::new());
    lines.push("⚠ The agent can write to these files: git and editors that you run on them on the host itself run the hooks and settings that are in them.".to_owned());
    lines.join("\n")
}

/// How a project that has a port door is opened from another machine.
pub(crate) fn another_machine(id: Uuid, spec: &Spec, home: &Home, ssh_host: Option<&str>) -> String {
    match ssh_host {
        Some(host) => format!(
            "- another machine: `{line}`, with a copy of the key {key} (docs/editors.md)",
            line = ssh_config::from_elsewhere(id, spec.port, host),
            key = text::code(&home.project(id).client_key().to_string_lossy()),
        ),
        None => {
            "- another machine: set `ssh_host` in bot.toml to how this host is reached (docs/editors.md)".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::projects::Project;

    #[test]
    fn the_line_for_another_machine_is_told_where_there_is_one() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        let project = Project { spec: Some(Spec::example("/srv/app")), ..Project::default() };
        let made = Created { id: Uuid::nil(), project, remarks: Vec::new(), took: Duration::from_secs(1) };
        let told = |host, ports| welcome(&made, &home, host, ports);
        let line = "`ssh -i <key> -J you@server -p 22200 -o HostKeyAlias=musher-00000000-0000-0000-0000-000000000000 dev@127.0.0.1`";
        assert!(told(Some("you@server"), true).contains(line), "{}", told(Some("you@server"), true));
        assert!(told(None, true).contains("set `ssh_host`"));
        assert!(!told(Some("you@server"), false).contains("another machine"));
    }
}
