//! Hidden states to log-probabilities of given tokens.

use base::Prompt;
use models::VisionLanguageModel;
use tch::{Kind, Tensor, no_grad};
use torch::{token_scores, token_scores_with_entropy_gradient};

use crate::TrainError;
use crate::batch::MicroBatch;

/// Rows of logits computed at a time: enough for a fast matrix product.
pub(crate) const CHUNK_ROWS: i64 = 512;

/// Scores of given tokens, both `[N]` in f32.
#[derive(Debug)]
pub struct TokenScores {
    /// `log softmax(logits / temperature)` of each target.
    pub logprobs: Tensor,
    /// Entropy of each distribution, nats; without gradient unless it is asked for.
    pub entropies: Tensor,
}

/// Hidden states `[N, hidden_size]` and the tokens `[N]` that they predict.
pub struct Predictions<'a> {
    /// The model, for its head.
    pub model: &'a dyn VisionLanguageModel,
    /// Hidden states.
    pub hidden: &'a Tensor,
    /// What comes next.
    pub targets: &'a Tensor,
    /// Of the softmax.
    pub temperature: f64,
    /// Rows of logits computed at a time.
    pub chunk_rows: i64,
    /// Whether entropies have a gradient.
    pub entropy_gradient: bool,
}

impl<'a> Predictions<'a> {
    /// With the usual number of rows at a time.
    pub fn new(
        model: &'a dyn VisionLanguageModel,
        hidden: &'a Tensor,
        targets: &'a Tensor,
        temperature: f64,
    ) -> Self {
        Predictions {
            model,
            hidden,
            targets,
            temperature,
            chunk_rows: CHUNK_ROWS,
            entropy_gradient: false,
        }
    }

    /// The same, with or without a gradient of the entropies.
    #[must_use]
    pub fn with_entropy_gradient(self, entropy_gradient: bool) -> Self {
        Predictions { entropy_gradient, ..self }
    }

    /// Scores of every token, without gradient.
    pub fn scores(&self) -> TokenScores {
        no_grad(|| {
            let chunks: Vec<TokenScores> = self
                .chunks()
                .map(|(start, len)| self.score(&self.hidden.narrow(0, start, len), start))
                .collect();
            let join = |of: fn(&TokenScores) -> &Tensor| {
                Tensor::cat(&chunks.iter().map(of).collect::<Vec<_>>(), 0)
            };
            TokenScores { logprobs: join(|c| &c.logprobs), entropies: join(|c| &c.entropies) }
        })
    }

    /// A scalar whose gradient with respect to `hidden` is that of `loss`, and the other result of `loss`.
    ///
    /// A single chunk is an ordinary autograd graph. With several, logits are not kept: `loss` is differentiated with respect to the
    /// log-probabilities, then each chunk is recomputed for the gradients of the head (accumulated here) and of its hidden states.
    pub fn differentiate<R>(&self, loss: impl FnOnce(&TokenScores) -> (Tensor, R)) -> (Tensor, R) {
        if self.hidden.size()[0] <= self.chunk_rows {
            return loss(&self.score(self.hidden, 0));
        }
        let mut scores = self.scores();
        scores.logprobs = scores.logprobs.set_requires_grad(true);
        scores.entropies = scores.entropies.set_requires_grad(self.entropy_gradient);
        let (scalar, result) = loss(&scores);
        scalar.backward();
        let upstream = scores.logprobs.grad();
        let upstream_of_entropies = self.entropy_gradient.then(|| scores.entropies.grad());
        let mut gradients = Vec::new();
        for (start, len) in self.chunks() {
            let hidden = self.hidden.narrow(0, start, len);
            let hidden = hidden.detach().set_requires_grad(true);
            let scores = self.score(&hidden, start);
            let mut scalar = (scores.logprobs * upstream.narrow(0, start, len)).sum(Kind::Float);
            if let Some(upstream) = &upstream_of_entropies {
                let upstream = upstream.narrow(0, start, len);
                scalar += (scores.entropies * upstream).sum(Kind::Float);
            }
            scalar.backward();
            gradients.push(hidden.grad());
        }
        let gradient = Tensor::cat(&gradients, 0);
        let scalar = (self.hidden * gradient).sum(self.hidden.kind());
        (scalar, result)
    }

    /// Start and length of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (i64, i64)> {
        let (rows, step) = (self.hidden.size()[0], self.chunk_rows);
        (0..rows).step_by(step as usize).map(move |start| (start, step.min(rows - start)))
    }

    /// Scores of the tokens from `start` on, of `hidden [n, hidden_size]`.
    fn score(&self, hidden: &Tensor, start: i64) -> TokenScores {
        let len = hidden.size()[0];
        let targets = self.targets.narrow(0, start, len);
        let logits = self.model.logits(hidden, None);
        let scores = match self.entropy_gradient {
            true => token_scores_with_entropy_gradient,
            false => token_scores,
        };
        let [logprobs, entropies] = scores(&logits, &targets, self.temperature);
        TokenScores { logprobs, entropies }
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
