//! Activations of multi-layer perceptrons. As in `operations`, callers do not choose between a kernel and libtorch's operations.

use tch::Tensor;

use crate::fused::{self, has_cpu_kernel};

/// What lies between the linear layers of a multi-layer perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu = 0,
    /// `gelu_pytorch_tanh`: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh = 1,
    /// `x (1 + erf(x / sqrt(2))) / 2`.
    Gelu = 2,
    /// `x sigmoid(1.702 x)`.
    QuickGelu = 3,
}

/// The activation of `x`, in its type.
///
/// # Panics
/// On what libtorch refuses.
pub fn activate(x: &Tensor, activation: Activation) -> Tensor {
    if has_cpu_kernel(x) {
        return fused::activate(x, activation).expect("any tensor of this type");
    }
    activate_reference(x, activation)
}

/// [`activate`] by libtorch's operations.
pub fn activate_reference(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::Gelu => x.gelu("none"),
        Activation::QuickGelu => x * (x * 1.702).sigmoid(),
    }
}

/// The activation of `gate` times `up`, two tensors of one shape and type. The CPU kernel rounds [`Activation::Silu`] once, after the
/// product; all else rounds before it too.
///
/// # Panics
/// On tensors that do not fit.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Tensor {
    if has_cpu_kernel(gate) {
        return fused::gated(gate, up, activation).expect("two tensors of one shape");
    }
    gated_reference(gate, up, activation)
}

/// [`gated`] by libtorch's operations.
pub fn gated_reference(gate: &Tensor, up: &Tensor, activation: Activation) -> Tensor {
    activate_reference(gate, activation) * up
}
