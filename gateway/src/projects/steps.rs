//! How far a saga is, for people: finished steps with their time, and what is waited for (PROJ-5).

use musher_docker::BuildProgress;
use tokio::time::Instant;

use crate::{outbox::Progress, text};

/// The steps of one saga, shown in one message that is edited.
pub struct Steps<'a> {
    progress: &'a Progress,
    done: Vec<String>,
    step: &'static str,
    detail: String,
    began: Instant,
}

impl<'a> Steps<'a> {
    /// Nothing is shown before the first step.
    pub fn new(progress: &'a Progress) -> Self {
        Self { progress, done: Vec::new(), step: "", detail: String::new(), began: Instant::now() }
    }

    /// The step before is done; this one begins.
    pub fn next(&mut self, step: &'static str) {
        self.finish();
        (self.step, self.began) = (step, Instant::now());
        self.detail.clear();
        self.show(&format!("… {step} …"));
    }

    /// What the step does now.
    pub fn detail(&mut self, detail: String) {
        if detail != self.detail {
            self.show(&format!("… {}: {detail}", self.step));
            self.detail = detail;
        }
    }

    /// The last step is done.
    pub fn finish(&mut self) {
        self.end('✓');
    }

    /// The step could not be done.
    pub fn fail(&mut self) {
        self.end('✗');
    }

    fn end(&mut self, mark: char) {
        if !self.step.is_empty() {
            self.done.push(format!("{mark} {} ({})", self.step, text::span(self.began.elapsed())));
            self.step = "";
            self.progress.show(self.done.join("\n"));
        }
    }

    fn show(&self, now: &str) {
        let lines: Vec<_> = self.done.iter().map(String::as_str).chain([now]).collect();
        self.progress.show_since(lines.join("\n"), self.began);
    }
}

/// What a build does, for people.
pub fn describe(progress: &BuildProgress) -> String {
    let BuildProgress { layer, layer_number, layers, step, steps, instruction, .. } = progress;
    let part = if *layers > 1 { format!("{layer}, part {layer_number} of {layers}") } else { layer.to_string() };
    if *steps == 0 { part } else { format!("{part}, step {step}/{steps}: {}", text::one_line(instruction, 60)) }
}
