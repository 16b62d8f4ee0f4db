//! Where the numbers of a model's parameters lie when ranks share them out.
//!
//! Parameters lie one after another in *buckets*. Each begins at a multiple of [`BLOCK`], and a bucket is padded to a multiple of
//! [`BLOCK`] for each rank. Rank r owns the r-th of as many equal ranges of a bucket as there are ranks. So no block of 8-bit moments
//! straddles two owners, and blocks are the same for any number of ranks.
//!
//! A parameter that is larger than a bucket is cut at a multiple of [`BLOCK`] numbers. A cut at a row would move the blocks of what
//! comes after it.

use torch::BLOCK;

/// Numbers of a bucket, before padding.
pub(crate) const BUCKET: i64 = 64 << 20;

/// Consecutive numbers of a parameter in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The parameter: its place in the list that the layout was made of.
    pub item: usize,
    /// Its first number here, counted in the flat parameter.
    pub start: i64,
    /// How many.
    pub len: i64,
    /// Where they begin in the bucket.
    pub offset: i64,
}

impl Slice {
    fn end(&self) -> i64 {
        self.offset + self.len
    }
}

/// Parameters that are reduced and gathered in one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// In the order of parameters.
    pub slices: Vec<Slice>,
    /// Numbers, padding included: a multiple of [`BLOCK`] for each rank.
    pub len: i64,
}

/// A part of a slice that one rank owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    /// The bucket.
    pub bucket: usize,
    /// The part; its `offset` counts from the begin of the owner's range.
    pub slice: Slice,
}

/// The buckets of a list of parameters.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub buckets: Vec<Bucket>,
    pub ranks: usize,
}

impl Layout {
    /// Of parameters that have `lengths` numbers. `capacity`: numbers of a bucket before padding; rounded down to blocks.
    pub fn new(lengths: &[i64], ranks: usize, capacity: i64) -> Self {
        let capacity = (capacity / BLOCK).max(1) * BLOCK;
        let mut lists: Vec<Vec<Slice>> = vec![Vec::new()];
        let mut used = 0;
        for (item, &len) in lengths.iter().enumerate() {
            if used > 0 && used + len > capacity {
                lists.push(Vec::new());
                used = 0;
            }
            let mut start = 0;
            while start < len {
                if used + BLOCK > capacity {
                    lists.push(Vec::new());
                    used = 0;
                }
                let slice = Slice { item, start, len: (len - start).min(capacity), offset: used };
                lists.last_mut().expect("begun with one").push(slice);
                start += slice.len;
                used = blocks(slice.end()) * BLOCK;
            }
        }
        lists.retain(|slices| !slices.is_empty());
        let share = |slices: &Vec<Slice>| {
            let blocks = blocks(slices.iter().map(Slice::end).max().unwrap_or(0));
            (blocks as usize).div_ceil(ranks) as i64 * BLOCK
        };
        let bucket = |slices| Bucket { len: share(&slices) * ranks as i64, slices };
        Layout { buckets: lists.into_iter().map(bucket).collect(), ranks }
    }

    /// Numbers of a bucket that each rank owns.
    pub fn share(&self, bucket: usize) -> i64 {
        self.buckets[bucket].len / self.ranks as i64
    }

    /// What `rank` owns, by bucket and in order.
    pub fn owned(&self, rank: usize) -> Vec<Owned> {
        let buckets = self.buckets.iter().enumerate();
        buckets.flat_map(|(bucket, _)| self.owned_of(bucket, rank)).collect()
    }

    /// What `rank` owns of a bucket, in order.
    pub fn owned_of(&self, bucket: usize, rank: usize) -> Vec<Owned> {
        let share = self.share(bucket);
        let (first, last) = (rank as i64 * share, (rank as i64 + 1) * share);
        let part = |slice: &Slice| {
            let (from, to) = (slice.offset.max(first), slice.end().min(last));
            let start = slice.start + from - slice.offset;
            let slice = Slice { start, len: to - from, offset: from - first, ..*slice };
            (slice.len > 0).then_some(Owned { bucket, slice })
        };
        self.buckets[bucket].slices.iter().filter_map(part).collect()
    }
}

/// Blocks that hold `len` numbers.
pub(crate) fn blocks(len: i64) -> i64 {
    (len + BLOCK - 1) / BLOCK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_parameters_by_hand() {
        let layout = Layout::new(&[300, 100, 1500], 2, 1024);
        let slice = |item, start, len, offset| Slice { item, start, len, offset };
        assert_eq!(layout.buckets.len(), 3);
        assert_eq!(layout.buckets[0].slices, [slice(0, 0, 300, 0), slice(1, 0, 100, 512)]);
        // Three blocks, and one of padding.
        assert_eq!((layout.buckets[0].len, layout.share(0)), (1024, 512));
        assert_eq!(layout.buckets[1].slices, [slice(2, 0, 1024, 0)]);
        assert_eq!(layout.buckets[2].slices, [slice(2, 1024, 476, 0)]);
        let owned = |bucket, slice| Owned { bucket, slice };
        let second = [
            owned(0, slice(1, 0, 100, 0)),
            owned(1, slice(2, 512, 512, 0)),
            owned(2, slice(2, 1280, 220, 0)),
        ];
        assert_eq!(layout.owned(1), second);
    }

    #[test]
    fn a_rank_may_own_nothing() {
        let layout = Layout::new(&[10], 4, BUCKET);
        assert_eq!(layout.buckets[0].len, 4 * BLOCK);
        let owners: Vec<usize> = (0..4).map(|rank| layout.owned(rank).len()).collect();
        assert_eq!(owners, [1, 0, 0, 0]);
        assert!(Layout::new(&[], 3, BUCKET).buckets.is_empty());
    }

    proptest! {
        /// Every number has one owner, ranges are equal, blocks are whole, and slices do not depend on the number of ranks.
        #[test]
        fn every_number_has_one_owner(
            lengths in prop::collection::vec(0i64..5000, 0..12),
            ranks in 1usize..9,
            capacity in 256i64..4000,
        ) {
            let layout = Layout::new(&lengths, ranks, capacity);
            let mut owners: Vec<Vec<u32>> =
                lengths.iter().map(|&len| vec![0; len as usize]).collect();
            for rank in 0..ranks {
                let mut last = (0, 0);
                for Owned { bucket, slice } in layout.owned(rank) {
                    prop_assert!(slice.start % BLOCK == 0 && slice.offset % BLOCK == 0);
                    prop_assert!(slice.end() <= layout.share(bucket));
                    prop_assert!((bucket, slice.offset) >= last);
                    last = (bucket, slice.end());
                    let end = slice.start + slice.len;
                    let is_whole = slice.len % BLOCK == 0 || end == lengths[slice.item];
                    prop_assert!(is_whole);
                    for n in slice.start..end {
                        owners[slice.item][n as usize] += 1;
                    }
                }
            }
            prop_assert!(owners.iter().flatten().all(|&count| count == 1));
            let alone = Layout::new(&lengths, 1, capacity);
            prop_assert_eq!(alone.buckets.len(), layout.buckets.len());
            for (bucket, other) in layout.buckets.iter().zip(&alone.buckets) {
                prop_assert_eq!(&bucket.slices, &other.slices);
                prop_assert!(bucket.len % (BLOCK * ranks as i64) == 0);
                prop_assert!(bucket.len - other.len < BLOCK * ranks as i64);
                prop_assert!(other.len <= capacity);
                for slice in &bucket.slices {
                    // Cut only where it must be.
                    let whole = blocks(lengths[slice.item]) * BLOCK;
                    prop_assert!(slice.len == lengths[slice.item] || whole > capacity - BLOCK);
                }
            }
        }
    }
}
