//! The activation of gated multi-layer perceptrons.

use tch::Tensor;
use torch::{fuses, swiglu};

/// `silu(gate) * up`, two tensors of one shape.
pub fn gated(gate: &Tensor, up: &Tensor) -> Tensor {
    if fuses(gate) {
        return swiglu(gate, up).expect("two tensors of one shape");
    }
    gate.silu() * up
}
