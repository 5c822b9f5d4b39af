//! The places, one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    engine,
    home::Home,
    homeserver::Homeserver,
    model::Model,
    person::{self, Person},
    process::Output,
    product,
    secrets::{self, Area, Find, Form, Kind},
    ssh::{self, Door},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::Cast;

/// Marks the image that is made for the search.
const LABEL: &str = "dev.musher.test";

/// What was searched, and what was found there.
pub struct Search {
    began: SystemTime,
    finds: Vec<Find>,
    /// Sorts of places, and how many bytes came from them.
    places: BTreeMap<&'static str, u64>,
}

impl Search {
    pub fn begin() -> Self {
        Self { began: SystemTime::now(), finds: Vec::new(), places: BTreeMap::new() }
    }

    /// Takes in what was found elsewhere.
    pub fn add(&mut self, finds: Vec<Find>) {
        self.finds.extend(finds);
    }

    fn bytes(&mut self, place: &'static str, bytes: &[u8]) -> Result<()> {
        ensure!(!bytes.is_empty(), "there is nothing in {place}");
        *self.places.entry(place).or_default() += bytes.len() as u64;
        self.finds.extend(secrets::in_bytes(Area::Elsewhere, place, bytes)?);
        Ok(())
    }

    /// Searches all that a program of the host prints.
    fn program(&mut self, place: &'static str, program: &str, args: &[&str]) -> Result<()> {
        let mut child = Command::new(program).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, mut stderr) = (child.stdout.take().context("a pipe")?, child.stderr.take().context("a pipe")?);
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            stderr.read_to_end(&mut said).map(|_| said)
        });
        let (found, total) = secrets::matcher()?.stream(stdout)?;
        let said = said.join().ok().context("standard error is read")??;
        let status = child.wait()?;
        ensure!(status.success(), "`{program} {args:?}` ended with {status}: {}", String::from_utf8_lossy(&said));
        ensure!(total > 0 || !said.is_empty(), "{place} is empty");
        *self.places.entry(place).or_default() += total;
        let found = found.into_iter().chain(secrets::matcher()?.bytes(&said));
        self.finds.extend(found.map(|(kind, form)| Find { place: place.to_owned(), kind, form }));
        Ok(())
    }

    /// What whoever is in the container can see.
    pub fn inside(&mut self, container: &str) -> Result<()> {
        let exec = |script: &'static str| ["exec", container, "bash", "-c", script];
        self.program(
            "/proc inside",
            "docker",
            &exec("cd /proc; for p in [0-9]*; do cat $p/environ $p/cmdline $p/maps; ls -l $p/fd $p/cwd $p/exe; done 2>/dev/null; cat mounts; true"),
        )?;
        self.program(
            "files in memory",
            "docker",
            &exec("tar -cf - --ignore-failed-read /tmp /run /dev/shm 2>/dev/null; true"),
        )?;
        self.program("git's objects", "docker", &exec("git -C /workspace cat-file --batch-all-objects --batch"))?;
        self.program(
            "git's references",
            "docker",
            &exec("git -C /workspace for-each-ref; git -C /workspace reflog --all; git config -l --show-origin"),
        )
    }

    /// What the engine shows of a container.
    pub async fn engine(&mut self, container: &str) -> Result<()> {
        let described = engine::inspect(container).await?;
        self.bytes("docker inspect", described.to_string().as_bytes())?;
        let image = described["Image"].as_str().context("a container has an image")?;
        self.program("docker image inspect", "docker", &["image", "inspect", image])?;
        self.program("docker history", "docker", &["history", "--no-trunc", image])?;
        self.program("docker top", "docker", &["top", container, "-eo", "pid,args"])?;
        self.program("docker diff", "docker", &["diff", container])?;
        self.program("docker ps", "docker", &["ps", "--all", "--no-trunc", "--size"])?;
        self.program("docker logs", "docker", &["logs", container])?;
        for network in described["NetworkSettings"]["Networks"].as_object().into_iter().flatten() {
            self.program("docker network inspect", "docker", &["network", "inspect", network.0])?;
        }
        let since = self.began.duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
        let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
        let filter = format!("container={container}");
        self.program(
            "docker events",
            "docker",
            &["events", "--since", &since, "--until", &until, "--filter", &filter],
        )?;
        self.program("the container's files", "docker", &["export", container])
    }

    /// Every layer of the container's image and its settings; and in the same way what the container has changed, with a canary in it.
    pub async fn image(&mut self, container: &str, canary: &str) -> Result<()> {
        let label = format!("LABEL {LABEL}={canary}");
        let image = Made(engine::docker(&["commit", "--change", &label, container]).await?.trim().to_owned());
        self.program("the image's layers", "docker", &["save", &image.0])?;
        self.program("a made image's settings", "docker", &["image", "inspect", &image.0])
    }

    /// The gateway's own doors.
    pub async fn doors(&mut self, home: &Home, project: &str, canary: &str) -> Result<()> {
        for (place, path) in [("/metrics", "/metrics"), ("/healthz", "/healthz")] {
            self.bytes(place, home.get(path, "localhost").await?.1.as_bytes())?;
        }
        for request in [
            "GET /v1/version".to_owned(),
            format!("POST /v1/ssh/{canary}"),
            format!("GET /v1/ssh/{project}"),
            "GET /".into(),
        ] {
            let mut socket = UnixStream::connect(home.state().join("control.sock")).await?;
            socket
                .write_all(format!("{request} HTTP/1.1\r\nhost: musher\r\nconnection: close\r\n\r\n").as_bytes())
                .await?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            self.bytes("the control socket", &answer)?;
        }
        Ok(())
    }

    /// The room as its server has it.
    pub async fn room(&mut self, ann: &Person, room: &str) -> Result<()> {
        let events = ann.history(room).await?;
        *self.places.entry("the room").or_default() += events.len() as u64;
        for event in &events {
            self.finds.extend(person::in_event(event)?);
        }
        Ok(())
    }

    /// What was sent to models, apart from the headers, in which a key is.
    pub fn models<'a>(&mut self, models: impl IntoIterator<Item = &'a Model>) -> Result<()> {
        models.into_iter().flat_map(Model::requests).try_for_each(|request| {
            self.bytes("what a model was asked", format!("{} {}", request.target, request.body).as_bytes())
        })
    }

    /// What the command line prints.
    pub async fn command_line(&mut self, home: &Home, project: &str) -> Result<()> {
        let tail = home.run(["journal", "tail", "--lines", "1000000"], "").await?.success()?;
        self.bytes("musher journal tail", tail.as_bytes())?;
        // `<number> <time> <stream>@<version> …`
        let streams = tail.lines().filter_map(|line| Some(line.split(' ').nth(2)?.rsplit_once('@')?.0));
        let streams: BTreeSet<&str> = streams.collect();
        ensure!(streams.iter().any(|stream| stream.starts_with("project/")), "{streams:?}");
        for stream in streams {
            let shown = home.run(["journal", "show", stream], "").await?.success()?;
            self.bytes("musher journal show", shown.as_bytes())?;
        }
        for (place, args) in [
            ("musher doctor", &["doctor", "--json"][..]),
            ("musher secrets list", &["secrets", "list"]),
            ("musher git audit", &["git", "audit", project]),
            ("musher journal verify", &["journal", "verify"]),
            ("musher config check", &["config", "check"]),
            ("musher stacks list", &["stacks", "list"]),
            ("musher ssh", &["ssh", project, "env"]),
        ] {
            let output: Output = home.run(args, "").await?;
            self.bytes(place, output.text().as_bytes())?;
        }
        let verbose =
            ssh::run(home, "ssh", ["-vvv", &Door::Proxy.host(project), "true"], "", tests::wait::LONG).await?;
        self.bytes("ssh -vvv", verbose.text().as_bytes())
    }

    /// The state directory, the projects' folders, and the rest of the person's home.
    pub fn host(&mut self, home: &Home) -> Result<()> {
        self.finds.extend(secrets::in_folder(home.path(), &home.state())?);
        Ok(())
    }

    /// What the homeserver keeps, raw.
    pub fn homeserver(&mut self, homeserver: &Homeserver) -> Result<()> {
        self.folder("the homeserver's files", homeserver.directory(), Area::Homeserver, SystemTime::UNIX_EPOCH)
    }

    /// What was written since the test began where everybody leaves things.
    pub fn leftovers(&mut self) -> Result<()> {
        for folder in [&std::env::temp_dir(), Path::new("/var/tmp"), Path::new("/dev/shm")] {
            self.folder("files left in the host's temporary folders", folder, Area::Elsewhere, self.began)?;
        }
        fs::remove_file(std::env::temp_dir().join(format!("{LABEL}-{}", std::process::id()))).map_err(Into::into)
    }

    fn folder(&mut self, place: &'static str, folder: &Path, area: Area, since: SystemTime) -> Result<()> {
        // Others come and go in these folders.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                // A clone that lies there itself has the homes of all tests in its build folder; each is judged by its own.
                if entry.path() != product::repository()? {
                    self.folder(place, &entry.path(), area, since)?;
                }
            } else if meta.is_file() && meta.modified()? >= since {
                let Ok(file) = File::open(entry.path()) else { continue };
                let (found, total) = secrets::matcher()?.stream(file)?;
                *self.places.entry(place).or_default() += total;
                self.finds.extend(secrets::forbidden(area, place, &found));
            }
        }
        Ok(())
    }

    /// Fails unless canaries were found wherever there is one, and nothing else anywhere.
    pub fn end(self) -> Result<()> {
        secrets::none(&self.finds)?;
        let seen = |place: &str| self.finds.iter().any(|find| find.kind == Kind::Canary && find.place.contains(place));
        // Names and labels tell of a canary too: in hexadecimal digits it is in files alone, which an engine might pack.
        let read = |place: &str| self.finds.iter().any(|find| find.form == Form::Hex && find.place == place);
        let blind = CANARIES.into_iter().filter(|place| !seen(place));
        let blind: Vec<_> = blind.chain(IN_FILES.into_iter().filter(|place| !read(place))).collect();
        ensure!(blind.is_empty(), "a search found no canary in {blind:#?}, of {:#?}", self.places);
        for (place, amount) in &self.places {
            println!("{amount:>12} {place}");
        }
        Ok(())
    }
}

/// Where there is a canary. What shows no name and no word of anybody's has none: `/metrics`, `/healthz`, `doctor --json`.
const CANARIES: [&str; 36] = [
    "/proc inside",
    "files in memory",
    "git's objects",
    "git's references",
    "docker inspect",
    "docker top",
    "docker diff",
    "docker ps",
    "docker logs",
    "docker events",
    "the container's files",
    "the image's layers",
    "a made image's settings",
    "the control socket",
    "an event (\"m.room.message\")",
    "what a model was asked",
    "musher journal tail",
    "musher journal show",
    "musher secrets list",
    "musher git audit",
    "ssh -vvv",
    "a command line",
    " in a container",
    "/musher on the host",
    "an open file of",
    "the name of a file",
    "/.musher/journal.db",
    "/.musher/logs/",
    "/.musher/ssh_config",
    "/.musher/matrix/",
    "/home/",
    "/sled/",
    "/musher/",
    "/secrets/",
    "the homeserver's files",
    "files left in the host's temporary folders",
];

/// Puts canaries where nothing that people do would put one.
pub async fn plant(cast: &Cast, container: &str) -> Result<()> {
    let canary = &cast.canary;
    let script = format!(
        "for folder in /var/tmp /tmp /dev/shm /run/musher; do printf {canary} | od -An -tx1 | tr -d ' \\n' > $folder/left; done; echo {canary} > /proc/1/fd/1; \
         {canary}={canary} setsid sleep 1000 < /dev/null > /dev/null 2>&1 & setsid bash -c 'exec -a {canary} sleep 1000' < /var/tmp/left > /var/tmp/{canary} 2>&1 & echo planted"
    );
    engine::docker(&["exec", container, "bash", "-c", &script]).await?;
    fs::write(std::env::temp_dir().join(format!("{LABEL}-{}", std::process::id())), canary).map_err(Into::into)
}

/// Every kind is found where it may be: so it would have been found elsewhere.
pub fn where_they_belong(home: &Home) -> Result<()> {
    fn kinds(path: &Path, into: &mut BTreeSet<Kind>) -> Result<()> {
        if path.is_dir() {
            return fs::read_dir(path)?.try_for_each(|entry| kinds(&entry?.path(), into));
        }
        let found = secrets::matcher()?.bytes(&fs::read(path)?);
        into.extend(found.into_iter().map(|(kind, _)| kind).filter(|kind| *kind != Kind::Canary));
        Ok(())
    }
    let expected = [
        ("secrets", &[Kind::ModelKey, Kind::GitToken, Kind::GitKey, Kind::MatrixPassword][..]),
        ("bot.toml", &[Kind::Header]),
        ("matrix/session.json", &[Kind::MatrixToken]),
    ];
    let projects = fs::read_dir(home.state().join("projects"))?.map(|entry| Ok(entry?.path().join("ssh")));
    let projects = projects.collect::<Result<Vec<_>>>()?;
    let projects = projects.into_iter().map(|path| (path, &[Kind::DoorKey, Kind::HostKey][..]));
    for (path, expected) in expected.map(|(path, kinds)| (home.state().join(path), kinds)).into_iter().chain(projects) {
        let mut found = BTreeSet::new();
        kinds(&path, &mut found)?;
        ensure!(found.iter().copied().eq(expected.iter().copied()), "{}: {found:?}", path.display());
    }
    Ok(())
}

/// Where there is one in the content of a file.
const IN_FILES: [&str; 3] = ["files in memory", "the container's files", "the image's layers"];

/// An image that is removed at the end.
struct Made(String);

impl Drop for Made {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["image", "rm", "--force", &self.0]).output();
        if !removed.is_ok_and(|output| output.status.success()) {
            eprintln!("the image {} may be left", self.0);
        }
    }
}
