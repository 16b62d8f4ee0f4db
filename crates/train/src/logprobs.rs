//! Hidden states to log-probabilities of given tokens.

use base::Prompt;
use models::VisionLanguageModel;
use tch::{Kind, Tensor, no_grad};

use crate::TrainError;
use crate::batch::MicroBatch;

/// Rows of logits that exist at a time.
const CHUNK_ROWS: i64 = 2048;

/// What the model thinks of given tokens, both `[N]` in f32.
#[derive(Debug)]
pub struct TokenScores {
    /// `log softmax(logits / temperature)` of each target.
    pub logprobs: Tensor,
    /// Entropy of each distribution, nats, without gradient.
    pub entropies: Tensor,
}

/// Scores `targets [N]` from the hidden states `[N, hidden_size]` that predict them.
pub fn token_scores(
    model: &dyn VisionLanguageModel,
    hidden: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> TokenScores {
    let rows = hidden.size()[0];
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(CHUNK_ROWS as usize) {
        let len = CHUNK_ROWS.min(rows - start);
        let logits = model
            .logits(&hidden.narrow(0, start, len))
            .to_kind(Kind::Float);
        let logits = if temperature == 1.0 {
            logits
        } else {
            logits / temperature
        };
        // [len, V]
        let all = logits.log_softmax(-1, Kind::Float);
        let picked = all.gather(1, &targets.narrow(0, start, len).unsqueeze(1), false);
        logprobs.push(picked.squeeze_dim(1));
        entropies.push(no_grad(|| {
            -(all.exp() * &all).sum_dim_intlist(-1i64, false, Kind::Float)
        }));
    }
    TokenScores {
        logprobs: Tensor::cat(&logprobs, 0),
        entropies: Tensor::cat(&entropies, 0),
    }
}

/// Log-probabilities of given completions, one list per row.
///
/// # Errors
/// A prompt whose placeholders do not fit its images, or an empty completion.
pub fn completion_logprobs(
    model: &dyn VisionLanguageModel,
    rows: &[(Prompt, Vec<u32>)],
    temperature: f64,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut out = Vec::with_capacity(rows.len());
    for (prompt, completion) in rows {
        let batch = MicroBatch::pack(model, &[(prompt, vec![completion.as_slice()])])?;
        let scores = batch.scores(model, temperature);
        out.push(Vec::try_from(scores.logprobs.to_device(tch::Device::Cpu))?);
    }
    Ok(out)
}
