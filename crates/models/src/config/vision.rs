//! What settings of vision towers have in common.

use serde::Deserialize;

use super::text::rope_word;
use super::{FEW, MANY, above_zero, equal, within};

/// Rotary settings of a vision tower.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionRope {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `axial` (by height and width) or `default`.
    pub rope_type: Option<String>,
}

/// The base of a tower's rotary frequencies.
pub(crate) fn vision_theta(rope: Option<&VisionRope>) -> f64 {
    rope.and_then(|rope| rope.rope_theta).unwrap_or(10_000.0)
}

/// Sizes that every tower of square patches with axial rotary embedding has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VisionSizes<'a> {
    pub depth: usize,
    pub num_heads: i64,
    pub in_channels: i64,
    /// The hub's name of `in_channels`.
    pub in_chans: Option<i64>,
    pub patch_size: usize,
    pub merge_size: usize,
    pub temporal_patch_size: usize,
    /// Channels, by the name that the family gives them.
    pub width: (&'a str, i64),
    pub intermediate_size: i64,
    pub rope: Option<&'a VisionRope>,
}

impl VisionSizes<'_> {
    /// Refuses sizes that no model has.
    pub(crate) fn check(&self) -> Result<(), String> {
        let few = [
            ("vision_config.depth", self.depth as i64),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.in_channels", self.in_channels),
            ("vision_config.patch_size", self.patch_size as i64),
            ("vision_config.spatial_merge_size", self.merge_size as i64),
            ("vision_config.temporal_patch_size", self.temporal_patch_size as i64),
        ];
        within(FEW, &few)?;
        let (name, width) = self.width;
        within(MANY, &[(&format!("vision_config.{name}"), width)])?;
        within(MANY, &[("vision_config.intermediate_size", self.intermediate_size)])?;
        above_zero(&[("vision_config.rope_theta", vision_theta(self.rope))])?;
        let heads = width % (4 * self.num_heads);
        equal(&format!("vision `{name}` modulo 4 x `num_heads`"), heads, 0)?;
        if let Some(in_chans) = self.in_chans {
            equal("`in_chans`", in_chans, self.in_channels)?;
        }
        let rope = self.rope.and_then(|rope| rope.rope_type.as_deref());
        rope_word("vision_config.rope_type", rope, "axial")
    }

    /// Numbers of a patch.
    pub(crate) fn patch_dim(&self) -> usize {
        self.in_channels as usize * self.temporal_patch_size * self.patch_size.pow(2)
    }
}
