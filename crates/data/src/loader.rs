//! Turns examples into prompts ahead of need: worker threads decode and prepare images while the
//! device trains.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Example, PreparedImage, Prompt};

use crate::error::{BadRows, DataError, RowCause, RowError};
use crate::image::ImageError;
use crate::prefetch::Prefetcher;
use crate::processor::Processor;
use crate::row_index::Rows;
use crate::rows::OnBadRow;
use crate::template::PromptTemplate;

/// How a [`PromptLoader`] works.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Threads that decode.
    pub workers: usize,
    /// Prompts prepared before they are asked for.
    pub ahead: usize,
    /// Bytes of prepared images kept for later epochs.
    pub cache_bytes: usize,
    /// What to do with an example that fails to load (a truncated image, a prompt too long).
    pub on_bad_row: OnBadRow,
    /// Whether digests of images are computed ahead of need too.
    pub digests: bool,
}

/// Examples by their index.
pub trait Examples: Send + Sync + 'static {
    /// The example at an index.
    ///
    /// # Errors
    /// One that cannot be read.
    fn example(&self, index: usize) -> Result<Cow<'_, Example>, DataError>;
}

impl Examples for Rows {
    fn example(&self, index: usize) -> Result<Cow<'_, Example>, DataError> {
        self.get(index).map(Cow::Owned)
    }
}

impl Examples for Arc<[Example]> {
    fn example(&self, index: usize) -> Result<Cow<'_, Example>, DataError> {
        Ok(Cow::Borrowed(&self[index]))
    }
}

/// A loaded example, or a skipped one.
#[derive(Debug)]
pub enum Loaded {
    /// Ready to be sampled or trained on.
    Ready {
        /// Index of the example in the data set.
        example_index: usize,
        /// Its prompt.
        prompt: Prompt,
    },
    /// Left out under [`OnBadRow::Skip`]; it still takes up its place in the order.
    Skipped {
        /// Index of the example in the data set.
        example_index: usize,
        /// What is wrong with it.
        row: RowError,
    },
}

/// An iterator over the prompts of examples, in the order asked for. Under [`OnBadRow::Stop`] a bad
/// example is an error at its place.
#[derive(Debug)]
pub struct PromptLoader {
    prefetcher: Prefetcher<Result<Loaded, DataError>>,
}

impl PromptLoader {
    /// Starts loading the examples at the indices of `order`.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(
        examples: impl Examples,
        processor: Arc<Processor>,
        template: PromptTemplate,
        order: impl Iterator<Item = usize> + Send + 'static,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let cache = ImageCache::new(options.cache_bytes);
        let load = move |example_index: usize| {
            let example = examples.example(example_index)?;
            match load_prompt(&example, &processor, &template, &cache) {
                Ok(prompt) => {
                    if options.digests {
                        // Remembered by the image, like its pixels.
                        prompt.images.iter().for_each(|image| {
                            image.digest();
                        });
                    }
                    Ok(Loaded::Ready { example_index, prompt })
                }
                Err(cause) => {
                    let row = RowError { source_line: example.source.clone(), cause };
                    match options.on_bad_row {
                        OnBadRow::Skip => Ok(Loaded::Skipped { example_index, row }),
                        OnBadRow::Stop => Err(DataError::BadRows(Box::new(BadRows {
                            first: row,
                            further: Vec::new(),
                            num_further: 0,
                        }))),
                    }
                }
            }
        };
        let prefetcher = Prefetcher::new(order, options.workers, options.ahead, load)?;
        Ok(Self { prefetcher })
    }
}

impl Iterator for PromptLoader {
    type Item = Result<Loaded, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.prefetcher.next().map(Result::flatten)
    }
}

/// The prompt of one example.
///
/// # Errors
/// What is wrong with its images or its text.
pub fn load_prompt(
    example: &Example,
    processor: &Processor,
    template: &PromptTemplate,
    cache: &ImageCache,
) -> Result<Prompt, RowCause> {
    let load = |path: &Path| cache.get_or_load(path, |path| processor.load_image(path));
    let images = processor.load_images(&example.images, load);
    let prompt =
        images.and_then(|images| processor.prompt(&template.apply(&example.problem), &images));
    prompt.map_err(|error| match error {
        DataError::ImageProcessor(image) => RowCause::Image(image),
        error => RowCause::Prompt(Box::new(error)),
    })
}

/// Prepared images by path. Once full, nothing is added or evicted: every epoch visits every image
/// once, an order in which evicting the oldest would never give a hit.
#[derive(Debug)]
pub struct ImageCache {
    max_bytes: usize,
    state: Mutex<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    images: HashMap<PathBuf, Arc<PreparedImage>>,
    num_bytes: usize,
}

impl ImageCache {
    /// A cache of at most `max_bytes` of pixel values; 0 keeps nothing.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// The image at a path, from the cache or from `load`. Threads that ask for the same image at
    /// once get the same copy.
    ///
    /// # Errors
    /// Those of `load`; they are not remembered.
    pub fn get_or_load(
        &self,
        path: &Path,
        load: impl FnOnce(&Path) -> Result<PreparedImage, ImageError>,
    ) -> Result<Arc<PreparedImage>, ImageError> {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = lock().images.get(path) {
            return Ok(Arc::clone(image));
        }
        // Decoded outside the lock: the other threads go on.
        let image = Arc::new(load(path)?);
        let num_bytes = size_of_val(image.pixel_values.as_slice());
        let mut state = lock();
        if let Some(first) = state.images.get(path) {
            return Ok(Arc::clone(first));
        }
        if state.num_bytes + num_bytes <= self.max_bytes {
            state.num_bytes += num_bytes;
            state.images.insert(path.to_owned(), Arc::clone(&image));
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use base::ImageLayout;

    use super::*;

    #[test]
    fn the_cache_keeps_what_fits() {
        let cache = ImageCache::new(100);
        let loads = std::cell::Cell::new(0);
        let get = |name: &str| {
            let load = |_: &Path| {
                loads.set(loads.get() + 1);
                Ok(PreparedImage::new(
                    vec![0.0; 10],
                    ImageLayout::merged([1, 2, 2], 2),
                    [4, 4],
                    [4, 4],
                ))
            };
            cache.get_or_load(Path::new(name), load).expect("loads")
        };
        let (a, b) = (get("a"), get("b"));
        assert!(Arc::ptr_eq(&a, &get("a")) && Arc::ptr_eq(&b, &get("b")));
        assert_eq!(loads.get(), 2);
        // 80 bytes are in; 40 more do not fit, and nothing makes room.
        get("c");
        get("c");
        assert_eq!(loads.get(), 4);
        get("a");
        assert_eq!(loads.get(), 4);
    }
}
