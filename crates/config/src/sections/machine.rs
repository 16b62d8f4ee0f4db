//! The machine.

use crate::ranges::{POSITIVE, demand};
use crate::{ConfigError, section};

section! {
    /// The machine of a run, and its memory.
    pub struct MachineSection {
        "machine" {
            /// `auto`, `cpu` or `cuda:N`.
            device: String = "auto".into(),
            /// Threads that compute; without it, libtorch's choice.
            num_threads: Option<usize> = None,
            /// Threads that read and resize images ahead of need; 0 is 1.
            dataloader_num_workers: usize = 2,
            /// Tokens of one forward and backward pass: a larger group is taken in parts, each with its prompt
            /// and at least one completion; without it, a micro-batch.
            max_tokens_per_microbatch: Option<usize> = None,
            /// Keep f32 weights, moments and summed gradients in host memory, and update there.
            offload_optimizer: bool = false,
            /// Memory of the device for image features while vision tower and merger are frozen, bytes; 0: none.
            feature_cache_bytes: usize = 1 << 30,
            /// Folder of image features, for further runs with this tower; without it, memory alone.
            feature_cache_dir: Option<String> = None,
            /// Fast forms of GPU work: `auto`, those that prove themselves at the start; `all`, `none`, or names with
            /// commas between, untried.
            fast_paths: String = "auto".into(),
        }
    }
}

section! {
    /// The device of a command that does not train.
    pub struct DeviceSection {
        "machine" {
            /// `auto`, `cpu` or `cuda:N`.
            device: String = "auto".into(),
            /// Threads that compute; without it, libtorch's choice.
            num_threads: Option<usize> = None,
            /// Fast forms of GPU work: `auto`, those that prove themselves at the start; `all`, `none`, or names with
            /// commas between, untried.
            fast_paths: String = "auto".into(),
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

section! {
    /// For commands that need no device.
    pub struct DryRunSection {
        "machine" {
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

impl MachineSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.num_threads != Some(0), "num_threads", 0, POSITIVE)?;
        let key = "max_tokens_per_microbatch";
        demand(self.max_tokens_per_microbatch != Some(0), key, 0, POSITIVE)
    }
}

impl DeviceSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.num_threads != Some(0), "num_threads", 0, POSITIVE)
    }
}
