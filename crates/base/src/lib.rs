//! Types that every crate shares: examples, prompts, completions, rollout groups, random draws,
//! metrics, the console, the run folder and model folders. No libtorch here.
//!
//! Legend of shapes used in the whole project:
//! `T` packed tokens · `G` completions of a group · `P` prompt tokens · `C` completion tokens ·
//! `V` vocabulary · `L` layers · `heads`, `kv_heads`, `head_dim` as in `config.json` ·
//! `patches` image patches before the spatial merge.

mod cache;
pub mod console;
mod describe;
pub mod draw;
pub mod example;
pub mod metrics;
pub mod model_folder;
pub mod run_folder;
mod temporary;
pub mod unfinished;
pub mod world;

pub use cache::{cache_folder, fast_path_file};
pub use describe::describe;
pub use draw::DrawKey;
pub use example::{
    Completion, Example, FinishReason, ImageLayout, PreparedImage, Prompt, RolloutGroup, SourceLine,
};
pub use temporary::temporary_file;
