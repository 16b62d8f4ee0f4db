//! The generation loop: schedule waiting completions, decode one token for each slot, finish those that ended.

use base::{Completion, DrawKey};
use models::model::embed_inputs;
use models::{Checkpointing, InputsBuilder, PackedAttention, PackedWeights};
use tch::{Kind, Tensor};
use torch::PendingHostCopy;

use crate::EngineError;
use crate::cache::{KvCache, move_rows};
use crate::generator::Generator;
use crate::request::{Generation, Request, SampleStats};
use crate::schedule::{CachedPrompt, Slot, compact};
use crate::static_shapes::{Decoding, StaticStep, StepContext};
use crate::token_sampler::{SampledToken, SamplerInputs};

/// Prompt tokens of one prefill pass; a longer prompt is a pass of its own.
const PREFILL_TOKENS: usize = 8192;

/// One call of [`Generator::generate`].
pub(crate) struct Run<'r> {
    generator: &'r Generator<'r>,
    requests: &'r [Request],
    on_finished: &'r mut dyn FnMut(usize, usize, &Completion),
    cache: KvCache,
    /// Of this call alone: weights do not change within it, and training gets the memory back.
    packed: PackedWeights,
    slots: Vec<Slot>,
    prompts: Vec<CachedPrompt<Option<Tensor>>>,
    /// `[slots, vocab_size]`: tokens of prompt and completion; `None` without repetition penalty.
    seen: Option<Tensor>,
    /// `None` for [`Decoding::Eager`].
    static_step: Option<StaticStep>,
    /// Whether the batch changed since it was bound to the cache.
    dirty: bool,
    next_request: usize,
    results: Vec<Vec<Option<Completion>>>,
    finished: usize,
    total: usize,
    stats: SampleStats,
}

impl<'r> Run<'r> {
    pub fn new(
        generator: &'r Generator<'r>,
        requests: &'r [Request],
        on_finished: &'r mut dyn FnMut(usize, usize, &Completion),
    ) -> Result<Self, EngineError> {
        let (kind, device) = generator.model.compute();
        let shape = generator.model.text_shape();
        let total = requests.iter().map(|r| r.num_completions).sum();
        let penalised = generator.params.repetition_penalty != 1.0;
        let slots = generator.max_concurrent.min(total);
        let mut cache = KvCache::new(shape, kind, device, generator.params.max_new_tokens);
        cache.reserve_completions(slots, 1);
        let static_step = match generator.decoding {
            Decoding::Eager => None,
            decoding => {
                // A buffer that grows later moves, which invalidates captured graphs.
                reserve_prompts(&mut cache, requests, slots);
                let graphs = decoding == Decoding::CudaGraphs;
                Some(StaticStep::new(generator.model, &generator.params, slots, graphs)?)
            }
        };
        let seen = || Tensor::zeros([slots as i64, shape.vocab_size], (Kind::Bool, device));
        Ok(Run {
            generator,
            requests,
            on_finished,
            cache,
            packed: PackedWeights::new(generator.model),
            slots: Vec::new(),
            prompts: Vec::new(),
            seen: penalised.then(seen),
            static_step,
            dirty: false,
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

    fn check_cancelled(&self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let (finished, total) = (self.finished, self.total);
        if cancel() { Err(EngineError::Cancelled { finished, total }) } else { Ok(()) }
    }

    /// Fills free slots. A few free slots wait for more, so that several prompts are prefilled together.
    pub fn schedule(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let waiting = self.total - self.finished - self.slots.len();
        let free = self.generator.max_concurrent - self.slots.len();
        if free < waiting.min(self.generator.max_concurrent.div_ceil(8)) {
            return Ok(());
        }
        loop {
            let waiting = self.total - self.finished - self.slots.len();
            let free = self.generator.max_concurrent - self.slots.len();
            if waiting == 0 || free == 0 {
                return Ok(());
            }
            self.check_cancelled(cancel)?;
            let prefilled: usize =
                self.prompts.iter().map(|p| p.num_completions - p.next_completion).sum();
            let new = self.next_prompts(free.saturating_sub(prefilled));
            if !new.is_empty() {
                self.prefill(&new)?;
            }
            self.start(free)?;
        }
    }

    /// The requests to prefill next, for up to `free` completions and one pass.
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

    /// Prefills prompts in one pass: their keys and values, and the logits of the first token.
    fn prefill(&mut self, new: &[usize]) -> Result<(), EngineError> {
        let model = self.generator.model;
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
        let packed = Some(&self.packed);
        let mut hidden = embed_inputs(model, &mut Checkpointing::new(false), &batch, packed);
        let mut backend = self.cache.prefill(&attention, &batch.layout, self.prompts.len());
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend, packed);
        }
        let last: Vec<i64> =
            batch.layout.segments.iter().map(|s| (s.start + s.len - 1) as i64).collect();
        let last = hidden.index_select(0, &Tensor::from_slice(&last).to_device(device));
        let logits = model.logits(&model.final_norm(&last), packed);
        for (i, &request) in new.iter().enumerate() {
            let Request { prompt, num_completions, .. } = &self.requests[request];
            let grids: Vec<[usize; 3]> = prompt.images.iter().map(|image| image.grid_thw).collect();
            self.prompts.push(CachedPrompt {
                request,
                len: prompt.ids.len(),
                next_position: model.prompt_positions(&prompt.ids, &grids).next,
                next_completion: 0,
                num_completions: *num_completions,
                running: 0,
                first_logits: Some(logits.narrow(0, i as i64, 1)),
            });
        }
        self.stats.prompts += new.len();
        self.stats.prompt_tokens += batch.layout.num_tokens();
        self.stats.prefill_passes += 1;
        Ok(())
    }

    /// Starts at most `free` waiting completions of prefilled prompts: a slot and the first token for each.
    fn start(&mut self, mut free: usize) -> Result<(), EngineError> {
        let first_slot = self.slots.len();
        let mut logits = Vec::new();
        for (index, prompt) in self.prompts.iter_mut().enumerate() {
            let count = (prompt.num_completions - prompt.next_completion).min(free);
            if count == 0 {
                continue;
            }
            free -= count;
            let key = self.requests[prompt.request].key;
            for completion in prompt.next_completion..prompt.next_completion + count {
                self.slots.push(Slot {
                    request: prompt.request,
                    completion,
                    prompt: index,
                    first_position: prompt.next_position,
                    key: DrawKey { completion: key.completion + completion as u64, ..key },
                    ids: Vec::new(),
                    sampled_logprobs: Vec::new(),
                    finish_reason: None,
                });
            }
            prompt.next_completion += count;
            prompt.running += count;
            let first = prompt.first_logits.as_ref();
            logits.extend(first.map(|x| x.expand([count as i64, -1], false)));
            if prompt.next_completion == prompt.num_completions {
                prompt.first_logits = None;
            }
        }
        let new = self.slots.len() - first_slot;
        if let Some(seen) = &self.seen {
            mark_prompts(seen, &self.slots[first_slot..], first_slot, self.requests);
        }
        if let Some(step) = &self.static_step {
            step.start(first_slot, &self.slots[first_slot..]);
        }
        let device = self.generator.model.compute().1;
        let uniforms: Vec<f64> =
            self.slots[first_slot..].iter().map(|slot| slot.key.uniform(0)).collect();
        let unfinished = self.unfinished(&vec![0; new]);
        let seen = self.seen.as_ref();
        let seen = seen.map(|seen| seen.narrow(0, first_slot as i64, new as i64));
        let tokens = self.generator.token_sampler.sample(&SamplerInputs {
            logits: &Tensor::cat(&logits, 0),
            uniforms: &Tensor::from_slice(&uniforms).to_device(device),
            unfinished: unfinished.as_ref(),
            seen: seen.as_ref(),
        });
        self.dirty = true;
        self.push_tokens(first_slot, &tokens)?;
        self.finish();
        Ok(())
    }

    /// Decodes at least one token for each slot, if there are any.
    pub fn decode(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        if self.slots.is_empty() {
            return Ok(());
        }
        if self.static_step.is_some() {
            self.decode_ahead(cancel)?;
        } else {
            self.check_cancelled(cancel)?;
            self.decode_once()?;
        }
        self.finish();
        Ok(())
    }

    /// Decodes in one static shape until a completion ends or outgrows it. Step n+1 is launched before step n is read, so a finished
    /// completion is decoded one extra time; the result is discarded.
    fn decode_ahead(&mut self, cancel: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let max_len = self.bind_batch_static();
        let mut current = self.launch(cancel)?;
        loop {
            let ahead = if self.may_run_ahead(max_len) { Some(self.launch(cancel)?) } else { None };
            let tokens = self.generator.token_sampler.read_table(&current.wait()?);
            self.push_tokens(0, &tokens)?;
            match ahead {
                Some(next) => current = next,
                None => return Ok(()),
            }
        }
    }

    /// Whether to launch a step before the last one is read: no completion has ended or reaches its longest length, and all fit.
    fn may_run_ahead(&self, max_len: usize) -> bool {
        let max_new_tokens = self.generator.params.max_new_tokens;
        self.slots.iter().all(|slot| {
            let tokens = slot.ids.len() + 1;
            slot.finish_reason.is_none() && tokens < max_new_tokens && tokens <= max_len
        })
    }

    fn launch(&mut self, cancel: &dyn Fn() -> bool) -> Result<PendingHostCopy, EngineError> {
        self.check_cancelled(cancel)?;
        let step = self.static_step.as_mut().expect("decoding in static shapes");
        let mut context = StepContext {
            model: self.generator.model,
            token_sampler: &self.generator.token_sampler,
            cache: &mut self.cache,
            packed: &self.packed,
            seen: self.seen.as_ref(),
        };
        self.stats.decode_passes += 1;
        step.launch(&mut context, self.slots.len())
    }

    /// As [`Self::bind_batch`] for static shapes; returns the length that completions may reach in the shape.
    fn bind_batch_static(&mut self) -> usize {
        let step = self.static_step.as_mut().expect("decoding in static shapes");
        if self.dirty {
            let prompt_lens: Vec<usize> = self.prompts.iter().map(|prompt| prompt.len).collect();
            step.bind_batch(&mut self.cache, &prompt_lens, &self.slots);
            self.dirty = false;
        }
        let longest = self.slots.iter().map(|slot| slot.ids.len()).max();
        step.reserve(&mut self.cache, longest.unwrap_or(1) - 1)
    }

    /// One eager pass: a token for every slot.
    fn decode_once(&mut self) -> Result<(), EngineError> {
        self.bind_batch();
        let model = self.generator.model;
        let slots = self.slots.len();
        let generated: Vec<usize> = self.slots.iter().map(|slot| slot.ids.len()).collect();
        let (longest, shortest) = (generated.iter().max(), generated.iter().min());
        let ragged = longest != shortest;
        let longest = longest.copied().unwrap_or(1) - 1;
        let [ids, completion_lens, positions, uniforms] = self.upload();
        let rotary = model.rotary(&positions.unsqueeze(0).expand([3, slots as i64], false));
        let mut hidden = model.embed_tokens(&ids);
        let mut backend = self.cache.decode(&completion_lens, longest, ragged);
        let packed = Some(&self.packed);
        for layer in 0..model.text_shape().num_layers {
            hidden = model.layer(layer, &hidden, &rotary, &mut backend, packed);
        }
        let logits = model.logits(&model.final_norm(&hidden), packed);
        let seen = self.seen.as_ref().map(|seen| {
            let mut seen = seen.narrow(0, 0, slots as i64);
            seen.scatter_value_(1, &ids.unsqueeze(1), 1)
        });
        let unfinished = self.unfinished(&generated);
        let inputs = SamplerInputs {
            logits: &logits,
            uniforms: &uniforms,
            unfinished: unfinished.as_ref(),
            seen: seen.as_ref(),
        };
        let tokens = self.generator.token_sampler.sample(&inputs);
        self.stats.decode_passes += 1;
        self.push_tokens(0, &tokens)
    }

    /// Last ids, tokens before them, their positions, and the next uniform numbers: `[slots]` each, in one transfer (integers are
    /// exact in f64).
    fn upload(&self) -> [Tensor; 4] {
        let slots = self.slots.len();
        let mut table = Vec::with_capacity(4 * slots);
        table
            .extend(self.slots.iter().map(|slot| slot.ids.last().map_or(0.0, |&id| f64::from(id))));
        table.extend(self.slots.iter().map(|slot| (slot.ids.len() - 1) as f64));
        table.extend(
            self.slots.iter().map(|slot| (slot.first_position + slot.ids.len() as i64 - 1) as f64),
        );
        let greedy = self.generator.params.greedy();
        table.extend(
            self.slots.iter().map(
                |slot| {
                    if greedy { 0.0 } else { slot.key.uniform(slot.ids.len()) }
                },
            ),
        );
        let table = Tensor::from_slice(&table)
            .view([4, slots as i64])
            .to_device(self.generator.model.compute().1);
        let integers = table.narrow(0, 0, 3).to_kind(Kind::Int64);
        [integers.get(0), integers.get(1), integers.get(2), table.get(3)]
    }

    /// `[n, 1]`: which rows, of `generated` tokens each, are shorter than `min_new_tokens`; `None` where all may end.
    fn unfinished(&self, generated: &[usize]) -> Option<Tensor> {
        let params = &self.generator.params;
        let early: Vec<bool> = generated.iter().map(|&n| n < params.min_new_tokens).collect();
        let any = early.contains(&true) && !params.eos_ids.is_empty();
        any.then(|| {
            Tensor::from_slice(&early).to_device(self.generator.model.compute().1).unsqueeze(1)
        })
    }

    /// Tells the cache who is in the batch, if that changed.
    fn bind_batch(&mut self) {
        if !self.dirty {
            return;
        }
        let prompt_lens: Vec<usize> = self.prompts.iter().map(|prompt| prompt.len).collect();
        let prompt_of_slot: Vec<usize> = self.slots.iter().map(|slot| slot.prompt).collect();
        self.cache.bind_batch(&prompt_lens, &prompt_of_slot);
        self.dirty = false;
    }

    /// Appends a token to every slot from `first_slot` on, except those that ended.
    fn push_tokens(
        &mut self,
        first_slot: usize,
        tokens: &[SampledToken],
    ) -> Result<(), EngineError> {
        let params = &self.generator.params;
        for (slot, sampled) in self.slots[first_slot..].iter_mut().zip(tokens) {
            if slot.finish_reason.is_some() {
                continue;
            }
            if !sampled.logprob.is_finite() {
                let (request, completion, token) = (slot.request, slot.completion, slot.ids.len());
                return Err(EngineError::NonFinite {
                    request,
                    completion,
                    token,
                    got: sampled.logprob,
                });
            }
            slot.push(sampled.id, sampled.logprob, &params.eos_ids, params.max_new_tokens);
            self.stats.boundary_draws += usize::from(sampled.near_boundary);
            self.stats.tokens += 1;
        }
        Ok(())
    }

    /// Hands over the completions that ended and frees their slots, and prompts that nobody needs any more.
    fn finish(&mut self) {
        if self.slots.iter().all(|slot| slot.finish_reason.is_none()) {
            return;
        }
        let longest = self.slots.iter().map(|slot| slot.ids.len()).max().unwrap_or(0);
        let (mut ended, moves) = compact(&mut self.slots, |slot| slot.finish_reason.is_some());
        self.cache.move_slots(&moves, longest);
        if let Some(seen) = &self.seen {
            move_rows(seen, &moves);
        }
        if let Some(step) = &self.static_step {
            step.move_slots(&moves);
        }
        ended.sort_by_key(|slot| (slot.request, slot.completion));
        for slot in ended {
            self.prompts[slot.prompt].running -= 1;
            let (request, index) = (slot.request, slot.completion);
            if let Some(completion) = slot.into_completion() {
                (self.on_finished)(request, index, &completion);
                self.results[request][index] = Some(completion);
                self.finished += 1;
            }
        }
        let done = |prompt: &CachedPrompt<Option<Tensor>>| {
            prompt.running == 0 && prompt.next_completion == prompt.num_completions
        };
        let (_, moves) = compact(&mut self.prompts, done);
        self.cache.move_prompts(&moves);
        for slot in &mut self.slots {
            if let Some(i) = moves.from.iter().position(|&from| from == slot.prompt as i64) {
                slot.prompt = moves.to[i] as usize;
            }
        }
        self.dirty = true;
    }

    pub fn into_generation(self) -> Generation {
        let completions =
            self.results.into_iter().map(|group| group.into_iter().flatten().collect()).collect();
        Generation { completions, stats: self.stats }
    }
}

/// Makes room for the longest prompt, and for as many prompts as `slots` completions can have.
fn reserve_prompts(cache: &mut KvCache, requests: &[Request], slots: usize) {
    let sampled = requests.iter().filter(|r| r.num_completions > 0);
    let width = sampled.clone().map(|r| r.prompt.ids.len()).max();
    let smallest = sampled.clone().map(|r| r.num_completions).min();
    let prompts = slots.div_ceil(smallest.unwrap_or(1)).min(sampled.count());
    cache.reserve_prompts(prompts as i64, width.unwrap_or(0) as i64);
}

/// Marks the tokens of new slots' prompts as seen; slots of one request are adjacent.
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
