//! What `merge` takes.

use crate::{Validate, section};

section! {
    /// An adapter put into the weights that it was trained over.
    pub struct MergeConfig {
        "merge" {
            /// Folder of the adapter, as PEFT or a run with `--use_peft true` writes it; a run's folder is its newest
            /// checkpoint, or `RUN@100`, `RUN@best`.
            adapter: String,
            /// Folder of the model under it, or its name on the hub; without it, the one that the adapter names.
            base_model: Option<String> = None,
            /// Branch, tag or commit of a model on the hub; without it, `main`.
            model_revision: Option<String> = None,
            /// Folder of the merged model; it must not exist.
            output_dir: String,
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

impl Validate for MergeConfig {}
