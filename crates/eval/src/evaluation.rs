//! An evaluation from its settings to its metrics, in a folder from which it can resume.

use std::path::Path;
use std::sync::Arc;

use base::Example;
use base::run_folder::ResultFolder;
use config::{EvalConfig, EvalTask, changed_settings, to_yaml};
use data::{Processor, PromptTemplate};
use engine::{Decoding, EngineError, SampleStats, SamplingParams};
use models::VisionLanguageModel;
use rewards::Family;
use serde_json::{Value, json};

use crate::EvalError;
use crate::answers::{AnswerStore, SAMPLING, SamplingCounts, StoredAnswer};
use crate::findings::{Doubt, Findings, Warning};
use crate::questions::{Question, Questions, Truth};
use crate::results::{Results, Scored};
use crate::runner::{Answer, AskOptions, Runner, Sink};
use crate::scoring::{self, Scorer, method_of};
use crate::settled::{recorded, settled};
use crate::summary::Summary;

/// Name of the file of metrics.
pub const SUMMARY: &str = "summary.json";
/// Bad rows that the summary lists.
const MAX_LISTED: usize = 20;

/// Callbacks of an evaluation: its progress.
pub trait Progress {
    /// So many completions of so many are done.
    fn on_answer(&mut self, done: usize, total: usize);
    /// A row cannot be asked.
    fn on_bad(&mut self, place: &str, cause: &str);
}

/// An evaluation that is set up.
pub struct Evaluation {
    config: EvalConfig,
    task: EvalTask,
    questions: Questions,
    scorer: Scorer,
    processor: Arc<Processor>,
    /// How the model was trained, where that is known.
    trained_as: Value,
}

/// All that came of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Every answer with its score.
    pub results: Results,
    /// The metrics.
    pub summary: Summary,
    /// What was counted of the answers.
    pub findings: Findings,
    /// What makes the metrics doubtful.
    pub warnings: Vec<Warning>,
}

impl Evaluation {
    /// Reads the questions and starts the rewards. `folder` is where the results will be.
    ///
    /// # Errors
    /// Settings that do not go together, files that cannot be read, rewards that do not start.
    pub fn new(
        config: &EvalConfig,
        folder: &Path,
        processor: Arc<Processor>,
        family: Family,
    ) -> Result<Self, EvalError> {
        let task = config.task.ok_or_else(|| EvalError::Setting {
            name: "task",
            cause: "expected a task".to_owned(),
        })?;
        let config = &settled(config, task, &processor, family);
        let patch_size = processor.image_processor().config().patch_size as usize;
        let cache = folder.join("judge_cache");
        let scorer = Scorer::new(config, family, patch_size, cache)?;
        let check = |sample: &Example| scorer.check(sample, method_of(task));
        let questions = Questions::load(config, &processor, &check)?;
        processor.expect_answers(config.max_new_tokens.unwrap_or_default());
        // Found out before a model is loaded.
        template(config)?;
        decoding(config)?;
        refuse_all_bad(&questions)?;
        Ok(Self {
            config: config.clone(),
            task,
            questions,
            scorer,
            processor,
            trained_as: Value::Null,
        })
    }

    /// Records how the model was trained.
    pub fn note_training(&mut self, trained_as: Value) {
        self.trained_as = trained_as;
    }

    /// The settings, with a value for each that was left open.
    pub fn config(&self) -> &EvalConfig {
        &self.config
    }

    /// What makes all answers doubtful before they are there.
    pub fn doubts(&self) -> Vec<Warning> {
        let doubts =
            [(Doubt::Rewards, self.missing_box_reward()), (Doubt::Truths, self.truths_in_shares())];
        let doubts = doubts.into_iter();
        doubts.filter_map(|(doubt, text)| Some(Warning { doubt, text: text? })).collect()
    }

    fn missing_box_reward(&self) -> Option<String> {
        let config = &self.config;
        // A method of comparison was chosen.
        if self.task != EvalTask::Reward || config.reward_method.is_some() {
            return None;
        }
        let (task, funcs) = (config.task_type.as_deref(), &config.reward_funcs);
        let is_customized = config.is_reward_customized_from_vlm_module;
        rewards::missing_box_reward(task, funcs, is_customized).or_else(|| {
            let boxes = rewards::BoxAnswers::new(task, funcs, is_customized);
            let rows = self.questions.rows.iter();
            for sample in rows.filter_map(|row| row.sample.as_ref().ok()) {
                boxes.add(&sample.solution, sample.accu_reward_method.as_deref());
            }
            boxes.warning()
        })
    }

    fn truths_in_shares(&self) -> Option<String> {
        let truths = self.questions.rows.iter().filter_map(|row| match row.truth {
            Truth::Box(truth) => Some(<[f64; 4]>::from(truth)),
            _ => None,
        });
        let truths: Vec<[f64; 4]> = truths.collect();
        let is_share = |corner: &f64| (0.0..=1.0).contains(corner);
        let all = !truths.is_empty() && truths.iter().flatten().all(is_share);
        let is_default = self.scorer.units().solution == rewards::BoxFormat::Absolute;
        (all && is_default).then(|| {
            format!(
                "the true boxes of all {} rows lie within 0 and 1, and are taken for pixels of the image\n\
                 hint: --solution_box_format relative_1",
                truths.len()
            )
        })
    }

    /// Records that `model` is evaluated and that results go to `folder`.
    pub fn label(&mut self, model: String, folder: &Path) {
        self.config.model = Some(model);
        self.config.output_dir = Some(folder.display().to_string());
    }

    /// The questions.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Opens the answers of a folder, and writes the settings to it where it is new.
    ///
    /// # Errors
    /// Answers that were given under other settings or to other questions.
    pub fn open(&self, folder: &ResultFolder) -> Result<AnswerStore, EvalError> {
        if let Some(yaml) = folder.config()? {
            let changes = changed_settings(&folder.config_path(), &yaml, &self.config)?;
            if !changes.is_empty() && !self.config.allow_changed {
                let line =
                    |c: &config::Change| format!("`{}`: was {}, is {}", c.key, c.before, c.now);
                return Err(EvalError::Changed {
                    folder: folder.path().to_owned(),
                    changes: changes.iter().map(line).collect(),
                });
            }
        }
        let longest = self.config.max_new_tokens.unwrap_or_default();
        let samples = self.config.num_samples;
        let store = AnswerStore::open(folder, &self.questions, samples, longest)?;
        folder.write_config(&to_yaml(&self.config)?)?;
        Ok(store)
    }

    /// Whether answers are missing.
    pub fn is_complete(&self, store: &AnswerStore) -> bool {
        let samples = self.config.num_samples;
        store.todo(&self.questions, samples).is_empty()
    }

    /// Samples the missing completions from `model`; rows that turn out bad are noted in `store`.
    ///
    /// # Errors
    /// A failure of sampling or of the disk; [`engine::EngineError::Cancelled`].
    pub fn answer(
        &self,
        model: &dyn VisionLanguageModel,
        folder: &ResultFolder,
        store: &mut AnswerStore,
        progress: &mut dyn Progress,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), EvalError> {
        let samples = self.config.num_samples;
        let todo = store.todo(&self.questions, samples);
        let missing: usize = todo.iter().flat_map(|t| &t.answers).map(|r| r.len()).sum();
        let good = self.questions.rows.iter();
        let good: Arc<[Example]> = good.filter_map(|q| q.sample.as_ref().ok().cloned()).collect();
        let runner = Runner::new(Arc::clone(&self.processor), self.ask_options()?);
        let mut sink = FolderSink {
            questions: &self.questions,
            total: store.len() + missing,
            log: folder,
            store,
            progress,
        };
        runner.run(model, &good, &todo, &mut sink, cancel)
    }

    fn ask_options(&self) -> Result<AskOptions, EvalError> {
        let config = &self.config;
        Ok(AskOptions {
            template: template(config)?,
            sampling: SamplingParams {
                temperature: config.temperature,
                top_k: Some(config.top_k).filter(|top_k| *top_k > 0),
                top_p: config.top_p,
                min_p: config.min_p.unwrap_or_default(),
                repetition_penalty: config.repetition_penalty,
                max_new_tokens: config.max_new_tokens.unwrap_or_default(),
                ..SamplingParams::default()
            },
            max_concurrent: config.max_concurrent_completions,
            decoding: decoding(config)?,
            workers: config.dataloader_num_workers.max(1),
            seed: config.seed,
        })
    }

    /// Scores all answers, sums them up and writes both.
    ///
    /// # Errors
    /// A reward that fails, a figure that has no value, a file that cannot be written.
    pub fn finish(&self, folder: &ResultFolder, store: &AnswerStore) -> Result<Outcome, EvalError> {
        let results = self.results(store)?;
        let summary = Summary::of(&results)?;
        let findings = Findings::of(&results, &self.config, self.scorer.units());
        let mut warnings = self.doubts();
        warnings.extend(findings.warnings());
        let outcome = Outcome { results, summary, findings, warnings };
        let mut counts = SamplingCounts::read(folder)?;
        // A process that was killed has kept its answers, and not counted them.
        counts.tokens = counts.tokens.max(store.sampled_tokens());
        outcome.results.write(folder)?;
        let text = format!("{:#}\n", self.summary_json(&outcome, &counts));
        folder.write(SUMMARY, text.as_bytes())?;
        Ok(outcome)
    }

    fn summary_json(&self, outcome: &Outcome, counts: &SamplingCounts) -> Value {
        let Outcome { results, summary, .. } = outcome;
        let warnings: Vec<&str> = outcome.warnings.iter().map(|w| w.text.as_str()).collect();
        let listed = results.bad().take(MAX_LISTED);
        let bad: Vec<Value> =
            listed.map(|(place, cause)| json!({"row": place, "cause": cause})).collect();
        let mut json = json!({
            "task": self.task,
            "model": self.config.model,
            "num_samples": self.config.num_samples,
            "exclude_bad": self.config.exclude_bad,
        });
        let own = [
            ("answers", outcome.findings.to_json()),
            ("warnings", json!(warnings)),
            ("settings", json!(results.settings)),
            ("trained_as", results.trained_as.clone()),
            ("bad", json!(bad)),
            ("notes", json!(self.questions.notes)),
            ("sampling", json!(counts)),
        ];
        if let (Value::Object(json), Value::Object(figures)) = (&mut json, summary.to_json()) {
            json.extend(figures);
            json.extend(own.map(|(name, value)| (name.to_owned(), value)));
        }
        json
    }

    fn results(&self, store: &AnswerStore) -> Result<Results, EvalError> {
        let num_samples = self.config.num_samples;
        let mut results: Vec<Scored> = Vec::with_capacity(self.questions.rows.len() * num_samples);
        let mut answered: Vec<(&Question, &StoredAnswer)> = Vec::new();
        for (row, question) in self.questions.rows.iter().enumerate() {
            for sample in 0..num_samples {
                match (&question.sample, store.get(row, sample)) {
                    (Ok(_), Some(answer)) => answered.push((question, answer)),
                    (Err(cause), _) => results.push(scoring::bad(question, [row, sample], cause)),
                    (Ok(_), None) => {
                        let cause = store.bad(row).unwrap_or("not answered");
                        results.push(scoring::bad(question, [row, sample], cause));
                    }
                }
            }
        }
        results.extend(self.scorer.score(&answered, method_of(self.task))?);
        results.sort_by_key(|scored| (scored.row, scored.sample));
        for scored in &mut results {
            let subset = self.questions.rows[scored.row].subset;
            scored.subset.clone_from(&self.questions.subsets[subset]);
        }
        let mut results = Results {
            accuracy: 0.0,
            task: self.task,
            model: self.config.model.clone().unwrap_or_default(),
            num_samples,
            exclude_bad: self.config.exclude_bad,
            apply_exif: self.config.apply_exif,
            subsets: self.questions.subsets.clone(),
            settings: recorded(&self.config),
            trained_as: self.trained_as.clone(),
            results,
        };
        let all = results.counted().count();
        if all == 0 {
            return Err(EvalError::NoRows);
        }
        let right: u32 = results.counted().map(|s| u32::from(s.correct)).sum();
        results.accuracy = 100.0 * f64::from(right) / all as f64;
        Ok(results)
    }
}

fn decoding(config: &EvalConfig) -> Result<Decoding, EvalError> {
    let device = torch::parse_device(&config.device).map_err(EngineError::from)?;
    Ok(Decoding::new(config.cuda_graphs, device)?)
}

/// Of settings that are settled.
fn template(config: &EvalConfig) -> Result<PromptTemplate, EvalError> {
    let given = config.question_template.as_deref();
    Ok(PromptTemplate::resolve(given.unwrap_or_default())?)
}

fn refuse_all_bad(questions: &Questions) -> Result<(), EvalError> {
    let rows = questions.rows.len();
    match questions.bad().next() {
        Some((place, cause)) if questions.bad().count() == rows => {
            Err(EvalError::AllBad { rows, place: place.to_owned(), cause: cause.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Keeps answers in a folder.
struct FolderSink<'a> {
    questions: &'a Questions,
    total: usize,
    log: &'a ResultFolder,
    store: &'a mut AnswerStore,
    progress: &'a mut dyn Progress,
}

impl Sink for FolderSink<'_> {
    fn answer(&mut self, answer: Answer) -> Result<(), EvalError> {
        self.store.add(answer, self.questions)?;
        self.progress.on_answer(self.store.len(), self.total);
        Ok(())
    }

    fn bad(&mut self, row: usize, cause: String) -> Result<(), EvalError> {
        self.progress.on_bad(&self.questions.rows[row].place, &cause);
        self.store.note_bad(row, cause);
        Ok(())
    }

    fn sampled(&mut self, stats: &SampleStats, secs: f64) -> Result<(), EvalError> {
        let counts =
            SamplingCounts { tokens: stats.tokens, boundary_draws: stats.boundary_draws, secs };
        Ok(self.log.append(SAMPLING)?.write(&json!(counts))?)
    }
}
