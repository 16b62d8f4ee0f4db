//! A model's weights by checkpoint name, and the builder that hands them to layers.

use std::collections::BTreeSet;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use torch::WeightFiles;

use crate::ModelError;

/// One weight.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// What layers compute with: a leaf in the compute type, shared with the layer that holds it.
    pub value: Tensor,
    /// The f32 weight that training updates where the compute type is narrower; `None` where `value`
    /// itself is f32, or nothing is trained.
    pub master: Option<Tensor>,
}

/// All weights of a model, in the order of loading.
#[derive(Debug, Default)]
pub struct Parameters {
    /// The weights; tied ones once.
    pub list: Vec<Parameter>,
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

/// Hands tensors of a checkpoint to layers, each once, and collects what does not fit.
pub struct Builder<'a> {
    files: &'a WeightFiles,
    kind: Kind,
    device: Device,
    trainable: bool,
    path: String,
    problems: Vec<String>,
    taken: BTreeSet<String>,
    parameters: Parameters,
}

impl<'a> Builder<'a> {
    /// A builder over open weight files; `trainable` weights require gradients.
    pub fn new(files: &'a WeightFiles, kind: Kind, device: Device, trainable: bool) -> Self {
        Builder {
            files,
            kind,
            device,
            trainable,
            path: String::new(),
            problems: Vec::new(),
            taken: BTreeSet::new(),
            parameters: Parameters::default(),
        }
    }

    /// Whether the checkpoint has a tensor of this full name.
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains(name)
    }

    /// The type of the compute weights.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the weights go.
    pub fn device(&self) -> Device {
        self.device
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
        self.path = if outer.is_empty() {
            element.to_string()
        } else {
            format!("{outer}.{element}")
        };
        let result = load(self);
        self.path = outer;
        result
    }

    /// The tensor `path.name`, in the compute type on the device. A misfit is noted, and an empty
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

    fn full_name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The stored tensor, if it has one of `shapes`; else the misfit is noted.
    fn read(&mut self, name: &str, shapes: &[&[i64]]) -> Result<Option<Tensor>, ModelError> {
        if !self.taken.insert(name.to_string()) {
            self.problems.push(format!("weight {name}: used twice"));
        }
        if !self.files.contains(name) {
            self.problems.push(format!("weight {name}: missing"));
            return Ok(None);
        }
        let got = self.files.shape(name)?;
        if !shapes.contains(&got.as_slice()) {
            let expected: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
            let expected = expected.join(" or ");
            self.problems
                .push(format!("weight {name}: expected {expected}, got {got:?}"));
            return Ok(None);
        }
        let value = self.files.tensor(name)?;
        if !value.is_floating_point() {
            let kind = value.kind();
            self.problems.push(format!(
                "weight {name}: expected a floating type, got {kind:?}"
            ));
            return Ok(None);
        }
        Ok(Some(value))
    }

    fn keep(&mut self, name: String, stored: Option<Tensor>) -> Result<Tensor, ModelError> {
        let stored = stored.unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, Device::Cpu)));
        let value = stored
            .f_to_kind(self.kind)?
            .f_to_device(self.device)?
            .f_set_requires_grad(self.trainable)?;
        let master = if self.trainable && self.kind != Kind::Float {
            Some(stored.f_to_kind(Kind::Float)?.f_to_device(self.device)?)
        } else {
            None
        };
        self.parameters.list.push(Parameter {
            name,
            value: value.shallow_clone(),
            master,
        });
        Ok(value)
    }

    /// Marks a tensor that no layer takes as known: a tied head of `shape` stored again.
    ///
    /// # Errors
    /// [`ModelError::Torch`]; a misfit is noted.
    pub fn pass_over(&mut self, name: &str, shape: &[i64]) -> Result<(), ModelError> {
        if self.files.contains(name) {
            self.read(name, &[shape])?;
        }
        Ok(())
    }

    /// Ends loading.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every missing, unexpected, twice used and mis-shaped tensor.
    pub fn finish(mut self, folder: &Path) -> Result<Parameters, ModelError> {
        for name in self.files.names() {
            // Old checkpoints carry this buffer; it is computed, not learnt.
            if !self.taken.contains(name) && !name.ends_with("rotary_emb.inv_freq") {
                self.problems.push(format!("weight {name}: unexpected"));
            }
        }
        if self.problems.is_empty() {
            Ok(self.parameters)
        } else {
            Err(ModelError::Weights {
                folder: folder.to_path_buf(),
                problems: self.problems,
            })
        }
    }
}
