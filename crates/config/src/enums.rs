//! Fields that hold one of a few words.

use std::path::PathBuf;

use super::declare::{Kind, Setting, choices};

choices! {
    /// How the learning rate goes after the warm-up.
    pub enum LrSchedulerType {
        /// Linearly to 0 at the last step.
        Linear = "linear",
        /// Half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Half a cosine to the `min_lr` or `min_lr_rate` of `lr_scheduler_kwargs`.
        CosineWithMinLr = "cosine_with_min_lr",
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
        /// After every pass over the data and at the end.
        Epoch = "epoch",
        /// At the end only.
        No = "no",
    }
}

choices! {
    /// When the policy is evaluated during training.
    pub enum EvalStrategy {
        /// Every `eval_steps` steps and at the end.
        Steps = "steps",
        /// After every pass over the data and at the end.
        Epoch = "epoch",
        /// Never.
        No = "no",
    }
}

choices! {
    /// The loss of a completion's tokens, by TRL's names.
    pub enum LossType {
        /// Clipped ratio; mean over completions of the mean over tokens.
        Grpo = "grpo",
        /// Clipped ratio; mean over the tokens of the update's batch.
        Bnpo = "bnpo",
        /// Clipped ratio; sum over tokens, by completions times `max_completion_length`.
        DrGrpo = "dr_grpo",
        /// Clipped ratio; mean over the tokens of the update's batch.
        Dapo = "dapo",
        /// REINFORCE, weighted by the ratio up to `epsilon_high`; mean over tokens.
        Cispo = "cispo",
        /// The ratio behind a sigmoid; mean over completions of the mean over tokens.
        Sapo = "sapo",
        /// Clipped ratio; mean over completions of the sum over tokens.
        Luspo = "luspo",
        /// REINFORCE, weighted by a smooth function of the completion's ratio; mean over tokens.
        Vespo = "vespo",
        /// The geometric mean of a completion's clipped ratios; mean over completions.
        Gmpo = "gmpo",
    }
}

impl LossType {
    /// Whether the ratio is clipped from both sides.
    pub fn clips(self) -> bool {
        matches!(self, Self::Grpo | Self::Bnpo | Self::DrGrpo | Self::Dapo | Self::Luspo)
    }
}

choices! {
    /// What a ratio is of.
    pub enum RatioLevel {
        /// A token.
        Token = "token",
        /// A completion: the geometric mean over its tokens.
        Sequence = "sequence",
    }
}

choices! {
    /// How rewards become advantages.
    pub enum AdvantageEstimator {
        /// Less the mean of the group.
        Grpo = "grpo",
        /// Less the mean of the others of the group.
        Rloo = "rloo",
        /// Less the mean of the group, by the deviation of the differences in the batch.
        ReinforcePlusPlus = "reinforce_plus_plus",
    }
}

choices! {
    /// What advantages are divided by.
    pub enum ScaleRewards {
        /// What the estimator's authors divide by.
        Auto = "auto",
        /// The deviation of the group's rewards.
        Group = "group",
        /// That of the batch.
        Batch = "batch",
        /// Nothing.
        None = "none",
    }
    also true => Group, false => None
}

choices! {
    /// Whether decoding steps are captured as CUDA graphs.
    pub enum CudaGraphs {
        /// Where they are proven on this device.
        Auto = "auto",
        /// Yes, or an error.
        On = "true",
        /// No.
        Off = "false",
    }
    also true => On, false => Off
}

choices! {
    /// How several rewards become one advantage.
    pub enum MultiObjectiveAggregation {
        /// The weighted sum is normalised.
        SumThenNormalize = "sum_then_normalize",
        /// Each is normalised in its group, and their weighted sum over the batch.
        NormalizeThenSum = "normalize_then_sum",
    }
}

choices! {
    /// Estimators of the divergence (Schulman 2020), of `d = log reference - log policy`.
    pub enum KlEstimator {
        /// `-d`.
        K1 = "k1",
        /// `d^2 / 2`.
        K2 = "k2",
        /// `exp(d) - d - 1`.
        K3 = "k3",
    }
}

choices! {
    /// What is done about the ratio of the policy to its sampler.
    pub enum SamplerCorrection {
        /// Nothing.
        None = "none",
        /// Weigh each token, within the bounds.
        TokenTruncate = "token_truncate",
        /// Weigh each token, and leave out those beyond the bounds.
        TokenMask = "token_mask",
        /// Weigh each completion, within the bounds.
        SequenceTruncate = "sequence_truncate",
        /// Weigh each completion, and leave out those beyond the bounds.
        SequenceMask = "sequence_mask",
    }
}

impl EvalStrategy {
    /// What lies between two evaluations, none where there are none: `eval_steps` alone asks for them.
    pub fn interval(
        strategy: Option<Self>,
        eval_steps: Option<usize>,
        logging_steps: usize,
    ) -> Option<Interval> {
        match strategy {
            Some(Self::No) => None,
            Some(Self::Epoch) => Some(Interval::Epoch),
            Some(Self::Steps) => Some(Interval::Steps(eval_steps.unwrap_or(logging_steps))),
            None => eval_steps.map(Interval::Steps),
        }
    }
}

impl SaveStrategy {
    /// What lies between two checkpoints, none where only the end has one.
    pub fn interval(self, save_steps: usize) -> Option<Interval> {
        match self {
            Self::No => None,
            Self::Epoch => Some(Interval::Epoch),
            Self::Steps => (save_steps > 0).then_some(Interval::Steps(save_steps)),
        }
    }
}

/// What lies between two events of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// This many steps.
    Steps(usize),
    /// A pass over the data.
    Epoch,
}

impl Interval {
    /// In steps.
    pub fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps as u64,
            Self::Epoch => steps_per_epoch,
        }
    }
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Resume {
    /// At the newest checkpoint of its folder; if false, there must be none.
    Newest(bool),
    /// At the checkpoint in this folder.
    From(PathBuf),
}

impl Setting for Resume {
    const KIND: Kind = Kind::BoolOrText;
}

/// What a schedule of the learning rate is told besides.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerKwargs {
    /// The learning rate at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// The same as a part of the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
}

impl Setting for SchedulerKwargs {
    const KIND: Kind = Kind::Numbers(&["min_lr", "min_lr_rate"]);
}

impl SchedulerKwargs {
    /// The part of the highest learning rate that is left at the end.
    pub fn rate(&self, learning_rate: f64) -> Option<f64> {
        match (self.min_lr, self.min_lr_rate) {
            (Some(least), None) => Some(least / learning_rate),
            (None, Some(rate)) => Some(rate),
            _ => None,
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

choices! {
    /// What is asked for of what ranks hold in shards, by the stages of DeepSpeed's ZeRO.
    pub enum ZeroStageSetting {
        /// 2 above one rank; with LoRA 0.
        Auto = "auto",
        /// Nothing.
        Zero = "0",
        /// The optimizer's state.
        One = "1",
        /// That and gradients.
        Two = "2",
        /// Weights too.
        Three = "3",
    }
}

/// What ranks hold in shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroStage {
    /// Nothing: each has all, and gradients are summed.
    Zero,
    /// Exact weights, moments, summed gradients and the reference; weights in the compute type are whole on each.
    Two,
}

impl ZeroStageSetting {
    /// What a run on so many ranks does. One rank has nothing to share. Stage 3 runs as 2; whether that fits is for
    /// the caller to ask.
    pub fn resolved(self, ranks: usize, is_lora: bool) -> ZeroStage {
        match self {
            _ if ranks <= 1 => ZeroStage::Zero,
            Self::Zero => ZeroStage::Zero,
            Self::Auto if is_lora => ZeroStage::Zero,
            Self::Auto | Self::One | Self::Two | Self::Three => ZeroStage::Two,
        }
    }
}

impl ZeroStage {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Two => 2,
        }
    }
}

impl Optim {
    /// Whether moments take 8 bits.
    pub fn is_8bit(self) -> bool {
        matches!(self, Optim::Adamw8bit | Optim::AdamwBnb8bit)
    }
}

impl BoxFormat {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Absolute, Self::ModelInput, Self::Relative1000, Self::Relative1];

    /// Width and height of the whole image in these units, given those of the file and of what the model sees, px.
    pub fn extent(self, original: [f64; 2], input: [f64; 2]) -> [f64; 2] {
        match self {
            Self::Absolute => original,
            Self::ModelInput => input,
            Self::Relative1000 => [1000.0; 2],
            Self::Relative1 => [1.0; 2],
        }
    }

    /// The units in words.
    pub fn described(self) -> &'static str {
        match self {
            Self::Absolute => "pixels of the image",
            Self::ModelInput => "pixels of the model's input",
            Self::Relative1000 => "thousandths of the image",
            Self::Relative1 => "shares of the image",
        }
    }
}

impl CudaGraphs {
    /// What was asked for; `None` for `auto`.
    pub fn asked(self) -> Option<bool> {
        match self {
            CudaGraphs::Auto => None,
            CudaGraphs::On => Some(true),
            CudaGraphs::Off => Some(false),
        }
    }
}
