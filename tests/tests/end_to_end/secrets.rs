//! No secret is anywhere but where it belongs (SEC-1, invariant 7): one gateway that uses every kind of secret there is, and
//! then a search of all that the engine, the container, the host, the command line and the room can show.
//!
//! What each test leaves behind is searched by the harness (`tests::secrets`); here is the rest, which takes longer. In every
//! place lies a canary, or the search of that place would prove nothing.

mod everywhere;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    gateway::Gateway,
    git_server::{Content, SshServer, WebServer},
    home::Home,
    homeserver::Homeserver,
    images,
    model::{Model, Step, Wants},
    person::{Message, Person},
    process::Output,
    secrets::{self, Kind, Watch},
    ssh::{self, Door},
    wait,
};

use everywhere::Search;

use crate::scene::{is_answer, names};

/// What a curious agent does besides its work: it pulls, commits and pushes, and prints whatever it can get at.
const SCRIPT: &str = "cd /workspace && git pull -q && echo CANARY > CANARY && git add CANARY && git commit -qm CANARY && git push 2>&1; \
     env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; git config --list --show-origin; cat ~/.gitconfig ~/.netrc ~/.git-credentials; \
     printf 'protocol=http\\nhost=127.0.0.1\\n\\n' | git credential fill; curl -sv $ANTHROPIC_BASE_URL/v1/messages -d '{}'; \
     GIT_CURL_VERBOSE=1 GIT_TRACE=1 git fetch; true";

/// Ann, the bot, and all who want a secret of them.
struct Cast {
    home: Home,
    ann: Person,
    bot: Person,
    room: String,
    general: Model,
    company: Model,
    web: WebServer,
    sshd: SshServer,
    /// The project that comes over the web and talks to the general model. Its name is a canary.
    by_web: String,
    /// What is said, written and committed.
    canary: String,
}

impl Cast {
    async fn gather() -> Result<Self> {
        images::ready().await?;
        let (by_web, canary) = (secrets::mint(Kind::Canary), secrets::mint(Kind::Canary));
        let homeserver = Homeserver::shared().await?;
        let (ann, bot) = tokio::try_join!(Person::join(homeserver, "ann"), Person::join(homeserver, "bot"))?;
        let room = ann.create_room(&canary, &[&bot.id]).await?;
        let (general, company) = (Model::start().await?, Model::start().await?);
        for model in [&general, &company] {
            let script = SCRIPT.replace("CANARY", &canary);
            model.on(
                "push it",
                [Step::call("Bash", json!({ "command": script })), Step::say(format!("{canary}, done."))],
            );
            model.on("", [Step::say("Well.")]);
        }
        let header = secrets::mint(Kind::Header);
        let top = format!(
            "transport = \"matrix\"\nhomeserver = \"{}\"\nusername = \"{}\"\npassword_secret = \"matrix-password\"\n\
             admins = {}\nambient_rooms = {}\ncoalesce_window_ms = 200\n",
            homeserver.url(),
            bot.id,
            json!([ann.id]),
            json!([room]),
        );
        let tables = format!(
            "{}\napi_key_secret = \"model-key\"\nheaders = {{ x-gate = \"{header}\" }}\n\n[model.projects.overssh]\n\
             base_url = \"{}\"\nauth = \"bearer\"\napi_key_secret = \"company-key\"",
            Home::agent_tables(&general),
            company.base_url()
        );
        let home = Home::new(&top, &tables)?.with_variable("CANARY", &canary).with_variable("MUSHER_LOG", "trace");
        // What has to be encoded in an address, too.
        let token = format!("{}/+@ %", secrets::mint(Kind::GitToken));
        let (web, sshd) = (WebServer::private("ann", &token).await?, SshServer::start().await?);
        for repositories in [web.repositories(), sshd.repositories()] {
            repositories.add("team/app.git", "main", &[Content::File("README.md", b"A heron.\n")]).await?;
        }
        fs::create_dir(home.path().join(".ssh"))?;
        fs::write(home.path().join(".ssh/known_hosts"), sshd.known_hosts()?)?;
        let cast = Self { home, ann, bot, room, general, company, web, sshd, by_web, canary };
        let wrong = format!("ann:{}", secrets::mint(Kind::GitToken));
        for (name, value) in [
            ("matrix-password", cast.bot.password()),
            ("model-key", cast.general.key()),
            ("company-key", cast.company.key()),
            (&cast.web.secret(), &wrong),
            (&cast.sshd.secrets()[0], &cast.sshd.key()?),
            (&cast.canary, &cast.canary),
        ] {
            cast.store(name, value).await?;
        }
        let ask = format!("new project {} --git {}", cast.by_web, cast.web.url("team/app.git"));
        let gateway = Gateway::up(&cast.home, &[]).await?;
        cast.ann.wait_membership(&cast.room, &cast.bot.id, "join").await?;
        cast.ann.let_tidy(&cast.room, &cast.bot.id).await?;
        cast.ask(&ask, "does not take the credential").await?;
        cast.store(&cast.web.secret(), &format!("ann:{token}")).await?;
        cast.ask(&ask, "is ready").await?;
        gateway.stop().await?;
        Ok(cast)
    }

    async fn store(&self, name: &str, value: &str) -> Result<()> {
        self.home.run(["secrets", "set", name], value).await.and_then(Output::success).map(drop)
    }

    /// Ann asks, and the answer to it contains `needle`.
    async fn ask(&self, text: &str, needle: &str) -> Result<()> {
        let asked = self.ann.say(&self.room, text).await?;
        let fits = |message: &Message| is_answer(message) && names(message, &asked);
        let answer = self.ann.wait_message(&self.room, &self.bot.id, &asked, wait::LONG, fits).await?;
        ensure!(answer.body.contains(needle), "asked `{text}`, wanted `{needle}`: {}", answer.body);
        Ok(())
    }

    /// Everything that a secret is used for.
    async fn work(&self) -> Result<()> {
        self.ask(&format!("switch {}", self.by_web), "").await?;
        self.ask("push it", "done.").await?;
        let push = |file: &str| {
            format!(
                "cd /workspace && git pull -q && echo {file} > {file} && git add {file} && git -c user.name=Ann -c user.email=ann@example.org commit -qm {file} && \
                 git push -q && git rev-parse HEAD"
            )
        };
        let pushed = ssh::command(&self.home, Door::Proxy, &self.by_web, &push("mine")).await?;
        let tip = self.web.repositories().tip("team/app.git", "main").await?;
        ensure!(tip.as_deref() == Some(pushed.trim()), "what an editor pushes arrives: {tip:?}, {pushed}");

        // Both credentials are changed while all runs.
        let (key, token) = (secrets::mint(Kind::ModelKey), secrets::mint(Kind::GitToken));
        self.general.want(Wants::Key(key.clone()));
        self.ask("hello", "⚠").await?;
        self.web.rotate("ann", &token);
        let host = Door::Port.host(&self.by_web);
        let refused = ssh::run(&self.home, "ssh", [&host, "git -C /workspace fetch"], "", wait::LONG).await?;
        ensure!(refused.code != Some(0), "the old token does not count any more");
        self.store("model-key", &key).await?;
        self.store(&self.web.secret(), &format!("ann:{token}")).await?;
        self.ask("hello again", "Well.").await?;
        ssh::command(&self.home, Door::Port, &self.by_web, &push("again")).await?;

        // A command with a credential is taken out of the room; words with one stay there, and are masked everywhere else.
        let typed = secrets::mint(Kind::Typed);
        let said = format!("!new project leak --git https://ann:{typed}@example.org/app.git");
        let said = self.ann.say(&self.room, &said).await?;
        self.ann.wait_redacted(&self.room, &said).await?;
        let typed = secrets::mint(Kind::Typed);
        self.ask(&format!("is https://ann:{typed}@example.org/ a good example?"), "Well.").await?;

        self.ask(&format!("new project overssh --git {}", self.sshd.url("team/app.git")), "is ready").await?;
        self.ask("switch overssh", "overssh").await?;
        self.ask("push it", "done.").await?;
        ssh::command(&self.home, Door::Proxy, "overssh", &push("mine")).await?;
        ensure!(!self.company.requests().is_empty(), "the project's own model was asked");
        for project in [&self.by_web, "overssh"] {
            self.ask(&format!("switch {project}"), project).await?;
            for command in [
                "status",
                "ssh",
                "git audit",
                "logs",
                "cost",
                "queue",
                "members",
                "limits",
                "!git log",
                "!git config -l",
                "!diff",
            ] {
                self.ask(command, "").await?;
            }
        }
        for command in ["projects", "doctor", "help", "version", "!stacks list"] {
            self.ask(command, "").await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_anywhere_but_where_it_belongs() -> Result<()> {
    let mut search = Search::begin();
    let cast = Cast::gather().await?;
    let watch = Watch::start(cast.home.path());
    let gateway = Gateway::up(&cast.home, &[]).await?;
    cast.work().await.with_context(|| gateway.all())?;

    let containers = [cast.home.container(&cast.by_web).await?, cast.home.container("overssh").await?];
    secrets::learn(&cast.home.state())?;
    everywhere::plant(&cast, &containers[0]).await?;
    for container in &containers {
        search.inside(container)?;
        search.engine(container).await?;
    }
    search.image(&containers[0], &cast.canary).await?;
    search.doors(&cast.home, &cast.by_web, &cast.canary).await?;
    search.room(&cast.ann, &cast.room).await?;
    search.models([&cast.general, &cast.company])?;
    search.command_line(&cast.home, &cast.by_web).await?;
    search.add(watch.finish()?);
    gateway.stop().await?;
    search.host(&cast.home)?;
    everywhere::where_they_belong(&cast.home)?;
    search.homeserver(Homeserver::shared().await?)?;
    search.leftovers()?;
    search.end()
}
