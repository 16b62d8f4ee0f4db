//! The loop: admit, decode a token for everyone, retire the finished.

use base::{Completion, DrawKey};
use models::model::embed_inputs;
use models::{Checkpointing, InputsBuilder, PackedAttention};
use tch::{Kind, Tensor};
use torch::PendingHostCopy;

use crate::EngineError;
use crate::cache::{KvCache, move_rows};
use crate::choose::{Choice, Rows};
use crate::fixed::{Batch, Decoding, FixedStep};
use crate::request::{Generation, Request, SampleStats};
use crate::sampler::Sampler;
use crate::schedule::{Row, Slot, compact};

/// Prompt tokens computed in one pass; a longer prompt is a pass of its own.
const PREFILL_TOKENS: usize = 8192;

/// One call of [`Sampler::generate`].
pub(crate) struct Run<'r> {
    sampler: &'r Sampler<'r>,
    requests: &'r [Request],
    on_finished: &'r mut dyn FnMut(usize, usize, &Completion),
    cache: KvCache,
    slots: Vec<Slot>,
    rows: Vec<Row<Option<Tensor>>>,
    /// `[slots, vocab_size]`: tokens of prompt and answer; `None` without repetition penalty.
    seen: Option<Tensor>,
    /// `None` where the batch decodes as [`Decoding::Flexible`].
    fixed: Option<FixedStep>,
    /// Whether the cache must be told who is in the batch.
    reseat: bool,
    next_request: usize,
    results: Vec<Vec<Option<Completion>>>,
    finished: usize,
    total: usize,
    stats: SampleStats,
}

impl<'r> Run<'r> {
    pub fn new(
        sampler: &'r Sampler<'r>,
        requests: &'r [Request],
        on_finished: &'r mut dyn FnMut(usize, usize, &Completion),
    ) -> Result<Self, EngineError> {
        let (kind, device) = sampler.model.compute();
        let shape = sampler.model.text_shape();
        let total = requests.iter().map(|r| r.num_completions).sum();
        let penalised = sampler.params.repetition_penalty != 1.0;
        let slots = sampler.max_concurrent.min(total);
        let mut cache = KvCache::new(shape, kind, device, sampler.params.max_new_tokens);
        cache.reserve_answers(slots, 1);
        let fixed = match sampler.decoding {
            Decoding::Flexible => None,
            decoding => {
                // What grows later takes new places, and recordings with it.
                reserve_prompts(&mut cache, requests, slots);
                let graphs = decoding == Decoding::Graphs;
                Some(FixedStep::new(sampler.model, &sampler.params, slots, graphs)?)
            }
        };
        let seen = || Tensor::zeros([slots as i64, shape.vocab_size], (Kind::Bool, device));
        Ok(Run {
            sampler,
            requests,
            on_finished,
            cache,
            slots: Vec::new(),
            rows: Vec::new(),
            seen: penalised.then(seen),
            fixed,
            reseat: false,
            next_request: 0,
            results: requests.iter().map(|r| vec![None; r.num_completions]).collect(),
            finished: 0,
            total,
            stats: SampleStats::default(),
        })
    }

    pub fn is_done(&self) -> bool {
        self.finished == self.total
    }

    fn heed(&self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let (finished, total) = (self.finished, self.total);
        if cancel() { Err(EngineError::Cancelled { finished, total }) } else { Ok(()) }
    }

    /// Fills free slots. Few free slots wait for more, so that prompts are computed several at a time.
    pub fn admit(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let waiting = self.total - self.finished - self.slots.len();
        let free = self.sampler.max_concurrent - self.slots.len();
        if free < waiting.min(self.sampler.max_concurrent.div_ceil(8)) {
            return Ok(());
        }
        loop {
            let waiting = self.total - self.finished - self.slots.len();
            let free = self.sampler.max_concurrent - self.slots.len();
            if waiting == 0 || free == 0 {
                return Ok(());
            }
            self.heed(cancel)?;
            let here: usize =
                self.rows.iter().map(|row| row.num_completions - row.next_completion).sum();
            let new = self.next_prompts(free.saturating_sub(here));
            if !new.is_empty() {
                self.prefill(&new)?;
            }
            self.enter(free)?;
        }
    }

    /// Requests whose prompts come next, for up to `free` completions and one pass.
    fn next_prompts(&mut self, mut free: usize) -> Vec<usize> {
        let (mut new, mut tokens) = (Vec::new(), 0);
        while let Some(request) = self.requests.get(self.next_request) {
            tokens += request.prompt.ids.len();
            if request.num_completions > 0 {
                if free == 0 || (!new.is_empty() && tokens > PREFILL_TOKENS) {
                    break;
                }
                new.push(self.next_request);
                free = free.saturating_sub(request.num_completions);
            }
            self.next_request += 1;
        }
        new
    }

    /// Computes prompts in one pass: their keys and values, and the logits of their answers' first token.
    fn prefill(&mut self, new: &[usize]) -> Result<(), EngineError> {
        let model = self.sampler.model;
        let (kind, device) = model.compute();
        let mut builder = InputsBuilder::new(model);
        for &request in new {
            let prompt = &self.requests[request].prompt;
            builder
                .push_prompt(prompt)
                .map_err(|source| EngineError::Prompt { request, source })?;
        }
        let batch = builder.build();
        let attention = PackedAttention::new(&batch.layout, true, kind, device);
        let rotary = model.rotary(&batch.position_ids);
        let mut hidden = embed_inputs(model, &mut Checkpointing::new(false), &batch);
        let mut backend = self.cache.prefill(&attention, &batch.layout, self.rows.len());
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend);
        }
        let last: Vec<i64> =
            batch.layout.segments.iter().map(|s| (s.start + s.len - 1) as i64).collect();
        let last = hidden.index_select(0, &Tensor::from_slice(&last).to_device(device));
        let logits = model.logits(&model.final_norm(&last));
        for (i, &request) in new.iter().enumerate() {
            let Request { prompt, num_completions, .. } = &self.requests[request];
            let grids: Vec<[usize; 3]> = prompt.images.iter().map(|image| image.grid_thw).collect();
            self.rows.push(Row {
                request,
                len: prompt.ids.len(),
                next_position: model.prompt_positions(&prompt.ids, &grids).next,
                next_completion: 0,
                num_completions: *num_completions,
                live: 0,
                first: Some(logits.narrow(0, i as i64, 1)),
            });
        }
        self.stats.prompts += new.len();
        self.stats.prompt_tokens += batch.layout.num_tokens();
        self.stats.prefill_passes += 1;
        Ok(())
    }

    /// Gives waiting completions of computed prompts a slot, at most `free`, and their first token.
    fn enter(&mut self, mut free: usize) -> Result<(), EngineError> {
        let first_slot = self.slots.len();
        let mut logits = Vec::new();
        for (index, row) in self.rows.iter_mut().enumerate() {
            let count = (row.num_completions - row.next_completion).min(free);
            if count == 0 {
                continue;
            }
            free -= count;
            let key = self.requests[row.request].key;
            for completion in row.next_completion..row.next_completion + count {
                self.slots.push(Slot {
                    request: row.request,
                    completion,
                    row: index,
                    first_position: row.next_position,
                    key: DrawKey { completion: key.completion + completion as u64, ..key },
                    ids: Vec::new(),
                    sampled_logprobs: Vec::new(),
                    finish_reason: None,
                });
            }
            row.next_completion += count;
            row.live += count;
            logits.extend(row.first.as_ref().map(|x| x.expand([count as i64, -1], false)));
            if row.next_completion == row.num_completions {
                row.first = None;
            }
        }
        let new = self.slots.len() - first_slot;
        if let Some(seen) = &self.seen {
            mark_prompts(seen, &self.slots[first_slot..], first_slot, self.requests);
        }
        if let Some(fixed) = &self.fixed {
            fixed.enter(first_slot, &self.slots[first_slot..]);
        }
        let device = self.sampler.model.compute().1;
        let draws: Vec<f64> =
            self.slots[first_slot..].iter().map(|slot| slot.key.uniform(0)).collect();
        let choices = self.sampler.chooser.choose(&Rows {
            logits: &Tensor::cat(&logits, 0),
            draws: &Tensor::from_slice(&draws).to_device(device),
            unfinished: self.unfinished(&vec![0; new]),
            seen: self.seen.as_ref().map(|seen| seen.narrow(0, first_slot as i64, new as i64)),
        });
        self.reseat = true;
        self.append(first_slot, &choices)?;
        self.retire();
        Ok(())
    }

    /// Tokens for all slots, if there are any.
    pub fn decode(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        if self.slots.is_empty() {
            return Ok(());
        }
        if self.fixed.is_some() {
            self.decode_ahead(cancel)?;
        } else {
            self.heed(cancel)?;
            self.decode_once()?;
        }
        self.retire();
        Ok(())
    }

    /// Steps of one shape until an answer ends or outgrows it. Each is begun before the one before it is read; what it chooses for an
    /// answer that has ended by then is passed over.
    fn decode_ahead(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let columns = self.seat_fixed();
        let mut reading = self.launch(cancel)?;
        loop {
            let ahead = if self.may_run_ahead(columns) { Some(self.launch(cancel)?) } else { None };
            let choices = self.sampler.chooser.choices(&reading.wait()?);
            self.append(0, &choices)?;
            match ahead {
                Some(next) => reading = next,
                None => return Ok(()),
            }
        }
    }

    /// Whether a step may begin while another one is not read yet: nobody has ended, or ends there by length, and all fit.
    fn may_run_ahead(&self, columns: usize) -> bool {
        let max_new_tokens = self.sampler.params.max_new_tokens;
        self.slots.iter().all(|slot| {
            let tokens = slot.ids.len() + 1;
            slot.finish_reason.is_none() && tokens < max_new_tokens && tokens <= columns
        })
    }

    fn launch(&mut self, cancel: &dyn Fn() -> bool) -> Result<PendingHostCopy, EngineError> {
        self.heed(cancel)?;
        let fixed = self.fixed.as_mut().expect("decoding by fixed steps");
        let mut batch = Batch {
            model: self.sampler.model,
            chooser: &self.sampler.chooser,
            cache: &mut self.cache,
            seen: self.seen.as_ref(),
        };
        self.stats.decode_passes += 1;
        fixed.launch(&mut batch, self.slots.len())
    }

    /// How many tokens answers may have in steps of the shape that is seated.
    fn seat_fixed(&mut self) -> usize {
        let fixed = self.fixed.as_mut().expect("decoding by fixed steps");
        if self.reseat {
            let prompt_lens: Vec<usize> = self.rows.iter().map(|row| row.len).collect();
            fixed.seat(&mut self.cache, &prompt_lens, &self.slots);
            self.reseat = false;
        }
        let longest = self.slots.iter().map(|slot| slot.ids.len()).max();
        fixed.fit(&mut self.cache, longest.unwrap_or(1) - 1)
    }

    /// One pass: a token for every slot.
    fn decode_once(&mut self) -> Result<(), EngineError> {
        self.seat();
        let model = self.sampler.model;
        let slots = self.slots.len();
        let generated: Vec<usize> = self.slots.iter().map(|slot| slot.ids.len()).collect();
        let (longest, shortest) = (generated.iter().max(), generated.iter().min());
        let columns_ragged = longest != shortest;
        let longest = longest.copied().unwrap_or(1) - 1;
        let [ids, columns, positions, draws] = self.upload();
        let rotary = model.rotary(&positions.unsqueeze(0).expand([3, slots as i64], false));
        let mut hidden = model.embed_tokens(&ids);
        let mut backend = self.cache.decode(&columns, longest, columns_ragged);
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend);
        }
        let logits = model.logits(&model.final_norm(&hidden));
        let seen = self.seen.as_ref().map(|seen| {
            let mut seen = seen.narrow(0, 0, slots as i64);
            seen.scatter_value_(1, &ids.unsqueeze(1), 1)
        });
        let rows =
            Rows { logits: &logits, draws: &draws, unfinished: self.unfinished(&generated), seen };
        let choices = self.sampler.chooser.choose(&rows);
        self.stats.decode_passes += 1;
        self.append(0, &choices)
    }

    /// Last ids, their places in the answers, their positions, and the next draws: `[slots]` each, in
    /// one transfer (integers are exact in f64).
    fn upload(&self) -> [Tensor; 4] {
        let slots = self.slots.len();
        let mut table = Vec::with_capacity(4 * slots);
        table
            .extend(self.slots.iter().map(|slot| slot.ids.last().map_or(0.0, |&id| f64::from(id))));
        table.extend(self.slots.iter().map(|slot| (slot.ids.len() - 1) as f64));
        table.extend(
            self.slots.iter().map(|slot| (slot.first_position + slot.ids.len() as i64 - 1) as f64),
        );
        let drawn = !self.sampler.params.greedy();
        table.extend(
            self.slots.iter().map(
                |slot| {
                    if drawn { slot.key.uniform(slot.ids.len()) } else { 0.0 }
                },
            ),
        );
        let table = Tensor::from_slice(&table)
            .view([4, slots as i64])
            .to_device(self.sampler.model.compute().1);
        let integers = table.narrow(0, 0, 3).to_kind(Kind::Int64);
        [integers.get(0), integers.get(1), integers.get(2), table.get(3)]
    }

    /// `[n, 1]`: which of the rows, of `generated` tokens each, may not end yet; `None` where all may.
    fn unfinished(&self, generated: &[usize]) -> Option<Tensor> {
        let params = &self.sampler.params;
        let early: Vec<bool> = generated.iter().map(|&n| n < params.min_new_tokens).collect();
        let any = early.contains(&true) && !params.eos_ids.is_empty();
        any.then(|| {
            Tensor::from_slice(&early).to_device(self.sampler.model.compute().1).unsqueeze(1)
        })
    }

    fn seat(&mut self) {
        if !self.reseat {
            return;
        }
        let prompt_lens: Vec<usize> = self.rows.iter().map(|row| row.len).collect();
        let rows: Vec<usize> = self.slots.iter().map(|slot| slot.row).collect();
        self.cache.seat(&prompt_lens, &rows);
        self.reseat = false;
    }

    /// Appends a token to every slot from `first_slot` on that has not ended.
    fn append(&mut self, first_slot: usize, choices: &[Choice]) -> Result<(), EngineError> {
        let params = &self.sampler.params;
        for (slot, choice) in self.slots[first_slot..].iter_mut().zip(choices) {
            if slot.finish_reason.is_some() {
                continue;
            }
            if !choice.logprob.is_finite() {
                let (request, completion, token) = (slot.request, slot.completion, slot.ids.len());
                return Err(EngineError::NonFinite {
                    request,
                    completion,
                    token,
                    got: choice.logprob,
                });
            }
            slot.push(choice.id, choice.logprob, &params.eos_ids, params.max_new_tokens);
            self.stats.boundary_draws += usize::from(choice.near_boundary);
            self.stats.tokens += 1;
        }
        Ok(())
    }

    /// Lets those leave that have ended.
    fn retire(&mut self) {
        if self.slots.iter().all(|slot| slot.finish_reason.is_none()) {
            return;
        }
        let columns = self.slots.iter().map(|slot| slot.ids.len()).max().unwrap_or(0);
        let (mut gone, moves) = compact(&mut self.slots, |slot| slot.finish_reason.is_some());
        self.cache.move_slots(&moves, columns);
        if let Some(seen) = &self.seen {
            move_rows(seen, &moves);
        }
        if let Some(fixed) = &self.fixed {
            fixed.move_slots(&moves);
        }
        gone.sort_by_key(|slot| (slot.request, slot.completion));
        for slot in gone {
            self.rows[slot.row].live -= 1;
            let (request, completion) = (slot.request, slot.completion);
            if let Some(answer) = slot.into_completion() {
                (self.on_finished)(request, completion, &answer);
                self.results[request][completion] = Some(answer);
                self.finished += 1;
            }
        }
        let done =
            |row: &Row<Option<Tensor>>| row.live == 0 && row.next_completion == row.num_completions;
        let (_, moves) = compact(&mut self.rows, done);
        self.cache.move_rows(&moves);
        for slot in &mut self.slots {
            if let Some(i) = moves.from.iter().position(|&from| from == slot.row as i64) {
                slot.row = moves.to[i] as usize;
            }
        }
        self.reseat = true;
    }

    pub fn into_generation(self) -> Generation {
        let completions =
            self.results.into_iter().map(|group| group.into_iter().flatten().collect()).collect();
        Generation { completions, stats: self.stats }
    }
}

/// Makes room for the longest prompt, and for as many as `slots` answers can have.
fn reserve_prompts(cache: &mut KvCache, requests: &[Request], slots: usize) {
    let sampled = requests.iter().filter(|r| r.num_completions > 0);
    let width = sampled.clone().map(|r| r.prompt.ids.len()).max();
    let smallest = sampled.clone().map(|r| r.num_completions).min();
    let rows = slots.div_ceil(smallest.unwrap_or(1)).min(sampled.count());
    cache.reserve_prompts(rows as i64, width.unwrap_or(0) as i64);
}

/// Marks the tokens of new slots' prompts; slots of one request follow one another.
fn mark_prompts(seen: &Tensor, slots: &[Slot], first_slot: usize, requests: &[Request]) {
    let vocab_size = seen.size()[1] as usize;
    let mut start = first_slot as i64;
    for group in slots.chunk_by(|a, b| a.request == b.request) {
        let mut marks = vec![false; vocab_size];
        for &id in &requests[group[0].request].prompt.ids {
            marks[id as usize] = true;
        }
        let marks = Tensor::from_slice(&marks).to_device(seen.device());
        let len = group.len() as i64;
        seen.narrow(0, start, len).copy_(&marks.expand([len, -1], false));
        start += len;
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
