//! A completion in its parts: thinking, `<answer>` tags, what else there is.

use report::{Passage, Tone};

const THINK: [&str; 2] = ["<think>", "</think>"];
const ANSWER: [&str; 2] = ["<answer>", "</answer>"];

/// The parts in order; joined, they are the completion. Tags belong to their part, and one that is
/// never closed goes on to the end (thinking: to the first `<answer>`).
pub fn completion_parts(completion: &str) -> Vec<Passage> {
    let mut parts = Vec::new();
    let mut push = |tone, text: &str| {
        if !text.is_empty() {
            let text = text.to_owned();
            parts.push(Passage { tone, text });
        }
    };
    let (thinking, mut rest) = completion.split_at(end_of_thinking(completion));
    push(Tone::Thinking, thinking);
    while let Some(start) = rest.find(ANSWER[0]) {
        let end =
            rest[start..].find(ANSWER[1]).map_or(rest.len(), |at| start + at + ANSWER[1].len());
        push(Tone::Plain, &rest[..start]);
        push(Tone::Answer, &rest[start..end]);
        rest = &rest[end..];
    }
    push(Tone::Plain, rest);
    parts
}

fn end_of_thinking(completion: &str) -> usize {
    match (completion.find(THINK[1]), completion.find(THINK[0])) {
        (Some(end), _) => end + THINK[1].len(),
        (None, Some(_)) => completion.find(ANSWER[0]).unwrap_or(completion.len()),
        (None, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_by_hand() {
        let parts = |text: &str| -> Vec<(Tone, String)> {
            let parts = completion_parts(text);
            let parts = parts.into_iter();
            parts.map(|part| (part.tone, part.text)).collect()
        };
        let part = |tone, text: &str| (tone, text.to_owned());
        assert_eq!(
            parts("<think>a <answer>b</answer></think> c<answer>d</answer><answer>e"),
            [
                part(Tone::Thinking, "<think>a <answer>b</answer></think>"),
                part(Tone::Plain, " c"),
                part(Tone::Answer, "<answer>d</answer>"),
                part(Tone::Answer, "<answer>e"),
            ]
        );
        assert_eq!(
            parts("<think>ä<answer>ö</answer>"),
            [part(Tone::Thinking, "<think>ä"), part(Tone::Answer, "<answer>ö</answer>"),]
        );
        assert_eq!(parts("cat"), [part(Tone::Plain, "cat")]);
        assert_eq!(parts("<think>cat"), [part(Tone::Thinking, "<think>cat")]);
        assert_eq!(parts(""), []);
    }
}
