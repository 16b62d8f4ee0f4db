//! The vision tower: patches in, for each merged patch one vector for the embedding and one for each of the first text layers out.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen3_vl.py`, `Qwen3VLVisionModel`.

use std::rc::Rc;

use tch::Tensor;
use torch::Activation;

use super::config::VisionConfig;
use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::decoder_model::{VisionSettings, VisionTower};
use crate::family::VisionShape;
use crate::layers::attention::{Layout, PackedAttention};
use crate::layers::axial::{axial_rotary, frame_lens, patch_positions};
use crate::layers::position_table::Taps;
use crate::layers::{
    LayerNorm, Linear, Mlp, Norm, PackedWeights, PlainMlp, VisionBlock,
};
use crate::parameters::Builder;

const EPS: f64 = 1e-6;

/// `visual` in the checkpoint.
#[derive(Debug)]
pub struct Tower {
    config: VisionConfig,
    patch_embed: Linear,
    /// `[num_position_embeddings, hidden_size]`.
    pos_embed: Tensor,
    blocks: Vec<VisionBlock>,
    merger: Merger,
    /// One for each of `deepstack_visual_indexes`.
    deepstack: Vec<Merger>,
}

impl Tower {
    /// Takes the tower's tensors below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(b: &mut Builder<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let side = config.patch_size as i64;
        let kernel =
            [config.hidden_size, config.in_channels, config.temporal_patch_size as i64, side, side];
        let positions = [config.num_position_embeddings as i64, config.hidden_size];
        let levels = config.deepstack_visual_indexes.len();
        Ok(Tower {
            patch_embed: b.at("patch_embed.proj", |b| Linear::load_kernel(b, &kernel, true))?,
            pos_embed: b.at("pos_embed", |b| b.take("weight", &positions))?,
            blocks: (0..config.depth)
                .map(|i| b.at(format!("blocks.{i}"), |b| load_block(b, config)))
                .collect::<Result<_, _>>()?,
            merger: b.at("merger", |b| Merger::load(b, config, Shuffle::AfterNorm))?,
            deepstack: (0..levels)
                .map(|i| {
                    let path = format!("deepstack_merger_list.{i}");
                    b.at(path, |b| Merger::load(b, config, Shuffle::BeforeNorm))
                })
                .collect::<Result<_, _>>()?,
            config: config.clone(),
        })
    }

    /// The merger of the features that are taken after block `index`.
    fn deepstack_after(&self, index: usize) -> Option<&Merger> {
        let level = self.config.deepstack_visual_indexes.iter().position(|&block| block == index);
        self.deepstack.get(level?)
    }
}

fn load_block(b: &mut Builder<'_>, config: &VisionConfig) -> Result<VisionBlock, ModelError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let norm1 = b.at("norm1", |b| LayerNorm::load(b, hidden, EPS))?;
    let norm2 = b.at("norm2", |b| LayerNorm::load(b, hidden, EPS))?;
    let activation = config.activation().unwrap_or(Activation::GeluTanh);
    let names = ["linear_fc1", "linear_fc2"];
    let mlp = PlainMlp::load(b, Norm::Layer(norm2), names, [hidden, inner], activation)?;
    VisionBlock::load(b, [hidden, config.num_heads], Norm::Layer(norm1), Mlp::Plain(mlp))
}

impl VisionTower for Tower {
    fn shape(&self) -> VisionShape {
        self.config.shape()
    }

    fn settings(&self) -> String {
        format!("{:?}", self.config)
    }

    fn stages<'a>(
        &'a self,
        checkpointing: &mut Checkpointing<'a>,
        pixel_values: &Tensor,
        tiles: &[[usize; 3]],
        packed: Option<&'a PackedWeights>,
    ) -> Tensor {
        let (kind, device) = (pixel_values.kind(), pixel_values.device());
        let (merge, side) = (self.config.spatial_merge_size, self.config.position_side());
        let taps = Taps::bilinear(tiles, merge, side, device);
        let positions = patch_positions(tiles, merge);
        let head_dim = self.config.hidden_size / self.config.num_heads;
        let rotary = axial_rotary(head_dim, self.config.rope_theta(), &positions, device);
        let layout = Layout::independent(frame_lens(tiles));
        let attention = PackedAttention::new(&layout, false, kind, device);
        let shared = Rc::new((rotary, attention));

        let x = checkpointing.run(pixel_values, move |x| {
            self.patch_embed.forward(x, packed) + taps.positions(&self.pos_embed)
        });
        // The patches, then the features that were taken so far.
        let mut state = vec![x];
        for (index, block) in self.blocks.iter().enumerate() {
            let shared = shared.clone();
            state = checkpointing.run_all(&state, move |state| {
                let x = block.forward(&state[0], &shared.0, &shared.1, packed);
                let taken = self.deepstack_after(index).map(|merger| merger.forward(&x, packed));
                let before = state[1..].iter().map(Tensor::shallow_clone);
                std::iter::once(x).chain(before).chain(taken).collect()
            });
        }
        let mut features = checkpointing.run_all(&state, move |state| {
            let mut parts = vec![self.merger.forward(&state[0], packed)];
            parts.extend(state[1..].iter().map(Tensor::shallow_clone));
            vec![Tensor::cat(&parts, 1)]
        });
        features.remove(0)
    }
}

/// Whether the patches of a token are put side by side before or after they are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shuffle {
    AfterNorm,
    BeforeNorm,
}

#[derive(Debug)]
struct Merger {
    norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    shuffle: Shuffle,
    width: i64,
}

impl Merger {
    fn load(
        b: &mut Builder<'_>,
        config: &VisionConfig,
        shuffle: Shuffle,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size * config.spatial_merge_size.pow(2) as i64;
        let normed = if shuffle == Shuffle::BeforeNorm { width } else { config.hidden_size };
        Ok(Merger {
            norm: b.at("norm", |b| LayerNorm::load(b, normed, EPS))?,
            inner: b.at("linear_fc1", |b| Linear::load(b, width, width, true))?,
            outer: b.at("linear_fc2", |b| Linear::load(b, width, config.out_hidden_size, true))?,
            shuffle,
            width,
        })
    }

    fn forward(&self, x: &Tensor, packed: Option<&PackedWeights>) -> Tensor {
        let merged = |x: &Tensor| x.view([-1, self.width]);
        let x = match self.shuffle {
            Shuffle::AfterNorm => merged(&self.norm.forward(x)),
            Shuffle::BeforeNorm => self.norm.forward(&merged(x)),
        };
        self.outer.forward_activated(&self.inner.forward(&x, packed), Activation::Gelu, packed)
    }
}
