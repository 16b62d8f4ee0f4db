//! How the completions of a step are dealt over ranks. Numbers only.

use std::ops::Range;

use base::world::share;

/// What a rank has of a row: completions of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    /// The row, counted within the step.
    pub row: usize,
    pub completions: Range<usize>,
}

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deal {
    pub rank: usize,
    pub size: usize,
    /// Completions of a row: the size of a group, or 1.
    pub per_row: usize,
}

impl Deal {
    /// This rank's part of `rows` rows: whole groups while there are as many as ranks, else parts of groups. Ranks follow one another, and
    /// differ by at most one group, or by one completion.
    pub fn portions(self, rows: usize) -> Vec<Portion> {
        if !self.cuts_groups(rows) {
            let own = share(self.rank, self.size, rows);
            return own.map(|row| Portion { row, completions: 0..self.per_row }).collect();
        }
        let own = share(self.rank, self.size, rows * self.per_row);
        let first = own.start / self.per_row;
        let last = own.end.div_ceil(self.per_row);
        let portion = |row: usize| {
            let start = row * self.per_row;
            let end = own.end.min(start + self.per_row);
            Portion { row, completions: own.start.max(start) - start..end - start }
        };
        // Of no completion there is no row.
        let rows = if own.is_empty() { first..first } else { first..last };
        rows.map(portion).collect()
    }

    /// Whether the group of a row may lie on several ranks.
    pub fn cuts_groups(self, rows: usize) -> bool {
        rows < self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_all(size: usize, rows: usize, per_row: usize) -> Vec<Vec<Portion>> {
        (0..size).map(|rank| Deal { rank, size, per_row }.portions(rows)).collect()
    }

    #[test]
    fn every_completion_is_on_one_rank_and_in_order() {
        for size in 1..=9 {
            for rows in 0..=10 {
                for per_row in 1..=5 {
                    let dealt = of_all(size, rows, per_row);
                    let seen: Vec<(usize, usize)> = dealt
                        .iter()
                        .flatten()
                        .flat_map(|part| part.completions.clone().map(|index| (part.row, index)))
                        .collect();
                    let all: Vec<(usize, usize)> = (0..rows)
                        .flat_map(|row| (0..per_row).map(move |index| (row, index)))
                        .collect();
                    assert_eq!(seen, all, "{size} ranks, {rows} rows of {per_row}");
                    assert!(dealt.iter().flatten().all(|part| !part.completions.is_empty()));
                }
            }
        }
    }

    #[test]
    fn groups_are_cut_only_where_there_are_more_ranks() {
        let part = |row, completions| Portion { row, completions };
        assert_eq!(of_all(2, 3, 4), [vec![part(0, 0..4)], vec![part(1, 0..4), part(2, 0..4)]]);
        assert_eq!(
            of_all(3, 2, 4),
            [vec![part(0, 0..2)], vec![part(0, 2..4), part(1, 0..1)], vec![part(1, 1..4)]]
        );
        assert_eq!(of_all(3, 1, 2), [vec![], vec![part(0, 0..1)], vec![part(0, 1..2)]]);
    }
}
