//! Counting, the fold, the budget over a day's end, and what people read.

use std::sync::atomic::{AtomicI64, Ordering};

use bot_config::Config;
use futures_util::FutureExt;
use jiff::{Timestamp, ToSpan};
use journal::Fold;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{tally::OTHER, *};
use crate::chat::SurfaceKind;

const NOON: &str = "2026-07-26T12:00:00Z";

/// While it is there, Tokio's paused clock stands still: it goes on by itself only when no blocking task runs, and it
/// must not while the journal's thread is at work.
struct StandStill(Option<std::sync::mpsc::Sender<()>>, Option<tokio::task::JoinHandle<()>>);

impl StandStill {
    fn new() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let held = tokio::task::spawn_blocking(move || assert!(receiver.recv().is_err(), "nothing is ever sent"));
        Self(Some(sender), Some(held))
    }

    /// Lets time go on until `work` is done.
    async fn let_go<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.0 = None;
        self.1.take().expect("time stands still").await.expect("it ends");
        let done = work.await;
        *self = Self::new();
        done
    }
}

/// A wall clock that goes with Tokio's, from a moment on that can be moved.
struct TestClock {
    base: AtomicI64,
    began: Instant,
    /// The journal asks from a thread of its own, that knows nothing of Tokio's time by itself.
    runtime: tokio::runtime::Handle,
}

impl TestClock {
    fn at(moment: &str) -> Arc<Self> {
        Arc::new(Self {
            base: AtomicI64::new(at(moment).as_second()),
            began: Instant::now(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    fn jump(&self, moment: &str) {
        let elapsed = i64::try_from(self.began.elapsed().as_secs()).expect("it is small");
        self.base.store(at(moment).as_second() - elapsed, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let _tokio = self.runtime.enter();
        let base = Timestamp::from_second(self.base.load(Ordering::Relaxed)).expect("it is a moment");
        base + self.began.elapsed()
    }
}

fn at(moment: &str) -> Timestamp {
    moment.parse().expect("it is a moment")
}

fn budget(settings: &str) -> Budget {
    let config = Config::parse(&format!("[budget]\n{settings}"), std::path::Path::new("bot.toml"));
    Budget::from(&config.expect("the settings are right").budget)
}

const PRICES: &str = "prices = { claude = { input = 3, output = 15, cache_read = 0.3, cache_write = 3.75 } }\n";

fn room(id: &str) -> Room {
    Room { surface: SurfaceKind::Matrix, id: id.to_owned() }
}

fn tokens(input: u64, output: u64) -> Tokens {
    Tokens { input, output, ..Tokens::default() }
}

struct Setting {
    folder: tempfile::TempDir,
    journal: Journal,
    clock: Arc<TestClock>,
    tasks: Tasks,
    usage: Usage,
}

impl Setting {
    async fn new(budget: Budget) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = TestClock::at(NOON);
        let (journal, tasks, usage) = open(&folder, &clock, budget).await;
        Self { folder, journal, clock, tasks, usage }
    }

    /// The same journal, opened by the next gateway.
    async fn restart(self, budget: Budget) -> Self {
        let Self { folder, journal, clock, tasks, usage } = self;
        tasks.shutdown(Duration::from_secs(10)).await.expect("nothing goes on");
        journal.close().await;
        drop((journal, usage));
        let (journal, tasks, usage) = open(&folder, &clock, budget).await;
        Self { folder, journal, clock, tasks, usage }
    }

    async fn count(&self, project: Uuid, model: &str, tokens: Tokens) {
        self.usage.request(project).count(model.to_owned(), tokens).await.expect("it is journaled");
    }

    async fn turn(&self, project: Uuid, room_id: &str, counts: &[(&str, Tokens)], took: Duration) -> Uuid {
        let turn = Uuid::now_v7();
        self.usage.begin(project, &room(room_id), turn, Cause::None);
        for (model, tokens) in counts {
            self.count(project, model, *tokens).await;
        }
        self.end(project, turn, took).await;
        turn
    }

    /// Ends a turn as those do who journal its end.
    async fn end(&self, project: Uuid, turn: Uuid, took: Duration) {
        if let Some(append) = self.usage.ending(project, turn, took).expect("it can be encoded") {
            self.journal.append(append).await.expect("it is journaled");
        }
        self.usage.end(project, turn).await.expect("it is taken in");
    }

    fn used_by(&self, project: Uuid, turn: Uuid) -> Option<Used> {
        self.usage.read(project, |tally| tally.turn(turn).map(|turn| turn.used.clone()))
    }
}

async fn open(folder: &tempfile::TempDir, clock: &Arc<TestClock>, budget: Budget) -> (Journal, Tasks, Usage) {
    let path = folder.path().join("journal.db");
    let journal = Journal::open(&path, Arc::clone(clock) as Arc<dyn Clock>).expect("it can be opened");
    let (tasks, metrics) = (Tasks::new(), Metrics::new(Timestamp::UNIX_EPOCH));
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let usage = Usage::open(journal.clone(), budget, clock, tasks.clone(), metrics).await.expect("it opens");
    (journal, tasks, usage)
}

#[tokio::test]
async fn requests_belong_to_the_turn_that_ran_when_they_were_made() {
    let setting = Setting::new(Budget::default()).await;
    let (one, other, turn) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    setting.usage.begin(one, &room("!a:b"), turn, Cause::Command("$said".into()));
    let late = setting.usage.request(one);
    setting.count(one, "claude-x", tokens(1, 2)).await;
    setting.count(other, "claude-x", tokens(100, 0)).await;
    for _ in 0..2 {
        setting.end(one, turn, Duration::from_secs(3)).await;
    }
    // The answer of a request outlives its turn.
    late.count("claude-x".to_owned(), tokens(10, 20)).await.expect("it is journaled");
    setting.count(one, "claude-x", tokens(1000, 0)).await;

    let used = setting.used_by(one, turn).expect("it is among the latest");
    assert_eq!((used.amount().tokens, used.turns, used.millis), (tokens(11, 22), 1, 3000));
    let today = setting.usage.today(one);
    assert_eq!((today.amount().tokens, today.amount().requests, today.turns), (tokens(1011, 22), 3, 1));
    assert_eq!(setting.usage.today(other).amount().tokens, tokens(100, 0));

    // Each event of the turn's follows from what the turn does, and what nobody asked for from nothing.
    let events = setting.journal.read(&stream(one), 0).await.expect("it is readable");
    let said = || Cause::Command("$said".into());
    let causes: Vec<_> = events.into_iter().map(|event| event.cause).collect();
    assert_eq!(causes, [said(), said(), said(), Cause::None]);

    // A turn that is taken up after a restart and ends there again is counted once.
    let setting = setting.restart(Budget::default()).await;
    setting.usage.begin(one, &room("!a:b"), turn, Cause::Command("$said".into()));
    setting.end(one, turn, Duration::from_secs(9)).await;
    assert_eq!(setting.usage.today(one), today);
    assert_eq!(setting.used_by(one, turn), Some(used));
}

#[tokio::test]
async fn counts_of_one_project_at_once_are_all_there() {
    let setting = Setting::new(Budget::default()).await;
    let project = Uuid::now_v7();
    let counts = (0..50).map(|n| setting.usage.request(project).count("claude-x".to_owned(), tokens(n, 1)));
    for counted in futures_util::future::join_all(counts).await {
        counted.expect("nobody is in the way of anybody");
    }
    let today = setting.usage.today(project);
    assert_eq!((today.amount().tokens, today.amount().requests), (tokens(49 * 50 / 2, 50), 50));
    let folded = setting.journal.load::<Tally>(&StreamId::new("usage", project)).await.expect("it is readable");
    assert_eq!(folded.state, setting.usage.read(project, Tally::clone));
    // What a snapshot holds is the same again.
    let kept = serde_json::to_string(&folded.state).expect("it is JSON");
    assert_eq!(serde_json::from_str::<Tally>(&kept).expect("it is a tally"), folded.state);
}

#[tokio::test]
async fn sums_are_kept_and_the_next_start_goes_on_from_them() {
    let setting = Setting::new(Budget::default()).await;
    let project = Uuid::now_v7();
    let stream = StreamId::new("usage", project);
    let counts = (0..SNAPSHOT_EVERY).map(|_| setting.usage.request(project).count("claude-x".to_owned(), tokens(1, 1)));
    for counted in futures_util::future::join_all(counts).await {
        counted.expect("it is journaled");
    }
    let today = setting.usage.today(project);
    assert_eq!(today.amount().requests, SNAPSHOT_EVERY);
    // One of the same event that is there stays; this one would be believed if there were none.
    let none = |version| Loaded { state: Tally::default(), version };
    setting.journal.snapshot(&stream, &none(SNAPSHOT_EVERY)).await.expect("it is let go");
    let setting = setting.restart(Budget::default()).await;
    assert_eq!(setting.usage.today(project), today);

    // And what is kept is what the next start goes by, not the events before it.
    setting.count(project, "claude-x", tokens(1, 1)).await;
    setting.journal.snapshot(&stream, &none(SNAPSHOT_EVERY + 1)).await.expect("it is stored");
    let setting = setting.restart(Budget::default()).await;
    assert_eq!(setting.usage.today(project), Used::default());
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_used_up_rests_the_project_until_midnight_and_no_other() {
    let mut time = StandStill::new();
    let setting = Setting::new(budget("daily_tokens = 1000")).await;
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let mut changes = setting.usage.changes();
    setting.count(one, "claude-x", tokens(400, 599)).await;
    setting.count(other, "claude-x", tokens(5, 5)).await;
    assert!(changes.next().now_or_never().is_none(), "nothing is used up");
    setting.count(one, "claude-x", tokens(0, 1)).await;
    let pause = Pause { limit: Limit::Tokens(1000), until: at("2026-07-27T00:00:00Z") };
    assert_eq!(changes.next().await, Some(Change { project: one, pause: Some(pause) }));
    assert_eq!((setting.usage.paused(one), setting.usage.paused(other)), (Some(pause), None));
    let resting = |there: &[Uuid]| setting.usage.paused_projects(|project| there.contains(&project));
    assert_eq!((resting(&[one, other]), resting(&[other])), (1, 0), "one that is deleted rests no more");
    // The turn that runs goes on, and says nothing new.
    setting.count(one, "claude-x", tokens(0, 500)).await;
    assert!(changes.next().now_or_never().is_none());

    // The next gateway knows it at once, and those that follow it from its beginning too.
    let setting = setting.restart(budget("daily_tokens = 1000")).await;
    let mut changes = setting.usage.changes();
    assert_eq!(changes.next().await, Some(Change { project: one, pause: Some(pause) }));
    // Nothing but the timer wakes this.
    assert_eq!(time.let_go(changes.next()).await, Some(Change { project: one, pause: None }));
    let now = setting.clock.now();
    assert!(now >= pause.until && now < pause.until + 1.minute(), "{now}");
    assert_eq!((setting.usage.paused(one), setting.usage.paused_projects(|_| true)), (None, 0));
    setting.count(one, "claude-x", tokens(1000, 0)).await;
    let next = Pause { until: at("2026-07-28T00:00:00Z"), ..pause };
    assert_eq!(changes.next().await, Some(Change { project: one, pause: Some(next) }), "a day has a budget of its own");

    // A machine that was suspended over midnight sees it within a minute of its own time.
    setting.clock.jump("2026-07-28T07:00:00Z");
    let woken = Instant::now();
    assert_eq!(time.let_go(changes.next()).await, Some(Change { project: one, pause: None }));
    assert!(woken.elapsed() <= LOOK);

    // A larger budget counts from the next start on.
    setting.count(one, "claude-x", tokens(1000, 0)).await;
    assert!(setting.usage.paused(one).is_some());
    let setting = setting.restart(budget("daily_tokens = 1001")).await;
    assert_eq!(setting.usage.paused(one), None);
}

#[test]
fn dollars_are_exact_and_a_model_without_a_price_is_not_free() {
    let budget = budget(&format!("daily_usd = 0.000018\n{PRICES}"));
    let now = at(NOON);
    let used = |model: &str, tokens| {
        let amount = tally::Amount { tokens, requests: 1 };
        Used { models: [(model.to_owned(), amount)].into(), ..Used::default() }
    };
    assert_eq!(budget.pause(&used("claude-sonnet-4", tokens(5, 0)), now), None, "5 × $3 / 1,000,000 is less");
    let pause = budget.pause(&used("claude-sonnet-4", tokens(1, 1)), now).expect("it is exactly used up");
    assert_eq!(
        pause_text("myapp", &pause, 0),
        "Today's budget of myapp ($0.000018) is used up; messages wait until 00:00 UTC."
    );
    assert!(budget.pause(&used("gpt", tokens(0, 2)), now).is_some(), "it counts at the highest price");
    let (cost, unknown) = (
        budget.charged(&used("claude-x", tokens(4_100_000, 0)).models),
        budget.cost(&used("gpt", tokens(1, 0)).models).1.len(),
    );
    assert_eq!((cost.to_string().as_str(), unknown), ("$12.30", 1));
    let shown =
        [(0, "$0.00"), (1, "$0.00"), (10, "$0.0002"), (6_000, "$0.0900"), (6_667, "$0.10"), (100_000_000, "$1,500.00")];
    for (output, text) in shown {
        assert_eq!(budget.charged(&used("claude", tokens(0, output)).models).to_string(), text, "{output}");
    }
    let most =
        used("claude", Tokens { input: u64::MAX, output: u64::MAX, cache_read: u64::MAX, cache_write: u64::MAX });
    assert!(budget.pause(&most, Timestamp::MAX).is_some_and(|pause| pause.until == Timestamp::MAX));
    let tokens = |n| Pause { limit: Limit::Tokens(1_000_000), until: budget::next_day(at(n)) };
    insta::assert_snapshot!(pause_text("myapp", &tokens(NOON), 3), @"Today's budget of myapp (1,000,000 tokens) is used up; 3 messages wait until 00:00 UTC.");
    insta::assert_snapshot!(pause_text("myapp", &tokens(NOON), 1), @"Today's budget of myapp (1,000,000 tokens) is used up; 1 message waits until 00:00 UTC.");
}

#[tokio::test(start_paused = true)]
async fn the_report_says_what_was_used_where_and_what_has_no_price() {
    let _time = StandStill::new();
    let setting = Setting::new(budget(&format!("daily_tokens = 2000000\ndaily_usd = 2\n{PRICES}"))).await;
    let (one, other, gone) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let name = |project: Uuid| (project != gone).then(|| if project == one { "myapp" } else { "shop" }.to_owned());
    insta::assert_snapshot!(setting.usage.report(Some(one), |_| true, name), @r"
    **What myapp has used** (days are those of UTC)

    - today: nothing
    - last 7 days: nothing
    - July 2026: nothing
    - budget: 0 of 2,000,000 tokens today (0 %)
    - budget: $0.00 of $2.00 today
    ");

    setting.clock.jump("2026-06-30T23:59:00Z");
    setting.turn(one, "!a:b", &[("claude-x", tokens(9_000_000, 0))], Duration::from_secs(50)).await;
    setting.clock.jump("2026-07-02T10:00:00Z");
    setting.turn(one, "!`evil`:b", &[("claude-x", tokens(1000, 100))], Duration::from_secs(50)).await;
    setting.clock.jump("2026-07-20T00:00:00Z");
    setting
        .turn(one, "!a:b", &[("claude-x", tokens(1000, 1)), ("mystery-1", tokens(5, 5))], Duration::from_mins(20))
        .await;
    setting.clock.jump(NOON);
    let large = Tokens { cache_read: 1_000_000, cache_write: 100_000, ..tokens(200, 3000) };
    setting.turn(one, "!a:b", &[("claude-x", large), ("claude-y", tokens(1, 1))], Duration::from_millis(4200)).await;
    setting.count(one, "claude-x", tokens(7, 0)).await;
    setting.turn(gone, "!c:b", &[("mystery-1", tokens(1, 2))], Duration::from_secs(1)).await;
    setting.turn(other, "!c:b", &[("claude-x", tokens(1, 2))], Duration::from_secs(1)).await;
    insta::assert_snapshot!(setting.usage.report(Some(one), |_| true, name), @r"
    **What myapp has used** (days are those of UTC)

    - today: 1,103,209 tokens (input 208, output 3,001, cache read 1,000,000, cache write 100,000), 3 requests, $0.72, 1 turn, 4.2 s
    - last 7 days: 1,104,220 tokens (input 1,213, output 3,007, cache read 1,000,000, cache write 100,000), 5 requests, at least $0.72, 2 turns, 20 min
    - July 2026: 1,105,320 tokens (input 2,213, output 3,107, cache read 1,000,000, cache write 100,000), 6 requests, at least $0.73, 3 turns, 20 min
    - last turn: 1,103,202 tokens (input 201, output 3,001, cache read 1,000,000, cache write 100,000), 2 requests, $0.72, 4.2 s
    - budget: 1,103,209 of 2,000,000 tokens today (55 %)
    - budget: $0.72 of $2.00 today

    July 2026 by room:

    - `matrix:!a:b`: 1,104,213 tokens, at least $0.72, 2 turns, 20 min
    - `matrix:!'evil':b`: 1,100 tokens, $0.0045, 1 turn, 50 s
    - outside of turns: 7 tokens, $0.00

    No price is known for `mystery-1`: set one under `[budget.prices]` in bot.toml to see what it costs. In the daily budget they count at the highest prices there are.
    ");
    let shown = setting.usage.report(None, |project| project == one, name);
    assert!(shown.starts_with("**What the projects that you may use have used**"), "{shown}");
    assert!(shown.contains("myapp") && !shown.contains("shop") && !shown.contains("deleted"), "{shown}");
    insta::assert_snapshot!(setting.usage.report(None, |_| true, name), @r"
    **What all projects have used** (days are those of UTC)

    - today: 1,103,215 tokens (input 210, output 3,005, cache read 1,000,000, cache write 100,000), 5 requests, at least $0.72, 3 turns, 6.2 s
    - last 7 days: 1,104,226 tokens (input 1,215, output 3,011, cache read 1,000,000, cache write 100,000), 7 requests, at least $0.72, 4 turns, 20 min
    - July 2026: 1,105,326 tokens (input 2,215, output 3,111, cache read 1,000,000, cache write 100,000), 8 requests, at least $0.73, 5 turns, 20 min

    July 2026 by project:

    - myapp: 1,105,320 tokens, at least $0.73, 3 turns, 20 min
    - shop: 3 tokens, $0.00, 1 turn, 1.0 s
    - deleted projects: 3 tokens, 1 turn, 1.0 s

    No price is known for `mystery-1`: set one under `[budget.prices]` in bot.toml to see what it costs. In the daily budget they count at the highest prices there are.
    ");
}

/// A count as a property has it: on which day, in which room, of which turn, of which model, how many.
type Step = (i64, Option<u8>, u8, u8, u64);

fn events(project: Uuid, steps: &[Step]) -> Vec<(UsageEvent, journal::Recorded)> {
    let turns: Vec<_> = (0..=255).map(Uuid::from_u128).collect();
    let event = |(index, (day, place, turn, model, n)): (usize, &Step)| {
        let event = UsageEvent::Counted {
            turn: place.map(|_| turns[usize::from(*turn)]),
            room: place.map(|place| room(&place.to_string())),
            model: format!("m{model}"),
            tokens: tokens(*n, 1),
            requests: 1,
        };
        let recorded = journal::Recorded {
            stream: StreamId::new("usage", project),
            version: index as u64 + 1,
            position: index as u64 + 1,
            id: Uuid::now_v7(),
            time: at(NOON) + (24 * day).hours(),
            actor: Actor::Gateway,
            cause: Cause::None,
            kind: "usage.counted".into(),
            kind_version: 1,
            skippable: false,
            data: serde_json::value::RawValue::NULL.to_owned(),
        };
        (event, recorded)
    };
    steps.iter().enumerate().map(event).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_fold_is_bounded_loses_no_token_of_a_kept_day_and_can_be_kept_in_between(
        steps in prop::collection::vec((0i64..100, any::<Option<u8>>(), any::<u8>(), any::<u8>(), 0u64..1000), 0..400),
        keep in any::<prop::sample::Index>(),
    ) {
        let project = Uuid::nil();
        let mut tally = Tally::default();
        let keep = keep.index(steps.len() + 1);
        for (index, (event, recorded)) in events(project, &steps).iter().enumerate() {
            if index == keep {
                let kept = serde_json::to_string(&tally).expect("it is JSON");
                tally = serde_json::from_str(&kept).expect("it is a tally");
            }
            tally.apply(event, recorded).expect("every event can follow");
        }
        // The kept days are the 62 latest, but for those that came after later ones had pushed them out.
        let mut days: Vec<_> = steps.iter().map(|step| step.0).collect();
        days.sort_unstable();
        days.dedup();
        let few = days.len() <= 62;
        let first = tally::day(at(NOON));
        let all = tally.sum(first..=tally::day(at(NOON) + (24i64 * 100).hours()));
        if few {
            prop_assert_eq!(all.amount().tokens.input, steps.iter().map(|step| step.4).sum::<u64>());
            prop_assert_eq!(all.amount().requests, steps.len() as u64);
        }
        let rooms = tally.by_room(first..=first);
        prop_assert!(rooms.len() <= 65);
        prop_assert!(rooms.values().all(|used| used.models.len() <= 17));
        if all.models.len() > 16 {
            prop_assert!(all.models.contains_key(OTHER));
        }
        let by_room = rooms.values().map(|used| used.amount().tokens.total()).sum::<u64>();
        prop_assert_eq!(by_room, tally.sum(first..=first).amount().tokens.total());
        let kept = serde_json::to_string(&tally).expect("it is JSON");
        prop_assert!(kept.len() < 600_000, "{}", kept.len());
    }
}
