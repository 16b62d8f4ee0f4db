//! M-RoPE: a token has a position in time, height and width, and each rotary frequency turns with one of them.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`, `get_rope_index`; `modeling_qwen3_vl.py`,
//! `Qwen3VLTextRotaryEmbedding`.

use tch::{Device, Kind, Tensor};

use super::rotary::{Rotary, inverse_frequencies};
use crate::model::PromptPositions;

/// The rotary embedding of a text model.
#[derive(Debug)]
pub struct MRope {
    /// `[head_dim / 2]`.
    frequencies: Tensor,
    /// `[head_dim / 2]`: whose position each turns with, time's (0), height's or width's.
    axes: Tensor,
}

impl MRope {
    /// Frequencies of time, height and width in sections of these lengths.
    pub fn in_sections(head_dim: i64, theta: f64, sections: &[i64], device: Device) -> Self {
        let of_section = |(section, &len): (usize, &i64)| vec![section as i64 % 3; len as usize];
        Self::new(
            head_dim,
            theta,
            sections.iter().enumerate().flat_map(of_section).collect(),
            device,
        )
    }

    /// Frequencies of time, height and width by turns, as many of height and width as `sections` say; all others are of time.
    pub fn interleaved(head_dim: i64, theta: f64, sections: &[i64], device: Device) -> Self {
        let axis = |frequency: i64| match frequency % 3 {
            0 => 0,
            axis if frequency < 3 * sections[axis as usize] => axis,
            _ => 0,
        };
        Self::new(head_dim, theta, (0..head_dim / 2).map(axis).collect(), device)
    }

    fn new(head_dim: i64, theta: f64, axes: Vec<i64>, device: Device) -> Self {
        MRope {
            frequencies: inverse_frequencies(head_dim, theta, device),
            // Made while a model is loaded, before page-locked copies are tried.
            axes: Tensor::from_slice(&axes).to_device(device),
        }
    }

    /// The embedding of tokens at `position_ids [3, T]`.
    pub fn rotary(&self, position_ids: &Tensor, kind: Kind) -> Rotary {
        // [T, head_dim / 2]
        let positions = position_ids.to_kind(Kind::Float).tr().index_select(1, &self.axes);
        Rotary::from_angles(&(positions * &self.frequencies), kind)
    }
}

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
    fn frequencies_have_an_axis() {
        let axes = |rope: MRope| Vec::<i64>::try_from(&rope.axes).unwrap();
        let device = Device::Cpu;
        assert_eq!(axes(MRope::in_sections(12, 1e4, &[1, 2, 3], device)), [0, 1, 1, 2, 2, 2]);
        assert_eq!(axes(MRope::interleaved(16, 1e4, &[4, 2, 2], device)), [0, 1, 2, 0, 1, 2, 0, 0]);
        assert_eq!(axes(MRope::interleaved(16, 1e4, &[3, 3, 2], device)), [0, 1, 2, 0, 1, 2, 0, 1]);
    }
}
