//! Decoding in static shapes: ids, positions, uniforms and results stay on the device, and each step leaves there what the next one starts
//! from. The host launches step n+1 before it reads step n.

use models::{PackedWeights, VisionLanguageModel};
use tch::{Device, Kind, Tensor};
use torch::{GraphPool, PendingHostCopy, check_graphs};

use crate::EngineError;
use crate::cache::{KvCache, StepShape, move_rows};
use crate::cuda_graphs::CapturedGraphs;
use crate::params::SamplingParams;
use crate::schedule::{Moves, Slot};
use crate::token_sampler::{SamplerInputs, TokenSampler};

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
}

impl Decoding {
    /// [`Decoding::CudaGraphs`] or [`Decoding::Eager`], as `--cuda_graphs` asks.
    ///
    /// # Errors
    /// Graphs where `device` is no GPU or CUDA's libraries do not fit.
    pub fn new(cuda_graphs: bool, device: Device) -> Result<Self, EngineError> {
        if !cuda_graphs {
            return Ok(Decoding::Eager);
        }
        check_graphs(device)?;
        Ok(Decoding::CudaGraphs)
    }
}

/// What a step works on.
pub(crate) struct StepContext<'a> {
    pub model: &'a dyn VisionLanguageModel,
    pub token_sampler: &'a TokenSampler,
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
}

struct Buffers {
    /// `[slots]`: the last token of each completion.
    ids: Tensor,
    /// `[slots]`: tokens before it.
    completion_lens: Tensor,
    /// `[slots]`: position of a completion's first token.
    first_positions: Tensor,
    /// `[slots, max_new_tokens]`; `[slots, 1]` of zeros when greedy.
    uniforms: Tensor,
    /// `[slots, 5]`: the sampled tokens.
    table: Tensor,
    greedy: bool,
    max_new_tokens: usize,
    /// 0 where no token ends a completion.
    min_new_tokens: usize,
    vocab_size: i64,
    device: Device,
}

impl StaticStep {
    /// For up to `slots` completions.
    pub fn new(
        model: &dyn VisionLanguageModel,
        params: &SamplingParams,
        slots: usize,
        cuda_graphs: bool,
    ) -> Result<Self, EngineError> {
        let device = model.compute().1;
        let greedy = params.greedy();
        let slots = slots as i64;
        let uniforms = if greedy { 1 } else { params.max_new_tokens as i64 };
        let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, device));
        let pool = cuda_graphs.then(|| GraphPool::new(device)).transpose()?;
        Ok(StaticStep {
            buffers: Buffers {
                ids: zeros(&[slots], Kind::Int64),
                completion_lens: zeros(&[slots], Kind::Int64),
                first_positions: zeros(&[slots], Kind::Int64),
                uniforms: zeros(&[slots, uniforms], Kind::Double),
                table: zeros(&[slots, 5], Kind::Double),
                greedy,
                max_new_tokens: params.max_new_tokens,
                min_new_tokens: if params.eos_ids.is_empty() { 0 } else { params.min_new_tokens },
                vocab_size: model.text_shape().vocab_size,
                device,
            },
            graphs: pool.map(CapturedGraphs::new),
            shape: StepShape::default(),
        })
    }

    /// Uploads the uniforms of new slots, from `first_slot` on, for as many tokens as a completion may have.
    pub fn start(&self, first_slot: usize, new: &[Slot]) {
        let Buffers { uniforms, device, .. } = &self.buffers;
        if self.buffers.greedy || new.is_empty() {
            return;
        }
        let tokens = self.buffers.max_new_tokens;
        let numbers: Vec<f64> =
            new.iter().flat_map(|slot| (0..tokens).map(|token| slot.key.uniform(token))).collect();
        let numbers =
            Tensor::from_slice(&numbers).view([new.len() as i64, tokens as i64]).to_device(*device);
        uniforms.narrow(0, first_slot as i64, new.len() as i64).copy_(&numbers);
    }

    /// Follows a compaction of slots.
    pub fn move_slots(&self, moves: &Moves) {
        move_rows(&self.buffers.uniforms, moves);
    }

    /// Uploads what the host knows of the batch.
    pub fn bind_batch(&mut self, cache: &mut KvCache, prompt_lens: &[usize], slots: &[Slot]) {
        let prompts: Vec<usize> = slots.iter().map(|slot| slot.prompt).collect();
        self.shape = cache.bind_batch_static(prompt_lens, &prompts);
        let width = self.shape.slots as usize;
        let mut numbers = vec![0i64; 3 * width];
        for (i, slot) in slots.iter().enumerate() {
            numbers[i] = slot.ids.last().map_or(0, |&id| i64::from(id));
            numbers[width + i] = slot.ids.len() as i64 - 1;
            numbers[2 * width + i] = slot.first_position;
        }
        let numbers =
            Tensor::from_slice(&numbers).view([3, width as i64]).to_device(self.buffers.device);
        let Buffers { ids, completion_lens, first_positions, .. } = &self.buffers;
        for (buffer, row) in [ids, completion_lens, first_positions].into_iter().zip(0..) {
            buffer.narrow(0, 0, width as i64).copy_(&numbers.get(row));
        }
    }

    /// Makes room for one more token after `longest` of each completion; returns the length they may reach in this shape.
    pub fn reserve(&mut self, cache: &mut KvCache, longest: usize) -> usize {
        self.shape.completion_width = cache.reserve_static(longest);
        self.shape.completion_width as usize
    }

    /// Launches a step, and the copy of what it samples for the first `slots` to the host.
    pub fn launch(
        &mut self,
        context: &mut StepContext<'_>,
        slots: usize,
    ) -> Result<PendingHostCopy, EngineError> {
        let (buffers, shape) = (&self.buffers, self.shape);
        let relocations = context.cache.relocations();
        let mut work = || buffers.compute(context, &shape);
        match &mut self.graphs {
            None => work(),
            Some(graphs) => graphs.run(shape, relocations, &mut work)?,
        }
        Ok(PendingHostCopy::begin(&buffers.table.narrow(0, 0, slots as i64))?)
    }
}

impl Buffers {
    /// The step itself: sizes come from `shape`, all else from the device.
    fn compute(&self, context: &mut StepContext<'_>, shape: &StepShape) {
        let front = |x: &Tensor| x.narrow(0, 0, shape.slots);
        let (model, packed) = (context.model, Some(context.packed));
        let (mut ids, mut completion_lens) = (front(&self.ids), front(&self.completion_lens));
        let positions = front(&self.first_positions) + &completion_lens;
        let rotary = model.rotary(&positions.unsqueeze(0).expand([3, shape.slots], false));
        let mut hidden = model.embed_tokens(&ids);
        let mut backend = context.cache.decode_static(&completion_lens, shape);
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend, packed);
        }
        let logits = model.logits(&model.final_norm(&hidden), packed);
        let seen = context.seen.map(|seen| front(seen).scatter_value_(1, &ids.unsqueeze(1), 1));
        let generated = &completion_lens + 1;
        let early = || generated.lt(self.min_new_tokens as i64).unsqueeze(1);
        let unfinished = (self.min_new_tokens > 0).then(early);
        let table = context.token_sampler.sample_on_device(&SamplerInputs {
            logits: &logits,
            uniforms: &self.uniforms(&generated),
            unfinished: unfinished.as_ref(),
            seen: seen.as_ref(),
        });
        front(&self.table).copy_(&table);
        // A NaN row has no id; the host refuses it when it reads the table.
        let next = table.select(1, 0).nan_to_num(0.0, None::<f64>, None::<f64>);
        ids.copy_(&next.to_kind(Kind::Int64).clamp(0, self.vocab_size - 1));
        let _ = completion_lens.g_add_scalar_(1);
    }

    /// `[slots]`: the uniform number of each completion's next token, after `generated [slots]` of them.
    fn uniforms(&self, generated: &Tensor) -> Tensor {
        let slots = generated.size()[0];
        let uniforms = self.uniforms.narrow(0, 0, slots);
        if self.greedy {
            uniforms.view([-1])
        } else {
            uniforms.gather(1, &generated.unsqueeze(1), false).view([-1])
        }
    }
}

#[cfg(test)]
impl StaticStep {
    /// Of the last steps.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Addresses of all buffers that the step reads and writes, but the cache's.
    pub fn addresses(&self) -> Vec<usize> {
        let Buffers { ids, completion_lens, first_positions, uniforms, table, .. } = &self.buffers;
        [ids, completion_lens, first_positions, uniforms, table]
            .map(|tensor| tensor.data_ptr() as usize)
            .to_vec()
    }
}
