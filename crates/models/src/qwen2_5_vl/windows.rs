//! Windows of the vision tower.

use super::config::VisionConfig;
use crate::layers::axial::frame_lens;

/// Order and windows of the patches of a batch of images.
#[derive(Debug, PartialEq, Eq)]
pub struct PatchOrder {
    /// `[merged]`: which merged patch stands at each place, windows contiguous.
    pub window_index: Vec<i64>,
    /// Patches of each window.
    pub window_lens: Vec<usize>,
    /// Patches of each frame.
    pub frame_lens: Vec<usize>,
}

/// Windows are squares of `window_size` px; those at the right and lower edge hold what is left.
pub fn patch_order(config: &VisionConfig, grids: &[[usize; 3]]) -> PatchOrder {
    let merge = config.spatial_merge_size;
    let side = config.window_size / merge / config.patch_size;
    let (mut window_index, mut window_lens) = (Vec::new(), Vec::new());
    let mut first = 0;
    for &[frames, height, width] in grids {
        let (rows, columns) = (height / merge, width / merge);
        for frame in 0..frames {
            for window_row in (0..rows).step_by(side) {
                for window_column in (0..columns).step_by(side) {
                    let before = window_index.len();
                    for h in window_row..(window_row + side).min(rows) {
                        for w in window_column..(window_column + side).min(columns) {
                            window_index.push((first + (frame * rows + h) * columns + w) as i64);
                        }
                    }
                    window_lens.push((window_index.len() - before) * merge * merge);
                }
            }
        }
        first += frames * rows * columns;
    }
    PatchOrder { window_index, window_lens, frame_lens: frame_lens(grids) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::axial::patch_positions;

    #[test]
    fn windows_at_the_edge_hold_what_is_left() {
        let config: VisionConfig = serde_json::from_value(serde_json::json!({
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 14, "window_size": 56
        }))
        .unwrap();
        // 3 x 2 tokens, windows of 2 x 2
        let order = patch_order(&config, &[[1, 6, 4]]);
        assert_eq!(order.window_index, [0, 1, 2, 3, 4, 5]);
        assert_eq!(order.window_lens, [16, 8]);
        let order = patch_order(&config, &[[1, 4, 6]]);
        assert_eq!(order.window_index, [0, 1, 3, 4, 2, 5]);
        assert_eq!(order.window_lens, [16, 8]);
        assert_eq!(order.frame_lens, [24]);
        let positions = patch_positions(&[[1, 4, 6]], 2);
        assert_eq!(positions[..5], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]);
    }

    proptest::proptest! {
        #[test]
        fn every_patch_stands_in_one_window(
            sizes in proptest::collection::vec((1usize..3, 1usize..12, 1usize..12), 1..5),
            side in 1usize..5,
        ) {
            let config: VisionConfig = serde_json::from_value(serde_json::json!({
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                "out_hidden_size": 16, "patch_size": 14, "window_size": 28 * side
            }))
            .unwrap();
            let grids: Vec<[usize; 3]> = sizes.iter().map(|&(t, h, w)| [t, 2 * h, 2 * w]).collect();
            let order = patch_order(&config, &grids);
            let positions = patch_positions(&grids, 2);
            let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();

            let mut sorted = order.window_index.clone();
            sorted.sort_unstable();
            proptest::prop_assert_eq!(sorted, (0..patches as i64 / 4).collect::<Vec<_>>());
            proptest::prop_assert_eq!(order.window_lens.iter().sum::<usize>(), patches);
            proptest::prop_assert_eq!(order.frame_lens.iter().sum::<usize>(), patches);
            proptest::prop_assert_eq!(positions.len(), patches);

            // The patches of a window lie within its side of one another, in one frame.
            let (mut from, mut frames) = (0, Vec::new());
            for (frame, &len) in order.frame_lens.iter().enumerate() {
                frames.extend(std::iter::repeat_n(frame, len));
            }
            for len in order.window_lens {
                let merged = &order.window_index[from / 4..(from + len) / 4];
                let first = |m: i64| positions[4 * m as usize];
                for axis in [0, 1] {
                    let at: Vec<i64> = merged.iter().map(|&m| first(m)[axis]).collect();
                    let spread = at.iter().max().unwrap() - at.iter().min().unwrap();
                    proptest::prop_assert!(spread < 2 * side as i64);
                }
                let of = |m: i64| frames[4 * m as usize];
                proptest::prop_assert!(merged.iter().all(|&m| of(m) == of(merged[0])));
                from += len;
            }
        }
    }
}
