//! Attention over packed tokens: many sequences in one `[T, ..]` tensor, separated by a [`Layout`].
//!
//! On a CPU (f32 and bf16) and on CUDA in 16 bits kernels take segments without padding. Everything else is padded, in this file only:
//! gathered into `[segments, longest]` blocks for libtorch's kernel and scattered back, so other layers never see padding.
//! Completions over a shared prompt read its keys; its gradient sums over all of them.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use torch::{
    AttentionKernel, KvView, SegmentLens, SegmentTable, SequenceKv, causal_intervals,
    segment_attention,
};

use super::varlen::VariableLength;

/// How a layer attends. Packed batches and the KV cache implement it.
pub trait AttentionBackend {
    /// `q [T, heads, head_dim]`, `k`, `v [T, kv_heads, head_dim]`, rotated, -> `[T, heads, head_dim]`.
    fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor;

    /// The cache as [`torch::decode_layer`] reads it, where that equals [`AttentionBackend::attend`] for `layer`.
    fn kv_view(&self, _layer: usize) -> Option<KvView<'_>> {
        None
    }

    /// The cache as [`torch::decode_layer_by_sequences`] reads it, where that equals [`AttentionBackend::attend`] for `layer`.
    fn sequence_kv(&self, _layer: usize) -> Option<SequenceKv<'_>> {
        None
    }
}

/// A run of tokens that attend to one another and to those of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First token.
    pub start: usize,
    /// Tokens, at least one.
    pub len: usize,
    /// Index of the segment whose tokens come before these (a prompt). It has no prefix itself.
    pub prefix: Option<usize>,
}

/// The segments of a packed batch; together they cover `0 .. T` once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The segments, by start.
    pub segments: Vec<Segment>,
}

impl Layout {
    /// Independent sequences.
    pub fn independent(lens: impl IntoIterator<Item = usize>) -> Self {
        let mut layout = Layout::default();
        for len in lens {
            layout.push(len, None);
        }
        layout
    }

    /// Appends a segment and returns its index.
    ///
    /// # Panics
    /// On an empty segment, or a prefix that is not an earlier segment without one.
    pub fn push(&mut self, len: usize, prefix: Option<usize>) -> usize {
        assert!(len > 0, "a segment holds at least one token");
        if let Some(p) = prefix {
            assert!(self.segments[p].prefix.is_none(), "a prefix has no prefix itself");
        }
        self.segments.push(Segment { start: self.num_tokens(), len, prefix });
        self.segments.len() - 1
    }

    /// `T`.
    pub fn num_tokens(&self) -> usize {
        self.segments.last().map_or(0, |s| s.start + s.len)
    }
}

/// Which packed tokens see which of their segment and its prefix, and what scores are multiplied by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Visibility {
    /// A token sees itself and those before it, else its whole segment.
    pub causal: bool,
    /// With `causal`: no more than the last so many, itself included.
    pub window: Option<usize>,
    /// With `causal`: ranges of tokens (images) that see one another whole, each within one segment.
    pub runs: Vec<Range<usize>>,
    /// `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
}

impl From<bool> for Visibility {
    /// Causal or not, and nothing else.
    fn from(causal: bool) -> Self {
        Visibility { causal, ..Visibility::default() }
    }
}

impl Visibility {
    /// Whether it is more than causal or not.
    fn has_intervals(&self) -> bool {
        self.window.is_some() || !self.runs.is_empty()
    }

    /// Of causal attention: the keys that each token sees, counted from the start of its prefix.
    fn intervals(&self, layout: &Layout) -> Vec<Range<usize>> {
        causal_intervals(&segment_lens(layout), self.window, &self.runs)
    }
}

fn segment_lens(layout: &Layout) -> Vec<SegmentLens> {
    layout.segments.iter().map(|s| (s.len, s.prefix)).collect()
}

/// Attention of a packed batch: index and mask tensors are built once and serve every layer.
pub struct PackedAttention {
    path: Path,
    scale: Option<f64>,
}

enum Path {
    Segments(SegmentTable),
    Blocks(Blocks),
    Varlen(VariableLength),
}

/// Padded blocks for libtorch's kernel of equal lengths.
struct Blocks {
    roots: Roots,
    branches: Option<Branches>,
    /// `[T]`: row of each token in the concatenated block outputs; `None` where they are in order.
    pick: Option<Tensor>,
}

/// Segments without a prefix.
struct Roots {
    block: Block,
    /// Causal blocks need no mask: padding comes after every real token.
    causal: bool,
    /// `[segments, 1, 1 or longest, longest]`, `None` where nothing is masked.
    mask: Option<Tensor>,
}

/// Completions over prompts, in groups of equal prompt.
struct Branches {
    prompts: Block,
    completions: Block,
    groups: i64,
    group_size: i64,
    /// `[groups * group_size, 1, longest completion, longest prompt + longest completion]`.
    mask: Tensor,
}

/// A gather of segments into `[rows, width]`.
struct Block {
    rows: i64,
    width: i64,
    /// `[rows * width]` tokens, 0 for padding; `None`: rows are in order from `start`.
    index: Option<Tensor>,
    start: i64,
}

impl Block {
    fn new(rows: &[Option<Segment>], device: Device) -> Self {
        let width = rows.iter().flatten().map(|s| s.len).max().unwrap_or(1);
        let start = rows[0].map_or(0, |s| s.start);
        let in_order = rows.iter().enumerate().all(|(row, segment)| {
            segment.is_some_and(|s| s.len == width && s.start == start + row * width)
        });
        let index = (!in_order).then(|| {
            let mut index = vec![0i64; rows.len() * width];
            for (row, segment) in rows.iter().enumerate() {
                for (slot, token) in
                    segment.iter().flat_map(|s| s.start..s.start + s.len).enumerate()
                {
                    index[row * width + slot] = token as i64;
                }
            }
            torch::upload(&index, device)
        });
        Block { rows: rows.len() as i64, width: width as i64, index, start: start as i64 }
    }

    /// `[T, heads, head_dim] -> [rows, width, heads, head_dim]`.
    fn gather(&self, x: &Tensor) -> Tensor {
        let [tokens, heads, head_dim] = dims3(x);
        let picked = match &self.index {
            None => x.narrow(0, self.start, self.rows * self.width),
            // An embedding look-up: its backward adds rows in a fixed order and in parallel.
            Some(index) => {
                Tensor::embedding(&x.reshape([tokens, heads * head_dim]), index, -1, false, false)
            }
        };
        picked.view([self.rows, self.width, heads, head_dim])
    }
}

impl PackedAttention {
    /// For `layout`, completions always after their prompt, by the kernel that `torch` has for `kind` on `device`; runs that see themselves
    /// whole have none on CUDA and are padded.
    ///
    /// # Panics
    /// On an empty layout; a prefix, a window or a run without `causal`.
    pub fn new(
        layout: &Layout,
        visibility: impl Into<Visibility>,
        kind: Kind,
        device: Device,
    ) -> Self {
        let visibility = visibility.into();
        match AttentionKernel::of(kind, device) {
            AttentionKernel::Segments => {
                check(layout, &visibility);
                let path = Path::Segments(segment_table(layout, &visibility));
                PackedAttention { path, scale: visibility.scale }
            }
            AttentionKernel::VariableLength if visibility.runs.is_empty() => {
                Self::without_padding(layout, visibility, device)
            }
            _ => Self::in_blocks(layout, visibility, kind, device),
        }
    }

    /// As [`PackedAttention::new`], by libtorch's kernel over padded blocks.
    ///
    /// # Panics
    /// As [`PackedAttention::new`].
    pub fn in_blocks(
        layout: &Layout,
        visibility: impl Into<Visibility>,
        kind: Kind,
        device: Device,
    ) -> Self {
        let visibility = visibility.into();
        check(layout, &visibility);
        let path = Path::Blocks(Blocks::new(layout, &visibility, kind, device));
        PackedAttention { path, scale: visibility.scale }
    }

    /// As [`PackedAttention::new`], by the variable-length kernel on any device; slow outside CUDA.
    ///
    /// # Panics
    /// As [`PackedAttention::new`], and on runs.
    pub fn without_padding(
        layout: &Layout,
        visibility: impl Into<Visibility>,
        device: Device,
    ) -> Self {
        let visibility = visibility.into();
        check(layout, &visibility);
        assert!(visibility.runs.is_empty(), "variable-length attention to whole images: not yet");
        let path = Path::Varlen(VariableLength::new(layout, &visibility, device));
        PackedAttention { path, scale: visibility.scale }
    }

    /// `q [T, heads, head_dim]`, `k`, `v [T, kv_heads, head_dim] -> [T, heads, head_dim]`.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        match &self.path {
            Path::Segments(table) => {
                let attended = segment_attention([q, k, v], table, self.scale);
                attended.expect("shapes that the layout gives")
            }
            Path::Blocks(blocks) => blocks.forward([q, k, v], self.scale),
            Path::Varlen(varlen) => varlen.forward(q, k, v),
        }
    }
}

fn check(layout: &Layout, visibility: &Visibility) {
    assert!(!layout.segments.is_empty(), "an empty layout");
    assert!(visibility.causal || !visibility.has_intervals(), "windows and runs are causal");
    assert!(
        visibility.causal || layout.segments.iter().all(|s| s.prefix.is_none()),
        "completions over prompts are causal"
    );
}

/// For the CPU kernel.
fn segment_table(layout: &Layout, visibility: &Visibility) -> SegmentTable {
    let lens = segment_lens(layout);
    let table = match visibility.has_intervals() {
        true => SegmentTable::with_intervals(&lens, &visibility.intervals(layout)),
        false => SegmentTable::new(&lens, visibility.causal),
    };
    table.expect("a layout is a table of segments, and runs lie within them")
}

impl Blocks {
    fn new(layout: &Layout, visibility: &Visibility, kind: Kind, device: Device) -> Self {
        let roots: Vec<Segment> =
            layout.segments.iter().copied().filter(|s| s.prefix.is_none()).collect();
        let groups = grouped(layout);
        let mut order = Vec::with_capacity(layout.num_tokens()); // (token, row of block output)
        let rows: Vec<Option<Segment>> = roots.iter().copied().map(Some).collect();
        let block = Block::new(&rows, device);
        list_rows(&mut order, &rows, block.width, 0);
        let root_rows = block.rows * block.width;
        let intervals = visibility.causal.then(|| visibility.intervals(layout));
        let mask = match &intervals {
            None => padding_mask(&roots, block.width, kind, device),
            Some(intervals) if visibility.has_intervals() => {
                Some(interval_mask(&roots, block.width, intervals, kind, device))
            }
            Some(_) => None,
        };
        let roots = Roots { block, causal: intervals.is_some() && mask.is_none(), mask };

        let branches = (!groups.is_empty()).then(|| {
            let intervals = intervals.as_ref().expect("completions are causal");
            let branches = Branches::new(layout, &groups, intervals, kind, device);
            let rows = padded_completions(&groups);
            list_rows(&mut order, &rows, branches.completions.width, root_rows);
            branches
        });
        order.sort_unstable();
        let in_order = order.iter().enumerate().all(|(i, &(_, row))| i as i64 == row);
        let pick = (!in_order).then(|| {
            let rows: Vec<i64> = order.iter().map(|&(_, row)| row).collect();
            torch::upload(&rows, device)
        });
        Blocks { roots, branches, pick }
    }

    fn forward(&self, [q, k, v]: [&Tensor; 3], scale: Option<f64>) -> Tensor {
        let [tokens, heads, head_dim] = dims3(q);
        let mut outputs = Vec::with_capacity(2);
        let roots = &self.roots;
        let blocks = [q, k, v].map(|x| roots.block.gather(x));
        outputs.push(kernel(&blocks, roots.mask.as_ref(), roots.causal, scale));
        if let Some(branches) = &self.branches {
            let blocks = [branches.completions.gather(q), branches.keys(k), branches.keys(v)];
            outputs.push(kernel(&blocks, Some(&branches.mask), false, scale));
        }
        let flat: Vec<Tensor> = outputs.iter().map(|x| x.reshape([-1, heads * head_dim])).collect();
        let all = if flat.len() == 1 { flat[0].shallow_clone() } else { Tensor::cat(&flat, 0) };
        let picked = match &self.pick {
            // In order, and at most padding behind the last token.
            None => all.narrow(0, 0, tokens),
            Some(pick) => Tensor::embedding(&all, pick, -1, false, false),
        };
        picked.view([tokens, heads, head_dim])
    }
}

/// `[q, k, v]`, each `[rows, width, heads, head_dim]` -> the same of `q`.
fn kernel(blocks: &[Tensor; 3], mask: Option<&Tensor>, causal: bool, scale: Option<f64>) -> Tensor {
    let [q, k, v] = [0, 1, 2].map(|i| blocks[i].transpose(1, 2));
    let grouped = q.size()[1] != k.size()[1];
    if grouped && q.device().is_cuda() && q.kind() == Kind::Float {
        // With grouped heads libtorch has no kernel for them and would hold all scores.
        let [k, v] = [k, v].map(|x| repeat_heads(&x, q.size()[1]));
        return attend_blocks([&q, &k, &v], mask, causal, scale, false);
    }
    attend_blocks([&q, &k, &v], mask, causal, scale, grouped)
}

/// `[rows, heads, width, head_dim]` each -> `[rows, width, heads, head_dim]`.
fn attend_blocks(
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    causal: bool,
    scale: Option<f64>,
    grouped: bool,
) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale, grouped).transpose(1, 2)
}

/// `x [rows, kv_heads, width, head_dim]` with each head as often as `heads` ask.
fn repeat_heads(x: &Tensor, heads: i64) -> Tensor {
    let [rows, kv_heads, width, head_dim] = dims4(x);
    x.unsqueeze(2)
        .expand([rows, kv_heads, heads / kv_heads, width, head_dim], false)
        .reshape([rows, heads, width, head_dim])
}

impl AttentionBackend for PackedAttention {
    fn attend(&self, _layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        self.forward(q, k, v)
    }
}

impl Branches {
    fn new(
        layout: &Layout,
        groups: &[(usize, Vec<Segment>)],
        intervals: &[Range<usize>],
        kind: Kind,
        device: Device,
    ) -> Self {
        let prompts: Vec<Option<Segment>> =
            groups.iter().map(|(p, _)| Some(layout.segments[*p])).collect();
        let completions = padded_completions(groups);
        let group_size = (completions.len() / groups.len()) as i64;
        let (prompts_block, completions_block) =
            (Block::new(&prompts, device), Block::new(&completions, device));
        let (p_width, c_width) = (prompts_block.width as usize, completions_block.width as usize);
        let width = p_width + c_width;
        let mut hidden = vec![true; completions.len() * c_width * width];
        for (row, completion) in completions.iter().enumerate() {
            let prompt_len = prompts[row / group_size as usize].map_or(0, |p| p.len);
            for i in 0..c_width {
                let at = (row * c_width + i) * width;
                let seen = seen_by(*completion, i, intervals).unwrap_or(0..prompt_len);
                let own =
                    seen.start.max(prompt_len) - prompt_len..seen.end.max(prompt_len) - prompt_len;
                hidden[at + seen.start.min(prompt_len)..at + seen.end.min(prompt_len)].fill(false);
                hidden[at + p_width + own.start..at + p_width + own.end].fill(false);
            }
        }
        let mask = additive(&hidden, &[completions.len(), 1, c_width, width], kind, device);
        Branches {
            prompts: prompts_block,
            completions: completions_block,
            groups: groups.len() as i64,
            group_size,
            mask,
        }
    }

    /// Keys (or values) of prompt and completion: `[groups * group_size, P + C, kv_heads, head_dim]`.
    fn keys(&self, x: &Tensor) -> Tensor {
        let prompts = self.prompts.gather(x);
        let [_, width, heads, head_dim] = dims4(&prompts);
        let expanded = prompts
            .unsqueeze(1)
            .expand([self.groups, self.group_size, width, heads, head_dim], false)
            .reshape([self.groups * self.group_size, width, heads, head_dim]);
        Tensor::cat(&[expanded, self.completions.gather(x)], 1)
    }
}

/// Prefix segment and its completions, in order of the prefixes.
fn grouped(layout: &Layout) -> Vec<(usize, Vec<Segment>)> {
    let mut groups: Vec<(usize, Vec<Segment>)> = Vec::new();
    for segment in &layout.segments {
        let Some(prefix) = segment.prefix else {
            continue;
        };
        match groups.iter_mut().find(|(p, _)| *p == prefix) {
            Some((_, completions)) => completions.push(*segment),
            None => groups.push((prefix, vec![*segment])),
        }
    }
    groups
}

fn padded_completions(groups: &[(usize, Vec<Segment>)]) -> Vec<Option<Segment>> {
    let size = groups.iter().map(|(_, completions)| completions.len()).max().unwrap_or(0);
    groups
        .iter()
        .flat_map(|(_, completions)| (0..size).map(|i| completions.get(i).copied()))
        .collect()
}

fn list_rows(order: &mut Vec<(usize, i64)>, rows: &[Option<Segment>], width: i64, offset: i64) {
    for (row, segment) in rows.iter().enumerate() {
        for (slot, token) in segment.iter().flat_map(|s| s.start..s.start + s.len).enumerate() {
            order.push((token, offset + row as i64 * width + slot as i64));
        }
    }
}

/// What token `i` of a segment sees. Padding sees what the last token sees: a row that sees nothing would be no number.
fn seen_by(segment: Option<Segment>, i: usize, intervals: &[Range<usize>]) -> Option<Range<usize>> {
    segment.map(|s| intervals[s.start + i.min(s.len - 1)].clone())
}

/// The mask of intervals for segments without a prefix.
fn interval_mask(
    roots: &[Segment],
    width: i64,
    intervals: &[Range<usize>],
    kind: Kind,
    device: Device,
) -> Tensor {
    let width = width as usize;
    let mut hidden = vec![true; roots.len() * width * width];
    let tokens = roots.iter().flat_map(|s| (0..width).map(|i| seen_by(Some(*s), i, intervals)));
    for (row, seen) in hidden.chunks_mut(width).zip(tokens.flatten()) {
        row[seen].fill(false);
    }
    additive(&hidden, &[roots.len(), 1, width, width], kind, device)
}

/// The mask of padding for bidirectional sequences.
fn padding_mask(roots: &[Segment], width: i64, kind: Kind, device: Device) -> Option<Tensor> {
    let width = width as usize;
    if roots.iter().all(|s| s.len == width) {
        return None;
    }
    let hidden: Vec<bool> = roots.iter().flat_map(|s| (0..width).map(|j| j >= s.len)).collect();
    Some(additive(&hidden, &[roots.len(), 1, 1, width], kind, device))
}

fn additive(hidden: &[bool], shape: &[usize], kind: Kind, device: Device) -> Tensor {
    let shape: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
    let hidden = torch::upload(hidden, device).view(shape.as_slice());
    Tensor::zeros(shape.as_slice(), (kind, device)).masked_fill(&hidden, f64::NEG_INFINITY)
}

pub(super) fn dims3(x: &Tensor) -> [i64; 3] {
    let size = x.size();
    [size[0], size[1], size[2]]
}

fn dims4(x: &Tensor) -> [i64; 4] {
    let size = x.size();
    [size[0], size[1], size[2], size[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_heads_are_grouped_ones() {
        let draw = |heads: i64| Tensor::randn([2, heads, 5, 8], (Kind::Float, Device::Cpu));
        let (q, [k, v]) = (draw(6), [draw(2), draw(2)].map(|x| x.set_requires_grad(true)));
        let run = |repeated: bool| {
            let y = match repeated {
                true => {
                    let [k, v] = [&k, &v].map(|x| repeat_heads(x, 6));
                    attend_blocks([&q, &k, &v], None, true, None, false)
                }
                false => attend_blocks([&q, &k, &v], None, true, None, true),
            };
            let gradients =
                Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&k, &v], false, false);
            [y.detach(), gradients[0].shallow_clone(), gradients[1].shallow_clone()]
        };
        for (got, expected) in run(true).iter().zip(&run(false)) {
            assert!((got - expected).abs().max().double_value(&[]) < 1e-5);
        }
    }
}
