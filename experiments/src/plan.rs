//! How much is drawn and trained: everything one might want to turn.

use serde::Serialize;
use tiny::model::ModelShape;

/// Scenes of grounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GroundingSizes {
    /// Scenes of the base model.
    pub base: usize,
    /// Questions about each.
    pub base_questions: usize,
    /// Scenes of training after it, one question each.
    pub train: usize,
    /// Scenes of each held-out part, one question each.
    pub test: usize,
}

/// Scenes of detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DetectionSizes {
    /// Scenes of the base model.
    pub base: usize,
    /// Questions about each.
    pub base_questions: usize,
    /// Scenes of training after it, one question each.
    pub train: usize,
    /// Held-out scenes.
    pub test: usize,
}

/// A stretch of supervised training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sft {
    /// Optimiser steps.
    pub steps: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
}

/// A stretch of GRPO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Grpo {
    /// Optimiser steps.
    pub steps: usize,
    /// Prompts of a step.
    pub prompts: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Longest completion, tokens.
    pub max_completion_length: usize,
}

/// All sizes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Drawn for grounding.
    pub grounding: GroundingSizes,
    /// Drawn for detection.
    pub detection: DetectionSizes,
    /// The base model of grounding.
    pub grounding_base: Sft,
    /// The base models of detection.
    pub detection_base: Sft,
    /// Reinforcement learning of grounding.
    pub grounding_grpo: Grpo,
    /// Reinforcement learning of detection.
    pub detection_grpo: Grpo,
    /// Learning rate of the tuned SFT that reinforcement learning is compared with; the other has
    /// that of reinforcement learning.
    pub tuned_sft_lr: f64,
    /// Completions of a prompt.
    pub group_size: usize,
    /// Models are evaluated after every so many steps.
    pub eval_every: usize,
    /// Model sizes, the second that of all other studies.
    pub shapes: [(&'static str, ModelShape); 3],
}

const SMALL: ModelShape = ModelShape {
    text_width: 64,
    text_mlp: 192,
    text_layers: 2,
    text_heads: 2,
    text_kv_heads: 1,
    vision_width: 32,
    vision_mlp: 80,
    vision_blocks: 2,
    vision_heads: 2,
};

const LARGE: ModelShape = ModelShape {
    text_width: 192,
    text_mlp: 512,
    text_layers: 2,
    text_heads: 6,
    text_kv_heads: 2,
    vision_width: 80,
    vision_mlp: 200,
    vision_blocks: 2,
    vision_heads: 5,
};

impl Plan {
    /// What `docs/experiments.md` reports.
    pub const FULL: Self = Self {
        grounding: GroundingSizes { base: 15_000, base_questions: 3, train: 300 * 32, test: 300 },
        detection: DetectionSizes { base: 30_000, base_questions: 2, train: 100 * 16, test: 300 },
        grounding_base: Sft { steps: 2_400, batch: 32, lr: 2e-3 },
        detection_base: Sft { steps: 2_000, batch: 32, lr: 2e-3 },
        grounding_grpo: Grpo { steps: 300, prompts: 32, lr: 2e-4, max_completion_length: 40 },
        detection_grpo: Grpo { steps: 150, prompts: 16, lr: 2e-4, max_completion_length: 224 },
        tuned_sft_lr: 5e-4,
        group_size: 8,
        eval_every: 100,
        shapes: [("small", SMALL), ("middle", ModelShape::DEMO), ("large", LARGE)],
    };

    /// The same way, walked in a minute or two: for trying the program, not for findings.
    pub const QUICK: Self = Self {
        grounding: GroundingSizes { base: 200, base_questions: 3, train: 32, test: 16 },
        detection: DetectionSizes { base: 200, base_questions: 2, train: 16, test: 16 },
        grounding_base: Sft { steps: 10, ..Self::FULL.grounding_base },
        detection_base: Sft { steps: 10, ..Self::FULL.detection_base },
        grounding_grpo: Grpo { steps: 4, prompts: 4, ..Self::FULL.grounding_grpo },
        detection_grpo: Grpo {
            steps: 4,
            prompts: 4,
            max_completion_length: 48,
            ..Self::FULL.detection_grpo
        },
        eval_every: 2,
        ..Self::FULL
    };
}
