//! The studies: each says which runs it needs of a seed, and makes a page of those of all seeds.

mod data_quality;
mod model_size;
mod reward_hacking;
mod rl_against_sft;
mod thinking;

use anyhow::Result;

use crate::page::Study;
use crate::runs::Runs;

/// A study.
pub struct Kind {
    /// Its name on the command line.
    pub name: &'static str,
    /// Does the runs of a seed, as far as they are not done.
    pub work: fn(&Runs<'_>) -> Result<()>,
    /// Makes the page of finished runs, one seed each.
    pub page: fn(&[Runs<'_>]) -> Result<Study>,
}

/// All studies, in the order of the paper.
pub const STUDIES: [Kind; 5] = [
    rl_against_sft::KIND,
    reward_hacking::KIND,
    data_quality::KIND,
    model_size::KIND,
    thinking::KIND,
];

/// One value a seed.
fn per_seed(runs: &[Runs<'_>], value: impl Fn(&Runs<'_>) -> Result<f64>) -> Result<Vec<f64>> {
    runs.iter().map(value).collect()
}

/// `a - b`, seed by seed.
fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}
