//! The secret of those who may ask.

use std::fmt;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::WebError;

/// Fewest characters: shorter ones can be tried one after the other.
const MIN_LENGTH: usize = 16;

/// A key, kept as its digest.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key of `file`; without one, that of the variable of the environment, where it is set.
    ///
    /// # Errors
    /// Where the file cannot be read, and where what is there is short or no key.
    pub fn find(file: Option<&Path>, variable: &str) -> Result<Option<Self>, WebError> {
        let (place, text) = match file {
            Some(file) => (file.display().to_string(), fs::read_to_string(file)),
            None => match std::env::var(variable) {
                Ok(key) if !key.is_empty() => (variable.to_owned(), Ok(key)),
                _ => return Ok(None),
            },
        };
        let key = text.map_err(|error| error.to_string());
        let key = key.and_then(|text| Self::new(text.trim()));
        key.map(Some).map_err(|reason| WebError::Key { place, reason })
    }

    /// The key of this text.
    ///
    /// # Errors
    /// Where it is short, or cannot stand in a header.
    pub fn new(text: &str) -> Result<Self, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected letters, digits and signs, and nothing else".to_owned());
        }
        if text.len() < MIN_LENGTH {
            return Err(format!("got {} characters, expected at least {MIN_LENGTH}", text.len()));
        }
        Ok(Self(digest(text)))
    }

    /// Whether `text` is it. The time says nothing of where they differ.
    pub fn is(&self, text: &str) -> bool {
        let pairs = self.0.iter().zip(digest(text));
        let differing = pairs.fold(0, |all, (own, other)| black_box(all | (own ^ other)));
        differing == 0
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_by_hand() {
        let key = Key::new("0123456789abcdef").expect("a key");
        assert!(key.is("0123456789abcdef"));
        for other in ["", "0123456789abcdeF", "0123456789abcdef ", "0123456789abcde"] {
            assert!(!key.is(other), "{other}");
        }
        assert!(Key::new("short").unwrap_err().contains("at least 16"));
        assert!(Key::new("0123456789 abcdef").is_err());
        assert!(!format!("{key:?}").contains('7'));
    }
}
