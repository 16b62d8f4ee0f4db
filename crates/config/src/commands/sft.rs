//! What `sft` takes.

use crate::sections::{
    DataSection, EvalSection, MachineSection, ModelSection, OptimizerSection, RanksSection,
    RunSection, SaveSection, ShardsSection, StartSection,
};
use crate::{
    ConfigError, DeepSpeedFile, LrSchedulerType, TrainingSections, Validate, command, section,
};

section! {
    /// What `sft` asks and takes.
    pub struct SftSection {
        "data" {
            /// Ask with the template that wants thinking, as `grpo` does; else with that of plain answers.
            with_thinking: bool = false,
            /// Longest row, tokens: a longer one is an error, nothing is cut; without it, any.
            max_seq_length: Option<usize> = None,
        }
    }
}

command! {
    /// Supervised fine-tuning on the true answers.
    pub struct SftConfig {
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
        sft: SftSection,
    }
    with {
        optimizer.per_device_train_batch_size = 8 => "Rows of one micro-batch.",
        optimizer.learning_rate = 1e-6 => "Highest learning rate (VLM-R1's baseline; the Hugging Face trainer: 2e-5).",
        optimizer.lr_scheduler_type = LrSchedulerType::Cosine =>
            "How the learning rate goes after the warm-up (the Hugging Face trainer: `linear`).",
        optimizer.warmup_ratio = 0.1 => "Part of the steps in which the learning rate rises from 0 (VLM-R1's baseline).",
    }
}

impl SftConfig {
    /// The sections that `grpo` has too.
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

impl Validate for SftConfig {
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
        self.training().inactive_fields()
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.training().validate()
    }
}
