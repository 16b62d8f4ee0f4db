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
    /// The exact weight where `value` is rounded (`None`: `value` is exact).
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

    /// The tensor `path.name`, in the compute type on the device. A misfit is noted, and zeros of the
    /// right shape stand in until [`Builder::finish`] refuses the whole.
    ///
    /// # Errors
    /// An unreadable file, or libtorch's own.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let name = if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        };
        if !self.taken.insert(name.clone()) {
            self.problems.push(format!("weight {name}: used twice"));
        }
        let value = self.read(&name, shape)?;
        let exact = value.kind() == self.kind;
        let master = (self.trainable && self.kind != Kind::Float)
            .then(|| value.to_kind(Kind::Float).to_device(self.device).copy());
        let value = if exact {
            value
        } else {
            value.to_kind(self.kind)
        };
        let value = value
            .to_device(self.device)
            .set_requires_grad(self.trainable);
        self.parameters.list.push(Parameter {
            name,
            value: value.shallow_clone(),
            master,
        });
        Ok(value)
    }

    fn read(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let zeros = || Tensor::zeros(shape, (self.kind, self.device));
        if !self.files.contains(name) {
            self.problems.push(format!("weight {name}: missing"));
            return Ok(zeros());
        }
        let got = self.files.shape(name)?;
        if got != shape {
            // Older files hold convolutions whole; they are the same numbers.
            if got.iter().product::<i64>() == shape.iter().product::<i64>()
                && got.len() > shape.len()
                && got[0] == shape[0]
            {
                return Ok(self.files.tensor(name)?.view(shape));
            }
            self.problems
                .push(format!("weight {name}: expected {shape:?}, got {got:?}"));
            return Ok(zeros());
        }
        Ok(self.files.tensor(name)?)
    }

    /// Marks a tensor as known without giving it to a layer (a tied head stored again).
    pub fn ignore(&mut self, name: &str) {
        self.taken.insert(name.to_string());
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
