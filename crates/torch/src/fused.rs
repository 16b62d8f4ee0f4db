//! Small operations of models on the CPU, each one pass over memory with a gradient of its own (`cpu/`). Built
//! from libtorch's operations each takes four to ten passes, and keeps what lies between them for the way back.
//!
//! They exist for f32 and bf16 on the CPU; [`fuses`] says whether. Their callers have the same in libtorch's operations for everything
//! else, and tests hold the two together.

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call, call_for_tensor, pointer};

unsafe extern "C" {
    fn vlm_r1_rms_norm(
        x: *mut C_tensor,
        w: *mut C_tensor,
        eps: f64,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_swiglu(
        gate: *mut C_tensor,
        up: *mut C_tensor,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_rotate(
        x: *mut C_tensor,
        cos: *mut C_tensor,
        sin: *mut C_tensor,
        y: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn vlm_r1_token_scores(
        logits: *mut C_tensor,
        targets: *mut C_tensor,
        scale: f64,
        logprobs: *mut *mut C_tensor,
        entropies: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
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
}

/// Whether the operations of this file take `x`.
pub fn fuses(x: &Tensor) -> bool {
    x.device() == tch::Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16)
}

/// `w * x / sqrt(mean(x^2) + eps)` over the last dimension; `w [n]` in the type of `x [.., n]`.
///
/// # Errors
/// Tensors that do not fit.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    check(
        "rms_norm",
        x.kind() == w.kind() && x.size().last() == w.size().last(),
        &[x, w],
    )?;
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rms_norm(pointer(x), pointer(w), eps, y, error, capacity)
    })
}

/// `silu(gate) * up`, two tensors of one shape and type.
///
/// # Errors
/// Tensors that do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_swiglu(pointer(gate), pointer(up), y, error, capacity)
    })
}

/// Turns the two halves of each head's channels: `x [T, heads, head_dim]` by `cos`, `sin [T, head_dim]`, whose second half
/// equals the first, in the type of `x` or in f32.
///
/// # Errors
/// Tensors that do not fit.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|y, error, capacity| unsafe {
        vlm_r1_rotate(pointer(x), pointer(cos), pointer(sin), y, error, capacity)
    })
}

/// Of `logits [N, vocab_size]` times `scale`: log-softmax at `targets [N]`, and the entropies, which have no
/// gradient; both `[N]` in f32. Nothing of the size of the logits is kept beside them.
///
/// # Errors
/// Tensors that do not fit, a target outside the vocabulary.
pub fn token_scores(
    logits: &Tensor,
    targets: &Tensor,
    scale: f64,
) -> Result<(Tensor, Tensor), TorchError> {
    let mut outputs = [std::ptr::null_mut(); 2];
    let [logprobs, entropies] = &mut outputs;
    // SAFETY: valid `at::Tensor*`, borrowed for the call.
    call(|error, capacity| unsafe {
        vlm_r1_token_scores(
            pointer(logits),
            pointer(targets),
            scale,
            logprobs,
            entropies,
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    let [logprobs, entropies] = outputs.map(|handle| unsafe { Tensor::from_ptr(handle) });
    Ok((logprobs, entropies))
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
    keys.check(q, k)?;
    let tensors = [
        q,
        k,
        v,
        keys.prompt_keys,
        keys.prompt_values,
        keys.answer_keys,
        keys.answer_values,
        keys.rows,
        keys.prompt_lens,
        keys.places,
    ];
    let pointers = tensors.map(pointer);
    let scale = 1.0 / (q.size()[2] as f64).sqrt();
    // SAFETY: ten valid `at::Tensor*`, borrowed for the call, of shapes and types that fit.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_decode_attention(pointers.as_ptr(), scale, output, error, capacity)
    })
}

impl DecodeKeys<'_> {
    /// The loops trust what is checked here; that indices name existing rows the caller sees to.
    fn check(&self, q: &Tensor, k: &Tensor) -> Result<(), TorchError> {
        let [slots, heads, head_dim] = dims(q);
        let [_, kv_heads, _] = dims(k);
        let [rows, _, _, width] = dims(self.prompt_keys);
        let [room, _, answer_width, _] = dims(self.answer_keys);
        let fits = k.size() == [slots, kv_heads, head_dim]
            && heads % kv_heads.max(1) == 0
            && self.prompt_keys.size() == [rows, kv_heads, head_dim, width]
            && self.prompt_values.size() == [rows, kv_heads, width, head_dim]
            && self.answer_keys.size() == [room, kv_heads, answer_width, head_dim]
            && self.answer_values.size() == self.answer_keys.size()
            && room >= slots
            && [
                self.prompt_keys,
                self.prompt_values,
                self.answer_keys,
                self.answer_values,
                k,
            ]
            .iter()
            .all(|x| x.kind() == q.kind())
            && [self.rows, self.prompt_lens, self.places]
                .iter()
                .all(|x| x.size() == [slots] && x.kind() == Kind::Int64);
        check(
            "decode_attention",
            fits,
            &[q, k, self.prompt_keys, self.answer_keys, self.rows],
        )
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
        check(
            "packed linear",
            weight.dim() == 2 && fuses(weight),
            &[weight],
        )?;
        let [output, input] = dims(weight);
        // SAFETY: a valid `at::Tensor*`, borrowed for the call.
        let packed = call_for_tensor(|packed, error, capacity| unsafe {
            vlm_r1_pack_linear(pointer(weight), packed, error, capacity)
        })?;
        Ok(PackedLinear {
            packed,
            input,
            output,
        })
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
            && bias.is_none_or(|b| b.size() == [layer.output] && b.kind() == x.kind());
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
    let TokenChoice {
        logits,
        banned,
        unfinished,
        draws,
        scale,
    } = choice;
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

fn dims<const N: usize>(x: &Tensor) -> [i64; N] {
    let size = x.size();
    std::array::from_fn(|i| size.get(i).copied().unwrap_or(0))
}

fn check(what: &str, fits: bool, tensors: &[&Tensor]) -> Result<(), TorchError> {
    if fits {
        return Ok(());
    }
    let shapes: Vec<String> = tensors
        .iter()
        .map(|x| format!("{:?} {:?}", x.kind(), x.size()))
        .collect();
    Err(TorchError::Libtorch(format!(
        "{what}: tensors that do not fit: {}",
        shapes.join(", ")
    )))
}

#[cfg(test)]
#[path = "fused_tests.rs"]
mod tests;
