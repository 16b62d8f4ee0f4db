//! Rewards of referring-expression comprehension, customised by model family as in VLM-R1.
//! [`crate::families`] says which family has which.

use std::sync::LazyLock;

use crate::error::RewardError;
use crate::explain::Explanation;
use crate::families::BoxForm;
use crate::format_pattern::FormatPattern;
use crate::registry::{Reward, RewardInput};

/// 1 where the family's pattern is found anywhere in the completion, else 0.
pub(crate) struct RecFormat {
    pub(crate) form: BoxForm,
    /// Whether the model writes decimals.
    pub(crate) has_decimals: bool,
}

const THOUGHT: [(&str, &str); 3] = [
    ("<think>", "no `<think>`"),
    (".*?</think>", "no `</think>` after `<think>`"),
    ("SPACES<answer>", "no `<answer>` right after `</think>`"),
];
const IN_BRACES: [(&str, &str); 1] = [(r".*?\{", "no `{` in the answer")];
const BOX: [(&str, &str); 1] = [(".*INTEGERS", "no box of four whole numbers where it belongs")];
const DECIMAL_BOX: [(&str, &str); 1] = [(".*NUMBERS", "no box of four numbers where it belongs")];
const LAZY_BOX: [(&str, &str); 1] = [(".*?INTEGERS", BOX[0].1)];
const LAZY_DECIMAL_BOX: [(&str, &str); 1] = [(".*?NUMBERS", DECIMAL_BOX[0].1)];
const BRACES_CLOSE: [(&str, &str); 1] = [(r".*\}", "no `}` after the box")];
const CLOSE: [(&str, &str); 1] = [(".*?</answer>", "no `</answer>` after it")];

static IN_BRACES_FORM: LazyLock<[FormatPattern; 2]> = LazyLock::new(|| {
    [&BOX, &DECIMAL_BOX].map(|bracket| {
        let links = [&THOUGHT[..], &IN_BRACES, bracket, &BRACES_CLOSE, &CLOSE];
        FormatPattern::new(&links.concat())
    })
});
static BARE_FORM: LazyLock<[FormatPattern; 2]> = LazyLock::new(|| {
    [&LAZY_BOX, &LAZY_DECIMAL_BOX]
        .map(|bracket| FormatPattern::new(&[&THOUGHT[..], bracket, &CLOSE].concat()))
});
static TAGS_FORM: LazyLock<FormatPattern> = LazyLock::new(|| {
    let links = [THOUGHT[0], (".*?<answer>", "no `<answer>` after `<think>`")];
    FormatPattern::new(&[&links[..], &CLOSE].concat())
});

impl RecFormat {
    fn pattern(&self) -> &'static FormatPattern {
        let index = usize::from(self.has_decimals);
        match self.form {
            BoxForm::InBraces => &IN_BRACES_FORM[index],
            BoxForm::Bare => &BARE_FORM[index],
            BoxForm::Tags => &TAGS_FORM,
        }
    }
}

impl Reward for RecFormat {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let pattern = self.pattern();
        let scores = rows.iter().map(|row| Some(pattern.score(row.completion)));
        Ok(scores.collect())
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        Ok(Some(self.pattern().explained(row.completion)))
    }
}
