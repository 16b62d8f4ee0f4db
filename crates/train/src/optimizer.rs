//! AdamW over a model's weights: f32 moments and masters whatever the compute type.

use std::collections::BTreeMap;

use models::Parameters;
use tch::{Kind, Tensor, no_grad};
use torch::{AdamWOptions, fused_adamw, take_grad};

use crate::{NonFinite, TrainError};

/// Settings that hold for the whole run.
#[derive(Clone, Copy, Debug)]
pub struct OptimizerOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on matrices: biases and norms (one dimension) are left alone, as the
    /// Hugging Face trainers do.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0 leaves them.
    pub max_grad_norm: f64,
}

/// Moments by parameter, and gradients summed over micro-batches.
pub struct Optimizer {
    options: OptimizerOptions,
    states: Vec<State>,
}

struct State {
    /// Index into the model's parameters.
    parameter: usize,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// f32 scalar: updates this weight has had.
    step: Tensor,
    /// Sum of gradients in f32 of the micro-batches so far.
    gradient: Option<Tensor>,
}

impl Optimizer {
    /// Zero moments for every weight that requires a gradient.
    pub fn new(parameters: &Parameters, options: OptimizerOptions) -> Self {
        let trainable = parameters
            .list
            .iter()
            .enumerate()
            .filter(|(_, p)| p.value.requires_grad());
        let states = trainable
            .map(|(parameter, p)| {
                let zeros =
                    || Tensor::zeros(p.value.size().as_slice(), (Kind::Float, p.value.device()));
                State {
                    parameter,
                    exp_avg: zeros(),
                    exp_avg_sq: zeros(),
                    step: Tensor::zeros([], (Kind::Float, p.value.device())),
                    gradient: None,
                }
            })
            .collect();
        Optimizer { options, states }
    }

    /// Number of scalars that are trained.
    pub fn num_trainable(&self, parameters: &Parameters) -> usize {
        self.states
            .iter()
            .map(|s| parameters.list[s.parameter].value.numel())
            .sum()
    }

    /// Moves gradients into f32 sums; called after each micro-batch, since bf16 sums drift, and since a
    /// micro-batch that fails half-way must leave the sums alone.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn collect(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        for state in &mut self.states {
            let Some(gradient) = take_grad(&parameters.list[state.parameter].value)? else {
                continue;
            };
            match &mut state.gradient {
                Some(sum) => drop(sum.g_add_(&gradient.to_kind(Kind::Float))),
                None => state.gradient = Some(gradient.to_kind(Kind::Float)),
            }
        }
        Ok(())
    }

    /// One update, and the gradient norm before clipping. Weights without a gradient keep value and
    /// moments, as in PyTorch. Gradients are used up.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] with a gradient that is not finite; nothing is applied then.
    pub fn step(&mut self, parameters: &Parameters, lr: f64) -> Result<f64, TrainError> {
        no_grad(|| {
            self.collect(parameters)?;
            let (active, gradients) = self.take_gradients();
            let norm = global_norm(&gradients)?;
            if !norm.is_finite() {
                let cause = NonFinite {
                    quantity: "gradient norm",
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

    /// Forgets all gradients of a step that is not to be applied.
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

    /// Forgets the gradients of a pass that did not come to its end; the sums stay.
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
        states
            .filter_map(|(index, state)| Some((index, state.gradient.take()?)))
            .unzip()
    }

    fn apply(
        &self,
        parameters: &Parameters,
        active: &[usize],
        gradients: &[Tensor],
        lr: f64,
    ) -> Result<(), TrainError> {
        let weight = |state: &State| parameters.list[state.parameter].exact();
        let is_matrix = |index: usize| weight(&self.states[index]).dim() > 1;
        for (decayed, weight_decay) in [(true, self.options.weight_decay), (false, 0.0)] {
            let chosen: Vec<usize> = (0..active.len())
                .filter(|&i| is_matrix(active[i]) == decayed)
                .collect();
            let pick = |of: &dyn Fn(&State) -> Tensor| -> Vec<Tensor> {
                chosen
                    .iter()
                    .map(|&i| of(&self.states[active[i]]))
                    .collect()
            };
            let gradients: Vec<Tensor> = chosen
                .iter()
                .map(|&i| gradients[i].shallow_clone())
                .collect();
            let options = AdamWOptions {
                lr,
                beta1: self.options.beta1,
                beta2: self.options.beta2,
                eps: self.options.eps,
                weight_decay,
            };
            fused_adamw(
                &pick(&weight),
                &gradients,
                &pick(&|s| s.exp_avg.shallow_clone()),
                &pick(&|s| s.exp_avg_sq.shallow_clone()),
                &pick(&|s| s.step.shallow_clone()),
                options,
            )?;
        }
        for &index in active {
            let parameter = &parameters.list[self.states[index].parameter];
            if let Some(master) = &parameter.master {
                parameter.value.detach().copy_(master);
            }
        }
        Ok(())
    }

    /// Everything that resuming needs, by parameter name: exact weights and moments of what is
    /// trained. What is frozen lies where the run began.
    pub fn state(&self, parameters: &Parameters) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        for state in &self.states {
            let parameter = &parameters.list[state.parameter];
            let name = &parameter.name;
            out.push((format!("weight/{name}"), parameter.exact()));
            for (what, tensor) in state.moments() {
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
                copy_saved(saved, &format!("weight/{name}"), &parameter.exact())?;
                if let Some(master) = &parameter.master {
                    parameter.value.detach().copy_(master);
                }
                for (what, tensor) in state.moments() {
                    copy_saved(saved, &format!("{what}/{name}"), tensor)?;
                }
            }
            Ok(())
        })
    }
}

impl State {
    fn moments(&self) -> [(&'static str, &Tensor); 3] {
        [
            ("exp_avg", &self.exp_avg),
            ("exp_avg_sq", &self.exp_avg_sq),
            ("step", &self.step),
        ]
    }
}

fn copy_saved(
    saved: &BTreeMap<String, Tensor>,
    name: &str,
    into: &Tensor,
) -> Result<(), TrainError> {
    let Some(from) = saved.get(name) else {
        let cause = format!(
            "no `{name}`\nhint: a weight frozen so far has no moments; start another run with \
             --model_name_or_path at the checkpoint"
        );
        return Err(TrainError::State { cause });
    };
    if from.size() != into.size() {
        let cause = format!(
            "`{name}`: expected {:?}, got {:?}",
            into.size(),
            from.size()
        );
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
