//! The commands: what each is called, takes and says of itself. One enum, so that what runs a command
//! is a `match` in which the compiler finds the one that was forgotten.

use std::sync::LazyLock;

use config::Section;
use config::{
    CompatEffect, CompatFlag, Config, DataCheckConfig, DataConvertConfig, DemoConfig, DoctorConfig,
    EvalConfig, Field, GenerateConfig, GrpoConfig, LaunchConfig, LogprobsConfig, MergeConfig,
    PlanConfig, RewardConfig, SftConfig, compat_flags_of_grpo, compat_flags_of_sft,
};
use serde_json::Value;

/// The enum and the list of its variants, both of one list.
macro_rules! commands {
    ($($(#[$doc:meta])* $variant:ident,)*) => {
        /// A command of the program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Command {
            $($(#[$doc])* $variant,)*
        }

        impl Command {
            /// All of them, in the order in which `--help` lists them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
        }
    };
}

commands! {
    /// The main job from nothing, on drawn images.
    Demo,
    /// Training by rewards.
    Grpo,
    /// Training on true answers.
    Sft,
    /// Ranks of a command, started on this machine.
    Launch,
    /// Memory and time of a run, before it is begun.
    Plan,
    /// Questions to a model, or two evaluations compared.
    Eval,
    /// Completions to questions.
    Generate,
    /// Log-probabilities of given completions.
    Logprobs,
    /// Rewards of given completions, of a file or as a service.
    Reward,
    /// An adapter put into its model.
    Merge,
    /// What this machine has and lacks.
    Doctor,
    /// The doctor of training data.
    DataCheck,
    /// Rows made of other data.
    DataConvert,
}

impl Command {
    /// What the command line shows and takes of it.
    pub fn entry(self) -> Entry {
        match self {
            Self::Demo => entry::<DemoConfig>(
                "demo",
                "Draw images, teach a tiny model to find things in them, improve it by GRPO, report",
                none,
            ),
            Self::Grpo => entry::<GrpoConfig>(
                "grpo",
                "Train by group relative policy optimisation; continues the run in --output_dir",
                compat_flags_of_grpo,
            ),
            Self::Sft => entry::<SftConfig>(
                "sft",
                "Train on the true answers; continues the run in --output_dir",
                compat_flags_of_sft,
            ),
            Self::Launch => entry::<LaunchConfig>(
                "launch",
                "Start ranks of grpo, sft or eval on this machine, as torchrun does, without Python",
                none,
            ),
            Self::Plan => entry::<PlanConfig>(
                "plan",
                "What a run of grpo would take: memory by component, the micro-batch that fits, time",
                compat_flags_of_grpo,
            ),
            Self::Eval => entry::<EvalConfig>(
                "eval",
                "Score a model on questions, or tell which of two is better; continues in --output_dir",
                none,
            ),
            Self::Generate => {
                entry::<GenerateConfig>("generate", "Answer questions about images", none)
            }
            Self::Logprobs => entry::<LogprobsConfig>(
                "logprobs",
                "Log-probability of each token of given answers",
                none,
            ),
            Self::Reward => entry::<RewardConfig>(
                "reward",
                "Score given answers: try a reward before training with it",
                none,
            ),
            Self::Merge => entry::<MergeConfig>(
                "merge",
                "Put a LoRA adapter into the weights that it was trained over",
                none,
            ),
            Self::Doctor => entry::<DoctorConfig>(
                "doctor",
                "What this machine has and lacks for a run, as a page to paste into a report",
                none,
            ),
            Self::DataCheck => entry::<DataCheckConfig>(
                "data check",
                "Look at every row and image before a run: all that is wrong, in one pass",
                of_training,
            ),
            Self::DataConvert => entry::<DataConvertConfig>(
                "data convert",
                "Rows of RefCOCO, COCO, D3, OVDEval, LLaMA-Factory, Parquet and VLM-R1's evaluation files",
                none,
            ),
        }
    }

    /// As the user calls it.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The command of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|command| command.name() == name)
    }
}

/// Words before a command's own, and what is behind them.
pub const GROUPS: [(&str, &str); 1] =
    [("data", "Check rows before a run, and make them of other data")];

/// What the command line shows and takes of a command.
pub struct Entry {
    /// One word, or one of [`GROUPS`] and a word.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Its flags.
    pub fields: &'static [Field],
    /// The values of flags that are not given.
    pub defaults: fn() -> Value,
    /// Flags of other programs that it knows of.
    pub foreign: fn() -> &'static [CompatFlag],
}

const fn entry<T: Config>(
    name: &'static str,
    about: &'static str,
    foreign: fn() -> &'static [CompatFlag],
) -> Entry {
    Entry {
        name,
        about,
        fields: T::FIELDS,
        defaults: || serde_json::to_value(T::default()).unwrap_or_default(),
        foreign,
    }
}

fn none() -> &'static [CompatFlag] {
    &[]
}

/// What a file of `grpo` holds beside the flags of `data check`.
fn of_training() -> &'static [CompatFlag] {
    static ALL: LazyLock<Vec<CompatFlag>> = LazyLock::new(|| {
        let own = |name: &str| DataCheckConfig::FIELDS.iter().any(|field| field.name == name);
        let of_grpo = GrpoConfig::FIELDS.iter().filter(|field| !own(field.name));
        let of_grpo = of_grpo.map(|field| CompatFlag {
            name: field.name,
            effect: CompatEffect::None("of training"),
        });
        let foreign = compat_flags_of_grpo().iter().copied();
        foreign.chain(of_grpo).collect()
    });
    &ALL
}
