//! An even choice (thinning) of things that come one after another, of which nobody knows how many will come.

/// Every `stride`th of what was offered, twice the limit at most.
pub struct Thinning<T> {
    limit: usize,
    stride: usize,
    offered: usize,
    kept: Vec<T>,
}

impl<T> Thinning<T> {
    /// Will choose up to `limit`.
    pub fn new(limit: usize) -> Self {
        Self { limit, stride: 1, offered: 0, kept: Vec::new() }
    }

    /// Keeps the next one, or does not ask for it.
    pub fn offer(&mut self, next: impl FnOnce() -> T) {
        let is_chosen = self.limit > 0 && self.offered.is_multiple_of(self.stride);
        self.offered += 1;
        if !is_chosen {
            return;
        }
        // At twice the limit every second one goes.
        if self.kept.len() == 2 * self.limit {
            let mut is_even = false;
            self.kept.retain(|_| {
                is_even = !is_even;
                is_even
            });
            self.stride *= 2;
            if !(self.offered - 1).is_multiple_of(self.stride) {
                return;
            }
        }
        self.kept.push(next());
    }

    /// How many were offered.
    pub fn num_offered(&self) -> usize {
        self.offered
    }

    /// The choice, in the order of the offers.
    pub fn chosen(self) -> Vec<T> {
        let kept = self.kept.len();
        let shown = kept.min(self.limit);
        let mut all: Vec<Option<T>> = self.kept.into_iter().map(Some).collect();
        let chosen = (0..shown).map(|index| index * kept / shown);
        chosen.filter_map(|index| all[index].take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(limit: usize, count: usize) -> Thinning<usize> {
        let mut choice = Thinning::new(limit);
        (0..count).for_each(|index| choice.offer(|| index));
        choice
    }

    #[test]
    fn the_choice_is_even_in_bounded_memory() {
        let kept = |limit, count| offered(limit, count).kept;
        assert_eq!(kept(4, 3), [0, 1, 2]);
        assert_eq!(kept(4, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(4, 9), [0, 2, 4, 6, 8]);
        assert_eq!(kept(4, 17), [0, 4, 8, 12, 16]);
        for count in 1..200 {
            let kept = kept(4, count);
            assert!(kept.len() <= 8 && (kept.len() >= 4 || count < 4), "{count}");
            let stride = kept.get(1).copied().unwrap_or(1);
            let even: Vec<usize> = (0..count).step_by(stride).collect();
            assert_eq!(kept, even, "{count}");
        }
        assert!(kept(0, 5).is_empty());
    }

    #[test]
    fn no_more_than_the_limit_is_chosen() {
        assert_eq!(offered(4, 8).chosen(), [0, 2, 4, 6]);
        assert_eq!(offered(4, 3).chosen(), [0, 1, 2]);
        assert_eq!(offered(4, 8).num_offered(), 8);
    }
}
