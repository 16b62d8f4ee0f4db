//! The command line of both programs, and all of the front: arguments, help, and the commands that ask no model
//! (`reward`, `data`, `eval --compare`). No libtorch here: the commands that compute are in `cli-engine`.

pub mod arguments;
mod best_checkpoint;
pub mod command;
pub mod commands;
pub mod hub;
pub mod launch;
pub mod launched;
pub mod output;
pub mod problems;
pub mod program;
pub mod progress;
pub mod rows;
pub mod signals;
pub mod which_model;

/// For libtorch's tensors on the CPU too: between steps less memory lies idle than with the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
