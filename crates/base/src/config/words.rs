//! Fields that hold one of a few words.

use super::declare::choices;

choices! {
    /// How the learning rate goes after the warm-up.
    pub enum LrSchedulerType {
        /// Linearly to 0 at the last step.
        Linear = "linear",
        /// Half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Not at all, and no warm-up either.
        Constant = "constant",
        /// Not at all.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choices! {
    /// When checkpoints are written.
    pub enum SaveStrategy {
        /// Every `save_steps` steps and at the end.
        Steps = "steps",
        /// At the end only.
        No = "no",
    }
}

choices! {
    /// When the policy is evaluated during training.
    pub enum EvalStrategy {
        /// Every `eval_steps` steps and at the end.
        Steps = "steps",
        /// Never.
        No = "no",
    }
}

impl EvalStrategy {
    /// Steps between two evaluations, none where there are none: `eval_steps` alone asks for them.
    pub fn interval(
        strategy: Option<Self>,
        eval_steps: Option<usize>,
        logging_steps: usize,
    ) -> Option<usize> {
        match strategy {
            Some(Self::No) => None,
            Some(Self::Steps) => Some(eval_steps.unwrap_or(logging_steps)),
            None => eval_steps,
        }
    }
}

choices! {
    /// Which completions a reward must be shown at once.
    pub enum RewardBatch {
        /// All of a step.
        Step = "step",
        /// All of one prompt.
        Group = "group",
        /// Any: each is scored by itself.
        Completion = "completion",
    }
}

choices! {
    /// Units of the corners of a box.
    pub enum BoxFormat {
        /// Pixels of the image file.
        Absolute = "absolute",
        /// Pixels of the resized image that the model sees.
        ModelInput = "model_input",
        /// Thousandths of the image's width and height.
        Relative1000 = "relative_1000",
        /// Shares of the image's width and height.
        Relative1 = "relative_1",
    }
}

choices! {
    /// What to do with a bad row of the data.
    pub enum OnBadRow {
        /// The run stops before it starts.
        Stop = "stop",
        /// The row is left out, counted and listed.
        Skip = "skip",
    }
}

choices! {
    /// Whose way of resizing images is followed.
    pub enum ImageProcessor {
        /// transformers 5 on a CPU.
        Torchvision = "torchvision",
        /// transformers 4.49 and VLM-R1.
        Pillow = "pillow",
    }
}

choices! {
    /// Type of the weights and of what is computed from them.
    pub enum DType {
        /// 32 bits.
        Float32 = "float32",
        /// 16 bits with the range of 32.
        BFloat16 = "bfloat16",
    }
}

choices! {
    /// The optimizer, by the names of transformers.
    pub enum Optim {
        /// AdamW with moments in f32.
        AdamwTorch = "adamw_torch",
        /// The same.
        AdamwTorchFused = "adamw_torch_fused",
        /// The same.
        AdamwHf = "adamw_hf",
        /// AdamW with moments in 8 bits.
        Adamw8bit = "adamw_8bit",
        /// The same.
        AdamwBnb8bit = "adamw_bnb_8bit",
    }
}

impl Optim {
    /// Whether moments take 8 bits.
    pub fn is_8bit(self) -> bool {
        matches!(self, Optim::Adamw8bit | Optim::AdamwBnb8bit)
    }
}
