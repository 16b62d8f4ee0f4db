//! Python's `random.seed` and `random.shuffle`. VLM-R1 evaluates the first rows of such a shuffle, so
//! equal metrics need equal rows.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998), seeded from an array as CPython does.

const N: usize = 624;
const M: usize = 397;

/// The generator.
struct MersenneTwister {
    state: [u32; N],
    next: usize,
}

impl MersenneTwister {
    /// As after `random.seed(seed)`.
    fn new(seed: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        let key = if key[1] == 0 { &key[..1] } else { &key[..] };
        Self::from_key(key)
    }

    fn from_word(word: u32) -> Self {
        let mut state = [word; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ before >> 30).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn from_key(key: &[u32]) -> Self {
        let mut twister = Self::from_word(19_650_218);
        let mut place = 1;
        for k in 0..N.max(key.len()) {
            let j = k % key.len();
            let mixed = twister.mixed(place, 1_664_525);
            let word = mixed.wrapping_add(key[j]).wrapping_add(j as u32);
            place = twister.put(place, word);
        }
        for _ in 0..N - 1 {
            let word = twister.mixed(place, 1_566_083_941).wrapping_sub(place as u32);
            place = twister.put(place, word);
        }
        twister.state[0] = 1 << 31;
        twister
    }

    fn mixed(&self, place: usize, factor: u32) -> u32 {
        let before = self.state[place - 1];
        self.state[place] ^ (before ^ before >> 30).wrapping_mul(factor)
    }

    /// Stores a word and says which place is next: 1 to `N - 1`, round and round.
    fn put(&mut self, place: usize, word: u32) -> usize {
        self.state[place] = word;
        if place + 1 < N {
            return place + 1;
        }
        self.state[0] = word;
        1
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn refill(&mut self) {
        for i in 0..N {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ joined >> 1 ^ odd;
        }
        self.next = 0;
    }

    /// `random.randrange(bound)` for `1 <= bound < 2^32`: as many bits as the bound has, drawn again
    /// while they are too large.
    fn below(&mut self, bound: u32) -> u32 {
        let bits = u32::BITS - bound.leading_zeros();
        loop {
            let draw = self.next_u32() >> (u32::BITS - bits);
            if draw < bound {
                return draw;
            }
        }
    }
}

/// Shuffles as Python 3's `random.seed(seed); random.shuffle(items)`.
///
/// # Panics
/// On 2^32 items or more.
pub fn shuffle<T>(items: &mut [T], seed: u64) {
    assert!(u32::try_from(items.len()).is_ok(), "too many items");
    let mut random = MersenneTwister::new(seed);
    for last in (1..items.len()).rev() {
        let chosen = random.below(last as u32 + 1);
        items.swap(last, chosen as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_are_those_of_python() {
        let shuffled = |len: usize, seed| {
            let mut items: Vec<usize> = (0..len).collect();
            shuffle(&mut items, seed);
            items
        };
        // What `random.seed(seed); random.shuffle(items)` of Python 3.11 leaves.
        assert_eq!(shuffled(10, 42), [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
        assert_eq!(shuffled(7, 0), [4, 2, 1, 0, 5, 3, 6]);
        // A seed of two words.
        let wide = shuffled(12, (1 << 40) + 5);
        assert_eq!(wide, [3, 5, 2, 9, 6, 7, 1, 10, 0, 4, 11, 8]);
        // As many rows as `refcoco_val` has.
        let val = shuffled(10_834, 42);
        assert_eq!(val[..6], [7505, 10495, 3038, 10787, 9526, 7500]);
        let sum: usize = val.iter().enumerate().map(|(i, v)| i * v).sum();
        assert_eq!(sum % 1_000_003, 813_617);
    }
}
