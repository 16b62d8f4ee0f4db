//! Draws that a seed repeats.

/// SplitMix64 (Steele, Lea and Flood 2014): small, and even enough to choose where to strike.
pub struct Random(u64);

impl Random {
    /// The draws of one trial of a part: none depends on what other trials did.
    pub fn of_trial(seed: u64, part: &str, trial: u64) -> Self {
        let mut random = Self(seed);
        for number in part.bytes().map(u64::from).chain([trial]) {
            random.0 = random.next() ^ number;
        }
        random
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From 0 to below 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of them; there is at least one.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_repeated_and_others_differ() {
        let draws = |seed, part, trial| {
            let mut random = Random::of_trial(seed, part, trial);
            [random.next(), random.next()]
        };
        assert_eq!(draws(1, "kills", 2), draws(1, "kills", 2));
        let others = [draws(2, "kills", 2), draws(1, "faults", 2), draws(1, "kills", 3)];
        assert!(!others.contains(&draws(1, "kills", 2)));
        let mut random = Random::of_trial(0, "", 0);
        assert!((0..1000).all(|_| random.below(3) < 3 && random.share() < 1.0));
    }
}
