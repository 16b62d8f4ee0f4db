//! Out-of-memory (OOM) handling: a pass that runs out of memory is retried in smaller micro-batches, which stay smaller.

use std::io::ErrorKind;

use base::SourceLine;
use tch::{Device, TchError};
use torch::{OutOfMemory, catch_out_of_memory};

use crate::TrainError;
use crate::micro_batches::{GroupLens, Limits, half, num_tokens};
use crate::session::Session;
use crate::settings::Settings;

/// What running out of memory led to.
#[derive(Default)]
pub(crate) struct MicroBatchMemory {
    /// Passes of this step that were retried in parts.
    pub oom_retries: u64,
    /// The token limit of micro-batches.
    pub lowered_max_tokens: Option<usize>,
}

/// Completions that go through the model together, and can be cut.
pub(crate) trait Divisible: Sized {
    /// Tokens of its prompts and completions.
    fn group_lens(&self) -> Vec<GroupLens>;

    /// The row that the first of them is about.
    fn source(&self) -> Option<&SourceLine>;

    /// The same completions within `limits`.
    fn divide(batches: Vec<Self>, limits: Limits) -> Vec<Self>;
}

/// Runs one pass over a micro-batch. The inner result tells an OOM apart from other errors.
pub(crate) fn catch_oom<R>(
    device: Device,
    pass: impl FnOnce() -> Result<R, TrainError>,
) -> Result<Result<R, OutOfMemory>, TrainError> {
    match catch_out_of_memory(device, pass) {
        Err(cause) => Ok(Err(cause)),
        Ok(Err(error)) => match oom_behind(&error) {
            Some(cause) => Ok(Err(cause)),
            None => Err(error),
        },
        Ok(Ok(result)) => Ok(Ok(result)),
    }
}

/// The OOM that caused an error, libtorch's or this program's own.
fn oom_behind(error: &TrainError) -> Option<OutOfMemory> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<TchError>() {
            return OutOfMemory::of(error);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let message = error.to_string();
            return (error.kind() == ErrorKind::OutOfMemory).then_some(OutOfMemory { message });
        }
        next = error.source();
    }
    None
}

/// Runs a step. Micro-batches that run out of memory are cut; an OOM anywhere else is an error.
pub(crate) fn step<R>(
    device: Device,
    step: impl FnOnce() -> Result<R, TrainError>,
) -> Result<R, TrainError> {
    catch_oom(device, step)?.map_err(|cause| TrainError::OutOfMemory { cause })
}

impl Session<'_> {
    /// Runs `pass` over each micro-batch, numbered from 1, and hands what it returns to `accept`. Where a pass runs out of memory, that
    /// micro-batch and those behind it are cut in parts, and the pass is retried; nothing of the failed one is accepted.
    ///
    /// # Errors
    /// Those of `pass` and `accept`; [`TrainError::TooLargeForMemory`] where a single completion runs out of memory.
    pub fn for_each_micro_batch<B: Divisible, R>(
        &mut self,
        phase: &'static str,
        batches: &mut Vec<B>,
        mut pass: impl FnMut(&Self, usize, &mut B) -> Result<R, TrainError>,
        mut accept: impl FnMut(&mut Self, usize, R) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut done = 0;
        while self.next_micro_batch(phase, batches, &mut done, &mut pass, &mut accept)? {}
        Ok(())
    }

    /// As [`Self::for_each_micro_batch`], for passes that leave gradients, on all ranks: their gradients are summed as the shards ask for
    /// it, and where a rank fails, all do.
    ///
    /// # Errors
    /// As it, on all ranks.
    pub fn for_each_trained_batch<B: Divisible, R>(
        &mut self,
        batches: &mut Vec<B>,
        mut pass: impl FnMut(&Self, usize, &mut B) -> Result<R, TrainError>,
        mut accept: impl FnMut(&mut Self, usize, R) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let (device, mut done) = (self.model.compute().1, 0);
        if !self.optimizer.is_sharded() {
            let all = step(device, || self.for_each_micro_batch("train", batches, pass, accept));
            return self.agree("passes", all);
        }
        while self.ranks.world.any("further passes", done < batches.len())? {
            let one = step(device, || {
                self.next_micro_batch("train", batches, &mut done, &mut pass, &mut accept)
            });
            self.agree("a pass", one)?;
            let (optimizer, model) = (&mut self.optimizer, &self.model);
            self.clock.time("optimizer", || optimizer.reduce_round(model.parameters()))?;
        }
        Ok(())
    }

    /// One micro-batch, or none where all are done; says whether there was one.
    fn next_micro_batch<B: Divisible, R>(
        &mut self,
        phase: &'static str,
        batches: &mut Vec<B>,
        done: &mut usize,
        pass: &mut impl FnMut(&Self, usize, &mut B) -> Result<R, TrainError>,
        accept: &mut impl FnMut(&mut Self, usize, R) -> Result<(), TrainError>,
    ) -> Result<bool, TrainError> {
        let device = self.model.compute().1;
        while *done < batches.len() {
            if self.ranks.are_several() {
                let source = batches[*done].source().map(ToString::to_string);
                let (number, of) = (*done + 1, batches.len());
                self.at(&format!("{phase}, micro-batch {number} of {of}"), source.as_deref());
            }
            let batch = &mut batches[*done];
            let passed =
                self.clock.time(phase, || catch_oom(device, || pass(self, *done + 1, batch)))?;
            match passed {
                Ok(result) => {
                    accept(self, *done + 1, result)?;
                    *done += 1;
                    return Ok(true);
                }
                Err(cause) => {
                    self.shrink(&batches[*done].group_lens(), cause)?;
                    let rest = batches.split_off(*done);
                    batches.extend(B::divide(rest, self.settings.limits()));
                }
            }
        }
        Ok(false)
    }

    /// Lowers the token limit of micro-batches for the rest of the run after `batch` ran out of memory, and logs it. Gradients of the
    /// failed pass are dropped.
    ///
    /// # Errors
    /// [`TrainError::TooLargeForMemory`] where the batch is a single completion.
    fn shrink(&mut self, batch: &[GroupLens], cause: OutOfMemory) -> Result<(), TrainError> {
        self.optimizer.forget_pass(self.model.parameters())?;
        self.memory.oom_retries += 1;
        let tokens = num_tokens(batch);
        let Some(half) = half(batch) else {
            let hint = ways_out(&self.settings);
            return Err(TrainError::TooLargeForMemory { tokens, cause, hint });
        };
        if self.settings.sections.machine.max_tokens_per_microbatch.is_some_and(|max| max <= half) {
            return Ok(());
        }
        self.settings.sections.machine.max_tokens_per_microbatch = Some(half);
        self.memory.lowered_max_tokens = Some(half);
        let completions: usize = batch.iter().map(|group| group.completions.len()).sum();
        self.log_here(&format!(
            "no memory for a micro-batch of {completions} completions, {tokens} tokens ({cause}); from \
             here on at most {half} tokens at a time, as --max_tokens_per_microbatch {half} has it from \
             the start"
        ));
        Ok(())
    }

    /// Restores the limit found before the run was interrupted.
    pub fn resume_max_tokens(&mut self, lowered: Option<u64>) {
        let Some(lowered) = lowered.map(|tokens| tokens as usize) else {
            return;
        };
        if self.settings.sections.start.allow_changed
            || self
                .settings
                .sections
                .machine
                .max_tokens_per_microbatch
                .is_some_and(|max| max <= lowered)
        {
            return;
        }
        self.settings.sections.machine.max_tokens_per_microbatch = Some(lowered);
        self.memory.lowered_max_tokens = Some(lowered);
        self.log(&format!("at most {lowered} tokens at a time, as before: more ran out of memory"));
    }
}

/// Flags that need less memory and are not set yet.
fn ways_out(settings: &Settings) -> String {
    let trained = settings.load.trained;
    let ways = [
        (!settings.sections.model.gradient_checkpointing, "--gradient_checkpointing true"),
        (settings.load.kind == tch::Kind::Float, "--bf16 true"),
        (settings.lora.is_none(), "--use_peft true (LoRA)"),
        (
            settings.lora.is_none() && (trained.vision || trained.merger),
            "--freeze_vision_modules true",
        ),
        (true, "a lower --max_pixels"),
        (true, "shorter answers"),
    ];
    let open: Vec<&str> =
        ways.iter().filter(|(is_open, _)| *is_open).map(|(_, way)| *way).collect();
    open.join(", ")
}
