//! Group relative policy optimisation.

use crate::ranges::{NOT_NEGATIVE, POSITIVE, demand};
use crate::{ConfigError, section};

section! {
    /// The algorithm: groups, clipping, divergence.
    pub struct AlgorithmSection {
        "policy optimisation" {
            /// Completions of one prompt: the size of a group.
            num_generations: usize = 8,
            /// Optimiser steps on one batch of completions.
            num_iterations: usize = 1,
            /// How far the ratio to the old policy may fall before it is clipped.
            epsilon: f64 = 0.2,
            /// How far it may rise; without it, `epsilon`.
            epsilon_high: Option<f64> = None,
            /// Weight of the divergence from the reference model; 0 needs none.
            beta: f64 = 0.04,
        }
    }
}

impl AlgorithmSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let group = self.num_generations;
        demand(group > 1, "num_generations", group, "at least 2")?;
        demand(self.num_iterations > 0, "num_iterations", 0, POSITIVE)?;
        let not_negative = |key, value: f64| demand(value >= 0.0, key, value, NOT_NEGATIVE);
        not_negative("epsilon", self.epsilon)?;
        not_negative("epsilon_high", self.epsilon_high.unwrap_or_default())?;
        not_negative("beta", self.beta)
    }
}
