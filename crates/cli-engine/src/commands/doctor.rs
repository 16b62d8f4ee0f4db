//! The engine's part of `doctor`: what its libtorch is. The front starts it to ask, because only the engine maps libtorch.

use anyhow::Result;
use cli::commands::LibtorchFacts;

/// Prints [`LibtorchFacts`] as JSON. libtorch's part for GPUs is loaded, to know whether it loads.
///
/// # Errors
/// Never.
pub fn doctor() -> Result<()> {
    let num_cards = torch::num_cards();
    let build = torch::libtorch_build();
    let facts = LibtorchFacts {
        folder: build.folder,
        cuda_major: build.cuda_major,
        has_cuda_library: build.has_cuda_library,
        failure: build.failure,
        num_cards,
        num_threads: tch::get_num_threads().unsigned_abs() as usize,
    };
    base::print_data!("{}", serde_json::to_string(&facts)?);
    Ok(())
}
