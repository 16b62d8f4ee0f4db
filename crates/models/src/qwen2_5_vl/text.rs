//! The text model: Qwen2 with grouped queries and M-RoPE.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`, `Qwen2_5_VLTextModel`.

use tch::Tensor;
use torch::{DecodeLayer, decode_layer, decode_layer_by_sequences};

use super::config::TextConfig;
use crate::ModelError;
use crate::layers::attention::AttentionBackend;
use crate::layers::rotary::Rotary;
use crate::layers::{GatedMlp, Linear, PackedWeights, RmsNorm, normed_all};
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
    /// Only libtorch's own; mismatches are collected by the builder.
    pub fn load(builder: &mut Builder<'_>, config: &TextConfig) -> Result<Self, ModelError> {
        let embed = [config.vocab_size, config.hidden_size];
        Ok(TextModel {
            embed_tokens: builder.at("embed_tokens", |b| b.take("weight", &embed))?,
            layers: (0..config.num_hidden_layers)
                .map(|i| builder.at(format!("layers.{i}"), |b| DecoderLayer::load(b, config)))
                .collect::<Result<_, _>>()?,
            norm: builder
                .at("norm", |b| RmsNorm::load(b, config.hidden_size, config.rms_norm_eps))?,
        })
    }
}

/// One decoder layer.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Its norm is `post_attention_layernorm`.
    mlp: GatedMlp,
    head_dim: i64,
}

impl DecoderLayer {
    fn load(b: &mut Builder<'_>, config: &TextConfig) -> Result<Self, ModelError> {
        let (hidden, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let head_dim = config.head_dim();
        let (q, kv) = (config.num_attention_heads * head_dim, config.num_kv_heads() * head_dim);
        let input_layernorm = b.at("input_layernorm", |b| RmsNorm::load(b, hidden, eps))?;
        let norm = b.at("post_attention_layernorm", |b| RmsNorm::load(b, hidden, eps))?;
        Ok(DecoderLayer {
            input_layernorm,
            q_proj: b.at("self_attn.q_proj", |b| Linear::load(b, hidden, q, true))?,
            k_proj: b.at("self_attn.k_proj", |b| Linear::load(b, hidden, kv, true))?,
            v_proj: b.at("self_attn.v_proj", |b| Linear::load(b, hidden, kv, true))?,
            o_proj: b.at("self_attn.o_proj", |b| Linear::load(b, q, hidden, false))?,
            mlp: GatedMlp::load(b, norm, [hidden, inner], false)?,
            head_dim,
        })
    }

    /// `[T, hidden_size] -> [T, hidden_size]`; `index` is the layer's, for `backend`.
    pub fn forward(
        &self,
        index: usize,
        x: &Tensor,
        rotary: &Rotary,
        backend: &mut dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        if let Some(kv) = backend.kv_view(index)
            && let Some(layer) = self.plain(packed)
        {
            return decode_layer(x, &layer, [&rotary.cos, &rotary.sin], &kv);
        }
        if let Some(layer) = self.plain(packed)
            && let Some(kv) = backend.sequence_kv(index)
        {
            let tables = [&rotary.cos, &rotary.sin];
            return decode_layer_by_sequences(x, &layer, tables, rotary.matrices(), &kv);
        }
        let tokens = x.size()[0];
        // [T, heads, head_dim]
        let [q, k, v] = normed_all(
            &self.input_layernorm,
            x,
            [&self.q_proj, &self.k_proj, &self.v_proj],
            packed,
        )
        .map(|x| x.view([tokens, -1, self.head_dim]));
        let attended = backend.attend(index, &rotary.apply(&q), &rotary.apply(&k), &v);
        let x = self.o_proj.add_forward(x, &attended.reshape([tokens, -1]), packed);
        self.mlp.forward(&x, packed)
    }

    /// The layer as one operation takes it; `None` with adapters.
    fn plain<'a>(&'a self, packed: Option<&'a PackedWeights>) -> Option<DecodeLayer<'a>> {
        let GatedMlp { norm, gate_proj, up_proj, down_proj } = &self.mlp;
        let linears =
            [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, gate_proj, up_proj, down_proj]
                .map(|linear| linear.plain(packed));
        if linears.iter().any(Option::is_none) {
            return None;
        }
        Some(DecodeLayer::new(
            [self.input_layernorm.weight(), norm.weight()],
            linears.map(|linear| linear.expect("checked above")),
            self.head_dim,
        ))
    }
}
