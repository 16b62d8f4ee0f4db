//! Arithmetic of a step, and how fast this machine does it.

use std::time::Instant;

use tch::{Device, Kind, Tensor, no_grad};

use super::{Choice, Load, Shape, Trained};

/// Enough to keep a device busy, and few enough to be done in seconds.
const PROBE_ROWS_GPU: u64 = 4096;
const PROBE_ROWS_CPU: u64 = 256;
const PROBE_REPEATS: usize = 3;

/// Products a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// FLOP/s over many rows: prompts and training.
    pub many_rows: f64,
    /// FLOP/s over a row an answer: decoding.
    pub few_rows: f64,
}

/// Times the MLP of a text layer, activation included: the best of three, for `rows` of a decoding
/// step and for as many as training has.
pub fn probe(shape: &Shape, rows: u64, kind: Kind, device: Device) -> Rates {
    let matrix = |rows: u64, columns: u64| {
        Tensor::ones([rows as i64, columns as i64], (kind, device)) * 1e-3
    };
    let (gate, up) = (
        matrix(shape.mlp, shape.hidden),
        matrix(shape.mlp, shape.hidden),
    );
    let down = matrix(shape.hidden, shape.mlp);
    let rate = |rows: u64| {
        let x = matrix(rows, shape.hidden);
        let mut best = f64::INFINITY;
        // The first run warms up.
        for _ in 0..=PROBE_REPEATS {
            let start = Instant::now();
            let inner = x.linear(&gate, None::<&Tensor>).silu() * x.linear(&up, None::<&Tensor>);
            // Reading a number waits for a GPU.
            let _ = inner.linear(&down, None::<&Tensor>).double_value(&[0, 0]);
            best = best.min(start.elapsed().as_secs_f64());
        }
        (6 * rows * shape.hidden * shape.mlp) as f64 / best
    };
    let many = if device.is_cuda() {
        PROBE_ROWS_GPU
    } else {
        PROBE_ROWS_CPU
    };
    no_grad(|| Rates {
        many_rows: rate(many),
        few_rows: rate(rows.max(1)),
    })
}

/// Seconds of sampling, reference and policy passes of a step. Left out: rewards, loading, AdamW,
/// norms and softmax.
pub fn step_secs(
    shape: &Shape,
    choice: Choice,
    step: &Load,
    (iterations, rates): (u64, Rates),
) -> f64 {
    let (text, head, vision) = forward_flop(shape, step);
    let prompts = (step.prompts * step.prompt_tokens) as f64 / step.tokens() as f64;
    // Features once computed serve all passes.
    let vision_again = if choice.keeps_features() { 0.0 } else { vision };
    let prefill = text * prompts + vision;
    let decode = text * (1.0 - prompts) + head;
    let again = if choice.recompute { 1.0 } else { 0.0 };
    let (through_text, through_vision) = match choice.trained {
        Trained::Full => (3.0 + again, 3.0 + again),
        Trained::FrozenVision => (3.0 + again, 1.0),
        // Frozen weights have no gradient of their own.
        Trained::Lora { .. } => (2.0 + again, 1.0),
    };
    // The head is computed a second time only in chunks.
    let policy = text * through_text + head * 3.0 + vision_again * through_vision;
    let reference = if choice.reference {
        text + head + vision_again
    } else {
        0.0
    };
    (prefill + reference + policy * iterations as f64) / rates.many_rows + decode / rates.few_rows
}

/// FLOP of a forward pass: text layers, head, vision tower.
fn forward_flop(shape: &Shape, step: &Load) -> (f64, f64, f64) {
    let (prompt, answer) = (step.prompt_tokens, step.completion_tokens);
    let pairs = step.prompts * prompt * prompt / 2
        + step.completions * (answer * prompt + answer * answer / 2);
    let weights = shape.layers * shape.layer_weights();
    let text = 2 * step.tokens() * weights + 4 * shape.q_width * pairs * shape.layers;
    let head = 2 * step.completions * answer * shape.hidden * shape.vocab;
    let patches = step.prompts * step.patches;
    let merged = shape.merged_width();
    let tower = shape.vision_hidden * shape.patch + shape.vision_depth * shape.block_weights();
    let vision =
        2 * patches * tower + 2 * patches / shape.merged * merged * (merged + shape.hidden);
    (text as f64, head as f64, vision as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_by_hand() {
        let shape = Shape {
            hidden: 2,
            layers: 1,
            q_width: 2,
            kv_width: 1,
            mlp: 4,
            vocab: 10,
            tied: true,
            vision_hidden: 3,
            vision_depth: 1,
            vision_mlp: 5,
            patch: 7,
            merged: 4,
        };
        let step = Load {
            prompts: 1,
            completions: 2,
            prompt_tokens: 6,
            completion_tokens: 2,
            patches: 8,
        };
        // Layer: 2 (2 2 + 2 1 + 3 4) = 36 weights, 10 tokens; pairs 18 + 2 (12 + 2) = 46, 8 FLOP each.
        let text = 2.0 * 10.0 * 36.0 + 8.0 * 46.0;
        let head = 2.0 * 4.0 * 2.0 * 10.0;
        // Tower: 3 7 + 3 (12 + 15) = 102 weights, 8 patches; merger: 2 tokens, 12 (12 + 2).
        let vision = 2.0 * 8.0 * 102.0 + 2.0 * 2.0 * 12.0 * 14.0;
        assert_eq!(forward_flop(&shape, &step), (text, head, vision));
        let rates = Rates {
            many_rows: 1.0,
            few_rows: 0.5,
        };
        let choice = Choice {
            trained: Trained::Lora {
                rank: 1,
                dropout: false,
            },
            bf16: false,
            recompute: true,
            reference: false,
            accumulates: false,
            feature_cache: 0,
            in_8bit: false,
            offload_optimizer: false,
            offload_reference: false,
        };
        let sampling = text * 0.6 + vision + (text * 0.4 + head) / 0.5;
        let policy = 3.0 * text + 3.0 * head + vision;
        let secs = step_secs(&shape, choice, &step, (2, rates));
        assert!((secs - (sampling + 2.0 * policy)).abs() < 1e-6, "{secs}");
        let kept = Choice {
            feature_cache: 1,
            ..choice
        };
        let secs = step_secs(&shape, kept, &step, (2, rates));
        assert!(
            (secs - (sampling + 2.0 * (policy - vision))).abs() < 1e-6,
            "{secs}"
        );
    }

    #[test]
    fn a_machine_has_a_rate() {
        let shape = Shape {
            hidden: 64,
            layers: 1,
            q_width: 64,
            kv_width: 64,
            mlp: 128,
            vocab: 10,
            tied: true,
            vision_hidden: 3,
            vision_depth: 1,
            vision_mlp: 5,
            patch: 7,
            merged: 4,
        };
        let rates = probe(&shape, 4, Kind::Float, Device::Cpu);
        assert!(rates.many_rows > 1e7 && rates.few_rows > 1e5, "{rates:?}");
    }
}
