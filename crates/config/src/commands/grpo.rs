//! What `grpo` takes. Names are those of VLM-R1's scripts and of the Hugging Face trainers; a default that differs from
//! theirs says so.

use crate::ranges::{demand, validate_overlong};
use crate::sections::{
    AlgorithmSection, DataSection, EvalSection, FilterSection, GrpoRewardSection, MachineSection,
    ModelSection, OptimizerSection, RanksSection, RewardSection, RolloutSection, RunSection,
    SamplingSection, SaveSection, ShardsSection, StartSection,
};
use crate::{ConfigError, DeepSpeedFile, Validate, ZeroStage, command};

command! {
    /// Group relative policy optimisation.
    pub struct GrpoConfig {
        model: ModelSection,
        data: DataSection,
        optimizer: OptimizerSection,
        run: RunSection,
        save: SaveSection,
        eval: EvalSection,
        start: StartSection,
        machine: MachineSection,
        ranks: RanksSection,
        shards: ShardsSection,
        rewards: RewardSection,
        scoring: GrpoRewardSection,
        algorithm: AlgorithmSection,
        sampling: SamplingSection,
        filters: FilterSection,
        rollout: RolloutSection,
    }
    with {
        filters.top_k = 0 => "Keep this many likeliest tokens; 0: all (VLM-R1 inherits 50 from transformers).",
    }
}

/// The sections that `grpo` and `sft` share.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSections {
    /// The model that is trained, and which parts of it.
    pub model: ModelSection,
    /// The rows that are trained on.
    pub data: DataSection,
    /// Steps, learning rate and AdamW.
    pub optimizer: OptimizerSection,
    /// The folder of the run and its log.
    pub run: RunSection,
    /// Checkpoints.
    pub save: SaveSection,
    /// Evaluations during training.
    pub eval: EvalSection,
    /// How the run starts, and what it puts up with.
    pub start: StartSection,
    /// The machine, and its memory.
    pub machine: MachineSection,
    /// How ranks talk to one another.
    pub ranks: RanksSection,
    /// What they hold in shards.
    pub shards: ShardsSection,
}

impl TrainingSections {
    /// What ranks hold in shards where there are so many.
    pub fn zero_stage(&self, ranks: usize) -> ZeroStage {
        self.shards.zero_stage(ranks, self.model.use_peft)
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.data.validate()?;
        self.model.validate()?;
        self.optimizer.validate()?;
        self.run.validate()?;
        self.save.validate()?;
        self.eval.validate(self.run.logging_steps, self.data.val_split_ratio)?;
        self.machine.validate()?;
        self.ranks.validate()
    }

    pub(crate) fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        let sections = [
            self.model.inactive_fields(),
            self.save.inactive_fields(),
            self.eval.inactive_fields(),
        ];
        sections.concat()
    }
}

impl GrpoConfig {
    /// The sections that `sft` has too.
    pub fn training(&self) -> TrainingSections {
        TrainingSections {
            model: self.model.clone(),
            data: self.data.clone(),
            optimizer: self.optimizer.clone(),
            run: self.run.clone(),
            save: self.save.clone(),
            eval: self.eval.clone(),
            start: self.start.clone(),
            machine: self.machine.clone(),
            ranks: self.ranks.clone(),
            shards: self.shards.clone(),
        }
    }

    /// The same with other ones of them.
    #[must_use]
    pub fn with_training(self, sections: TrainingSections) -> Self {
        let TrainingSections {
            model,
            data,
            optimizer,
            run,
            save,
            eval,
            start,
            machine,
            ranks,
            shards,
        } = sections;
        Self { model, data, optimizer, run, save, eval, start, machine, ranks, shards, ..self }
    }
}

impl Validate for GrpoConfig {
    fn deepspeed(&self) -> Option<&str> {
        self.shards.deepspeed.as_deref()
    }

    fn fit_to_ranks(
        &mut self,
        ranks: usize,
        file: Option<&DeepSpeedFile>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut sections = self.training();
        let idle = sections.fit_to_ranks(ranks, file)?;
        *self = std::mem::take(self).with_training(sections);
        Ok(idle)
    }

    fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        [self.training().inactive_fields(), self.algorithm.inactive_fields()].concat()
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.training().validate()?;
        self.algorithm.validate()?;
        let accumulation = self.optimizer.gradient_accumulation_steps;
        let rollout = self.algorithm.steps_per_generation.unwrap_or(accumulation);
        demand(
            rollout.is_multiple_of(accumulation) || accumulation.is_multiple_of(rollout),
            "steps_per_generation",
            rollout,
            "a multiple of `gradient_accumulation_steps`, or a part of it",
        )?;
        demand(
            !(self.algorithm.sync_ref_model && self.model.use_peft),
            "sync_ref_model",
            true,
            "`false` with `use_peft`: the reference is the model under the adapters",
        )?;
        self.sampling.validate()?;
        let most = self.scoring.overlong_max_tokens.unwrap_or(self.sampling.max_completion_length);
        validate_overlong(most, self.rewards.overlong_cache_tokens)?;
        self.rollout.validate()?;
        self.filters.validate()
    }
}
