//! The open interface of generation: requests come and go while others are decoded. What a step does is in `passes`.

use std::collections::VecDeque;

use base::Completion;
use models::{InputsBuilder, PackedWeights, VisionLanguageModel};
use tch::Tensor;
use torch::{PendingHostCopy, check_graphs};

use crate::EngineError;
use crate::cache::KvCache;
use crate::request::{Request, RequestId, RequestSettings, SampleStats};
use crate::samplers::Samplers;
use crate::schedule::{CachedPrompt, End, QueuedRequest, Slot};
use crate::static_shapes::{Decoding, StaticStep};
use crate::stop::TextDecoder;

/// What happened in a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// A completion has a further token.
    Token {
        /// Its request.
        request: RequestId,
        /// Its index within the request.
        completion: usize,
        /// The token.
        id: u32,
        /// Log-softmax(logits / temperature) of it, before penalty, masks and filters.
        logprob: f32,
    },
    /// A completion ended; all its tokens were reported before.
    Finished {
        /// Its request.
        request: RequestId,
        /// Its index within the request.
        completion: usize,
        /// All of it.
        result: Completion,
        /// The version of the weights that computed it.
        weights_version: u64,
    },
}

/// Samples completions of requests that may come at any time. Each request has settings of its own; all are decoded in one batch. A
/// completion depends on its prompt, settings and key, and on what else is decoded by rounding alone.
///
/// The engine owns all that is derived from the weights: packed copies, keys and values, captured graphs. Weights may change between its
/// steps only where [`Engine::set_weights_version`] is called.
pub struct Engine<'m> {
    pub(crate) model: &'m dyn VisionLanguageModel,
    pub(crate) max_concurrent: usize,
    pub(crate) decoding: Decoding,
    pub(crate) text: Option<Box<TextDecoder<'m>>>,
    pub(crate) weights_version: u64,
    pub(crate) samplers: Samplers,
    num_requests: usize,
    /// The longest that a completion of any request so far may be.
    pub(crate) longest: usize,
    /// Requests whose prompts are not prefilled yet, in order of arrival.
    pub(crate) waiting: VecDeque<QueuedRequest>,
    /// Whether free slots are being filled.
    pub(crate) filling: bool,
    pub(crate) prompts: Vec<CachedPrompt<Tensor>>,
    pub(crate) slots: Vec<Slot>,
    /// Whether the batch changed since it was bound to the cache.
    pub(crate) dirty: bool,
    pub(crate) buffers: Buffers,
    /// Of static shapes: the pass that was launched and not read yet.
    pub(crate) in_flight: Option<PendingHostCopy>,
    pub(crate) events: Vec<Event>,
    pub(crate) stats: SampleStats,
}

/// What is derived from the weights, and room for the batch.
pub(crate) struct Buffers {
    pub packed: PackedWeights,
    pub cache: KvCache,
    /// Slots that there is room for.
    pub room: usize,
    /// `[room, vocab_size]`: tokens of prompt and completion; `None` without repetition penalty.
    pub seen: Option<Tensor>,
    /// `None` for [`Decoding::Eager`].
    pub static_step: Option<StaticStep>,
}

impl Buffers {
    fn new(model: &dyn VisionLanguageModel, decoding: Decoding) -> Result<Self, EngineError> {
        let (kind, device) = model.compute();
        let static_step = match decoding {
            Decoding::Eager | Decoding::Auto => None,
            Decoding::StaticShapes => Some(StaticStep::new(model, false)?),
            Decoding::CudaGraphs => Some(StaticStep::new(model, true)?),
        };
        let shape = model.text_shape();
        let attention = shape.uniform().map_err(|what| EngineError::NotBuilt { what })?;
        Ok(Buffers {
            packed: PackedWeights::new(model),
            cache: KvCache::new(shape.layers.len(), attention, kind, device),
            room: 0,
            seen: None,
            static_step,
        })
    }
}

impl<'m> Engine<'m> {
    /// An engine that decodes up to `max_concurrent` completions at once.
    ///
    /// # Errors
    /// `max_concurrent` of 0.
    pub fn new(
        model: &'m dyn VisionLanguageModel,
        max_concurrent: usize,
    ) -> Result<Self, EngineError> {
        check_max_concurrent(max_concurrent)?;
        let decoding = Decoding::default();
        Ok(Engine {
            model,
            max_concurrent,
            decoding,
            text: None,
            weights_version: 0,
            samplers: Samplers::default(),
            num_requests: 0,
            longest: 0,
            waiting: VecDeque::new(),
            filling: false,
            prompts: Vec::new(),
            slots: Vec::new(),
            dirty: false,
            buffers: Buffers::new(model, decoding)?,
            in_flight: None,
            events: Vec::new(),
            stats: SampleStats::default(),
        })
    }

    /// The same with another [`Decoding`]; tokens are the same but for rounding.
    ///
    /// # Errors
    /// Graphs where the model is on no GPU or CUDA's libraries do not fit.
    pub fn with_decoding(self, decoding: Decoding) -> Result<Self, EngineError> {
        let decoding = decoding.resolved(self.model.compute().1);
        if decoding == Decoding::CudaGraphs {
            check_graphs(self.model.compute().1)?;
        }
        let buffers = Buffers::new(self.model, decoding)?;
        Ok(Engine { decoding, buffers, ..self })
    }

    /// The same with a way from ids to text, which stop strings need. Whether it writes special tokens decides whether stop strings see
    /// them.
    #[must_use]
    pub fn with_text(
        self,
        decode: impl Fn(&[u32]) -> Result<String, Box<dyn std::error::Error + Send + Sync>> + 'm,
    ) -> Self {
        Engine { text: Some(Box::new(decode)), ..self }
    }

    /// The same, at `version` of the weights; 0 otherwise.
    #[must_use]
    pub fn at_weights_version(self, version: u64) -> Self {
        Engine { weights_version: version, ..self }
    }

    /// Takes a request; its completions start as soon as there is room, in order of arrival. One for no completions is over at once.
    ///
    /// # Errors
    /// A setting out of its range, a prompt that is empty, outside the vocabulary or does not fit its images, stop strings without
    /// [`Engine::with_text`]. Other requests are not touched.
    pub fn add(
        &mut self,
        request: Request,
        settings: &RequestSettings,
    ) -> Result<RequestId, EngineError> {
        let id = RequestId(self.num_requests);
        let model = self.model;
        settings.params.validate(model.text_shape().vocab_size, model.image_token_id())?;
        self.check_stop_strings(&settings.stop_strings)?;
        check_prompt(model, id, &request)?;
        self.num_requests += 1;
        if request.num_completions == 0 {
            return Ok(id);
        }
        self.longest = self.longest.max(settings.params.max_new_tokens);
        let params = self.samplers.share(model, &settings.params);
        let stop_strings =
            (!settings.stop_strings.is_empty()).then(|| settings.stop_strings.clone().into());
        self.waiting.push_back(QueuedRequest { id, request, params, stop_strings });
        Ok(id)
    }

    fn check_stop_strings(&self, strings: &[String]) -> Result<(), EngineError> {
        let refuse = |expected| {
            let got = format!("{strings:?}");
            Err(EngineError::Parameter { name: "stop_strings", got, expected })
        };
        match () {
            () if strings.iter().any(String::is_empty) => refuse("strings of one byte or more"),
            () if self.text.is_none() && !strings.is_empty() => {
                refuse("none, since the engine was given no way from ids to text")
            }
            () => Ok(()),
        }
    }

    /// Does the next pass: prefills some prompts and samples the first token of their completions, or decodes a token for each running
    /// completion. Returns what happened, tokens first; nothing where the engine is idle.
    ///
    /// # Errors
    /// A NaN log-probability, a text that cannot be decoded, libtorch's own. All requests are dropped then.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        if let Err(error) = tch::no_grad(|| self.pass()) {
            self.drop_requests();
            return Err(error);
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Drops a request: its completions that have not ended leave the batch before the next pass, without an event. Returns whether there
    /// were any.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        let mut any = self.waiting.len() < before;
        for prompt in self.prompts.iter_mut().filter(|prompt| prompt.request.id == id) {
            any |= prompt.num_waiting() > 0;
            prompt.give_up_waiting();
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.request == id && slot.end.is_none()) {
            any = true;
            slot.end = Some(End::Aborted);
        }
        if any && self.in_flight.is_none() {
            self.finish();
        }
        any
    }

    /// Whether every completion has ended.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.prompts.is_empty()
    }

    /// Completions that neither ended nor were aborted.
    pub fn num_unfinished(&self) -> usize {
        self.num_waiting() + self.slots.iter().filter(|slot| slot.end.is_none()).count()
    }

    /// Counts since the engine was made.
    pub fn stats(&self) -> SampleStats {
        self.stats
    }

    /// The version of the weights, as every completion is stamped.
    pub fn weights_version(&self) -> u64 {
        self.weights_version
    }

    /// To be called after the model's weights changed. Drops everything that was derived from the old ones, and the buffers of the batch;
    /// requests that have not started wait for the new weights.
    ///
    /// # Errors
    /// [`EngineError::WeightsInUse`] while completions are under way: their keys and values are those of the old weights.
    pub fn set_weights_version(&mut self, version: u64) -> Result<(), EngineError> {
        if !self.prompts.is_empty() {
            return Err(EngineError::WeightsInUse { running: self.slots.len() });
        }
        self.buffers = Buffers::new(self.model, self.decoding)?;
        self.weights_version = version;
        Ok(())
    }

    /// Completions that have not started.
    pub(crate) fn num_waiting(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|w| w.request.num_completions).sum();
        waiting + self.prompts.iter().map(CachedPrompt::num_waiting).sum::<usize>()
    }

    fn drop_requests(&mut self) {
        self.waiting.clear();
        self.prompts.clear();
        self.slots.clear();
        self.events.clear();
        self.in_flight = None;
        self.filling = false;
        self.dirty = true;
    }
}

pub(crate) fn check_max_concurrent(max_concurrent: usize) -> Result<(), EngineError> {
    if max_concurrent > 0 {
        return Ok(());
    }
    let (got, expected) = (max_concurrent.to_string(), "1 or more");
    Err(EngineError::Parameter { name: "max_concurrent", got, expected })
}

fn check_prompt(
    model: &dyn VisionLanguageModel,
    id: RequestId,
    Request { prompt, .. }: &Request,
) -> Result<(), EngineError> {
    let (request, vocab_size) = (id.number(), model.text_shape().vocab_size);
    if prompt.ids.is_empty() {
        return Err(EngineError::EmptyPrompt { request });
    }
    if let Some(position) = prompt.ids.iter().position(|&id| i64::from(id) >= vocab_size) {
        let id = prompt.ids[position];
        return Err(EngineError::PromptToken { request, position, id, vocab_size });
    }
    InputsBuilder::new(model)
        .push_prompt(prompt)
        .map_err(|source| EngineError::Prompt { request, source })?;
    Ok(())
}
