//! Rewards to advantages. Pure functions.

use config::{AdvantageEstimator, MultiObjectiveAggregation, ScaleRewards};

use super::kl::KlTerm;

/// Keeps the quotient of an advantage finite.
pub const STD_EPSILON: f64 = 1e-4;

/// How rewards become advantages.
#[derive(Clone, Debug)]
pub struct AdvantageRule {
    /// What is taken off a reward.
    pub estimator: AdvantageEstimator,
    /// What the difference is divided by.
    pub scale: ScaleRewards,
    /// How several rewards become one.
    pub aggregation: MultiObjectiveAggregation,
    /// A weight for each reward.
    pub reward_weights: Vec<f64>,
    /// The divergence from the reference, where it is taken off the reward.
    pub kl: Option<KlTerm>,
}

/// The rewards of a group.
#[derive(Clone, Copy, Debug)]
pub struct GroupRewards<'a> {
    /// `[G]`: weighted sums.
    pub total: &'a [f64],
    /// `[rewards][G]`, unweighted; `None` where a reward does not apply.
    pub per_reward: &'a [Vec<Option<f64>>],
}

impl GroupRewards<'_> {
    /// Indices of the completions that a reward scored; all where single rewards are not known.
    fn scored(&self) -> impl Iterator<Item = usize> {
        let per_reward = self.per_reward;
        (0..self.total.len()).filter(move |&index| {
            per_reward.is_empty() || per_reward.iter().any(|rewards| rewards[index].is_some())
        })
    }
}

impl AdvantageRule {
    /// `[groups][G]`: the advantages of a rollout.
    ///
    /// `kl`, `[groups][G]`, is the divergence of each completion, where it is taken off the reward. A completion that no reward scored has an
    /// advantage of 0 and is in no mean. A group whose rewards are all equal has advantages of exactly 0: subtracting a rounded mean would
    /// leave noise that the division enlarges.
    pub fn advantages(
        &self,
        groups: &[GroupRewards<'_>],
        kl: Option<&[Vec<f64>]>,
    ) -> Vec<Vec<f64>> {
        if self.aggregation == MultiObjectiveAggregation::NormalizeThenSum {
            return self.normalize_then_sum(groups);
        }
        // Only of completions that are scored.
        let rewards: Vec<Vec<f64>> = groups
            .iter()
            .enumerate()
            .map(|(group, rewards)| {
                let beta = self.kl.map_or(0.0, |term| term.beta);
                let off = |index: usize| kl.map_or(0.0, |kl| beta * kl[group][index]);
                rewards.scored().map(|index| rewards.total[index] - off(index)).collect()
            })
            .collect();
        let centred: Vec<Vec<f64>> = rewards.iter().map(|rewards| self.centred(rewards)).collect();
        // Whose deviation divides them.
        let spread = match self.estimator {
            AdvantageEstimator::ReinforcePlusPlus => &centred,
            AdvantageEstimator::Grpo | AdvantageEstimator::Rloo => &rewards,
        };
        let of_batch = mean_and_std(&spread.concat()).1;
        let scaled = |(group, centred): (usize, &Vec<f64>)| {
            let divisor = match self.scale {
                ScaleRewards::None | ScaleRewards::Auto => 1.0,
                ScaleRewards::Group => mean_and_std(&spread[group]).1 + STD_EPSILON,
                ScaleRewards::Batch => of_batch + STD_EPSILON,
            };
            let mut advantages = vec![0.0; groups[group].total.len()];
            for (index, difference) in groups[group].scored().zip(centred) {
                advantages[index] = difference / divisor;
            }
            advantages
        };
        centred.iter().enumerate().map(scaled).collect()
    }

    /// A group's rewards less their baseline.
    fn centred(&self, rewards: &[f64]) -> Vec<f64> {
        if is_zero_spread(rewards) {
            return vec![0.0; rewards.len()];
        }
        let (mean, _) = mean_and_std(rewards);
        let n = rewards.len() as f64;
        let difference = |reward: &f64| match self.estimator {
            // The mean of the others is `(n mean - r) / (n - 1)`.
            AdvantageEstimator::Rloo => (reward - mean) * n / (n - 1.0),
            AdvantageEstimator::Grpo | AdvantageEstimator::ReinforcePlusPlus => reward - mean,
        };
        rewards.iter().map(difference).collect()
    }

    /// GDPO (arXiv 2601.05242): each reward is normalised in its group, then their weighted sum over the batch.
    fn normalize_then_sum(&self, groups: &[GroupRewards<'_>]) -> Vec<Vec<f64>> {
        let of_group = |group: &GroupRewards<'_>| {
            let mut sums = vec![0.0; group.total.len()];
            for (rewards, weight) in group.per_reward.iter().zip(&self.reward_weights) {
                let known: Vec<f64> = rewards.iter().flatten().copied().collect();
                if known.len() < 2 || is_zero_spread(&known) {
                    continue;
                }
                let (mean, std) = mean_and_std(&known);
                for (sum, reward) in sums.iter_mut().zip(rewards) {
                    let normal = reward.map(|reward| (reward - mean) / (std + STD_EPSILON));
                    *sum += weight * normal.unwrap_or_default();
                }
            }
            sums
        };
        let mut advantages: Vec<Vec<f64>> = groups.iter().map(of_group).collect();
        let pairs = groups.iter().zip(&advantages);
        let scored: Vec<f64> =
            pairs.flat_map(|(group, sums)| group.scored().map(|index| sums[index])).collect();
        let (mean, std) = mean_and_std(&scored);
        let no_spread = is_zero_spread(&scored);
        for (group, sums) in groups.iter().zip(&mut advantages) {
            let mut normal = vec![0.0; sums.len()];
            for index in group.scored().filter(|_| !no_spread) {
                normal[index] = (sums[index] - mean) / (std + STD_EPSILON);
            }
            *sums = normal;
        }
        advantages
    }
}

/// Whether a group teaches nothing: all rewards equal (or only one).
pub fn is_zero_spread(rewards: &[f64]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean and standard deviation with n - 1 (0 for fewer than two).
pub fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::kl::LogprobDifference;
    use super::*;

    fn rule(estimator: AdvantageEstimator, scale: ScaleRewards) -> AdvantageRule {
        AdvantageRule {
            estimator,
            scale,
            aggregation: MultiObjectiveAggregation::SumThenNormalize,
            reward_weights: vec![1.0],
            kl: None,
        }
    }

    fn of(rule: &AdvantageRule, groups: &[&[f64]]) -> Vec<Vec<f64>> {
        let groups: Vec<_> =
            groups.iter().map(|total| GroupRewards { total, per_reward: &[] }).collect();
        rule.advantages(&groups, None)
    }

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-9, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn grpo_by_hand() {
        let grpo = |scale| rule(AdvantageEstimator::Grpo, scale);
        // mean 1, deviations -1, 0, 1: std 1
        let group = of(&grpo(ScaleRewards::Group), &[&[0.0, 1.0, 2.0], &[0.0, 1.0, 0.5]]);
        close(&group[0], &[-1.0 / 1.0001, 0.0, 1.0 / 1.0001]);
        close(&group[1], &[-0.5 / 0.5001, 0.5 / 0.5001, 0.0]);
        let batch = of(&grpo(ScaleRewards::Batch), &[&[0.0, 2.0], &[1.0, 1.0]]);
        // Of 0, 2, 1, 1: std sqrt(2 / 3).
        let std = (2.0f64 / 3.0).sqrt() + STD_EPSILON;
        close(&batch[0], &[-1.0 / std, 1.0 / std]);
        assert_eq!(batch[1], [0.0, 0.0]);
        close(&of(&grpo(ScaleRewards::None), &[&[0.0, 2.0]])[0], &[-1.0, 1.0]);
    }

    #[test]
    fn equal_rewards_teach_nothing() {
        // Eight times 0.9 does not subtract to 0 in floating point.
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            for estimator in [
                AdvantageEstimator::Grpo,
                AdvantageEstimator::Rloo,
                AdvantageEstimator::ReinforcePlusPlus,
            ] {
                let advantages = of(&rule(estimator, scale), &[&[0.9; 8], &[0.3]]);
                assert_eq!(advantages, [vec![0.0; 8], vec![0.0]]);
            }
        }
        assert!(!is_zero_spread(&[0.9, 0.9, 0.900_000_1]));
    }

    #[test]
    fn rloo_and_reinforce_plus_plus_by_hand() {
        let rewards: &[f64] = &[1.0, 2.0, 6.0];
        let rloo = of(&rule(AdvantageEstimator::Rloo, ScaleRewards::None), &[rewards]);
        // Less the mean of the two others.
        close(&rloo[0], &[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]);
        let groups: [&[f64]; 2] = [&[0.0, 2.0], &[10.0, 14.0]];
        let rule = rule(AdvantageEstimator::ReinforcePlusPlus, ScaleRewards::Batch);
        // Differences -1, 1, -2, 2: std sqrt(10 / 3), however far the groups' means are from each other.
        let std = (10.0f64 / 3.0).sqrt() + STD_EPSILON;
        close(&of(&rule, &groups).concat(), &[-1.0 / std, 1.0 / std, -2.0 / std, 2.0 / std]);
    }

    #[test]
    fn a_divergence_is_taken_off_the_reward() {
        let kl = KlTerm {
            beta: 0.5,
            estimator: LogprobDifference(config::KlEstimator::K1),
            bias_correction: false,
        };
        let rule =
            AdvantageRule { kl: Some(kl), ..rule(AdvantageEstimator::Grpo, ScaleRewards::None) };
        let group = GroupRewards { total: &[1.0, 1.0], per_reward: &[] };
        let advantages = rule.advantages(&[group], Some(&[vec![2.0, -2.0]]));
        close(&advantages[0], &[-1.0, 1.0]);
    }

    #[test]
    fn normalize_then_sum_by_hand() {
        let rule = AdvantageRule {
            aggregation: MultiObjectiveAggregation::NormalizeThenSum,
            reward_weights: vec![1.0, 2.0],
            ..rule(AdvantageEstimator::Grpo, ScaleRewards::Group)
        };
        // The first reward normalised: -1, 1 over 2 by sqrt(2); the second knows one row only and says nothing.
        let per_reward = [vec![Some(0.0), Some(2.0), None], vec![None, Some(5.0), None]];
        let group = GroupRewards { total: &[0.0, 12.0, 0.0], per_reward: &per_reward };
        let normal = 1.0 / (2.0f64.sqrt() + STD_EPSILON);
        // Of the two that are scored: -normal, normal; the third is not.
        let std = normal * 2.0f64.sqrt() + STD_EPSILON;
        close(&rule.advantages(&[group], None)[0], &[-normal / std, normal / std, 0.0]);
    }
}
