//! Several ranks: how they wait for one another, and what is in shards.

use crate::ranges::{POSITIVE, demand};
use crate::{ConfigError, ZeroStage, ZeroStageSetting, section};

section! {
    /// How ranks talk to one another.
    pub struct RanksSection {
        "ranks" {
            /// Longest wait for another rank, seconds: who is late by then is named, and all end.
            ddp_timeout: usize = 1800,
            /// Compare the operations of all ranks before each of them: slower, and names the ranks that differ.
            check_collectives: bool = false,
        }
    }
}

section! {
    /// What ranks hold in shards.
    pub struct ShardsSection {
        "ranks" {
            /// What ranks hold in shards: 0, nothing; 2, exact weights, moments, summed gradients and reference; `auto`,
            /// 2 above one rank, with LoRA 0. 1 runs as 2; 3 runs as 2 where that fits.
            zero_stage: ZeroStageSetting = ZeroStageSetting::Auto,
            /// DeepSpeed's configuration, a file or its JSON: stage and offload are obeyed, other settings must be
            /// `auto` or as the flags have them.
            deepspeed: Option<String> = None,
        }
    }
}

impl RanksSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.ddp_timeout > 0, "ddp_timeout", 0, POSITIVE)
    }
}

impl ShardsSection {
    /// What a run on so many ranks does.
    pub fn zero_stage(&self, ranks: usize, is_lora: bool) -> ZeroStage {
        self.zero_stage.resolved(ranks, is_lora)
    }
}
