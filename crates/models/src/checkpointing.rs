//! Activation (gradient) checkpointing: keeps each stage's inputs and recomputes the stage in the backward pass.
//!
//! Without recomputation stages build one ordinary autograd graph.

use tch::{Tensor, no_grad};

/// What goes from one stage to the next: the hidden states first, then what later stages still need.
pub type Tensors = Vec<Tensor>;

/// What a stage computes.
type Run<'a> = dyn Fn(&[Tensor]) -> Tensors + 'a;

/// A stage to recompute.
struct Stage<'a> {
    inputs: Tensors,
    /// Whether an earlier stage needs the gradient of `inputs`.
    needs_input_grad: bool,
    run: Box<Run<'a>>,
}

/// A chain of stages.
pub struct Checkpointing<'a> {
    stages: Option<Vec<Stage<'a>>>,
}

impl<'a> Checkpointing<'a> {
    /// With `recompute`, keeps inputs only; else keeps the graph.
    pub fn new(recompute: bool) -> Self {
        Checkpointing { stages: recompute.then(Vec::new) }
    }

    /// Runs a stage on the outputs of the one before.
    pub fn run_all(
        &mut self,
        inputs: &[Tensor],
        stage: impl Fn(&[Tensor]) -> Tensors + 'a,
    ) -> Tensors {
        let Some(stages) = &mut self.stages else {
            return stage(inputs);
        };
        let inputs: Tensors = inputs.iter().map(Tensor::detach).collect();
        let needs_input_grad = !stages.is_empty();
        let outputs = if needs_input_grad {
            no_grad(|| stage(&inputs))
        } else {
            // Only a graph tells whether the stage has weights to train. Frozen stages at the beginning (a vision tower) are not kept:
            // they need no gradient.
            let outputs = stage(&inputs);
            if !outputs.iter().any(Tensor::requires_grad) {
                return outputs;
            }
            outputs.iter().map(Tensor::detach).collect()
        };
        stages.push(Stage { inputs, needs_input_grad, run: Box::new(stage) });
        outputs
    }

    /// [`Checkpointing::run_all`] of a stage with one tensor in and one out.
    pub fn run(&mut self, input: &Tensor, stage: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
        let mut outputs = self.run_all(&[input.shallow_clone()], move |x| vec![stage(&x[0])]);
        outputs.remove(0)
    }

    /// Backward pass: computes the loss from the last stage's one output and accumulates gradients into every leaf. `loss` returns the
    /// scalar to differentiate and any other result.
    pub fn backward<R>(self, output: &Tensor, loss: impl FnOnce(&Tensor) -> (Tensor, R)) -> R {
        let Some(stages) = self.stages else {
            let (scalar, result) = loss(output);
            scalar.backward();
            return result;
        };
        let leaf = output.detach().set_requires_grad(!stages.is_empty());
        let (scalar, result) = loss(&leaf);
        scalar.backward();
        drop(scalar);
        let mut upstream = vec![leaf.grad()];
        for stage in stages.into_iter().rev() {
            if upstream.iter().all(|gradient| !gradient.defined()) {
                break;
            }
            let leaf = |x: Tensor| {
                let needs_grad = stage.needs_input_grad && x.is_floating_point();
                x.set_requires_grad(needs_grad)
            };
            let inputs: Tensors = stage.inputs.into_iter().map(leaf).collect();
            let outputs = (stage.run)(&inputs);
            let used = outputs.iter().zip(&upstream);
            let used = used.filter(|(output, up)| up.defined() && output.requires_grad());
            let products = used.map(|(output, up)| (output * up.detach()).sum(output.kind()));
            if let Some(scalar) = products.reduce(|a, b| a + b) {
                scalar.backward();
            }
            upstream = inputs.iter().map(Tensor::grad).collect();
        }
        result
    }
}
