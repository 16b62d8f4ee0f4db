//! A decoding step that is the same work each time: ids, places, draws and results lie on the device, and the step leaves there
//! what the next one starts from. The host reads what was chosen while the next step is under way.

use models::VisionLanguageModel;
use tch::{Device, Kind, Tensor};
use torch::{GraphPool, PendingHostCopy, check_graphs};

use crate::EngineError;
use crate::cache::{KvCache, StepShape, move_rows};
use crate::choose::{Chooser, Rows};
use crate::graphs::Recordings;
use crate::params::SamplingParams;
use crate::schedule::{Moves, Slot};

/// How the passes that decode are told to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoding {
    /// Operation by operation, in the sizes of the batch as it is.
    #[default]
    Flexible,
    /// Operation by operation, in sizes that are rounded up, on buffers that keep their places.
    Fixed,
    /// As `Fixed`; each size is recorded once and replayed. GPUs only.
    Graphs,
}

impl Decoding {
    /// With graphs or without, as a user asks for it.
    ///
    /// # Errors
    /// Graphs where `device` is no GPU or CUDA's libraries do not fit.
    pub fn new(cuda_graphs: bool, device: Device) -> Result<Self, EngineError> {
        if !cuda_graphs {
            return Ok(Decoding::Flexible);
        }
        check_graphs(device)?;
        Ok(Decoding::Graphs)
    }
}

/// What a step works on.
pub(crate) struct Batch<'a> {
    pub model: &'a dyn VisionLanguageModel,
    pub chooser: &'a Chooser,
    pub cache: &'a mut KvCache,
    /// `[slots, vocab_size]`.
    pub seen: Option<&'a Tensor>,
}

/// The step and its buffers.
pub(crate) struct FixedStep {
    buffers: Buffers,
    recordings: Option<Recordings<GraphPool>>,
    /// Of the answers that are seated.
    shape: StepShape,
}

struct Buffers {
    /// `[slots]`: the last token of each answer.
    ids: Tensor,
    /// `[slots]`: its place in the answer.
    columns: Tensor,
    /// `[slots]`: position of an answer's first token.
    first_positions: Tensor,
    /// `[slots, max_new_tokens]`; `[slots, 1]` of zeros where nothing is drawn.
    draws: Tensor,
    /// `[slots, 5]`: what was chosen.
    table: Tensor,
    drawn: bool,
    max_new_tokens: usize,
    /// 0 where no token ends an answer.
    min_new_tokens: usize,
    vocab_size: i64,
    device: Device,
}

impl FixedStep {
    /// For up to `slots` answers.
    pub fn new(
        model: &dyn VisionLanguageModel,
        params: &SamplingParams,
        slots: usize,
        graphs: bool,
    ) -> Result<Self, EngineError> {
        let device = model.compute().1;
        let drawn = !params.greedy();
        let slots = slots as i64;
        let draws = if drawn { params.max_new_tokens as i64 } else { 1 };
        let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, device));
        let recordings = graphs.then(|| GraphPool::new(device)).transpose()?;
        Ok(FixedStep {
            buffers: Buffers {
                ids: zeros(&[slots], Kind::Int64),
                columns: zeros(&[slots], Kind::Int64),
                first_positions: zeros(&[slots], Kind::Int64),
                draws: zeros(&[slots, draws], Kind::Double),
                table: zeros(&[slots, 5], Kind::Double),
                drawn,
                max_new_tokens: params.max_new_tokens,
                min_new_tokens: if params.eos_ids.is_empty() { 0 } else { params.min_new_tokens },
                vocab_size: model.text_shape().vocab_size,
                device,
            },
            recordings: recordings.map(Recordings::new),
            shape: StepShape::default(),
        })
    }

    /// Brings the draws of new slots, from `first_slot` on, for as many tokens as an answer may have.
    pub fn enter(&self, first_slot: usize, new: &[Slot]) {
        let Buffers { draws, device, .. } = &self.buffers;
        if !self.buffers.drawn || new.is_empty() {
            return;
        }
        let tokens = self.buffers.max_new_tokens;
        let numbers: Vec<f64> =
            new.iter().flat_map(|slot| (0..tokens).map(|token| slot.key.uniform(token))).collect();
        let numbers =
            Tensor::from_slice(&numbers).view([new.len() as i64, tokens as i64]).to_device(*device);
        draws.narrow(0, first_slot as i64, new.len() as i64).copy_(&numbers);
    }

    /// Follows a compaction of slots.
    pub fn move_slots(&self, moves: &Moves) {
        move_rows(&self.buffers.draws, moves);
    }

    /// Begins anew from what the host knows of the answers.
    pub fn seat(&mut self, cache: &mut KvCache, prompt_lens: &[usize], slots: &[Slot]) {
        let rows: Vec<usize> = slots.iter().map(|slot| slot.row).collect();
        self.shape = cache.seat_fixed(prompt_lens, &rows);
        let width = self.shape.slots as usize;
        let mut numbers = vec![0i64; 3 * width];
        for (i, slot) in slots.iter().enumerate() {
            numbers[i] = slot.ids.last().map_or(0, |&id| i64::from(id));
            numbers[width + i] = slot.ids.len() as i64 - 1;
            numbers[2 * width + i] = slot.first_position;
        }
        let numbers =
            Tensor::from_slice(&numbers).view([3, width as i64]).to_device(self.buffers.device);
        let Buffers { ids, columns, first_positions, .. } = &self.buffers;
        for (buffer, row) in [ids, columns, first_positions].into_iter().zip(0..) {
            buffer.narrow(0, 0, width as i64).copy_(&numbers.get(row));
        }
    }

    /// Makes room for answers whose last token is at most at `longest`, and returns how far they may grow in steps of one shape.
    pub fn fit(&mut self, cache: &mut KvCache, longest: usize) -> usize {
        self.shape.columns = cache.fixed_columns(longest);
        self.shape.columns as usize
    }

    /// Begins a step; what it chooses for the first `slots` is on its way to the host.
    pub fn launch(
        &mut self,
        batch: &mut Batch<'_>,
        slots: usize,
    ) -> Result<PendingHostCopy, EngineError> {
        let (buffers, shape) = (&self.buffers, self.shape);
        let relocations = batch.cache.relocations();
        let mut work = || buffers.compute(batch, &shape);
        match &mut self.recordings {
            None => work(),
            Some(recordings) => recordings.run(shape, relocations, &mut work)?,
        }
        Ok(PendingHostCopy::begin(&buffers.table.narrow(0, 0, slots as i64))?)
    }
}

impl Buffers {
    /// The work itself: sizes come from `shape`, all else from the device.
    fn compute(&self, batch: &mut Batch<'_>, shape: &StepShape) {
        let front = |x: &Tensor| x.narrow(0, 0, shape.slots);
        let model = batch.model;
        let (mut ids, mut columns) = (front(&self.ids), front(&self.columns));
        let positions = front(&self.first_positions) + &columns;
        let rotary = model.rotary(&positions.unsqueeze(0).expand([3, shape.slots], false));
        let mut hidden = model.embed_tokens(&ids);
        let mut backend = batch.cache.decode_fixed(&columns, shape);
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend);
        }
        let logits = model.logits(&model.final_norm(&hidden));
        let seen = batch.seen.map(|seen| front(seen).scatter_value_(1, &ids.unsqueeze(1), 1));
        let generated = &columns + 1;
        let early = || generated.lt(self.min_new_tokens as i64).unsqueeze(1);
        let table = batch.chooser.table(&Rows {
            logits: &logits,
            draws: &self.draws(&generated),
            unfinished: (self.min_new_tokens > 0).then(early),
            seen,
        });
        front(&self.table).copy_(&table);
        // A row that is no number, which the host refuses when it reads it, has no id either.
        let next = table.select(1, 0).nan_to_num(0.0, None::<f64>, None::<f64>);
        ids.copy_(&next.to_kind(Kind::Int64).clamp(0, self.vocab_size - 1));
        let _ = columns.g_add_scalar_(1);
    }

    /// `[slots]`: the draw of each answer's token after `generated [slots]` of them.
    fn draws(&self, generated: &Tensor) -> Tensor {
        let slots = generated.size()[0];
        let draws = self.draws.narrow(0, 0, slots);
        if self.drawn {
            draws.gather(1, &generated.unsqueeze(1), false).view([-1])
        } else {
            draws.view([-1])
        }
    }
}

#[cfg(test)]
impl FixedStep {
    /// Of the last steps.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Where all that it reads and writes lies, besides what is the cache's.
    pub fn places(&self) -> Vec<usize> {
        let Buffers { ids, columns, first_positions, draws, table, .. } = &self.buffers;
        [ids, columns, first_positions, draws, table]
            .map(|tensor| tensor.data_ptr() as usize)
            .to_vec()
    }
}
