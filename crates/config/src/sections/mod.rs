//! Sections of settings: what belongs together, whichever command takes it.

mod algorithm;
mod data;
mod machine;
mod model;
mod optimizer;
mod ranks;
mod rewards;
mod run;
mod sampling;

pub use algorithm::AlgorithmSection;
pub use data::DataSection;
pub use machine::{DeviceSection, DryRunSection, MachineSection};
pub use model::{LoadSection, ModelSection};
pub use optimizer::OptimizerSection;
pub use ranks::{RanksSection, ShardsSection};
pub use rewards::{GrpoRewardSection, RewardSection};
pub use run::{EvalSection, RunSection, SaveSection, StartSection};
pub use sampling::{FilterSection, RolloutSection, SamplingSection};
