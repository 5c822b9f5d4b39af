//! The way to remotes behind SSH servers.

use std::sync::Mutex;

use futures_util::StreamExt;
use link::git::{Frame, FrameDecoder, Service as Asked, SshRequest};
use russh::{
    Channel, ChannelId,
    keys::{Algorithm, PrivateKey},
    server::{self, Auth, ChannelOpenHandle, Msg, VerifiedPublicKey},
};
use tokio::net::TcpListener;

use super::*;

/// What the server's program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// Says what it hears, and at its end ends with this code.
    Echo(u32),
    /// Is gone at the first word, and the server with it.
    Vanish,
    /// Is not started.
    Refused,
}

/// An SSH server that runs nothing and remembers everything.
#[derive(Clone)]
struct Server {
    port: u16,
    program: Program,
    host_key: String,
    /// The public half of the key that it takes, without a comment.
    takes: String,
    heard: Arc<Mutex<Vec<String>>>,
}

/// A private key as people store it, and its public half.
fn key() -> (String, String) {
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).expect("it can be made");
    let public = key.public_key().to_openssh().expect("it can be written");
    (key.to_openssh(russh::keys::ssh_key::LineEnding::LF).expect("it can be written").to_string(), public)
}

impl Server {
    async fn start(program: Program, takes: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        let (private, host_key) = key();
        let config = server::Config {
            keys: vec![PrivateKey::from_openssh(private).expect("it can be read")],
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        };
        let this = Self { port, program, host_key, takes: takes.to_owned(), heard: Arc::default() };
        let (config, serving) = (Arc::new(config), this.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.note("connected");
                if let Ok(session) = server::run_stream(Arc::clone(&config), stream, serving.clone()).await {
                    let gone = serving.clone();
                    tokio::spawn(async move {
                        drop(session.await);
                        gone.note("gone");
                    });
                }
            }
        });
        this
    }

    fn note(&self, what: impl Into<String>) {
        self.heard.lock().expect("nobody panicked").push(what.into());
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("nobody panicked").iter().filter(|what| *what != "gone").cloned().collect()
    }

    /// Waits until it has lost a client.
    async fn lost(&self) {
        let lost = async {
            while !self.heard.lock().expect("nobody panicked").contains(&"gone".to_owned()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), lost).await.expect("the session ends");
    }

    /// A project whose remote it is; `path` begins with `/`.
    fn scene(&self, path: &str) -> Scene {
        let known = format!("[127.0.0.1]:{} {}\n", self.port, self.host_key);
        Scene::of(&format!("ssh://deploy@127.0.0.1:{}{path}", self.port), &known)
    }

    /// What the container asks for the repository at that path.
    fn request(&self, path: &str) -> SshRequest {
        SshRequest {
            user: Some("deploy".into()),
            host: "127.0.0.1".into(),
            port: Some(self.port),
            path: path.into(),
            protocol: Some("version=2".into()),
        }
    }

    fn secret(&self) -> String {
        format!("git:ssh://127.0.0.1:{}", self.port)
    }
}

impl server::Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let fits = key.public_key.to_openssh().is_ok_and(|key| key == self.takes);
        self.note(format!("{user} with {} {fits}", key.algorithm));
        Ok(if fits { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn env_request(
        &mut self,
        _: ChannelId,
        name: &str,
        value: &str,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.note(format!("{name}={value}"));
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.note(String::from_utf8_lossy(command));
        if self.program == Program::Refused {
            session.channel_failure(channel)
        } else {
            session.channel_success(channel)
        }
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if self.program == Program::Vanish {
            return Err(russh::Error::Disconnect);
        }
        session.data(channel, data.to_vec())
    }

    async fn channel_eof(&mut self, channel: ChannelId, session: &mut server::Session) -> Result<(), Self::Error> {
        if let Program::Echo(code) = self.program {
            session.extended_data(channel, 1, &b"bye"[..])?;
            session.exit_status_request(channel, code)?;
            session.eof(channel)?;
            session.close(channel)?;
        }
        Ok(())
    }
}

fn post(service: Asked, request: &SshRequest, body: Body) -> Request<Body> {
    let uri = request.path_and_query(service).expect("it can be written");
    Request::post(uri).body(body).expect("it is a request")
}

fn frames(body: &[u8]) -> (String, String, Option<u32>) {
    let (mut decoder, mut stdout, mut stderr, mut code) = (FrameDecoder::default(), String::new(), String::new(), None);
    decoder.feed(body);
    while let Some(frame) = decoder.next_frame().expect("they are frames") {
        match frame {
            Frame::Stdout(said) => stdout.push_str(&String::from_utf8_lossy(&said)),
            Frame::Stderr(said) => stderr.push_str(&String::from_utf8_lossy(&said)),
            Frame::Exit(exit) => code = Some(exit),
        }
    }
    (stdout, stderr, code)
}

const PUSH: (Service, Part, By) = (Service::Push, Part::Whole, By::Container);

#[tokio::test]
async fn the_service_of_the_repository_itself_runs_and_nothing_else_whatever_its_path_says() {
    let (private, public) = key();
    let server = Server::start(Program::Echo(0), &public).await;
    let path = "/srv/it's $(id) `id`;!x \"y\"/ä";
    let scene = server.scene(&path.replace(' ', "%20"));
    scene.store(&server.secret(), &private);
    let (status, _, body) = scene.said(post(Asked::ReceivePack, &server.request(path), Body::from("hello"))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(frames(&body.expect("it is whole")), ("hello".to_owned(), "bye".to_owned(), Some(0)));
    let quoted = "git-receive-pack '/srv/it'\\''s $(id) `id`;'\\!'x \"y\"/ä'";
    assert_eq!(server.heard(), ["connected", "deploy with ssh-ed25519 true", "GIT_PROTOCOL=version=2", quoted]);
    let [(service, part, by, end)] = scene.used().await[..] else { panic!("it is one use") };
    assert_eq!(((service, part, by), end), (PUSH, Some((Outcome::Done, 5, 5))));
    server.lost().await;
}

#[tokio::test]
async fn any_other_place_is_not_found_and_nobody_is_asked() {
    let (private, public) = key();
    let server = Server::start(Program::Echo(0), &public).await;
    let scene = server.scene("/srv/a");
    scene.store(&server.secret(), &private);
    let own = server.request("/srv/a");
    for (what, request) in [
        ("path", SshRequest { path: "/srv/b".into(), ..own.clone() }),
        ("path", SshRequest { path: "/srv/x/../a".into(), ..own.clone() }),
        ("path", SshRequest { path: "srv/a".into(), ..own.clone() }),
        ("path", SshRequest { path: "/srv/a' 'b".into(), ..own.clone() }),
        ("user", SshRequest { user: None, ..own.clone() }),
        ("user", SshRequest { user: Some("root".into()), ..own.clone() }),
        ("host", SshRequest { host: "localhost".into(), ..own.clone() }),
        ("port", SshRequest { port: None, ..own.clone() }),
    ] {
        let (status, ..) = scene.said(post(Asked::UploadPack, &request, Body::empty())).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
    }
    for (uri, status) in [
        ("/git/ssh/git-upload-archive?host=a&path=b", StatusCode::NOT_FOUND),
        ("/git/ssh/git-upload-pack", StatusCode::BAD_REQUEST),
        ("/git/ssh/git-upload-pack?host=a&path=b&port=x", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(
            scene.said(Request::post(uri).body(Body::empty()).expect("it is a request")).await.0,
            status,
            "{uri}"
        );
    }
    assert_eq!(server.heard(), Vec::<String>::new());
    assert_eq!(scene.used().await, []);
}

#[tokio::test]
async fn a_server_that_is_not_the_known_one_sees_no_key() {
    let (private, public) = key();
    let server = Server::start(Program::Echo(0), &public).await;
    let remote = format!("ssh://deploy@127.0.0.1:{}/srv/a", server.port);
    let (_, other) = key();
    for (known, words) in [
        (String::new(), "is not known; its key is SHA256:"),
        (format!("127.0.0.2 {}", server.host_key), "is not known"),
        (format!("[127.0.0.1]:{} {other}", server.port), "not the one that is known"),
        (format!("@revoked * {}\n[127.0.0.1]:{} {0}", server.host_key, server.port), "not the one that is known"),
    ] {
        let scene = Scene::of(&remote, &known);
        scene.store(&server.secret(), &private);
        let (status, _, body) = scene.said(post(Asked::UploadPack, &server.request("/srv/a"), Body::empty())).await;
        let said = text(body);
        assert!(status == StatusCode::FORBIDDEN && said.contains(words), "{known}: {said}");
        if known.is_empty() {
            assert!(said.contains(&format!("[127.0.0.1]:{} {}", server.port, server.host_key)), "{said}");
        }
        assert_eq!(scene.outcomes().await, [Outcome::Untrusted]);
    }
    assert!(server.heard().iter().all(|what| what == "connected"), "{:?}", server.heard());
}

#[tokio::test]
async fn a_key_is_read_anew_each_time_and_one_that_is_not_taken_is_said_so() {
    let ((private, public), (wrong, _)) = (key(), key());
    let server = Server::start(Program::Echo(1), &public).await;
    let scene = server.scene("/srv/a");
    let ask = async || {
        let (status, _, body) = scene.said(post(Asked::UploadPack, &server.request("/srv/a"), Body::empty())).await;
        (status, body.expect("it is whole"))
    };
    let (status, said) = ask().await;
    let said = String::from_utf8_lossy(&said);
    assert!(status == StatusCode::FORBIDDEN && said.contains("there is no key for the git server"), "{said}");
    assert!(said.contains(&format!("musher secrets set {}", server.secret())), "{said}");
    scene.store(&server.secret(), &wrong);
    let (status, said) = ask().await;
    assert!(status == StatusCode::FORBIDDEN && String::from_utf8_lossy(&said).contains("does not take the key"));
    scene.store(&server.secret(), &private);
    let (status, said) = ask().await;
    assert_eq!((status, frames(&said)), (StatusCode::OK, (String::new(), "bye".to_owned(), Some(1))));
    assert_eq!(scene.outcomes().await, [Outcome::Denied, Outcome::Failed]);
}

#[tokio::test]
async fn rsa_keys_sign_with_sha2() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("key");
    let made = tokio::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "", "-f"])
        .arg(&file)
        .status();
    assert!(made.await.expect("OpenSSH's client is there").success());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("it is there");
    let server = Server::start(Program::Echo(0), read("key.pub").trim()).await;
    let scene = server.scene("/srv/a");
    scene.store(&server.secret(), &read("key"));
    let (status, ..) = scene.said(post(Asked::UploadPack, &server.request("/srv/a"), Body::empty())).await;
    assert_eq!((status, server.heard()[1].as_str()), (StatusCode::OK, "deploy with rsa-sha2-512 true"));
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_and_whatever_is_cut_is_journaled_so() {
    let (private, public) = key();
    let server = Server::start(Program::Echo(0), &public).await;
    let scene = server.scene("/srv/a");
    scene.store(&server.secret(), &private);
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let body = Body::from_stream(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let answer = scene.ask(post(Asked::ReceivePack, &server.request("/srv/a"), body)).await;
    let mut answer = answer.into_body().into_data_stream();
    for word in ["one", "two"] {
        sender.send(Ok(word.into())).await.expect("it is taken");
        let frame = answer.next().await.expect("it is there").expect("it goes on");
        assert_eq!(frames(&frame).0, word);
    }
    // The link is cut while both sides could go on.
    drop(answer);
    assert_eq!(scene.outcomes().await, [Outcome::CutOff]);
    server.lost().await;

    // The container breaks off in the middle of what it sends.
    let halves = [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))];
    let body = Body::from_stream(futures_util::stream::iter(halves));
    let (status, _, body) = scene.said(post(Asked::ReceivePack, &server.request("/srv/a"), body)).await;
    assert_eq!((status, body), (StatusCode::OK, None), "no exit code, and no whole answer");

    let vanishing = Server::start(Program::Vanish, &public).await;
    let vain = vanishing.scene("/srv/a");
    vain.store(&vanishing.secret(), &private);
    let request = post(Asked::ReceivePack, &vanishing.request("/srv/a"), Body::from("x"));
    let (status, _, body) = vain.said(request).await;
    assert_eq!((status, body), (StatusCode::OK, None));
    assert_eq!((scene.outcomes().await[1], vain.outcomes().await), (Outcome::CutOff, vec![Outcome::CutOff]));
}

#[tokio::test]
async fn odd_protocols_are_not_passed_on_and_refusals_have_words() {
    let (private, public) = key();
    let server = Server::start(Program::Refused, &public).await;
    let scene = server.scene("/srv/a");
    scene.store(&server.secret(), &private);
    let odd = SshRequest { protocol: Some("version=2:x".into()), ..server.request("/srv/a") };
    let (status, _, body) = scene.said(post(Asked::UploadPack, &odd, Body::empty())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(body).contains("does not run git for us"));
    assert_eq!(server.heard()[2..], ["git-upload-pack '/srv/a'"]);

    let closed = Scene::of("ssh://deploy@127.0.0.1:1/srv/a", "");
    closed.store("git:ssh://127.0.0.1:1", &private);
    let request = SshRequest { port: Some(1), ..server.request("/srv/a") };
    let (status, _, body) = closed.said(post(Asked::UploadPack, &request, Body::empty())).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text(body).contains("could not be reached"));
    assert_eq!((scene.outcomes().await, closed.outcomes().await), (vec![Outcome::Failed], vec![Outcome::Unreachable]));

    scene.journal.close().await;
    let (status, ..) = scene.said(post(Asked::UploadPack, &server.request("/srv/a"), Body::empty())).await;
    assert_eq!((status, server.heard().len()), (StatusCode::SERVICE_UNAVAILABLE, 3), "nobody was asked");
}
