//! Generation all at once: an [`Engine`] that is given all requests and runs until it is idle.

use base::Completion;
use models::VisionLanguageModel;
use torch::check_graphs;

use crate::EngineError;
use crate::engine::{Engine, Event, check_max_concurrent};
use crate::params::SamplingParams;
use crate::request::{Generation, Request, RequestSettings};
use crate::static_shapes::Decoding;

/// Samples completions from a model, with one set of parameters.
pub struct Generator<'m> {
    model: &'m dyn VisionLanguageModel,
    settings: RequestSettings,
    max_concurrent: usize,
    decoding: Decoding,
    weights_version: u64,
}

impl<'m> Generator<'m> {
    /// A generator that decodes up to `max_concurrent` completions at once.
    ///
    /// # Errors
    /// A parameter out of its range.
    pub fn new(
        model: &'m dyn VisionLanguageModel,
        params: SamplingParams,
        max_concurrent: usize,
    ) -> Result<Self, EngineError> {
        params.validate(model.text_shape().vocab_size, model.image_token_id())?;
        check_max_concurrent(max_concurrent)?;
        Ok(Generator {
            model,
            settings: params.into(),
            max_concurrent,
            decoding: Decoding::default(),
            weights_version: 0,
        })
    }

    /// The same with another [`Decoding`]; tokens are the same but for rounding.
    ///
    /// # Errors
    /// Graphs where the model is on no GPU or CUDA's libraries do not fit.
    pub fn with_decoding(self, decoding: Decoding) -> Result<Self, EngineError> {
        let decoding = decoding.resolved(self.model.compute().1);
        if decoding == Decoding::CudaGraphs {
            check_graphs(self.model.compute().1)?;
        }
        Ok(Generator { decoding, ..self })
    }

    /// The same, at `version` of the weights.
    #[must_use]
    pub fn at_weights_version(self, version: u64) -> Self {
        Generator { weights_version: version, ..self }
    }

    /// Samples every completion of every request. `on_finished` is called as each one ends, with the index of its request and the index
    /// within it; `cancel` is called before every pass. The engine and all its memory are of this call alone, so that weights may change
    /// between calls.
    ///
    /// # Errors
    /// A prompt that is empty, outside the vocabulary or does not fit its images (before the first pass), a NaN log-probability, or
    /// [`EngineError::Cancelled`].
    pub fn generate(
        &self,
        requests: &[Request],
        on_finished: &mut dyn FnMut(usize, usize, &Completion),
        cancel: &dyn Fn() -> bool,
    ) -> Result<Generation, EngineError> {
        let mut engine = Engine::new(self.model, self.max_concurrent)?
            .with_decoding(self.decoding)?
            .at_weights_version(self.weights_version);
        for request in requests {
            engine.add(request.clone(), &self.settings)?;
        }
        let (mut finished, total) = (0, engine.num_unfinished());
        let mut completions: Vec<Vec<Option<Completion>>> =
            requests.iter().map(|request| vec![None; request.num_completions]).collect();
        while !engine.is_idle() {
            if cancel() {
                return Err(EngineError::Cancelled { finished, total });
            }
            for event in engine.step()? {
                if let Event::Finished { request, completion, result, .. } = event {
                    finished += 1;
                    on_finished(request.number(), completion, &result);
                    completions[request.number()][completion] = Some(result);
                }
            }
        }
        let completions =
            completions.into_iter().map(|group| group.into_iter().flatten().collect());
        Ok(Generation {
            completions: completions.collect(),
            stats: engine.stats(),
            weights_version: self.weights_version,
        })
    }
}
