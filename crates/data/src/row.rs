//! One line of VLM-R1's JSONL, checked and turned into an [`Example`].
//!
//! Format: `{"image": "a.png" | ["a.png", ...], "conversations": [{"from": "human", "value":
//! "<image>question"}, {"from": "gpt", "value": "answer" | number}], "accu_reward_method": ...}`;
//! a row without `image` is text only. [`crate::image`] reads the images.

use base::{Example, SourceLine, describe};
use python::json::{self, Lost};
use python::repr::str_of;
use serde_json::{Map, Value, json};

use crate::error::RowCause;
use crate::families::DataFamily;
use crate::image_folder::ImageFolder;
use crate::unread::{ReadKeys, hidden_media, meant};

pub(crate) const IMAGE_MARK: &str = "<image>";
/// Keys by which an item of a list is known as a row.
const ROW_KEYS: [&str; 9] = [
    "conversations",
    "messages",
    "problem",
    "question",
    "query",
    "prompt",
    "instruction",
    "image",
    "images",
];
/// Lists of a row whose items are no rows.
const TURN_LISTS: [&str; 5] = ["conversations", "messages", "prompt", "images", "image"];
const HUMAN: [&str; 2] = ["human", "user"];
const MODEL: [&str; 2] = ["gpt", "assistant"];

/// Texts that may stand in no question and no answer, whatever the model: tokenizers read those of VLM-R1's own runs as control
/// tokens or as images.
pub(crate) fn reserved_tokens() -> impl Iterator<Item = &'static str> {
    DataFamily::WITHOUT_MODEL.reserved_tokens()
}

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
            reserved_tokens: reserved_tokens().map(str::to_owned).collect(),
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
) -> Result<Example, RowCause> {
    let reader = RowReader { folder, method: file_method, checks, takes_problems: false };
    reader.read(line, source).map(|row| row.example)
}

/// A row, and the values in it that a [`Value`] cannot hold.
#[derive(Debug)]
pub(crate) struct ReadRow {
    pub(crate) example: Example,
    pub(crate) lost: Vec<Lost>,
}

/// How the rows of a file are read.
#[derive(Clone, Copy)]
pub(crate) struct RowReader<'a> {
    pub(crate) folder: &'a ImageFolder,
    /// Accuracy method of rows that name none.
    pub(crate) method: Option<&'a str>,
    pub(crate) checks: &'a RowChecks,
    /// Whether `problem` and `solution` are read as a conversation, as in VLM-R1's evaluation files.
    pub(crate) takes_problems: bool,
}

impl RowReader<'_> {
    pub(crate) fn read(&self, text: &[u8], source: SourceLine) -> Result<ReadRow, RowCause> {
        let (mut columns, lost) = parse_columns(text)?;
        let has_problem = !columns.contains_key("conversations") && columns.contains_key("problem");
        if self.takes_problems && has_problem {
            refuse_lost(&lost, |path| matches!(path, ["problem" | "solution" | "image", ..]))?;
            add_conversation(&mut columns)?;
        } else {
            refuse_lost(&lost, is_read)?;
        }
        let example = self.example(columns, source)?;
        Ok(ReadRow { example, lost })
    }

    fn example(
        &self,
        columns: Map<String, Value>,
        source: SourceLine,
    ) -> Result<Example, RowCause> {
        let [question, answer] = conversation(&columns)?;
        let names = image_names(&columns)?;
        if let Some(found) = hidden_media(&columns, &ReadKeys::TRAINING) {
            let read = ReadKeys::TRAINING;
            return Err(RowCause::HiddenMedia { found, read });
        }
        let problem = problem_text(question, names.len())?;
        let answer = answer_text(answer)?;
        check_reserved("question", &problem, &self.checks.reserved_tokens)?;
        check_reserved("answer", &answer, &self.checks.reserved_tokens)?;
        if self.checks.expect_box && !holds_box(&answer) {
            return Err(RowCause::NotABox { answer: answer.chars().take(80).collect() });
        }
        let accu_reward_method = match columns.get("accu_reward_method") {
            None | Some(Value::Null) => self.method.map(str::to_owned),
            Some(Value::String(method)) => Some(method.clone()),
            Some(other) => return Err(wrong_type("accu_reward_method", "a string", other)),
        };
        let images = names
            .iter()
            .map(|name| self.folder.resolve(name, self.checks.follow_links))
            .collect::<Result<_, _>>()?;
        Ok(Example {
            source,
            images,
            problem,
            solution: format!("<answer> {answer} </answer>"),
            answer,
            accu_reward_method,
            columns,
        })
    }
}

/// The object of a row, as Python's `json` reads it, and the values in it that a [`Value`] cannot hold.
///
/// # Errors
/// Text that is no JSON object.
pub fn parse_columns(text: &[u8]) -> Result<(Map<String, Value>, Vec<Lost>), RowCause> {
    let text = std::str::from_utf8(text).map_err(|e| RowCause::Utf8 { byte: e.valid_up_to() })?;
    let parsed = json::parse(text).map_err(|error| RowCause::Json {
        column: error.at + 1,
        reason: error.reason.to_owned(),
    })?;
    match parsed.value {
        Value::Object(columns) => Ok((columns, parsed.lost)),
        other => Err(RowCause::NotAnObject { got: describe(&other) }),
    }
}

/// Refuses values that a [`Value`] cannot hold under keys that are read.
///
/// # Errors
/// The first of it under a path that `is_read` names.
pub fn refuse_lost(lost: &[Lost], is_read: impl Fn(&[&str]) -> bool) -> Result<(), RowCause> {
    for lost in lost {
        let path: Vec<&str> = lost.path.iter().map(String::as_str).collect();
        if is_read(&path) {
            return Err(RowCause::Lost { key: key_of(&lost.path), what: lost.what.clone() });
        }
    }
    Ok(())
}

/// A path in words: `conversations[1].value`.
pub(crate) fn key_of(path: &[String]) -> String {
    let mut key = String::new();
    for step in path {
        if !key.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()) {
            key.push_str(&format!("[{step}]"));
        } else {
            key.push_str(if key.is_empty() { "" } else { "." });
            key.push_str(step);
        }
    }
    key
}

/// Whether training reads the value at this path.
fn is_read(path: &[&str]) -> bool {
    match path {
        ["conversations", _, key, ..] => matches!(*key, "from" | "value"),
        ["image" | "accu_reward_method", ..] => true,
        _ => false,
    }
}

/// `problem` and `solution` as a conversation.
fn add_conversation(columns: &mut Map<String, Value>) -> Result<(), RowCause> {
    let Some(solution) = columns.get("solution") else {
        return Err(missing(columns, "solution"));
    };
    let turns = json!([
        {"from": "human", "value": columns["problem"]},
        {"from": "gpt", "value": solution},
    ]);
    columns.insert("conversations".into(), turns);
    Ok(())
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
    Ok([turn_value(question, 1, &HUMAN)?, turn_value(answer, 2, &MODEL)?])
}

/// The error of a missing key, with the key that was probably meant.
pub(crate) fn missing(columns: &Map<String, Value>, key: &'static str) -> RowCause {
    if let Some(wrapped) = wrapped(columns) {
        return wrapped;
    }
    match meant(key, columns) {
        Some(found) => RowCause::OtherKey { key, found },
        None => RowCause::MissingKey { key },
    }
}

/// That an object is no row, but holds rows: `{"data": [{...}, ...]}`, or COCO's file.
pub fn wrapped(columns: &Map<String, Value>) -> Option<RowCause> {
    let is_list = |key: &str| columns.get(key).is_some_and(Value::is_array);
    if is_list("annotations") && is_list("images") {
        let key = "annotations".to_owned();
        return Some(RowCause::Wrapped { key, is_coco: true });
    }
    let is_row = |value: &Value| {
        let keys = value.as_object().into_iter().flatten();
        keys.into_iter().any(|(key, _)| ROW_KEYS.contains(&key.as_str()))
    };
    let holds_rows =
        |value: &&Value| value.as_array().and_then(|list| list.first()).is_some_and(is_row);
    let (key, _) = columns
        .iter()
        .filter(|(key, _)| !TURN_LISTS.contains(&key.as_str()))
        .find(|(_, value)| holds_rows(value))?;
    Some(RowCause::Wrapped { key: key.clone(), is_coco: false })
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
            return Err(RowCause::MissingKey { key: "conversations[].from" });
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
    turn.get("value").ok_or(RowCause::MissingKey { key: "conversations[].value" })
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
        other => Err(wrong_type("image", "a file name or a list of file names", other)),
    }
}

/// The question without its marks; images always come first, as in VLM-R1.
fn problem_text(question: &Value, num_images: usize) -> Result<String, RowCause> {
    let Value::String(question) = question else {
        return Err(wrong_type("conversations[].value", "a string", question));
    };
    let marks = question.matches(IMAGE_MARK).count();
    if marks != 0 && marks != num_images {
        return Err(RowCause::ImageMarks { marks, images: num_images });
    }
    let problem = question.replace(IMAGE_MARK, "");
    if problem.trim().is_empty() {
        return Err(RowCause::Empty { what: "question" });
    }
    Ok(problem)
}

/// The answer without answer tags; other values become text as in VLM-R1, by Python's `str`.
fn answer_text(answer: &Value) -> Result<String, RowCause> {
    let text = match answer {
        Value::String(text) => {
            text.replace("<answer>", "").replace("</answer>", "").trim().to_owned()
        }
        other => str_of(other),
    };
    if text.is_empty() {
        return Err(RowCause::Empty { what: "answer" });
    }
    Ok(text)
}

fn check_reserved(what: &'static str, text: &str, reserved: &[String]) -> Result<(), RowCause> {
    match reserved.iter().find(|token| text.contains(token.as_str())) {
        Some(token) => Err(RowCause::ReservedToken { what, token: token.clone() }),
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
            let numbers: Vec<f64> =
                inner.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
            <[f64; 4]>::try_from(numbers).ok()
        })
        .is_some_and(|[x1, y1, x2, y2]| {
            x1 < x2 && y1 < y2 && [x1, y1, x2, y2].iter().all(|edge| edge.is_finite())
        })
}

fn wrong_type(key: &'static str, expected: &'static str, got: &Value) -> RowCause {
    RowCause::WrongType { key, expected, got: describe(got) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, checks: &RowChecks) -> Result<Example, RowCause> {
        let source = SourceLine::new("train.jsonl", 7);
        parse_row(line.as_bytes(), source, &ImageFolder::new(None), Some("math"), checks)
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
            ("-0", "0"),
            ("[10, 20.0, 60,80]", "[10, 20.0, 60, 80]"),
            ("[[1,2],[3,4]]", "[[1, 2], [3, 4]]"),
            (r#"{"a": "it's", "b": [null, true]}"#, r#"{'a': "it's", 'b': [None, True]}"#),
            ("true", "True"),
            ("false", "False"),
            ("null", "None"),
            ("[]", "[]"),
            (r#""<answer>a</answer> and <answer>b</answer>""#, "a and b"),
        ] {
            assert_eq!(answer(json).as_deref(), Ok(text));
        }
        assert!(answer("123456789012345678901234567890").is_err_and(|e| e.contains("64 bits")));
        assert_eq!(answer("\"<answer> </answer>\""), Err("the answer is empty".to_owned()));
    }

    #[test]
    fn a_text_row_becomes_a_sample() {
        let example = parse(&row("\"How many?\"", "2"), &RowChecks::default()).expect("a good row");
        assert_eq!(example.problem, "How many?");
        assert_eq!(example.solution, "<answer> 2 </answer>");
        assert_eq!(example.accu_reward_method.as_deref(), Some("math"));
        assert_eq!(example.columns["extra"], serde_json::json!([1]));
        assert_eq!(example.source.to_string(), "train.jsonl:7");
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
        let checks = RowChecks { expect_box: true, ..RowChecks::default() };
        assert!(
            parse(&row("\"q\"", "\"left\""), &checks)
                .is_err_and(|e| e.to_string().contains("no box"))
        );
        assert!(parse(&row("\"q\"", "\"[1,2,3,4]\""), &checks).is_ok());
    }
}
