//! Variable-length attention over segments: each is a sequence of queries whose keys are those of its prompt and its own.

use tch::{Device, Tensor};
use torch::{AttentionOptions, SequenceLens, variable_length_attention};

use super::attention::{Layout, Segment, Visibility, dims3};

/// Index tables of a layout, for every layer.
pub(super) struct VariableLength {
    lens: SequenceLens,
    /// `[all keys]`: the token of each key; `None` where no segment has a prefix.
    keys: Option<Tensor>,
    options: AttentionOptions,
}

impl VariableLength {
    pub(super) fn new(layout: &Layout, visibility: &Visibility, device: Device) -> Self {
        let prefix_of = |s: &Segment| s.prefix.map(|p| layout.segments[p]);
        let queries: Vec<usize> = layout.segments.iter().map(|s| s.len).collect();
        let key_lens = layout.segments.iter().map(|s| s.len + prefix_of(s).map_or(0, |p| p.len));
        let lens = SequenceLens::new(queries, key_lens.collect(), device);
        let has_prefixes = layout.segments.iter().any(|s| s.prefix.is_some());
        let keys = has_prefixes.then(|| {
            let tokens: Vec<i64> = layout
                .segments
                .iter()
                .flat_map(|s| [prefix_of(s), Some(*s)])
                .flatten()
                .flat_map(|s| s.start as i64..(s.start + s.len) as i64)
                .collect();
            torch::upload(&tokens, device)
        });
        let &Visibility { causal, window, scale, .. } = visibility;
        let options = AttentionOptions { causal, window, scale };
        VariableLength { lens, keys, options }
    }

    /// `q [T, heads, head_dim]`, `k`, `v [T, kv_heads, head_dim] -> [T, heads, head_dim]`.
    pub(super) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (k, v) = (self.gather(k), self.gather(v));
        variable_length_attention(q, &k, &v, &self.lens, self.options)
            .expect("shapes that the layout gives")
    }

    fn gather(&self, x: &Tensor) -> Tensor {
        let Some(keys) = &self.keys else {
            return x.shallow_clone();
        };
        let [tokens, heads, head_dim] = dims3(x);
        let flat = x.reshape([tokens, heads * head_dim]);
        // An embedding look-up: its backward adds the gradients of a shared key in a fixed order.
        Tensor::embedding(&flat, keys, -1, false, false).view([-1, heads, head_dim])
    }
}
