//! The agents that a sled can run (SLED-2): each is a program that speaks stream-json on its standard input and output.
//!
//! A new agent is a variant of [`Agent`] and an arm of [`prepare`]. What an agent says is hostile; [`stream_json`] bounds it.

mod claude;
pub mod echo;
pub mod live;
pub mod stream_json;

use std::ffi::OsString;
use std::path::PathBuf;

use link::requests::{Agent, GitIdentity, Permissions, TurnRequest};
use uuid::Uuid;

use crate::environment::Environment;

/// What agents find around them in this container.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// This very program, for the practice agent.
    pub sled: PathBuf,
    /// The user's home, where agents keep their sessions.
    pub home: PathBuf,
    /// The container's environment.
    pub environment: Environment,
    /// The port of the model endpoint on the container's loopback.
    pub model_port: u16,
}

/// How an agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// All of its environment.
    pub environment: Environment,
    /// False when the session's memory should be there and is not, so that a fresh one begins.
    pub session_found: bool,
}

/// How to run the agent that `request` asks for. Looks at the file system, so it blocks.
pub fn prepare(request: &TurnRequest, surroundings: &Surroundings) -> std::io::Result<Launch> {
    let mut environment = surroundings.environment.for_agents();
    environment.extend([
        ("ANTHROPIC_BASE_URL", format!("http://127.0.0.1:{}", surroundings.model_port)),
        // The gateway drops it and adds the real one; the CLI only wants something to be there.
        ("ANTHROPIC_API_KEY", "the-gateway-holds-the-key".to_owned()),
        ("MUSHER_PERMISSIONS", permissions(request.permissions).to_owned()),
        ("MUSHER_SESSION_ID", request.session.id.to_string()),
        ("MUSHER_SESSION_RESUMED", u8::from(request.session.resumed).to_string()),
    ]);
    if let Some(GitIdentity { name, email }) = &request.identity {
        for role in ["AUTHOR", "COMMITTER"] {
            environment.extend([(format!("GIT_{role}_NAME"), name), (format!("GIT_{role}_EMAIL"), email)]);
        }
    }
    let (argv, session_found) = match &request.agent {
        Agent::Claude { model } => {
            environment.extend(claude::SETTINGS);
            claude::argv(&request.session, model.as_deref(), request.permissions, &surroundings.home)?
        }
        Agent::Command { argv } => (argv.iter().map(Into::into).collect(), true),
        Agent::Echo { notice } => {
            let notice = notice.as_deref().filter(|_| !request.session.resumed);
            (echo::argv(&surroundings.sled, notice), true)
        }
    };
    Ok(Launch { argv, environment, session_found })
}

/// Whether an agent's memory holds one of these words, which an earlier attempt gave it. Looks at the file system, so it blocks. Of an agent whose
/// memory cannot be looked into it is taken to.
pub fn remembers(request: &TurnRequest, surroundings: &Surroundings, words: &[Uuid]) -> std::io::Result<bool> {
    match &request.agent {
        Agent::Claude { .. } => claude::remembers(&surroundings.home, request.session.id, words),
        Agent::Command { .. } | Agent::Echo { .. } => Ok(true),
    }
}

fn permissions(permissions: Permissions) -> &'static str {
    match permissions {
        Permissions::Bypass => "bypass",
        Permissions::Ask { .. } => "ask",
    }
}

#[cfg(test)]
mod tests {
    use link::requests::AgentSession;

    use super::*;

    fn request(agent: Agent, resumed: bool) -> TurnRequest {
        let identity = Some(GitIdentity { name: "Rex".to_owned(), email: "rex@example.org".to_owned() });
        TurnRequest {
            session: AgentSession { id: Uuid::nil(), resumed },
            agent,
            prompt: "hello".to_owned(),
            identity,
            attempt: 1,
            permissions: Permissions::Bypass,
            keep_warm_secs: 0,
            afresh: None,
        }
    }

    fn surroundings() -> Surroundings {
        let environment = [("PATH", "/usr/bin"), ("HOME", "/home/dev")].into_iter().collect();
        Surroundings { sled: "/usr/bin/sled".into(), home: "/home/dev".into(), environment, model_port: 2223 }
    }

    #[test]
    fn a_command_gets_its_words_and_everything_it_needs_from_the_environment() {
        let argv = vec!["agent".to_owned(), "; rm -rf /".to_owned()];
        let launch = prepare(&request(Agent::Command { argv }, false), &surroundings()).unwrap();
        assert_eq!(launch.argv, ["agent", "; rm -rf /"]);
        let lines: Vec<String> =
            launch.environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ANTHROPIC_API_KEY=the-gateway-holds-the-key
        ANTHROPIC_BASE_URL=http://127.0.0.1:2223
        GIT_AUTHOR_EMAIL=rex@example.org
        GIT_AUTHOR_NAME=Rex
        GIT_COMMITTER_EMAIL=rex@example.org
        GIT_COMMITTER_NAME=Rex
        HOME=/home/dev
        LANG=C.UTF-8
        MUSHER_PERMISSIONS=bypass
        MUSHER_SESSION_ID=00000000-0000-0000-0000-000000000000
        MUSHER_SESSION_RESUMED=0
        NO_PROXY=127.0.0.1,localhost
        PATH=/usr/bin
        no_proxy=127.0.0.1,localhost
        ");
    }

    #[test]
    fn the_practice_agents_notice_comes_first_and_once() {
        let argv = |resumed| {
            let agent = Agent::Echo { notice: Some("give a key".to_owned()) };
            prepare(&request(agent, resumed), &surroundings()).unwrap().argv
        };
        assert_eq!(argv(false), ["/usr/bin/sled", "echo-agent", "--notice=give a key"]);
        assert_eq!(argv(true), ["/usr/bin/sled", "echo-agent"]);
    }
}
