//! Counts one request from when it is sent until its answer is over, however that comes about.

use std::sync::Arc;

use super::{
    endpoint::Upload,
    meter::{BYTES_PER_TOKEN, Counted, Meter, NAMELESS},
};
use crate::{
    metrics::{Metrics, ModelOutcome},
    refusal::Refusal,
    usage::{Request, Tokens},
};

/// Counts one request: one whose answer breaks off, or that nobody reads to its end, by what was seen of it; one that
/// nobody waited to be answered, by what was passed on of it.
pub(super) struct Counting {
    upload: Arc<Upload>,
    /// There is one when an answer has begun.
    meter: Option<Meter>,
    /// Taken when it is counted.
    request: Option<Request>,
    metrics: Metrics,
}

impl Counting {
    /// Of a request whose body is noted in `upload`.
    pub fn new(request: Request, upload: Arc<Upload>, metrics: Metrics) -> Self {
        Self { upload, meter: None, request: Some(request), metrics }
    }

    /// Its answer has begun, and has this content type.
    pub fn answered(&mut self, content_type: &str) {
        self.meter = Some(Meter::new(content_type));
    }

    /// The answer's next part; whether the answer is complete with it.
    pub fn read(&mut self, chunk: &[u8]) -> bool {
        self.meter.as_mut().is_some_and(|meter| {
            meter.read(chunk);
            meter.complete()
        })
    }

    /// It costs nothing.
    pub fn free(mut self) {
        self.request = None;
    }

    /// Counts it, unless it was counted or has not got to the model. It is journaled whether or not anybody waits for it.
    pub fn count(&mut self) -> Option<impl Future<Output = Result<(), Refusal>> + use<>> {
        let passed = self.upload.passed();
        let request = self.request.take().filter(|_| self.meter.is_some() || passed > 0)?;
        let Counted { model, mut tokens } = match &mut self.meter {
            Some(meter) => meter.counted(),
            None => Counted { model: NAMELESS.to_owned(), tokens: Tokens::default() },
        };
        if tokens.total() == tokens.output {
            // The model did not get to count what it was sent.
            tokens.input = passed.div_ceil(BYTES_PER_TOKEN);
        }
        Some(request.count(model, tokens))
    }

    /// Counts it as one that ended so.
    pub fn settle(&mut self, outcome: ModelOutcome) -> impl Future<Output = Result<(), Refusal>> + use<> {
        let counted = self.count();
        if counted.is_some() {
            self.metrics.model_requested(outcome);
        }
        async move {
            match counted {
                Some(counted) => counted.await,
                None => Ok(()),
            }
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It is journaled whether or not anybody waits for it.
        drop(self.settle(ModelOutcome::CutOff));
    }
}
