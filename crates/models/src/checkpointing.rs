//! Layer-wise recomputation: keep each stage's input, run the stage again on the way back.
//!
//! With recomputation off the checkpointing is transparent: stages build one ordinary autograd graph.

use tch::{Tensor, no_grad};

/// A stage to run again.
struct Stage<'a> {
    input: Tensor,
    /// Whether a weight of an earlier stage waits for the gradient of `input`.
    passes_on: bool,
    run: Box<dyn Fn(&Tensor) -> Tensor + 'a>,
}

/// A chain of stages, each one tensor in and one out.
pub struct Checkpointing<'a> {
    stages: Option<Vec<Stage<'a>>>,
}

impl<'a> Checkpointing<'a> {
    /// A checkpointing that recomputes, or one that keeps the graph.
    pub fn new(recompute: bool) -> Self {
        Checkpointing { stages: recompute.then(Vec::new) }
    }

    /// Runs a stage on the output of the one before.
    pub fn run(&mut self, input: &Tensor, stage: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
        let Some(stages) = &mut self.stages else {
            return stage(input);
        };
        let input = input.detach();
        let passes_on = !stages.is_empty();
        let output = if passes_on {
            no_grad(|| stage(&input))
        } else {
            // Only a graph tells whether the stage has weights to train. Frozen stages at the
            // beginning (a vision tower) are forgotten: nobody asks for their gradient.
            let output = stage(&input);
            if !output.requires_grad() {
                return output;
            }
            output.detach()
        };
        stages.push(Stage { input, passes_on, run: Box::new(stage) });
        output
    }

    /// Computes the loss from the last stage's output and accumulates gradients into every leaf.
    /// `loss` returns the scalar to differentiate and whatever else it computed.
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
            let input = stage.input.set_requires_grad(stage.passes_on);
            let output = (stage.run)(&input);
            (&output * &upstream.detach()).sum(output.kind()).backward();
            upstream = input.grad();
        }
        result
    }
}
