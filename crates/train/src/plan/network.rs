//! What ranks send one another in a step, and how long that takes. No network was measured: rates are assumptions.

use super::{Choice, F32, Shape, Trained, Work, num_trained};
use config::ZeroStage;

/// What ranks talk over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// As it is shown.
    pub name: &'static str,
    /// Bytes a second that a rank sends while it receives as many.
    pub bytes_per_sec: f64,
}

/// NVLink of an H100 by what NCCL reaches of it, and a network card of 200 Gbit/s for each rank.
pub const NETWORKS: [Network; 2] = [
    Network { name: "NVLink", bytes_per_sec: 350e9 },
    Network { name: "200 Gbit/s", bytes_per_sec: 25e9 },
];

impl Network {
    /// Seconds that it takes to send so many bytes, nothing else done meanwhile.
    pub fn secs(&self, bytes: u64) -> f64 {
        bytes as f64 / self.bytes_per_sec
    }
}

/// Bytes that a rank sends in a step: it has all but its own part of each tensor from the others, by rings.
///
/// Stage 0 sums gradients once an update, there and back in f32. Stage 2 sums them into shards after each micro-batch,
/// and gathers weights after each update and the reference once a step, both in the compute type.
pub fn bytes_sent(shape: &Shape, choice: Choice, work: &Work) -> u64 {
    let trained = num_trained(shape, choice.trained);
    let rounds = work.step.completions.div_ceil(work.micro_batch.max(1));
    let is_lora = matches!(choice.trained, Trained::Lora { .. });
    let whole = match choice.zero_stage() {
        ZeroStage::Zero => work.iterations * 2 * trained * F32,
        ZeroStage::Two => {
            let of_update = rounds * trained * F32 + trained * choice.size();
            let has_reference = choice.reference && !is_lora;
            let reference = if has_reference { shape.counts.all() * choice.size() } else { 0 };
            work.iterations * of_update + reference
        }
    };
    // Whole bytes: seven eighths of a tensor on 8 ranks.
    whole / choice.ranks.count * (choice.ranks.count - 1)
}
