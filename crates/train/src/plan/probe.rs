//! How fast this machine does the work of a model's shapes: a blank model of the same sizes, with fewer
//! layers where they are large, goes through the passes of a step.

use std::rc::Rc;
use std::time::Instant;

use base::{DrawKey, Prompt};
use config::ZeroStage;
use engine::{Generator, Request, SamplingParams};
use models::{
    AdapterSource, Checkpointing, FamilyConfig, LoadOptions, LoraOptions, ScaledSize, Targets,
    TrainedParts, VisionLanguageModel,
};
use tch::{Device, Kind, Tensor, no_grad};
use torch::ranks::Group;

use super::{Choice, Costs, Line, Load, Passes, Shape, Tower, Trained};
use crate::TrainError;
use crate::batch::{MicroBatch, Pass};
use crate::logprobs::Predictions;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::policy;
use crate::settings::Settings;

/// Least bytes of the layers that are tried: more than the caches hold, so that weights come from memory as in the whole model.
const LEAST_BYTES: u64 = 64 << 20;
/// Vision towers of up to this many blocks are tried whole; of larger ones two blocks.
const MOST_BLOCKS: u64 = 8;
/// Rows of the head that are tried; its time grows as their number does.
const MOST_VOCAB: u64 = 1 << 15;
/// Prompt tokens before the completions that are decoded.
const MOST_PREFILL: u64 = 2048;
/// Tokens decoded, few and many: the difference excludes the prefill.
const DECODED: [usize; 2] = [2, 10];
/// A pass that takes longer is timed once.
const LONG_SECS: f64 = 0.2;
const REPEATS: usize = 3;
/// Longer passes are measured on a smaller load of the same proportions.
const MOST_SECS: f64 = 1.0;
/// Tokens and patches of the first pass, which says how much there is time for.
const FIRST: f64 = 64.0;
/// The smaller of two sizes, as a part of the larger.
const SMALLER: f64 = 0.3;

/// What is timed, and with how many layers.
pub struct Probe<'a> {
    config: &'a dyn FamilyConfig,
    shape: Shape,
    settings: &'a Settings,
    load: Load,
    sampled: Load,
}

impl<'a> Probe<'a> {
    /// For steps like `load`, with `sampled` completions at once.
    pub fn new(
        config: &'a dyn FamilyConfig,
        shape: Shape,
        settings: &'a Settings,
        load: Load,
        sampled: Load,
    ) -> Self {
        Probe { config, shape, settings, load, sampled }
    }

    /// Text layers that are tried, of all.
    pub fn layers(&self) -> (u64, u64) {
        let size = self.settings.load.kind.elt_size_in_bytes() as u64;
        let enough = LEAST_BYTES.div_ceil(self.shape.layer_weights * size);
        (enough.min(self.shape.layers), self.shape.layers)
    }

    /// Times the parts of a step that trains as `choice` says.
    ///
    /// # Errors
    /// Out of memory; what the generator refuses.
    pub fn costs(&self, choice: Choice) -> Result<Costs, TrainError> {
        let (tried, all) = self.layers();
        let model = self.model(tried, choice)?;
        let of_all = all as f64 / tried as f64;
        let vocab = self.shape.vocab as f64 / self.vocab() as f64;
        let part = self.affordable(&*model, choice)?;
        let (text, head) = self.passes(&*model, choice, part)?;
        Ok(Costs {
            text: text.times(of_all),
            head: head.times(vocab),
            vision: self.vision(&*model, choice)?,
            decoded: self.decoded(&*model, choice, part)?,
            update: self.update(model)?,
        })
    }

    fn vocab(&self) -> u64 {
        self.shape.vocab.min(MOST_VOCAB)
    }

    /// The configuration of a model of `layers` text layers.
    fn tried(&self, layers: u64) -> Box<dyn FamilyConfig> {
        let blocks = self.shape.vision_depth;
        self.config.scaled(&ScaledSize {
            layers: layers as usize,
            vocab_size: self.vocab() as i64,
            vision_blocks: if blocks > MOST_BLOCKS { 2 } else { blocks as usize },
        })
    }

    /// A blank model of `layers` text layers.
    fn model(
        &self,
        layers: u64,
        choice: Choice,
    ) -> Result<Box<dyn VisionLanguageModel>, TrainError> {
        let config = self.tried(layers);
        let trained = TrainedParts {
            vision: choice.trained != Trained::FrozenVision,
            merger: choice.trained != Trained::FrozenVision,
            ..TrainedParts::ALL
        };
        let options = LoadOptions {
            trained: TrainedParts { masters_on_host: choice.offload_optimizer, ..trained },
            ..self.settings.load
        };
        let lora = match choice.trained {
            Trained::Lora { rank, dropout } => Some(LoraOptions {
                rank: rank as i64,
                alpha: 1.0,
                dropout: if dropout { 0.05 } else { 0.0 },
                targets: Targets::new(&[], false)?,
                seed: 0,
            }),
            Trained::Full | Trained::FrozenVision => None,
        };
        Ok(config.blank(options, lora.as_ref().map(AdapterSource::New))?)
    }

    /// `part` of a text prompt and of its completions.
    fn pack(&self, model: &dyn VisionLanguageModel, part: f64) -> Result<MicroBatch, TrainError> {
        let group = self.load.completions.div_ceil(self.load.prompts);
        let completion = vec![1u32; portion(self.load.completion_tokens, part)];
        let completions = vec![completion.as_slice(); group as usize];
        MicroBatch::pack(model, &[(&self.prompt(part), completions)])
    }

    fn prompt(&self, part: f64) -> Prompt {
        Prompt { ids: vec![1; portion(self.load.prompt_tokens, part)], images: Vec::new() }
    }

    fn training_secs(
        &self,
        model: &dyn VisionLanguageModel,
        choice: Choice,
        batch: &MicroBatch,
    ) -> f64 {
        best_of(model.compute().1, || {
            policy::with_dropout(model, &[0], || {
                batch.backward(model, Pass::new(1.0, choice.recompute), |scores| {
                    (scores.logprobs.sum(Kind::Float), ())
                });
            });
        })
    }

    /// The part of a group that a pass has time for.
    fn affordable(
        &self,
        model: &dyn VisionLanguageModel,
        choice: Choice,
    ) -> Result<f64, TrainError> {
        let group = self.load.completions.div_ceil(self.load.prompts);
        let tokens = self.load.prompt_tokens + group * self.load.completion_tokens;
        let batch = self.pack(model, FIRST / tokens as f64)?;
        let secs = self.training_secs(model, choice, &batch);
        let part = MOST_SECS / secs * batch.num_tokens as f64 / tokens as f64;
        Ok(part.min(1.0))
    }

    /// Passes over `part` of a group, and over less of it; those of the head are timed apart and taken off.
    fn passes(
        &self,
        model: &dyn VisionLanguageModel,
        choice: Choice,
        part: f64,
    ) -> Result<(Passes, Passes), TrainError> {
        let mut points = Vec::new();
        for part in [SMALLER * part, part] {
            let batch = self.pack(model, part)?;
            let rows = batch.lens.iter().sum::<usize>() as u64;
            let head = self.head(model, rows);
            let forward = best_of(model.compute().1, || drop(batch.scores(model, 1.0)));
            let training = self.training_secs(model, choice, &batch);
            let tokens = batch.num_tokens as u64;
            points.push((tokens, rows, [forward - head[0], training - head[1]], head));
        }
        let line = |tokens: fn(&Point) -> u64, secs: fn(&Point, usize) -> f64, way| {
            let [few, many] = [&points[0], &points[1]];
            Line::through((tokens(few), secs(few, way)), (tokens(many), secs(many, way)))
        };
        let both = |tokens: fn(&Point) -> u64, secs: fn(&Point, usize) -> f64| Passes {
            forward: line(tokens, secs, 0),
            training: line(tokens, secs, 1),
        };
        Ok((both(|p| p.0, |p, way| p.2[way]), both(|p| p.1, |p, way| p.3[way])))
    }

    /// Seconds of `rows` through the head: forward, and forward and backward.
    fn head(&self, model: &dyn VisionLanguageModel, rows: u64) -> [f64; 2] {
        let (kind, device) = model.compute();
        let size = [rows as i64, self.shape.hidden as i64];
        let hidden = Tensor::full(size, 0.01, (kind, device));
        let targets = Tensor::ones([rows as i64], (Kind::Int64, device));
        let forward =
            best_of(device, || drop(Predictions::new(model, &hidden, &targets, 1.0).scores()));
        let leaf = hidden.set_requires_grad(true);
        let training = best_of(device, || {
            let (loss, ()) = Predictions::new(model, &leaf, &targets, 1.0)
                .differentiate(|scores| (scores.logprobs.sum(Kind::Float), ()));
            loss.backward();
        });
        [forward, training]
    }

    /// Seconds of a prompt's images through the tower, as if they were one: forward, and as it is trained.
    fn vision(&self, model: &dyn VisionLanguageModel, choice: Choice) -> Result<Tower, TrainError> {
        if self.load.patches == 0 {
            return Ok(Tower::default());
        }
        let first = self.tower_secs(model, choice, FIRST);
        let part = MOST_SECS / first.1.training * first.0 / self.load.patches as f64;
        let (patches, tried_secs) =
            self.tower_secs(model, choice, part.min(1.0) * self.load.patches as f64);
        let tried = Shape::of(&*self.tried(self.layers().0))?;
        let more = self.shape.tower_weights as f64 / tried.tower_weights as f64;
        let more = more * self.load.patches as f64 / patches;
        Ok(Tower { forward: tried_secs.forward * more, training: tried_secs.training * more })
    }

    /// The patches of a nearly square image of about `patches`, and their pass through the tower.
    fn tower_secs(
        &self,
        model: &dyn VisionLanguageModel,
        choice: Choice,
        patches: f64,
    ) -> (f64, Tower) {
        let side = self.config.vision_shape().merge;
        let height = (patches.sqrt() as usize / side).max(1) * side;
        let width = (patches as usize / height / side).max(1) * side;
        let (kind, device) = model.compute();
        let size = [(height * width) as i64, self.shape.patch as i64];
        let pixels = Tensor::full(size, 0.01, (kind, device));
        let grid = [[1, height, width]];
        let forward = best_of(device, || {
            let checkpointing = &mut Checkpointing::new(false);
            no_grad(|| drop(model.vision_stages(checkpointing, &pixels, &grid, None)));
        });
        let both_ways = || {
            let mut checkpointing = Checkpointing::new(choice.recompute);
            let features = model.vision_stages(&mut checkpointing, &pixels, &grid, None);
            checkpointing.backward(&features, |features| (features.sum(Kind::Float), ()));
        };
        let training = match choice.trained {
            Trained::Full => best_of(device, both_ways),
            Trained::FrozenVision | Trained::Lora { .. } => forward,
        };
        ((height * width) as f64, Tower { forward, training })
    }

    /// Seconds of a decoding step of all concurrent completions.
    fn decoded(
        &self,
        model: &dyn VisionLanguageModel,
        choice: Choice,
        part: f64,
    ) -> Result<f64, TrainError> {
        let (tried, all) = self.layers();
        let one = self.sampling_secs(model, part)?;
        if tried == all {
            return Ok(one);
        }
        let two = self.sampling_secs(&*self.model(2 * tried, choice)?, part)?;
        let layer = ((two - one) / tried as f64).max(0.0);
        let rest = (one - layer * tried as f64).max(0.0);
        let vocab = self.shape.vocab as f64 / self.vocab() as f64;
        Ok(rest * vocab + layer * all as f64)
    }

    fn sampling_secs(&self, model: &dyn VisionLanguageModel, part: f64) -> Result<f64, TrainError> {
        let prompt = self.prompt(part);
        let most = (MOST_PREFILL / prompt.ids.len() as u64).max(1);
        let prompts = self.sampled.prompts.min(most);
        let completions = self.sampled.completions.div_ceil(prompts) as usize;
        let requests: Vec<Request> = (0..prompts)
            .map(|index| Request {
                prompt: prompt.clone(),
                num_completions: completions,
                key: DrawKey { seed: 0, step: 0, prompt: index, completion: 0 },
            })
            .collect();
        let mut secs = [f64::INFINITY; 2];
        for _ in 0..REPEATS {
            for (secs, tokens) in secs.iter_mut().zip(DECODED) {
                let params = SamplingParams { max_new_tokens: tokens, ..SamplingParams::default() };
                let generator = Generator::new(model, params, completions * prompts as usize)?
                    .with_decoding(self.settings.decoding)?;
                let start = Instant::now();
                generator.generate(&requests, &mut |_, _, _| (), &|| false)?;
                *secs = secs.min(start.elapsed().as_secs_f64());
            }
            if secs[1] > MOST_SECS {
                break;
            }
        }
        Ok((secs[1] - secs[0]).max(0.0) / (DECODED[1] - DECODED[0]) as f64)
    }

    /// Seconds of an update, by trained scalar.
    fn update(&self, mut model: Box<dyn VisionLanguageModel>) -> Result<f64, TrainError> {
        let options = OptimizerOptions { max_grad_norm: 1.0, ..self.settings.optimizer() };
        let device = model.compute().1;
        let alone = Rc::new(Group::alone());
        let mut optimizer =
            Optimizer::new(model.parameters_mut(), options, alone, ZeroStage::Zero)?;
        let parameters = model.parameters();
        optimizer.discard(parameters)?;
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            for parameter in parameters.list.iter().filter(|p| p.value.requires_grad()) {
                let zero = (&parameter.value * 0.0).sum(parameter.value.kind());
                zero.backward();
            }
            let start = Instant::now();
            optimizer.step(parameters, 0.0)?;
            torch::wait_for(device);
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best / optimizer.num_trainable(parameters) as f64)
    }
}

/// A part of `whole`, at least one.
fn portion(whole: u64, part: f64) -> usize {
    ((whole as f64 * part).round() as usize).max(1)
}

/// Tokens, completion tokens, seconds of the text forward and in training, and those of the head.
type Point = (u64, u64, [f64; 2], [f64; 2]);

/// Seconds of the fastest of a few runs, after one that warms up; of a long one, that one alone.
fn best_of(device: Device, mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for repeat in 0..=REPEATS {
        let start = Instant::now();
        run();
        // GPU work is asynchronous.
        torch::wait_for(device);
        let secs = start.elapsed().as_secs_f64();
        best = best.min(secs);
        if repeat > 0 && secs > LONG_SECS {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use config::{ColonList, GrpoConfig};

    use super::super::tests::FULL;
    use super::*;

    #[test]
    fn every_part_takes_some_time() {
        let golden = testing::checkpoint("nested");
        let config = models::qwen2_5_vl::Config::read(&golden).unwrap();
        let settings = Settings::try_from(&GrpoConfig::default().with(|c| {
            c.data.data_file_paths = ColonList("rows.jsonl".into());
            c.machine.device = "cpu".into();
        }))
        .unwrap();
        let load = Load {
            prompts: 2,
            completions: 8,
            prompt_tokens: 20,
            completion_tokens: 6,
            patches: 22,
        };
        let probe = Probe::new(&config, Shape::of(&config).unwrap(), &settings, load, load);
        assert_eq!(probe.layers().0, probe.layers().1);
        let lora = Trained::Lora { rank: 2, dropout: true };
        for trained in [Trained::Full, lora] {
            let choice = Choice { trained, recompute: true, in_8bit: true, ..FULL };
            let costs = probe.costs(choice).unwrap();
            let text = [costs.text.forward, costs.text.training];
            let head = [costs.head.forward, costs.head.training];
            let passes = text.iter().zip(head);
            let mut parts: Vec<f64> =
                passes.map(|(text, head)| text.secs(1, 68) + head.secs(1, 48)).collect();
            parts.extend([
                costs.vision.forward,
                costs.vision.training,
                costs.decoded,
                costs.update,
            ]);
            assert!(parts.iter().all(|secs| *secs > 0.0 && *secs < 1.0), "{costs:?}");
            let frozen = costs.with_frozen_tower().vision;
            assert_eq!(frozen.training, frozen.forward);
        }
    }

    /// Of large models few layers are tried, and their time is that of the layers of the whole.
    #[test]
    fn few_layers_of_large_models_are_tried() {
        let golden = testing::checkpoint("nested");
        let mut config = models::qwen2_5_vl::Config::read(&golden).unwrap();
        config.text.hidden_size = 2048;
        config.text.intermediate_size = 11008;
        config.text.num_hidden_layers = 36;
        let settings = Settings::try_from(&GrpoConfig::default().with(|c| {
            c.data.data_file_paths = ColonList("rows.jsonl".into());
            c.machine.device = "cpu".into();
        }))
        .unwrap();
        let load =
            Load { prompts: 1, completions: 2, prompt_tokens: 4, completion_tokens: 2, patches: 0 };
        assert_eq!(
            Probe::new(&config, Shape::of(&config).unwrap(), &settings, load, load).layers(),
            (1, 36)
        );
    }
}
