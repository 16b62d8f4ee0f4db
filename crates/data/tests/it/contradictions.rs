//! Files of a model folder that contradict one another: what transformers takes is taken, and it is said.

use std::fs::{self, File};
use std::path::Path;

use base::console::Log;
use data::image::RgbImage;
use data::{DataError, Processor, ProcessorOptions, ResizeBackend, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model_folder::{edit, folder, id, render};

const END: &str = "<|im_end|>";
const TEXT_END: &str = "<|endoftext|>";

/// What is said of `dir` while `work` runs; other tests speak meanwhile, of other folders.
fn said_of<R>(dir: &Path, work: impl FnOnce() -> R) -> (R, String) {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("log");
    let log = Log::open(&path, File::create(&path).expect("a log"));
    let result = work();
    drop(log);
    let text = fs::read_to_string(&path).expect("reads");
    let name = dir.to_str().expect("a name");
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
    (result, lines.join("\n"))
}

fn processor(dir: &Path) -> Result<Processor, DataError> {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        max_prompt_length: None,
        apply_exif: false,
    };
    Processor::from_dir(dir, &options)
}

fn ids(dir: &TempDir) -> [u32; 2] {
    let tokenizer = Tokenizer::from_dir(dir.path()).expect("a tokenizer");
    [END, TEXT_END].map(|token| id(&tokenizer, token))
}

/// Takes every end out of the files; the chat template still writes one.
fn without_ends(dir: &Path) {
    edit(dir, "generation_config.json", |c| c["eos_token_id"] = Value::Null);
    edit(dir, "config.json", |c| c["eos_token_id"] = Value::Null);
    edit(dir, "tokenizer_config.json", |c| c["eos_token"] = Value::Null);
}

#[test]
fn what_sft_teaches_as_the_end_is_obeyed_whatever_the_files_say() {
    let dir = folder();
    let [end, text_end] = ids(&dir);
    type Edit = fn(&Path, u32);
    let cases: [(Edit, &[u32]); 6] = [
        (|_, _| (), &[end]),
        (
            |dir, id| edit(dir, "generation_config.json", |c| c["eos_token_id"] = json!(id)),
            &[text_end, end],
        ),
        (|dir, id| edit(dir, "config.json", |c| c["eos_token_id"] = json!([id])), &[text_end, end]),
        (
            |dir, id| edit(dir, "config.json", |c| c["text_config"] = json!({"eos_token_id": id})),
            &[text_end, end],
        ),
        (
            |dir, _| edit(dir, "tokenizer_config.json", |c| c["eos_token"] = json!(TEXT_END)),
            &[text_end, end],
        ),
        (
            |dir, _| {
                let map = json!({"eos_token": {"content": TEXT_END}}).to_string();
                fs::write(dir.join("special_tokens_map.json"), map).expect("writes");
            },
            &[text_end, end],
        ),
    ];
    for (change, expected) in cases {
        let dir = folder();
        without_ends(dir.path());
        change(dir.path(), text_end);
        let (processor, said) = said_of(dir.path(), || processor(dir.path()).expect("a processor"));
        assert_eq!(processor.tokenizer().eos_ids(), expected);
        let answer = processor.answer_ids("x").expect("ids");
        assert_eq!(answer.last(), Some(&end));
        for part in ["note: ", END, "the chat template"] {
            assert!(said.contains(part), "no `{part}` in: {said}");
        }
        assert_eq!(said.contains(TEXT_END), expected.len() > 1, "{said}");
        let (_, again) = said_of(dir.path(), || self::processor(dir.path()));
        assert_eq!(again, "", "said once");
    }
}

#[test]
fn files_that_agree_are_not_spoken_of() {
    let dir = folder();
    let (_, said) = said_of(dir.path(), || processor(dir.path()).expect("a processor"));
    assert_eq!(said, "");
}

#[test]
fn the_end_is_what_the_template_writes() {
    let write = |dir: &TempDir, after: &str| {
        fs::remove_file(dir.path().join("chat_template.json")).expect("removes");
        let template = format!(
            "{{% for m in messages %}}[{{{{ m.role }}}}]{{% for c in m.content %}}{{{{ c.text }}}}{{% endfor %}}{after}{{% endfor %}}"
        );
        fs::write(dir.path().join("chat_template.jinja"), template).expect("writes");
    };
    let [end, text_end] = ids(&folder());
    for (after, taught, obeyed) in [
        ("<|endoftext|>\n", text_end, vec![text_end]),
        ("\n<|endoftext|><|im_end|>", text_end, vec![text_end, end]),
        // Nothing that is a token: as ever.
        ("\n---\n", end, vec![end]),
        ("", end, vec![end]),
    ] {
        let dir = folder();
        edit(dir.path(), "generation_config.json", |c| c["eos_token_id"] = json!(taught));
        edit(dir.path(), "config.json", |c| c["eos_token_id"] = Value::Null);
        edit(dir.path(), "tokenizer_config.json", |c| c["eos_token"] = Value::Null);
        write(&dir, after);
        let processor = processor(dir.path()).expect("a processor");
        assert_eq!(processor.tokenizer().end_of_turn_id(), taught, "{after}");
        assert_eq!(processor.tokenizer().eos_ids(), obeyed, "{after}");
    }
}

#[test]
fn ends_that_are_none_are_refused_by_file_and_key() {
    for (file, key, value, reason) in [
        (
            "generation_config.json",
            "eos_token_id",
            json!("420"),
            "expected a token id or a list of them, got \"420\"",
        ),
        (
            "generation_config.json",
            "eos_token_id",
            json!([580, null]),
            "expected a token id or a list of them, got null",
        ),
        ("generation_config.json", "eos_token_id", json!(-1), "got -1"),
        ("config.json", "eos_token_id", json!(580.5), "got 580.5"),
        (
            "config.json",
            "eos_token_id",
            json!(600),
            "token id 600 is outside the vocabulary of 600 tokens",
        ),
        ("config.json", "video_token_id", json!(7000), "token id 7000 is outside the vocabulary"),
        (
            "config.json",
            "text_config",
            json!({"eos_token_id": {}}),
            "`eos_token_id`: expected a token id",
        ),
        (
            "tokenizer_config.json",
            "eos_token",
            json!("</s>"),
            "token `</s>` is not in the vocabulary",
        ),
        ("tokenizer_config.json", "eos_token", json!(7), "expected a token, got 7"),
    ] {
        let dir = folder();
        edit(dir.path(), file, |c| c[key] = value);
        let error = Tokenizer::from_dir(dir.path()).expect_err("refused").to_string();
        assert!(error.contains(file) && error.contains(reason), "{error}");
    }
    // Lists that are empty name none.
    let dir = folder();
    edit(dir.path(), "generation_config.json", |c| c["eos_token_id"] = json!([]));
    let tokenizer = Tokenizer::from_dir(dir.path()).expect("a tokenizer");
    assert_eq!(tokenizer.eos_ids(), [id(&tokenizer, END)]);
}

#[test]
fn chat_templates_come_in_the_order_of_transformers() {
    let dir = folder();
    let dir = dir.path();
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("writes");
    let legacy = json!({"chat_template": "legacy"}).to_string();
    write("chat_template.jinja", "jinja");
    write("chat_template.json", &legacy);
    let (text, said) = said_of(dir, || render(dir).expect("renders"));
    assert_eq!(text, "legacy");
    for part in [
        "warning: ",
        "that of `chat_template.json` is taken",
        "passed over: `chat_template.jinja`, `tokenizer_config.json`",
    ] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    let (_, again) = said_of(dir, || render(dir).expect("renders"));
    assert_eq!(again, "", "said once");

    write("processor_config.json", r#"{"chat_template": "processor"}"#);
    assert_eq!(render(dir).expect("processor_config.json"), "processor");
    write("processor_config.json", r#"{"chat_template": {"default": "named", "other": "x"}}"#);
    assert_eq!(render(dir).expect("processor_config.json"), "named");
    write("processor_config.json", r#"{"chat_template": null}"#);
    assert_eq!(render(dir).expect("chat_template.json"), "legacy");

    fs::remove_file(dir.join("chat_template.json")).expect("removes");
    assert_eq!(render(dir).expect("chat_template.jinja"), "jinja");
    fs::create_dir(dir.join("additional_chat_templates")).expect("a folder");
    write("additional_chat_templates/tool_use.jinja", "wrong");
    assert_eq!(render(dir).expect("the default"), "jinja");

    write("chat_template.json", &legacy);
    let error = render(dir).expect_err("as in transformers").to_string();
    let expected =
        "chat_template.json: cannot stand beside `additional_chat_templates/tool_use.jinja`";
    assert!(error.contains(expected), "{error}");
    for name in ["chat_template.json", "chat_template.jinja"] {
        fs::remove_file(dir.join(name)).expect("removes");
    }
    let error = render(dir).expect_err("no default").to_string();
    assert!(error.contains("tool_use.jinja: no default template"), "{error}");
    write("additional_chat_templates/default.jinja", "default");
    assert_eq!(render(dir).expect("by name"), "default");
}

#[test]
fn equal_templates_and_broken_keys() {
    let dir = folder();
    let template = |value: Value| {
        fs::write(
            dir.path().join("chat_template.json"),
            json!({"chat_template": value}).to_string(),
        )
        .expect("writes");
    };
    edit(dir.path(), "tokenizer_config.json", |c| c["chat_template"] = json!("a\nb"));
    template(json!("a\r\nb\n"));
    let (_, said) = said_of(dir.path(), || render(dir.path()).expect("renders"));
    assert_eq!(said, "", "the same to Jinja");
    for (value, reason) in [
        (json!(7), "expected a text or named texts, got 7"),
        (json!([{"name": "tool_use", "template": "x"}]), "none of the name `default`"),
    ] {
        template(value);
        let error = render(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("chat_template.json: `chat_template`: "), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn other_settings_of_the_image_processor_are_named() {
    let dir = folder();
    let flat = fs::read_to_string(dir.path().join("preprocessor_config.json")).expect("reads");
    let mut nested: Value = serde_json::from_str(&flat).expect("JSON");
    let write = |nested: &Value| {
        let text = json!({"image_processor": nested}).to_string();
        fs::write(dir.path().join("processor_config.json"), text).expect("writes");
    };
    let read = || {
        let (processor, said) = said_of(dir.path(), || processor(dir.path()).expect("a processor"));
        (processor.image_processor().clone(), said)
    };
    write(&Value::Null);
    assert_eq!(read().1, "", "none is none");
    write(&nested);
    assert_eq!(read().1, "", "the same");
    nested["max_pixels"] = json!(100_352);
    nested["image_mean"] = json!([0.5, 0.5, 0.5]);
    write(&nested);
    let (images, said) = read();
    let black = RgbImage::new(56, 56, vec![0; 3 * 56 * 56]);
    // A mean of 0.5, and the red deviation of CLIP.
    let value = images.prepare(&black).expect("an image").pixel_values[0];
    assert!((value + 0.5 / 0.268_629_54).abs() < 1e-5, "{value}");
    assert!(said.contains("differs in `max_pixels`, `image_mean`"), "{said}");
    nested["size"] = json!({"shortest_edge": 3136, "longest_edge": 50_176});
    write(&nested);
    let (images, said) = read();
    assert_eq!(images.kind().pixel_bounds().longest_edge, 100_352);
    assert!(said.contains("`max_pixels` 100352 is taken"), "{said}");
}

#[test]
fn other_files_of_the_tokenizer_are_compared() {
    let dir = folder();
    let tokenizer = Tokenizer::from_dir(dir.path()).expect("a tokenizer");
    let end = id(&tokenizer, END);
    let write = |name: &str, value: Value| {
        fs::write(dir.path().join(name), value.to_string()).expect("writes");
        said_of(dir.path(), || Tokenizer::from_dir(dir.path()).expect("a tokenizer")).1
    };
    assert_eq!(write("vocab.json", json!({END: end})), "");
    let said = write("vocab.json", json!({END: end, "new": 7}));
    assert!(said.contains("vocab.json: differs from tokenizer.json"), "{said}");
    let said = write("added_tokens.json", json!({END: end + 1}));
    assert!(said.contains("added_tokens.json: differs from tokenizer.json"), "{said}");
    edit(dir.path(), "tokenizer_config.json", |c| {
        let token = c["added_tokens_decoder"]["580"].take();
        c["added_tokens_decoder"] = json!({"577": token});
    });
    let error = Tokenizer::from_dir(dir.path()).expect_err("refused").to_string();
    let expected =
        "`added_tokens_decoder`: `<|im_end|>` has the id 577, in tokenizer.json it has the id 580";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn files_of_different_models_are_refused_by_what_differs() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 4] = [
        (
            |config| config["image_token_id"] = json!(3),
            "`image_token_id` is 3, but `<|image_pad|>` has the id",
        ),
        (
            |config| config["vision_config"] = json!({"spatial_merge_size": 4}),
            "`vision_config.spatial_merge_size` is 4, but `merge_size` of the image processor is 2",
        ),
        (
            |config| config["vision_config"] = json!({"patch_size": 16}),
            "`vision_config.patch_size` is 16, but `patch_size`",
        ),
        (
            |config| config["vision_config"] = json!({"temporal_patch_size": 1}),
            "`vision_config.temporal_patch_size` is 1",
        ),
    ];
    for (change, cause) in cases {
        let dir = folder();
        edit(dir.path(), "config.json", change);
        let error = processor(dir.path()).expect_err(cause).to_string();
        assert!(error.contains(cause) && error.contains("\nhint: "), "{error}");
        assert!(error.contains("config.json: "), "{error}");
    }
}
