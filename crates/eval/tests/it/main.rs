//! What is made of completions: metrics, and what makes them doubtful. No model is asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[cfg(test)]
mod detection_metrics;
#[cfg(test)]
mod warnings;

use std::path::PathBuf;
use std::sync::Arc;

use data::{Processor, ProcessorOptions, ResizeBackend};

fn golden() -> PathBuf {
    testing::golden("parity")
}

fn processor() -> Arc<Processor> {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    };
    Arc::new(Processor::from_dir(&testing::checkpoint("nested"), &options).unwrap())
}
