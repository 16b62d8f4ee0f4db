//! What `demo` takes.

use crate::sections::DeviceSection;
use crate::{ConfigError, Validate, command, section};

section! {
    /// The demo.
    pub struct DemoSection {
        "run" {
            /// Folder of the demo; one that was stopped is continued.
            out: String = "out/demo".into(),
            /// Seed of the images, of the weights and of all random draws.
            seed: u64 = 42,
            /// Family of the model, `model_type` of a config.json.
            family: String = "qwen2_5_vl".into(),
        }
    }
}

command! {
    /// The main job on images that it draws itself.
    pub struct DemoConfig {
        demo: DemoSection,
        machine: DeviceSection,
    }
}

impl Validate for DemoConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        self.machine.validate()
    }
}
