//! AdamW over a model's f32 master weights, whatever the compute type; moments in f32 or 8 bits.
//!
//! Gradient sums, moments and the update are on the device of the masters: the compute device, or host memory with offloading. Copies
//! between the two are asynchronous: updated weights go to the device while the next ones are updated.

use std::collections::BTreeMap;

use models::{Master, Parameter, Parameters};
use tch::{Device, Kind, Tensor, no_grad};
use torch::{AdamWOptions, Bf16Master, begin_copy, host_copy, take_grad, wait_for};

use crate::moments::{self, MomentLevels, Moments, Update};
use crate::{NonFinite, TrainError};

/// Weights updated in f32 before any of them is copied to its layer: about half of a decoder layer.
const UPDATE_CHUNK: usize = 6;
/// What checkpoints call the residual of a [`Bf16Master`].
const RESIDUAL: &str = "rest";

/// Settings that hold for the whole run.
#[derive(Clone, Copy, Debug)]
pub struct OptimizerOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices. Biases and norms (one dimension) have none, as in the Hugging Face trainers.
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm; 0 means no clipping.
    pub max_grad_norm: f64,
    /// Moments in 8 bits, except of small weights.
    pub in_8bit: bool,
}

/// Moments by parameter, and gradients summed over micro-batches.
pub struct Optimizer {
    options: OptimizerOptions,
    states: Vec<State>,
    levels: Option<MomentLevels>,
    /// temporary
    pub group: Option<std::rc::Rc<torch::ranks::Group>>,
}

struct State {
    /// Index into the model's parameters.
    parameter: usize,
    moments: Moments,
    /// f32 scalar: updates this weight has had.
    step: Tensor,
    /// Sum of gradients in f32 of the micro-batches so far.
    gradient: Option<Tensor>,
}

impl Optimizer {
    /// Zero moments for every weight that requires a gradient.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(parameters: &Parameters, options: OptimizerOptions) -> Result<Self, TrainError> {
        let mut states = Vec::new();
        let mut master_device = None;
        for (parameter, p) in parameters.list.iter().enumerate() {
            if p.value.requires_grad() {
                states.push(State {
                    parameter,
                    moments: Moments::new(&p.value.size(), p.master_device(), options.in_8bit)?,
                    step: Tensor::f_zeros([], (Kind::Float, p.master_device()))?,
                    gradient: None,
                });
                master_device = Some(p.master_device());
            }
        }
        let levels = master_device.filter(|_| options.in_8bit).map(MomentLevels::new);
        Ok(Optimizer { options, states, levels: levels.transpose()?, group: None })
    }

    /// Number of scalars that are trained.
    pub fn num_trainable(&self, parameters: &Parameters) -> usize {
        self.states.iter().map(|s| parameters.list[s.parameter].value.numel()).sum()
    }

    /// Adds the gradients to f32 sums. Called after each micro-batch, since sums in bf16 drift and a micro-batch that fails must leave the
    /// sums unchanged.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn collect(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        let mut arriving = Vec::new();
        for (index, state) in self.states.iter().enumerate() {
            let parameter = &parameters.list[state.parameter];
            let master_device = state.step.device();
            match take_grad(&parameter.value)? {
                Some(gradient) if gradient.device() == master_device => {
                    arriving.push((index, gradient))
                }
                Some(gradient) => arriving.push((index, begin_copy(&gradient, master_device)?)),
                None => (),
            }
        }
        self.wait_for(parameters);
        for (index, gradient) in arriving {
            match &mut self.states[index].gradient {
                Some(sum) => drop(sum.f_add_(&gradient.f_to_kind(Kind::Float)?)?),
                none => *none = Some(gradient.f_to_kind(Kind::Float)?),
            }
        }
        Ok(())
    }

    /// Waits for copies where weights and moments are on different devices.
    fn wait_for(&self, parameters: &Parameters) {
        let devices = self.states.first().map(|state| {
            let device = parameters.list[state.parameter].value.device();
            (state.step.device(), device)
        });
        if let Some((master_device, device)) = devices
            && master_device != device
        {
            wait_for(device);
        }
    }

    /// One update; returns the gradient norm before clipping. Weights without a gradient keep value and moments, as in PyTorch. Gradients
    /// are consumed.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] with a gradient that is not finite; nothing is applied then.
    pub fn step(&mut self, parameters: &Parameters, lr: f64) -> Result<f64, TrainError> {
        no_grad(|| {
            self.collect(parameters)?;
            if let Some(group) = &self.group {
                // temporary
                for state in &mut self.states {
                    let sum = state.gradient.take().unwrap_or_else(|| {
                        parameters.list[state.parameter].value.zeros_like().to_kind(Kind::Float)
                    });
                    group.all_reduce_sum(&sum)?;
                    state.gradient = Some(sum);
                }
            }
            let (active, gradients) = self.take_gradients();
            let norm = global_norm(&gradients)?;
            if !norm.is_finite() {
                let cause = NonFinite {
                    rank: None,
                    quantity: "gradient norm".into(),
                    value: norm,
                    micro_batch: None,
                    weights: self.not_finite(parameters, &active, &gradients)?,
                };
                return Err(TrainError::NonFinite(Box::new(cause)));
            }
            let limit = self.options.max_grad_norm;
            if limit > 0.0 {
                let scale = limit / (norm + 1e-6);
                if scale < 1.0 {
                    for gradient in &gradients {
                        let _ = gradient.shallow_clone().g_mul_scalar_(scale);
                    }
                }
            }
            self.apply(parameters, &active, &gradients, lr)?;
            Ok(norm)
        })
    }

    /// stub
    pub fn reduces_in_rounds(&self) -> bool {
        false
    }
    /// stub
    pub fn reduce_round(&mut self, _: &Parameters) -> Result<(), TrainError> {
        Ok(())
    }

    /// Drops all gradients of a refused step.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn discard(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        for state in &mut self.states {
            state.gradient = None;
            take_grad(&parameters.list[state.parameter].value)?;
        }
        Ok(())
    }

    /// Drops the gradients of a failed pass; the sums stay.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn forget_pass(&self, parameters: &Parameters) -> Result<(), TrainError> {
        for state in &self.states {
            take_grad(&parameters.list[state.parameter].value)?;
        }
        Ok(())
    }

    /// Names of the weights whose gradients are not finite.
    fn not_finite(
        &self,
        parameters: &Parameters,
        active: &[usize],
        gradients: &[Tensor],
    ) -> Result<Vec<String>, TrainError> {
        let mut names = Vec::new();
        for (&index, gradient) in active.iter().zip(gradients) {
            if !bool::try_from(gradient.isfinite().all())? {
                names.push(parameters.list[self.states[index].parameter].name.clone());
            }
        }
        Ok(names)
    }

    fn take_gradients(&mut self) -> (Vec<usize>, Vec<Tensor>) {
        let states = self.states.iter_mut().enumerate();
        states.filter_map(|(index, state)| Some((index, state.gradient.take()?))).unzip()
    }

    fn apply(
        &self,
        parameters: &Parameters,
        active: &[usize],
        gradients: &[Tensor],
        lr: f64,
    ) -> Result<(), TrainError> {
        let parameter = |index: usize| &parameters.list[self.states[index].parameter];
        let mut waiting = Vec::new();
        for (&index, gradient) in active.iter().zip(gradients) {
            if !self.update_bf16_master(parameter(index), index, gradient, lr)? {
                waiting.push((index, gradient));
            }
        }
        for chunk in waiting.chunks(UPDATE_CHUNK) {
            let update = |&(index, gradient): &(usize, _)| -> Result<Update<'_>, TrainError> {
                Ok(Update {
                    weight: parameter(index).master_weight()?,
                    gradient,
                    moments: &self.states[index].moments,
                    step: &self.states[index].step,
                })
            };
            let updates = chunk.iter().map(update).collect::<Result<Vec<_>, _>>()?;
            for decayed in [true, false] {
                let chosen: Vec<&Update<'_>> =
                    updates.iter().filter(|update| is_decayed(&update.weight) == decayed).collect();
                moments::apply(&chosen, self.levels.as_ref(), self.adamw(lr, decayed))?;
            }
            for (&(index, _), update) in chunk.iter().zip(&updates) {
                store(parameter(index), &update.weight)?;
            }
        }
        Ok(())
    }

    fn adamw(&self, lr: f64, decayed: bool) -> AdamWOptions {
        AdamWOptions {
            lr,
            beta1: self.options.beta1,
            beta2: self.options.beta2,
            eps: self.options.eps,
            weight_decay: if decayed { self.options.weight_decay } else { 0.0 },
        }
    }

    /// Updates a weight whose master is in bf16 plus residual on the CPU and whose moments are in f32, without a copy in f32. Returns
    /// whether it was one.
    fn update_bf16_master(
        &self,
        parameter: &Parameter,
        index: usize,
        gradient: &Tensor,
        lr: f64,
    ) -> Result<bool, TrainError> {
        let state = &self.states[index];
        let (Master::Bf16 { residual, host }, Moments::Exact { exp_avg, exp_avg_sq }) =
            (&parameter.master, &state.moments)
        else {
            return Ok(false);
        };
        if residual.device() != Device::Cpu {
            return Ok(false);
        }
        let master = Bf16Master { value: host.as_ref().unwrap_or(&parameter.value), residual };
        let options = self.adamw(lr, is_decayed(&parameter.value));
        master.adamw(gradient, [exp_avg, exp_avg_sq], &state.step, options)?;
        if let Some(host) = host {
            send(host, &parameter.value)?;
        }
        Ok(true)
    }

    /// All that resuming needs, by parameter name: master weights and moments of trained parameters as they are stored. Frozen weights are
    /// in the starting model.
    pub fn state(&self, parameters: &Parameters) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        for state in &self.states {
            let parameter = &parameters.list[state.parameter];
            let name = &parameter.name;
            let (weight, residual) = match &parameter.master {
                Master::Value => (&parameter.value, None),
                Master::F32(master) => (master, None),
                Master::Bf16 { residual, host } => {
                    (host.as_ref().unwrap_or(&parameter.value), Some(residual))
                }
            };
            out.push((format!("weight/{name}"), weight.detach()));
            out.extend(residual.map(|x| (format!("{RESIDUAL}/{name}"), x.shallow_clone())));
            for (what, tensor) in state.tensors() {
                out.push((format!("{what}/{name}"), tensor.shallow_clone()));
            }
        }
        out
    }

    /// Restores what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// [`TrainError::State`] naming a tensor that is missing or has another shape.
    pub fn restore(
        &mut self,
        parameters: &Parameters,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), TrainError> {
        no_grad(|| {
            for state in &self.states {
                let parameter = &parameters.list[state.parameter];
                let name = &parameter.name;
                let weight = parameter.master_weight()?;
                copy_saved(saved, &format!("weight/{name}"), &weight)?;
                if let Some(residual) = saved.get(&format!("{RESIDUAL}/{name}")) {
                    let value = &saved[&format!("weight/{name}")];
                    let saved_weight = Bf16Master { value, residual }.load()?;
                    weight.shallow_clone().f_copy_(&saved_weight)?;
                }
                store(parameter, &weight)?;
                for (what, tensor) in state.tensors() {
                    copy_saved(saved, &format!("{what}/{name}"), tensor)?;
                }
            }
            Ok(())
        })
    }
}

impl State {
    /// The state between updates, by name.
    fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut tensors = self.moments.tensors();
        tensors.push(("step", &self.step));
        tensors
    }
}

/// Stores an f32 weight in its master and in the value that layers compute with.
fn store(parameter: &Parameter, weight: &Tensor) -> Result<(), TrainError> {
    let value = &parameter.value;
    let rounded = match &parameter.master {
        Master::Value => return Ok(()),
        Master::F32(master) => master.f_to_kind(value.kind())?,
        Master::Bf16 { residual, host: None } => {
            return Ok(Bf16Master { value, residual }.store(weight)?);
        }
        Master::Bf16 { residual, host: Some(host) } => {
            Bf16Master { value: host, residual }.store(weight)?;
            host.shallow_clone()
        }
    };
    send(&rounded, value)
}

/// Copies a weight to the value that layers compute with, asynchronously where that is on another device.
fn send(from: &Tensor, value: &Tensor) -> Result<(), TrainError> {
    let device = value.device();
    if from.device() == device {
        value.detach().f_copy_(from)?;
    } else {
        let staged = host_copy(from, device)?;
        value.detach().f_copy_(&begin_copy(&staged, device)?)?;
    }
    Ok(())
}

/// Matrices have weight decay, biases and norms have none.
fn is_decayed(weight: &Tensor) -> bool {
    weight.dim() > 1
}

fn copy_saved(
    saved: &BTreeMap<String, Tensor>,
    name: &str,
    into: &Tensor,
) -> Result<(), TrainError> {
    let Some(from) = saved.get(name) else {
        let cause = format!(
            "no `{name}`\nhint: a weight frozen so far has no moments, and those of another --optim do not fit; \
             start another run with --model_name_or_path at the checkpoint"
        );
        return Err(TrainError::State { cause });
    };
    if from.size() != into.size() {
        let cause = format!("`{name}`: expected {:?}, got {:?}", into.size(), from.size());
        return Err(TrainError::State { cause });
    }
    into.detach().copy_(from);
    Ok(())
}

fn global_norm(gradients: &[Tensor]) -> Result<f64, TrainError> {
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let norms: Vec<Tensor> = gradients.iter().map(|g| g.norm()).collect();
    Ok(f64::try_from(Tensor::stack(&norms, 0).norm())?)
}
