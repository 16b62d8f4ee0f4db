//! What the parts of a step take on this machine.

/// Seconds of a pass over a micro-batch, modelled as a fixed cost plus a cost per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Fixed cost.
    pub pass: f64,
    /// Cost per token.
    pub token: f64,
}

impl Line {
    /// Fitted from two measurements of tokens and seconds.
    pub(super) fn through((few, few_secs): (u64, f64), (many, many_secs): (u64, f64)) -> Self {
        let token = ((many_secs - few_secs) / (many - few).max(1) as f64).max(0.0);
        // Noise must not give a negative cost.
        let pass = (many_secs - token * many as f64).max(0.0);
        Line { pass, token }
    }

    /// Seconds of `passes` over `tokens` together.
    pub fn secs(self, passes: u64, tokens: u64) -> f64 {
        self.pass * passes as f64 + self.token * tokens as f64
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Line { pass: self.pass * factor, token: self.token * factor }
    }
}

/// Forward alone, and forward and backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passes {
    /// Without gradient.
    pub forward: Line,
    /// With that of what is trained.
    pub training: Line,
}

impl Passes {
    pub(super) fn times(self, factor: f64) -> Self {
        Passes { forward: self.forward.times(factor), training: self.training.times(factor) }
    }
}

/// Seconds of the vision tower: forward, and as it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tower {
    /// Without gradient.
    pub forward: f64,
    /// With that of the tower, where it is trained.
    pub training: f64,
}

/// Seconds of the parts of a step of the whole model, trained one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Embedding, layers and norm, by packed tokens.
    pub text: Passes,
    /// Head, log-softmax and entropy, by completion tokens.
    pub head: Passes,
    /// The vision tower over the images of a prompt.
    pub vision: Tower,
    /// A decoding step of all concurrent completions.
    pub decoded: f64,
    /// An update, by trained scalar.
    pub update: f64,
}

impl Costs {
    /// The same with a frozen tower.
    pub fn with_frozen_tower(self) -> Self {
        let training = self.vision.forward;
        Costs { vision: Tower { training, ..self.vision }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points() {
        let line = Line::through((10, 2.0), (30, 4.0));
        assert_eq!(line, Line { pass: 1.0, token: 0.1 });
        assert!((line.secs(2, 50) - 7.0).abs() < 1e-12);
        // Noise: the larger took no longer.
        let line = Line::through((10, 2.0), (30, 1.5));
        assert_eq!(line, Line { pass: 1.5, token: 0.0 });
    }
}
