//! `--zero_stage 3` asks for weights in shards. It runs as stage 2, with whole weights, where the plan says that these
//! fit, and else not at all.

use std::path::Path;

use config::{GrpoConfig, SftConfig};

use super::{Choice, PlanInputs, completions_that_fit, memory, plan_inputs};
use crate::TrainError;

/// Longest answer that is planned for where `max_seq_length` does not say.
const ANSWER_TOKENS: usize = 512;

/// What a run of `grpo` on so many ranks would take by stage 2, in words, where it fits into `available` bytes of a rank.
///
/// # Errors
/// Where it does not, with what of this machine's size would; and as [`plan_inputs`].
pub fn check_stage_three(
    config: &GrpoConfig,
    ranks: usize,
    model_dir: &Path,
    available: u64,
) -> Result<String, TrainError> {
    plan_inputs(config, ranks, model_dir)?.stage_two_for_three(available)
}

/// As [`check_stage_three`], for `sft`.
///
/// # Errors
/// As [`check_stage_three`].
pub fn check_stage_three_of_sft(
    config: &SftConfig,
    ranks: usize,
    model_dir: &Path,
    available: u64,
) -> Result<String, TrainError> {
    let same = GrpoConfig::default().with_training(config.training()).with(|c| {
        // A row is a prompt with one completion.
        c.algorithm.beta = 0.0;
        c.algorithm.num_generations = 1;
        c.sampling.max_completion_length = config.sft.max_seq_length.unwrap_or(ANSWER_TOKENS);
    });
    check_stage_three(&same, ranks, model_dir, available)
}

impl PlanInputs {
    /// Bytes of a rank by stage 2 with the smallest micro-batch.
    fn least(&self, choice: Choice) -> u64 {
        let choice = Choice { accumulates: true, ..choice };
        let batch = self.micro_batch.of_completions(1, self.group);
        memory(&self.shape, choice, &batch, &self.sampled).peak
    }

    /// Whether any micro-batch fits.
    fn fits(&self, choice: Choice, available: u64) -> bool {
        let load = (&self.micro_batch, self.group);
        completions_that_fit(&self.shape, choice, load, &self.sampled, available) > 0
    }

    /// What stage 2 takes of a rank instead of stage 3, in words, where it fits into `available` bytes.
    ///
    /// # Errors
    /// Where it does not, with the settings that would.
    pub fn stage_two_for_three(&self, available: u64) -> Result<String, TrainError> {
        let needed = gigabytes(self.least(self.choice));
        let figures = format!(
            "weights in shards are not built yet; stage 2, with whole weights, takes at least {needed} GB of each of {} \
             ranks, which have {} GB",
            self.choice.ranks.count,
            gigabytes(available)
        );
        if self.fits(self.choice, available) {
            return Ok(format!("zero_stage 3 runs as 2: {figures}"));
        }
        Err(TrainError::Setting {
            name: "zero_stage",
            cause: format!("3: {figures}\nhint: {}", self.ways_out(available)),
        })
    }

    /// Settings with which stage 2 fits.
    fn ways_out(&self, available: u64) -> String {
        let plain = self.choice;
        let in_8bit = Choice { in_8bit: true, recompute: true, ..plain };
        let host = Choice { offload_optimizer: true, recompute: true, ..plain };
        let both = Choice { offload_reference: plain.reference, ..host };
        let ways = [
            ("--gradient_checkpointing true", Choice { recompute: true, ..plain }),
            ("--gradient_checkpointing true --optim adamw_8bit", in_8bit),
            ("--gradient_checkpointing true --offload_optimizer true", host),
            (
                "--gradient_checkpointing true --offload_optimizer true --offload_reference true",
                both,
            ),
            (
                "--gradient_checkpointing true --use_peft true",
                Choice { trained: self.lora, recompute: true, ..plain },
            ),
        ];
        let fits = ways.iter().filter(|(_, choice)| self.fits(*choice, available));
        let fits: Vec<String> = fits.map(|(flags, _)| format!("`{flags}`")).collect();
        match fits.as_slice() {
            [] => "none of our settings fits; it takes cards with more memory, or a smaller model"
                .to_owned(),
            fits => format!("what fits: {}", fits.join(", or ")),
        }
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}
