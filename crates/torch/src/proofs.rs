//! Fast paths prove themselves: each runs on random numbers beside the plain operations that it stands for.

use tch::{Device, Kind, Tensor, no_grad};

use crate::adamw::{AdamWOptions, adamw_reference, fused_adamw};
use crate::cuda::graphs::GraphPool;
use crate::fast_paths::{FastPath, is_enabled, set_enabled};
use crate::flash::{
    AttentionOptions, SequenceLens, flash_attention, has_flash_attention, one_by_one,
};
use crate::host::{PendingHostCopy, begin_copy, pinned};
use crate::linear::residual_linear_by_product;
use crate::norms::rms_norm_reference;
use crate::operations::{Pairing, rotate_reference};
use crate::out_of_memory::catch_libtorch;
use crate::random::{Distribution, fill_random};
use crate::sequence_decoding::{KeyRanges, compare_with_one_by_one};
use crate::{TorchError, device};

/// The sizes of a model that paths are tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofShape {
    /// Channels of the residual stream.
    pub hidden_size: i64,
    /// Query heads.
    pub num_heads: i64,
    /// Key and value heads.
    pub num_kv_heads: i64,
    /// Channels a head.
    pub head_dim: i64,
}

/// What a trial found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proof {
    /// The largest difference from the plain operations, relative to their largest number; infinite where one is NaN.
    pub error: f64,
    /// What rounding may make of it.
    pub tolerance: f64,
}

impl Proof {
    /// Whether the path may be used.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

const TOKENS: i64 = 48;

/// Tries `path` with tensors of `kind` on `device`; `None` where nothing of this type takes it. Some tens of milliseconds.
///
/// # Errors
/// What libtorch refuses, or the device.
pub fn prove(
    path: FastPath,
    shape: &ProofShape,
    kind: Kind,
    device: Device,
) -> Result<Option<Proof>, String> {
    let trial = Trial { shape: *shape, kind, device };
    let before = is_enabled(path);
    set_enabled(path, true);
    let found = catch_libtorch(|| match path {
        FastPath::FusedNorm => trial.fused_norm().map(Some),
        FastPath::Rotation => trial.rotation().map(Some),
        FastPath::ResidualProduct => trial.residual_product().map(Some),
        FastPath::FlashAttention if has_flash_attention(kind, device) => {
            trial.flash_attention().map(Some)
        }
        FastPath::DecodeAttention if trial.takes_decode_attention() => {
            trial.decode_attention().map(Some)
        }
        FastPath::FlashAttention | FastPath::DecodeAttention => Ok(None),
        FastPath::CudaGraphs => trial.cuda_graphs().map(Some),
        FastPath::FusedAdamw => trial.fused_adamw().map(Some),
        FastPath::PinnedCopies => trial.pinned_copies().map(Some),
    });
    set_enabled(path, before);
    let error = found?.map_err(|error| error.to_string())?;
    Ok(error.map(|error| Proof { error, tolerance: trial.tolerance(path) }))
}

struct Trial {
    shape: ProofShape,
    kind: Kind,
    device: Device,
}

type Found = Result<f64, TorchError>;

impl Trial {
    fn tolerance(&self, path: FastPath) -> f64 {
        match (path, self.kind) {
            (FastPath::PinnedCopies, _) => 0.0,
            (FastPath::FusedAdamw, _) | (_, Kind::Float) => 1e-4,
            // Three roundings of 8 or 11 bits.
            (_, Kind::Half) => 3e-3,
            _ => 2.4e-2,
        }
    }

    fn random(&self, size: &[i64], kind: Kind, key: u64) -> Result<Tensor, TorchError> {
        let x = Tensor::f_empty(size, (Kind::Float, Device::Cpu))?;
        fill_random(&x, key, Distribution::Uniform(-1.0, 1.0))?;
        Ok(x.f_to_device(self.device)?.f_to_kind(kind)?)
    }

    fn fused_norm(&self) -> Found {
        let hidden = self.shape.hidden_size;
        let x = self.random(&[TOKENS, hidden], self.kind, 1)?;
        let w = self.random(&[hidden], self.kind, 2)?;
        let y = self.random(&[TOKENS, hidden], self.kind, 3)?;
        let inputs = [x, w];
        let fast = gradients(&inputs, &y, |[x, w]| Ok(device::rms_norm(x, (w, 1e-6).into())))?;
        let plain = gradients(&inputs, &y, |[x, w]| Ok(rms_norm_reference(x, (w, 1e-6))))?;
        worst(&fast, &plain)
    }

    fn rotation(&self) -> Found {
        let [heads, dim] = [self.shape.num_heads, self.shape.head_dim];
        let angles = self.random(&[TOKENS, dim / 2], Kind::Float, 4)? * 9.0;
        let angles = Tensor::f_cat(&[&angles, &angles], 1)?;
        let [cos, sin] = [angles.f_cos()?, angles.f_sin()?].map(|x| x.to_kind(self.kind));
        let inputs = [self.random(&[TOKENS, heads, dim], self.kind, 5)?];
        let y = self.random(&[TOKENS, heads, dim], self.kind, 6)?;
        let (tables, pairing) = ([&cos, &sin], Pairing::Halves);
        let fast = gradients(&inputs, &y, |[x]| device::rotate(x, tables, pairing))?;
        let plain = gradients(&inputs, &y, |[x]| Ok(rotate_reference(x, tables, pairing)))?;
        let matrices = device::rotation_matrices(tables, dim, pairing);
        let by_product = no_grad(|| inputs[0].f_bmm(&matrices))?;
        Ok(worst(&fast, &plain)?.max(worst(&[by_product], &plain[..1])?))
    }

    fn residual_product(&self) -> Found {
        let hidden = self.shape.hidden_size;
        let x = self.random(&[TOKENS, hidden], self.kind, 7)?;
        let y = self.random(&[TOKENS, hidden], self.kind, 8)?;
        let w = self.random(&[hidden, hidden], self.kind, 9)?;
        no_grad(|| {
            let fast = residual_linear_by_product(&x, &y, &w);
            let plain = &x + y.f_linear(&w, None::<Tensor>)?;
            worst(&[fast], &[plain])
        })
    }

    fn flash_attention(&self) -> Found {
        let [heads, kv_heads, dim] =
            [self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim];
        let lens = || SequenceLens::new(vec![7, 24, 17], vec![7, 40, 17], self.device);
        let inputs = [
            self.random(&[48, heads, dim], self.kind, 10)?,
            self.random(&[64, kv_heads, dim], self.kind, 11)?,
            self.random(&[64, kv_heads, dim], self.kind, 12)?,
        ];
        let y = self.random(&[48, heads, dim], self.kind, 13)?;
        let mut error = 0f64;
        for (causal, window) in [(true, None), (false, None), (true, Some(10))] {
            let form = AttentionOptions { causal, window, scale: None };
            let fast = gradients(&inputs, &y, |[q, k, v]| flash_attention(q, k, v, &lens(), form))?;
            let plain = gradients(&inputs, &y, |[q, k, v]| one_by_one(q, k, v, &lens(), form))?;
            error = error.max(worst(&fast, &plain)?);
        }
        Ok(error)
    }

    fn takes_decode_attention(&self) -> bool {
        let dim = self.shape.head_dim;
        has_flash_attention(self.kind, self.device) && dim % 8 == 0 && dim <= 256
    }

    fn decode_attention(&self) -> Found {
        let per_sequence = self.shape.num_heads / self.shape.num_kv_heads;
        let (lens, starts) = ([5i32, 32, 1, 20], [40i32, 0, 39, 40, 0]);
        let q = self.random(&[4 * per_sequence, 1, self.shape.head_dim], self.kind, 14)?;
        let k = self.random(&[64, 1, self.shape.head_dim], self.kind, 15)?;
        let v = self.random(&[64, 1, self.shape.head_dim], self.kind, 16)?;
        let ends: Vec<i32> = (0..5).map(|i| i * per_sequence as i32).collect();
        let on_device = |list: &[i32]| Tensor::from_slice(list).f_to_device(self.device);
        let ranges =
            KeyRanges { starts: on_device(&starts)?, lens: on_device(&lens)?, longest: 32 };
        no_grad(|| {
            let [fast, plain] =
                compare_with_one_by_one([&q, &k, &v], &on_device(&ends)?, &ranges, per_sequence)?;
            worst(&fast, &plain)
        })
    }

    /// Steps of a loop by replays, on numbers that change between them.
    fn cuda_graphs(&self) -> Found {
        let hidden = self.shape.hidden_size;
        let w = self.random(&[hidden, hidden], self.kind, 17)? / (hidden as f64).sqrt();
        let start = self.random(&[TOKENS, hidden], self.kind, 18)?;
        let step = |x: &Tensor| {
            let next = x.matmul(&w).tanh();
            x.shallow_clone().copy_(&next);
        };
        no_grad(|| {
            let replayed = start.copy();
            let pool = GraphPool::new(self.device)?;
            pool.warm_up(&mut || step(&replayed))?;
            let graph = pool.capture(&mut || step(&replayed))?;
            graph.replay()?;
            replayed.shallow_clone().copy_(&(&replayed + &start));
            graph.replay()?;
            let plain = start.copy();
            (0..2).for_each(|_| step(&plain));
            plain.shallow_clone().copy_(&(&plain + &start));
            step(&plain);
            worst(&[replayed], &[plain])
        })
    }

    fn fused_adamw(&self) -> Found {
        let options =
            AdamWOptions { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        let sizes: [&[i64]; 3] = [&[self.shape.hidden_size], &[31, 7], &[1]];
        let made = |key: u64| -> Result<Vec<Tensor>, TorchError> {
            let tensor = |(i, size): (u64, &&[i64])| self.random(size, Kind::Float, key + i);
            (0u64..).zip(&sizes).map(tensor).collect()
        };
        no_grad(|| {
            let grads = made(30)?;
            let state = || -> Result<[Vec<Tensor>; 4], TorchError> {
                let zeros = || grads.iter().map(Tensor::zeros_like).collect::<Vec<_>>();
                let step = || Tensor::zeros([], (Kind::Float, self.device));
                Ok([made(20)?, zeros(), zeros(), grads.iter().map(|_| step()).collect()])
            };
            let (fast, plain) = (state()?, state()?);
            for _ in 0..2 {
                let [p, m, v, steps] = &fast;
                fused_adamw(p, &grads, m, v, steps, options)?;
                let [p, m, v, steps] = &plain;
                for (i, step) in steps.iter().enumerate() {
                    let _ = step.shallow_clone().f_add_scalar_(1.0)?;
                    adamw_reference([&p[i], &grads[i], &m[i], &v[i]], step, options)?;
                }
            }
            let all = |state: &[Vec<Tensor>; 4]| -> Vec<Tensor> {
                state.iter().flatten().map(Tensor::shallow_clone).collect()
            };
            worst(&all(&fast), &all(&plain))
        })
    }

    /// There and back; nothing may differ.
    fn pinned_copies(&self) -> Found {
        let sent = self.random(&[1 << 16], Kind::Float, 40)?.f_to_device(Device::Cpu)?;
        let there = begin_copy(&pinned(&sent)?, self.device)?;
        let back = PendingHostCopy::begin(&there)?.wait()?;
        worst(&[back], &[sent])
    }
}

/// `f` of copies of `inputs`, then the gradients of `sum(y * f)` by each.
fn gradients<const N: usize>(
    inputs: &[Tensor; N],
    y: &Tensor,
    f: impl FnOnce([&Tensor; N]) -> Result<Tensor, TorchError>,
) -> Result<Vec<Tensor>, TorchError> {
    let leaves = inputs.each_ref().map(|x| x.detach().set_requires_grad(true));
    let output = f(leaves.each_ref())?;
    let sum = (&output * y).f_sum(Kind::Float)?;
    let mut all = vec![output.detach()];
    all.extend(Tensor::f_run_backward(&[sum], &leaves.each_ref().map(|x| x), false, false)?);
    Ok(all)
}

/// The largest difference of a tensor, relative to the largest number of the plain one.
fn worst(fast: &[Tensor], plain: &[Tensor]) -> Found {
    let mut worst = 0f64;
    for (a, b) in fast.iter().zip(plain) {
        let [a, b] = [a, b].map(|x| x.detach().to_kind(Kind::Double));
        let difference = f64::try_from((&a - &b).f_abs()?.f_max()?)?;
        let size = f64::try_from(b.f_abs()?.f_max()?)?.max(1e-6);
        let error = difference / size;
        // NaN would lose every comparison.
        worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_of_tests;

    const SHAPE: ProofShape =
        ProofShape { hidden_size: 64, num_heads: 6, num_kv_heads: 2, head_dim: 16 };

    #[test]
    fn every_path_holds_on_the_device_of_tests() {
        if !device_of_tests().is_cuda() {
            println!("skipped: `make test-device` has a device with fast paths");
            return;
        }
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            for path in FastPath::ALL {
                let proof = prove(path, &SHAPE, kind, device_of_tests()).unwrap();
                println!("{kind:?} {}: {proof:?}", path.name());
                let is_flash = matches!(path, FastPath::FlashAttention | FastPath::DecodeAttention);
                assert_eq!(proof.is_none(), is_flash && kind == Kind::Float, "{}", path.name());
                assert!(proof.is_none_or(|proof| proof.holds()), "{}: {proof:?}", path.name());
            }
        }
    }

    #[test]
    fn a_wrong_number_and_nan_hold_nothing() {
        let right = Tensor::from_slice(&[1.0f32, -4.0]);
        let proof = |x: &Tensor| Proof {
            error: worst(&[x.shallow_clone()], &[right.shallow_clone()]).unwrap(),
            tolerance: 0.02,
        };
        assert!(proof(&Tensor::from_slice(&[1.05f32, -4.0])).holds());
        assert!(!proof(&Tensor::from_slice(&[1.5f32, -4.0])).holds());
        assert!(!proof(&Tensor::from_slice(&[1.0f32, f32::NAN])).holds());
    }
}
