//! A model's weights by checkpoint name, and the builder that hands them to layers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::{Device, Kind, Tensor};
use torch::{Bf16Master, TorchError, WeightFiles};

use crate::ModelError;
use crate::lora::{Adapter, AdapterSource, Adapters, Lora};
use crate::mismatches::Mismatches;
use crate::model::{LoadOptions, Part, TrainedParts};

/// One weight.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the checkpoint; of an adapter, as PEFT names it.
    pub name: String,
    /// The part of the model that it belongs to.
    pub part: Part,
    /// Whether it belongs to an adapter instead of the checkpoint.
    pub is_adapter: bool,
    /// What layers compute with: a leaf in the compute type, shared with the layer that holds it.
    pub value: Tensor,
    /// The f32 weight that training updates.
    pub master: Master,
}

/// The f32 weight that training updates.
#[derive(Debug)]
pub enum Master {
    /// The value itself: in f32, or of any type where it is not trained.
    Value,
    /// An f32 tensor of its own.
    F32(Tensor),
    /// The bf16 value plus a 16-bit residual, see [`Bf16Master`].
    Bf16 {
        /// In int16.
        residual: Tensor,
        /// A copy of the value in host memory, where `residual` is there too.
        host: Option<Tensor>,
    },
}

impl Parameter {
    /// The f32 master weight; for a frozen weight, the value in the compute type. A view of the weight, except that it is a new tensor for
    /// [`Master::Bf16`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn master_weight(&self) -> Result<Tensor, TorchError> {
        match &self.master {
            Master::Value => Ok(self.value.detach()),
            Master::F32(master) => Ok(master.detach()),
            Master::Bf16 { residual, host } => {
                Bf16Master { value: host.as_ref().unwrap_or(&self.value), residual }.load()
            }
        }
    }

    /// Whether an f32 weight other than the value is kept.
    pub fn has_master(&self) -> bool {
        !matches!(self.master, Master::Value)
    }

    /// The device of the f32 weight.
    pub fn master_device(&self) -> Device {
        match &self.master {
            Master::Value => self.value.device(),
            Master::F32(master) => master.device(),
            Master::Bf16 { residual, .. } => residual.device(),
        }
    }
}

/// All weights of a model, in the order of loading.
#[derive(Debug, Default)]
pub struct Parameters {
    /// The weights; tied ones once.
    pub list: Vec<Parameter>,
    /// The adapters over them.
    pub lora: Option<Lora>,
    /// Linear layers, the head included; each has a place in a [`crate::PackedWeights`].
    pub(crate) num_linears: usize,
}

impl Parameters {
    /// A weight by name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.list.iter().find(|p| p.name == name)
    }

    /// Number of scalars, tied ones once.
    pub fn num_elements(&self) -> usize {
        self.list.iter().map(|p| p.value.numel()).sum()
    }
}

/// Where weights come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Files(&'a WeightFiles),
    /// No files: every weight exists, and all its numbers are [`BLANK`].
    Blank,
}

/// Small enough for sums over channels to stay finite in 16 bits.
const BLANK: f64 = 0.01;

/// Hands tensors of a checkpoint to layers, each once, and collects what does not fit.
pub struct Builder<'a> {
    source: Source<'a>,
    options: LoadOptions,
    adapters: Option<Adapters<'a>>,
    path: String,
    mismatches: Mismatches,
    taken: BTreeSet<String>,
    /// Names of the files by those of transformers 5, where the two differ.
    stored: BTreeMap<String, String>,
    parameters: Parameters,
}

impl<'a> Builder<'a> {
    /// A builder over open weight files. Weights of the trained parts require gradients; under
    /// adapters, these alone do.
    pub fn new(
        files: &'a WeightFiles,
        options: LoadOptions,
        adapters: Option<AdapterSource<'a>>,
    ) -> Self {
        Self::of(Source::Files(files), options, adapters)
    }

    /// A builder without files, for a model that is only measured.
    pub fn blank(options: LoadOptions, adapters: Option<AdapterSource<'a>>) -> Self {
        Self::of(Source::Blank, options, adapters)
    }

    fn of(source: Source<'a>, options: LoadOptions, adapters: Option<AdapterSource<'a>>) -> Self {
        Builder {
            source,
            options,
            adapters: adapters.map(Adapters::new),
            path: String::new(),
            mismatches: Mismatches::default(),
            taken: BTreeSet::new(),
            stored: match source {
                Source::Files(files) => by_module(files.names()),
                Source::Blank => BTreeMap::new(),
            },
            parameters: Parameters::default(),
        }
    }

    /// Whether the checkpoint has a tensor of this full name, under it alone.
    pub fn contains(&self, name: &str) -> bool {
        match self.source {
            Source::Files(files) => files.contains(name),
            Source::Blank => false,
        }
    }

    /// Runs `load` with `element` appended to the path.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn at<R>(
        &mut self,
        element: impl std::fmt::Display,
        load: impl FnOnce(&mut Self) -> Result<R, ModelError>,
    ) -> Result<R, ModelError> {
        let outer = self.path.clone();
        self.path =
            if outer.is_empty() { element.to_string() } else { format!("{outer}.{element}") };
        let result = load(self);
        self.path = outer;
        result
    }

    /// The tensor `path.name`, in the compute type on the device. A mismatch is noted, and an empty
    /// tensor stands in until [`Builder::finish`] refuses the whole.
    ///
    /// # Errors
    /// An unreadable file, or libtorch's own.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let name = self.full_name(name);
        let value = self.read(&name, &[shape])?;
        self.keep(name, value)
    }

    /// The kernel `path.name` of a convolution whose patches do not overlap, as the matrix that it
    /// is: `[out, product of the others]`. Files hold it either way.
    ///
    /// # Errors
    /// As [`Builder::take`].
    pub fn take_kernel(&mut self, name: &str, shape: &[i64; 5]) -> Result<Tensor, ModelError> {
        let name = self.full_name(name);
        let flat = [shape[0], shape[1..].iter().product()];
        let value = match self.read(&name, &[shape, &flat])? {
            Some(value) => Some(value.f_view(flat)?),
            None => None,
        };
        self.keep(name, value)
    }

    /// The name in the files: each tensor may have that of the hub or that of transformers 5.
    fn full_name(&self, name: &str) -> String {
        let name = match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        };
        match self.stored.get(&module_name(&name)) {
            Some(stored) if !self.contains(&name) => stored.clone(),
            _ => name,
        }
    }

    /// The stored tensor, if it has one of `shapes`; else the mismatch is noted.
    fn read(&mut self, name: &str, shapes: &[&[i64]]) -> Result<Option<Tensor>, ModelError> {
        if !self.taken.insert(name.to_string()) {
            self.mismatches.others.push(format!("weight {name}: used twice"));
        }
        let Source::Files(files) = self.source else {
            let LoadOptions { kind, device, .. } = self.options;
            return Ok(Some(Tensor::f_full(shapes[0], BLANK, (kind, device))?));
        };
        if !files.contains(name) {
            self.mismatches.missing.push(name.to_owned());
            return Ok(None);
        }
        let got = files.shape(name)?;
        if !shapes.contains(&got.as_slice()) {
            let expected: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
            let expected = expected.join(" or ");
            self.mismatches.others.push(format!("weight {name}: expected {expected}, got {got:?}"));
            return Ok(None);
        }
        let value = files.tensor(name)?;
        if !value.is_floating_point() {
            let kind = value.kind();
            self.mismatches.others.push(format!(
                "weight {name}: expected a floating type, got {}",
                torch::kind_name(kind)
            ));
            return Ok(None);
        }
        Ok(Some(value))
    }

    fn keep(&mut self, name: String, stored: Option<Tensor>) -> Result<Tensor, ModelError> {
        let stored = stored.unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, Device::Cpu)));
        let is_trained = self.adapters.is_none() && self.options.trained.holds(Part::of(&name));
        self.hold(name, stored, is_trained, false)
    }

    /// Places a weight on the compute device, with its f32 master where one is needed.
    fn hold(
        &mut self,
        name: String,
        stored: Tensor,
        is_trained: bool,
        is_adapter: bool,
    ) -> Result<Tensor, ModelError> {
        let LoadOptions { kind, device, trained } = self.options;
        let rounded =
            if is_trained { torch::round_to(&stored, kind)? } else { stored.f_to_kind(kind)? };
        let value = rounded.f_to_device(device)?.f_set_requires_grad(is_trained)?;
        let master_device = if trained.masters_on_host { Device::Cpu } else { device };
        let master = match kind {
            _ if !is_trained => Master::Value,
            Kind::Float if !trained.masters_on_host => Master::Value,
            Kind::BFloat16 => {
                let weight = stored.f_to_device(master_device)?.f_to_kind(Kind::Float)?;
                let residual =
                    Tensor::f_zeros(weight.size().as_slice(), (Kind::Int16, master_device))?;
                // A copy: on a CPU it would else share memory with `value`.
                let copy = || value.detach().f_to_device_(master_device, kind, false, true);
                let host = trained.masters_on_host.then(copy).transpose()?;
                let master =
                    Bf16Master { value: host.as_ref().unwrap_or(&value), residual: &residual };
                master.store(&weight.f_contiguous()?)?;
                Master::Bf16 { residual, host }
            }
            _ => Master::F32(stored.f_to_device_(master_device, Kind::Float, false, true)?),
        };
        self.parameters.list.push(Parameter {
            part: Part::of(&name),
            name,
            is_adapter,
            value: value.shallow_clone(),
            master,
        });
        Ok(value)
    }

    /// The adapter of the linear layer `[out, in]` at the path, where it is to have one.
    ///
    /// # Errors
    /// libtorch's own; a mismatch is noted.
    pub(crate) fn adapter(&mut self, shape: [i64; 2]) -> Result<Option<Adapter>, ModelError> {
        let Some(mut adapters) = self.adapters.take() else {
            return Ok(None);
        };
        let module = module_name(&self.path);
        let matrices = adapters.matrices(&module, shape, &mut self.mismatches.others)?;
        let mut adapter = None;
        if let Some(matrices) = matrices {
            let is_trained = self.options.trained != TrainedParts::NONE;
            let name = |half| format!("{module}.lora_{half}.weight");
            let a = self.hold(name("A"), matrices.a, is_trained, true)?;
            let b = self.hold(name("B"), matrices.b, is_trained, true)?;
            adapter = Some(adapters.adapter(a, b));
        }
        self.adapters = Some(adapters);
        Ok(adapter)
    }

    /// A number for a linear layer: how many came before.
    pub(crate) fn number_linear(&mut self) -> usize {
        self.parameters.num_linears += 1;
        self.parameters.num_linears - 1
    }

    /// Marks a tensor that no layer takes as known: a tied head stored again.
    pub fn pass_over(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// Ends loading. Tensors that no layer takes are named in a warning, as in transformers.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with missing, twice used and mis-shaped tensors, and beside them those that no layer takes.
    pub fn finish(mut self, folder: &Path) -> Result<Parameters, ModelError> {
        if let Source::Files(files) = self.source {
            let taken = by_module(self.taken.iter().map(String::as_str));
            for name in files.names().filter(|name| !self.taken.contains(*name)) {
                match taken.get(&module_name(name)) {
                    Some(other) => self.mismatches.others.push(format!(
                        "weight {name}: the same weight as {other}, under another name"
                    )),
                    None => self.mismatches.unexpected.push(name.to_owned()),
                }
            }
        }
        if let Some(adapters) = self.adapters.take() {
            self.parameters.lora = Some(adapters.finish(&mut self.mismatches.others));
        }
        self.mismatches.check(folder)?;
        Ok(self.parameters)
    }
}

/// Stored names by the names of transformers 5; of two names for one weight the latter's own.
fn by_module<'n>(names: impl Iterator<Item = &'n str>) -> BTreeMap<String, String> {
    let mut stored = BTreeMap::new();
    for name in names {
        let module = module_name(name);
        if module == name || !stored.contains_key(&module) {
            stored.insert(module, name.to_owned());
        }
    }
    stored
}

/// The name that transformers 5 gives to the layer (or weight) that a checkpoint calls `path`.
pub(crate) fn module_name(path: &str) -> String {
    if path.starts_with("visual.") {
        return format!("model.{path}");
    }
    match path.strip_prefix("model.") {
        Some(rest) if !rest.starts_with("visual.") && !rest.starts_with("language_model.") => {
            format!("model.language_model.{rest}")
        }
        _ => path.to_owned(),
    }
}
