//! Packed prompts and completions: forward pass, token scores and backward pass.

use base::Prompt;
use models::model::forward;
use models::{
    Checkpointing, InputsBuilder, ModelInputs, PackedAttention, PassInputs, VisionLanguageModel,
};
use tch::{Tensor, no_grad};

use crate::TrainError;
use crate::logprobs::{Predictions, TokenScores};

/// A prompt and its completions.
pub type PromptWithCompletions<'a> = (&'a Prompt, Vec<&'a [u32]>);

/// How a pass with gradient goes.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Of the softmax.
    pub temperature: f64,
    /// Whether the forward pass saves layer inputs only, and the backward pass computes the rest again.
    pub recompute: bool,
    /// Whether entropies have a gradient.
    pub entropy_gradient: bool,
}

impl Pass {
    /// One whose entropies have no gradient.
    pub fn new(temperature: f64, recompute: bool) -> Self {
        Pass { temperature, recompute, entropy_gradient: false }
    }
}

/// The sequences of one pass. Index tables are built once and serve every pass.
pub struct MicroBatch {
    packed: ModelInputs,
    attention: PackedAttention,
    inputs: PassInputs,
    /// `[N]`: the packed position whose hidden state predicts each completion token.
    rows: Tensor,
    /// `[N]`: the completion tokens.
    targets: Tensor,
    /// Tokens of each completion, in order; they sum to `N`.
    pub lens: Vec<usize>,
    /// `T`.
    pub num_tokens: usize,
}

impl MicroBatch {
    /// Packs `[prompt | completion 1 | .. | completion G]` for each item, one after another.
    ///
    /// # Errors
    /// A prompt whose placeholders do not fit its images, an empty completion, or nothing to pack.
    pub fn pack(
        model: &dyn VisionLanguageModel,
        items: &[PromptWithCompletions<'_>],
    ) -> Result<Self, TrainError> {
        let mut builder = InputsBuilder::new(model);
        let (mut rows, mut targets, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, completions) in items {
            let segment = builder.push_prompt(prompt)?;
            let last_of_prompt = builder.num_tokens() as i64 - 1;
            for completion in completions {
                if completion.is_empty() {
                    return Err(TrainError::EmptyAnswer);
                }
                let start = builder.num_tokens() as i64;
                builder.push_completion(segment, completion);
                rows.push(last_of_prompt);
                rows.extend(start..start + completion.len() as i64 - 1);
                targets.extend(completion.iter().map(|&id| i64::from(id)));
                lens.push(completion.len());
            }
        }
        if targets.is_empty() {
            return Err(TrainError::EmptyAnswer);
        }
        let (kind, device) = model.compute();
        let num_tokens = builder.num_tokens();
        let packed = builder.build();
        Ok(MicroBatch {
            attention: PackedAttention::new(&packed.layout, true, kind, device),
            inputs: packed.pass_inputs(model),
            rows: torch::upload(&rows, device),
            targets: torch::upload(&targets, device),
            packed,
            lens,
            num_tokens,
        })
    }

    /// Scores of every completion token, without gradient.
    pub fn scores(&self, model: &dyn VisionLanguageModel, temperature: f64) -> TokenScores {
        no_grad(|| {
            let hidden = forward(
                model,
                &mut Checkpointing::new(false),
                &self.packed,
                &self.inputs,
                &self.attention,
            );
            let predicting = self.predicting(&hidden);
            Predictions::new(model, &predicting, &self.targets, temperature).scores()
        })
    }

    /// Accumulates the gradients of `loss`, a scalar made of the scores of every completion token, into
    /// the model's weights.
    pub fn backward<R>(
        &self,
        model: &dyn VisionLanguageModel,
        pass: Pass,
        loss: impl FnOnce(&TokenScores) -> (Tensor, R),
    ) -> R {
        let mut checkpointing = Checkpointing::new(pass.recompute);
        let hidden =
            forward(model, &mut checkpointing, &self.packed, &self.inputs, &self.attention);
        checkpointing.backward(&hidden, |hidden| {
            let predicting = self.predicting(hidden);
            let predictions = Predictions::new(model, &predicting, &self.targets, pass.temperature);
            predictions.with_entropy_gradient(pass.entropy_gradient).differentiate(loss)
        })
    }

    /// Hidden states that predict completion tokens, `[N, hidden_size]`. A prompt's last one predicts the first
    /// token of every completion; an embedding look-up adds such rows' gradients in a fixed order.
    fn predicting(&self, hidden: &Tensor) -> Tensor {
        Tensor::embedding(hidden, &self.rows, -1, false, false)
    }
}
