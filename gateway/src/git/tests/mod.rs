//! Tests of the way to git remotes, with servers of their own on loopback.

mod ssh;
mod web;

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use jiff::Timestamp;
use tower::ServiceExt;
use uuid::Uuid;

use super::{
    Audit, Credentials, Git, Reach, Remote, Settings,
    audit::{By, Outcome, Part, Service},
};
use crate::{home::Home, secrets::Secrets, store::Journal, tasks::Tasks};

/// A project with a remote, and the gateway's way there.
struct Scene {
    folder: tempfile::TempDir,
    secrets: Secrets,
    journal: Journal,
    git: Arc<Git>,
    tasks: Tasks,
    project: Uuid,
    router: Router,
}

impl Scene {
    fn of(remote: &str, known_hosts: &str) -> Self {
        Self::with(remote, known_hosts, &[])
    }

    fn with(remote: &str, known_hosts: &str, names: &'static [(&'static str, &'static str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let secrets = Secrets::new(&Home::open(&folder.path().join("state")).expect("it can be made"));
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(Timestamp::UNIX_EPOCH));
        let journal = journal.expect("it can be made");
        let (tasks, project) = (Tasks::new(), Uuid::now_v7());
        let known = folder.path().join("known_hosts");
        std::fs::write(&known, known_hosts).expect("it can be written");
        let remote = Remote::parse(remote, Path::new("/")).map_err(|refusal| refusal.to_string());
        let remote = remote.expect("it is an address");
        let reach = Reach::new(Vec::new(), Vec::new());
        let reach = if names.is_empty() { reach } else { reach.with_lookup(names) };
        let git = Git::within(
            reach,
            Settings { known_hosts: vec![known], ..Settings::default() },
            Credentials::new(secrets.clone()),
            Arc::new(move |asked| (asked == project).then(|| remote.clone())),
            Audit::new(journal.clone(), tasks.clone(), Arc::new(|_, _| journal::Cause::None)),
            tasks.clone(),
        );
        let git = git.map_err(|refusal| refusal.to_string()).expect("it can be made");
        let router = git.router(project);
        Self { folder, secrets, journal, git, tasks, project, router }
    }

    fn store(&self, name: &str, value: &str) {
        self.secrets.set(name, value).map_err(|refusal| refusal.to_string()).expect("it can be stored");
    }

    async fn ask(&self, request: Request<Body>) -> http::Response<Body> {
        self.router.clone().oneshot(request).await.expect("a router does not fail")
    }

    /// Status, headers and whole body of the answer; a body that breaks off is nothing.
    async fn said(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Option<Bytes>) {
        let (parts, body) = self.ask(request).await.into_parts();
        let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
        (parts.status, parts.headers, body)
    }

    /// What is journaled, once everything has ended.
    async fn used(&self) -> Vec<(Service, Part, By, Option<(Outcome, u64, u64)>)> {
        let ended = async {
            loop {
                let uses = self.git.audit.uses(self.project).await.expect("it can be read");
                if uses.latest.iter().all(|used| used.end.is_some()) {
                    return uses;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let uses = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("every use ends");
        uses.latest.iter().map(|used| (used.service, used.part, used.by, used.end)).collect()
    }

    async fn outcomes(&self) -> Vec<Outcome> {
        self.used().await.into_iter().filter_map(|(.., end)| Some(end?.0)).collect()
    }
}

fn text(body: Option<Bytes>) -> String {
    String::from_utf8(body.expect("the body is whole").to_vec()).expect("it is text")
}
