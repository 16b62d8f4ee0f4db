//! Training images that are also test images, by content or by similarity.

use std::collections::HashMap;
use std::sync::Arc;

use super::images::{ImageFacts, MAX_MEAN_DIFFERENCE};

/// Images of one side, each once, with the place of the first row that shows it.
#[derive(Debug, Default)]
pub(super) struct Shown {
    images: Vec<(Arc<ImageFacts>, String)>,
    by_digest: HashMap<[u8; 16], usize>,
}

/// A training image and the test image that it equals or looks like.
#[derive(Debug, PartialEq)]
pub(super) struct Overlap<'a> {
    /// Place of the training row.
    pub(super) train: &'a str,
    /// Place of the test row.
    pub(super) test: &'a str,
    /// Whether the files are equal.
    pub(super) is_equal: bool,
}

impl Shown {
    pub(super) fn add(&mut self, image: &Arc<ImageFacts>, place: &str) {
        let images = &mut self.images;
        self.by_digest.entry(image.digest).or_insert_with(|| {
            images.push((Arc::clone(image), place.to_owned()));
            images.len() - 1
        });
    }

    /// Number of images that differ in content.
    pub(super) fn len(&self) -> usize {
        self.images.len()
    }

    /// Training images (`self`) that are among those of `test`.
    pub(super) fn overlaps<'a>(&'a self, test: &'a Self) -> Vec<Overlap<'a>> {
        // Only images of nearly the same mean are compared cell by cell.
        let mut by_mean: Vec<(f64, usize)> = test
            .images
            .iter()
            .enumerate()
            .map(|(index, (image, _))| (image.mean_level(), index))
            .collect();
        by_mean.sort_by(|a, b| a.0.total_cmp(&b.0));
        let found = self.images.iter().filter_map(|(image, place)| {
            if let Some(&index) = test.by_digest.get(&image.digest) {
                return Some((place, index, true));
            }
            let mean = image.mean_level();
            let start = by_mean.partition_point(|(other, _)| *other < mean - MAX_MEAN_DIFFERENCE);
            by_mean[start..]
                .iter()
                .take_while(|(other, _)| *other <= mean + MAX_MEAN_DIFFERENCE)
                .find(|(_, index)| image.looks_like(&test.images[*index].0))
                .map(|(_, index)| (place, *index, false))
        });
        found
            .map(|(train, index, is_equal)| Overlap {
                train,
                test: &test.images[index].1,
                is_equal,
            })
            .collect()
    }
}
