//! The ranks of a run: how they agree, and how one that fails ends the others.

use std::cell::Cell;
use std::rc::Rc;

use base::console::describe;
use base::world::{Local, World};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use torch::ranks::Group;

use crate::bad_step::NonFinite;
use crate::deal::Deal;
use crate::session::Session;
use crate::{TrainError, out_of_memory};

/// A completion: its group in the step, and its place in the group.
pub(crate) type Place = (usize, usize);

/// Who trains together. Clones are the same ranks.
#[derive(Clone)]
pub struct Ranks {
    /// Counts, votes, texts.
    pub world: Rc<dyn World>,
    /// Tensors.
    pub tensors: Rc<Group>,
    /// The place of this process among those of its machine: which card is its own.
    pub local_rank: usize,
}

impl Ranks {
    /// One rank.
    pub fn alone() -> Self {
        Ranks { world: Rc::new(Local), tensors: Rc::new(Group::alone()), local_rank: 0 }
    }

    /// Whether there are others.
    pub fn are_several(&self) -> bool {
        self.world.size() > 1
    }

    /// What rank 0 says, on all ranks.
    ///
    /// # Errors
    /// Those of the ranks.
    pub(crate) fn of_main<T: Clone + Serialize + DeserializeOwned>(
        &self,
        operation: &str,
        own: &T,
    ) -> Result<T, TrainError> {
        if !self.are_several() {
            return Ok(own.clone());
        }
        let text = serde_json::to_vec(own).map_err(|error| state(&error))?;
        let text = self.world.broadcast(operation, &text)?;
        serde_json::from_slice(&text).map_err(|error| state(&error))
    }

    /// What each rank says, by rank.
    ///
    /// # Errors
    /// Those of the ranks.
    pub(crate) fn of_all<T: Clone + Serialize + DeserializeOwned>(
        &self,
        operation: &str,
        own: &T,
    ) -> Result<Vec<T>, TrainError> {
        if !self.are_several() {
            return Ok(vec![own.clone()]);
        }
        let text = serde_json::to_vec(own).map_err(|error| state(&error))?;
        let all = self.world.gather(operation, &text)?;
        all.iter().map(|text| serde_json::from_slice(text).map_err(|error| state(&error))).collect()
    }

    /// The rows of all ranks, by their places.
    ///
    /// # Errors
    /// Those of the ranks.
    pub(crate) fn rows_of_all(
        &self,
        operation: &str,
        own: Vec<(Place, Value)>,
    ) -> Result<Vec<(Place, Value)>, TrainError> {
        let mut rows = self.of_all(operation, &own)?.concat();
        rows.sort_by_key(|(place, _)| *place);
        Ok(rows)
    }

    /// Refuses ranks that differ in a fact.
    ///
    /// # Errors
    /// [`TrainError::RanksDiffer`], on all ranks, and those of the ranks.
    pub(crate) fn compare(&self, facts: &[(&str, String)]) -> Result<(), TrainError> {
        let own: Vec<&String> = facts.iter().map(|(_, value)| value).collect();
        let own: Vec<String> = own.into_iter().cloned().collect();
        let all = self.of_all("facts", &own)?;
        let mut differences = Vec::new();
        for (index, (fact, _)) in facts.iter().enumerate() {
            for (rank, values) in all.iter().enumerate().skip(1) {
                if values[index] != all[0][index] {
                    differences.extend(differing_lines(fact, rank, &all[0][index], &values[index]));
                }
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrainError::RanksDiffer { differences })
    }
}

/// What a rank says of its own work.
#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    Fine,
    /// The step is refused.
    NotFinite(NonFinite),
    Stopped,
    Failed(String),
}

impl Verdict {
    fn of<T>(result: &Result<T, TrainError>) -> Self {
        match result {
            Ok(_) => Verdict::Fine,
            Err(TrainError::NonFinite(cause)) => Verdict::NotFinite(cause.as_ref().clone()),
            Err(TrainError::Stopped) => Verdict::Stopped,
            Err(error) => Verdict::Failed(describe(error)),
        }
    }

    /// The worst decides for all.
    fn rank(&self) -> u8 {
        match self {
            Verdict::Fine => 0,
            Verdict::NotFinite(_) => 1,
            Verdict::Stopped => 2,
            Verdict::Failed(_) => 3,
        }
    }
}

/// Whether all ranks know that the run ends, so that they can write a checkpoint together.
#[derive(Debug, Default)]
pub(crate) struct Agreement(Cell<bool>);

impl Session<'_> {
    /// This rank's part of the rows of a step, of `per_row` completions each.
    pub fn deal(&self, per_row: usize) -> Deal {
        let world = &self.ranks.world;
        Deal { rank: world.rank(), size: world.size(), per_row }
    }

    /// Says where this rank is in a step, for the others to be told should it not come.
    pub fn at(&self, phase: &str, source: Option<&str>) {
        let step = self.progress.step + 1;
        let of = source.map_or_else(String::new, |source| format!(", {source}"));
        self.ranks.world.at(&format!("step {step}, {phase}{of}"));
    }

    /// A number for the micro-batch at `index` that none of another rank has.
    pub fn micro_batch_key(&self, index: usize) -> u64 {
        index as u64 + ((self.ranks.world.rank() as u64) << 32)
    }

    /// Work that each rank does by itself, with nothing in it that waits for others: where it fails on one rank, it fails on all.
    ///
    /// # Errors
    /// Those of `work`; [`TrainError::OtherRank`] where another rank failed.
    pub fn together<T>(
        &self,
        operation: &str,
        work: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if !self.ranks.are_several() {
            return work();
        }
        self.agree(operation, self.caught(work))
    }

    /// The result of `work`, lack of memory among its errors.
    pub fn caught<T>(&self, work: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
        out_of_memory::step(self.model.compute().1, work)
    }

    /// The result of what this rank did by itself: an error where any rank has one.
    ///
    /// # Errors
    /// As [`Self::together`].
    pub fn agree<T>(
        &self,
        operation: &str,
        result: Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if !self.ranks.are_several() {
            return result;
        }
        let own = Verdict::of(&result);
        let text = serde_json::to_vec(&own).map_err(|error| state(&error))?;
        let all = self.ranks.world.gather(operation, &text)?;
        let mut worst = (self.ranks.world.rank(), own);
        for (rank, text) in all.iter().enumerate() {
            let verdict: Verdict = serde_json::from_slice(text).map_err(|error| state(&error))?;
            if verdict.rank() > worst.1.rank() {
                worst = (rank, verdict);
            }
        }
        let (rank, verdict) = worst;
        self.agreement.0.set(matches!(verdict, Verdict::Stopped | Verdict::Failed(_)));
        match verdict {
            Verdict::NotFinite(cause) => {
                let cause = NonFinite { rank: Some(rank), ..cause };
                Err(TrainError::NonFinite(Box::new(cause)))
            }
            _ if rank == self.ranks.world.rank() => result,
            Verdict::Fine => result,
            Verdict::Stopped => Err(TrainError::Stopped),
            Verdict::Failed(cause) => Err(TrainError::OtherRank { rank, cause }),
        }
    }

    /// Whether all ranks end by the error that this one has.
    pub fn have_agreed_to_end(&self) -> bool {
        !self.ranks.are_several() || self.agreement.0.get()
    }
}

/// The lines in which a fact of rank 0 and one of another rank differ.
fn differing_lines(fact: &str, rank: usize, first: &str, other: &str) -> Vec<String> {
    let (first, other): (Vec<&str>, Vec<&str>) = (first.lines().collect(), other.lines().collect());
    let line =
        |lines: &[&str], index: usize| lines.get(index).copied().unwrap_or("nothing").to_owned();
    let count = first.len().max(other.len());
    let differ = (0..count).filter(|&index| first.get(index) != other.get(index));
    let lines = differ.map(|index| {
        format!(
            "{fact}: rank 0 has `{}`, rank {rank} `{}`",
            line(&first, index),
            line(&other, index)
        )
    });
    lines.collect()
}

fn state(error: &serde_json::Error) -> TrainError {
    TrainError::State { cause: format!("what a rank said cannot be read: {error}") }
}
