//! The judge as a reward, and as a method of `accuracy`.

use config::RewardBatch;

use super::{Judge, NAME};
use crate::error::RewardError;
use crate::explain::Explanation;
use crate::plugins::PluginOptions;
use crate::registry::{Reward, RewardInput};

/// The reward `llm`: every row by the judge.
pub(in crate::plugins) struct JudgeReward(Judge);

impl JudgeReward {
    pub(in crate::plugins) fn new(options: &PluginOptions) -> Result<Self, RewardError> {
        match &options.judge.model {
            Some(model) => Ok(Self(Judge::new(model, options)?)),
            None => Err(RewardError::NoJudge),
        }
    }
}

impl Reward for JudgeReward {
    fn name(&self) -> &str {
        NAME
    }

    fn is_by_row(&self) -> bool {
        false
    }

    fn batch(&self) -> RewardBatch {
        RewardBatch::Completion
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(self.0.score(rows)?.into_iter().map(Some).collect())
    }

    fn conclude(&self) -> Result<(), RewardError> {
        self.0.conclude()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        Ok(Some(self.0.explain(row)))
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.0.counters()
    }
}

/// `accuracy` with the method `llm` beside those by rule.
pub(crate) struct JudgedAccuracy<R> {
    rules: R,
    judge: Option<Judge>,
}

impl<R: Reward> JudgedAccuracy<R> {
    /// Without a model, rows of the method `llm` are errors.
    pub(crate) fn new(rules: R, options: &PluginOptions) -> Result<Self, RewardError> {
        let model = options.judge.model.as_deref();
        let judge = model.map(|model| Judge::new(model, options)).transpose()?;
        Ok(Self { rules, judge })
    }

    fn judge(&self) -> Result<&Judge, RewardError> {
        self.judge.as_ref().ok_or(RewardError::NoJudge)
    }
}

impl<R: Reward> Reward for JudgedAccuracy<R> {
    fn name(&self) -> &str {
        self.rules.name()
    }

    fn is_by_row(&self) -> bool {
        self.judge.is_none() && self.rules.is_by_row()
    }

    fn batch(&self) -> RewardBatch {
        self.rules.batch()
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let is_judged = |row: &RewardInput<'_>| row.accu_reward_method == Some(NAME);
        if !rows.iter().any(is_judged) {
            return self.rules.score(rows);
        }
        // A method that takes any row stands in, so that rows keep their places in errors.
        let by_rule: Vec<RewardInput<'_>> = rows
            .iter()
            .map(|row| match is_judged(row) {
                true => RewardInput { accu_reward_method: Some("all_match"), ..*row },
                false => *row,
            })
            .collect();
        let mut scores = self.rules.score(&by_rule)?;
        let judged: Vec<_> = rows.iter().copied().filter(is_judged).collect();
        let mut judged = self.judge()?.score(&judged)?.into_iter();
        for (row, score) in rows.iter().zip(&mut scores) {
            if is_judged(row) {
                *score = judged.next();
            }
        }
        Ok(scores)
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        match row.accu_reward_method {
            Some(NAME) => Ok(Some(self.judge()?.explain(row))),
            _ => self.rules.explain(row),
        }
    }

    fn check(
        &self,
        row: usize,
        solution: &str,
        accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        match accu_reward_method {
            Some(NAME) => self.judge().map(drop),
            _ => self.rules.check(row, solution, accu_reward_method),
        }
    }

    fn conclude(&self) -> Result<(), RewardError> {
        self.judge.as_ref().map_or(Ok(()), Judge::conclude)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.judge.as_ref().map(Judge::counters).unwrap_or_default()
    }
}
