//! Prompt templates around a question, applied before the chat template: VLM-R1's task prompts, or the user's own.

use std::fs;
use std::path::Path;

use crate::error::{DataError, io_error};
use crate::families::DataFamily;

const QUESTION: &str = "{Question}";

/// Task names and their templates, as VLM-R1's Qwen module has them (commit 90052f4). `sft_rec` is
/// what its SFT baseline and its evaluation of base models ask.
pub const TASK_TEMPLATES: [(&str, &str); 6] = [
    (
        "default",
        "{Question} First output the thinking process in <think> </think> tags and then output \
         the final answer in <answer> </answer> tags.",
    ),
    (
        "rec",
        "{Question} First output the thinking process in <think> </think> tags and then output \
         the final answer in <answer> </answer> tags. Output the final answer in JSON format.",
    ),
    (
        "ic",
        "{Question} First thinks about the reasoning process in the mind and then provides the \
         user with the answer. The reasoning process and answer are enclosed within <think> \
         </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here \
         </think><answer> json format answer here </answer>",
    ),
    (
        "odLength",
        "First thinks about the reasoning process in the mind and then provides the user with the \
         answer. The reasoning process and answer are enclosed within <think> </think> and \
         <answer> </answer> tags, respectively, i.e., <think> reasoning process here \
         </think><answer> answer here </answer>\n{Question}",
    ),
    ("sft_rec", "{Question} Please provide the bounding box coordinate in JSON format."),
    ("none", "{Question}"),
];

/// A text with at least one `{Question}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTemplate {
    text: String,
}

impl PromptTemplate {
    /// A template from a task name, a text with `{Question}` in it, or a file with such a text
    /// (one newline at its end does not count).
    ///
    /// # Errors
    /// None of the three; a file that cannot be read or lacks `{Question}`.
    pub fn resolve(given: &str) -> Result<Self, DataError> {
        if let Some((_, text)) = TASK_TEMPLATES.iter().find(|(name, _)| *name == given) {
            return Ok(Self { text: (*text).to_owned() });
        }
        if given.contains(QUESTION) {
            return Ok(Self { text: given.to_owned() });
        }
        let path = Path::new(given);
        if !path.is_file() {
            let known = TASK_TEMPLATES.map(|(name, _)| name).join(", ");
            return Err(DataError::PromptTemplate { given: given.to_owned(), known });
        }
        let text = fs::read_to_string(path).map_err(io_error(path))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
        if text.contains(QUESTION) {
            return Ok(Self { text });
        }
        let reason = format!("expected a prompt template with `{QUESTION}` in it");
        Err(DataError::ModelFile { path: path.to_owned(), reason })
    }

    /// The text of the user's turn for one question.
    pub fn apply(&self, question: &str) -> String {
        self.text.replace(QUESTION, question)
    }
}

/// The template asked for, else that of the task in a model's family: with thinking, or for plain answers.
///
/// # Errors
/// One that is neither a name, nor a text with `{Question}`, nor a file with such a text.
pub fn template(
    given: &Option<String>,
    task: Option<&str>,
    thinking: bool,
    family: DataFamily,
) -> Result<PromptTemplate, DataError> {
    PromptTemplate::resolve(template_name(given.as_deref(), task, thinking, family))
}

/// What [`template`] resolves.
pub fn template_name<'a>(
    given: Option<&'a str>,
    task: Option<&'a str>,
    thinking: bool,
    family: DataFamily,
) -> &'a str {
    match (given, task, thinking) {
        (Some(given), _, _) => given,
        (None, Some("rec"), false) => "sft_rec",
        (None, _, false) => "none",
        (None, Some(task), true) if family.task_templates.contains(&task) => task,
        (None, _, true) => "default",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_read_as_published() {
        let rec = PromptTemplate::resolve("rec").expect("a known task");
        assert_eq!(
            rec.apply("Where? {Question}"),
            "Where? {Question} First output the thinking process in <think> </think> tags and then \
             output the final answer in <answer> </answer> tags. Output the final answer in JSON \
             format."
        );
        let od = PromptTemplate::resolve("odLength").expect("a known task").apply("Q");
        assert!(od.starts_with("First thinks") && od.ends_with("</answer>\nQ"));
        assert_eq!(PromptTemplate::resolve("none").expect("a known task").apply("Q"), "Q");
        for (name, text) in TASK_TEMPLATES {
            assert!(text.contains(QUESTION) && !text.contains("  "), "{name}");
        }
    }

    /// VLM-R1's modules of InternVL and GLM ask every task by one template.
    #[test]
    fn templates_of_tasks_go_by_family() {
        for (model_type, rec, counting) in [
            ("qwen2_5_vl", "rec", "odLength"),
            ("qwen2_vl", "rec", "odLength"),
            ("qwen3_vl", "rec", "odLength"),
            ("internvl", "default", "default"),
            ("glm4v", "default", "default"),
            ("unheard_of", "default", "default"),
        ] {
            let family = DataFamily::of(model_type);
            let name = |task, thinking| template_name(None, Some(task), thinking, family);
            assert_eq!(
                [name("rec", true), name("odLength", true)],
                [rec, counting],
                "{model_type}"
            );
            assert_eq!(
                [name("rec", false), name("ic", false)],
                ["sft_rec", "none"],
                "{model_type}"
            );
            assert_eq!(template_name(Some("rec"), None, true, family), "rec", "{model_type}");
            assert_eq!(template_name(None, Some("math"), true, family), "default", "{model_type}");
        }
    }

    #[test]
    fn a_text_or_a_file_will_do() {
        assert_eq!(
            PromptTemplate::resolve("Q: {Question}\nA:").expect("a text").apply("x"),
            "Q: x\nA:"
        );
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("mine.txt");
        fs::write(&path, "File: {Question}\n").expect("write");
        let given = path.to_str().expect("UTF-8");
        assert_eq!(PromptTemplate::resolve(given).expect("a file").apply("x"), "File: x");
        fs::write(&path, "no mark").expect("write");
        assert!(PromptTemplate::resolve(given).is_err_and(|e| e.to_string().contains("mine.txt")));
        assert!(PromptTemplate::resolve("rce").is_err_and(|e| e.to_string().contains("odLength")));
    }
}
