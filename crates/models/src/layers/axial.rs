//! Positions of patches in height and width, in the order of the processor: patches that become one token are adjacent.

use tch::{Device, Kind};

use super::rotary::{Rotary, inverse_frequencies};

/// Height and width of every patch of images of these `grids`.
pub fn patch_positions(grids: &[[usize; 3]], merge: usize) -> Vec<[i64; 2]> {
    let mut positions = Vec::new();
    for &[frames, height, width] in grids {
        for _ in 0..frames {
            push_frame(&mut positions, height / merge, width / merge, merge);
        }
    }
    positions
}

/// Tokens row by row, then patches row by row inside.
fn push_frame(positions: &mut Vec<[i64; 2]>, rows: usize, columns: usize, merge: usize) {
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

/// Patches of each frame.
pub fn frame_lens(grids: &[[usize; 3]]) -> Vec<usize> {
    grids.iter().flat_map(|&[frames, height, width]| vec![height * width; frames]).collect()
}

/// Rotary embedding of patches, in f32: the first half of a head's angles by height, the second by width.
pub fn axial_rotary(head_dim: i64, theta: f64, positions: &[[i64; 2]], device: Device) -> Rotary {
    let frequencies = inverse_frequencies(head_dim / 2, theta, device);
    let flat: Vec<i64> = positions.iter().flatten().copied().collect();
    // [patches, 2, head_dim / 4]
    let positions = torch::upload(&flat, device).to_kind(Kind::Float).view([-1, 2, 1]);
    Rotary::from_angles(&(positions * frequencies).flatten(1, 2), Kind::Float)
}
