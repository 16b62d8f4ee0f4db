//! How much the demo does and with which settings: everything one might want to turn.

use config::{
    BoxFormat, ColonList, DemoConfig, GrpoConfig, LrSchedulerType, SftConfig, TrainingSections,
};
use serde::Serialize;
use tiny::model::ModelShape;
use tiny::tokenizer::{MERGE_SIZE, PATCH_SIZE};

use super::dataset::{Dataset, DatasetSizes};

/// Sizes and settings of a demo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What is drawn.
    pub data: DatasetSizes,
    /// The model.
    pub model: ModelShape,
    /// Steps of the cold start.
    pub cold_start_steps: usize,
    /// Rows of one of its steps.
    pub cold_start_batch: usize,
    /// Its highest learning rate.
    pub cold_start_lr: f64,
    /// Steps of GRPO, and of the SFT that it is compared with.
    pub grpo_steps: usize,
    /// Prompts of a GRPO step, and rows of a step of that SFT.
    pub grpo_prompts: usize,
    /// Completions of a prompt.
    pub group_size: usize,
    /// GRPO's highest learning rate.
    pub grpo_lr: f64,
    /// Highest learning rate of the SFT that GRPO is compared with.
    pub further_lr: f64,
    /// Weight of the divergence from the cold start.
    pub beta: f64,
    /// Longest completion, tokens.
    pub max_completion_length: usize,
    /// Sampled completions to each held-out question, beside the greedy one.
    pub sampled_completions: usize,
}

impl Plan {
    /// The demo.
    pub const FULL: Self = Self {
        data: DatasetSizes {
            cold_start_scenes: 14_000,
            cold_start_questions: 3,
            train_scenes: 300 * 32,
            test_scenes: 400,
        },
        model: ModelShape::DEMO,
        cold_start_steps: 2_600,
        cold_start_batch: 32,
        cold_start_lr: 2e-3,
        grpo_steps: 300,
        grpo_prompts: 32,
        group_size: 8,
        grpo_lr: 2e-4,
        further_lr: 5e-4,
        beta: 0.04,
        max_completion_length: 40,
        sampled_completions: 8,
    };

    /// The same way, walked in seconds: for tests.
    #[cfg(test)]
    pub const QUICK: Self = Self {
        data: DatasetSizes {
            cold_start_scenes: 300,
            cold_start_questions: 3,
            train_scenes: 96,
            test_scenes: 24,
        },
        cold_start_steps: 50,
        grpo_steps: 6,
        grpo_prompts: 8,
        grpo_lr: 3e-4,
        sampled_completions: 2,
        ..Self::FULL
    };
}

/// Where a stage learns and which model it goes on from.
pub struct Stage<'a> {
    /// Folder of its run.
    pub output_dir: String,
    /// Model folder.
    pub model: String,
    /// Its rows.
    pub rows: String,
    /// The dataset, for its images.
    pub dataset: &'a Dataset,
    /// The demo's own settings.
    pub demo: &'a DemoConfig,
}

/// What SFT and GRPO have in common, over their own defaults.
fn training(mut sections: TrainingSections, stage: &Stage<'_>) -> TrainingSections {
    sections.model.model_name_or_path = stage.model.clone();
    let data = &mut sections.data;
    data.data_file_paths = ColonList(stage.rows.clone());
    data.image_folders = Some(ColonList(stage.dataset.images.display().to_string()));
    data.task_type = Some("rec".into());
    data.min_pixels = ((PATCH_SIZE * MERGE_SIZE) as usize).pow(2);
    sections.optimizer.adam_beta2 = 0.95;
    sections.optimizer.seed = stage.demo.demo.seed;
    sections.run.output_dir = stage.output_dir.clone();
    sections.save.save_steps = 200;
    sections.save.save_total_limit = Some(1);
    let machine = &mut sections.machine;
    machine.device = stage.demo.machine.device.clone();
    machine.num_threads = stage.demo.machine.num_threads;
    machine.fast_paths.clone_from(&stage.demo.machine.fast_paths);
    machine.dataloader_num_workers = 1;
    sections
}

impl Plan {
    /// SFT from random weights, asked as GRPO will ask.
    pub fn cold_start(&self, stage: &Stage<'_>) -> SftConfig {
        let config = SftConfig::default();
        let sections = training(config.training(), stage);
        config.with_training(sections).with(|c| {
            c.sft.with_thinking = true;
            c.optimizer.per_device_train_batch_size = self.cold_start_batch;
            c.optimizer.learning_rate = self.cold_start_lr;
            c.optimizer.lr_scheduler_type = LrSchedulerType::Linear;
            c.optimizer.warmup_steps = 50.0;
            c.optimizer.max_steps = self.cold_start_steps as i64;
        })
    }

    /// As many steps of SFT as GRPO takes.
    pub fn further_sft(&self, stage: &Stage<'_>, batch: usize) -> SftConfig {
        self.cold_start(stage).with(|c| {
            c.optimizer.per_device_train_batch_size = batch;
            c.optimizer.learning_rate = self.further_lr;
            c.optimizer.max_steps = self.grpo_steps as i64;
            c.optimizer.warmup_steps = 10.0;
            c.optimizer.seed = stage.demo.demo.seed.wrapping_add(1);
        })
    }

    /// GRPO with VLM-R1's two rewards of REC.
    pub fn grpo(&self, stage: &Stage<'_>) -> GrpoConfig {
        let config = GrpoConfig::default();
        let sections = training(config.training(), stage);
        config.with_training(sections).with(|c| {
            c.optimizer.per_device_train_batch_size = self.grpo_prompts * self.group_size;
            c.algorithm.num_generations = self.group_size;
            c.optimizer.learning_rate = self.grpo_lr;
            c.optimizer.warmup_steps = 10.0;
            c.optimizer.max_steps = self.grpo_steps as i64;
            c.rewards.reward_funcs = vec!["accuracy".into(), "format".into()];
            c.rewards.is_reward_customized_from_vlm_module = true;
            // The demo's models of all families write pixels.
            c.rewards.box_format = Some(BoxFormat::ModelInput);
            c.rewards.solution_box_format = Some(BoxFormat::Absolute);
            c.algorithm.beta = self.beta;
            c.sampling.max_completion_length = self.max_completion_length;
        })
    }
}
