//! Stop strings, found in the text of a completion as its tokens come, also across their borders.

use std::error::Error;
use std::rc::Rc;

/// Ids to text.
pub type TextDecoder<'m> = dyn Fn(&[u32]) -> Result<String, Box<dyn Error + Send + Sync>> + 'm;

/// What a decoder writes for bytes that are no whole character yet.
const UNFINISHED: char = '\u{fffd}';

/// Looks for stop strings in one completion.
#[derive(Debug)]
pub struct StopMatcher {
    strings: Rc<[String]>,
    /// The end of the text before `ids[read..]`, shorter than the longest stop string.
    tail: Vec<u8>,
    /// Tokens from here on are decoded together: decoders may write a token otherwise at the start of a text.
    prefix: usize,
    /// The text of tokens before this is in `tail`, or was.
    read: usize,
}

impl StopMatcher {
    /// For a new completion; no string is empty.
    pub fn new(strings: Rc<[String]>) -> Self {
        StopMatcher { strings, tail: Vec::new(), prefix: 0, read: 0 }
    }

    /// Whether the last of `ids` completes a stop string. Called once with each token.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn completes(
        &mut self,
        ids: &[u32],
        decode: &TextDecoder<'_>,
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let before = decode(&ids[self.prefix..self.read])?;
        let text = decode(&ids[self.prefix..])?;
        let new = text.as_bytes().get(before.len()..).unwrap_or_default();
        let seen = [&self.tail[..], new].concat();
        let is_found = self.strings.iter().any(|stop| {
            // The match ends within what is new.
            let from = (self.tail.len() + 1).saturating_sub(stop.len());
            seen[from..].windows(stop.len()).any(|window| window == stop.as_bytes())
        });
        if !text.ends_with(UNFINISHED) {
            let longest = self.strings.iter().map(String::len).max().unwrap_or(1);
            self.tail = seen[(seen.len() + 1).saturating_sub(longest)..].to_vec();
            self.prefix = self.read;
            self.read = ids.len();
        }
        Ok(is_found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are bytes.
    fn bytes(ids: &[u32]) -> Result<String, Box<dyn Error + Send + Sync>> {
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Ids are texts of any length.
    fn texts<'t>(
        texts: &'t [&str],
    ) -> impl Fn(&[u32]) -> Result<String, Box<dyn Error + Send + Sync>> + 't {
        |ids| Ok(ids.iter().map(|&id| texts[id as usize]).collect())
    }

    /// How many tokens come before a stop string is complete.
    fn found_at(stops: &[&str], ids: &[u32], decode: &TextDecoder<'_>) -> Option<usize> {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        (1..=ids.len()).find(|&len| matcher.completes(&ids[..len], decode).unwrap())
    }

    fn spelled(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn a_string_is_found_across_tokens_and_within_one() {
        let pieces = ["a", "</ans", "wer", "> and", "x</answer>y", ""];
        let decode = texts(&pieces);
        assert_eq!(found_at(&["</answer>"], &[0, 1, 2, 3, 0], &decode), Some(4));
        assert_eq!(found_at(&["</answer>"], &[0, 1, 5, 2, 5, 5, 3], &decode), Some(7));
        assert_eq!(found_at(&["</answer>"], &[0, 4, 0], &decode), Some(2));
        assert_eq!(found_at(&["</answer>"], &[0, 1, 1, 3, 2], &decode), None);
        assert_eq!(found_at(&["never", "wer>", "</answer>"], &[1, 2, 3], &decode), Some(3));
    }

    #[test]
    fn every_way_of_spelling_ends_at_the_same_byte() {
        let text = "aababab\u{e9}\u{1f980}abc";
        let ids = spelled(text);
        for stop in ["ab", "abab", "\u{e9}", "\u{1f980}", "b\u{e9}\u{1f980}", "c", "aab"] {
            let end = text.find(stop).unwrap() + stop.len();
            assert_eq!(found_at(&[stop], &ids, &bytes), Some(end), "{stop}");
        }
        assert_eq!(found_at(&["abd", "ba\u{e9}"], &ids, &bytes), None);
    }

    #[test]
    fn a_string_before_half_a_character_is_found_at_once() {
        // The fourth byte is the first of two.
        let mut ids = spelled("end\u{e9}");
        ids.truncate(4);
        let pieces = |ids: &[u32]| bytes(ids);
        assert_eq!(found_at(&["end"], &ids, &pieces), Some(3));
        let two_at_once = |list: &[u32]| {
            bytes(
                &list.iter().flat_map(|&i| ids[2 * i as usize..][..2].to_vec()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(found_at(&["end"], &[0, 1], &two_at_once), Some(2));
    }

    #[test]
    fn a_decoder_that_fails_is_an_error() {
        let fails = |_: &[u32]| Err("unknown id".into());
        let error = StopMatcher::new(["x".to_owned()].into()).completes(&[7], &fails);
        assert_eq!(error.unwrap_err().to_string(), "unknown id");
    }
}
