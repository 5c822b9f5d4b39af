//! `GET /metrics`: what the gateway counts and measures, for Prometheus.
//!
//! No label names a room, a person or a project: the number of series is fixed when the program is written. What can be
//! asked for at any time is not kept here but asked for when somebody scrapes ([`Now`]).

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{outbox::Counts, sessions::Ending, usage::Tokens};

/// The media type of the text that [`Metrics::text`] makes.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of waits, in seconds.
const WAITS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];
/// Upper bounds of turns' durations, in seconds.
const DURATIONS: [f64; 12] = [0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0];

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Turns that run.
    pub turns_running: usize,
    /// Messages that wait for a turn.
    pub messages_waiting: usize,
    /// What the outbox has sent, and has to send.
    pub sends: Counts,
    /// Projects that are made and not deleted: each has a sled.
    pub projects: usize,
    /// Links to sleds that are open.
    pub links_open: usize,
    /// Sleds that could not be reached when they were wanted last.
    pub sleds_unreachable: usize,
    /// Whether the container engine answers.
    pub engine_reachable: bool,
    /// Projects whose budget of the day is used up.
    pub projects_paused: usize,
    /// Appends that the journal has not taken since the start.
    pub append_failures: u64,
}

/// Finds out what is true now.
pub type Sources = Arc<dyn Fn() -> BoxFuture<'static, Now> + Send + Sync>;

/// What became of a request to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelOutcome {
    /// It was answered to the end.
    Answered,
    /// The answer was an error.
    Refused,
    /// The answer broke off, or nobody wanted the rest of it.
    CutOff,
    /// The model could not be reached.
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabel {
    ending: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// The gateway's counters. Cheap to clone; all clones count into the same.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    turns: Family<EndingLabel, Counter>,
    turn_duration: Histogram,
    wait: Histogram,
    sends: Counter,
    send_retries: Counter,
    sends_given_up: Counter,
    model_requests: Family<OutcomeLabel, Counter>,
    model_tokens: Family<KindLabel, Counter>,
    append_failures: Counter,
    turns_running: Gauge,
    messages_waiting: Gauge,
    undelivered: Gauge,
    projects: Gauge,
    links_open: Gauge,
    sleds_unreachable: Gauge,
    engine_reachable: Gauge,
    projects_paused: Gauge,
}

impl From<Ending> for EndingLabel {
    fn from(ending: Ending) -> Self {
        let ending = match ending {
            Ending::Answered => "answered",
            Ending::Failed => "failed",
            Ending::Stopped => "stopped",
            Ending::Interrupted => "interrupted",
            Ending::Superseded => "superseded",
        };
        Self { ending }
    }
}

impl From<ModelOutcome> for OutcomeLabel {
    fn from(outcome: ModelOutcome) -> Self {
        let outcome = match outcome {
            ModelOutcome::Answered => "answered",
            ModelOutcome::Refused => "refused",
            ModelOutcome::CutOff => "cut_off",
            ModelOutcome::Unreachable => "unreachable",
        };
        Self { outcome }
    }
}

impl Metrics {
    /// Nothing is counted yet. `started` is when the process was.
    pub fn new(started: Timestamp) -> Self {
        let inner = Inner {
            registry: Registry::default(),
            turns: Family::default(),
            turn_duration: Histogram::new(DURATIONS),
            wait: Histogram::new(WAITS),
            sends: Counter::default(),
            send_retries: Counter::default(),
            sends_given_up: Counter::default(),
            model_requests: Family::default(),
            model_tokens: Family::default(),
            append_failures: Counter::default(),
            turns_running: Gauge::default(),
            messages_waiting: Gauge::default(),
            undelivered: Gauge::default(),
            projects: Gauge::default(),
            links_open: Gauge::default(),
            sleds_unreachable: Gauge::default(),
            engine_reachable: Gauge::default(),
            projects_paused: Gauge::default(),
        };
        Self { inner: Arc::new(inner.registered(started)) }
    }

    /// A turn is over, after so long.
    pub fn turn_ended(&self, ending: Ending, took: Duration) {
        self.inner.turns.get_or_create(&ending.into()).inc();
        self.inner.turn_duration.observe(took.as_secs_f64());
    }

    /// A message waited so long from its acceptance to the start of its turn.
    pub fn waited(&self, time: Duration) {
        self.inner.wait.observe(time.as_secs_f64());
    }

    /// A request to the model for an answer is over. Its estimates of tokens are none.
    pub fn model_requested(&self, outcome: ModelOutcome) {
        self.inner.model_requests.get_or_create(&outcome.into()).inc();
    }

    /// The model has counted tokens, and they are journaled.
    pub fn tokens_counted(&self, tokens: Tokens) {
        let Tokens { input, output, cache_read, cache_write } = tokens;
        for (kind, count) in kinds().into_iter().zip([input, output, cache_read, cache_write]) {
            self.inner.model_tokens.get_or_create(&kind).inc_by(count);
        }
    }

    /// Everything in the `OpenMetrics` text format, which Prometheus reads.
    pub fn text(&self, now: &Now) -> Result<String, fmt::Error> {
        let Inner { registry, .. } = &*self.inner;
        for (gauge, value) in [
            (&self.inner.turns_running, now.turns_running),
            (&self.inner.messages_waiting, now.messages_waiting),
            (&self.inner.undelivered, now.sends.undelivered),
            (&self.inner.projects, now.projects),
            (&self.inner.links_open, now.links_open),
            (&self.inner.sleds_unreachable, now.sleds_unreachable),
            (&self.inner.engine_reachable, usize::from(now.engine_reachable)),
            (&self.inner.projects_paused, now.projects_paused),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        for (counter, value) in [
            (&self.inner.sends, now.sends.delivered),
            (&self.inner.send_retries, now.sends.retries),
            (&self.inner.sends_given_up, now.sends.given_up),
            (&self.inner.append_failures, now.append_failures),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        let mut out = String::new();
        text::encode(&mut out, registry)?;
        Ok(out)
    }
}

fn kinds() -> [KindLabel; 4] {
    ["input", "output", "cache_read", "cache_write"].map(|kind| KindLabel { kind })
}

impl Inner {
    /// With every series there from the beginning, so that a rate over the first event can be had.
    fn registered(mut self, started: Timestamp) -> Self {
        use ModelOutcome::{Answered, CutOff, Refused, Unreachable};
        for ending in [Ending::Answered, Ending::Failed, Ending::Stopped, Ending::Interrupted, Ending::Superseded] {
            drop(self.turns.get_or_create(&ending.into()));
        }
        for outcome in [Answered, Refused, CutOff, Unreachable] {
            drop(self.model_requests.get_or_create(&outcome.into()));
        }
        for kind in kinds() {
            drop(self.model_tokens.get_or_create(&kind));
        }
        let registry = &mut self.registry;
        registry.register("musher_turns", "Turns that are over, by how they ended", self.turns.clone());
        registry.register_with_unit(
            "musher_turn_duration",
            "From the start of a turn to its end",
            Unit::Seconds,
            self.turn_duration.clone(),
        );
        registry.register_with_unit(
            "musher_message_wait",
            "From the acceptance of a message to the start of its turn",
            Unit::Seconds,
            self.wait.clone(),
        );
        registry.register("musher_sends", "Messages that a surface has taken", self.sends.clone());
        registry.register("musher_send_retries", "Sends that failed and are tried again", self.send_retries.clone());
        registry.register("musher_sends_given_up", "Messages that were given up", self.sends_given_up.clone());
        registry.register(
            "musher_model_requests",
            "Requests to the model for answers, by what became of them",
            self.model_requests.clone(),
        );
        registry.register("musher_model_tokens", "Tokens that the model has counted", self.model_tokens.clone());
        registry.register(
            "musher_journal_append_failures",
            "Appends that the journal has not taken",
            self.append_failures.clone(),
        );
        for (name, help, gauge) in [
            ("musher_turns_running", "Turns that run", &self.turns_running),
            ("musher_messages_waiting", "Messages that wait for a turn", &self.messages_waiting),
            ("musher_messages_undelivered", "Messages of ours that no surface has taken yet", &self.undelivered),
            ("musher_projects", "Projects, each of which has a sled", &self.projects),
            ("musher_links_open", "Links to sleds that are open", &self.links_open),
            (
                "musher_sleds_unreachable",
                "Sleds that could not be reached when they were wanted last",
                &self.sleds_unreachable,
            ),
            ("musher_engine_reachable", "1 when the container engine answers", &self.engine_reachable),
            ("musher_projects_paused", "Projects whose budget of the day is used up", &self.projects_paused),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let started = ConstGauge::new(started.as_duration().as_secs_f64());
        registry.register_with_unit("process_start_time", "When the process started", Unit::Seconds, started);
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("musher_build", "What runs", version);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn counted() -> Metrics {
        let metrics = Metrics::new("2026-07-26T12:00:00.5Z".parse().expect("it is a moment"));
        metrics.turn_ended(Ending::Failed, Duration::from_secs(3));
        metrics.turn_ended(Ending::Answered, Duration::from_millis(300));
        metrics.waited(Duration::from_hours(3));
        metrics.model_requested(ModelOutcome::CutOff);
        metrics.tokens_counted(Tokens { input: 1, output: 2, cache_read: 3, cache_write: 4 });
        metrics
    }

    fn now() -> Now {
        Now {
            turns_running: 1,
            messages_waiting: 2,
            sends: Counts { delivered: 7, retries: 2, given_up: 1, undelivered: 3 },
            projects: 8,
            links_open: 4,
            sleds_unreachable: 3,
            engine_reachable: true,
            projects_paused: 5,
            append_failures: 1,
        }
    }

    #[test]
    fn the_text_shows_every_series_with_its_value() {
        let text = counted().text(&now()).expect("it can be written");
        let mut samples: Vec<_> =
            text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{")).collect();
        // The order within a family is not fixed.
        samples.sort_unstable();
        insta::assert_snapshot!(samples.join("\n"), @r#"
        musher_build_info{version="0.1.0"} 1
        musher_engine_reachable 1
        musher_journal_append_failures_total 1
        musher_links_open 4
        musher_message_wait_seconds_count 1
        musher_message_wait_seconds_sum 10800.0
        musher_messages_undelivered 3
        musher_messages_waiting 2
        musher_model_requests_total{outcome="answered"} 0
        musher_model_requests_total{outcome="cut_off"} 1
        musher_model_requests_total{outcome="refused"} 0
        musher_model_requests_total{outcome="unreachable"} 0
        musher_model_tokens_total{kind="cache_read"} 3
        musher_model_tokens_total{kind="cache_write"} 4
        musher_model_tokens_total{kind="input"} 1
        musher_model_tokens_total{kind="output"} 2
        musher_projects 8
        musher_projects_paused 5
        musher_send_retries_total 2
        musher_sends_given_up_total 1
        musher_sends_total 7
        musher_sleds_unreachable 3
        musher_turn_duration_seconds_count 2
        musher_turn_duration_seconds_sum 3.3
        musher_turns_running 1
        musher_turns_total{ending="answered"} 1
        musher_turns_total{ending="failed"} 1
        musher_turns_total{ending="interrupted"} 0
        musher_turns_total{ending="stopped"} 0
        musher_turns_total{ending="superseded"} 0
        process_start_time_seconds 1785067200.5
        "#);
        // A scrape shows what is true then.
        let text = counted().text(&Now::default()).expect("it can be written");
        assert!(text.contains("\nmusher_engine_reachable 0\n"));
    }

    /// The text against the `OpenMetrics` specification, as far as it is used here.
    #[test]
    fn the_text_is_open_metrics() {
        let text = counted().text(&now()).expect("it can be written");
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
        let mut types = BTreeMap::new();
        let mut family = String::new();
        let mut buckets: Vec<(String, u64)> = Vec::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
                let name = name.expect("a comment names its family");
                match keyword.expect("a comment has a keyword") {
                    "HELP" => assert!(rest.ends_with('.')),
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    "TYPE" => {
                        assert!(types.insert(name.to_owned(), rest.to_owned()).is_none(), "{name} is there twice");
                    }
                    other => panic!("{other} is no keyword"),
                }
                family = name.to_owned();
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let value: f64 = value.parse().expect("it is a number");
            let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(labels.is_empty() || labels.ends_with("\"}"), "{line}");
            let suffix = name.strip_prefix(&family).expect("a sample stands under its family");
            let suffixes: &[&str] = match types[&family].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_count", "_sum"],
                other => panic!("{other} is not used here"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            match suffix {
                "_bucket" => {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are small")]
                    buckets.push((labels.to_owned(), value as u64));
                }
                _ if types[&family] == "histogram" && !buckets.is_empty() => {
                    assert!(buckets.is_sorted_by_key(|(_, count)| *count));
                    assert_eq!(buckets.last().map(|(bound, _)| bound.as_str()), Some("le=\"+Inf\"}"));
                    buckets.clear();
                }
                _ => {}
            }
        }
        assert_eq!(types.len(), 19, "{types:?}");
    }
}
