//! What `logprobs` takes.

use crate::ranges::demand;
use crate::sections::{DeviceSection, LoadSection};
use crate::{AskedSection, ConfigError, Validate, command, section};

section! {
    /// The given completions.
    pub struct RowSection {
        "rows" {
            /// File of completions, one JSON object a line: `images`, `prompt`, `completion`.
            input: String,
            /// Where the log-probabilities go; without it, stdout.
            output: Option<String> = None,
            /// Folder of the images of `input`; without it, the folder of `input`.
            image_folder: Option<String> = None,
            /// Divides the logits.
            temperature: f64 = 1.0,
        }
    }
}

command! {
    /// Log-probabilities of given completions.
    pub struct LogprobsConfig {
        asked: AskedSection,
        load: LoadSection,
        machine: DeviceSection,
        rows: RowSection,
    }
}

impl Validate for LogprobsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        self.machine.validate()?;
        demand(self.rows.temperature > 0.0, "temperature", self.rows.temperature, "above 0")
    }
}
