//! The sleds forget with the gateway (JRNL-8): what people and agents said is in their journals, too.

use std::{collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use jiff::Timestamp;
use link::{CallError, SledClient, requests::RefusalKind};
use tracing::{debug, info, warn};
use uuid::Uuid;

/// All projects, and their sleds where there is a link.
pub type Linked = Arc<dyn Fn() -> Vec<(Uuid, Option<SledClient>)> + Send + Sync>;

/// Has sleds erase old texts.
pub struct Sleds {
    linked: Linked,
    /// Those that are too old for it, which was told.
    unable: HashSet<Uuid>,
}

impl Sleds {
    /// Asks those that are there when it is time.
    pub fn new(linked: Linked) -> Self {
        Self { linked, unable: HashSet::new() }
    }

    /// Has every sled erase what was said before `before`, in turns that are over; whether all were there that can. Those
    /// that were not are to be asked again: it is safe to repeat.
    pub async fn erase(&mut self, before: Timestamp) -> bool {
        let asked = (self.linked)().into_iter().map(async |(project, sled)| match sled {
            Some(sled) => (project, Some(sled.erase(before).await)),
            None => (project, None),
        });
        let mut all = true;
        for (project, answer) in join_all(asked).await {
            match answer {
                Some(Ok(erased)) => {
                    self.unable.remove(&project);
                    if erased.texts > 0 {
                        info!(%project, erased = erased.texts, "old texts are erased in the sled");
                    }
                }
                Some(Err(CallError::Refused(refused))) if refused.kind == RefusalKind::Invalid => {
                    if self.unable.insert(project) {
                        warn!(%project, %refused.message, "the sled cannot erase old texts: its container is of an older version and has to be made anew");
                    }
                }
                Some(Err(error)) => {
                    warn!(%project, %error, "old texts could not be erased in the sled; it is tried again");
                    all = false;
                }
                None => {
                    debug!(%project, "old texts are not erased in the sled: there is no link to it");
                    all = false;
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use axum::{Json, Router, routing::post};
    use link::{
        Hello, Limits, Side,
        requests::{EraseRequest, Erased, Refusal, paths},
    };

    use super::*;

    async fn linked(router: Router) -> SledClient {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let gateway = link::open(ours, Side::Gateway, Hello::current(), Router::new(), Limits::default());
        let sled = link::open(theirs, Side::Sled, Hello::current(), router, Limits::default());
        let (gateway, sled) = tokio::join!(gateway, sled);
        let ((link, ours), (_, theirs)) = (gateway.expect("it opens"), sled.expect("it opens"));
        tokio::spawn(ours.run());
        tokio::spawn(theirs.run());
        SledClient::new(link)
    }

    #[tokio::test]
    async fn every_sled_that_is_there_is_asked_and_the_others_when_they_are() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let erasing = |name: &'static str| {
            let told = Arc::clone(&told);
            let answer = async move |Json(EraseRequest { before }): Json<EraseRequest>| {
                told.lock().unwrap_or_else(PoisonError::into_inner).push((name, before));
                Json(Erased { texts: 1 })
            };
            Router::new().route(paths::ERASE, post(answer))
        };
        let unknown = || Refusal { kind: RefusalKind::Invalid, message: "this sled knows no such request".to_owned() };
        let (first, second, old) = (
            linked(erasing("first")).await,
            linked(erasing("second")).await,
            linked(Router::new().fallback(async move || unknown())).await,
        );
        let ids = [1, 2, 3].map(Uuid::from_u128);
        let there = Arc::new(Mutex::new(vec![(ids[0], Some(first)), (ids[1], None), (ids[2], Some(old))]));
        let source = Arc::clone(&there);
        let mut sleds = Sleds::new(Arc::new(move || source.lock().unwrap_or_else(PoisonError::into_inner).clone()));
        let before = Timestamp::from_second(100).expect("it is a moment");

        assert!(!sleds.erase(before).await, "the second is away");
        assert_eq!(*told.lock().expect("nobody panicked"), [("first", before)]);
        assert_eq!(sleds.unable, HashSet::from([ids[2]]));

        there.lock().expect("nobody panicked")[1].1 = Some(second);
        assert!(sleds.erase(before).await, "one that never can is not waited for");
        assert_eq!(*told.lock().expect("nobody panicked"), [("first", before), ("first", before), ("second", before)]);

        // Its container is made anew.
        there.lock().expect("nobody panicked")[2].1 = Some(linked(erasing("third")).await);
        assert!(sleds.erase(before).await);
        assert!(sleds.unable.is_empty());
    }
}
