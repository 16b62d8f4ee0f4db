//! API keys.

use std::fmt;
use std::fs;
use std::path::Path;

use super::PluginOptions;
use crate::error::RewardError;

/// Names the key of rewards over HTTP where no file does.
const VARIABLE: &str = "VLM_R1_REWARD_API_KEY";

/// A secret, which `Debug` does not show.
#[derive(Clone, PartialEq)]
pub struct ApiKey(pub String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl PluginOptions {
    /// The key of rewards over HTTP, if there is one.
    pub(super) fn api_key(&self) -> Result<Option<ApiKey>, RewardError> {
        match &self.api_key_file {
            Some(file) => {
                let place = file.display().to_string();
                read(file).map(Some).map_err(|reason| RewardError::KeyFile { place, reason })
            }
            None => match std::env::var(VARIABLE) {
                Ok(key) if !key.is_empty() => {
                    let place = VARIABLE.to_owned();
                    checked(&key).map(Some).map_err(|reason| RewardError::KeyFile { place, reason })
                }
                _ => Ok(None),
            },
        }
    }
}

fn read(file: &Path) -> Result<ApiKey, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    checked(&text)
}

/// The key without the end of its line, if it can stand in a header.
fn checked(text: &str) -> Result<ApiKey, String> {
    let key = text.trim();
    match key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Err("expected a key of letters, digits and signs, and nothing else".to_owned()),
        false => Ok(ApiKey(key.to_owned())),
    }
}
