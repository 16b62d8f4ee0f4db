//! What sampling does on the CPU, in loops of our own (`cpu/`) and without gradients: attention of new tokens, linear layers of packed
//! weights, whole decoder layers of both, and the choice of tokens.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, call_for_tensor, pointer};
use crate::fused::{check, dims, fuses};

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
    fn vlm_r1_choose(
        logits: *mut C_tensor,
        banned: *const *mut C_tensor,
        unfinished: *mut C_tensor,
        draws: *mut C_tensor,
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

/// Keys and values that new tokens see, one per slot: those of the slot's prompt, then those of its answer.
#[derive(Debug)]
pub struct DecodeKeys<'a> {
    /// `[rows, kv_heads, head_dim, prompt_width]`.
    pub prompt_keys: &'a Tensor,
    /// `[rows, kv_heads, prompt_width, head_dim]`.
    pub prompt_values: &'a Tensor,
    /// `[slots or more, kv_heads, answer_width, head_dim]`; the new token's are written into it.
    pub answer_keys: &'a Tensor,
    /// As `answer_keys`.
    pub answer_values: &'a Tensor,
    /// `[slots]`: each slot's row.
    pub rows: &'a Tensor,
    /// `[slots]`: tokens of its prompt.
    pub prompt_lens: &'a Tensor,
    /// `[slots]`: tokens of its answer before the new one.
    pub places: &'a Tensor,
}

/// Attention of one new token a slot, `q [slots, heads, head_dim]`, `k`, `v [slots, kv_heads, head_dim]`, over all that
/// it sees, itself last: `[slots, heads, head_dim]`. Index tensors are int64 and name existing rows.
///
/// # Errors
/// Tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_attention(
    [q, k, v]: [&Tensor; 3],
    keys: &DecodeKeys<'_>,
) -> Result<Tensor, TorchError> {
    let [slots, heads, head_dim] = dims(q);
    let [_, kv_heads, _] = dims(k);
    let fits =
        [k, v].iter().all(|x| x.size() == [slots, kv_heads, head_dim] && x.kind() == q.kind());
    check("decode_attention", fits && fuses(q), &[q, k, v])?;
    keys.check([slots, heads, kv_heads, head_dim], q.kind())?;
    let [a, b, c, d, e, f, g] = keys.tensors();
    let pointers = [q, k, v, a, b, c, d, e, f, g].map(pointer);
    let scale = 1.0 / (q.size()[2] as f64).sqrt();
    // SAFETY: ten valid `at::Tensor*`, borrowed for the call, of shapes and types that fit.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_decode_attention(pointers.as_ptr(), scale, output, error, capacity)
    })
}

impl DecodeKeys<'_> {
    fn tensors(&self) -> [&Tensor; 7] {
        [
            self.prompt_keys,
            self.prompt_values,
            self.answer_keys,
            self.answer_values,
            self.rows,
            self.prompt_lens,
            self.places,
        ]
    }

    /// The loops trust what is checked here; that indices name existing rows the caller sees to.
    fn check(
        &self,
        [slots, heads, kv_heads, head_dim]: [i64; 4],
        kind: Kind,
    ) -> Result<(), TorchError> {
        let [rows, _, _, width] = dims(self.prompt_keys);
        let [room, _, answer_width, _] = dims(self.answer_keys);
        let fits = heads % kv_heads.max(1) == 0
            && self.prompt_keys.size() == [rows, kv_heads, head_dim, width]
            && self.prompt_values.size() == [rows, kv_heads, width, head_dim]
            && self.answer_keys.size() == [room, kv_heads, answer_width, head_dim]
            && self.answer_values.size() == self.answer_keys.size()
            && room >= slots
            && [self.prompt_keys, self.prompt_values, self.answer_keys, self.answer_values]
                .iter()
                .all(|x| x.kind() == kind)
            && [self.rows, self.prompt_lens, self.places]
                .iter()
                .all(|x| x.size() == [slots] && x.kind() == Kind::Int64);
        check("decode_attention", fits, &[self.prompt_keys, self.answer_keys, self.rows])
    }
}

/// The weight of a linear layer, 16 outputs side by side: for few rows of input, which then read it once and in order.
#[derive(Debug)]
pub struct PackedLinear {
    packed: Tensor,
    input: i64,
    output: i64,
}

impl PackedLinear {
    /// Packs `weight [out, in]`, of a type that [`fuses`] knows.
    ///
    /// # Errors
    /// Whatever libtorch refuses.
    pub fn new(weight: &Tensor) -> Result<Self, TorchError> {
        check("packed linear", weight.dim() == 2 && fuses(weight), &[weight])?;
        let [output, input] = dims(weight);
        // SAFETY: a valid `at::Tensor*`, borrowed for the call.
        let packed = call_for_tensor(|packed, error, capacity| unsafe {
            vlm_r1_pack_linear(pointer(weight), packed, error, capacity)
        })?;
        Ok(PackedLinear { packed, input, output })
    }
}

/// `x [rows, in]` by each of `layers` with its `bias [out]`, all in one go and without gradient: `[rows, out]` each.
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
            && fuses(x)
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

/// What tokens are chosen from, row by row.
#[derive(Debug)]
pub struct TokenChoice<'a> {
    /// `[n, vocab_size]`.
    pub logits: &'a Tensor,
    /// `[vocab_size]` in bool each: tokens that no row may have, and those that an unfinished one may not have.
    pub banned: [&'a Tensor; 2],
    /// `[n, 1]` in bool: the unfinished rows; `None`: none is.
    pub unfinished: Option<&'a Tensor>,
    /// `[n]` in f64, from 0 to below 1: by the inverse of the distribution function in order of ids. `None`: the largest logit.
    pub draws: Option<&'a Tensor>,
    /// Logits are multiplied by it, 1 over the temperature.
    pub scale: f64,
}

/// `[n, 5]` in f64: the token; its log-softmax over the whole vocabulary; drawn, the distances of the draw to both ends of the token's interval
/// (1 where no token lies beyond), by the largest, the second largest and the largest logit; 0.
///
/// # Errors
/// Tensors that do not fit.
pub fn choose_tokens(choice: &TokenChoice<'_>) -> Result<Tensor, TorchError> {
    let TokenChoice { logits, banned, unfinished, draws, scale } = choice;
    let [rows, vocabulary] = dims(logits);
    let fits = logits.dim() == 2
        && vocabulary > 0
        && banned.iter().all(|mask| {
            mask.size() == [vocabulary] && mask.kind() == Kind::Bool && mask.is_contiguous()
        })
        && unfinished
            .is_none_or(|x| x.size() == [rows, 1] && x.kind() == Kind::Bool && x.is_contiguous())
        && draws
            .is_none_or(|x| x.size() == [rows] && x.kind() == Kind::Double && x.is_contiguous());
    check("choose_tokens", fits, &[logits, banned[0], banned[1]])?;
    let optional = |x: Option<&Tensor>| x.map_or(std::ptr::null_mut(), pointer);
    let banned = banned.map(pointer);
    // SAFETY: valid `at::Tensor*` (two may be null) of shapes and types that fit, borrowed for the call.
    call_for_tensor(|table, error, capacity| unsafe {
        vlm_r1_choose(
            pointer(logits),
            banned.as_ptr(),
            optional(*unfinished),
            optional(*draws),
            *scale,
            table,
            error,
            capacity,
        )
    })
}

/// A linear layer of a [`DecodeLayer`]: its weight and its bias `[out]`.
pub type PackedPart<'a> = (&'a PackedLinear, Option<&'a Tensor>);

/// The weights of a decoder layer: norm, grouped attention with rotation, norm, gated activation, with two residual connections.
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
        let fits = x.dim() == 2 && fuses(x) && layers_fit && norms_fit && angles_fit;
        check("decode_layer", fits, &[x, self.input_norm, cos])?;
        Ok([slots, q[1] / dim, k[1] / dim, dim])
    }
}

/// One new token a slot, `x [slots, hidden]`, through a whole layer: `[slots, hidden]`. `cos`, `sin [slots, head_dim]` as of
/// [`crate::rotate`]. The numbers are those of the operations one after another, bit for bit; threads are woken once.
///
/// # Errors
/// Tensors that do not fit one another, or with gaps between their numbers.
pub fn decode_layer(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    [cos, sin]: [&Tensor; 2],
    keys: &DecodeKeys<'_>,
) -> Result<Tensor, TorchError> {
    let heads = layer.check(x, [cos, sin])?;
    keys.check(heads, x.kind())?;
    let outs = layer.linears.map(|(linear, _)| linear.output);
    let mut tensors = vec![x, layer.input_norm, layer.post_attention_norm];
    tensors.extend(layer.linears.iter().map(|(linear, _)| &linear.packed));
    let mut pointers: Vec<*mut C_tensor> = tensors.into_iter().map(pointer).collect();
    let biases = layer.linears.iter().map(|(_, bias)| *bias);
    pointers.extend(biases.map(|bias| bias.map_or(std::ptr::null_mut(), pointer)));
    pointers.extend([cos, sin].map(pointer));
    pointers.extend(keys.tensors().map(pointer));
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
