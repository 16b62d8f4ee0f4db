//! The result of comparing two texts, from which score and explanation are made.

use std::borrow::Cow;

use crate::explain::Explanation;

/// Two texts and what came of comparing them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict<'a> {
    /// The part of the completion that was compared.
    pub(crate) answer: Cow<'a, str>,
    /// The part of the solution.
    pub(crate) truth: Cow<'a, str>,
    pub(crate) rule: Rule,
}

/// The rule that decided, with what it found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    SameText,
    OtherText,
    SameMeaning,
    SameLatex,
    /// Neither text, meaning nor LaTeX is the same.
    NothingSame,
    Numbers {
        are_equal: bool,
    },
    /// How alike the texts are.
    Likeness(f64),
    Letters {
        answer: Option<char>,
        truth: Option<char>,
    },
    Words {
        answer: Option<&'static str>,
        truth: Option<&'static str>,
    },
}

impl Rule {
    pub(crate) fn score(self) -> f64 {
        match self {
            Self::SameText | Self::SameMeaning | Self::SameLatex => 1.0,
            Self::OtherText | Self::NothingSame => 0.0,
            Self::Numbers { are_equal } => f64::from(are_equal),
            Self::Likeness(likeness) => likeness,
            // A solution without a letter equals no letter, whatever else it says.
            Self::Letters { answer, truth } => f64::from(answer.is_some() && answer == truth),
            Self::Words { answer, truth } => f64::from(answer == truth),
        }
    }

    fn reason(self) -> String {
        match self {
            Self::SameText => "the same text".into(),
            Self::OtherText => "different texts".into(),
            Self::SameMeaning => "equal as expressions".into(),
            Self::SameLatex => "the same LaTeX once normalised".into(),
            Self::NothingSame => "neither text, meaning nor LaTeX is the same".into(),
            Self::Numbers { are_equal: true } => "equal numbers".into(),
            Self::Numbers { are_equal: false } => "different numbers".into(),
            Self::Likeness(likeness) => format!("likeness {likeness:.3} of the texts"),
            Self::Letters { answer, truth } => match (answer, truth) {
                (Some(a), Some(b)) if a == b => format!("both choose the letter {a}"),
                (Some(a), Some(b)) => format!("letters {a} and {b} differ"),
                (None, _) => "no letter in the answer".into(),
                (Some(_), None) => "no letter in the solution".into(),
            },
            Self::Words { answer, truth } => match (answer, truth) {
                (Some(a), Some(b)) if a == b => format!("both say {a}"),
                (Some(a), Some(b)) => format!("{a} and {b} differ"),
                (None, None) => "neither says yes or no".into(),
                (None, Some(_)) => "neither yes nor no in the answer".into(),
                (Some(_), None) => "neither yes nor no in the solution".into(),
            },
        }
    }
}

impl Verdict<'_> {
    pub(crate) fn explained(self) -> Explanation {
        Explanation {
            score: Some(self.rule.score()),
            answer: Some(self.answer.into_owned()),
            truth: Some(self.truth.into_owned()),
            reason: self.rule.reason(),
            ..Explanation::default()
        }
    }
}
