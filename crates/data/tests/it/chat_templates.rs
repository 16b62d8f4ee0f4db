//! A template with what the templates of Qwen2-VL, Qwen3-VL and their kin are made of: macros that count in namespaces,
//! the last question found from behind, thoughts split from answers, variables that nobody sets.
//!
//! The texts are what transformers 5.17 renders of the same chats.

use std::path::Path;

use data::{ChatTemplate, Content, Message};

fn say(role: &str, text: &str) -> Message {
    Message { role: role.to_owned(), content: vec![Content::Text { text: text.to_owned() }] }
}

fn render(chat: &[Message], is_open: bool) -> Result<String, String> {
    let template =
        ChatTemplate::new(include_str!("chat/thinking.jinja"), Path::new("t.jinja"), Vec::new());
    template.and_then(|t| t.render(chat, is_open)).map_err(|error| error.to_string())
}

#[test]
fn thoughts_images_and_tools_render_as_in_transformers() {
    const PICTURE: &str = "<|vision_start|><|image_pad|><|vision_end|>";
    let asked = render(&[Message::user(2, "Which?")], true);
    let expected = format!(
        "<|im_start|>user\n{PICTURE}{PICTURE}Which?<|im_end|>\n2 images\n<|im_start|>assistant\n<think>\n"
    );
    assert_eq!(asked, Ok(expected));
    let answered = [Message::user(1, "Q"), say("assistant", "<think>\nhm\n</think>\n\nA")];
    let expected = format!(
        "<|im_start|>user\n{PICTURE}Q<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nA<|im_end|>\n\
         1 images\n"
    );
    assert_eq!(render(&answered, false), Ok(expected));
    let chat = [
        say("system", "S"),
        Message::user(0, "Q"),
        say("assistant", "<think>x</think>A"),
        Message::user(1, "R"),
    ];
    let expected = format!(
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
         <|im_start|>user\n{PICTURE}R<|im_end|>\n1 images\n<|im_start|>assistant\n<think>\n"
    );
    assert_eq!(render(&chat, true), Ok(expected));
}

#[test]
fn what_a_macro_raises_names_the_line() {
    let system = Message { role: "system".to_owned(), ..Message::user(1, "") };
    let error = render(&[system], true).expect_err("a image in a system turn");
    assert!(error.starts_with("t.jinja:9: ") && error.ends_with("no image here"), "{error}");
}
