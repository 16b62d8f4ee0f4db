//! Packed weights for decoding on the CPU. A decoding step has few rows of input and is bound by reading weights, which is faster in the order
//! of use. The packed copies live as long as a [`PackedWeights`], during which weights must not change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;

use tch::Tensor;
use torch::{DecodeLayer, KvView, PackedLinear, decode_layer, has_cpu_kernel, packed_linears};

use super::rotary::Rotary;
use super::{Linear, RmsNorm};

/// With more rows than this packing brings little.
const MOST_ROWS: i64 = 128;

thread_local! {
    /// By address of the weight.
    static PACKED: RefCell<Option<HashMap<usize, PackedLinear>>> = const { RefCell::new(None) };
}

/// While it lives, linear layers with few rows of input on the CPU pack their weight at first use on this thread and keep the copy. For passes
/// without gradient, between weight updates.
#[derive(Debug)]
pub struct PackedWeights {
    // Belongs to its thread.
    not_send: PhantomData<*const ()>,
}

impl PackedWeights {
    /// Starts; copies of an earlier one are dropped.
    pub fn begin() -> Self {
        PACKED.set(Some(HashMap::new()));
        PackedWeights { not_send: PhantomData }
    }
}

impl Drop for PackedWeights {
    fn drop(&mut self) {
        PACKED.set(None);
    }
}

/// Whether packed weights serve `x`.
fn applies(x: &Tensor) -> bool {
    x.dim() == 2 && x.size()[0] <= MOST_ROWS && has_cpu_kernel(x)
}

/// Whether linear layers over `x` use packed weights on this thread.
pub(super) fn is_packed(x: &Tensor) -> bool {
    PACKED.with_borrow(Option::is_some) && applies(x)
}

fn address(weight: &Tensor) -> usize {
    weight.data_ptr() as usize
}

fn pack<'a>(
    packed: &mut HashMap<usize, PackedLinear>,
    weights: impl IntoIterator<Item = &'a Tensor>,
) {
    for weight in weights {
        packed
            .entry(address(weight))
            .or_insert_with(|| PackedLinear::new(weight).expect("a matrix"));
    }
}

/// `x W^T + b` for each weight and bias by packed weights; `None` outside a [`PackedWeights`].
pub(super) fn forward<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Option<[Tensor; N]> {
    PACKED.with_borrow_mut(|packed| {
        let packed = packed.as_mut().filter(|_| applies(x))?;
        pack(packed, layers.map(|(weight, _)| weight));
        let layers = layers.map(|(weight, bias)| (&packed[&address(weight)], bias));
        Some(packed_linears(x, layers).expect("an input as wide as the weights"))
    })
}

/// A decoder layer's weights, as [`torch::DecodeLayer`] names them.
pub struct DecoderWeights<'a> {
    /// Before attention, and before the activation.
    pub norms: [&'a RmsNorm; 2],
    /// Queries, keys, values, output, gate, up, down.
    pub linears: [&'a Linear; 7],
    /// Channels of a head.
    pub head_dim: i64,
}

/// A decoder layer over new tokens `x [slots, hidden]` in one operation; `None` outside a [`PackedWeights`] or with adapters.
pub fn decode(
    x: &Tensor,
    weights: &DecoderWeights<'_>,
    rotary: &Rotary,
    kv: &KvView<'_>,
) -> Option<Tensor> {
    let parts: [_; 7] = weights.linears.map(Linear::plain);
    let eps = weights.norms[0].eps();
    if parts.iter().any(Option::is_none)
        || weights.norms[1].eps() != eps
        || rotary.cos.kind() != x.kind()
    {
        return None;
    }
    let parts = parts.map(|part| part.expect("checked above"));
    PACKED.with_borrow_mut(|packed| {
        let packed = packed.as_mut().filter(|_| applies(x))?;
        pack(packed, parts.map(|(weight, _)| weight));
        let layer = DecodeLayer {
            input_norm: weights.norms[0].weight(),
            post_attention_norm: weights.norms[1].weight(),
            eps,
            linears: parts.map(|(weight, bias)| (&packed[&address(weight)], bias)),
            head_dim: weights.head_dim,
        };
        let y = decode_layer(x, &layer, [&rotary.cos, &rotary.sin], kv);
        Some(y.expect("a cache that fits the model"))
    })
}
