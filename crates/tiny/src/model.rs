//! A tiny Qwen2.5-VL in the hub's flat layout, its weights drawn from a seed.
//!
//! Matrices are drawn from N(0, 1/fan_in) by our own generator, so that a seed means the same
//! weights whatever libtorch does; norms are one, biases zero.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use serde_json::{Value, json};

use crate::tokenizer::{self, MERGE_SIZE, PATCH_SIZE, TokenIds, Words};

/// Sizes of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ModelShape {
    /// Channels of the text model.
    pub text_width: i64,
    /// Channels of its MLP.
    pub text_mlp: i64,
    /// Layers of the text model.
    pub text_layers: usize,
    /// Query heads of the text model.
    pub text_heads: i64,
    /// Key and value heads of the text model.
    pub text_kv_heads: i64,
    /// Channels of the vision tower.
    pub vision_width: i64,
    /// Channels of its MLP.
    pub vision_mlp: i64,
    /// Blocks of the vision tower: all but the last see a window, the last the whole image.
    pub vision_blocks: usize,
    /// Heads of the vision tower.
    pub vision_heads: i64,
}

impl ModelShape {
    /// The demo's model, 0.6 M parameters.
    pub const DEMO: Self = Self {
        text_width: 128,
        text_mlp: 384,
        text_layers: 2,
        text_heads: 4,
        text_kv_heads: 2,
        vision_width: 64,
        vision_mlp: 160,
        vision_blocks: 2,
        vision_heads: 4,
    };
}

/// Side of an attention window of the vision tower, px.
const WINDOW_PX: u32 = 32;
/// Of a token's rotary frequencies, how many in 16 turn with time, height and width.
const MROPE_SIXTEENTHS: [i64; 3] = [4, 6, 6];
/// Base of the rotary frequencies. Qwen's million is for thousands of tokens: over the four by four
/// tokens of an image its height and width would hardly turn at all.
pub const ROPE_THETA: f64 = 100.0;

/// Writes a whole model folder: configuration, tokenizer, settings and weights.
///
/// # Errors
/// A file that cannot be written.
pub fn write(folder: &Path, shape: &ModelShape, words: &Words, seed: u64) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let ids = tokenizer::write(folder, words)?;
    let config = config(shape, &ids);
    write_model(folder, &config, weight_list(shape, ids.vocab_size as i64), seed)
}

/// Weights by name, with their sizes.
pub type WeightSizes = Vec<(String, Vec<i64>)>;

/// Writes a model folder of any family, of its own configuration and weights: `parts` gives both for the ids of the tokenizer, weights by name
/// and size.
///
/// # Errors
/// A file that cannot be written, those of `parts`.
pub fn write_parts(
    folder: &Path,
    words: &Words,
    seed: u64,
    parts: impl FnOnce(&TokenIds) -> Result<(Value, WeightSizes)>,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let ids = tokenizer::write(folder, words)?;
    let (config, weights) = parts(&ids)?;
    let start = |(name, dims): (String, Vec<i64>)| {
        let init = Init::of(&name, &dims);
        (name, dims, init)
    };
    write_model(folder, &config, weights.into_iter().map(start).collect(), seed)
}

fn write_model(folder: &Path, config: &Value, weights: Vec<Weight>, seed: u64) -> Result<()> {
    let path = folder.join("config.json");
    fs::write(&path, format!("{config:#}\n")).with_context(|| path.display().to_string())?;
    let mut normals = Normals { rng: ChaCha8Rng::seed_from_u64(seed), spare: None };
    let weights: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .into_iter()
        .map(|(name, dims, init)| {
            let bytes = init.bytes(&dims, &mut normals);
            (name, dims.iter().map(|&d| d as usize).collect(), bytes)
        })
        .collect();
    let views = weights
        .iter()
        .map(|(name, dims, bytes)| Ok((name, TensorView::new(Dtype::F32, dims.clone(), bytes)?)));
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &path)
        .with_context(|| path.display().to_string())?;
    Ok(())
}

/// How many rotary frequencies turn with time, height and width.
pub fn mrope_section(shape: &ModelShape) -> [i64; 3] {
    let half_head = shape.text_width / shape.text_heads / 2;
    MROPE_SIXTEENTHS.map(|n| n * half_head / 16)
}

fn config(shape: &ModelShape, ids: &TokenIds) -> Value {
    let full_blocks = [shape.vision_blocks - 1];
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids.end_of_text,
        "eos_token_id": ids.end_of_turn,
        "hidden_act": "silu",
        "hidden_size": shape.text_width,
        "image_token_id": ids.image_pad,
        "initializer_range": 0.02,
        "intermediate_size": shape.text_mlp,
        "max_position_embeddings": 2048,
        "max_window_layers": shape.text_layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": shape.text_heads,
        "num_hidden_layers": shape.text_layers,
        "num_key_value_heads": shape.text_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": mrope_section(shape)},
        "rope_theta": ROPE_THETA,
        "sliding_window": 2048,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "use_cache": true,
        "use_sliding_window": false,
        "video_token_id": ids.video_pad,
        "vision_config": {
            "depth": shape.vision_blocks,
            "fullatt_block_indexes": full_blocks,
            "hidden_act": "silu",
            "hidden_size": shape.vision_width,
            "in_chans": 3,
            "intermediate_size": shape.vision_mlp,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.text_width,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "spatial_patch_size": PATCH_SIZE,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": WINDOW_PX,
        },
        "vision_end_token_id": ids.vision_end,
        "vision_start_token_id": ids.vision_start,
        "vision_token_id": ids.vision_pad,
        "vocab_size": ids.vocab_size,
    })
}

/// What a tensor starts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// N(0, 1/fan_in), all dimensions but the first fanning in.
    Normal,
    /// N(0, 0.02^2).
    Small,
    Ones,
    Zeros,
}

impl Init {
    /// What a weight starts as, by its name and size: norms as one, biases as zero, learned positions small, else normal.
    fn of(name: &str, dims: &[i64]) -> Self {
        match dims {
            [_] if name.ends_with(".bias") => Init::Zeros,
            [_] => Init::Ones,
            _ if name.ends_with("pos_embed.weight") => Init::Small,
            _ => Init::Normal,
        }
    }

    /// The values, little-endian f32.
    fn bytes(self, dims: &[i64], normals: &mut Normals) -> Vec<u8> {
        let (count, fan_in) = (dims.iter().product::<i64>(), dims[1..].iter().product::<i64>());
        let values: Vec<f32> = match self {
            Self::Normal => {
                let std = (fan_in as f64).sqrt().recip();
                (0..count).map(|_| (std * normals.next()) as f32).collect()
            }
            Self::Small => (0..count).map(|_| (0.02 * normals.next()) as f32).collect(),
            Self::Ones => vec![1.0; count as usize],
            Self::Zeros => vec![0.0; count as usize],
        };
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }
}

/// Standard normal numbers by Box and Muller's method.
struct Normals {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Normals {
    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 - u lies in (0, 1]: its logarithm is finite.
        let (u, v): (f64, f64) = (1.0 - self.rng.random::<f64>(), self.rng.random());
        let radius = (-2.0 * u.ln()).sqrt();
        self.spare = Some(radius * (TAU * v).sin());
        radius * (TAU * v).cos()
    }
}

type Weight = (String, Vec<i64>, Init);

fn linear(list: &mut Vec<Weight>, name: &str, out: i64, input: i64, bias: bool) {
    list.push((format!("{name}.weight"), vec![out, input], Init::Normal));
    if bias {
        list.push((format!("{name}.bias"), vec![out], Init::Zeros));
    }
}

fn norm(list: &mut Vec<Weight>, name: &str, width: i64) {
    list.push((format!("{name}.weight"), vec![width], Init::Ones));
}

fn weight_list(shape: &ModelShape, vocab_size: i64) -> Vec<Weight> {
    let mut list = Vec::new();
    vision_weights(&mut list, shape);
    let (width, mlp) = (shape.text_width, shape.text_mlp);
    let kv = width / shape.text_heads * shape.text_kv_heads;
    list.push(("model.embed_tokens.weight".to_owned(), vec![vocab_size, width], Init::Normal));
    for layer in (0..shape.text_layers).map(|index| format!("model.layers.{index}")) {
        norm(&mut list, &format!("{layer}.input_layernorm"), width);
        for (name, out) in [("q_proj", width), ("k_proj", kv), ("v_proj", kv)] {
            linear(&mut list, &format!("{layer}.self_attn.{name}"), out, width, true);
        }
        linear(&mut list, &format!("{layer}.self_attn.o_proj"), width, width, false);
        norm(&mut list, &format!("{layer}.post_attention_layernorm"), width);
        linear(&mut list, &format!("{layer}.mlp.gate_proj"), mlp, width, false);
        linear(&mut list, &format!("{layer}.mlp.up_proj"), mlp, width, false);
        linear(&mut list, &format!("{layer}.mlp.down_proj"), width, mlp, false);
    }
    norm(&mut list, "model.norm", width);
    list
}

fn vision_weights(list: &mut Vec<Weight>, shape: &ModelShape) {
    let (width, mlp) = (shape.vision_width, shape.vision_mlp);
    let patch = i64::from(PATCH_SIZE);
    list.push((
        "visual.patch_embed.proj.weight".to_owned(),
        vec![width, 3, 2, patch, patch],
        Init::Normal,
    ));
    for block in (0..shape.vision_blocks).map(|index| format!("visual.blocks.{index}")) {
        norm(list, &format!("{block}.norm1"), width);
        linear(list, &format!("{block}.attn.qkv"), 3 * width, width, true);
        linear(list, &format!("{block}.attn.proj"), width, width, true);
        norm(list, &format!("{block}.norm2"), width);
        linear(list, &format!("{block}.mlp.gate_proj"), mlp, width, true);
        linear(list, &format!("{block}.mlp.up_proj"), mlp, width, true);
        linear(list, &format!("{block}.mlp.down_proj"), width, mlp, true);
    }
    let merged = width * i64::from(MERGE_SIZE * MERGE_SIZE);
    norm(list, "visual.merger.ln_q", width);
    linear(list, "visual.merger.mlp.0", merged, merged, true);
    linear(list, "visual.merger.mlp.2", shape.text_width, merged, true);
}
