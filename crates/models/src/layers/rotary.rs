//! Rotary position embedding: the rotation itself. Families decide which position rotates which channel.

use std::cell::OnceCell;

use tch::{Kind, Tensor};
use torch::{FastPath, Pairing, is_enabled, rotate, rotation_matrices};

/// Cosines and sines of every token, `[T, head_dim]` each, second half equal to the first.
#[derive(Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
    matrices: OnceCell<Tensor>,
}

impl Rotary {
    /// Of cosines and sines `[T, head_dim]`.
    pub fn new(cos: Tensor, sin: Tensor) -> Self {
        Rotary { cos, sin, matrices: OnceCell::new() }
    }

    /// From angles `[T, head_dim / 2]` in f32.
    pub fn from_angles(angles: &Tensor, kind: Kind) -> Self {
        let angles = Tensor::cat(&[angles, angles], -1);
        Self::new(angles.cos().to_kind(kind), angles.sin().to_kind(kind))
    }

    /// Rotates `x [T, heads, head_dim]`; computed in the type of the table, returned in that of `x`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        rotate(x, [&self.cos, &self.sin], Pairing::Halves)
    }

    /// [`rotation_matrices`] for the few tokens of a decoding step, made once for all layers; `None` where they are not in use.
    pub(crate) fn matrices(&self) -> Option<&Tensor> {
        let matrices = || {
            let head_dim = self.cos.size()[1];
            rotation_matrices([&self.cos, &self.sin], head_dim, Pairing::Halves)
        };
        is_enabled(FastPath::Rotation).then(|| self.matrices.get_or_init(matrices))
    }
}

/// `theta ^ (-2i / dim)` for `i` in `0 .. dim / 2`, f32 as the reference computes it.
pub fn inverse_frequencies(dim: i64, theta: f64, device: tch::Device) -> Tensor {
    let exponents = Tensor::arange_start_step(0, dim, 2, (Kind::Int64, device))
        .to_kind(Kind::Float)
        / dim as f64;
    Tensor::full([1], theta, (Kind::Float, device)).pow(&exponents).reciprocal()
}
