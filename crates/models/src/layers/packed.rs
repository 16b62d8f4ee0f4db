//! Weights packed for sampling on the CPU: a decoding step has few rows of input, so it takes as long as its weights take to be read, which
//! is shorter in the order in which they are needed. The copies live as long as a [`PackedWeights`], within which weights do not change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;

use tch::Tensor;
use torch::{PackedLinear, fuses, packed_linears};

/// With more rows than these the order of the weight matters little.
const MOST_ROWS: i64 = 128;

thread_local! {
    /// By address of the weight.
    static PACKED: RefCell<Option<HashMap<usize, PackedLinear>>> = const { RefCell::new(None) };
}

/// While it lives, linear layers with few rows of input on the CPU pack their weight at its first use on this thread and keep the copy.
/// For passes without gradient, between updates of the weights.
#[derive(Debug)]
pub struct PackedWeights {
    // Belongs to its thread.
    not_send: PhantomData<*const ()>,
}

impl PackedWeights {
    /// From here on; copies of an earlier one are forgotten.
    pub fn begin() -> Self {
        PACKED.set(Some(HashMap::new()));
        PackedWeights {
            not_send: PhantomData,
        }
    }
}

impl Drop for PackedWeights {
    fn drop(&mut self) {
        PACKED.set(None);
    }
}

/// `x W^T + b` for each weight and bias, by packed weights where they are kept.
pub(super) fn forward<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Option<[Tensor; N]> {
    PACKED.with_borrow_mut(|packed| {
        let packed = packed.as_mut()?;
        if x.dim() != 2 || x.size()[0] > MOST_ROWS || !fuses(x) {
            return None;
        }
        let address = |weight: &Tensor| weight.data_ptr() as usize;
        for (weight, _) in layers {
            packed
                .entry(address(weight))
                .or_insert_with(|| PackedLinear::new(weight).expect("a matrix"));
        }
        let layers = layers.map(|(weight, bias)| (&packed[&address(weight)], bias));
        Some(packed_linears(x, layers).expect("an input as wide as the weights"))
    })
}
