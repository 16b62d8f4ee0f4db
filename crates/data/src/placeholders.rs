//! Marks that other trainers replace by images, boxes or videos before a model sees the text. They are not replaced here: the
//! model would learn the marks themselves.

/// Names of marks in angle brackets, lower case, without numbers.
const NAMES: [&str; 14] = [
    "image",
    "images",
    "img",
    "img_context",
    "imagehere",
    "image_placeholder",
    "img_placeholder",
    "start_of_image",
    "image_soft_token",
    "video",
    "videos",
    "audio",
    "bbox",
    "ref-object",
];
/// Longest mark that is looked for, bytes.
const MAX_BYTES: usize = 40;

/// The marks in a text, each once, in their order: `<bbox>`, `<image 1>`, `<|image_pad|>`.
pub fn placeholders(text: &str) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for (start, _) in text.match_indices('<') {
        let mark = text[start..].split_inclusive('>').next().unwrap_or_default();
        let is_mark = mark.len() <= MAX_BYTES && mark.ends_with('>') && is_placeholder(mark);
        if is_mark && !found.contains(&mark) {
            found.push(mark);
        }
    }
    found
}

fn is_placeholder(mark: &str) -> bool {
    let inner = &mark[1..mark.len() - 1];
    let token = inner.strip_prefix('|').and_then(|rest| rest.strip_suffix('|'));
    if let Some(token) = token {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        return !token.is_empty() && token.chars().all(is_letter);
    }
    let name = inner.trim_end_matches('/').to_lowercase();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || " _-#".contains(c));
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_other_trainers_are_found_and_other_tags_are_not() {
        let text = "<ref-object> at <bbox>, <bbox>; <Image> <image 12> <img>a.png</img> <|image_pad|> <image/>";
        let marks = [
            "<ref-object>",
            "<bbox>",
            "<Image>",
            "<image 12>",
            "<img>",
            "<|image_pad|>",
            "<image/>",
        ];
        assert_eq!(placeholders(text), marks);
        for other in [
            "",
            "<",
            "a < b > c",
            "<think>",
            "</answer>",
            "<box>[1, 2]</box>",
            "<img src=\"a\">",
            "<imagery>",
            "<||>",
            "<|a b|>",
            "<image",
            "x <\u{e9}> y",
        ] {
            assert!(placeholders(other).is_empty(), "{other}");
        }
    }
}
