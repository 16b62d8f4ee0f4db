//! One line of VLM-R1's JSONL, checked and turned into a [`Sample`].
//!
//! Format: `{"image": "a.png" | ["a.png", ...], "conversations": [{"from": "human", "value":
//! "<image>question"}, {"from": "gpt", "value": "answer" | number}], "accu_reward_method": ...}`;
//! a row without `image` is text only. The images' content is [`crate::image`]'s matter.

use base::{Sample, SourceLine};
use serde_json::{Map, Value};

use crate::error::RowCause;
use crate::image_folder::ImageFolder;
use crate::python::float_repr;
use crate::unread::{ReadKeys, hidden_media, meant};

pub(crate) const IMAGE_MARK: &str = "<image>";
const HUMAN: [&str; 2] = ["human", "user"];
const MODEL: [&str; 2] = ["gpt", "assistant"];

/// Tokens of Qwen's chat form that must not stand in a question or an answer: the tokenizer would
/// read them as control tokens or as images.
pub const RESERVED_TOKENS: [&str; 8] = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
];

/// What is asked of a row.
#[derive(Clone, Debug)]
pub struct RowChecks {
    /// The answer must hold a box `[x1, y1, x2, y2]` (REC).
    pub expect_box: bool,
    /// Texts that may stand in no question and no answer.
    pub reserved_tokens: Vec<String>,
    /// Whether images may lie where links in the image folder lead.
    pub follow_links: bool,
}

impl Default for RowChecks {
    fn default() -> Self {
        Self {
            expect_box: false,
            reserved_tokens: RESERVED_TOKENS.map(str::to_owned).to_vec(),
            follow_links: false,
        }
    }
}

impl RowChecks {
    /// Adds the texts that a model reserves.
    pub fn reserve(&mut self, tokens: Vec<String>) {
        for token in tokens {
            if !self.reserved_tokens.contains(&token) {
                self.reserved_tokens.push(token);
            }
        }
    }
}

/// Reads one line.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse_row(
    line: &[u8],
    source: SourceLine,
    folder: &ImageFolder,
    file_method: Option<&str>,
    checks: &RowChecks,
) -> Result<Sample, RowCause> {
    let columns = parse_object(line)?;
    let [question, answer] = conversation(&columns)?;
    let names = image_names(&columns)?;
    if let Some(found) = hidden_media(&columns, &ReadKeys::TRAINING) {
        let read = ReadKeys::TRAINING;
        return Err(RowCause::HiddenMedia { found, read });
    }
    let problem = problem_text(question, names.len())?;
    let answer = answer_text(answer)?;
    check_reserved("question", &problem, &checks.reserved_tokens)?;
    check_reserved("answer", &answer, &checks.reserved_tokens)?;
    if checks.expect_box && !holds_box(&answer) {
        return Err(RowCause::NotABox {
            answer: answer.chars().take(80).collect(),
        });
    }
    let accu_reward_method = match columns.get("accu_reward_method") {
        None | Some(Value::Null) => file_method.map(str::to_owned),
        Some(Value::String(method)) => Some(method.clone()),
        Some(other) => return Err(wrong_type("accu_reward_method", "a string", other)),
    };
    let images = names
        .iter()
        .map(|name| folder.resolve(name, checks.follow_links))
        .collect::<Result<_, _>>()?;
    Ok(Sample {
        source,
        images,
        problem,
        solution: format!("<answer> {answer} </answer>"),
        answer,
        accu_reward_method,
        columns,
    })
}

fn parse_object(line: &[u8]) -> Result<Map<String, Value>, RowCause> {
    let text = std::str::from_utf8(line).map_err(|e| RowCause::Utf8 {
        byte: e.valid_up_to(),
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(RowCause::NotAnObject {
            got: type_name(&other),
        }),
        Err(error) => {
            // The parser counts lines too, but there is only one: keep its words, drop its place.
            let reason = error.to_string();
            let reason = reason
                .split(" at line ")
                .next()
                .unwrap_or_default()
                .to_owned();
            Err(RowCause::Json {
                column: error.column(),
                reason,
            })
        }
    }
}

/// The values of the human's and the model's turn.
fn conversation(columns: &Map<String, Value>) -> Result<[&Value; 2], RowCause> {
    let turns = match columns.get("conversations") {
        None => return Err(missing(columns, "conversations")),
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(wrong_type("conversations", "a list", other)),
    };
    let [question, answer] = turns.as_slice() else {
        return Err(RowCause::Turns { got: turns.len() });
    };
    Ok([
        turn_value(question, 1, &HUMAN)?,
        turn_value(answer, 2, &MODEL)?,
    ])
}

/// That a key is missing, and which one was probably meant for it.
pub(crate) fn missing(columns: &Map<String, Value>, key: &'static str) -> RowCause {
    match meant(key, columns) {
        Some(found) => RowCause::OtherKey { key, found },
        None => RowCause::MissingKey { key },
    }
}

fn turn_value<'a>(
    turn: &'a Value,
    number: usize,
    speakers: &[&'static str],
) -> Result<&'a Value, RowCause> {
    let Value::Object(turn) = turn else {
        return Err(wrong_type("conversations[]", "an object", turn));
    };
    match turn.get("from") {
        None if turn.contains_key("role") => {
            return Err(RowCause::OtherKey {
                key: "conversations[].from",
                found: "role".to_owned(),
            });
        }
        None => {
            return Err(RowCause::MissingKey {
                key: "conversations[].from",
            });
        }
        Some(Value::String(from)) if speakers.contains(&from.as_str()) => {}
        Some(Value::String(from)) => {
            return Err(RowCause::Speaker {
                turn: number,
                expected: speakers[0],
                got: from.clone(),
            });
        }
        Some(other) => return Err(wrong_type("conversations[].from", "a string", other)),
    }
    turn.get("value").ok_or(RowCause::MissingKey {
        key: "conversations[].value",
    })
}

fn image_names(columns: &Map<String, Value>) -> Result<Vec<&str>, RowCause> {
    match columns.get("image") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(names)) => names.iter().map(image_name).collect(),
        Some(name) => Ok(vec![image_name(name)?]),
    }
}

fn image_name(value: &Value) -> Result<&str, RowCause> {
    match value {
        Value::String(name) if name.is_empty() => Err(RowCause::Empty { what: "image name" }),
        Value::String(name) => Ok(name),
        other => Err(wrong_type(
            "image",
            "a file name or a list of file names",
            other,
        )),
    }
}

/// The question without its marks; images always come first, as in VLM-R1.
fn problem_text(question: &Value, num_images: usize) -> Result<String, RowCause> {
    let Value::String(question) = question else {
        return Err(wrong_type("conversations[].value", "a string", question));
    };
    let marks = question.matches(IMAGE_MARK).count();
    if marks != 0 && marks != num_images {
        return Err(RowCause::ImageMarks {
            marks,
            images: num_images,
        });
    }
    let problem = question.replace(IMAGE_MARK, "");
    if problem.trim().is_empty() {
        return Err(RowCause::Empty { what: "question" });
    }
    Ok(problem)
}

/// The answer without answer tags; numbers as Python's `str` prints them.
fn answer_text(answer: &Value) -> Result<String, RowCause> {
    let text = match answer {
        Value::String(text) => text
            .replace("<answer>", "")
            .replace("</answer>", "")
            .trim()
            .to_owned(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        Value::Number(number) => match number.as_f64() {
            // An integer too long for 64 bits arrives here as a float and would print otherwise.
            Some(x) if x.abs() < i64::MAX as f64 => float_repr(x),
            _ => return Err(RowCause::BigNumber),
        },
        other => {
            return Err(wrong_type(
                "conversations[].value",
                "a string or a number",
                other,
            ));
        }
    };
    if text.is_empty() {
        return Err(RowCause::Empty { what: "answer" });
    }
    Ok(text)
}

fn check_reserved(what: &'static str, text: &str, reserved: &[String]) -> Result<(), RowCause> {
    match reserved.iter().find(|token| text.contains(token.as_str())) {
        Some(token) => Err(RowCause::ReservedToken {
            what,
            token: token.clone(),
        }),
        None => Ok(()),
    }
}

/// Whether the first bracketed list of four numbers is a box with an inside.
fn holds_box(answer: &str) -> bool {
    answer
        .match_indices('[')
        .find_map(|(start, _)| {
            let inner = &answer[start + 1..];
            let inner = &inner[..inner.find(']')?];
            let numbers: Vec<f64> = inner
                .split(',')
                .map(|n| n.trim().parse().ok())
                .collect::<Option<_>>()?;
            <[f64; 4]>::try_from(numbers).ok()
        })
        .is_some_and(|[x1, y1, x2, y2]| {
            x1 < x2 && y1 < y2 && [x1, y1, x2, y2].iter().all(|edge| edge.is_finite())
        })
}

fn wrong_type(key: &'static str, expected: &'static str, got: &Value) -> RowCause {
    RowCause::WrongType {
        key,
        expected,
        got: type_name(got),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, checks: &RowChecks) -> Result<Sample, RowCause> {
        let source = SourceLine::new("train.jsonl", 7);
        parse_row(
            line.as_bytes(),
            source,
            &ImageFolder::new(None),
            Some("math"),
            checks,
        )
    }

    fn row(question: &str, answer: &str) -> String {
        format!(
            r#"{{"conversations": [{{"from": "human", "value": {question}}}, {{"from": "gpt", "value": {answer}}}], "extra": [1]}}"#
        )
    }

    fn answer(answer: &str) -> Result<String, String> {
        parse(&row("\"q\"", answer), &RowChecks::default())
            .map(|s| s.answer)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn answers_are_what_python_makes_of_them() {
        for (json, text) in [
            ("3", "3"),
            ("-3", "-3"),
            ("0.5", "0.5"),
            ("3.0", "3.0"),
            ("1e-7", "1e-07"),
            ("18446744073709551615", "18446744073709551615"),
            (r#"" <answer> [1, 2, 3, 4] </answer> ""#, "[1, 2, 3, 4]"),
            (r#""<answer>a</answer> and <answer>b</answer>""#, "a and b"),
        ] {
            assert_eq!(answer(json).as_deref(), Ok(text));
        }
        assert!(answer("123456789012345678901234567890").is_err_and(|e| e.contains("64 bits")));
        for bad in ["null", "true", "[1]", "{}"] {
            assert!(answer(bad).is_err_and(|e| e.contains("expected a string or a number")));
        }
        assert_eq!(
            answer("\"<answer> </answer>\""),
            Err("the answer is empty".to_owned())
        );
    }

    #[test]
    fn a_text_row_becomes_a_sample() {
        let sample = parse(&row("\"How many?\"", "2"), &RowChecks::default()).expect("a good row");
        assert_eq!(sample.problem, "How many?");
        assert_eq!(sample.solution, "<answer> 2 </answer>");
        assert_eq!(sample.accu_reward_method.as_deref(), Some("math"));
        assert_eq!(sample.columns["extra"], serde_json::json!([1]));
        assert_eq!(sample.source.to_string(), "train.jsonl:7");
    }

    #[test]
    fn boxes_are_found() {
        for good in [
            "[1, 2, 3, 4]",
            "x [0.5,1,2.5,3] y",
            "[a] [1,2,3,4]",
            "[{\"bbox_2d\": [1, 2, 30, 40]}]",
        ] {
            assert!(holds_box(good), "{good}");
        }
        for bad in [
            "",
            "[1,2,3]",
            "[1,2,3,4,5]",
            "[3,2,1,4]",
            "[1,2,3,NaN]",
            "[1,2,3,inf]",
            "1,2,3,4",
            "[1,2,3,4",
        ] {
            assert!(!holds_box(bad), "{bad}");
        }
        let checks = RowChecks {
            expect_box: true,
            ..RowChecks::default()
        };
        assert!(
            parse(&row("\"q\"", "\"left\""), &checks)
                .is_err_and(|e| e.to_string().contains("no box"))
        );
        assert!(parse(&row("\"q\"", "\"[1,2,3,4]\""), &checks).is_ok());
    }
}
