//! The chat template of a model folder: Jinja, rendered as transformers renders it.
//!
//! transformers' settings: `trim_blocks`, `lstrip_blocks`, loop controls, its own `tojson`,
//! `raise_exception`, `strftime_now`, and `{% generation %}` blocks, which do not change the text.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use python::json_dumps::{DumpStyle, json_dumps};
use serde::Serialize;

use crate::chat_bounds;
use crate::chat_files;
use crate::error::DataError;
use crate::model_files::read_optional_json;

/// Special tokens that transformers hands to the template by name.
const TOKEN_KEYS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// One turn of a chat.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said, in order.
    pub content: Vec<Content>,
}

/// A piece of a turn.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Content {
    /// An image; its pixels travel apart.
    Image,
    /// Text.
    Text {
        /// The text.
        text: String,
    },
}

impl Message {
    /// A user's turn as VLM-R1 builds it: the images first, then the text.
    pub fn user(num_images: usize, text: &str) -> Self {
        let mut content = vec![Content::Image; num_images];
        content.push(Content::Text { text: text.to_owned() });
        Self { role: "user".to_owned(), content }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    syntax: SyntaxConfig,
    /// The file it came from.
    path: PathBuf,
    special_tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// The template of a model folder, where transformers' `AutoProcessor` finds it: `chat_template` of `processor_config.json`,
    /// else `chat_template.json`, else `chat_template.jinja`; else, what only its tokenizers read, `chat_template` of
    /// `tokenizer_config.json`. Of several named ones it is `default`. Others that differ are named in a warning.
    ///
    /// # Errors
    /// No template, broken JSON, files that transformers refuses beside one another, a template that does not compile.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        let config = read_optional_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let special_tokens = TOKEN_KEYS
            .iter()
            .filter_map(|key| Some((*key, token_text(config.get(key)?)?)))
            .collect();
        let (path, source) = chat_files::choose(dir)?;
        Self::new(&source, &path, special_tokens)
    }

    /// Compiles a template. `path` is named in messages; `special_tokens` are variables of the
    /// template (`bos_token` and so on).
    ///
    /// # Errors
    /// A template that does not compile.
    pub fn new(
        source: &str,
        path: &Path,
        special_tokens: Vec<(&'static str, String)>,
    ) -> Result<Self, DataError> {
        let refuse = |error: Error| template_error(path, &error);
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(refuse)?;
        let source = without_generation_tags(source);
        let mut environment = Environment::new();
        chat_bounds::bound(&mut environment, &source, syntax.clone()).map_err(refuse)?;
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        Ok(Self { environment, source, syntax, path: path.to_owned(), special_tokens })
    }

    /// The text of a chat; with `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// What the template raises, with its line.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Serde(messages).into()),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        context.extend(self.special_tokens.iter().map(|(key, text)| (*key, text.as_str().into())));
        let context = Value::from_pairs(context);
        chat_bounds::render(&self.environment, &self.source, self.syntax.clone(), context)
            .map_err(|error| template_error(&self.path, &error))
    }

    /// What follows an answer at the end of a chat; `None` of a template that takes no such chat.
    pub(crate) fn after_answer(&self) -> Option<String> {
        let text = ANSWER.to_owned();
        let answer =
            Message { role: "assistant".to_owned(), content: vec![Content::Text { text }] };
        let chat = self.render(&[Message::user(0, "?"), answer], false).ok()?;
        Some(chat.rsplit_once(ANSWER)?.1.to_owned())
    }
}

/// A text that no template writes of itself.
const ANSWER: &str = "vlm-r1-answer";

/// A special token of `tokenizer_config.json`: a text, or an object with `content`.
pub(crate) fn token_text(token: &serde_json::Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// `{% generation %}` marks the assistant's text for masks and renders what it holds; `{% if true %}`
/// does the same, and keeps lines and the trimming of white space as they were.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start..start + length + 2]);
        out.push_str(before);
        let word =
            tag[2..tag.len() - 2].trim_matches(|c| c == '-' || c == '+' || char::is_whitespace(c));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 2..];
    }
    out + rest
}

fn template_error(path: &Path, error: &Error) -> DataError {
    let detail = error.detail().map(str::to_owned).unwrap_or_else(|| error.kind().to_string());
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => {
            "the template takes too many steps\nhint: does it loop over more than the messages?"
                .to_owned()
        }
        ErrorKind::InvalidOperation | ErrorKind::SyntaxError => detail,
        kind => format!("{kind}: {detail}"),
    };
    DataError::ChatTemplate { path: path.to_owned(), line: error.line().unwrap_or(0), reason }
}

/// transformers' `tojson`: `json.dumps` with `ensure_ascii=False`, and nothing escaped for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    const MAX_INDENT: usize = 64;
    chat_bounds::walk(&value, 0)?;
    let mut style = DumpStyle::default();
    let indent = options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    if let Some(indent) = indent {
        // As in Python, lines that end at their separator carry no space after it.
        style.item_separator = ",".to_owned();
        style.indent = Some(match usize::try_from(indent.clone()) {
            Ok(width) => " ".repeat(width.min(MAX_INDENT)),
            Err(_) => indent.as_str().unwrap_or_default().to_owned(),
        });
    }
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators).map_err(|_| {
            Error::new(ErrorKind::InvalidOperation, "`separators`: expected two texts")
        })?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    style.ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(json_dumps(&value, &style))
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Local time, as `datetime.now().strftime(format)`.
fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut out = String::new();
    match write!(out, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(out),
        Err(_) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("`strftime_now`: unknown format `{format}`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        ChatTemplate::new(source, Path::new("t.jinja"), vec![("bos_token", "<s>".to_owned())])
            .and_then(|t| t.render(&[Message::user(1, "hé <b>")], true))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn templates_render_as_in_transformers() {
        for (source, text) in [
            ("{{ bos_token }}{{ messages[0].content[1]['text'] }}", "<s>hé <b>"),
            (
                "{{ messages | tojson }}",
                r#"[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hé <b>"}]}]"#,
            ),
            ("{{ {'a': [1.0, none]} | tojson(indent=1) }}", "{\n \"a\": [\n  1.0,\n  null\n ]\n}"),
            ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
            ("a\n  {% generation %}\n b\n{%- endgeneration -%} c", "a\n bc"),
            ("{% if tools %}x{% endif %}{{ undefined_name }}.", "."),
            ("{{ messages[::-1][0]['role'].upper() }}", "USER"),
            ("{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(text), "{source}");
        }
        assert!(render("{{ strftime_now('%Y') }}").is_ok_and(|year| year.len() == 4));
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(
            render("a\nb\n{{ raise_exception('Only one turn') }}"),
            Err("t.jinja:3: chat template: Only one turn".to_owned())
        );
        assert!(render("a\n{% if %}").is_err_and(|e| e.starts_with("t.jinja:2: chat template: ")));
        assert!(render("{{ strftime_now('%!') }}").is_err_and(|e| e.contains("unknown format")));
    }
}
