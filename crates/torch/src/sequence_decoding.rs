//! Decoding on a GPU, without gradients: attention of new tokens over a cache by flash attention, and whole decoder layers in some twenty
//! launches.
//!
//! Each slot is one sequence for each head of keys, whose queries are the heads that share it: so queries, outputs and log-sum-exps lie as
//! the model has them, and nothing is transposed. A sequence says where its keys begin and how many they are, hence all completions of a
//! prompt read the same keys, in any order and of any lengths, without padding or masks. Prompt and completion are attended to apart and
//! joined by the log-sum-exp of both, which is exact.

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::activations::gated_reference;
use crate::call::{call, pointer};
use crate::decoding::DecodeLayer;
use crate::decoding::default_scale;
use crate::fast_paths::{FastPath, is_enabled};
use crate::fused::{check, dims};
use crate::linear::{LinearWeights, linears, residual_linear_by_product};
use crate::norms::rms_norm;
use crate::operations::rotate;

unsafe extern "C" {
    fn vlm_r1_flash_sequences(
        qkv: *const *mut C_tensor,
        tables: *const *mut C_tensor,
        max_queries: i64,
        max_keys: i64,
        scale: f64,
        output: *mut *mut C_tensor,
        lse: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Where the keys of each sequence lie among the rows of a cache; in int32.
#[derive(Debug)]
pub struct KeyRanges {
    /// `[sequences + 1]`: the first row of each; the last number is not read.
    pub starts: Tensor,
    /// `[sequences]`: how many, at least one.
    pub lens: Tensor,
    /// At least the largest of them.
    pub longest: i64,
}

/// Keys and values that decoding reads for one new token per slot, and where it writes the token's own. There are `slots * kv_heads`
/// sequences, those of a slot adjacent.
#[derive(Debug)]
pub struct SequenceKv<'a> {
    /// Keys and values of prompts, `[.., head_dim]` each, without gaps.
    pub prompts: [&'a Tensor; 2],
    /// `[2, .., head_dim]`: keys and values of completions, without gaps.
    pub completions: &'a Tensor,
    /// `[2 * slots * kv_heads]` in int64: the rows of `completions`, as `[.., head_dim]`, of the new keys, then of the new values.
    pub new_rows: &'a Tensor,
    /// `[sequences + 1]` in int32: multiples of the heads that share one of the keys.
    pub query_ends: &'a Tensor,
    /// Of each sequence's prompt.
    pub prompt_ranges: &'a KeyRanges,
    /// Of each sequence's completion, the new token included.
    pub completion_ranges: &'a KeyRanges,
}

impl SequenceKv<'_> {
    /// Attention of one new token per slot over its prompt, its completion and itself, after `new [2, slots, kv_heads, head_dim]`, its keys
    /// and values, are stored: `q [slots, heads, head_dim]` to the same. Scores are scaled by `scale`, or by `1 / sqrt(head_dim)`.
    ///
    /// # Errors
    /// Tensors that do not fit one another; what libtorch refuses.
    pub fn attend(
        &self,
        q: &Tensor,
        new: &Tensor,
        scale: Option<f64>,
    ) -> Result<Tensor, TorchError> {
        let [slots, heads, dim] = dims(q);
        let [_, _, kv_heads, _] = dims(new);
        let fits = new.size() == [2, slots, kv_heads, dim]
            && heads % kv_heads.max(1) == 0
            && self.new_rows.size() == [2 * slots * kv_heads]
            && [self.query_ends, &self.prompt_ranges.starts, &self.completion_ranges.starts]
                .iter()
                .all(|x| x.size() == [slots * kv_heads + 1] && x.kind() == Kind::Int)
            && [self.prompt_ranges, self.completion_ranges]
                .iter()
                .all(|x| x.lens.size() == [slots * kv_heads] && x.lens.kind() == Kind::Int);
        check("decoding by sequences", fits, &[q, new, self.new_rows, self.query_ends])?;
        let mut rows = self.completions.f_view([-1, dim])?;
        let _ = rows.f_index_copy_(0, self.new_rows, &new.f_view([-1, dim])?)?;
        let queries = q.f_view([-1, 1, dim])?;
        let over = |[k, v]: [&Tensor; 2], ranges: &KeyRanges| -> Result<_, TorchError> {
            let [k, v] = [k.f_view([-1, 1, dim])?, v.f_view([-1, 1, dim])?];
            let scale = scale.unwrap_or_else(|| default_scale(dim));
            sequence_attention([&queries, &k, &v], self.query_ends, ranges, heads / kv_heads, scale)
        };
        let [keys, values] = [self.completions.get(0), self.completions.get(1)];
        let (output, lse) = over([&keys, &values], self.completion_ranges)?;
        let (prompt_output, prompt_lse) = over(self.prompts, self.prompt_ranges)?;
        // In the type of the outputs: `lerp` takes no other.
        let weight = Tensor::f_empty([slots * heads, 1, 1], (q.kind(), q.device()))?;
        let difference = prompt_lse.f_sub(&lse)?;
        let _ = difference.f_view([-1, 1, 1])?.f_sigmoid_out(&weight)?;
        Ok(output.f_lerp_tensor(&prompt_output, &weight)?.f_view([slots, heads, dim])?)
    }
}

/// `q [queries, 1, dim]` of sequences of `per_sequence` queries over their own keys, `k`, `v [rows, 1, dim]`: outputs as `q` and log-sum-exps
/// `[1, queries]` in f32.
fn sequence_attention(
    qkv: [&Tensor; 3],
    query_ends: &Tensor,
    ranges: &KeyRanges,
    per_sequence: i64,
    scale: f64,
) -> Result<(Tensor, Tensor), TorchError> {
    if !(qkv[0].device().is_cuda() && matches!(qkv[0].kind(), Kind::BFloat16 | Kind::Half)) {
        return one_by_one(qkv, ranges, per_sequence, scale);
    }
    let pointers = qkv.map(pointer);
    let tables = [query_ends, &ranges.starts, &ranges.lens].map(pointer);
    let mut results = [null_mut(); 2];
    let [output, lse] = &mut results;
    // SAFETY: three and three valid `at::Tensor*`, borrowed for the call, and two places for handles.
    call(|error, capacity| unsafe {
        vlm_r1_flash_sequences(
            pointers.as_ptr(),
            tables.as_ptr(),
            per_sequence,
            ranges.longest,
            scale,
            output,
            lse,
            error,
            capacity,
        )
    })?;
    // SAFETY: handles made by `new`, owned by nobody else.
    let [output, lse] = results.map(|handle| unsafe { Tensor::from_ptr(handle) });
    Ok((output, lse))
}

/// Outputs and log-sum-exps by the kernel, then one sequence at a time.
pub(crate) fn compare_with_one_by_one(
    qkv: [&Tensor; 3],
    query_ends: &Tensor,
    ranges: &KeyRanges,
    per_sequence: i64,
) -> Result<[[Tensor; 2]; 2], TorchError> {
    let scale = default_scale(qkv[0].size()[2]);
    let (output, lse) = sequence_attention(qkv, query_ends, ranges, per_sequence, scale)?;
    let (plain_output, plain_lse) = one_by_one(qkv, ranges, per_sequence, scale)?;
    Ok([[output, lse], [plain_output, plain_lse]])
}

/// The same where libtorch has no such kernel, slowly.
fn one_by_one(
    [q, k, v]: [&Tensor; 3],
    ranges: &KeyRanges,
    per_sequence: i64,
    scale: f64,
) -> Result<(Tensor, Tensor), TorchError> {
    let read = |x: &Tensor| Vec::<i32>::try_from(x);
    let (starts, lens) = (read(&ranges.starts)?, read(&ranges.lens)?);
    let (mut outputs, mut sums) = (Vec::new(), Vec::new());
    for (i, (&start, &len)) in (0i64..).zip(starts.iter().zip(&lens)) {
        let part = |x: &Tensor, start, len| x.f_narrow(0, start, len)?.f_squeeze_dim(1);
        let q = part(q, i * per_sequence, per_sequence)?;
        let (start, len) = (i64::from(start), i64::from(len));
        let (k, v) = (part(k, start, len)?, part(v, start, len)?);
        let scores = q.f_matmul(&k.f_tr()?)?.f_to_kind(Kind::Float)? * scale;
        sums.push(scores.f_logsumexp([-1i64], false)?);
        let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(v.kind())?;
        outputs.push(weights.f_matmul(&v)?);
    }
    let output = Tensor::f_cat(&outputs, 0)?.f_unsqueeze(1)?;
    Ok((output, Tensor::f_cat(&sums, 0)?.f_unsqueeze(0)?))
}

/// A whole decoder layer over one new token per slot, `x [slots, hidden]` to the same, without gradient. `cos`, `sin [slots, width]` as
/// for [`crate::rotate`]; `matrices` are [`crate::rotation_matrices`] of them, where rotation is to be by a product.
///
/// # Panics
/// On tensors that do not fit one another.
pub fn decode_layer_by_sequences(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    [cos, sin]: [&Tensor; 2],
    matrices: Option<&Tensor>,
    kv: &SequenceKv<'_>,
) -> Tensor {
    let [slots, dim] = [x.size()[0], layer.head_dim];
    let [q, k, v, o, gate, up, down] = layer.linears;
    let [first, second] = layer.norms;
    let normed = rms_norm(x, first);
    let [q, k] = linears(&normed, [q, k]).map(|x| x.view([slots, -1, dim]));
    let [q, k] = layer.normed_heads(q, k);
    let kv_heads = k.size()[1];
    let new = Tensor::empty([2, slots, kv_heads, dim], (x.kind(), x.device()));
    let (new_keys, new_values) = (new.get(0), new.get(1));
    linear_into(&new_values.view([slots, -1]), &normed, v);
    let q = match matrices {
        Some(matrices) => {
            let _ = k.bmm_out(&new_keys, matrices);
            q.bmm(matrices)
        }
        None => {
            new_keys.shallow_clone().copy_(&rotate(&k, [cos, sin], layer.pairing));
            rotate(&q, [cos, sin], layer.pairing)
        }
    };
    let attended = kv.attend(&q, &new, layer.scale).expect("a cache that fits the model");
    let add = |x: &Tensor, y: &Tensor, last: LinearWeights<'_>, place: usize| match layer
        .post_norms
        .is_some()
    {
        true => layer.add(x, &y.linear(last.weight, last.bias), place),
        false => residual(x, y, last),
    };
    let x = add(x, &attended.view([slots, -1]), o, 0);
    let [gate, up] = linears(&rms_norm(&x, second), [gate, up]);
    add(&x, &gated_reference(&gate, &up, layer.activation), down, 1)
}

/// `[T, in]` by a layer, written to `out [T, out]`.
fn linear_into(out: &Tensor, x: &Tensor, layer: LinearWeights<'_>) {
    let weight = layer.weight.tr();
    let _ = match layer.bias {
        Some(bias) => bias.addmm_out(out, x, &weight),
        None => x.mm_out(out, &weight),
    };
}

fn residual(x: &Tensor, y: &Tensor, layer: LinearWeights<'_>) -> Tensor {
    match layer.bias.is_none() && is_enabled(FastPath::ResidualProduct) {
        true => residual_linear_by_product(x, y, layer.weight),
        false => x + y.linear(layer.weight, layer.bias),
    }
}

#[cfg(test)]
#[path = "sequence_decoding_tests.rs"]
mod tests;
