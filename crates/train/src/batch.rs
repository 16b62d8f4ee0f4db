//! Prompts with their answers, packed, and what predicts what in them.

use base::Prompt;
use models::model::forward;
use models::{
    Checkpointing, InputsBuilder, ModelInputs, PackedAttention, Rotary, VisionLanguageModel,
};
use tch::{Tensor, no_grad};

use crate::TrainError;
use crate::logprobs::{Predictions, TokenScores};

/// A prompt and the answers to it.
pub type PromptWithCompletions<'a> = (&'a Prompt, Vec<&'a [u32]>);

/// As many sequences as go through the model at once. Tables are built once and serve every pass.
pub struct MicroBatch {
    packed: ModelInputs,
    attention: PackedAttention,
    rotary: Rotary,
    /// `[N]`: the packed position whose hidden state predicts each answer token.
    rows: Tensor,
    /// `[N]`: the answer tokens.
    targets: Tensor,
    /// Tokens of each answer, in order; they sum to `N`.
    pub lens: Vec<usize>,
    /// `T`.
    pub num_tokens: usize,
}

impl MicroBatch {
    /// Packs `[prompt | answer 1 | .. | answer G]` for each item, one after another.
    ///
    /// # Errors
    /// A prompt whose placeholders do not fit its images, an empty answer, or nothing to pack.
    pub fn pack(
        model: &dyn VisionLanguageModel,
        items: &[PromptWithCompletions<'_>],
    ) -> Result<Self, TrainError> {
        let mut builder = InputsBuilder::new(model);
        let (mut rows, mut targets, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, answers) in items {
            let segment = builder.push_prompt(prompt)?;
            let last_of_prompt = builder.num_tokens() as i64 - 1;
            for answer in answers {
                if answer.is_empty() {
                    return Err(TrainError::EmptyAnswer);
                }
                let start = builder.num_tokens() as i64;
                builder.push_completion(segment, answer);
                rows.push(last_of_prompt);
                rows.extend(start..start + answer.len() as i64 - 1);
                targets.extend(answer.iter().map(|&id| i64::from(id)));
                lens.push(answer.len());
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
            rotary: model.rotary(&packed.position_ids),
            rows: Tensor::from_slice(&rows).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            packed,
            lens,
            num_tokens,
        })
    }

    /// Scores of every answer token, without gradient.
    pub fn scores(&self, model: &dyn VisionLanguageModel, temperature: f64) -> TokenScores {
        no_grad(|| {
            let hidden = forward(
                model,
                &mut Checkpointing::new(false),
                &self.packed,
                &self.attention,
                &self.rotary,
            );
            let predicting = self.predicting(&hidden);
            Predictions::new(model, &predicting, &self.targets, temperature).scores()
        })
    }

    /// Accumulates the gradients of `loss`, a scalar made of the scores of every answer token, into
    /// the model's weights. With `recompute` only layer inputs are kept on the way forward.
    pub fn backward<R>(
        &self,
        model: &dyn VisionLanguageModel,
        temperature: f64,
        recompute: bool,
        loss: impl FnOnce(&TokenScores) -> (Tensor, R),
    ) -> R {
        let mut checkpointing = Checkpointing::new(recompute);
        let hidden =
            forward(model, &mut checkpointing, &self.packed, &self.attention, &self.rotary);
        checkpointing.backward(&hidden, |hidden| {
            let predicting = self.predicting(hidden);
            Predictions::new(model, &predicting, &self.targets, temperature).differentiate(loss)
        })
    }

    /// Hidden states that predict answer tokens, `[N, hidden_size]`. A prompt's last one predicts the
    /// first token of every answer: an embedding look-up adds such rows' gradients in a fixed order.
    fn predicting(&self, hidden: &Tensor) -> Tensor {
        Tensor::embedding(hidden, &self.rows, -1, false, false)
    }
}
