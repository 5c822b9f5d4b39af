//! Projects that are made as far as a stand-in for the engine lets them: it says what it is, and makes no container.

use std::{fs, os::unix::fs::chown, path::Path};

use axum::{
    Json, Router,
    extract::Path as UrlPath,
    http::StatusCode,
    routing::{delete, get, post},
};
use serde_json::json;

use super::*;
use crate::{
    git::Remote,
    projects::{Made, Owner, Project, Step, place, project::STREAM},
};

/// Serves the stand-in; gives the configuration of a gateway beside it.
fn beside_an_engine(folder: &tempfile::TempDir) -> String {
    beside(folder, Router::new().route("/containers/json", get(Json(json!([])))))
}

/// The same, where the engine answers so when it is asked for more than what it is.
fn beside(folder: &tempfile::TempDir, answers: Router) -> String {
    let socket = folder.path().join("engine.sock");
    let answers = answers.route("/version", get(Json(json!({ "ApiVersion": "1.47" })))).route(
        "/info",
        get(Json(json!({
            "ServerVersion": "27", "Architecture": "x86_64", "NCPU": 2, "MemTotal": 1_u64 << 30, "CgroupVersion": "2",
        }))),
    );
    let answers = Router::new().nest("/{api}", answers.clone()).merge(answers);
    let listener = UnixListener::bind(&socket).expect("there is room");
    tokio::spawn(axum::serve(listener, answers).into_future());
    CONFIG.replace("/nowhere/docker.sock", socket.to_str().expect("it is text"))
}

impl Life {
    /// What the command is answered with.
    async fn ask(&mut self, event_id: &str, text: &str) -> String {
        self.say(event_id, text).await;
        loop {
            let said = self.hear().await;
            if said.answers == [event_id] {
                return said.markdown;
            }
        }
    }

    /// A project whose deletion broke off before its container was removed.
    async fn half_deleted(&self) {
        let events = [
            ProjectEvent::Reserved(Spec::example("/srv/app")),
            ProjectEvent::StepBegun { step: Step::Container },
            ProjectEvent::Registered,
            ProjectEvent::DeletionBegun,
        ];
        let registry = &self.gateway.intake.registry;
        registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
    }

    /// All projects that there ever were, oldest first.
    async fn projects(&self) -> Vec<Project> {
        let mut all = self.gateway.journal.load_all::<Project>(STREAM).await.expect("they are readable");
        all.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        all.into_iter().map(|(_, loaded)| loaded.state).collect()
    }
}

/// A repository where projects may lie, whose files are no root's.
fn repository(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = folder.path().canonicalize().expect("it is there").join("musher").join(name);
    fs::create_dir_all(path.join(".git")).expect("there is room");
    if nix::unistd::geteuid().is_root() {
        chown(&path, Some(1000), Some(1000)).expect("root may");
    }
    path
}

#[tokio::test]
async fn who_adopts_the_folder_of_a_deleted_project_gets_its_remote() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    let path = repository(&folder, "app");
    let git = Some(Remote::parse("https://example.org/team/app.git", Path::new("/root")).expect("it is one"));
    let events = [
        ProjectEvent::Reserved(Spec { git: git.clone(), ..Spec::example(&path) }),
        ProjectEvent::Registered,
        ProjectEvent::DeletionBegun,
        ProjectEvent::Removed,
    ];
    let registry = &life.gateway.intake.registry;
    registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
    let answer = life.ask("$new", "!new project new --path ~/musher/app --adopt").await;
    assert!(answer.contains("the sled's binary"), "it comes no further than that: {answer}");
    let specs: Vec<_> = life.projects().await.into_iter().filter_map(|project| project.spec).collect();
    let told: Vec<_> = specs.iter().map(|spec| (&*spec.name, &spec.git, &spec.path)).collect();
    assert_eq!(told, [("app", &git, &path), ("new", &git, &path)]);
    life.end().await;
}

#[tokio::test]
async fn what_was_made_is_removed_also_where_the_journal_takes_no_word_of_that() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    life.gateway.journal.refuse("project.abandoned", 1);
    let answer = life.ask("$new", "!new project app").await;
    assert!(answer.contains("the sled's binary") && !answer.contains("could not all be removed"), "{answer}");
    assert_eq!(life.gateway.journal.append_failures(), 1);
    let stages: Vec<_> = life.projects().await.iter().map(|project| project.stage).collect();
    assert_eq!(stages, [Stage::Removed]);
    assert!(!folder.path().join("musher").exists(), "what was made on the way is gone");
    life.end().await;
}

#[tokio::test]
async fn what_a_failure_left_half_made_is_deleted_while_the_gateway_runs() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    life.gateway.journal.refuse("project.abandoned", 2);
    let answer = life.ask("$new", "!new project app").await;
    assert!(answer.contains("could not all be removed") && answer.contains("delete project app"), "{answer}");
    assert!(!folder.path().join("musher").exists(), "what fills a disk is gone all the same");
    assert!(life.ask("$list", "!projects").await.contains("half made"));
    assert!(life.ask("$switch", "!switch app").await.contains("could not be made"));
    let again = life.ask("$again", "!new project app").await;
    assert!(again.contains("already") && again.contains("delete project app"), "{again}");
    let asked = life.ask("$delete", "!delete project app").await;
    assert!(asked.contains("confirm delete app") && !asked.contains("its home"), "{asked}");
    let deleted = life.ask("$confirm", "!confirm delete app").await;
    assert!(deleted.contains("is deleted"), "{deleted}");
    let stages: Vec<_> = life.projects().await.iter().map(|project| project.stage).collect();
    assert_eq!(stages, [Stage::Removed]);
    life.end().await;
}

#[tokio::test]
async fn every_event_of_a_project_follows_from_the_command_that_asked_for_it() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    life.ask("$failed", "!new project once").await;
    life.gateway.journal.refuse("project.abandoned", 2);
    life.ask("$new", "!new project app").await;
    life.ask("$delete", "!delete project app").await;
    life.ask("$confirm", "!confirm delete app").await;
    let home = life.gateway.home.clone();
    life.end().await;
    let journal = journal::Journal::open_read_only(&home.journal()).expect("it opens");
    let events = journal.read_all(0, 500).expect("it is readable");
    let without: Vec<_> = events.iter().filter(|event| event.cause == Cause::None).map(|event| &*event.kind).collect();
    assert_eq!(without, ["gateway.created"]);
    let by = |kind: &str| -> Vec<_> {
        events.iter().filter(|event| event.kind == kind).map(|event| event.cause.clone()).collect()
    };
    let commands = |ids: &[&str]| ids.iter().map(|id| Cause::Command((*id).to_owned())).collect::<Vec<_>>();
    assert_eq!(by("project.reserved"), commands(&["$failed", "$new"]));
    assert_eq!(by("project.stack_chosen"), commands(&["$failed", "$new"]));
    assert_eq!(by("project.removed"), commands(&["$failed", "$confirm"]));
}

#[tokio::test]
async fn what_is_being_made_is_not_deleted_and_what_nobody_makes_any_more_is() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    let registry = Arc::clone(&life.gateway.intake.registry);
    let claim = registry.claims().mint(Cause::None);
    let path = folder.path().canonicalize().expect("it is there").join("musher/app");
    fs::create_dir_all(&path).expect("there is room");
    fs::write(path.join("thesis"), "what somebody copied there meanwhile").expect("there is room");
    let found = ProjectEvent::DirectoryFound {
        identity: place::identity(&path).expect("it is there"),
        owner: Owner { uid: 1000, gid: 1000 },
        made: Made::Folder { parents: Vec::new() },
    };
    let events = [
        ProjectEvent::Reserved(Spec::example(&path)),
        ProjectEvent::StepBegun { step: Step::Directory },
        found,
        ProjectEvent::StepBegun { step: Step::Repository },
    ];
    registry.append(claim.id(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
    let refused = life.ask("$early", "!delete project app").await;
    assert!(refused.contains("still being made"), "{refused}");
    // A panic in the middle of it.
    let making = tokio::spawn(async move {
        let _claim = claim;
        panic!("a fault of our own");
    });
    making.await.expect_err("it broke off");
    life.ask("$delete", "!delete project app").await;
    let deleted = life.ask("$confirm", "!confirm delete app").await;
    assert!(deleted.contains("is deleted"), "{deleted}");
    assert!(path.join("thesis").exists(), "what the gateway has not made is not its to remove");
    let stages: Vec<_> = life.projects().await.iter().map(|project| project.stage).collect();
    assert_eq!(stages, [Stage::Removed], "and holds nothing up");
    life.end().await;
}

#[tokio::test]
async fn a_removal_that_failed_is_told_and_taken_up_again() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.half_deleted().await;
    let listed = life.ask("$list", "!projects").await;
    assert!(listed.contains("could not be removed to the end; `delete project` tries it again"), "{listed}");
    let switched = life.ask("$switch", "!switch app").await;
    assert!(switched.contains("could not be removed") && switched.contains("delete project app"), "{switched}");
    life.end().await;
    let life = Life::configured(&folder, &beside_an_engine(&folder)).await;
    let stages: Vec<_> = life.projects().await.iter().map(|project| project.stage).collect();
    assert_eq!(stages, [Stage::Removed], "the start has waited for it");
    life.end().await;
}

#[tokio::test]
async fn a_start_is_not_held_up_by_what_cannot_be_removed() {
    let folder = tempfile::tempdir().expect("there is room");
    let life = Life::begin(&folder).await;
    life.half_deleted().await;
    life.end().await;
    let config = beside(&folder, Router::new().route("/containers/json", get(std::future::pending::<()>)));
    let life = Life::configured(&folder, &config);
    let mut life = tokio::time::timeout(TIDYING * 6, life).await.expect("the engine may take its time");
    let switched = life.ask("$switch", "!switch app").await;
    assert!(switched.contains("is being removed") && !switched.contains("tries it again"), "{switched}");
    life.end().await;
}

#[tokio::test]
async fn a_deletion_does_not_wait_for_an_image_that_is_built_again() {
    let folder = tempfile::tempdir().expect("there is room");
    let begun = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&begun);
    let engine = Router::new()
        .route("/containers/json", get(Json(json!([]))))
        .route(
            "/networks",
            get(Json(json!([{ "Id": "bridge", "Options": { "com.docker.network.bridge.enable_icc": "false" } }]))),
        )
        .route("/networks/{id}", delete(StatusCode::NO_CONTENT))
        .route("/containers/create", post((StatusCode::NOT_FOUND, Json(json!({ "message": "no such image" })))))
        .route(
            "/images/{name}/json",
            get(async |UrlPath(name): UrlPath<String>| {
                let there = name.starts_with("musher-root:") || name.starts_with("musher-base:");
                if there {
                    Ok(Json(json!({ "Id": name })))
                } else {
                    Err((StatusCode::NOT_FOUND, Json(json!({ "message": "no" }))))
                }
            }),
        )
        .route(
            "/build",
            post(async move || {
                told.notify_one();
                std::future::pending::<()>().await;
            }),
        );
    fs::write(folder.path().join("sled"), "a sled").expect("there is room");
    let config = beside(&folder, engine);
    let mut life = Life::beside(&folder, &config, &folder.path().join("musher")).await;
    let path = repository(&folder, "app");
    let events = [
        ProjectEvent::Reserved(Spec::example(&path)),
        ProjectEvent::DirectoryFound {
            identity: place::identity(&path).expect("it is there"),
            owner: Owner { uid: 1000, gid: 1000 },
            made: Made::Nothing,
        },
        ProjectEvent::ImageChosen { image: "lost".to_owned() },
        ProjectEvent::StepBegun { step: Step::Container },
        ProjectEvent::Registered,
    ];
    let registry = &life.gateway.intake.registry;
    registry.append(Uuid::now_v7(), &events, Actor::Gateway, Cause::None).await.expect("they follow");
    life.ask("$switch", "!switch app").await;
    life.say("$status", "!status").await;
    begun.notified().await;
    life.ask("$delete", "!delete project app").await;
    let deleted = life.ask("$confirm", "!confirm delete app").await;
    assert!(deleted.contains("is deleted"), "{deleted}");
}
