//! What a training run's completions were like, step by step.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::detection::all_names;
use crate::tokenizer_corpus::{ANSWER, BOX, LABEL, THINK};

/// A completion of a step.
#[derive(Debug, Deserialize)]
pub struct Completion {
    /// What the model said.
    pub completion: String,
    /// The truth.
    pub solution: String,
    /// Tokens.
    pub tokens: usize,
}

/// Applies `measure` to the completions of each step of a run: `[step, value]`.
///
/// # Errors
/// Rollouts that cannot be read.
pub fn by_step(
    run: &Path,
    steps: usize,
    measure: impl Fn(&[Completion]) -> f64,
) -> Result<Vec<[f64; 2]>> {
    (1..=steps)
        .map(|step| {
            let path = run.join(format!("rollouts/step_{step:06}.jsonl"));
            let context = || path.display().to_string();
            let text = fs::read_to_string(&path).with_context(context)?;
            let completions: Vec<Completion> = text
                .lines()
                .map(|line| serde_json::from_str(line).with_context(context))
                .collect::<Result<_>>()?;
            Ok([step as f64, measure(&completions)])
        })
        .collect()
}

/// Means over `window` steps: fewer points, with less noise.
pub fn thinned(points: &[[f64; 2]], window: usize) -> Vec<[f64; 2]> {
    points
        .chunks(window)
        .map(|chunk| {
            let mean = |axis: usize| {
                chunk.iter().map(|point| point[axis]).sum::<f64>() / chunk.len() as f64
            };
            [mean(0), mean(1)]
        })
        .collect()
}

/// Mean of `value` over completions.
pub fn mean_of(completions: &[Completion], value: impl Fn(&Completion) -> f64) -> f64 {
    completions.iter().map(value).sum::<f64>() / completions.len() as f64
}

impl Completion {
    /// Boxes that it lists.
    pub fn num_boxes(&self) -> usize {
        self.completion.matches(BOX).count()
    }

    /// Labels of the boxes of `text`.
    fn labels(text: &str) -> BTreeSet<String> {
        let after = text.split(LABEL).skip(1);
        let labels = after.filter_map(|rest| rest.split_once('"'));
        labels.map(|(label, _)| label.to_owned()).collect()
    }

    /// Names in its thinking, and labels in its answer; nothing where it has not both parts.
    fn parts(&self) -> Option<[BTreeSet<String>; 2]> {
        let (thinking, answer) = self.completion.strip_prefix(THINK)?.split_once(ANSWER)?;
        let named = all_names().into_iter().filter(|name| thinking.contains(name.as_str()));
        Some([named.collect(), Self::labels(answer)])
    }

    /// Whether something of what was asked for is there.
    pub fn something_is_there(&self) -> bool {
        !Self::labels(&self.solution).is_empty()
    }

    /// Whether its thinking names all that is there and nothing that is not.
    pub fn names_what_is_there(&self) -> bool {
        self.parts().is_some_and(|[named, _]| named == Self::labels(&self.solution))
    }

    /// Whether its thinking names anything.
    pub fn names_something(&self) -> bool {
        self.parts().is_some_and(|[named, _]| !named.is_empty())
    }

    /// Whether its answer has the labels that its thinking names.
    pub fn answer_follows_thinking(&self) -> bool {
        self.parts().is_some_and(|[named, labels]| !named.is_empty() && named == labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(thinking: &str, answered: &[&str]) -> Completion {
        let list = |labels: &[&str]| {
            let boxes = labels.iter().map(|label| format!("{BOX}0, 0, 8, 8{LABEL}{label}\"}}"));
            boxes.collect::<Vec<_>>().join(", ")
        };
        Completion {
            completion: format!(
                "{THINK}{thinking}{ANSWER}```json\n[{}]\n```</answer>",
                list(answered)
            ),
            solution: format!(
                "<answer> ```json\n[{}]\n``` </answer>",
                list(&["red disc", "blue cross"])
            ),
            tokens: 9,
        }
    }

    #[test]
    fn thinking_and_answer_are_told_apart() {
        let right = completion("red disc, blue cross", &["red disc", "red disc", "blue cross"]);
        assert!(right.names_what_is_there() && right.answer_follows_thinking());
        assert_eq!(right.num_boxes(), 3);
        let all = completion("red disc, green square, blue cross", &["red disc", "blue cross"]);
        assert!(
            !all.names_what_is_there() && !all.answer_follows_thinking() && all.names_something()
        );
        let nothing = completion("let us look", &[]);
        assert!(!nothing.names_something() && !nothing.answer_follows_thinking());
        assert!(nothing.something_is_there());
    }

    #[test]
    fn points_are_thinned_by_means() {
        let points = [[1.0, 1.0], [2.0, 3.0], [3.0, 5.0]];
        assert_eq!(thinned(&points, 2), [[1.5, 2.0], [3.0, 5.0]]);
    }
}
