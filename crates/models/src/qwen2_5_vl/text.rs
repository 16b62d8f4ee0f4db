//! The text model: Qwen2 with grouped queries and M-RoPE.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`, `Qwen2_5_VLTextModel`.

use tch::Tensor;

use super::config::TextConfig;
use crate::ModelError;
use crate::layers::attention::Attend;
use crate::layers::packed::{DecoderWeights, decode};
use crate::layers::rotary::Rotary;
use crate::layers::{Linear, RmsNorm, forward_all, gated};
use crate::parameters::Builder;

/// `language_model` in the checkpoint.
#[derive(Debug)]
pub struct TextModel {
    /// `[vocab_size, hidden_size]`.
    pub embed_tokens: Tensor,
    /// The decoder layers.
    pub layers: Vec<DecoderLayer>,
    /// Norm after the last layer.
    pub norm: RmsNorm,
}

impl TextModel {
    /// Takes the text model's tensors below the builder's path.
    ///
    /// # Errors
    /// Only libtorch's own; misfits are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, config: &TextConfig) -> Result<Self, ModelError> {
        let embed = [config.vocab_size, config.hidden_size];
        Ok(TextModel {
            embed_tokens: builder.at("embed_tokens", |b| b.take("weight", &embed))?,
            layers: (0..config.num_hidden_layers)
                .map(|i| builder.at(format!("layers.{i}"), |b| DecoderLayer::load(b, config)))
                .collect::<Result<_, _>>()?,
            norm: builder.at("norm", |b| {
                RmsNorm::load(b, config.hidden_size, config.rms_norm_eps)
            })?,
        })
    }
}

/// One decoder layer.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    head_dim: i64,
}

impl DecoderLayer {
    fn load(b: &mut Builder<'_>, config: &TextConfig) -> Result<Self, ModelError> {
        let (hidden, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.rms_norm_eps,
        );
        let head_dim = config.head_dim();
        let (q, kv) = (
            config.num_attention_heads * head_dim,
            config.num_kv_heads() * head_dim,
        );
        Ok(DecoderLayer {
            input_layernorm: b.at("input_layernorm", |b| RmsNorm::load(b, hidden, eps))?,
            post_attention_layernorm: b.at("post_attention_layernorm", |b| {
                RmsNorm::load(b, hidden, eps)
            })?,
            q_proj: b.at("self_attn.q_proj", |b| Linear::load(b, hidden, q, true))?,
            k_proj: b.at("self_attn.k_proj", |b| Linear::load(b, hidden, kv, true))?,
            v_proj: b.at("self_attn.v_proj", |b| Linear::load(b, hidden, kv, true))?,
            o_proj: b.at("self_attn.o_proj", |b| Linear::load(b, q, hidden, false))?,
            gate_proj: b.at("mlp.gate_proj", |b| Linear::load(b, hidden, inner, false))?,
            up_proj: b.at("mlp.up_proj", |b| Linear::load(b, hidden, inner, false))?,
            down_proj: b.at("mlp.down_proj", |b| Linear::load(b, inner, hidden, false))?,
            head_dim,
        })
    }

    /// `[T, hidden_size] -> [T, hidden_size]`; `index` tells `attend` which layer asks.
    pub fn forward(
        &self,
        index: usize,
        x: &Tensor,
        rotary: &Rotary,
        attend: &mut dyn Attend,
    ) -> Tensor {
        if let Some(keys) = attend.decode_keys(index)
            && let Some(y) = decode(x, &self.weights(), rotary, &keys)
        {
            return y;
        }
        let tokens = x.size()[0];
        let y = self.input_layernorm.forward(x);
        // [T, heads, head_dim]
        let [q, k, v] = forward_all(&y, [&self.q_proj, &self.k_proj, &self.v_proj])
            .map(|x| x.view([tokens, -1, self.head_dim]));
        let seen = attend.attend(index, &rotary.apply(&q), &rotary.apply(&k), &v);
        let x = x + self.o_proj.forward(&seen.reshape([tokens, -1]));
        let y = self.post_attention_layernorm.forward(&x);
        let [gate, up] = forward_all(&y, [&self.gate_proj, &self.up_proj]);
        let inner = gated(&gate, &up);
        x + self.down_proj.forward(&inner)
    }

    fn weights(&self) -> DecoderWeights<'_> {
        DecoderWeights {
            norms: [&self.input_layernorm, &self.post_attention_layernorm],
            linears: [
                &self.q_proj,
                &self.k_proj,
                &self.v_proj,
                &self.o_proj,
                &self.gate_proj,
                &self.up_proj,
                &self.down_proj,
            ],
            head_dim: self.head_dim,
        }
    }
}
