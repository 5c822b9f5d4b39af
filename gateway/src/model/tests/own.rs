//! Projects with a model of their own, and keys that change.

use journal::{Actor, Cause};

use super::*;
use crate::{
    chat::Person,
    projects::{ProjectEvent, Spec},
};

/// Registers a project of this name.
async fn register(setting: &Setting, name: &str) -> Uuid {
    let project = Uuid::now_v7();
    let spec = Spec {
        name: name.to_owned(),
        path: format!("/nowhere/{name}").into(),
        stack: None,
        git: None,
        branch: None,
        depth: None,
        adopt: false,
        cpus: None,
        memory: None,
        port: 20_000,
        asked_by: Person { surface: SurfaceKind::Console, id: "ann".to_owned() },
    };
    let events = [ProjectEvent::Reserved(spec), ProjectEvent::Registered];
    setting.proxy.registry.append(project, &events, Actor::Gateway, Cause::None).await.expect("it is registered");
    project
}

fn endpoint(base: Url, auth: Auth, key: &str, header: &'static str) -> Endpoint {
    let headers = [(HeaderName::from_static("x-team"), HeaderValue::from_static(header))].into_iter().collect();
    Endpoint { base, auth, key: Key::Given(key.to_owned()), headers }
}

#[tokio::test]
async fn each_project_goes_to_its_own_model_with_its_own_key() {
    let general = endpoint(provider().await, Auth::ApiKey, "general", "all");
    let local =
        Endpoint { key: Key::None, headers: HeaderMap::new(), ..endpoint(provider().await, Auth::None, "", "") };
    let company = endpoint(provider().await, Auth::Bearer, "company", "some");
    let port = |endpoint: &Endpoint| endpoint.base.port().expect("it has one").to_string();
    let ports = [port(&general), port(&local), port(&company)];
    let own = [("local".to_owned(), local), ("company".to_owned(), company)];
    let setting =
        Setting::build(Models::new(general, own, None).expect("clients can be made"), Budget::default()).await;

    let seen = async |project: Uuid| {
        let request = request(Method::POST, "/model/v1/messages", "hello");
        let answer = setting.proxy.router(project).oneshot(request).await.expect("a router always answers");
        let body = answer.into_body().collect().await.expect("it can be read").to_bytes();
        String::from_utf8(body.to_vec()).expect("it is text")
    };
    for (name, port, credential, others) in [
        ("local", &ports[1], None, &["general", "company", "inside", "x-api-key", "authorization", "x-team"][..]),
        (
            "company",
            &ports[2],
            Some("authorization: Bearer company\n"),
            &["general", "x-api-key", "inside", "x-team: all"],
        ),
        ("other", &ports[0], Some("x-api-key: general\n"), &["company", "authorization", "inside", "x-team: some"]),
    ] {
        let seen = seen(register(&setting, name).await).await;
        assert!(seen.contains(&format!("host: 127.0.0.1:{port}\n")), "{name}: {seen}");
        assert!(credential.is_none_or(|credential| seen.contains(credential)), "{name}: {seen}");
        assert!(!others.iter().any(|other| seen.contains(other)), "{name}: {seen}");
    }
    // What is no project's is nobody's own.
    assert!(seen(Uuid::now_v7()).await.contains("x-api-key: general\n"));
}

#[tokio::test]
async fn a_key_that_changes_counts_for_the_next_request() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("key");
    let setting = Setting::new(provider().await, Key::File(file.clone())).await;
    for (key, wanted) in [
        (None, (StatusCode::UNAUTHORIZED, "bot.toml names is not there")),
        (Some("first\n"), (StatusCode::OK, "x-api-key: first\n")),
        (Some("second"), (StatusCode::OK, "x-api-key: second\n")),
        (Some("a\nb"), (StatusCode::UNAUTHORIZED, "a header cannot")),
        (Some("\n"), (StatusCode::UNAUTHORIZED, "no model key")),
        (Some("third\r\n"), (StatusCode::OK, "x-api-key: third\n")),
    ] {
        if let Some(key) = key {
            fs::write(&file, key).expect("it can be written");
        }
        let (status, _, said) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
        assert!(status == wanted.0 && said.contains(wanted.1), "{key:?}: {status} {said}");
        assert!(status.is_success() || !key.is_some_and(|key| key.len() > 1 && said.contains(key)), "{said}");
    }
}

#[tokio::test]
async fn a_key_that_may_be_readable_soon_is_asked_for_again() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // A folder is no file: neither gone nor forbidden.
    let setting = Setting::new(provider().await, Key::File(folder.path().to_owned())).await;
    let (status, _, said) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && said.contains("just now"), "{status} {said}");
}
