//! The public interface of generation; `run` does the work.

use base::Completion;
use models::{InputsBuilder, VisionLanguageModel};
use torch::check_graphs;

use crate::EngineError;
use crate::params::SamplingParams;
use crate::request::{Generation, Request};
use crate::run::Run;
use crate::static_shapes::Decoding;
use crate::token_sampler::TokenSampler;

/// Samples completions from a model.
pub struct Generator<'m> {
    pub(crate) model: &'m dyn VisionLanguageModel,
    pub(crate) params: SamplingParams,
    pub(crate) max_concurrent: usize,
    pub(crate) token_sampler: TokenSampler,
    pub(crate) decoding: Decoding,
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
        if max_concurrent == 0 {
            let got = max_concurrent.to_string();
            return Err(EngineError::Parameter {
                name: "max_concurrent",
                got,
                expected: "1 or more",
            });
        }
        let token_sampler = TokenSampler::new(model, &params);
        Ok(Generator {
            model,
            params,
            max_concurrent,
            token_sampler,
            decoding: Decoding::default(),
        })
    }

    /// The same with another [`Decoding`]; tokens are the same but for rounding.
    ///
    /// # Errors
    /// Graphs where the model is on no GPU or CUDA's libraries do not fit.
    pub fn with_decoding(self, decoding: Decoding) -> Result<Self, EngineError> {
        if decoding == Decoding::CudaGraphs {
            check_graphs(self.model.compute().1)?;
        }
        Ok(Generator { decoding, ..self })
    }

    /// Samples every completion of every request. `on_finished` is called as each one ends, with the index of its request and the index
    /// within it; `cancel` is called before every pass.
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
        self.check(requests)?;
        tch::no_grad(|| {
            let mut run = Run::new(self, requests, on_finished)?;
            while !run.is_done() {
                run.schedule(cancel)?;
                run.decode(cancel)?;
            }
            Ok(run.into_generation())
        })
    }

    fn check(&self, requests: &[Request]) -> Result<(), EngineError> {
        let vocab_size = self.model.text_shape().vocab_size;
        for (request, Request { prompt, .. }) in requests.iter().enumerate() {
            if prompt.ids.is_empty() {
                return Err(EngineError::EmptyPrompt { request });
            }
            if let Some(position) = prompt.ids.iter().position(|&id| i64::from(id) >= vocab_size) {
                return Err(EngineError::PromptToken {
                    request,
                    position,
                    id: prompt.ids[position],
                    vocab_size,
                });
            }
            InputsBuilder::new(self.model)
                .push_prompt(prompt)
                .map_err(|source| EngineError::Prompt { request, source })?;
        }
        Ok(())
    }
}
