//! CPU kernel of attention over packed tokens, with its gradient (`cpu/segment_attention.h`). Segments have any lengths, completions read
//! their prompt's keys without a copy, and memory is linear in the tokens.

use std::ffi::{c_char, c_int};
use std::ops::Range;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::decoding::default_scale;
use crate::fused::has_cpu_kernel;

unsafe extern "C" {
    fn vlm_r1_segment_attention(
        qkv: *const *mut C_tensor,
        segments: *mut C_tensor,
        intervals: *mut C_tensor,
        causal: c_int,
        scale: f64,
        output: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// A run of packed tokens, consecutive to the one before: its length, and optionally the index of its prefix, an earlier run that has none
/// itself.
pub type SegmentLens = (usize, Option<usize>);

/// Which packed tokens attend to which; built once for all layers that agree on it.
#[derive(Debug)]
pub struct SegmentTable {
    /// `[segments, 3]`: start, length, index of the prefix or -1.
    segments: Tensor,
    /// `[tokens, 2]`, see [`SegmentTable::with_intervals`].
    intervals: Option<Tensor>,
    causal: bool,
    tokens: i64,
}

impl SegmentTable {
    /// Segments from token 0 on. A token sees all of its prefix, and its segment up to itself with `causal`, or all of it.
    ///
    /// # Errors
    /// No segments, an empty one, a prefix that is not an earlier segment without a prefix.
    pub fn new(segments: &[SegmentLens], causal: bool) -> Result<Self, TorchError> {
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
        let segments = Tensor::from_slice(&table).view([-1, 3]);
        Ok(SegmentTable { segments, intervals: None, causal, tokens: start })
    }

    /// As [`SegmentTable::new`]; each token sees the keys `first .. end` of its interval, counted from the start of its prefix, behind which
    /// its segment lies. See [`causal_intervals`].
    ///
    /// # Errors
    /// As [`SegmentTable::new`]; intervals that are empty, that end behind the segment, or that are not one for each token.
    pub fn with_intervals(
        segments: &[SegmentLens],
        intervals: &[Range<usize>],
    ) -> Result<Self, TorchError> {
        let table = SegmentTable::new(segments, true)?;
        let ends = segments.iter().flat_map(|&(len, prefix)| {
            let end = len + prefix.map_or(0, |p| segments[p].0);
            std::iter::repeat_n(end, len)
        });
        let wrong = ends.zip(intervals).position(|(end, i)| i.is_empty() || i.end > end);
        if wrong.is_some() || intervals.len() as i64 != table.tokens {
            let at =
                wrong.map_or_else(String::new, |i| format!(", {:?} for token {i}", intervals[i]));
            return Err(TorchError::Libtorch(format!(
                "segment attention: {} intervals{at}, expected one within the segment for each of {} tokens",
                intervals.len(),
                table.tokens
            )));
        }
        let numbers: Vec<i64> =
            intervals.iter().flat_map(|i| [i.start as i64, i.end as i64]).collect();
        Ok(SegmentTable { intervals: Some(Tensor::from_slice(&numbers).view([-1, 2])), ..table })
    }
}

/// The intervals of [`SegmentTable::with_intervals`] where a token sees itself and those before it: with a `window`, no more than so many in
/// all. The tokens of each of `runs` (images), ranges of packed tokens within one segment, see all of their run as well.
///
/// # Panics
/// On a window of 0.
pub fn causal_intervals(
    segments: &[SegmentLens],
    window: Option<usize>,
    runs: &[Range<usize>],
) -> Vec<Range<usize>> {
    assert_ne!(window, Some(0), "a token sees itself");
    let mut intervals = Vec::new();
    for &(len, prefix) in segments {
        let (before, start) = (prefix.map_or(0, |p| segments[p].0), intervals.len());
        intervals.extend((before..before + len).map(|place| {
            let run = runs.iter().find(|run| run.contains(&(start + place - before)));
            let first = window.map_or(0, |window| (place + 1).saturating_sub(window));
            match run {
                // In the segment's places.
                Some(run) => first.min(run.start + before - start)..run.end + before - start,
                None => first..place + 1,
            }
        }));
    }
    intervals
}

/// Softmax attention of each token over what `table` lets it see of its prefix and its segment. Scores are scaled by `scale`, or by
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
    scale: Option<f64>,
) -> Result<Tensor, TorchError> {
    if !fits([q, k, v], table) {
        let shapes = [q, k, v].map(|x| format!("{} {:?}", crate::kind_name(x.kind()), x.size()));
        return Err(TorchError::Libtorch(format!(
            "segment attention: tensors that do not fit {} tokens: {}",
            table.tokens,
            shapes.join(", ")
        )));
    }
    let scale = scale.unwrap_or_else(|| default_scale(q.size()[2]));
    let intervals = table.intervals.as_ref().map_or(std::ptr::null_mut(), pointer);
    let qkv = [q, k, v].map(pointer);
    // SAFETY: valid `at::Tensor*` (intervals may be null), borrowed for the call, of shapes and types that fit; the table names existing
    // tokens only.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_segment_attention(
            qkv.as_ptr(),
            pointer(&table.segments),
            intervals,
            table.causal.into(),
            scale,
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
