//! The tokenizer that all experiments share: every sentence of a prompt and every fixed part of an
//! answer is one token, and so is every word and number.

use data::convert::detection_question;
use tiny::scenes::all_expressions;
use tiny::tokenizer::Words;

use crate::detection::all_names;
use crate::grounding::{DIRECTIONS, QUESTION, template};

/// Opens the thinking.
pub const THINK: &str = "<think>";
/// Ends the thinking and opens the answer.
pub const ANSWER: &str = "</think><answer>";
/// Ends the answer.
pub const END: &str = "</answer>";
/// Opens a list of boxes.
pub const LIST: &str = "```json\n[";
/// Ends it.
pub const LIST_END: &str = "]\n```";
/// Opens a labelled box.
pub const BOX: &str = "{\"bbox_2d\": [";
/// Between corners and label.
pub const LABEL: &str = "], \"label\": \"";
/// Ends a labelled box.
pub const BOX_END: &str = "\"}";
/// What a thinking text says that looks without saying what it sees.
pub const LOOK: &str = "let us look";
/// What stands where nothing is found.
pub const NOTHING: &str = "None";

/// What templates have in the place of a question.
const MARK: &str = "{Question}";

/// The words of all experiments.
pub fn tokenizer_corpus() -> Words {
    let [question, question_end] = around(&detection_question(&[MARK]), MARK);
    let [rec, demand] = around(&template("rec"), MARK);
    let [direct, direct_demand] = around(&template("sft_rec"), MARK);
    debug_assert!(rec.is_empty() && direct.is_empty());
    let [detection_demand, rest] = around(&template("odLength"), MARK);
    debug_assert!(rest.is_empty());
    let fixed = [THINK, ANSWER, END, LIST, LIST_END, BOX, LABEL, BOX_END];
    let sentences: Vec<String> = [QUESTION[0].to_owned(), demand, direct_demand, detection_demand]
        .into_iter()
        .chain([question, question_end])
        .chain(fixed.map(str::to_owned))
        .collect();
    let mut texts = sentences.clone();
    texts.push(format!("{LOOK} {NOTHING}"));
    texts.extend([NOTHING, "{\"bbox\": [1, 2]}"].map(str::to_owned));
    for expression in all_expressions() {
        texts.push(format!("{expression}."));
        texts.push(expression.trim_start_matches("the ").to_owned());
    }
    for name in all_names() {
        texts.push(format!("{name}, {name}', '{name}"));
        texts.extend(DIRECTIONS.map(|direction| format!("the shape {direction} the {name}.")));
    }
    Words { sentences, texts }
}

/// What stands before and after `mark`.
fn around(text: &str, mark: &str) -> [String; 2] {
    let (before, after) = text.split_once(mark).unwrap_or((text, ""));
    [before.to_owned(), after.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_whole() {
        let words = tokenizer_corpus();
        assert!(words.sentences.iter().all(|s| !s.is_empty()));
        assert!(words.sentences.iter().any(|s| s.ends_with("objects: ['")));
        assert!(words.sentences.iter().any(|s| s.starts_with("First thinks") && s.ends_with('\n')));
    }
}
