//! CPU kernel of attention over packed tokens, with its gradient (`cpu/segment_attention.h`). Segments have any lengths, completions read
//! their prompt's keys without a copy, and memory is linear in the tokens.

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::fused::has_cpu_kernel;

unsafe extern "C" {
    fn vlm_r1_segment_attention(
        qkv: *const *mut C_tensor,
        segments: *mut C_tensor,
        causal: c_int,
        output: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Which packed tokens attend to which; built once for all layers.
#[derive(Debug)]
pub struct SegmentTable {
    /// `[segments, 3]`: start, length, index of the prefix or -1.
    segments: Tensor,
    tokens: i64,
}

impl SegmentTable {
    /// Consecutive segments from token 0 on: the length of each, and optionally the index of its prefix, an earlier segment that has none
    /// itself.
    ///
    /// # Errors
    /// No segments, an empty one, a prefix that is not an earlier segment without a prefix.
    pub fn new(segments: &[(usize, Option<usize>)]) -> Result<Self, TorchError> {
        let refuse = |i: usize, cause: &str| {
            Err(TorchError::Libtorch(format!(
                "segment attention: segment {i} of {}: {cause}",
                segments.len()
            )))
        };
        let mut table = Vec::with_capacity(3 * segments.len());
        let mut start = 0i64;
        for (i, &(len, prefix)) in segments.iter().enumerate() {
            if len == 0 {
                return refuse(i, "expected at least one token, got 0");
            }
            if prefix.is_some_and(|p| p >= i || segments[p].1.is_some()) {
                return refuse(i, "its prefix is not an earlier segment without one");
            }
            let len_i64 = i64::try_from(len).ok();
            let Some((len, end)) = len_i64.and_then(|len| Some((len, start.checked_add(len)?)))
            else {
                return refuse(i, "more tokens than can be counted");
            };
            table.extend([start, len, prefix.map_or(-1, |p| p as i64)]);
            start = end;
        }
        if segments.is_empty() {
            return refuse(0, "expected at least one");
        }
        Ok(SegmentTable { segments: Tensor::from_slice(&table).view([-1, 3]), tokens: start })
    }
}

/// Softmax attention of each segment over its prefix and itself; `causal` masks later tokens of the segment. Scores are scaled by
/// `1 / sqrt(head_dim)`. Scores and sums are in f32, weights in the type of `q`. Gradients of a prompt's keys are summed over all its
/// completions before they are rounded. Results do not depend on the number of threads.
///
/// # Shapes
/// `q [T, heads, head_dim]`, `k`, `v [T, kv_heads, head_dim]` -> as `q`; of one type that [`has_cpu_kernel`] accepts.
///
/// # Errors
/// Tensors that do not fit one another or the table.
pub fn segment_attention(
    [q, k, v]: [&Tensor; 3],
    table: &SegmentTable,
    causal: bool,
) -> Result<Tensor, TorchError> {
    if !fits([q, k, v], table) {
        let shapes = [q, k, v].map(|x| format!("{} {:?}", crate::kind_name(x.kind()), x.size()));
        return Err(TorchError::Libtorch(format!(
            "segment attention: tensors that do not fit {} tokens: {}",
            table.tokens,
            shapes.join(", ")
        )));
    }
    let qkv = [q, k, v].map(pointer);
    // SAFETY: valid `at::Tensor*`, borrowed for the call, of shapes and types that fit; the table names existing tokens only.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_segment_attention(
            qkv.as_ptr(),
            pointer(&table.segments),
            causal.into(),
            output,
            error,
            capacity,
        )
    })
}

/// The kernel checks nothing.
fn fits([q, k, v]: [&Tensor; 3], table: &SegmentTable) -> bool {
    let (&[tokens, heads, head_dim], &[_, kv_heads, _]) = (&q.size()[..], &k.size()[..]) else {
        return false;
    };
    tokens == table.tokens
        && heads > 0
        && kv_heads > 0
        && heads % kv_heads == 0
        && head_dim > 0
        && k.size() == [tokens, kv_heads, head_dim]
        && v.size() == k.size()
        && [q, k, v].iter().all(|x| has_cpu_kernel(x) && x.kind() == q.kind())
}

#[cfg(test)]
#[path = "segment_attention_tests.rs"]
mod tests;
