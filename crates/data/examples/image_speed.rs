//! Time from image files to patches, as `benchmarks/images.py` asks for it.
//!
//! `image_speed MODEL_DIR THREADS ROUNDS FILE...` prints the seconds of each round, one a line.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement, not the program")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use data::Processor;
use data::image::ResizeBackend;
use data::processor::ProcessorOptions;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("MODEL_DIR THREADS ROUNDS FILE...");
    let folder = next()?;
    let (threads, rounds): (usize, usize) = (next()?.parse()?, next()?.parse()?);
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    };
    let processor = Processor::from_dir(Path::new(&folder), &options)?;
    for _ in 0..rounds {
        let start = Instant::now();
        let taken = AtomicUsize::new(0);
        thread::scope(|scope| {
            let work = || -> Result<(), Error> {
                while let Some(file) = files.get(taken.fetch_add(1, Ordering::Relaxed)) {
                    let image = processor.load_image(file)?;
                    assert!(!image.pixel_values.is_empty(), "no patches");
                }
                Ok(())
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
        })?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
