//! A learned table of positions for one size of image, resampled to the grid of each image.
//!
//! Source: huggingface/transformers v5.17, `vision_utils.py`, `get_vision_interpolation_indices_and_weights`.

use tch::{Device, Kind, Tensor};

use super::axial::patch_positions;

/// Which rows of a table of `side` x `side` make the position of each patch, and with which weights.
#[derive(Debug)]
pub struct Taps {
    /// `[patches, 4]`.
    rows: Tensor,
    /// `[patches, 4, 1]` in f32.
    weights: Tensor,
}

impl Taps {
    /// Bilinear, such that the corners of the image lie on those of the table; patches in the order of the processor.
    pub fn bilinear(grids: &[[usize; 3]], merge: usize, side: usize, device: Device) -> Self {
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for grid in grids {
            let [_, height, width] = *grid;
            let axes = [height, width].map(|size| axis_taps(size, side));
            for [h, w] in patch_positions(&[*grid], merge) {
                let [h, w] = [&axes[0][h as usize], &axes[1][w as usize]];
                for (row, h_weight) in h {
                    for (column, w_weight) in w {
                        rows.push((row * side + column) as i64);
                        weights.push(h_weight * w_weight);
                    }
                }
            }
        }
        Taps {
            rows: torch::upload(&rows, device).view([-1, 4]),
            weights: torch::upload(&weights, device).view([-1, 4, 1]),
        }
    }

    /// The positions of all patches, from `table [side * side, channels]`: `[patches, channels]`.
    pub fn positions(&self, table: &Tensor) -> Tensor {
        let taps = Tensor::embedding(table, &self.rows, -1, false, false);
        (taps * &self.weights).sum_dim_intlist(1, false, Kind::Float).to_kind(table.kind())
    }
}

/// For each of `size` places along an axis, the two nearest of `side` and their weights, in f32 as the reference computes them.
fn axis_taps(size: usize, side: usize) -> Vec<[(usize, f32); 2]> {
    let place = |index: usize| {
        let source = index as f32 * (side - 1) as f32 / (size.max(2) - 1) as f32;
        let floor = source.floor();
        let share = source - floor;
        let next = (floor as usize + 1).min(side - 1);
        [(floor as usize, 1.0 - share), (next, 1.0 - (share - 1.0).abs())]
    };
    (0..size).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_between_their_neighbours() {
        assert_eq!(
            axis_taps(3, 2),
            [[(0, 1.0), (1, 0.0)], [(0, 0.5), (1, 0.5)], [(1, 1.0), (1, 0.0)]]
        );
        assert_eq!(axis_taps(1, 5), [[(0, 1.0), (1, 0.0)]]);
        assert_eq!(axis_taps(2, 5), [[(0, 1.0), (1, 0.0)], [(4, 1.0), (4, 0.0)]]);
    }

    #[test]
    fn a_table_of_the_images_size_is_taken_as_it_is() {
        let table = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([16, 1]);
        let taps = Taps::bilinear(&[[1, 4, 4]], 2, 4, Device::Cpu);
        let got = Vec::<f32>::try_from(taps.positions(&table).view([-1])).unwrap();
        let blocks = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15].map(|x| x as f32);
        assert_eq!(got, blocks);
    }
}
