//! The studies: each says which runs it needs of a seed, and makes a page of those of all seeds.

mod data_quality;
mod model_size;
mod reward_hacking;
mod rl_against_sft;
mod thinking;

use anyhow::{Context, Result};
use report::Table;

use crate::claims::Claim;
use crate::page::{Curves, Study, cell};
use crate::rollouts::thinned;
use crate::runs::{Metrics, Runs};

/// Steps that a point of a curve of training is the mean of.
const WINDOW: usize = 8;

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

/// Metrics of several models, each of every seed.
struct Arms(Vec<(String, Vec<Metrics>)>);

impl Arms {
    /// Gathers them, `evaluate` being asked for each arm and seed.
    fn gather<A: Copy>(
        runs: &[Runs<'_>],
        arms: impl IntoIterator<Item = (String, A)>,
        evaluate: impl Fn(&Runs<'_>, A) -> Result<Metrics>,
    ) -> Result<Self> {
        let of = |(title, arm): (String, A)| {
            let each = runs.iter().map(|seed| evaluate(seed, arm));
            Ok((title, each.collect::<Result<_>>()?))
        };
        arms.into_iter().map(of).collect::<Result<_>>().map(Self)
    }

    /// A metric of an arm, one a seed.
    fn of(&self, title: &str, metric: &str) -> Result<Vec<f64>> {
        let found = self.0.iter().find(|(other, _)| other == title);
        let (_, seeds) = found.with_context(|| format!("no arm `{title}`"))?;
        seeds.iter().map(|metrics| metrics.get(metric)).collect()
    }

    /// The claim that a metric of `above` is above that of `below`, seed by seed.
    fn claim(&self, text: &str, metric: &str, above: &str, below: &str) -> Result<Claim> {
        let differences = less(&self.of(above, metric)?, &self.of(below, metric)?);
        Ok(Claim::new(text, differences))
    }

    /// All metrics of detection.
    fn detection_table(&self, first: &str) -> Result<(String, Table)> {
        const METRICS: [(&str, &str); 5] = [
            ("ap", "AP"),
            ("ap50", "AP50"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("boxes", "boxes"),
        ];
        let row = |(title, _): &(String, Vec<Metrics>)| {
            let cells = METRICS.map(|(metric, _)| Ok(cell(&self.of(title, metric)?, 3)));
            let cells: Result<Vec<String>> = cells.into_iter().collect();
            Ok(std::iter::once(title.clone()).chain(cells?).collect())
        };
        let header = std::iter::once(first).chain(METRICS.map(|(_, title)| title));
        let table = Table {
            header: header.map(str::to_owned).collect(),
            rows: self.0.iter().map(row).collect::<Result<_>>()?,
            caption: String::new(),
        };
        Ok(("Held-out images".to_owned(), table))
    }
}

/// A line of a chart of training, thinned to means over [`WINDOW`] steps.
fn line(
    runs: &[Runs<'_>],
    name: &str,
    curve: impl Fn(&Runs<'_>) -> Result<Vec<[f64; 2]>>,
) -> Result<(String, Curves)> {
    let curves = runs.iter().map(|seed| Ok(thinned(&curve(seed)?, WINDOW)));
    Ok((name.to_owned(), curves.collect::<Result<_>>()?))
}

/// `a - b`, seed by seed.
fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}
