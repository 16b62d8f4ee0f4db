//! AdamW over a model's f32 master weights, whatever the compute type; moments in f32 or 8 bits.
//!
//! Gradient sums, moments and the update are on the device of the masters: the compute device, or host memory with offloading. Copies
//! between the two are asynchronous: updated weights go to the device while the next ones are updated.
//!
//! Over several ranks the update is that of the sum of their gradients. At stage 0 each rank makes all of it. At stage 2 each keeps exact weights,
//! moments and sums of what it owns alone (`shards`), updates that, and gets the rest of the weights from the others.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use config::ZeroStage;
use models::{Master, ModelError, Parameter, Parameters};
use tch::{Device, Kind, Tensor, no_grad};
use torch::ranks::Group;
use torch::{AdamWOptions, BLOCK, Bf16Master, Written, begin_copy, host_copy, take_grad, wait_for};

use crate::moments::{self, CODES, MomentLevels, Moments, SCALES, Update};
use crate::shards::buckets::{Buckets, numbers};
use crate::shards::layout::{BUCKET, Owned, blocks};
use crate::shards::pieces::{self, piece_name};
use crate::shards::reduction::Reduction;
use crate::shards::saved::SavedTensors;
use crate::{NonFinite, TrainError};

/// Weights updated in f32 before any of them is copied to its layer: about half of a decoder layer.
const UPDATE_CHUNK: usize = 6;
/// What checkpoints call the weight, the residual of a [`Bf16Master`], and the number of updates.
const WEIGHT: &str = "weight";
const RESIDUAL: &str = "rest";
const STEP: &str = "step";
/// The files of the state.
pub(crate) const FILES: &str = "optimizer";

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
    /// The trained weights: indices into the model's parameters.
    trained: Vec<usize>,
    /// Of each trained weight in this order; at stage 2 over several ranks, of each range that this rank owns.
    states: Vec<State>,
    levels: Option<MomentLevels>,
    /// The device of exact weights and moments.
    master_device: Device,
    /// `None` on one rank.
    reduction: Option<Reduction>,
}

struct State {
    /// Index into the model's parameters.
    parameter: usize,
    /// What it is of, in the flat parameter.
    range: Range<i64>,
    /// The range as a weight of its own, whose value is a view; `None` where it is the whole parameter.
    own: Option<Parameter>,
    is_decayed: bool,
    moments: Moments,
    /// f32 scalar: updates this weight has had.
    step: Tensor,
    /// Sum of gradients in f32 of the micro-batches so far.
    gradient: Option<Tensor>,
}

impl Optimizer {
    /// [`Optimizer::new`] of one rank.
    ///
    /// # Errors
    /// Out of memory.
    pub fn alone(
        parameters: &mut Parameters,
        options: OptimizerOptions,
    ) -> Result<Self, TrainError> {
        Self::new(parameters, options, Rc::new(Group::alone()), ZeroStage::Zero)
    }

    /// Zero moments for every weight that requires a gradient. At [`ZeroStage::Two`] over several ranks, moments of what this rank owns alone; the
    /// exact weights leave `parameters`.
    ///
    /// # Errors
    /// Out of memory; exact weights in host memory that each rank would have all of.
    pub fn new(
        parameters: &mut Parameters,
        options: OptimizerOptions,
        group: Rc<Group>,
        stage: ZeroStage,
    ) -> Result<Self, TrainError> {
        Self::with_buckets(parameters, options, (group, stage), BUCKET)
    }

    /// [`Optimizer::new`] with buckets of `capacity` numbers.
    pub(crate) fn with_buckets(
        parameters: &mut Parameters,
        options: OptimizerOptions,
        (group, stage): (Rc<Group>, ZeroStage),
        capacity: i64,
    ) -> Result<Self, TrainError> {
        let list = parameters.list.iter().enumerate();
        let trained: Vec<usize> =
            list.filter(|(_, p)| p.value.requires_grad()).map(|(index, _)| index).collect();
        let first = trained.first().map(|&index| &parameters.list[index]);
        let (device, master_device) =
            first.map_or((Device::Cpu, Device::Cpu), |p| (p.value.device(), p.master_device()));
        let num_ranks = group.size();
        let reduction = (num_ranks > 1).then(|| {
            let numels = trained.iter().map(|&index| parameters.list[index].value.numel() as i64);
            let buckets = Buckets::new(&numels.collect::<Vec<_>>(), group, capacity);
            Reduction::new(buckets, trained.len(), stage, device)
        });
        let is_whole = reduction.as_ref().is_some_and(|reduction| !reduction.is_sharded());
        if is_whole && parameters.lora.is_none() && first.is_some_and(is_offloaded) {
            let cause = format!(
                "at stage 0 each of the {num_ranks} ranks would keep all exact weights and moments in host memory\nhint: \
                 --zero_stage 2 keeps them once"
            );
            return Err(TrainError::Setting { name: "offload_optimizer", cause });
        }
        let states = match reduction.as_ref().filter(|reduction| reduction.is_sharded()) {
            Some(reduction) => shards(parameters, &trained, reduction, options.in_8bit)?,
            None => {
                let state = |&index: &usize| {
                    let p = &parameters.list[index];
                    let numbers = p.value.numel() as i64;
                    let in_8bit = options.in_8bit && moments::are_in_8bit(numbers);
                    State::new(index, 0..numbers, p, in_8bit)
                };
                trained.iter().map(state).collect::<Result<_, _>>()?
            }
        };
        let has_levels = options.in_8bit && !trained.is_empty();
        let levels = has_levels.then(|| MomentLevels::new(master_device)).transpose()?;
        Ok(Optimizer { options, trained, states, levels, master_device, reduction })
    }

    /// Number of scalars that are trained.
    pub fn num_trainable(&self, parameters: &Parameters) -> usize {
        self.trained.iter().map(|&index| parameters.list[index].value.numel()).sum()
    }

    /// Whether this rank holds a part of the state alone.
    pub fn is_sharded(&self) -> bool {
        self.reduction.as_ref().is_some_and(Reduction::is_sharded)
    }

    /// Adds the gradients to f32 sums. Called after each micro-batch, since sums in bf16 drift and a micro-batch that fails must leave the
    /// sums unchanged.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn collect(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        if let Some(reduction) = self.reduction.as_mut().filter(|reduction| reduction.is_sharded())
        {
            for (item, &index) in self.trained.iter().enumerate() {
                if let Some(gradient) = take_grad(&parameters.list[index].value)? {
                    reduction.keep(item, gradient)?;
                }
            }
            return Ok(());
        }
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

    /// Sums what was collected since the last round over ranks, and keeps what this rank owns; at stage 0 and on one rank nothing happens.
    /// Collective: a rank that collected nothing adds zeros.
    ///
    /// # Errors
    /// Another rank's failure; libtorch's own.
    pub fn reduce_round(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        self.collect(parameters)?;
        match self.reduction.as_mut().filter(|reduction| reduction.is_sharded()) {
            Some(reduction) => no_grad(|| reduction.round(self.master_device)),
            None => Ok(()),
        }
    }

    /// Waits for copies where weights and moments are on different devices.
    fn wait_for(&self, parameters: &Parameters) {
        let device = self.trained.first().map(|&index| parameters.list[index].value.device());
        if let Some(device) = device.filter(|device| *device != self.master_device) {
            wait_for(device);
        }
    }

    /// One update by the sum of all ranks' gradients; returns its norm before clipping. Weights without a gradient on any rank keep value and
    /// moments, as in PyTorch. Gradients are consumed. Collective.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] with a gradient that is not finite; nothing is applied then, on any rank. Another rank's failure.
    pub fn step(&mut self, parameters: &Parameters, lr: f64) -> Result<f64, TrainError> {
        no_grad(|| {
            self.collect(parameters)?;
            let (active, gradients) = self.take_gradients(parameters)?;
            let norm = self.finite_norm(parameters, &active, &gradients)?;
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
            self.share_weights(parameters)?;
            Ok(norm)
        })
    }

    /// The norm of all ranks' gradients.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`].
    fn finite_norm(
        &self,
        parameters: &Parameters,
        active: &[usize],
        gradients: &[Tensor],
    ) -> Result<f64, TrainError> {
        let squares = match &self.reduction {
            Some(reduction) => Some(self.squares(reduction, active, gradients)?),
            None => None,
        };
        let norm = match &squares {
            Some(squares) => squares.iter().map(|(_, square)| square).sum::<f64>().sqrt(),
            None => global_norm(gradients)?,
        };
        // One rank has the norm in f32.
        if norm.is_finite() && (norm as f32).is_finite() {
            return Ok(norm);
        }
        let weights = match squares {
            Some(squares) => {
                let bad = squares.into_iter().filter(|(_, square)| !square.is_finite());
                let mut items: Vec<usize> = bad.map(|(item, _)| item).collect();
                items.sort();
                items.dedup();
                let name = |item: usize| parameters.list[self.trained[item]].name.clone();
                items.into_iter().map(name).collect()
            }
            None => self.not_finite(parameters, active, gradients)?,
        };
        let quantity = "gradient norm";
        let quantity = quantity.into();
        let cause = NonFinite { rank: None, quantity, value: norm, micro_batch: None, weights };
        Err(TrainError::NonFinite(Box::new(cause)))
    }

    /// Sums of squares over what each rank owns, with the item that it is of.
    fn squares(
        &self,
        reduction: &Reduction,
        active: &[usize],
        gradients: &[Tensor],
    ) -> Result<Vec<(usize, f64)>, TrainError> {
        let of = |state: usize| active.binary_search(&state).ok().map(|found| &gradients[found]);
        reduction.squares(|_, index, owned: &Owned| match reduction.is_sharded() {
            true => Ok(of(index).map(Tensor::shallow_clone)),
            false => of(owned.slice.item).map(|whole| numbers(whole, &owned.slice)).transpose(),
        })
    }

    /// Makes weights whole on all ranks after each changed what it owns. Collective; at stage 0 and on one rank nothing happens.
    ///
    /// # Errors
    /// Another rank's failure; libtorch's own.
    pub(crate) fn share_weights(&self, parameters: &Parameters) -> Result<(), TrainError> {
        let Some(reduction) = self.reduction.as_ref().filter(|reduction| reduction.is_sharded())
        else {
            return Ok(());
        };
        let Some(&first) = self.trained.first() else { return Ok(()) };
        let value = |item: usize| &parameters.list[self.trained[item]].value;
        let compute = (parameters.list[first].value.kind(), parameters.list[first].value.device());
        no_grad(|| {
            let own =
                |state: usize| Ok(self.states[state].weight(parameters).value.shallow_clone());
            reduction.buckets.gather(compute, own, |slice, whole| {
                numbers(value(slice.item), slice)?.f_copy_(whole)?;
                Ok(())
            })
        })
    }

    /// The exact weight of a parameter, whole. At stage 2 over several ranks collective, and a new tensor.
    ///
    /// # Errors
    /// Another rank's failure; out of memory.
    pub fn exact_weight(&self, parameter: &Parameter) -> Result<Tensor, TrainError> {
        let sharded = matches!(parameter.master, Master::Sharded);
        let Some(reduction) = self.reduction.as_ref().filter(|_| sharded) else {
            return Ok(parameter.master_weight()?);
        };
        no_grad(|| {
            let value = &parameter.value;
            let whole = Tensor::f_zeros(value.size(), (Kind::Int, value.device()))?;
            let flat = whole.f_view([-1])?;
            for state in &self.states {
                let own = state.own.as_ref().filter(|own| own.name == parameter.name);
                if let Some(own) = own {
                    let bits = own.master_weight()?.f_view_dtype(Kind::Int)?;
                    let Range { start, end } = state.range;
                    flat.f_narrow(0, start, end - start)?.f_copy_(&bits)?;
                }
            }
            // Bits, as zeros of the others would change the sign of -0.0.
            reduction.buckets.group.all_reduce_sum(&flat)?;
            Ok(whole.f_view_dtype(Kind::Float)?)
        })
    }

    /// Drops all gradients of a refused step.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn discard(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        for state in &mut self.states {
            state.gradient = None;
        }
        if let Some(reduction) = &mut self.reduction {
            reduction.discard();
        }
        self.forget_pass(parameters)
    }

    /// Drops the gradients of a failed pass; the sums stay.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn forget_pass(&self, parameters: &Parameters) -> Result<(), TrainError> {
        for &index in &self.trained {
            take_grad(&parameters.list[index].value)?;
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

    /// The gradients, summed over ranks, by state. Collective.
    fn take_gradients(
        &mut self,
        parameters: &Parameters,
    ) -> Result<(Vec<usize>, Vec<Tensor>), TrainError> {
        let gradients = match &mut self.reduction {
            Some(reduction) if reduction.is_sharded() => {
                reduction.own_gradients(self.master_device)?
            }
            reduction => {
                let mut gradients: Vec<Option<Tensor>> =
                    self.states.iter_mut().map(|state| state.gradient.take()).collect();
                if let Some(reduction) = reduction {
                    let (trained, device) = (&self.trained, self.master_device);
                    let shape = |item: usize| parameters.list[trained[item]].value.size();
                    reduction.reduce_whole(&mut gradients, |item| (shape(item), device))?;
                }
                gradients
            }
        };
        let found = gradients.into_iter().enumerate();
        Ok(found.filter_map(|(index, gradient)| Some((index, gradient?))).unzip())
    }

    fn apply(
        &self,
        parameters: &Parameters,
        active: &[usize],
        gradients: &[Tensor],
        lr: f64,
    ) -> Result<(), TrainError> {
        let parameter = |index: usize| self.states[index].weight(parameters);
        let mut waiting = Vec::new();
        for (&index, gradient) in active.iter().zip(gradients) {
            if !self.update_bf16_master(parameter(index), index, gradient, lr)? {
                waiting.push((index, gradient));
            }
        }
        for chunk in waiting.chunks(UPDATE_CHUNK) {
            let update = |&(index, gradient): &(usize, _)| -> Result<Update<'_>, TrainError> {
                let State { moments, step, .. } = &self.states[index];
                let weight = parameter(index).master_weight()?;
                Ok(Update { weight, gradient, moments, step })
            };
            let updates = chunk.iter().map(update).collect::<Result<Vec<_>, _>>()?;
            for decayed in [true, false] {
                let of_kind = |&(index, _): &(usize, _)| self.states[index].is_decayed == decayed;
                let pairs = chunk.iter().zip(&updates);
                let chosen: Vec<&Update<'_>> =
                    pairs.filter(|(state, _)| of_kind(state)).map(|(_, update)| update).collect();
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
        let options = self.adamw(lr, state.is_decayed);
        master.adamw(gradient, [exp_avg, exp_avg_sq], &state.step, options)?;
        if let Some(host) = host {
            send(host, &parameter.value)?;
        }
        Ok(true)
    }

    /// All that resuming needs, by parameter name: master weights and moments of trained parameters as they are stored. Frozen weights are
    /// in the starting model. At stage 2 over several ranks what this rank owns, flat, with the name of a piece.
    pub fn state(&self, parameters: &Parameters) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        for state in &self.states {
            let parameter = state.weight(parameters);
            let (weight, residual) = match &parameter.master {
                Master::Value | Master::Sharded => (&parameter.value, None),
                Master::F32(master) => (master, None),
                Master::Bf16 { residual, host } => {
                    (host.as_ref().unwrap_or(&parameter.value), Some(residual))
                }
            };
            let mut tensors = vec![(WEIGHT, weight)];
            tensors.extend(residual.map(|residual| (RESIDUAL, residual)));
            tensors.extend(state.tensors());
            for (what, tensor) in tensors {
                let key = format!("{what}/{}", parameter.name);
                match state.own {
                    None => out.push((key, tensor.detach())),
                    // One number of the whole parameter.
                    Some(_) if what == STEP && state.range.start > 0 => {}
                    Some(_) => out.push((piece_name(&key, state.start_of(what)), tensor.detach())),
                }
            }
        }
        out
    }

    /// Writes the state to `folder`: to one file, or at stage 2 over several ranks a piece of each and an index, and all learn of all files.
    /// Collective then.
    ///
    /// # Errors
    /// A file that cannot be written, here or by another rank.
    pub(crate) fn write(
        &self,
        parameters: &Parameters,
        folder: &Path,
    ) -> Result<Vec<Written>, TrainError> {
        self.write_as(folder, FILES, &self.state(parameters))
    }

    /// [`Optimizer::write`] of other tensors that ranks hold as they hold the state.
    pub(crate) fn write_as(
        &self,
        folder: &Path,
        stem: &str,
        tensors: &[(String, Tensor)],
    ) -> Result<Vec<Written>, TrainError> {
        match self.reduction.as_ref().filter(|reduction| reduction.is_sharded()) {
            Some(reduction) => pieces::write(folder, stem, &reduction.buckets.group, tensors),
            None => {
                let path = folder.join(pieces::whole_file(stem));
                Ok(vec![torch::write_tensors(&path, tensors)?])
            }
        }
    }

    /// Restores what ranks, as many as there were, wrote of [`Optimizer::state`]. At stage 2 over several ranks, [`Optimizer::share_weights`] is to
    /// follow on all.
    ///
    /// # Errors
    /// [`TrainError::State`] naming a tensor that is missing or has another shape; [`TrainError::Damaged`].
    pub(crate) fn restore(
        &mut self,
        parameters: &Parameters,
        saved: &SavedTensors,
    ) -> Result<(), TrainError> {
        no_grad(|| {
            for state in &self.states {
                let parameter = state.weight(parameters);
                let shape = parameters.list[state.parameter].value.size();
                let weight = parameter.master_weight()?;
                let read = |what: &str, tensor: &Tensor| -> Result<Tensor, TrainError> {
                    let range = (state.start_of(what), tensor.numel() as i64);
                    let key = format!("{what}/{}", parameter.name);
                    let read = saved.read(&key, &whole_shape(what, &shape), range)?;
                    Ok(read.f_view(tensor.size().as_slice())?)
                };
                let mut exact = read(WEIGHT, &weight)?;
                if saved.contains(&format!("{RESIDUAL}/{}", parameter.name)) {
                    let residual = read(RESIDUAL, &weight)?;
                    exact = Bf16Master { value: &exact, residual: &residual }.load()?;
                }
                weight.shallow_clone().f_copy_(&exact)?;
                store(parameter, &weight)?;
                for (what, tensor) in state.tensors() {
                    tensor.detach().f_copy_(&read(what, tensor)?)?;
                }
            }
            Ok(())
        })
    }
}

impl State {
    /// Zero moments of `weight`, a `range` of a parameter. `in_8bit` for weights that are large enough.
    fn new(
        parameter: usize,
        range: Range<i64>,
        weight: &Parameter,
        in_8bit: bool,
    ) -> Result<Self, TrainError> {
        let device = weight.master_device();
        Ok(State {
            parameter,
            range,
            own: None,
            is_decayed: is_decayed(&weight.value),
            moments: Moments::new(&weight.value.size(), device, in_8bit)?,
            step: Tensor::f_zeros([], (Kind::Float, device))?,
            gradient: None,
        })
    }

    /// What is updated.
    fn weight<'a>(&'a self, parameters: &'a Parameters) -> &'a Parameter {
        self.own.as_ref().unwrap_or(&parameters.list[self.parameter])
    }

    /// The state between updates, by name.
    fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut tensors = self.moments.tensors();
        tensors.push((STEP, &self.step));
        tensors
    }

    /// Where a tensor of the state begins in that of the whole parameter.
    fn start_of(&self, what: &str) -> i64 {
        match what {
            STEP => 0,
            _ if what.ends_with(SCALES) => self.range.start / BLOCK,
            _ => self.range.start,
        }
    }
}

/// The shape of a tensor of the state of a whole parameter that has `shape`.
fn whole_shape(what: &str, shape: &[i64]) -> Vec<i64> {
    let blocks = || blocks(shape.iter().product());
    match what {
        STEP => Vec::new(),
        _ if what.ends_with(CODES) => vec![blocks() * BLOCK],
        _ if what.ends_with(SCALES) => vec![blocks()],
        _ => shape.to_vec(),
    }
}

/// States of what this rank owns; the exact weights leave `parameters`.
fn shards(
    parameters: &mut Parameters,
    trained: &[usize],
    reduction: &Reduction,
    in_8bit: bool,
) -> Result<Vec<State>, TrainError> {
    let mut states = Vec::new();
    for Owned { slice, .. } in reduction.buckets.own() {
        let index = trained[slice.item];
        let whole = &parameters.list[index];
        let part = |tensor: &Tensor| {
            let part = numbers(tensor, &slice)?;
            // A copy, so that the whole can go.
            Ok::<_, TrainError>(part.f_to_device_(part.device(), part.kind(), false, true)?)
        };
        let master = match &whole.master {
            Master::Value => Master::Value,
            Master::F32(master) => Master::F32(part(master)?),
            Master::Bf16 { residual, host } => Master::Bf16 {
                residual: part(residual)?,
                host: host.as_ref().map(part).transpose()?,
            },
            Master::Sharded => return Err(ModelError::Sharded { name: whole.name.clone() }.into()),
        };
        let own = Parameter {
            name: whole.name.clone(),
            part: whole.part,
            is_adapter: whole.is_adapter,
            value: numbers(&whole.value, &slice)?,
            master,
        };
        let range = slice.start..slice.start + slice.len;
        let in_8bit = in_8bit && moments::are_in_8bit(whole.value.numel() as i64);
        let is_decayed = is_decayed(&whole.value);
        let state = State::new(index, range, &own, in_8bit)?;
        states.push(State { own: Some(own), is_decayed, ..state });
    }
    for &index in trained {
        parameters.list[index].master = Master::Sharded;
    }
    Ok(states)
}

/// Stores an f32 weight in its master and in the value that layers compute with.
fn store(parameter: &Parameter, weight: &Tensor) -> Result<(), TrainError> {
    let value = &parameter.value;
    let rounded = match &parameter.master {
        Master::Value | Master::Sharded => return Ok(()),
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

/// Whether the exact weight lies in host memory, beside a value that might hold it.
fn is_offloaded(parameter: &Parameter) -> bool {
    match &parameter.master {
        Master::Value | Master::Sharded => false,
        Master::F32(master) => {
            parameter.value.kind() == Kind::Float || master.device() != parameter.value.device()
        }
        Master::Bf16 { host, .. } => host.is_some(),
    }
}

/// Matrices have weight decay, biases and norms have none.
fn is_decayed(weight: &Tensor) -> bool {
    weight.dim() > 1
}

fn global_norm(gradients: &[Tensor]) -> Result<f64, TrainError> {
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let norms: Vec<Tensor> = gradients.iter().map(|g| g.norm()).collect();
    Ok(f64::try_from(Tensor::stack(&norms, 0).norm())?)
}
