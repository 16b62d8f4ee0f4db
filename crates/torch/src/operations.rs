//! Operations of models. Each takes its CPU kernel (`fused`) where that takes its inputs, on a GPU its form of few launches (`device`), else
//! libtorch's operations one by one, with gradients by each. Callers do not choose; tests compare all with the `_reference` beside them.

use tch::{Device, Kind, Tensor, no_grad};

use crate::device;
use crate::fast_paths::{FastPath, is_enabled};
use crate::flash::has_flash_attention;
use crate::fused::{self, has_cpu_kernel};

/// Which channels of a head rotary embedding turns together, of the first `width`; the angle of pair i is that of column i of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + width / 2`.
    #[default]
    Halves,
    /// `2 i` and `2 i + 1`.
    Adjacent,
}

/// Rotary embedding of the first `width` channels of each head of `x [T, heads, head_dim]` by `cos`, `sin [T, width]`, whose second half
/// equals the first; the channels behind them stay. Computed in the type of the tables, returned in that of `x`.
///
/// # Panics
/// On tensors that do not fit.
pub fn rotate(x: &Tensor, [cos, sin]: [&Tensor; 2], pairing: Pairing) -> Tensor {
    let turned = match () {
        () if has_cpu_kernel(x) => fused::rotate(x, [cos, sin], pairing),
        () if device::takes(FastPath::Rotation, x) => device::rotate(x, [cos, sin], pairing),
        () => return rotate_reference(x, [cos, sin], pairing),
    };
    turned.expect("an angle for each token and channel")
}

/// [`rotate`] by libtorch's operations.
pub fn rotate_reference(x: &Tensor, [cos, sin]: [&Tensor; 2], pairing: Pairing) -> Tensor {
    let (kind, width) = (x.kind(), cos.size()[1]);
    let (half, rest) = (width / 2, x.size()[2] - width);
    let turned = x.narrow(2, 0, width).to_kind(cos.kind());
    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1));
    // [T, heads, 2, half]
    let pairs = match pairing {
        Pairing::Halves => turned.unflatten(2, [2, half]),
        Pairing::Adjacent => turned.unflatten(2, [half, 2]).transpose(2, 3),
    };
    let swapped = Tensor::cat(&[pairs.select(2, 1).neg(), pairs.select(2, 0)], 2);
    let turned = (pairs.flatten(2, 3) * cos + swapped * sin).to_kind(kind);
    let turned = match pairing {
        Pairing::Halves => turned,
        Pairing::Adjacent => turned.unflatten(2, [2, half]).transpose(2, 3).flatten(2, 3),
    };
    match rest {
        0 => turned,
        _ => Tensor::cat(&[turned, x.narrow(2, width, rest)], 2),
    }
}

/// Log-softmax of `logits [N, vocab_size] / temperature` at `targets [N]`, and entropies without gradient; both `[N]` in f32.
///
/// # Panics
/// On tensors that do not fit, or a target outside the vocabulary.
pub fn token_scores(logits: &Tensor, targets: &Tensor, temperature: f64) -> [Tensor; 2] {
    if has_cpu_kernel(logits) {
        let scores = fused::token_scores(logits, targets, 1.0 / temperature);
        return scores.expect("a target of the vocabulary for each row of logits");
    }
    token_scores_reference(logits, targets, temperature)
}

/// [`token_scores`] by libtorch's operations.
pub fn token_scores_reference(logits: &Tensor, targets: &Tensor, temperature: f64) -> [Tensor; 2] {
    let (logprobs, all) = log_softmax_at(logits, targets, temperature);
    [logprobs, no_grad(|| entropies(&all.detach()))]
}

/// [`token_scores`] with a gradient of the entropies, for which there is no kernel.
pub fn token_scores_with_entropy_gradient(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> [Tensor; 2] {
    let (logprobs, all) = log_softmax_at(logits, targets, temperature);
    [logprobs, entropies(&all)]
}

/// Log-probabilities `[N]` of the targets and `[N, vocab_size]` of all tokens.
fn log_softmax_at(logits: &Tensor, targets: &Tensor, temperature: f64) -> (Tensor, Tensor) {
    let logits = logits.to_kind(Kind::Float);
    let logits = if temperature == 1.0 { logits } else { logits / temperature };
    let all = logits.log_softmax(-1, Kind::Float);
    (all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1), all)
}

fn entropies(all: &Tensor) -> Tensor {
    -(all.exp() * all).sum_dim_intlist(-1i64, false, Kind::Float)
}

/// The kernels of attention over packed tokens. Each reads tables of its own, which callers build once for all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// [`crate::segment_attention`], and [`crate::decode_attention`] over a cache.
    Segments,
    /// [`crate::variable_length_attention`].
    VariableLength,
    /// libtorch's attention over padded blocks.
    Padded,
}

impl AttentionKernel {
    /// The kernel for tensors of a type on a device.
    pub fn of(kind: Kind, device: Device) -> Self {
        match (device, kind) {
            (Device::Cpu, Kind::Float | Kind::BFloat16) => AttentionKernel::Segments,
            _ if has_flash_attention(kind, device) && is_enabled(FastPath::FlashAttention) => {
                AttentionKernel::VariableLength
            }
            _ => AttentionKernel::Padded,
        }
    }
}

/// The ways of attention of one new token for each completion over a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeKernel {
    /// [`crate::decode_attention`], within [`crate::decode_layer`].
    Cpu,
    /// [`crate::SequenceKv`], within [`crate::decode_layer_by_sequences`].
    Sequences,
    /// libtorch's products over padded blocks.
    Products,
}

impl DecodeKernel {
    /// The way for tensors of a type on a device, with heads of `head_dim` channels.
    pub fn of(kind: Kind, device: Device, head_dim: i64) -> Self {
        match AttentionKernel::of(kind, device) {
            AttentionKernel::Segments => DecodeKernel::Cpu,
            // The kernel takes multiples of 8 channels; a cache with more than the model's would be padded in each step.
            AttentionKernel::VariableLength
                if head_dim % 8 == 0
                    && head_dim <= 256
                    && is_enabled(FastPath::DecodeAttention) =>
            {
                DecodeKernel::Sequences
            }
            AttentionKernel::VariableLength | AttentionKernel::Padded => DecodeKernel::Products,
        }
    }
}

#[cfg(test)]
#[path = "operations_tests.rs"]
mod tests;
