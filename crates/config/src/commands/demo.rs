//! What `demo` takes.

use crate::ranges::{POSITIVE, demand};
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
            /// Train on so many ranks, processes that `launch` starts; the result is that of one, to rounding.
            ranks: usize = 1,
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
        demand(self.demo.ranks > 0, "ranks", 0, POSITIVE)?;
        self.machine.validate()
    }
}
