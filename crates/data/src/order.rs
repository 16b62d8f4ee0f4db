//! The order of examples: a pure function of (seed, position), so that a run resumes from its step
//! number alone. The shuffle is implemented here and never changes: a new version of a library must
//! not change the order of a resumed run.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Stream of the validation split; epochs count up from 0 and never get there.
pub(crate) const SPLIT_STREAM: u64 = u64::MAX;

/// The numbers `0..len` in an order drawn from (seed, stream): Fisher-Yates from the end.
pub(crate) fn shuffled(len: usize, seed: u64, stream: u64) -> Vec<u32> {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&stream.to_le_bytes());
    key[16..].copy_from_slice(b"order of samples");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for last in (1..len).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A uniform number in `0..bound`, without bias: draws at or above the last whole multiple of
/// `bound` are thrown away.
fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let draw = rng.next_u64();
        if draw < limit {
            return draw % bound;
        }
    }
}

/// The order of training: a new permutation every epoch, cut into steps of unique prompts. A step
/// never crosses the end of an epoch; the last step of an epoch may be short.
#[derive(Debug)]
pub struct EpochOrder {
    num_examples: usize,
    prompts_per_step: usize,
    seed: u64,
    /// The permutation of the last epoch asked for.
    cached: Mutex<Option<(u64, Arc<[u32]>)>>,
}

impl EpochOrder {
    /// An order over `num_examples` examples in steps of `prompts_per_step`.
    ///
    /// # Panics
    /// If either is 0, or there are more than 2^32 examples.
    pub fn new(num_examples: usize, prompts_per_step: usize, seed: u64) -> Self {
        assert!(num_examples > 0 && prompts_per_step > 0, "no examples");
        assert!(u32::try_from(num_examples).is_ok(), "more than 2^32 examples");
        Self { num_examples, prompts_per_step, seed, cached: Mutex::new(None) }
    }

    /// Steps of one epoch, a short last one counted.
    pub fn steps_per_epoch(&self) -> u64 {
        self.num_examples.div_ceil(self.prompts_per_step) as u64
    }

    /// Positions of a step in the stream of all epochs.
    pub fn positions_of_step(&self, step: u64) -> Range<u64> {
        let (epoch, step) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let (num_examples, per_step) = (self.num_examples as u64, self.prompts_per_step as u64);
        let start = step * per_step;
        epoch * num_examples + start..epoch * num_examples + num_examples.min(start + per_step)
    }

    /// Examples of a step, but for a short last one of an epoch.
    pub fn prompts_per_step(&self) -> usize {
        self.prompts_per_step
    }

    /// Positions of the step that begins at `position`: it ends with its epoch.
    pub fn step_from(&self, position: u64) -> Range<u64> {
        let num_examples = self.num_examples as u64;
        let epoch_end = (position / num_examples + 1) * num_examples;
        position..epoch_end.min(position + self.prompts_per_step as u64)
    }

    /// Epochs up to `position`, counted in steps: a short last step of an epoch counts as one.
    pub fn epoch_at(&self, position: u64) -> f64 {
        let num_examples = self.num_examples as u64;
        let steps = (position % num_examples).div_ceil(self.prompts_per_step as u64);
        let per_epoch = self.steps_per_epoch();
        (position / num_examples * per_epoch + steps) as f64 / per_epoch as f64
    }

    /// Indices of the examples of a step, from 0.
    pub fn indices_of_step(&self, step: u64) -> Vec<usize> {
        self.positions_of_step(step).map(|position| self.index_at(position)).collect()
    }

    /// Index of the example at a position of the stream of all epochs.
    pub fn index_at(&self, position: u64) -> usize {
        let num_examples = self.num_examples as u64;
        let order = self.epoch_order(position / num_examples);
        order[(position % num_examples) as usize] as usize
    }

    fn epoch_order(&self, epoch: u64) -> Arc<[u32]> {
        // A poisoned lock guards a finished value all the same.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, order)) if *of == epoch => Arc::clone(order),
            _ => {
                let order: Arc<[u32]> = shuffled(self.num_examples, self.seed, epoch).into();
                *cached = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_is_fixed_for_ever() {
        // Recorded from the first version of this code: a resumed run must see the same examples.
        assert_eq!(shuffled(12, 42, 0), [6, 9, 10, 8, 5, 2, 0, 3, 11, 1, 4, 7]);
        assert_eq!(shuffled(12, 42, 1), [9, 8, 7, 5, 2, 0, 11, 3, 1, 4, 10, 6]);
        assert_ne!(shuffled(12, 43, 0), shuffled(12, 42, 0));
    }

    #[test]
    fn every_place_is_as_likely() {
        let mut counts = [[0u32; 4]; 4];
        for seed in 0..8000 {
            for (place, value) in shuffled(4, seed, 0).into_iter().enumerate() {
                counts[place][value as usize] += 1;
            }
        }
        // 2000 expected, standard deviation 39.
        assert!(counts.as_flattened().iter().all(|n| n.abs_diff(2000) < 200), "{counts:?}");
    }

    #[test]
    fn a_short_last_step_is_kept() {
        let sampler = EpochOrder::new(10, 4, 1);
        assert_eq!(sampler.steps_per_epoch(), 3);
        assert_eq!(sampler.positions_of_step(2), 8..10);
        assert_eq!(sampler.positions_of_step(3), 10..14);
        assert_eq!(sampler.indices_of_step(5).len(), 2);
    }

    #[test]
    fn steps_from_a_cursor_are_those_by_number() {
        let order = EpochOrder::new(10, 4, 1);
        let mut cursor = 0;
        for step in 0..7 {
            let range = order.step_from(cursor);
            assert_eq!(range, order.positions_of_step(step));
            cursor = range.end;
            assert_eq!(order.epoch_at(cursor), (step + 1) as f64 / 3.0);
        }
        // Behind prompts that a step took besides its own.
        assert_eq!(order.step_from(6), 6..10);
        assert_eq!(order.step_from(9), 9..10);
    }

    proptest! {
        #[test]
        fn each_epoch_is_a_permutation(
            len in 1usize..200, per_step in 1usize..50, seed: u64, epoch in 0u64..1000,
        ) {
            let sampler = EpochOrder::new(len, per_step, seed);
            let steps = sampler.steps_per_epoch();
            let mut seen: Vec<usize> =
                (epoch * steps..(epoch + 1) * steps).flat_map(|s| sampler.indices_of_step(s)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..len));
        }
    }
}
