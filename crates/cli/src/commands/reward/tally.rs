//! What is kept of all rows: scores, groups, the slowest.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use rewards::ScoringTime;
use serde_json::Value;

use super::scorer::Scored;
use crate::rows::Row;

/// Columns that name the group of a row, unless `--group_column` says another.
pub const GROUP_COLUMNS: [&str; 2] = ["group_id", "group"];
/// How many of the slowest rows are kept.
const NUM_SLOWEST: usize = 3;

/// Numbers of all rows so far.
pub struct Tally {
    /// Each reward.
    pub rewards: Vec<RewardTally>,
    /// The weighted sums.
    pub total: Vec<f64>,
    /// Groups by the text of their id.
    pub groups: HashMap<String, Group>,
    /// The column that names them, once a row has it.
    pub group_column: Option<String>,
    /// Whether the user named it, so that every row must have it.
    is_group_demanded: bool,
    /// The slowest rows, slowest first.
    pub slowest: Vec<SlowRow>,
}

/// Numbers of a reward.
pub struct RewardTally {
    /// Its name.
    pub name: String,
    /// Scores of the rows that it applies to.
    pub scores: Vec<f64>,
    /// Times of its batches, where rows cannot be timed.
    pub batches: Option<Batches>,
}

/// Times of a reward that scores batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batches {
    /// How many there were.
    pub count: usize,
    /// Rows in the largest.
    pub largest: usize,
    /// Time of all.
    pub total: Duration,
    /// Time of the slowest.
    pub longest: Duration,
    /// The first row of that.
    pub longest_from: String,
}

/// The rows of one question.
pub struct Group {
    /// How many there are.
    pub rows: usize,
    /// The reward of the first.
    first: f64,
    /// Whether all have it.
    pub is_equal: bool,
}

/// A row and the time that it took.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowRow {
    /// Time of all rewards that score row by row.
    pub time: Duration,
    /// Where the row stands.
    pub place: String,
}

impl Tally {
    /// Nothing yet of these rewards.
    pub fn new(names: Vec<String>, group_column: Option<String>) -> Self {
        let rewards =
            names.into_iter().map(|name| RewardTally { name, scores: Vec::new(), batches: None });
        Self {
            rewards: rewards.collect(),
            total: Vec::new(),
            groups: HashMap::new(),
            is_group_demanded: group_column.is_some(),
            group_column,
            slowest: Vec::new(),
        }
    }

    /// Rows so far.
    pub fn num_rows(&self) -> usize {
        self.total.len()
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// Where a row lacks the group column that the user named.
    pub fn add(&mut self, rows: &[Row], scored: &Scored) -> Result<()> {
        for (reward, scores) in self.rewards.iter_mut().zip(&scored.scores.per_reward) {
            reward.scores.extend(scores.iter().flatten());
        }
        for (row, &total) in rows.iter().zip(&scored.scores.total) {
            self.add_to_group(row, total)?;
        }
        self.total.extend(&scored.scores.total);
        self.add_times(rows, &scored.times);
        Ok(())
    }

    fn add_to_group(&mut self, row: &Row, total: f64) -> Result<()> {
        if self.group_column.is_none() {
            let known = GROUP_COLUMNS.iter().find(|name| has(row, name));
            self.group_column = known.map(|name| (*name).to_owned());
        }
        let Some(column) = &self.group_column else {
            return Ok(());
        };
        let id = match row.columns.get(column) {
            Some(Value::String(text)) => text.clone(),
            Some(id) if !id.is_null() => id.to_string(),
            _ if self.is_group_demanded => bail!("{}: missing key `{column}`", row.place),
            _ => return Ok(()),
        };
        let group =
            self.groups.entry(id).or_insert(Group { rows: 0, first: total, is_equal: true });
        group.rows += 1;
        // As training does: exactly equal, found on the rewards.
        group.is_equal &= total == group.first;
        Ok(())
    }

    fn add_times(&mut self, rows: &[Row], times: &[ScoringTime]) {
        let mut per_row = vec![Duration::ZERO; rows.len()];
        let mut is_timed = false;
        for (reward, time) in self.rewards.iter_mut().zip(times) {
            match time {
                ScoringTime::Rows(times) => {
                    is_timed = true;
                    per_row.iter_mut().zip(times).for_each(|(sum, time)| *sum += *time);
                }
                ScoringTime::Batch(time) => {
                    let batches = reward.batches.get_or_insert_default();
                    batches.add(rows, *time);
                }
            }
        }
        if !is_timed {
            return;
        }
        for (row, time) in rows.iter().zip(per_row) {
            let is_slow = self.slowest.len() < NUM_SLOWEST
                || self.slowest.last().is_some_and(|slow| slow.time < time);
            if is_slow {
                let place = row.place.clone();
                self.slowest.push(SlowRow { time, place });
                self.slowest.sort_by_key(|slow| Reverse(slow.time));
                self.slowest.truncate(NUM_SLOWEST);
            }
        }
    }
}

impl Batches {
    fn add(&mut self, rows: &[Row], time: Duration) {
        self.count += 1;
        self.largest = self.largest.max(rows.len());
        self.total += time;
        if time >= self.longest {
            self.longest = time;
            self.longest_from = rows.first().map(|row| row.place.clone()).unwrap_or_default();
        }
    }
}

fn has(row: &Row, column: &str) -> bool {
    row.columns.get(column).is_some_and(|id| !id.is_null())
}
