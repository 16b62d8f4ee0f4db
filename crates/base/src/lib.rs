//! Words that every crate shares: samples, prompts, completions, rollout groups, random draws,
//! the run folder and model folders. No libtorch here.
//!
//! Legend of shapes used in the whole project:
//! `T` packed tokens · `G` completions of a group · `P` prompt tokens · `C` completion tokens ·
//! `V` vocabulary · `L` layers · `heads`, `kv_heads`, `head_dim` as in `config.json` ·
//! `patches` image patches before the spatial merge.

pub mod console;
pub mod draw;
pub mod json;
pub mod model_folder;
pub mod run_folder;
pub mod sample;
mod temporary;
pub mod unfinished;

pub use draw::DrawKey;
pub use sample::{
    Completion, FinishReason, PreparedImage, Prompt, RolloutGroup, Sample, SourceLine,
};
pub use temporary::temporary_file;
