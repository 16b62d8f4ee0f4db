//! A model's weights by checkpoint name, and the builder that hands them to layers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use torch::{Bf16Master, WeightFiles};

use crate::ModelError;
use crate::family::Family;
use crate::lora::{Adapter, AdapterSource, Adapters, Lora};
use crate::mismatches::Mismatches;
use crate::model::{LoadOptions, Part, TrainedParts};
use crate::names::Source as Stored;

/// One weight.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the checkpoint; of an adapter, as PEFT names it; of a weight that files hold in another form, that of transformers 5.
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
    /// Nothing: ranks that train together hold it in shards.
    Sharded,
}

impl Parameter {
    /// The f32 master weight; for a frozen weight, the value in the compute type. A view of the weight, except that it is a new tensor for
    /// [`Master::Bf16`].
    ///
    /// # Errors
    /// Out of memory; [`ModelError::Sharded`].
    pub fn master_weight(&self) -> Result<Tensor, ModelError> {
        match &self.master {
            Master::Value => Ok(self.value.detach()),
            Master::F32(master) => Ok(master.detach()),
            Master::Bf16 { residual, host } => {
                Ok(Bf16Master { value: host.as_ref().unwrap_or(&self.value), residual }.load()?)
            }
            Master::Sharded => Err(ModelError::Sharded { name: self.name.clone() }),
        }
    }

    /// Whether an f32 weight other than the value is kept.
    pub fn has_master(&self) -> bool {
        !matches!(self.master, Master::Value)
    }

    /// The device of the f32 weight.
    pub fn master_device(&self) -> Device {
        match &self.master {
            Master::Value | Master::Sharded => self.value.device(),
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
    pub linears: Vec<LinearShape>,
}

/// A linear layer of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Its name in transformers 5.
    pub name: String,
    /// The part that it belongs to.
    pub part: Part,
    /// Channels in.
    pub input: i64,
    /// Channels out.
    pub output: i64,
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
    /// As `Blank`, but all numbers of a weight are one in memory: to be counted only.
    Counted,
}

/// Small enough for sums over channels to stay finite in 16 bits.
const BLANK: f64 = 0.01;

/// Hands tensors of a checkpoint to layers, each once, and collects what does not fit.
pub struct Builder<'a> {
    family: &'static Family,
    source: Source<'a>,
    folder: PathBuf,
    options: LoadOptions,
    adapters: Option<Adapters<'a>>,
    path: String,
    mismatches: Mismatches,
    taken: BTreeSet<String>,
    /// Names of the files by those of transformers 5, where the two differ.
    stored: BTreeMap<String, String>,
    /// Rows that were taken of stored tensors that hold several weights.
    taken_rows: BTreeMap<String, i64>,
    parameters: Parameters,
}

impl<'a> Builder<'a> {
    /// A builder over the open weight files of `folder`. Weights of the trained parts require gradients; under
    /// adapters, these alone do.
    pub fn new(
        family: &'static Family,
        files: &'a WeightFiles,
        folder: &Path,
        options: LoadOptions,
        adapters: Option<AdapterSource<'a>>,
    ) -> Self {
        Self::of(family, Source::Files(files), folder, options, adapters)
    }

    /// A builder without files, for a model that is only measured.
    pub fn blank(
        family: &'static Family,
        options: LoadOptions,
        adapters: Option<AdapterSource<'a>>,
    ) -> Self {
        Self::of(family, Source::Blank, Path::new("a blank model"), options, adapters)
    }

    /// A builder without files, for a model that is only counted: it takes no memory.
    pub fn counted(family: &'static Family) -> Self {
        let options =
            LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::NONE };
        Self::of(family, Source::Counted, Path::new("a counted model"), options, None)
    }

    fn of(
        family: &'static Family,
        source: Source<'a>,
        folder: &Path,
        options: LoadOptions,
        adapters: Option<AdapterSource<'a>>,
    ) -> Self {
        let mut builder = Builder {
            family,
            source,
            folder: folder.to_path_buf(),
            options,
            adapters: adapters.map(|source| Adapters::new(source, family.part_of)),
            path: String::new(),
            mismatches: Mismatches::default(),
            taken: BTreeSet::new(),
            stored: BTreeMap::new(),
            taken_rows: BTreeMap::new(),
            parameters: Parameters::default(),
        };
        if let Source::Files(files) = source {
            builder.stored = builder.by_current_name(files.names());
        }
        builder
    }

    /// Compute type and device.
    pub fn compute(&self) -> (Kind, Device) {
        (self.options.kind, self.options.device)
    }

    /// Names by those of transformers 5; of two names for one weight the latter's own.
    fn by_current_name<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
    ) -> BTreeMap<String, String> {
        let mut stored = BTreeMap::new();
        for name in names {
            let current = self.family.names.current(name);
            if current == name || !stored.contains_key(&current) {
                stored.insert(current, name.to_owned());
            }
        }
        stored
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
        let own = self.own_name(name);
        let value = self.read_reformed(&own, shape)?;
        self.keep(&own, value)
    }

    /// The kernel `path.name` of a convolution whose patches do not overlap, as the matrix that it
    /// is: `[out, product of the others]`. Files hold it either way.
    ///
    /// # Errors
    /// As [`Builder::take`].
    pub fn take_kernel(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let own = self.own_name(name);
        let flat = [shape[0], shape[1..].iter().product()];
        let value = match self.read(&self.stored_name(&own), &[shape, &flat])? {
            // Its size in files is of interest.
            Some(value) if matches!(self.source, Source::Counted) => Some(value),
            Some(value) => Some(value.f_view(flat)?),
            None => None,
        };
        self.keep(&own, value)
    }

    /// The name of transformers 5.
    fn own_name(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }

    /// The name in the files of what transformers 5 calls `current`: each tensor may have that of the hub or that of transformers 5. A
    /// missing one is called as the others are.
    fn stored_name(&self, current: &str) -> String {
        if let Some(stored) = self.stored.get(current) {
            return stored.clone();
        }
        let begins = |prefix: &str| self.stored.values().any(|name| name.starts_with(prefix));
        let mut prefixes = self.family.names.prefixes.iter();
        let older = prefixes.find_map(|(old, new)| {
            let rest = current.strip_prefix(new)?;
            (!begins(new) && begins(old)).then(|| format!("{old}{rest}"))
        });
        older.unwrap_or_else(|| current.to_owned())
    }

    /// The weight that transformers 5 calls `own`, put together as layers take it.
    fn read_reformed(&mut self, own: &str, shape: &[i64]) -> Result<Option<Tensor>, ModelError> {
        let Source::Files(files) = self.source else {
            return self.read(own, &[shape]);
        };
        let stored = match self.family.names.source(own) {
            Stored::Same => return self.read(&self.stored_name(own), &[shape]),
            stored => stored,
        };
        let unfit = |builder: &mut Self, name: &str, got: &[i64]| {
            builder.mismatches.others.push(format!(
                "weight {name}: {got:?} does not hold {own} {shape:?} where the family has it"
            ));
        };
        match stored {
            Stored::Same => Ok(None),
            Stored::RowsOf { stored, before } => {
                let first: i64 = before.iter().map(|name| self.rows_of(name)).sum();
                let name = self.stored_name(&stored);
                let Some(whole) = self.read_any(&name)? else { return Ok(None) };
                let got = whole.size();
                if got[1..] != shape[1..] || got[0] < first + shape[0] {
                    unfit(self, &name, &got);
                    return Ok(None);
                }
                self.taken_rows.insert(name, first + shape[0]);
                Ok(Some(whole.f_narrow(0, first, shape[0])?))
            }
            Stored::Rows(names) => {
                let mut parts = Vec::new();
                for name in names {
                    let name = self.stored_name(&name);
                    let Some(part) = self.read_any(&name)? else { return Ok(None) };
                    if part.size()[1..] != shape[1..] {
                        unfit(self, &name, &part.size());
                        return Ok(None);
                    }
                    parts.push(part);
                }
                self.whole(own, Tensor::f_cat(&parts, 0)?, shape)
            }
            Stored::Transposed(name) => {
                let name = self.stored_name(&name);
                let flipped = [shape[1], shape[0]];
                Ok(self.read(&name, &[&flipped])?.map(|x| x.tr().contiguous()))
            }
            Stored::Slices([before, after]) => {
                let mut slices = Vec::new();
                for index in 0..shape[0] {
                    let name = self.stored_name(&format!("{before}{index}{after}"));
                    let Some(slice) = self.read(&name, &[&shape[1..]])? else { return Ok(None) };
                    slices.push(slice);
                }
                let further = self.stored_name(&format!("{before}{}{after}", shape[0]));
                if files.contains(&further) {
                    unfit(self, &further, &files.shape(&further)?);
                }
                Ok(Some(Tensor::f_stack(&slices, 0)?))
            }
        }
    }

    /// Rows of a weight that was taken before.
    fn rows_of(&self, own: &str) -> i64 {
        self.parameters.get(own).map_or(0, |parameter| parameter.value.size()[0])
    }

    fn whole(
        &mut self,
        own: &str,
        value: Tensor,
        shape: &[i64],
    ) -> Result<Option<Tensor>, ModelError> {
        if value.size() == shape {
            return Ok(Some(value));
        }
        let got = value.size();
        self.mismatches.others.push(format!("weight {own}: expected {shape:?}, got {got:?}"));
        Ok(None)
    }

    /// A stored tensor of any shape, any number of times; noted where it is missing.
    fn read_any(&mut self, name: &str) -> Result<Option<Tensor>, ModelError> {
        let Source::Files(files) = self.source else {
            return Ok(None);
        };
        if !files.contains(name) {
            if !self.mismatches.missing.iter().any(|missing| missing == name) {
                self.mismatches.missing.push(name.to_owned());
            }
            return Ok(None);
        }
        self.taken.remove(name);
        let shape = files.shape(name)?;
        self.read(name, &[&shape])
    }

    /// The stored tensor, if it has one of `shapes`; else the mismatch is noted.
    fn read(&mut self, name: &str, shapes: &[&[i64]]) -> Result<Option<Tensor>, ModelError> {
        if !self.taken.insert(name.to_string()) {
            self.mismatches.others.push(format!("weight {name}: used twice"));
        }
        let Source::Files(files) = self.source else {
            let LoadOptions { kind, device, .. } = self.options;
            if let Source::Counted = self.source {
                let one = Tensor::f_full([1], BLANK, (kind, device))?;
                return Ok(Some(one.f_expand(shapes[0], false)?));
            }
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

    fn keep(&mut self, own: &str, stored: Option<Tensor>) -> Result<Tensor, ModelError> {
        let stored = stored.unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, Device::Cpu)));
        let part = (self.family.part_of)(own);
        let is_trained = self.adapters.is_none() && self.options.trained.holds(part);
        let name = match self.family.names.source(own) {
            Stored::Same => self.stored_name(own),
            _ => own.to_owned(),
        };
        self.hold(name, part, stored, is_trained, false)
    }

    /// Places a weight on the compute device, with its f32 master where one is needed.
    fn hold(
        &mut self,
        name: String,
        part: Part,
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
            part,
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
        let module = self.family.names.current(&self.path);
        let weight = format!("{module}.weight");
        let matrices = adapters.matrices(&module, shape, &mut self.mismatches.others)?;
        let mut adapter = None;
        if matrices.is_some() && self.family.names.source(&weight) != Stored::Same {
            self.mismatches.others.push(format!(
                "adapter {module}: files hold this layer in another form; adapters over such layers are not built yet"
            ));
        }
        if let Some(matrices) = matrices {
            let part = (self.family.part_of)(&weight);
            let is_trained = self.options.trained != TrainedParts::NONE;
            let name = |half| format!("{module}.lora_{half}.weight");
            let a = self.hold(name("A"), part, matrices.a, is_trained, true)?;
            let b = self.hold(name("B"), part, matrices.b, is_trained, true)?;
            adapter = Some(adapters.adapter(a, b));
        }
        self.adapters = Some(adapters);
        Ok(adapter)
    }

    /// A number for the linear layer `[out, in]` at the path: how many came before.
    pub(crate) fn number_linear(&mut self, [output, input]: [i64; 2]) -> usize {
        let part = (self.family.part_of)(&self.path);
        let linears = &mut self.parameters.linears;
        linears.push(LinearShape { name: self.path.clone(), part, input, output });
        linears.len() - 1
    }

    /// Marks a tensor that no layer takes as known: a tied head stored again.
    pub fn pass_over(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// Ends loading. Tensors that no layer takes are named in a warning, as in transformers.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with missing, twice used and mis-shaped tensors, and beside them those that no layer takes.
    pub fn finish(mut self) -> Result<Parameters, ModelError> {
        if let Source::Files(files) = self.source {
            let taken = self.by_current_name(self.taken.iter().map(String::as_str));
            for name in files.names().filter(|name| !self.taken.contains(*name)) {
                let current = self.family.names.current(name);
                match taken.get(&current) {
                    Some(other) => self.mismatches.others.push(format!(
                        "weight {name}: the same weight as {other}, under another name"
                    )),
                    None if self.family.names.is_passed_over(&current) => {}
                    None => self.mismatches.unexpected.push(name.to_owned()),
                }
            }
            for (name, taken) in &self.taken_rows {
                let got = files.shape(name)?;
                if got[0] != *taken {
                    let line = format!("weight {name}: expected {taken} rows, got {got:?}");
                    self.mismatches.others.push(line);
                }
            }
        }
        if let Some(adapters) = self.adapters.take() {
            self.parameters.lora = Some(adapters.finish(&mut self.mismatches.others));
        }
        self.mismatches.check(&self.folder)?;
        Ok(self.parameters)
    }
}
