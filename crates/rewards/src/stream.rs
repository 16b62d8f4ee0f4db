//! Scores completions while others are still being sampled, one thread per reward.

use std::ops::Range;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, ScopedJoinHandle};

use config::RewardBatch;

use crate::error::RewardError;
use crate::registry::{Reward, RewardInput, RewardSet, Scores, asked, concluded, joined};

/// How many rows a step has, groups one after another.
#[derive(Clone, Copy, Debug)]
pub struct StepSize {
    /// All rows.
    pub rows: usize,
    /// Rows of one group; the last may have fewer.
    pub group: usize,
}

/// A reward's thread, and in the end its scores.
type Listening<'s> = ScopedJoinHandle<'s, Result<Vec<Option<f64>>, RewardError>>;

/// The threads of the rewards, which [`RewardSet::score_while`] tells of finished rows.
pub struct ScoringQueue<'a, 's> {
    senders: Vec<Sender<usize>>,
    threads: &'a [Listening<'s>],
}

impl ScoringQueue<'_, '_> {
    /// Announces that the row at `index` is complete. Call it once per row.
    pub fn push(&self, index: usize) {
        for sender in &self.senders {
            // The thread of a failed reward is gone: its error is returned at the end.
            let _ = sender.send(index);
        }
    }

    /// Whether a reward has failed, so that further work is useless.
    pub fn has_failed(&self) -> bool {
        // Before all rows are announced, only a failure ends a thread.
        self.threads.iter().any(ScopedJoinHandle::is_finished)
    }
}

/// The scores of one reward; none of one that was not asked.
pub type AskedScores = Option<Vec<Option<f64>>>;

impl RewardSet {
    /// As [`RewardSet::score_some_while`], by all rewards.
    ///
    /// # Errors
    /// As it.
    pub fn score_while<'r, T, E: From<RewardError>>(
        &self,
        size: StepSize,
        row: impl Fn(usize) -> RewardInput<'r> + Sync,
        produce: impl FnOnce(&ScoringQueue<'_, '_>) -> Result<T, E>,
    ) -> Result<(T, Scores), E> {
        let (made, scores) = self.score_some_while(size, |_| true, row, produce)?;
        Ok((made, self.summed(size.rows, scores.into_iter().flatten().collect())))
    }

    /// Scores rows while `produce` makes them and tells of each, by the rewards that `is_asked` says by what they need at once
    /// ([`Reward::batch`]). A reward is asked as soon as that is there, so that the scores are those of [`RewardSet::score`] over all
    /// rows in order. Rows that were not told of have no score.
    ///
    /// # Errors
    /// As [`RewardSet::score`], rows counted within the step; else those of `produce`.
    pub fn score_some_while<'r, T, E: From<RewardError>>(
        &self,
        size: StepSize,
        is_asked: impl Fn(RewardBatch) -> bool,
        row: impl Fn(usize) -> RewardInput<'r> + Sync,
        produce: impl FnOnce(&ScoringQueue<'_, '_>) -> Result<T, E>,
    ) -> Result<(T, Vec<AskedScores>), E> {
        let row = &row;
        thread::scope(|scope| {
            let asked: Vec<bool> = self.rewards().map(|reward| is_asked(reward.batch())).collect();
            let rewards = self.rewards().zip(&asked).filter(|(_, is_asked)| **is_asked);
            let (senders, threads): (Vec<_>, Vec<_>) = rewards
                .map(|(reward, _)| {
                    let (sender, told) = mpsc::channel();
                    let listen = move || listen(reward, &told, size, row);
                    (sender, scope.spawn(listen))
                })
                .unzip();
            let queue = ScoringQueue { senders, threads: &threads };
            let made = produce(&queue);
            drop(queue);
            let scores: Vec<Result<_, _>> = threads.into_iter().map(joined).collect();
            let mut scores = scores.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
            let scores = asked.iter().map(|is_asked| is_asked.then(|| scores.next())?);
            Ok((made?, scores.collect()))
        })
    }

    /// Scores `rows`, `batches` after one another, by the reward at `index`.
    ///
    /// # Errors
    /// As [`RewardSet::score`].
    ///
    /// # Panics
    /// Without a reward at `index`, or where batches have more rows than there are.
    pub fn score_batches(
        &self,
        index: usize,
        rows: &[RewardInput<'_>],
        batches: &[Range<usize>],
    ) -> Result<Vec<Option<f64>>, RewardError> {
        let reward = self.rewards().nth(index).expect("one of the rewards");
        let mut scores = Vec::with_capacity(rows.len());
        for batch in batches {
            let given = asked(reward, &rows[batch.clone()]).map_err(|error| match error.row() {
                Some(row) => error.at_row(batch.start + row),
                None => error,
            })?;
            scores.extend(given);
        }
        concluded(reward, scores)
    }

    /// What each reward needs at once, in the order of [`RewardSet::names`].
    pub fn batches(&self) -> impl Iterator<Item = RewardBatch> {
        self.rewards().map(|reward| reward.batch())
    }
}

/// The scores of one reward for the announced rows, until the sender is dropped.
fn listen<'r>(
    reward: &dyn Reward,
    told: &Receiver<usize>,
    size: StepSize,
    row: &impl Fn(usize) -> RewardInput<'r>,
) -> Result<Vec<Option<f64>>, RewardError> {
    let mut scores = vec![None; size.rows];
    let mut waiting = Vec::new();
    while let Ok(first) = told.recv() {
        waiting.push(first);
        // Rows that arrived while the reward was busy are scored together.
        waiting.extend(told.try_iter());
        for batch in take_whole(&mut waiting, reward.batch(), size) {
            let rows: Vec<RewardInput<'_>> = batch.iter().map(|&index| row(index)).collect();
            let given = asked(reward, &rows).map_err(|error| match error.row() {
                Some(row) => error.at_row(batch[row]),
                None => error,
            })?;
            for (index, score) in batch.into_iter().zip(given) {
                scores[index] = score;
            }
        }
    }
    concluded(reward, scores)
}

/// Takes the rows that can be scored now, in batches, each in order.
fn take_whole(waiting: &mut Vec<usize>, batch: RewardBatch, size: StepSize) -> Vec<Vec<usize>> {
    waiting.sort_unstable();
    let unit = match batch {
        RewardBatch::Completion => return vec![std::mem::take(waiting)],
        RewardBatch::Group => size.group.max(1),
        RewardBatch::Step => size.rows,
    };
    let (mut whole, mut rest) = (Vec::new(), Vec::new());
    for rows in waiting.chunk_by(|a, b| a / unit == b / unit) {
        let start = rows[0] / unit * unit;
        if rows.len() == unit.min(size.rows - start) {
            whole.push(rows.to_vec());
        } else {
            rest.extend_from_slice(rows);
        }
    }
    *waiting = rest;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: StepSize = StepSize { rows: 8, group: 3 };

    #[test]
    fn batches_are_whole_and_in_order() {
        let take = |waiting: &[usize], batch| {
            let mut waiting = waiting.to_vec();
            let whole = take_whole(&mut waiting, batch, SIZE);
            (whole, waiting)
        };
        let each = take(&[4, 1], RewardBatch::Completion);
        assert_eq!(each, (vec![vec![1, 4]], vec![]));
        let groups = take(&[7, 5, 0, 2, 6, 1], RewardBatch::Group);
        assert_eq!(groups, (vec![vec![0, 1, 2], vec![6, 7]], vec![5]));
        let early = take(&[6, 5, 4, 3, 2, 1, 0], RewardBatch::Step);
        assert_eq!(early, (vec![], vec![0, 1, 2, 3, 4, 5, 6]));
        let all = take(&[6, 7, 5, 4, 3, 2, 1, 0], RewardBatch::Step);
        assert_eq!(all, (vec![(0..8).collect()], vec![]));
    }
}
