//! Seconds of a step, of what its parts take.

use super::{Choice, Costs, Load, Shape, num_trained};

/// A step's work.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// All of it.
    pub step: Load,
    /// Completions of a micro-batch.
    pub micro_batch: u64,
    /// Completions sampled at once.
    pub sampled: u64,
    /// Updates per batch of completions.
    pub iterations: u64,
}

/// Seconds of sampling, reference and policy passes and updates of a step; `reference` are the costs of the
/// model without adapters. Left out: rewards, loading, packing.
pub fn step_secs(
    shape: &Shape,
    choice: Choice,
    work: &Work,
    costs: &Costs,
    reference: &Costs,
) -> f64 {
    let step = &work.step;
    let passes = step.completions.div_ceil(work.micro_batch.max(1));
    let (tokens, rows) = (step.tokens(), step.completions * step.completion_tokens);
    let prompts = step.prompts as f64;
    // Features once computed serve all passes.
    let again = if choice.keeps_features() { 0.0 } else { prompts };
    let prompt_tokens = step.prompts * step.prompt_tokens;
    let prefill = costs.text.forward.secs(1, prompt_tokens) + prompts * costs.vision.forward;
    let turns = step.completions.div_ceil(work.sampled.max(1)) * step.completion_tokens;
    let decode = turns as f64 * costs.decoded;
    let reference = if choice.reference {
        let text = reference.text.forward.secs(passes, tokens);
        text + reference.head.forward.secs(passes, rows) + again * reference.vision.forward
    } else {
        0.0
    };
    let text = costs.text.training.secs(passes, tokens);
    let head = costs.head.training.secs(passes, rows);
    let trained = num_trained(shape, choice.trained).div_ceil(choice.shards()) as f64;
    let learning = text + head + again * costs.vision.training + trained * costs.update;
    prefill + decode + reference + work.iterations as f64 * learning
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FULL, SHAPE_39M};
    use super::super::{Line, Passes, Tower, Trained};
    use super::*;

    fn passes(forward: (f64, f64), training: (f64, f64)) -> Passes {
        let line = |(pass, token)| Line { pass, token };
        Passes { forward: line(forward), training: line(training) }
    }

    #[test]
    fn a_step_by_hand() {
        let costs = Costs {
            text: passes((1.0, 0.01), (2.0, 0.03)),
            head: passes((0.5, 0.1), (1.5, 0.2)),
            vision: Tower { forward: 7.0, training: 11.0 },
            decoded: 3.0,
            update: 1e-6,
        };
        let work = Work {
            step: Load {
                prompts: 3,
                completions: 12,
                prompt_tokens: 100,
                completion_tokens: 10,
                patches: 4,
            },
            micro_batch: 5,
            sampled: 8,
            iterations: 2,
        };
        // Three passes, 420 tokens, 120 of completions; two turns of ten tokens.
        let sampling = 1.0 + 3.0 + 21.0 + 20.0 * 3.0;
        let reference = 3.0 + 4.2 + 1.5 + 12.0 + 21.0;
        let update = SHAPE_39M.counts.all() as f64 * 1e-6;
        let learning = 6.0 + 12.6 + 4.5 + 24.0 + 33.0 + update;
        let secs = |choice| step_secs(&SHAPE_39M, choice, &work, &costs, &costs);
        assert!((secs(FULL) - (sampling + reference + 2.0 * learning)).abs() < 1e-9);
        let kept =
            Choice { trained: Trained::FrozenVision, feature_cache: 1, reference: false, ..FULL };
        let update = SHAPE_39M.counts.language as f64 * 1e-6;
        let learning = 6.0 + 12.6 + 4.5 + 24.0 + update;
        assert!((secs(kept) - (sampling + 2.0 * learning)).abs() < 1e-9);
    }
}
