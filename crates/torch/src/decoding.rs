//! CPU kernels of sampling (`cpu/`), without gradients: decoding attention, packed linear layers, whole decoder layers, token sampling.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, call_for_tensor, pointer};
use crate::fused::{check, dims, has_cpu_kernel};

unsafe extern "C" {
    fn vlm_r1_decode_attention(
        tensors: *const *mut C_tensor,
        scale: f64,
        output: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_pack_linear(
        weight: *mut C_tensor,
        packed: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_packed_linears(
        x: *mut C_tensor,
        n: usize,
        packed: *const *mut C_tensor,
        biases: *const *mut C_tensor,
        outs: *const i64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_sample_tokens(
        logits: *mut C_tensor,
        banned: *const *mut C_tensor,
        unfinished: *mut C_tensor,
        uniforms: *mut C_tensor,
        scale: f64,
        table: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_decode_layer(
        tensors: *const *mut C_tensor,
        outs: *const i64,
        head_dim: i64,
        eps: f64,
        scale: f64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
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
}

/// Attention of one new token per slot, `q [slots, heads, head_dim]`, `k`, `v [slots, kv_heads, head_dim]`, over its prompt, its
/// completion and itself: `[slots, heads, head_dim]`. Index tensors are int64 and within bounds.
///
/// # Errors
/// Tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_attention([q, k, v]: [&Tensor; 3], kv: &KvView<'_>) -> Result<Tensor, TorchError> {
    let [slots, heads, head_dim] = dims(q);
    let [_, kv_heads, _] = dims(k);
    let fits =
        [k, v].iter().all(|x| x.size() == [slots, kv_heads, head_dim] && x.kind() == q.kind());
    check("decode_attention", fits && has_cpu_kernel(q), &[q, k, v])?;
    kv.check([slots, heads, kv_heads, head_dim], q.kind())?;
    let [a, b, c, d, e, f, g] = kv.tensors();
    let pointers = [q, k, v, a, b, c, d, e, f, g].map(pointer);
    let scale = 1.0 / (q.size()[2] as f64).sqrt();
    // SAFETY: ten valid `at::Tensor*`, borrowed for the call, of shapes and types that fit.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_decode_attention(pointers.as_ptr(), scale, output, error, capacity)
    })
}

impl KvView<'_> {
    fn tensors(&self) -> [&Tensor; 7] {
        [
            self.prompt_keys,
            self.prompt_values,
            self.completion_keys,
            self.completion_values,
            self.prompt_indices,
            self.prompt_lens,
            self.completion_lens,
        ]
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
                .iter()
                .all(|x| x.size() == [slots] && x.kind() == Kind::Int64);
        check(
            "decode_attention",
            fits,
            &[self.prompt_keys, self.completion_keys, self.prompt_indices],
        )
    }
}

/// The weight of a linear layer with 16 outputs interleaved: for few rows of input, which read it once and sequentially.
#[derive(Debug)]
pub struct PackedLinear {
    packed: Tensor,
    input: i64,
    output: i64,
}

impl PackedLinear {
    /// Packs `weight [out, in]`, of a type that [`has_cpu_kernel`] accepts.
    ///
    /// # Errors
    /// Whatever libtorch refuses.
    pub fn new(weight: &Tensor) -> Result<Self, TorchError> {
        check("packed linear", weight.dim() == 2 && has_cpu_kernel(weight), &[weight])?;
        let [output, input] = dims(weight);
        // SAFETY: a valid `at::Tensor*`, borrowed for the call.
        let packed = call_for_tensor(|packed, error, capacity| unsafe {
            vlm_r1_pack_linear(pointer(weight), packed, error, capacity)
        })?;
        Ok(PackedLinear { packed, input, output })
    }
}

/// `x [rows, in]` by each of `layers` with its `bias [out]`, in one operation without gradient: `[rows, out]` each.
///
/// # Errors
/// An input or a bias of another width or type.
pub fn packed_linears<const N: usize>(
    x: &Tensor,
    layers: [(&PackedLinear, Option<&Tensor>); N],
) -> Result<[Tensor; N], TorchError> {
    for (layer, bias) in layers {
        let fits = x.dim() == 2
            && x.size()[1] == layer.input
            && has_cpu_kernel(x)
            && x.kind() == layer.packed.kind()
            && bias.is_none_or(|b| {
                b.size() == [layer.output] && b.kind() == x.kind() && b.is_contiguous()
            });
        check("packed linear", fits, &[x, &layer.packed])?;
    }
    let packed = layers.map(|(layer, _)| pointer(&layer.packed));
    let biases = layers.map(|(_, bias)| bias.map_or(std::ptr::null_mut(), pointer));
    let outs = layers.map(|(layer, _)| layer.output);
    let mut y = [std::ptr::null_mut(); N];
    // SAFETY: valid `at::Tensor*` (a bias may be null) of shapes and types that fit, borrowed for the call; all lists hold N.
    call(|error, capacity| unsafe {
        vlm_r1_packed_linears(
            pointer(x),
            N,
            packed.as_ptr(),
            biases.as_ptr(),
            outs.as_ptr(),
            y.as_mut_ptr(),
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    Ok(y.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

/// Inputs of [`sample_tokens`], by row.
#[derive(Debug)]
pub struct TokenSampling<'a> {
    /// `[n, vocab_size]`.
    pub logits: &'a Tensor,
    /// `[vocab_size]` in bool each: tokens banned for all rows, and those banned for unfinished rows.
    pub banned: [&'a Tensor; 2],
    /// `[n, 1]` in bool: the unfinished rows; `None`: no row.
    pub unfinished: Option<&'a Tensor>,
    /// `[n]` in f64, from 0 to below 1: inverse-CDF sampling in order of ids. `None`: greedy.
    pub uniforms: Option<&'a Tensor>,
    /// Logits are multiplied by it, 1 over the temperature.
    pub scale: f64,
}

/// Samples a token per row. Returns `[n, 5]` in f64: the token; its log-softmax over the whole vocabulary; two numbers; 0. The two
/// numbers are, sampled, the distances of the uniform number to both ends of the token's interval (1 where no token lies beyond);
/// greedy, the second largest and the largest logit.
///
/// # Errors
/// Tensors that do not fit.
pub fn sample_tokens(inputs: &TokenSampling<'_>) -> Result<Tensor, TorchError> {
    let TokenSampling { logits, banned, unfinished, uniforms, scale } = inputs;
    let [rows, vocabulary] = dims(logits);
    let fits = logits.dim() == 2
        && vocabulary > 0
        && banned.iter().all(|mask| {
            mask.size() == [vocabulary] && mask.kind() == Kind::Bool && mask.is_contiguous()
        })
        && unfinished
            .is_none_or(|x| x.size() == [rows, 1] && x.kind() == Kind::Bool && x.is_contiguous())
        && uniforms
            .is_none_or(|x| x.size() == [rows] && x.kind() == Kind::Double && x.is_contiguous());
    check("sample_tokens", fits, &[logits, banned[0], banned[1]])?;
    let optional = |x: Option<&Tensor>| x.map_or(std::ptr::null_mut(), pointer);
    let banned = banned.map(pointer);
    // SAFETY: valid `at::Tensor*` (two may be null) of shapes and types that fit, borrowed for the call.
    call_for_tensor(|table, error, capacity| unsafe {
        vlm_r1_sample_tokens(
            pointer(logits),
            banned.as_ptr(),
            optional(*unfinished),
            optional(*uniforms),
            *scale,
            table,
            error,
            capacity,
        )
    })
}

/// A linear layer of a [`DecodeLayer`]: its weight and its bias `[out]`.
pub type PackedPart<'a> = (&'a PackedLinear, Option<&'a Tensor>);

/// The weights of a decoder layer: norm, grouped-query attention with rotary embedding, norm, gated MLP, two residual connections.
#[derive(Debug)]
pub struct DecodeLayer<'a> {
    /// `[hidden]`.
    pub input_norm: &'a Tensor,
    /// `[hidden]`.
    pub post_attention_norm: &'a Tensor,
    /// Of both norms.
    pub eps: f64,
    /// Queries, keys and values, the output of attention, then gate, up and down.
    pub linears: [PackedPart<'a>; 7],
    /// Channels of a head.
    pub head_dim: i64,
}

impl DecodeLayer<'_> {
    fn check(&self, x: &Tensor, [cos, sin]: [&Tensor; 2]) -> Result<[i64; 4], TorchError> {
        let [slots, hidden] = dims(x);
        let [q, k, v, o, gate, up, down] =
            self.linears.map(|(layer, _)| [layer.input, layer.output]);
        let dim = self.head_dim.max(1);
        let layers_fit = [q, k, v, gate, up].iter().all(|[input, _]| *input == hidden)
            && k == v
            && [q[1], k[1]].iter().all(|out| *out > 0 && out % dim == 0)
            && dim % 2 == 0
            && o == [q[1], hidden]
            && gate == up
            && down == [gate[1], hidden]
            && self.linears.iter().all(|(layer, bias)| {
                layer.packed.kind() == x.kind()
                    && bias.is_none_or(|b| {
                        b.size() == [layer.output] && b.kind() == x.kind() && b.is_contiguous()
                    })
            });
        let norms_fit = [self.input_norm, self.post_attention_norm]
            .iter()
            .all(|w| w.size() == [hidden] && w.kind() == x.kind());
        let angles_fit =
            [cos, sin].iter().all(|table| table.size() == [slots, dim] && table.kind() == x.kind());
        let fits = x.dim() == 2 && has_cpu_kernel(x) && layers_fit && norms_fit && angles_fit;
        check("decode_layer", fits, &[x, self.input_norm, cos])?;
        Ok([slots, q[1] / dim, k[1] / dim, dim])
    }
}

/// A whole decoder layer over one new token per slot: `x [slots, hidden]` to `[slots, hidden]`. `cos`, `sin [slots, head_dim]` as for
/// [`crate::rotate`]. Bit for bit the same as the single operations, but threads are woken once.
///
/// # Errors
/// Tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_layer(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    [cos, sin]: [&Tensor; 2],
    kv: &KvView<'_>,
) -> Result<Tensor, TorchError> {
    let heads = layer.check(x, [cos, sin])?;
    kv.check(heads, x.kind())?;
    let outs = layer.linears.map(|(linear, _)| linear.output);
    let mut tensors = vec![x, layer.input_norm, layer.post_attention_norm];
    tensors.extend(layer.linears.iter().map(|(linear, _)| &linear.packed));
    let mut pointers: Vec<*mut C_tensor> = tensors.into_iter().map(pointer).collect();
    let biases = layer.linears.iter().map(|(_, bias)| *bias);
    pointers.extend(biases.map(|bias| bias.map_or(std::ptr::null_mut(), pointer)));
    pointers.extend([cos, sin].map(pointer));
    pointers.extend(kv.tensors().map(pointer));
    let scale = 1.0 / (layer.head_dim as f64).sqrt();
    // SAFETY: 26 valid `at::Tensor*` (biases may be null), borrowed for the call, of shapes and types that fit.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_decode_layer(
            pointers.as_ptr(),
            outs.as_ptr(),
            layer.head_dim,
            layer.eps,
            scale,
            y,
            error,
            capacity,
        )
    })
}

#[cfg(test)]
#[path = "decoding_tests.rs"]
mod tests;
