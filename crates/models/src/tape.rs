//! Layer-wise recomputation: keep each stage's input, run the stage again on the way back.
//!
//! With recomputation off the tape is transparent: stages build one ordinary autograd graph.

use tch::{Kind, Tensor, no_grad};

type Stage<'a> = Box<dyn Fn(&Tensor) -> Tensor + 'a>;

/// A chain of stages, each one tensor in and one out.
pub struct Tape<'a> {
    stages: Option<Vec<(Tensor, Stage<'a>)>>,
}

impl<'a> Tape<'a> {
    /// A tape that recomputes, or one that keeps the graph.
    pub fn new(recompute: bool) -> Self {
        Tape {
            stages: recompute.then(Vec::new),
        }
    }

    /// Runs a stage.
    pub fn run(&mut self, input: &Tensor, stage: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
        let Some(stages) = &mut self.stages else {
            return stage(input);
        };
        let input = input.detach();
        let output = no_grad(|| stage(&input));
        stages.push((input, Box::new(stage)));
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
        let leaf = output.detach().set_requires_grad(true);
        let (scalar, result) = loss(&leaf);
        scalar.backward();
        let mut upstream = leaf.grad();
        for (input, stage) in stages.into_iter().rev() {
            if !upstream.defined() {
                break;
            }
            let differentiable = matches!(
                input.kind(),
                Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double
            );
            let input = if differentiable {
                input.set_requires_grad(true)
            } else {
                input
            };
            let output = stage(&input);
            // A stage of frozen weights over a constant input has nothing to differentiate.
            if !output.requires_grad() {
                break;
            }
            (&output * &upstream.detach()).sum(output.kind()).backward();
            upstream = input.grad();
        }
        result
    }
}
