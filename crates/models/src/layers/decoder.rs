//! A decoder-only text model: embedding, pre-norm layers of grouped-query attention and a gated MLP, a last norm.
//!
//! Source: huggingface/transformers v5.17, `modeling_qwen2_5_vl.py`, `Qwen2_5_VLTextModel`; `modeling_qwen3_vl.py`, `Qwen3VLTextModel`.

use tch::Tensor;
use torch::{DecodeLayer, decode_layer, decode_layer_by_sequences};

use super::attention::AttentionBackend;
use super::{GatedMlp, Linear, PackedWeights, RmsNorm, after_norm};
use crate::ModelError;
use crate::config::TextConfig;
use crate::model::PassInputs;
use crate::parameters::Builder;

/// What differs between families.
#[derive(Clone, Copy, Debug)]
pub struct DecoderOptions {
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output of attention has one.
    pub o_bias: bool,
    /// Whether each head of queries and keys is normalised before rotation (`q_norm`, `k_norm`).
    pub head_norms: bool,
    /// Whether rotary frequencies of time, height and width alternate, instead of lying in sections.
    pub interleaved_mrope: bool,
}

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
    pub fn load(
        builder: &mut Builder<'_>,
        config: &TextConfig,
        options: DecoderOptions,
    ) -> Result<Self, ModelError> {
        let embed = [config.vocab_size, config.hidden_size];
        let layer = |b: &mut Builder<'_>| DecoderLayer::load(b, config, options);
        Ok(TextModel {
            embed_tokens: builder.at("embed_tokens", |b| b.take("weight", &embed))?,
            layers: (0..config.num_hidden_layers)
                .map(|i| builder.at(format!("layers.{i}"), layer))
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
    /// Of each head of queries and of keys, `[head_dim]`.
    head_norms: Option<[RmsNorm; 2]>,
    /// Its norm is `post_attention_layernorm`.
    mlp: GatedMlp,
    head_dim: i64,
    /// Which of the pass's rotary embeddings is its own.
    rotary: usize,
}

impl DecoderLayer {
    fn load(
        b: &mut Builder<'_>,
        config: &TextConfig,
        options: DecoderOptions,
    ) -> Result<Self, ModelError> {
        let (hidden, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let head_dim = config.head_dim();
        let (q, kv) = (config.num_attention_heads * head_dim, config.num_kv_heads() * head_dim);
        let bias = options.qkv_bias;
        let input_layernorm = b.at("input_layernorm", |b| RmsNorm::load(b, hidden, eps))?;
        let norm = b.at("post_attention_layernorm", |b| RmsNorm::load(b, hidden, eps))?;
        let mut head_norm =
            |name: &str| b.at(format!("self_attn.{name}"), |b| RmsNorm::load(b, head_dim, eps));
        let head_norms = match options.head_norms {
            true => Some([head_norm("q_norm")?, head_norm("k_norm")?]),
            false => None,
        };
        Ok(DecoderLayer {
            input_layernorm,
            q_proj: b.at("self_attn.q_proj", |b| Linear::load(b, hidden, q, bias))?,
            k_proj: b.at("self_attn.k_proj", |b| Linear::load(b, hidden, kv, bias))?,
            v_proj: b.at("self_attn.v_proj", |b| Linear::load(b, hidden, kv, bias))?,
            o_proj: b.at("self_attn.o_proj", |b| Linear::load(b, q, hidden, options.o_bias))?,
            head_norms,
            mlp: GatedMlp::load(b, norm, [hidden, inner], false)?,
            head_dim,
            rotary: 0,
        })
    }

    /// `[T, hidden_size] -> [T, hidden_size]`; `index` is the layer's, for `backend`.
    pub fn forward(
        &self,
        index: usize,
        x: &Tensor,
        pass: &PassInputs,
        backend: &dyn AttentionBackend,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        let rotary = &pass.rotaries[self.rotary];
        if let Some(layer) = self.plain(packed) {
            let tables = [&rotary.cos, &rotary.sin];
            if let Some(kv) = backend.kv_view(index) {
                return decode_layer(x, &layer, tables, &kv);
            }
            if let Some(kv) = backend.sequence_kv(index) {
                return decode_layer_by_sequences(x, &layer, tables, rotary.matrices(), &kv);
            }
        }
        let tokens = x.size()[0];
        // [T, heads, head_dim]
        let [q, k, v] = after_norm(
            self.input_layernorm.weight(),
            x,
            [&self.q_proj, &self.k_proj, &self.v_proj],
            packed,
        )
        .map(|x| x.view([tokens, -1, self.head_dim]));
        let [q, k] = match &self.head_norms {
            Some([q_norm, k_norm]) => [q_norm.forward(&q), k_norm.forward(&k)],
            None => [q, k],
        };
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
        let norms = [self.input_layernorm.weight(), norm.weight()];
        let linears = linears.map(|linear| linear.expect("checked above"));
        let head_norms = self.head_norms.as_ref();
        Some(DecodeLayer {
            head_norms: head_norms.map(|norms| norms.each_ref().map(|norm| norm.weight().into())),
            ..DecodeLayer::new(norms, linears, self.head_dim)
        })
    }
}
