//! Making an image: only the layers that are missing, each once, with progress, and nothing left behind (STK-3).

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::body_try_stream;
use bollard::errors::Error as ApiError;
use bollard::models::BuildInfo;
use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder, RemoveImageOptionsBuilder};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::layers::{ContextFile, PlannedLayer, Recipe};
use crate::{BuildFailure, Engine, EngineError, ImagePlan, LABEL_LAYER, Layer, bootstrap, context};

const LOG_LINES: usize = 20;
/// How long the bootstrapping program's last words are awaited after the import has failed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Of an instruction that goes over many lines its beginning says enough.
const INSTRUCTION_CHARS: usize = 120;

/// Where a build stands (PROJ-5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildProgress {
    /// The layer that is being made.
    pub layer: Layer,
    /// Its place among the layers that were missing, counted from 1.
    pub layer_number: u32,
    /// How many layers were missing.
    pub layers: u32,
    /// The step within the layer, counted from 1; 0 before the first.
    pub step: u32,
    /// How many steps the layer has; 0 before the first.
    pub steps: u32,
    /// What the step does: the beginning of its instruction, on one line.
    pub instruction: String,
    /// The latest line of the log, as somebody else's program wrote it: bound and escape it where it is shown.
    pub line: Option<String>,
}

/// Where progress goes.
type Report<'a> = &'a mut (dyn FnMut(BuildProgress) + Send);

impl Engine {
    /// Makes the image of a plan: the layers that are missing, and nothing when it is there. Two callers who need the
    /// same layer get it built once. Dropping the future ends the build.
    ///
    /// # Errors
    /// [`EngineError::BuildFailed`] with the log's last lines, [`EngineError::NoProgress`] when a build says nothing.
    pub async fn ensure_image(&self, plan: &ImagePlan, progress: Report<'_>) -> Result<(), EngineError> {
        let mut missing = Vec::new();
        for planned in plan.layers.iter().rev() {
            if self.image_exists(&planned.tag).await? {
                break;
            }
            missing.insert(0, planned);
        }
        let count = missing.len();
        for (index, planned) in missing.into_iter().enumerate() {
            let mut log = Log {
                report: &mut *progress,
                at: BuildProgress {
                    layer: planned.layer.clone(),
                    layer_number: number(index + 1),
                    layers: number(count),
                    step: 0,
                    steps: 0,
                    instruction: String::new(),
                    line: None,
                },
                tail: VecDeque::new(),
            };
            let lock = self.lock(&format!("image {}", planned.tag));
            let _held = if let Ok(held) = lock.try_lock() {
                held
            } else {
                log.instruction(0, 0, "waiting for the same layer, which is being built for another project");
                lock.lock().await
            };
            if !self.image_exists(&planned.tag).await? {
                self.build_layer(planned, &plan.routes, &mut log).await?;
            }
        }
        Ok(())
    }

    /// Whether the engine has an image of this tag.
    pub async fn image_exists(&self, tag: &str) -> Result<bool, EngineError> {
        match self.call("look for an image", self.docker().inspect_image(tag)).await {
            Ok(_) => Ok(true),
            Err(EngineError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a tag, and the image with it where nothing else needs it. One that is already gone is fine.
    pub async fn remove_image(&self, tag: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().build();
        match self.call("remove an image", self.docker().remove_image(tag, Some(options), None)).await {
            Ok(_) | Err(EngineError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn build_layer(
        &self,
        planned: &PlannedLayer,
        routes: &[(&'static str, String)],
        log: &mut Log<'_>,
    ) -> Result<(), EngineError> {
        let Some(source) = &planned.source else { return self.build_one(planned, routes, log).await };
        let mut again = true;
        loop {
            if !self.image_exists(&source.tag).await? {
                log.at.layer = source.layer.clone();
                self.build_one(source, routes, log).await?;
                log.at.layer = planned.layer.clone();
            }
            match self.build_one(planned, routes, log).await {
                // Another gateway on this engine is done with it, and has removed it under us.
                Err(EngineError::BuildFailed(_)) if again && !self.image_exists(&source.tag).await? => again = false,
                built => break built?,
            }
            if self.image_exists(&planned.tag).await? {
                break;
            }
        }
        self.remove_image(&source.tag).await
    }

    async fn build_one(
        &self,
        planned: &PlannedLayer,
        routes: &[(&'static str, String)],
        log: &mut Log<'_>,
    ) -> Result<(), EngineError> {
        tracing::info!(layer = %planned.layer, tag = planned.tag, "building");
        match &planned.recipe {
            Recipe::Bootstrap { mirror } => self.import(&planned.tag, mirror.as_deref(), routes, log).await,
            Recipe::Dockerfile { text, context, arguments } => {
                let arguments =
                    arguments.iter().chain(routes).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                self.build_dockerfile(&planned.tag, text.clone(), context.clone(), &arguments, log).await
            }
        }
    }

    async fn import(
        &self,
        tag: &str,
        mirror: Option<&str>,
        routes: &[(&'static str, String)],
        log: &mut Log<'_>,
    ) -> Result<(), EngineError> {
        let (said, mut lines) = mpsc::unbounded_channel();
        log.instruction(1, 1, &format!("{} {}", bootstrap::PROGRAM, bootstrap::ARGUMENTS.join(" ")));
        let tar = bootstrap::start(mirror, routes, said)?;
        let (repository, version) = tag.split_once(':').unwrap_or((tag, "latest"));
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repository)
            .tag(version)
            .changes(vec![format!("LABEL {LABEL_LAYER}={}", Layer::Root)]);
        let pulse = Pulse::default();
        let docker = self.docker_for_builds();
        let answers = docker.create_image(Some(options.build()), Some(body_try_stream(pulse.count(tar))), None);
        let mut answers = std::pin::pin!(answers);
        loop {
            // The program's words are read first: they say why the stream broke.
            tokio::select! {
                biased;
                Some(line) = lines.recv() => { pulse.beat(); log.line(&line); }
                answer = self.next_within(&pulse, &log.at.layer, answers.next()) => match answer? {
                    None => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        // Where the program failed, its last words are on their way; where the engine did, it may go on.
                        let last_words = async {
                            while let Some(line) = lines.recv().await {
                                log.line(&line);
                            }
                        };
                        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
                        return Err(self.build_error(error, log));
                    }
                },
            }
        }
    }

    async fn build_dockerfile(
        &self,
        tag: &str,
        text: String,
        files: Vec<ContextFile>,
        arguments: &HashMap<String, String>,
        log: &mut Log<'_>,
    ) -> Result<(), EngineError> {
        let options = BuildImageOptionsBuilder::new()
            .dockerfile("Dockerfile")
            .t(tag)
            .rm(true)
            .forcerm(true)
            .buildargs(arguments)
            .build();
        let pulse = Pulse::default();
        let docker = self.docker_for_builds();
        let answers =
            docker.build_image(options, None, Some(body_try_stream(pulse.count(context::stream(text, files)))));
        let mut answers = std::pin::pin!(answers);
        let mut partial = String::new();
        while let Some(answer) = self.next_within(&pulse, &log.at.layer, answers.next()).await? {
            match answer {
                Ok(BuildInfo { stream, status, .. }) => {
                    partial.push_str(&stream.or(status.map(|s| s + "\n")).unwrap_or_default());
                    while let Some(end) = partial.find('\n') {
                        log.output(&partial[..end]);
                        partial.drain(..=end);
                    }
                }
                Err(error) => {
                    log.output(&partial);
                    return Err(self.build_error(error, log));
                }
            }
        }
        Ok(())
    }

    /// The next answer, as long as something moves: answers come, or the engine takes what is sent.
    async fn next_within<T>(
        &self,
        pulse: &Pulse,
        layer: &Layer,
        next: impl Future<Output = T>,
    ) -> Result<T, EngineError> {
        let mut next = std::pin::pin!(next);
        let silence = self.build_silence();
        loop {
            let before = pulse.now();
            match tokio::time::timeout(silence, &mut next).await {
                Ok(answer) => return Ok(answer),
                Err(_) if pulse.now() != before => {}
                Err(_) => return Err(EngineError::NoProgress { layer: layer.clone(), secs: silence.as_secs() }),
            }
        }
    }

    fn build_error(&self, error: ApiError, log: &Log<'_>) -> EngineError {
        let message = match error {
            ApiError::DockerStreamError { error } => error,
            ApiError::DockerResponseServerError { message, .. } => message,
            other => match self.api_error("build an image", other) {
                // Where our own end of the stream failed, the log tells why.
                EngineError::Connection { source, .. } if !log.tail.is_empty() => root_cause(source.as_ref()),
                error => return error,
            },
        };
        let BuildProgress { layer, step, steps, .. } = log.at.clone();
        EngineError::BuildFailed(Box::new(BuildFailure {
            layer,
            step,
            steps,
            message,
            log: log.tail.iter().cloned().collect(),
        }))
    }
}

fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Counts what is sent, so that a long upload is not taken for silence.
#[derive(Default)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn count(
        &self,
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let beats = Arc::clone(&self.0);
        stream.inspect(move |_| {
            beats.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A build's log: its end is kept, its progress is reported.
struct Log<'a> {
    report: Report<'a>,
    at: BuildProgress,
    tail: VecDeque<String>,
}

impl Log<'_> {
    fn instruction(&mut self, step: u32, steps: u32, instruction: &str) {
        let words: Vec<&str> = instruction.split_whitespace().collect();
        let instruction = words.join(" ").chars().take(INSTRUCTION_CHARS).collect();
        self.at = BuildProgress { step, steps, instruction, line: None, ..self.at.clone() };
        (self.report)(self.at.clone());
    }

    /// A line of a Dockerfile's build: a step's heading or a step's output.
    fn output(&mut self, line: &str) {
        match heading(line) {
            Some((step, steps, instruction)) => {
                self.keep(line);
                self.instruction(step, steps, instruction);
            }
            None => self.line(line),
        }
    }

    fn line(&mut self, line: &str) {
        let line = uncoloured(line);
        // A progress bar overwrites itself: its last state is the line.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        if line.is_empty() {
            return;
        }
        self.keep(line);
        self.at.line = Some(line.to_owned());
        (self.report)(self.at.clone());
    }

    fn keep(&mut self, line: &str) {
        if self.tail.len() == LOG_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

/// A line without the red in which the classic builder writes each piece of standard error.
fn uncoloured(line: &str) -> String {
    line.replace("\u{1b}[91m", "").replace("\u{1b}[0m", "")
}

/// `Step 3/9 : RUN true`, as the classic builder writes it. Used to show, never to decide.
fn heading(line: &str) -> Option<(u32, u32, &str)> {
    let (counts, instruction) = line.strip_prefix("Step ")?.split_once(" : ")?;
    let (step, steps) = counts.split_once('/')?;
    Some((step.parse().ok()?, steps.parse().ok()?, instruction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_a_step_and_all_else_is_output() {
        assert_eq!(heading("Step 3/9 : RUN echo a : b"), Some((3, 9, "RUN echo a : b")));
        for line in ["Step by step : hello", "---> Running in 0123", "Step 1/x : y", ""] {
            assert_eq!(heading(line), None, "{line}");
        }
    }

    #[test]
    fn the_log_keeps_its_last_twenty_lines() {
        let mut seen = Vec::new();
        let mut report = |progress| seen.push(progress);
        let at = BuildProgress {
            layer: Layer::Base,
            layer_number: 1,
            layers: 2,
            step: 0,
            steps: 0,
            instruction: String::new(),
            line: None,
        };
        let mut log = Log { report: &mut report, at, tail: VecDeque::new() };
        log.output("Step 1/2 : FROM x");
        for n in 0..30 {
            log.output(&format!("0%\r{n}"));
        }
        assert_eq!(log.tail.len(), LOG_LINES);
        assert_eq!(
            (log.tail.front().map(String::as_str), log.tail.back().map(String::as_str)),
            (Some("10"), Some("29"))
        );
        log.output("\u{1b}[91mc\u{1b}[0m\u{1b}[91mu\u{1b}[0m\u{1b}[91mrl: (6) no\u{1b}[0m");
        assert_eq!(log.tail.back().map(String::as_str), Some("curl: (6) no"));
        assert_eq!((seen.len(), seen[0].step, seen[0].steps, seen[0].instruction.as_str()), (32, 1, 2, "FROM x"));
        assert_eq!(seen[30].line.as_deref(), Some("29"));
    }
}
