//! Positions: M-RoPE of the text model, the 2-D positions and windows of the vision tower.

use tch::{Device, Kind, Tensor};

use super::config::{TextConfig, VisionConfig};
use crate::layers::rotary::{Rotary, inverse_frequencies};
use crate::model::PromptPositions;

/// Positions of a prompt: text counts up on all three axes; an image spreads over height and width
/// and takes as many positions as its longer side has tokens.
pub fn prompt_positions(
    ids: &[u32],
    grids: &[[usize; 3]],
    image_token: u32,
    merge: usize,
) -> PromptPositions {
    let mut positions = Vec::with_capacity(ids.len());
    let mut next = 0i64;
    let mut grids = grids.iter();
    let mut at = 0;
    while at < ids.len() {
        let grid = if ids[at] == image_token { grids.next() } else { None };
        let Some(&[frames, height, width]) = grid else {
            positions.push([next; 3]);
            next += 1;
            at += 1;
            continue;
        };
        let (rows, columns) = (height / merge, width / merge);
        for t in 0..frames {
            for h in 0..rows {
                for w in 0..columns {
                    positions.push([next + t as i64, next + h as i64, next + w as i64]);
                }
            }
        }
        next += rows.max(columns) as i64;
        at += frames * rows * columns;
    }
    PromptPositions { positions, next }
}

/// The frequencies of [`text_rotary`], `[head_dim / 2]`.
pub fn text_frequencies(config: &TextConfig, device: Device) -> Tensor {
    inverse_frequencies(config.head_dim(), config.rope_theta(), device)
}

/// Rotary embedding of packed text tokens: each of `frequencies` uses the position of its section's axis.
pub fn text_rotary(
    config: &TextConfig,
    frequencies: &Tensor,
    position_ids: &Tensor,
    kind: Kind,
) -> Rotary {
    // [3, T, head_dim / 2]
    let angles = position_ids.to_kind(Kind::Float).unsqueeze(-1) * frequencies;
    let mut parts = Vec::new();
    let mut from = 0;
    for (section, &len) in config.mrope_section().iter().enumerate() {
        parts.push(angles.select(0, section as i64 % 3).narrow(1, from, len));
        from += len;
    }
    Rotary::from_angles(&Tensor::cat(&parts, 1), kind)
}

/// Order and windows of the patches of a batch of images.
#[derive(Debug, PartialEq, Eq)]
pub struct PatchOrder {
    /// `[merged]`: which merged patch stands at each place, windows contiguous.
    pub window_index: Vec<i64>,
    /// Patches of each window.
    pub window_lens: Vec<usize>,
    /// Patches of each frame.
    pub frame_lens: Vec<usize>,
    /// Height and width of each patch, in the order of the processor (before windows).
    pub positions: Vec<[i64; 2]>,
}

/// Windows are squares of `window_size` px; those at the right and lower edge hold what is left.
pub fn patch_order(config: &VisionConfig, grids: &[[usize; 3]]) -> PatchOrder {
    let merge = config.spatial_merge_size;
    let side = config.window_size / merge / config.patch_size;
    let mut order = PatchOrder {
        window_index: vec![],
        window_lens: vec![],
        frame_lens: vec![],
        positions: vec![],
    };
    let mut first = 0;
    for &[frames, height, width] in grids {
        let (rows, columns) = (height / merge, width / merge);
        for frame in 0..frames {
            for window_row in (0..rows).step_by(side) {
                for window_column in (0..columns).step_by(side) {
                    let before = order.window_index.len();
                    for h in window_row..(window_row + side).min(rows) {
                        for w in window_column..(window_column + side).min(columns) {
                            order
                                .window_index
                                .push((first + (frame * rows + h) * columns + w) as i64);
                        }
                    }
                    order.window_lens.push((order.window_index.len() - before) * merge * merge);
                }
            }
            order.frame_lens.push(height * width);
            push_positions(&mut order.positions, rows, columns, merge);
        }
        first += frames * rows * columns;
    }
    order
}

/// Patches of a merged token are adjacent: tokens row by row, then patches row by row inside.
fn push_positions(positions: &mut Vec<[i64; 2]>, rows: usize, columns: usize, merge: usize) {
    for row in 0..rows {
        for column in 0..columns {
            for h in 0..merge {
                for w in 0..merge {
                    positions.push([(row * merge + h) as i64, (column * merge + w) as i64]);
                }
            }
        }
    }
}

/// Rotary embedding of patches, in f32: the first half of a head's angles by height, the second by width.
pub fn vision_rotary(config: &VisionConfig, positions: &[[i64; 2]], device: Device) -> Rotary {
    let head_dim = config.hidden_size / config.num_heads;
    let frequencies = inverse_frequencies(head_dim / 2, config.rope_theta(), device);
    let flat: Vec<i64> = positions.iter().flatten().copied().collect();
    // [patches, 2, head_dim / 4]
    let positions = torch::upload(&flat, device).to_kind(Kind::Float).view([-1, 2, 1]);
    Rotary::from_angles(&(positions * frequencies).flatten(1, 2), Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_takes_its_longer_side() {
        // text, 2 x 3 tokens of image, text
        let ids = [1, 9, 9, 9, 9, 9, 9, 2, 3];
        let got = prompt_positions(&ids, &[[1, 4, 6]], 9, 2);
        assert_eq!(got.positions[0], [0, 0, 0]);
        assert_eq!(got.positions[1], [1, 1, 1]);
        assert_eq!(got.positions[3], [1, 1, 3]);
        assert_eq!(got.positions[6], [1, 2, 3]);
        assert_eq!(got.positions[7], [4, 4, 4]);
        assert_eq!(got.next, 6);
    }

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
        assert_eq!(order.positions[..5], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]);
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
            let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();

            let mut sorted = order.window_index.clone();
            sorted.sort_unstable();
            proptest::prop_assert_eq!(sorted, (0..patches as i64 / 4).collect::<Vec<_>>());
            proptest::prop_assert_eq!(order.window_lens.iter().sum::<usize>(), patches);
            proptest::prop_assert_eq!(order.frame_lens.iter().sum::<usize>(), patches);
            proptest::prop_assert_eq!(order.positions.len(), patches);

            // The patches of a window lie within its side of one another, in one frame.
            let (mut from, mut frames) = (0, Vec::new());
            for (frame, &len) in order.frame_lens.iter().enumerate() {
                frames.extend(std::iter::repeat_n(frame, len));
            }
            for len in order.window_lens {
                let merged = &order.window_index[from / 4..(from + len) / 4];
                let first = |m: i64| order.positions[4 * m as usize];
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
