//! Learning rate over the run, as transformers' `get_scheduler` computes it.

use std::f64::consts::PI;

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// Unchanged.
    Constant,
}

/// A schedule over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The rate after warm-up.
    pub peak: f64,
    /// Steps that rise from 0.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// The part of `peak` that half a cosine ends at.
    pub least: f64,
}

impl Schedule {
    /// The rate of the step that comes after `done` steps.
    pub fn learning_rate(&self, done: u64) -> f64 {
        self.peak * self.factor(done)
    }

    fn factor(&self, done: u64) -> f64 {
        if done < self.warmup_steps {
            return done as f64 / self.warmup_steps.max(1) as f64;
        }
        let left = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => self.total_steps.saturating_sub(done) as f64 / left,
            ScheduleKind::Cosine => {
                let progress = (done - self.warmup_steps) as f64 / left;
                let factor = 0.5 * (1.0 + (PI * progress).cos());
                (factor * (1.0 - self.least) + self.least).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind) -> Vec<f64> {
        let schedule = Schedule { kind, peak: 2.0, warmup_steps: 2, total_steps: 6, least: 0.0 };
        (0..7).map(|done| schedule.learning_rate(done)).collect()
    }

    #[test]
    fn rates_by_hand() {
        assert_eq!(rates(ScheduleKind::Linear), [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        assert_eq!(rates(ScheduleKind::Constant), [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        let half_way = Schedule {
            kind: ScheduleKind::Cosine,
            peak: 2.0,
            warmup_steps: 2,
            total_steps: 6,
            least: 0.1,
        };
        let rates_to_a_tenth = [4, 6].map(|done| half_way.learning_rate(done));
        // (1 - 0.1) / 2 + 0.1, and 0.1.
        assert!((rates_to_a_tenth[0] - 2.0 * 0.55).abs() < 1e-12);
        assert!((rates_to_a_tenth[1] - 2.0 * 0.1).abs() < 1e-12);
        let cosine = rates(ScheduleKind::Cosine);
        let expected = [0.0, 1.0, 2.0, 1.0 + 0.5f64.sqrt(), 1.0, 1.0 - 0.5f64.sqrt(), 0.0];
        assert!(cosine.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{cosine:?}");
    }
}
