//! Decoding on the CPU (`cpu/`), without gradients: attention of new tokens over a cache, and whole decoder layers.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::activations::Activation;
use crate::call::{call_for_tensor, pointer};
use crate::fused::{check, dims, has_cpu_kernel};
use crate::linear::{LinearWeights, PackedPart, gated_linear, linears, normed_linears, packed};
use crate::norms::{Norm, rms_norm};
use crate::operations::{Pairing, rotate};

unsafe extern "C" {
    fn vlm_r1_decode_attention(
        tensors: *const *mut C_tensor,
        scale: f64,
        output: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_decode_layer(
        tensors: *const *mut C_tensor,
        numbers: *const Numbers,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// What norms the kernel takes, in this order: before attention, before the MLP, of queries, of keys, after attention, after the MLP.
const NUM_NORMS: usize = 6;

/// `DecodeLayerNumbers` of `cpu/decoding.cpp`.
#[repr(C)]
struct Numbers {
    outs: [i64; 7],
    head_dim: i64,
    eps: [f64; NUM_NORMS],
    offset: [f64; NUM_NORMS],
    scale: f64,
    activation: c_int,
    adjacent: c_int,
}

/// Keys and values that decoding attention reads for one new token per slot: those of the slot's prompt, then those of its completion.
#[derive(Debug)]
pub struct KvView<'a> {
    /// `[prompts, kv_heads, head_dim, prompt_width]`.
    pub prompt_keys: &'a Tensor,
    /// `[prompts, kv_heads, prompt_width, head_dim]`.
    pub prompt_values: &'a Tensor,
    /// `[slots or more, kv_heads, completion_width, head_dim]`; the new token's are written into it.
    pub completion_keys: &'a Tensor,
    /// As `completion_keys`.
    pub completion_values: &'a Tensor,
    /// `[slots]`: index of each slot's prompt.
    pub prompt_indices: &'a Tensor,
    /// `[slots]`: tokens of its prompt.
    pub prompt_lens: &'a Tensor,
    /// `[slots]`: tokens of its completion before the new one.
    pub completion_lens: &'a Tensor,
    /// `[slots]`: the first key that the new token sees, counted from the prompt's first, behind which the completion lies; `None`: all. It
    /// is at most the new token's own.
    pub first_visible: Option<&'a Tensor>,
}

/// Attention of one new token per slot, `q [slots, heads, head_dim]`, `k`, `v [slots, kv_heads, head_dim]`, over its prompt, its
/// completion and itself: `[slots, heads, head_dim]`. Scores are scaled by `scale`, or by `1 / sqrt(head_dim)`. Index tensors are int64 and
/// within bounds.
///
/// # Errors
/// Tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_attention(
    [q, k, v]: [&Tensor; 3],
    kv: &KvView<'_>,
    scale: Option<f64>,
) -> Result<Tensor, TorchError> {
    let [slots, heads, head_dim] = dims(q);
    let [_, kv_heads, _] = dims(k);
    let fits =
        [k, v].iter().all(|x| x.size() == [slots, kv_heads, head_dim] && x.kind() == q.kind());
    check("decode_attention", fits && has_cpu_kernel(q), &[q, k, v])?;
    kv.check([slots, heads, kv_heads, head_dim], q.kind())?;
    let pointers: Vec<*mut C_tensor> =
        [q, k, v].map(pointer).into_iter().chain(kv.pointers()).collect();
    let scale = scale.unwrap_or_else(|| default_scale(head_dim));
    // SAFETY: eleven valid `at::Tensor*` (the last may be null), borrowed for the call, of shapes and types that fit.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_decode_attention(pointers.as_ptr(), scale, output, error, capacity)
    })
}

impl KvView<'_> {
    fn pointers(&self) -> [*mut C_tensor; 8] {
        let first = self.first_visible.map_or(std::ptr::null_mut(), pointer);
        let [a, b, c, d, e, f, g] = [
            self.prompt_keys,
            self.prompt_values,
            self.completion_keys,
            self.completion_values,
            self.prompt_indices,
            self.prompt_lens,
            self.completion_lens,
        ]
        .map(pointer);
        [a, b, c, d, e, f, g, first]
    }

    /// The kernels check nothing. Indices are left to the caller.
    fn check(
        &self,
        [slots, heads, kv_heads, head_dim]: [i64; 4],
        kind: Kind,
    ) -> Result<(), TorchError> {
        let [prompts, _, _, width] = dims(self.prompt_keys);
        let [room, _, completion_width, _] = dims(self.completion_keys);
        let fits = heads % kv_heads.max(1) == 0
            && self.prompt_keys.size() == [prompts, kv_heads, head_dim, width]
            && self.prompt_values.size() == [prompts, kv_heads, width, head_dim]
            && self.completion_keys.size() == [room, kv_heads, completion_width, head_dim]
            && self.completion_values.size() == self.completion_keys.size()
            && room >= slots
            && [self.prompt_keys, self.prompt_values, self.completion_keys, self.completion_values]
                .iter()
                .all(|x| x.kind() == kind)
            && [self.prompt_indices, self.prompt_lens, self.completion_lens]
                .into_iter()
                .chain(self.first_visible)
                .all(|x| x.size() == [slots] && x.kind() == Kind::Int64);
        check(
            "decode_attention",
            fits,
            &[self.prompt_keys, self.completion_keys, self.prompt_indices],
        )
    }
}

/// What scores are multiplied by where a model says nothing else.
pub(crate) fn default_scale(head_dim: i64) -> f64 {
    1.0 / (head_dim as f64).sqrt()
}

/// The weights of a decoder layer: norm, grouped-query attention with rotary embedding, norm, gated MLP, two residual connections.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLayer<'a> {
    /// Of `[hidden]`: before attention, and before the MLP.
    pub norms: [Norm<'a>; 2],
    /// Of `[head_dim]`, over each head before rotation: of queries, and of keys.
    pub head_norms: Option<[Norm<'a>; 2]>,
    /// Of `[hidden]`, before the residual sums: after attention, and after the MLP.
    pub post_norms: Option<[Norm<'a>; 2]>,
    /// Queries, keys and values, the output of attention, then gate, up and down.
    pub linears: [LinearWeights<'a>; 7],
    /// Of the MLP's gate.
    pub activation: Activation,
    /// Channels of a head.
    pub head_dim: i64,
    /// What scores are multiplied by; `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// Of the rotary embedding.
    pub pairing: Pairing,
}

impl<'a> DecodeLayer<'a> {
    /// A layer as Qwen2.5-VL's: two norms, [`Activation::Silu`], rotation of halves.
    pub fn new(
        norms: [impl Into<Norm<'a>>; 2],
        linears: [LinearWeights<'a>; 7],
        head_dim: i64,
    ) -> Self {
        DecodeLayer {
            norms: norms.map(Into::into),
            head_norms: None,
            post_norms: None,
            linears,
            activation: Activation::Silu,
            head_dim,
            scale: None,
            pairing: Pairing::Halves,
        }
    }

    fn all_norms(&self) -> [Option<Norm<'a>>; NUM_NORMS] {
        let [attention, mlp] = self.norms.map(Some);
        let [q, k] = self.head_norms.map_or([None; 2], |norms| norms.map(Some));
        let [after_attention, after_mlp] =
            self.post_norms.map_or([None; 2], |norms| norms.map(Some));
        [attention, mlp, q, k, after_attention, after_mlp]
    }

    /// `x` plus `y`, or plus the norm of `y` where the layer has one in this place.
    pub(crate) fn add(&self, x: &Tensor, y: &Tensor, place: usize) -> Tensor {
        match self.post_norms {
            Some(norms) => x + rms_norm(y, norms[place]),
            None => x + y,
        }
    }

    /// Queries and keys `[slots, heads, head_dim]` by their norms.
    pub(crate) fn normed_heads(&self, q: Tensor, k: Tensor) -> [Tensor; 2] {
        match self.head_norms {
            Some([of_q, of_k]) => [rms_norm(&q, of_q), rms_norm(&k, of_k)],
            None => [q, k],
        }
    }
}

/// A whole decoder layer over one new token per slot: `x [slots, hidden]` to `[slots, hidden]`, without gradient, on the CPU in f32 or bf16.
/// `cos`, `sin [slots, width]` as for [`crate::rotate`]. Over packed weights it is one kernel, which wakes threads once and gives bit for
/// bit what [`decode_layer_reference`] gives.
///
/// # Panics
/// On tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_layer(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    tables: [&Tensor; 2],
    kv: &KvView<'_>,
) -> Tensor {
    if tables[0].kind() == x.kind()
        && let Some(parts) = packed(x, &layer.linears)
    {
        return by_kernel(x, layer, &parts, tables, kv).expect("a cache that fits the model");
    }
    decode_layer_reference(x, layer, tables, kv)
}

/// [`decode_layer`] one operation after another.
///
/// # Panics
/// As [`decode_layer`].
pub fn decode_layer_reference(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    [cos, sin]: [&Tensor; 2],
    kv: &KvView<'_>,
) -> Tensor {
    let slots = x.size()[0];
    let [q, k, v, o, gate, up, down] = layer.linears;
    let [q, k, v] =
        normed_linears(x, layer.norms[0], [q, k, v]).map(|x| x.view([slots, -1, layer.head_dim]));
    let [q, k] = layer.normed_heads(q, k).map(|x| rotate(&x, [cos, sin], layer.pairing));
    let seen = decode_attention([&q, &k, &v], kv, layer.scale);
    let [o] = linears(&seen.expect("a cache that fits the model").view([slots, -1]), [o]);
    let x = layer.add(x, &o, 0);
    let [gate, up] = normed_linears(&x, layer.norms[1], [gate, up]);
    layer.add(&x, &gated_linear(&gate, &up, layer.activation, down), 1)
}

impl DecodeLayer<'_> {
    fn check(
        &self,
        x: &Tensor,
        parts: &[PackedPart<'_>; 7],
        [cos, sin]: [&Tensor; 2],
    ) -> Result<[i64; 4], TorchError> {
        let [slots, hidden] = dims(x);
        let [q, k, v, o, gate, up, down] = parts.map(|(layer, _)| [layer.input, layer.output]);
        let dim = self.head_dim.max(1);
        let layers_fit = [q, k, v, gate, up].iter().all(|[input, _]| *input == hidden)
            && k == v
            && [q[1], k[1]].iter().all(|out| *out > 0 && out % dim == 0)
            && o == [q[1], hidden]
            && gate == up
            && down == [gate[1], hidden]
            && parts.iter().all(|(layer, bias)| {
                layer.packed.kind() == x.kind()
                    && bias.is_none_or(|b| {
                        b.size() == [layer.output] && b.kind() == x.kind() && b.is_contiguous()
                    })
            });
        let widths = [hidden, hidden, dim, dim, hidden, hidden];
        let norms_fit = self.all_norms().iter().zip(widths).all(|(norm, width)| {
            norm.is_none_or(|n| n.weight.size() == [width] && n.weight.kind() == x.kind())
        });
        let [_, turned] = dims(cos);
        let angles_fit = turned % 2 == 0
            && turned <= dim
            && [cos, sin].iter().all(|t| t.size() == [slots, turned] && t.kind() == x.kind());
        let fits = x.dim() == 2 && has_cpu_kernel(x) && layers_fit && norms_fit && angles_fit;
        check("decode_layer", fits, &[x, self.norms[0].weight, cos])?;
        Ok([slots, q[1] / dim, k[1] / dim, dim])
    }
}

fn by_kernel(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    parts: &[PackedPart<'_>; 7],
    [cos, sin]: [&Tensor; 2],
    kv: &KvView<'_>,
) -> Result<Tensor, TorchError> {
    let heads = layer.check(x, parts, [cos, sin])?;
    kv.check(heads, x.kind())?;
    let norms = layer.all_norms();
    let mut tensors = vec![Some(x)];
    tensors.extend(norms.map(|norm| norm.map(|norm| norm.weight)));
    tensors.extend(parts.iter().map(|(linear, _)| Some(&linear.packed)));
    tensors.extend(parts.iter().map(|(_, bias)| *bias));
    tensors.extend([cos, sin].map(Some));
    let pointers: Vec<*mut C_tensor> = tensors
        .into_iter()
        .map(|tensor| tensor.map_or(std::ptr::null_mut(), pointer))
        .chain(kv.pointers())
        .collect();
    let numbers = Numbers {
        outs: parts.map(|(linear, _)| linear.output),
        head_dim: layer.head_dim,
        eps: norms.map(|norm| norm.map_or(0.0, |norm| norm.eps)),
        offset: norms.map(|norm| norm.map_or(0.0, |norm| norm.offset)),
        scale: layer.scale.unwrap_or_else(|| default_scale(layer.head_dim)),
        activation: layer.activation as c_int,
        adjacent: c_int::from(layer.pairing == Pairing::Adjacent),
    };
    // SAFETY: 31 valid `at::Tensor*` (all norms but two, biases and the last may be null), borrowed for the call as the numbers are, of shapes
    // and types that fit.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_decode_layer(pointers.as_ptr(), &numbers, y, error, capacity)
    })
}

#[cfg(test)]
#[path = "decoding_tests.rs"]
pub(crate) mod tests;
