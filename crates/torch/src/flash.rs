//! Variable-length attention over concatenated sequences, without padding or masks.

use std::ffi::{c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::decoding::default_scale;

unsafe extern "C" {
    fn vlm_r1_flash_attention(
        qkv: *const *mut C_tensor,
        cumulative: *const *mut C_tensor,
        max_queries: i64,
        max_keys: i64,
        causal: c_int,
        window: i64,
        scale: f64,
        output: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Cumulative lengths of the sequences' queries and keys.
#[derive(Debug)]
pub struct SequenceLens {
    queries: Vec<usize>,
    keys: Vec<usize>,
    /// `[sequences + 1]` in i32 each, on the device.
    cumulative: [Tensor; 2],
}

impl SequenceLens {
    /// Of the queries and of the keys of each sequence.
    ///
    /// # Panics
    /// When the lists differ in length.
    pub fn new(queries: Vec<usize>, keys: Vec<usize>, device: Device) -> Self {
        assert_eq!(queries.len(), keys.len());
        let cumulative = [&queries, &keys].map(|lens| {
            let mut ends = vec![0i32];
            ends.extend(lens.iter().scan(0, |end, &len| {
                *end += len as i32;
                Some(*end)
            }));
            crate::upload(&ends, device)
        });
        SequenceLens { queries, keys, cumulative }
    }
}

/// Which keys a query sees, and what scores are multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// The last query sees all keys, the one before it all but the last, and so on.
    pub causal: bool,
    /// With `causal`: no more than the last so many of those keys, at least 1.
    pub window: Option<usize>,
    /// `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
}

/// Each sequence's queries over its own keys. CUDA in 16 bits, on cards that have it: flash attention. Elsewhere, where libtorch has
/// no such kernel: one sequence at a time, which is slow.
///
/// # Shapes
/// `q [all queries, heads, head_dim]`, `k`, `v [all keys, kv_heads, head_dim]` -> as `q`.
///
/// # Errors
/// Whatever libtorch refuses, for instance a `head_dim` above 256.
pub fn variable_length_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lens: &SequenceLens,
    options: AttentionOptions,
) -> Result<Tensor, TorchError> {
    match has_flash_attention(q.kind(), q.device()) {
        true => flash_attention(q, k, v, lens, options),
        false => one_by_one(q, k, v, lens, options),
    }
}

pub(crate) fn flash_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lens: &SequenceLens,
    options: AttentionOptions,
) -> Result<Tensor, TorchError> {
    let head_dim = q.size()[2];
    let scale = Some(options.scale.unwrap_or_else(|| default_scale(head_dim)));
    // The kernel takes multiples of 8 channels; zeros change no product.
    let missing = (8 - head_dim % 8) % 8;
    let fitted = |x: &Tensor| match missing {
        0 => x.f_contiguous(),
        _ => x.f_constant_pad_nd([0, missing]),
    };
    let output =
        flash([fitted(q)?, fitted(k)?, fitted(v)?], lens, AttentionOptions { scale, ..options })?;
    Ok(output.f_narrow(2, 0, head_dim)?)
}

/// Whether libtorch has flash attention for tensors of a type on a device.
pub(crate) fn has_flash_attention(kind: Kind, device: Device) -> bool {
    match (device, kind) {
        (Device::Cuda(index), Kind::BFloat16 | Kind::Half) => {
            gpu::machine().has_flash_attention(index)
        }
        _ => false,
    }
}

fn flash(
    qkv: [Tensor; 3],
    lens: &SequenceLens,
    options: AttentionOptions,
) -> Result<Tensor, TorchError> {
    let qkv_pointers = qkv.each_ref().map(pointer);
    let cumulative = lens.cumulative.each_ref().map(pointer);
    let longest = |lens: &[usize]| lens.iter().copied().max().unwrap_or(0) as i64;
    // SAFETY: three and two valid `at::Tensor*`, borrowed for the call.
    call_for_tensor(|output, error, capacity| unsafe {
        vlm_r1_flash_attention(
            qkv_pointers.as_ptr(),
            cumulative.as_ptr(),
            longest(&lens.queries),
            longest(&lens.keys),
            c_int::from(options.causal),
            options.window.map_or(0, |window| window as i64),
            options.scale.expect("set by the caller"),
            output,
            error,
            capacity,
        )
    })
}

pub(crate) fn one_by_one(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lens: &SequenceLens,
    options: AttentionOptions,
) -> Result<Tensor, TorchError> {
    let (mut from_query, mut from_key) = (0, 0);
    let mut outputs = Vec::with_capacity(lens.queries.len());
    for (&queries, &keys) in lens.queries.iter().zip(&lens.keys) {
        let (queries, keys) = (queries as i64, keys as i64);
        // [1, heads, len, head_dim]
        let part = |x: &Tensor, from, len| -> Result<Tensor, TorchError> {
            Ok(x.f_narrow(0, from, len)?.f_transpose(0, 1)?.f_unsqueeze(0)?)
        };
        let (q, k, v) =
            (part(q, from_query, queries)?, part(k, from_key, keys)?, part(v, from_key, keys)?);
        let mask = options.causal.then(|| mask([queries, keys], options.window, q.device()));
        let mask = mask.transpose()?;
        let grouped = q.size()[1] != k.size()[1];
        let output = Tensor::f_scaled_dot_product_attention(
            &q,
            &k,
            &v,
            mask.as_ref(),
            0.0,
            false,
            options.scale,
            grouped,
        )?;
        outputs.push(output.f_squeeze_dim(0)?.f_transpose(0, 1)?);
        (from_query, from_key) = (from_query + queries, from_key + keys);
    }
    Ok(Tensor::f_cat(&outputs, 0)?)
}

/// Which of the keys each query sees, in [`AttentionOptions::causal`] order.
fn mask(
    [queries, keys]: [i64; 2],
    window: Option<usize>,
    device: Device,
) -> Result<Tensor, TorchError> {
    let all = Tensor::f_ones([queries, keys], (Kind::Bool, device))?;
    let causal = all.f_tril(keys - queries)?;
    Ok(match window {
        Some(window) => causal.f_triu(keys - queries - (window as i64 - 1))?,
        None => causal,
    })
}
