//! Activation (gradient) checkpointing: keeps each stage's input and recomputes the stage in the backward pass.
//!
//! Without recomputation stages build one ordinary autograd graph.

use tch::{Tensor, no_grad};

/// A stage to recompute.
struct Stage<'a> {
    input: Tensor,
    /// Whether an earlier stage needs the gradient of `input`.
    needs_input_grad: bool,
    run: Box<dyn Fn(&Tensor) -> Tensor + 'a>,
}

/// A chain of stages, each one tensor in and one out.
pub struct Checkpointing<'a> {
    stages: Option<Vec<Stage<'a>>>,
}

impl<'a> Checkpointing<'a> {
    /// With `recompute`, keeps inputs only; else keeps the graph.
    pub fn new(recompute: bool) -> Self {
        Checkpointing { stages: recompute.then(Vec::new) }
    }

    /// Runs a stage on the output of the one before.
    pub fn run(&mut self, input: &Tensor, stage: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
        let Some(stages) = &mut self.stages else {
            return stage(input);
        };
        let input = input.detach();
        let needs_input_grad = !stages.is_empty();
        let output = if needs_input_grad {
            no_grad(|| stage(&input))
        } else {
            // Only a graph tells whether the stage has weights to train. Frozen stages at the beginning (a vision tower) are not kept:
            // they need no gradient.
            let output = stage(&input);
            if !output.requires_grad() {
                return output;
            }
            output.detach()
        };
        stages.push(Stage { input, needs_input_grad, run: Box::new(stage) });
        output
    }

    /// Backward pass: computes the loss from the last stage's output and accumulates gradients into every leaf. `loss` returns the
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
        let mut upstream = leaf.grad();
        for stage in stages.into_iter().rev() {
            if !upstream.defined() {
                break;
            }
            let input = stage.input.set_requires_grad(stage.needs_input_grad);
            let output = (stage.run)(&input);
            (&output * &upstream.detach()).sum(output.kind()).backward();
            upstream = input.grad();
        }
        result
    }
}
