//! Decoding in static shapes: ids, positions, uniforms and results stay on the device, and each step leaves there what the next one starts
//! from. The host launches step n+1 before it reads step n.

use std::cell::Cell;

use models::model::run_layers_at_once;
use models::{PackedWeights, VisionLanguageModel};
use tch::{Device, Kind, Tensor};
use torch::{FastPath, GraphPool, PendingHostCopy, TokenTable, check_graphs, is_enabled, upload};

use crate::EngineError;
use crate::cache::{KvCache, StepShape, move_rows};
use crate::cuda_graphs::CapturedGraphs;
use crate::samplers::SamplerRows;
use crate::schedule::{Moves, Slot};
use crate::token_sampler::SamplerInputs;

/// How decoding steps are launched on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoding {
    /// Operation by operation, in the exact sizes of the batch.
    #[default]
    Eager,
    /// Operation by operation, in rounded sizes on buffers that keep their addresses.
    StaticShapes,
    /// As `StaticShapes`, but each shape is captured once and replayed. GPUs only.
    CudaGraphs,
    /// `CudaGraphs` on a GPU where they are in use ([`FastPath::CudaGraphs`]), else `Eager`.
    Auto,
}

impl Decoding {
    /// [`Decoding::CudaGraphs`], [`Decoding::Eager`] or, for `None`, [`Decoding::Auto`].
    ///
    /// # Errors
    /// Graphs where `device` is no GPU or CUDA's libraries do not fit.
    pub fn new(cuda_graphs: Option<bool>, device: Device) -> Result<Self, EngineError> {
        match cuda_graphs {
            None => Ok(Decoding::Auto),
            Some(false) => Ok(Decoding::Eager),
            Some(true) => {
                check_graphs(device)?;
                Ok(Decoding::CudaGraphs)
            }
        }
    }

    /// What [`Decoding::Auto`] is on `device`.
    #[must_use]
    pub fn resolved(self, device: Device) -> Self {
        match self {
            Decoding::Auto if is_enabled(FastPath::CudaGraphs) && check_graphs(device).is_ok() => {
                Decoding::CudaGraphs
            }
            Decoding::Auto => Decoding::Eager,
            chosen => chosen,
        }
    }
}

/// What a step works on.
pub(crate) struct StepContext<'a> {
    pub model: &'a dyn VisionLanguageModel,
    pub samplers: &'a [SamplerRows<'a>],
    pub cache: &'a mut KvCache,
    pub packed: &'a PackedWeights,
    /// `[slots, vocab_size]`.
    pub seen: Option<&'a Tensor>,
}

/// The step and its buffers.
pub(crate) struct StaticStep {
    buffers: Buffers,
    graphs: Option<CapturedGraphs<GraphPool>>,
    /// Of the bound batch.
    shape: StepShape,
    /// The numbers of the samplers of the bound batch.
    samplers: Vec<u64>,
    /// How often buffers were replaced, or others came to be read.
    relocations: u64,
}

struct Buffers {
    /// `[slots]`: the last token of each completion.
    ids: Tensor,
    /// `[slots]`: tokens before it.
    completion_lens: Tensor,
    /// `[slots]`: position of a completion's first token.
    first_positions: Tensor,
    /// `[slots]`: index of each completion's sampler in the batch.
    sampler_of_slot: Tensor,
    /// `[slots, longest sampled completion]`; zeros for greedy ones.
    uniforms: Tensor,
    /// `[slots, 5]` and `[slots, 8]`: the sampled tokens, in either kind of [`torch::TokenTable`].
    tables: [Tensor; 2],
    /// Which of them the step writes; it depends on the samplers.
    written: Cell<usize>,
    vocab_size: i64,
    device: Device,
}

impl StaticStep {
    /// Without room.
    pub fn new(model: &dyn VisionLanguageModel, cuda_graphs: bool) -> Result<Self, EngineError> {
        let device = model.compute().1;
        let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, device));
        let pool = cuda_graphs.then(|| GraphPool::new(device)).transpose()?;
        Ok(StaticStep {
            buffers: Buffers {
                ids: zeros(&[0], Kind::Int64),
                completion_lens: zeros(&[0], Kind::Int64),
                first_positions: zeros(&[0], Kind::Int64),
                sampler_of_slot: zeros(&[0], Kind::Int64),
                uniforms: zeros(&[0, 1], Kind::Double),
                tables: [5, 8].map(|columns| zeros(&[0, columns], Kind::Double)),
                written: Cell::new(0),
                vocab_size: model.text_shape().vocab_size,
                device,
            },
            graphs: pool.map(CapturedGraphs::new),
            shape: StepShape::default(),
            samplers: Vec::new(),
            relocations: 0,
        })
    }

    /// Makes room for `slots` completions, for up to `tokens` tokens of which uniform numbers are drawn. What running completions need stays.
    pub fn reserve_slots(&mut self, slots: i64, tokens: i64) {
        let buffers = &mut self.buffers;
        let [rows, width] = [buffers.ids.size()[0], buffers.uniforms.size()[1]];
        if slots <= rows && tokens <= width {
            return;
        }
        let (slots, width) = (slots.max(rows), tokens.max(width));
        let [distances, intervals] = &mut buffers.tables;
        for (buffer, columns) in [
            (&mut buffers.ids, None),
            (&mut buffers.completion_lens, None),
            (&mut buffers.first_positions, None),
            (&mut buffers.sampler_of_slot, None),
            (&mut buffers.uniforms, Some(width)),
            (distances, Some(5)),
            (intervals, Some(8)),
        ] {
            let size: Vec<i64> = [slots].into_iter().chain(columns).collect();
            *buffer = grown(buffer, &size);
        }
        self.relocations += 1;
    }

    /// Uploads the uniforms of new slots, from `first_slot` on, for as many tokens as a completion may have.
    pub fn start(&self, first_slot: usize, new: &[Slot]) {
        let Buffers { uniforms, device, .. } = &self.buffers;
        let width = uniforms.size()[1] as usize;
        if new.iter().all(|slot| slot.params.greedy()) {
            return;
        }
        let number = |slot: &Slot, token: usize| {
            let is_drawn = !slot.params.greedy() && token < slot.params.max_new_tokens;
            if is_drawn { slot.key.uniform(token) } else { 0.0 }
        };
        let numbers: Vec<f64> =
            new.iter().flat_map(|slot| (0..width).map(move |token| number(slot, token))).collect();
        let numbers = upload(&numbers, *device).view([new.len() as i64, width as i64]);
        uniforms.narrow(0, first_slot as i64, new.len() as i64).copy_(&numbers);
    }

    /// Follows a compaction of slots.
    pub fn move_slots(&self, moves: &Moves) {
        move_rows(&self.buffers.uniforms, moves);
    }

    /// Uploads what the host knows of the batch.
    pub fn bind_batch(
        &mut self,
        cache: &mut KvCache,
        prompt_lens: &[usize],
        slots: &[Slot],
        samplers: &[SamplerRows<'_>],
    ) {
        let prompts: Vec<usize> = slots.iter().map(|slot| slot.prompt).collect();
        self.shape = cache.bind_batch_static(prompt_lens, &prompts);
        let width = self.shape.slots as usize;
        let mut numbers = vec![0i64; 4 * width];
        for (i, slot) in slots.iter().enumerate() {
            numbers[i] = slot.ids.last().map_or(0, |&id| i64::from(id));
            numbers[width + i] = slot.ids.len() as i64 - 1;
            numbers[2 * width + i] = slot.first_position;
        }
        for (number, group) in samplers.iter().enumerate() {
            group.rows.iter().for_each(|row| numbers[3 * width + row] = number as i64);
        }
        let names: Vec<u64> = samplers.iter().map(|group| group.sampler.number()).collect();
        if names != self.samplers {
            self.samplers = names;
            self.relocations += 1;
        }
        let numbers = upload(&numbers, self.buffers.device).view([4, width as i64]);
        let Buffers { ids, completion_lens, first_positions, sampler_of_slot, .. } = &self.buffers;
        let buffers = [ids, completion_lens, first_positions, sampler_of_slot];
        for (buffer, row) in buffers.into_iter().zip(0..) {
            buffer.narrow(0, 0, width as i64).copy_(&numbers.get(row));
        }
    }

    /// Makes room for one more token after `longest` of each completion.
    pub fn reserve_tokens(&mut self, cache: &mut KvCache, longest: usize) {
        self.shape.completion_width = cache.reserve_static(longest);
    }

    /// The length that completions may reach in this shape.
    pub fn max_len(&self) -> usize {
        self.shape.completion_width as usize
    }

    /// How often anything that a step reads or writes came to lie elsewhere.
    pub fn relocations(&self, cache: &KvCache) -> u64 {
        self.relocations + cache.relocations()
    }

    /// To be called where a buffer that is not the step's own was replaced.
    pub fn note_relocation(&mut self) {
        self.relocations += 1;
    }

    /// Launches a step, and the copy of what it samples for the first `slots` to the host.
    pub fn launch(
        &mut self,
        context: &mut StepContext<'_>,
        slots: usize,
    ) -> Result<PendingHostCopy, EngineError> {
        let relocations = self.relocations(context.cache);
        let (buffers, shape) = (&self.buffers, self.shape);
        let mut work = || buffers.compute(context, &shape);
        match &mut self.graphs {
            None => work(),
            Some(graphs) => graphs.run(shape, relocations, &mut work)?,
        }
        let table = &buffers.tables[buffers.written.get()];
        Ok(PendingHostCopy::begin(&table.narrow(0, 0, slots as i64))?)
    }
}

impl Buffers {
    /// The step itself: sizes come from `shape`, all else from the device.
    fn compute(&self, context: &mut StepContext<'_>, shape: &StepShape) {
        let front = |x: &Tensor| x.narrow(0, 0, shape.slots);
        let (model, packed) = (context.model, Some(context.packed));
        let (mut ids, mut completion_lens) = (front(&self.ids), front(&self.completion_lens));
        let positions = front(&self.first_positions) + &completion_lens;
        let positions = positions.unsqueeze(0).expand([3, shape.slots], false);
        let pass = model.pass_inputs(&positions, None);
        let state = vec![model.embed_tokens(&ids)];
        let backend = context.cache.decode_static(&completion_lens, shape);
        let hidden = run_layers_at_once(model, state, &pass, &backend, context.packed);
        let logits = model.logits(&model.final_norm(&hidden), packed);
        let seen = context.seen.map(|seen| front(seen).scatter_value_(1, &ids.unsqueeze(1), 1));
        let generated = &completion_lens + 1;
        let uniforms = self.uniforms.narrow(0, 0, shape.slots);
        let uniforms = match self.uniforms.size()[1] {
            // Nothing is drawn.
            1 => uniforms.view([-1]),
            _ => uniforms.gather(1, &generated.unsqueeze(1), false).view([-1]),
        };
        // Every sampler chooses for all rows: which rows are its own is known on the device only.
        let is_one = context.samplers.len() == 1;
        let tables = context.samplers.iter().map(|SamplerRows { sampler, .. }| {
            let earliest = sampler.earliest_end() as i64;
            let unfinished = (earliest > 0).then(|| generated.lt(earliest).unsqueeze(1));
            let penalises = sampler.params().repetition_penalty != 1.0;
            let inputs = SamplerInputs {
                logits: &logits,
                uniforms: &uniforms,
                unfinished: unfinished.as_ref(),
                seen: seen.as_ref().filter(|_| penalises),
            };
            if is_one {
                sampler.sample_on_device(&inputs)
            } else {
                sampler.sample_distances(&inputs)
            }
        });
        let table = (0i64..).zip(tables).reduce(|(_, before), (number, table)| {
            let is_own = front(&self.sampler_of_slot).eq(number).unsqueeze(1);
            (number, table.where_self(&is_own, &before))
        });
        let (_, table) = table.expect("a batch has completions");
        self.written
            .set(usize::from(TokenTable::of_columns(table.size()[1]) == TokenTable::Intervals));
        front(&self.tables[self.written.get()]).copy_(&table);
        ids.copy_(&self.next_ids(&table));
        let _ = completion_lens.g_add_scalar_(1);
    }

    /// The ids of a table, in its type.
    fn next_ids(&self, table: &Tensor) -> Tensor {
        let ids = table.select(1, 0);
        if self.device.is_cuda() {
            return ids;
        }
        // The CPU kernel has no id for a row of NaN; the host refuses it when it reads the table.
        let ids = ids.nan_to_num(0.0, None::<f64>, None::<f64>);
        ids.to_kind(Kind::Int64).clamp(0, self.vocab_size - 1)
    }
}

/// A tensor of `size` with `x` at its front in all dimensions, zeros behind.
fn grown(x: &Tensor, size: &[i64]) -> Tensor {
    let grown = Tensor::zeros(size, (x.kind(), x.device()));
    let mut front = grown.shallow_clone();
    for (dim, len) in (0i64..).zip(x.size()) {
        front = front.narrow(dim, 0, len);
    }
    front.copy_(x);
    grown
}

#[cfg(test)]
impl StaticStep {
    /// Of the last steps.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Addresses of all buffers that the step reads and writes, but the cache's.
    pub fn addresses(&self) -> Vec<usize> {
        let Buffers {
            ids,
            completion_lens,
            first_positions,
            sampler_of_slot,
            uniforms,
            tables,
            ..
        } = &self.buffers;
        let [distances, intervals] = tables;
        [ids, completion_lens, first_positions, sampler_of_slot, uniforms, distances, intervals]
            .map(|tensor| tensor.data_ptr() as usize)
            .to_vec()
    }
}
