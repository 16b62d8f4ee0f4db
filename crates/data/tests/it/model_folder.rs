//! Chat templates and special ids, wherever a model folder keeps them.

use std::fs;
use std::path::Path;

use data::{ChatTemplate, DataError, Message, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

use testing::golden;

/// A copy of the golden folder that a test may change.
pub fn folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(golden("text/tokenizer")).expect("golden folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, dir.path().join(name)).expect("copies");
    }
    dir
}

pub fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("writes");
}

pub fn render(dir: &Path) -> Result<String, DataError> {
    ChatTemplate::from_dir(dir)?.render(&[Message::user(1, "Q")], true)
}

#[test]
fn the_chat_template_is_found_in_each_of_its_places() {
    let dir = folder();
    let dir = dir.path();
    let expected = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\
                    <|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(dir).expect("chat_template.json"), expected);

    fs::remove_file(dir.join("chat_template.json")).expect("removes");
    assert_eq!(render(dir).expect("tokenizer_config.json"), expected);

    edit(dir, "tokenizer_config.json", |config| {
        let template = config["chat_template"].take();
        config["chat_template"] = json!([
            {"name": "tool_use", "template": "wrong"},
            {"name": "default", "template": template},
        ]);
    });
    assert_eq!(render(dir).expect("named templates"), expected);

    fs::write(dir.join("chat_template.jinja"), "jinja {{ eos_token }}\n").expect("writes");
    assert_eq!(render(dir).expect("chat_template.jinja"), "jinja <|im_end|>");

    fs::remove_file(dir.join("chat_template.jinja")).expect("removes");
    edit(dir, "tokenizer_config.json", |config| config["chat_template"] = Value::Null);
    let error = render(dir).expect_err("none left").to_string();
    assert!(error.contains("no chat template: looked for `chat_template.jinja`"), "{error}");
}

#[test]
fn template_errors_name_file_and_line() {
    let dir = folder();
    // The one of this name goes before.
    fs::remove_file(dir.path().join("chat_template.json")).expect("removes");
    let path = dir.path().join("chat_template.jinja");
    fs::write(&path, "{{ messages }}\n{% for %}").expect("writes");
    let error = render(dir.path()).expect_err("broken").to_string();
    assert!(error.contains("chat_template.jinja:2: chat template: "), "{error}");
    fs::write(&path, "\n\n{{ raise_exception('no images here') }}").expect("writes");
    let error = render(dir.path()).expect_err("raises").to_string();
    assert!(error.ends_with("chat_template.jinja:3: chat template: no images here"), "{error}");
}

pub fn id(tokenizer: &Tokenizer, token: &str) -> u32 {
    tokenizer.token_to_id(token).expect("a known token")
}

#[test]
fn special_ids_are_read() {
    let tokenizer = Tokenizer::from_dir(&golden("text/tokenizer")).expect("a tokenizer");
    let [end, text_end] = ["<|im_end|>", "<|endoftext|>"].map(|t| id(&tokenizer, t));
    assert_eq!(tokenizer.eos_ids(), [end, text_end]);
    assert_eq!(tokenizer.pad_id(), Some(text_end));
    assert_eq!(tokenizer.end_of_turn_id(), end);
    assert_eq!(tokenizer.image_token_id(), Some(id(&tokenizer, "<|image_pad|>")));
    assert_eq!(tokenizer.vocab_size(), 600);
    let vision =
        ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"];
    assert_eq!(tokenizer.placeholder_ids(), vision.map(|token| id(&tokenizer, token)));
    // What rows are checked against by default is what this family reserves.
    let mut reserved = tokenizer.reserved_tokens();
    let mut default = data::RowChecks::default().reserved_tokens;
    reserved.sort();
    default.sort();
    assert_eq!(reserved, default);
}

#[test]
fn end_of_sequence_stands_in_many_places() {
    let dir = folder();
    let dir = dir.path();
    let eos = || Tokenizer::from_dir(dir).map(|t| t.eos_ids().to_vec());
    let tokenizer = Tokenizer::from_dir(dir).expect("a tokenizer");
    let [end, text_end] = ["<|im_end|>", "<|endoftext|>"].map(|t| id(&tokenizer, t));

    edit(dir, "generation_config.json", |c| c["eos_token_id"] = json!(text_end));
    assert_eq!(eos().expect("an integer"), [text_end, end]);

    fs::remove_file(dir.join("generation_config.json")).expect("removes");
    edit(dir, "tokenizer_config.json", |c| c["eos_token"] = json!({"content": "<|im_end|>"}));
    assert_eq!(eos().expect("tokenizer_config.json"), [end]);

    edit(dir, "tokenizer_config.json", |c| c["eos_token"] = Value::Null);
    edit(dir, "config.json", |c| {
        c["text_config"] = json!({"eos_token_id": c["eos_token_id"].take()});
    });
    assert_eq!(eos().expect("nested config.json"), [end]);

    edit(dir, "config.json", |c| c["text_config"] = Value::Null);
    assert_eq!(eos().expect("the chat template"), [end]);
    fs::remove_file(dir.join("chat_template.json")).expect("removes");
    edit(dir, "tokenizer_config.json", |c| c["chat_template"] = Value::Null);
    let error = eos().expect_err("nothing names it").to_string();
    assert!(error.contains("no end-of-sequence token"), "{error}");
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let dir = folder();
    edit(dir.path(), "generation_config.json", |c| c["eos_token_id"] = json!([1, 600]));
    let error = Tokenizer::from_dir(dir.path()).expect_err("600 tokens").to_string();
    assert!(error.contains("id 600 is outside the vocabulary of 600 tokens"), "{error}");
}

/// Trainers save `truncation` and `padding` with a tokenizer; obeyed, they would cut prompts.
#[test]
fn saved_truncation_is_not_obeyed() {
    let dir = folder();
    edit(dir.path(), "tokenizer.json", |tokenizer| {
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).expect("a tokenizer");
    assert!(tokenizer.encode("one two three four five six seven").expect("encodes").len() > 7);
}

#[test]
fn a_folder_without_a_tokenizer_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = Tokenizer::from_dir(dir.path()).expect_err("empty").to_string();
    assert!(error.contains("tokenizer.json: no such file\nhint: "), "{error}");
}
