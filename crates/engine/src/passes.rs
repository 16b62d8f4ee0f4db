//! The passes of an engine: prefill prompts, start completions, decode one token for each slot, remove completions that ended.

use models::model::{embed, run_layers_at_once};
use models::{Checkpointing, InputsBuilder, PackedAttention};
use tch::{Kind, Tensor};
use torch::{PendingHostCopy, upload};

use crate::EngineError;
use crate::cache::move_rows;
use crate::engine::{Engine, Event};
use crate::request::Request;
use crate::schedule::{CachedPrompt, QueuedRequest, Slot, compact};
use crate::static_shapes::StepContext;
use crate::token_sampler::{SampledToken, SamplerInputs};

/// Prompt tokens of one prefill pass; a longer prompt is a pass of its own.
const PREFILL_TOKENS: usize = 8192;

impl Engine<'_> {
    /// One pass, if there is anything to do.
    pub(crate) fn pass(&mut self) -> Result<(), EngineError> {
        if self.in_flight.is_none() && self.takes_prompts() {
            return self.fill();
        }
        if self.slots.is_empty() {
            return Ok(());
        }
        if self.buffers.static_step.is_some() {
            self.decode_static()?;
        } else {
            self.decode_once()?;
        }
        if self.in_flight.is_none() {
            self.finish();
        }
        Ok(())
    }

    fn num_free(&self) -> usize {
        self.max_concurrent - self.slots.len()
    }

    /// Whether free slots are to be filled. A few free slots wait for more, so that several prompts are prefilled together.
    fn takes_prompts(&mut self) -> bool {
        let (waiting, free) = (self.num_waiting(), self.num_free());
        if waiting == 0 || free == 0 {
            self.filling = false;
        } else if !self.filling {
            self.filling = free >= waiting.min(self.max_concurrent.div_ceil(8));
        }
        self.filling
    }

    /// Prefills the next prompts, if there is room for more, and starts completions.
    fn fill(&mut self) -> Result<(), EngineError> {
        self.reserve();
        let free = self.num_free();
        let prefilled: usize = self.prompts.iter().map(CachedPrompt::num_waiting).sum();
        let new = self.next_prompts(free.saturating_sub(prefilled));
        if !new.is_empty() {
            self.prefill(new)?;
        }
        self.start(free)
    }

    /// Makes room for the completions that could run at once.
    fn reserve(&mut self) {
        let wanted = (self.slots.len() + self.num_waiting()).min(self.max_concurrent);
        let (kind, device) = (Kind::Bool, self.model.compute().1);
        let vocab_size = self.model.text_shape().vocab_size;
        let buffers = &mut self.buffers;
        if wanted > buffers.room {
            // Requests come a few at a time: doubling keeps copies rare.
            buffers.room = wanted.max(2 * buffers.room).min(self.max_concurrent);
        }
        let room = buffers.room as i64;
        buffers.cache.expect_completions(self.longest);
        buffers.cache.reserve_completions(buffers.room, 1);
        let has_room = buffers.seen.as_ref().is_some_and(|seen| seen.size()[0] >= room);
        if self.samplers.any_penalises() && !has_room {
            let grown = Tensor::zeros([room, vocab_size], (kind, device));
            if let Some(seen) = &buffers.seen {
                grown.narrow(0, 0, seen.size()[0]).copy_(seen);
            }
            buffers.seen = Some(grown);
            if let Some(step) = &mut buffers.static_step {
                step.note_relocation();
            }
        }
        if let Some(step) = &mut buffers.static_step {
            step.reserve_slots(room, self.samplers.longest_drawn() as i64);
            // A buffer that grows later moves, which invalidates captured graphs.
            let requests = self.waiting.iter().map(|waiting| &waiting.request);
            let width = requests.clone().map(|request| request.prompt.ids.len()).max();
            let smallest = requests.clone().map(|request| request.num_completions).min();
            let prompts = buffers.room.div_ceil(smallest.unwrap_or(1)).min(requests.count());
            buffers.cache.reserve_prompts(prompts as i64, width.unwrap_or(0) as i64);
        }
    }

    /// The requests to prefill next, for up to `free` completions and one pass.
    fn next_prompts(&mut self, mut free: usize) -> Vec<QueuedRequest> {
        let (mut new, mut tokens) = (Vec::new(), 0);
        while let Some(QueuedRequest { request, .. }) = self.waiting.front() {
            tokens += request.prompt.ids.len();
            if free == 0 || (!new.is_empty() && tokens > PREFILL_TOKENS) {
                break;
            }
            free = free.saturating_sub(request.num_completions);
            new.extend(self.waiting.pop_front());
        }
        new
    }

    /// Prefills prompts in one pass: their keys and values, and the logits of the first token.
    fn prefill(&mut self, new: Vec<QueuedRequest>) -> Result<(), EngineError> {
        let model = self.model;
        let (kind, device) = model.compute();
        let mut builder = InputsBuilder::new(model);
        for QueuedRequest { id, request, .. } in &new {
            builder
                .push_prompt(&request.prompt)
                .map_err(|source| EngineError::Prompt { request: id.number(), source })?;
        }
        let batch = builder.build();
        let attention = PackedAttention::new(&batch.layout, true, kind, device);
        let pass = batch.pass_inputs(model);
        let packed = &self.buffers.packed;
        let state = embed(model, &mut Checkpointing::new(false), &batch, Some(packed));
        let backend = self.buffers.cache.prefill(&attention, &batch.layout, self.prompts.len());
        let hidden = run_layers_at_once(model, state, &pass, &backend, packed);
        let last: Vec<i64> =
            batch.layout.segments.iter().map(|s| (s.start + s.len - 1) as i64).collect();
        let last = hidden.index_select(0, &upload(&last, device));
        let logits = model.logits(&model.final_norm(&last), Some(packed));
        self.stats.prompts += new.len();
        self.stats.prompt_tokens += batch.layout.num_tokens();
        self.stats.prefill_passes += 1;
        for (i, mut request) in new.into_iter().enumerate() {
            let prompt = &mut request.request.prompt;
            let images: Vec<_> = prompt.images.iter().map(|image| &image.layout).collect();
            let next_position = model.prompt_positions(&prompt.ids, &images).next;
            // Pixels are not needed any more.
            prompt.images.clear();
            self.prompts.push(CachedPrompt {
                request,
                next_position,
                next_completion: 0,
                running: 0,
                first_logits: Some(logits.narrow(0, i as i64, 1)),
            });
        }
        Ok(())
    }

    /// Starts at most `free` waiting completions of prefilled prompts: a slot and the first token for each.
    fn start(&mut self, mut free: usize) -> Result<(), EngineError> {
        let first_slot = self.slots.len();
        let mut logits = Vec::new();
        for (index, prompt) in self.prompts.iter_mut().enumerate() {
            let count = prompt.num_waiting().min(free);
            if count == 0 {
                continue;
            }
            free -= count;
            let first = prompt.first_logits.as_ref();
            logits.extend(first.map(|x| x.expand([count as i64, -1], false)));
            self.slots.extend(prompt.start(count, index));
        }
        let new = &self.slots[first_slot..];
        if let Some(seen) = &self.buffers.seen {
            mark_prompts(seen, new, first_slot, &self.prompts);
        }
        if let Some(step) = &self.buffers.static_step {
            step.start(first_slot, new);
        }
        let device = self.model.compute().1;
        let uniforms: Vec<f64> = new.iter().map(|slot| slot.key.uniform(0)).collect();
        let uniforms = upload(&uniforms, device);
        let tokens = self.sample(first_slot, &Tensor::cat(&logits, 0), &uniforms)?;
        self.dirty = true;
        self.push_tokens(first_slot, &tokens)?;
        self.finish();
        Ok(())
    }

    /// A pass of static shapes: launches what may be launched, then reads the oldest. Step n+1 is launched before step n is read, so a
    /// finished completion is decoded one extra time; the result is discarded.
    fn decode_static(&mut self) -> Result<(), EngineError> {
        let current = match self.in_flight.take() {
            Some(launched) => launched,
            None => {
                self.bind_batch_static();
                self.launch()?
            }
        };
        if self.may_run_ahead() {
            self.in_flight = Some(self.launch()?);
        }
        let greedy = self.slots.iter().map(|slot| slot.params.greedy());
        let tokens = SampledToken::read_table(&current.wait()?, greedy);
        self.push_tokens(0, &tokens)
    }

    /// Whether to launch a step before the last one is read: no completion has ended or reaches its longest length, and all fit.
    fn may_run_ahead(&self) -> bool {
        let max_len = self.buffers.static_step.as_ref().map_or(0, |step| step.max_len());
        self.slots.iter().all(|slot| {
            let tokens = slot.ids.len() + 1;
            slot.end.is_none() && tokens < slot.params.max_new_tokens && tokens <= max_len
        })
    }

    fn launch(&mut self) -> Result<PendingHostCopy, EngineError> {
        let buffers = &mut self.buffers;
        let step = buffers.static_step.as_mut().expect("decoding in static shapes");
        let mut context = StepContext {
            model: self.model,
            samplers: &self.samplers.of(&self.slots),
            cache: &mut buffers.cache,
            packed: &buffers.packed,
            seen: buffers.seen.as_ref(),
        };
        self.stats.decode_passes += 1;
        step.launch(&mut context, self.slots.len())
    }

    /// As [`Self::bind_batch`] for static shapes.
    fn bind_batch_static(&mut self) {
        let buffers = &mut self.buffers;
        let step = buffers.static_step.as_mut().expect("decoding in static shapes");
        if self.dirty {
            let prompt_lens: Vec<usize> =
                self.prompts.iter().map(CachedPrompt::num_tokens).collect();
            let samplers = self.samplers.of(&self.slots);
            step.bind_batch(&mut buffers.cache, &prompt_lens, &self.slots, &samplers);
            self.dirty = false;
        }
        let longest = self.slots.iter().map(|slot| slot.ids.len()).max();
        step.reserve_tokens(&mut buffers.cache, longest.unwrap_or(1) - 1);
    }

    /// One eager pass: a token for every slot.
    fn decode_once(&mut self) -> Result<(), EngineError> {
        self.bind_batch();
        let model = self.model;
        let slots = self.slots.len();
        let lens = self.slots.iter().map(|slot| slot.ids.len());
        let (longest, shortest) = (lens.clone().max(), lens.min());
        let ragged = longest != shortest;
        let longest = longest.unwrap_or(1) - 1;
        let [ids, completion_lens, positions, uniforms] = self.upload();
        let positions = positions.unsqueeze(0).expand([3, slots as i64], false);
        let pass = model.pass_inputs(&positions, None);
        let state = vec![model.embed_tokens(&ids)];
        let buffers = &mut self.buffers;
        let packed = &buffers.packed;
        let backend = buffers.cache.decode(&completion_lens, longest, ragged);
        let hidden = run_layers_at_once(model, state, &pass, &backend, packed);
        let logits = model.logits(&model.final_norm(&hidden), Some(packed));
        if let Some(seen) = &buffers.seen {
            let _ = seen.narrow(0, 0, slots as i64).scatter_value_(1, &ids.unsqueeze(1), 1);
        }
        let tokens = self.sample(0, &logits, &uniforms)?;
        self.stats.decode_passes += 1;
        self.push_tokens(0, &tokens)
    }

    /// Last ids, tokens before them, their positions, and the next uniform numbers: `[slots]` each, in one transfer (integers are
    /// exact in f64).
    fn upload(&self) -> [Tensor; 4] {
        let slots = &self.slots;
        let mut table = Vec::with_capacity(4 * slots.len());
        table.extend(slots.iter().map(|slot| slot.ids.last().map_or(0.0, |&id| f64::from(id))));
        table.extend(slots.iter().map(|slot| (slot.ids.len() - 1) as f64));
        table.extend(
            slots.iter().map(|slot| (slot.first_position + slot.ids.len() as i64 - 1) as f64),
        );
        table.extend(slots.iter().map(|slot| match slot.params.greedy() {
            true => 0.0,
            false => slot.key.uniform(slot.ids.len()),
        }));
        let table = upload(&table, self.model.compute().1).view([4, slots.len() as i64]);
        let integers = table.narrow(0, 0, 3).to_kind(Kind::Int64);
        [integers.get(0), integers.get(1), integers.get(2), table.get(3)]
    }

    /// A token for each slot from `first_slot` on, from `logits [n, vocab_size]` and `uniforms [n]`. Slots of one sampler go together, and
    /// the only wait is that for all their tokens.
    fn sample(
        &self,
        first_slot: usize,
        logits: &Tensor,
        uniforms: &Tensor,
    ) -> Result<Vec<SampledToken>, EngineError> {
        let slots = &self.slots[first_slot..];
        let device = self.model.compute().1;
        let groups = self.samplers.of(slots);
        let is_one = groups.len() == 1;
        let tables = groups.iter().map(|group| {
            let index: Vec<i64> = group.rows.iter().map(|&row| row as i64).collect();
            let index = (!is_one).then(|| upload(&index, device));
            let pick = |x: &Tensor| match &index {
                Some(index) => x.index_select(0, index),
                None => x.shallow_clone(),
            };
            let params = group.sampler.params();
            let seen = self.buffers.seen.as_ref().filter(|_| params.repetition_penalty != 1.0);
            let seen = seen.map(|x| pick(&x.narrow(0, first_slot as i64, slots.len() as i64)));
            let earliest = group.sampler.earliest_end();
            let early: Vec<bool> =
                group.rows.iter().map(|&row| slots[row].ids.len() < earliest).collect();
            let unfinished = early.contains(&true).then(|| upload(&early, device).unsqueeze(1));
            let inputs = SamplerInputs {
                logits: &pick(logits),
                uniforms: &pick(uniforms),
                unfinished: unfinished.as_ref(),
                seen: seen.as_ref(),
            };
            match is_one {
                true => group.sampler.sample_on_device(&inputs),
                false => group.sampler.sample_distances(&inputs),
            }
        });
        let tables: Vec<Tensor> = tables.collect();
        let table = if is_one { tables[0].shallow_clone() } else { Tensor::cat(&tables, 0) };
        let rows: Vec<usize> = groups.iter().flat_map(|group| group.rows.clone()).collect();
        let greedy = rows.iter().map(|&row| slots[row].params.greedy());
        let sampled = SampledToken::read_table(&PendingHostCopy::begin(&table)?.wait()?, greedy);
        let mut tokens: Vec<_> = rows.into_iter().zip(sampled).collect();
        tokens.sort_unstable_by_key(|&(row, _)| row);
        Ok(tokens.into_iter().map(|(_, token)| token).collect())
    }

    /// Tells the cache who is in the batch, if that changed.
    fn bind_batch(&mut self) {
        if !self.dirty {
            return;
        }
        let prompt_lens: Vec<usize> = self.prompts.iter().map(CachedPrompt::num_tokens).collect();
        let prompt_of_slot: Vec<usize> = self.slots.iter().map(|slot| slot.prompt).collect();
        self.buffers.cache.bind_batch(&prompt_lens, &prompt_of_slot);
        self.dirty = false;
    }

    /// Appends a token to every slot from `first_slot` on, except those that ended.
    fn push_tokens(
        &mut self,
        first_slot: usize,
        tokens: &[SampledToken],
    ) -> Result<(), EngineError> {
        for (slot, sampled) in self.slots[first_slot..].iter_mut().zip(tokens) {
            if slot.end.is_some() {
                continue;
            }
            let (request, completion, token) = (slot.request, slot.completion, slot.ids.len());
            let &SampledToken { id, logprob, near_boundary } = sampled;
            if !logprob.is_finite() {
                let request = request.number();
                return Err(EngineError::NonFinite { request, completion, token, got: logprob });
            }
            slot.push(id, logprob, self.text.as_deref())
                .map_err(|source| EngineError::Text { request: request.number(), source })?;
            self.events.push(Event::Token { request, completion, id, logprob });
            self.stats.boundary_draws += usize::from(near_boundary);
            self.stats.tokens += 1;
        }
        Ok(())
    }

    /// Hands over the completions that ended and frees their slots, and prompts that nobody needs any more.
    pub(crate) fn finish(&mut self) {
        let is_done = |prompt: &CachedPrompt<Tensor>| prompt.is_done();
        if self.slots.iter().all(|slot| slot.end.is_none()) && !self.prompts.iter().any(is_done) {
            return;
        }
        let longest = self.slots.iter().map(|slot| slot.ids.len()).max().unwrap_or(0);
        let (mut ended, moves) = compact(&mut self.slots, |slot| slot.end.is_some());
        let buffers = &mut self.buffers;
        buffers.cache.move_slots(&moves, longest);
        if let Some(seen) = &buffers.seen {
            move_rows(seen, &moves);
        }
        if let Some(step) = &buffers.static_step {
            step.move_slots(&moves);
        }
        ended.sort_by_key(|slot| (slot.request, slot.completion));
        for slot in ended {
            self.prompts[slot.prompt].running -= 1;
            let (request, completion) = (slot.request, slot.completion);
            if let Some(result) = slot.into_completion() {
                let weights_version = self.weights_version;
                self.events.push(Event::Finished { request, completion, result, weights_version });
            }
        }
        let (_, moves) = compact(&mut self.prompts, is_done);
        buffers.cache.move_prompts(&moves);
        for slot in &mut self.slots {
            if let Some(i) = moves.from.iter().position(|&from| from == slot.prompt as i64) {
                slot.prompt = moves.to[i] as usize;
            }
        }
        self.dirty = true;
    }
}

/// Marks the tokens of new slots' prompts as seen; slots of one prompt are adjacent.
fn mark_prompts(
    seen: &Tensor,
    slots: &[Slot],
    first_slot: usize,
    prompts: &[CachedPrompt<Tensor>],
) {
    let vocab_size = seen.size()[1] as usize;
    let mut start = first_slot as i64;
    for group in slots.chunk_by(|a, b| a.prompt == b.prompt) {
        let Request { prompt, .. } = &prompts[group[0].prompt].request.request;
        let mut marks = vec![false; vocab_size];
        for &id in &prompt.ids {
            marks[id as usize] = true;
        }
        let marks = upload(&marks, seen.device());
        let len = group.len() as i64;
        seen.narrow(0, start, len).copy_(&marks.expand([len, -1], false));
        start += len;
    }
}

#[cfg(test)]
#[path = "passes_tests.rs"]
mod tests;
