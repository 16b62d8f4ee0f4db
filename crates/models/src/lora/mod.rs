//! Low-rank adapters (LoRA, arXiv 2106.09685), in PEFT's names and files.
//!
//! `y = x W^T + b + scale * dropout(x) A^T B^T` with `A [rank, in]`, `B [out, rank]` (0 at the start),
//! `scale = alpha / rank`. The weights under an adapter are frozen; with the adapter switched off the
//! model is the one that training started from, so that no second copy is needed as reference.

mod files;
mod merge;
mod patterns;
mod targets;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tch::{Device, Kind, Tensor, no_grad};
use torch::{Distribution, fill_random};

pub use files::{SavedAdapter, save_adapter, save_adapter_of};
pub use merge::merge_adapter;
pub use targets::Targets;

use crate::ModelError;
use crate::model::Part;

/// A new adapter.
#[derive(Clone, Debug)]
pub struct LoraOptions {
    /// Rank of the update.
    pub rank: i64,
    /// The update is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Share of an adapter's inputs set to 0 while training.
    pub dropout: f64,
    /// Which linear layers.
    pub targets: Targets,
    /// Of the random start of `A`.
    pub seed: u64,
}

/// Where a model's adapters come from.
#[derive(Debug)]
pub enum AdapterSource<'a> {
    /// New ones, which change nothing yet.
    New(&'a LoraOptions),
    /// Those of a PEFT folder.
    Saved(&'a SavedAdapter),
}

/// The adapters of a model.
#[derive(Debug)]
pub struct Lora {
    /// Rank of the update.
    pub rank: i64,
    /// `alpha` of `alpha / rank`.
    pub alpha: f64,
    /// Share of inputs dropped while training.
    pub dropout: f64,
    /// The layers that have one, by their names in transformers, sorted.
    pub modules: Vec<String>,
    /// Rank and alpha of those layers that have others.
    pub scales: BTreeMap<String, (i64, f64)>,
    switch: Rc<Switch>,
}

/// Shared by all adapters of a model.
#[derive(Debug, Default)]
struct Switch {
    is_off: Cell<bool>,
    /// Set while training: the key of the dropout masks.
    dropout_key: Cell<Option<u64>>,
}

impl Lora {
    fn new(rank: i64, alpha: f64, dropout: f64) -> Self {
        Lora {
            rank,
            alpha,
            dropout,
            modules: Vec::new(),
            scales: BTreeMap::new(),
            switch: Rc::default(),
        }
    }

    /// Runs `work` as if there were no adapter.
    pub fn switched_off<R>(&self, work: impl FnOnce() -> R) -> R {
        let before = self.switch.is_off.replace(true);
        let result = work();
        self.switch.is_off.set(before);
        result
    }

    /// Runs `work` with dropout. Equal keys drop equal inputs, so that a recomputed layer computes the same.
    pub fn with_dropout<R>(&self, key: &[u64], work: impl FnOnce() -> R) -> R {
        let key = key.iter().fold(0, |all, &part| mixed(all, part));
        let key = (self.dropout > 0.0).then_some(key);
        let before = self.switch.dropout_key.replace(key);
        let result = work();
        self.switch.dropout_key.set(before);
        result
    }
}

/// The update of one linear layer.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// `[rank, in]`.
    pub(crate) a: Tensor,
    /// `[out, rank]`.
    pub(crate) b: Tensor,
    scale: f64,
    dropout: f64,
    /// Separates its dropout masks from those of other layers.
    number: u64,
    switch: Rc<Switch>,
}

impl Adapter {
    /// What is added to the layer's output; `None` while switched off.
    pub(crate) fn forward(&self, x: &Tensor) -> Option<Tensor> {
        if self.switch.is_off.get() {
            return None;
        }
        let dropped = self.switch.dropout_key.get().map(|key| {
            let kept = no_grad(|| x.empty_like());
            let share = Distribution::Bernoulli(1.0 - self.dropout);
            fill_random(&kept, mixed(key, self.number), share).expect("a tensor of numbers");
            x * (kept / (1.0 - self.dropout))
        });
        let x = dropped.as_ref().unwrap_or(x);
        let update = x.linear(&self.a, None::<&Tensor>).linear(&self.b, None::<&Tensor>);
        Some(update * self.scale)
    }
}

/// Mixes two numbers into one (the finalizer of SplitMix64).
fn mixed(key: u64, number: u64) -> u64 {
    let mut z = key ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Makes the adapters of a model, layer by layer.
pub(crate) struct Adapters<'a> {
    source: AdapterSource<'a>,
    /// `alpha / rank` of the last layer.
    scale: f64,
    part_of: fn(&str) -> Part,
    pub(crate) lora: Lora,
}

/// `A` and `B` in f32 on the CPU.
pub(crate) struct Matrices {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
}

impl<'a> Adapters<'a> {
    /// `part_of`: the part of a layer, see [`crate::Family::part_of`].
    pub(crate) fn new(source: AdapterSource<'a>, part_of: fn(&str) -> Part) -> Self {
        let lora = match &source {
            AdapterSource::New(o) => Lora::new(o.rank, o.alpha, o.dropout),
            AdapterSource::Saved(s) => Lora::new(s.rank, s.alpha, s.dropout),
        };
        let scale = lora.alpha / lora.rank as f64;
        Adapters { source, scale, part_of, lora }
    }

    /// The matrices of a layer `[out, in]`; `None` where it has no adapter. A mismatch goes to `problems`.
    pub(crate) fn matrices(
        &mut self,
        module: &str,
        [output, input]: [i64; 2],
        problems: &mut Vec<String>,
    ) -> Result<Option<Matrices>, ModelError> {
        let (rank, alpha) = match &self.source {
            AdapterSource::New(options) => (options.rank, options.alpha),
            AdapterSource::Saved(saved) => saved.rank_and_alpha(module),
        };
        let matrices = match &self.source {
            AdapterSource::New(options) => {
                if !options.targets.holds(module, (self.part_of)(module)) {
                    return Ok(None);
                }
                Matrices {
                    a: start(options.seed, module, rank, input)?,
                    b: Tensor::f_zeros([output, rank], (Kind::Float, Device::Cpu))?,
                }
            }
            AdapterSource::Saved(saved) => {
                let Some((a, b)) = saved.matrices(module) else {
                    return Ok(None);
                };
                let before = problems.len();
                for (what, got, expected) in [("A", a, [rank, input]), ("B", b, [output, rank])] {
                    if got.size() != expected {
                        let got = got.size();
                        problems.push(format!(
                            "adapter {module}.lora_{what}: expected {expected:?}, got {got:?}"
                        ));
                    }
                }
                if problems.len() > before {
                    self.lora.modules.push(module.to_owned());
                    return Ok(None);
                }
                Matrices { a: a.f_to_kind(Kind::Float)?, b: b.f_to_kind(Kind::Float)? }
            }
        };
        self.lora.modules.push(module.to_owned());
        if (rank, alpha) != (self.lora.rank, self.lora.alpha) {
            self.lora.scales.insert(module.to_owned(), (rank, alpha));
        }
        self.scale = alpha / rank as f64;
        Ok(Some(matrices))
    }

    /// The adapter of the last layer of [`Adapters::matrices`], in the compute type.
    pub(crate) fn adapter(&self, a: Tensor, b: Tensor) -> Adapter {
        Adapter {
            a,
            b,
            scale: self.scale,
            dropout: self.lora.dropout,
            number: self.lora.modules.len() as u64,
            switch: self.lora.switch.clone(),
        }
    }

    /// Ends loading; adapters or targets that found no layer go to `problems`.
    pub(crate) fn finish(mut self, problems: &mut Vec<String>) -> Lora {
        let modules = &mut self.lora.modules;
        modules.sort();
        match &self.source {
            AdapterSource::New(options) => problems.extend(options.targets.unmatched(modules)),
            AdapterSource::Saved(saved) => {
                let taken = |module: &&str| modules.iter().any(|m| m == module);
                let left = saved.modules().filter(|module| !taken(module));
                problems.extend(left.map(|module| {
                    format!(
                        "adapter {module}: the model has no such linear layer, or of another shape"
                    )
                }));
            }
        }
        self.lora
    }
}

/// The initial `A` as in PEFT: uniform within `1 / sqrt(in)`, keyed by the layer's name.
fn start(seed: u64, module: &str, rank: i64, input: i64) -> Result<Tensor, ModelError> {
    let name = module.bytes().fold(0u64, |hash, byte| mixed(hash, u64::from(byte)));
    let bound = 1.0 / (input as f64).sqrt();
    let matrix = Tensor::f_empty([rank, input], (Kind::Float, Device::Cpu))?;
    fill_random(&matrix, mixed(seed, name), Distribution::Uniform(-bound, bound))?;
    Ok(matrix)
}
