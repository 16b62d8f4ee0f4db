//! An evaluation from its settings to its metrics, in a folder from which it can resume.

use std::path::Path;
use std::sync::Arc;

use base::Example;
use base::run_folder::ResultFolder;
use config::{EvalConfig, EvalTask, changed_settings, to_yaml};
use data::{Processor, PromptTemplate};
use rewards::RewardFamily;
use serde_json::{Value, json};

use crate::EvalError;
use crate::completions::{CompletionStore, SamplingCounts, StoredCompletion};
use crate::defaults::{recorded, with_defaults};
use crate::findings::{Doubt, Findings, Warning};
use crate::questions::{Question, Questions, Truth};
use crate::results::{Results, Scored};
use crate::scoring::{self, Scorer, method_of};
use crate::summary::Summary;

/// Name of the file of metrics.
pub const SUMMARY: &str = "summary.json";
/// Bad rows that the summary lists.
const MAX_LISTED: usize = 20;

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
    /// Every completion with its score.
    pub results: Results,
    /// The metrics.
    pub summary: Summary,
    /// What was counted of the completions.
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
        family: RewardFamily,
    ) -> Result<Self, EvalError> {
        let task = config.questions.task.ok_or_else(|| EvalError::Setting {
            name: "task",
            cause: "expected a task".to_owned(),
        })?;
        let config = &with_defaults(config, task, &processor, family);
        let patch_size = processor.image_processor().kind().patch_size() as usize;
        let cache = folder.join("judge_cache");
        let scorer = Scorer::new(config, family, patch_size, cache)?;
        let check = |example: &Example| scorer.check(example, method_of(task));
        let questions = Questions::load(config, &processor, &check)?;
        processor.expect_answers(config.sampling.max_new_tokens.unwrap_or_default());
        // Found out before a model is loaded.
        template(config)?;
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

    /// What makes all completions doubtful before they are there.
    pub fn doubts(&self) -> Vec<Warning> {
        let doubts =
            [(Doubt::Rewards, self.missing_box_reward()), (Doubt::Truths, self.truths_in_shares())];
        let doubts = doubts.into_iter();
        doubts.filter_map(|(doubt, text)| Some(Warning { doubt, text: text? })).collect()
    }

    fn missing_box_reward(&self) -> Option<String> {
        let config = &self.config;
        // A method of comparison was chosen.
        if self.task != EvalTask::Reward || config.references.reward_method.is_some() {
            return None;
        }
        let (task, funcs) = (config.references.task_type.as_deref(), &config.rewards.reward_funcs);
        let is_customized = config.rewards.is_reward_customized_from_vlm_module;
        rewards::missing_box_reward(task, funcs, is_customized).or_else(|| {
            let boxes = rewards::BoxAnswers::new(task, funcs, is_customized);
            let rows = self.questions.rows.iter();
            for example in rows.filter_map(|row| row.example.as_ref().ok()) {
                boxes.add(&example.solution, example.accu_reward_method.as_deref());
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
        self.config.asked.model = Some(model);
        self.config.run.output_dir = Some(folder.display().to_string());
    }

    /// What turns questions into prompts.
    pub fn processor(&self) -> &Arc<Processor> {
        &self.processor
    }

    /// What stands round a question.
    ///
    /// # Errors
    /// None: it was resolved when the evaluation was set up.
    pub fn template(&self) -> Result<PromptTemplate, EvalError> {
        template(&self.config)
    }

    /// The questions.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Opens the completions of a folder, and writes the settings to it where it is new.
    ///
    /// # Errors
    /// Completions that were given under other settings or to other questions.
    pub fn open(&self, folder: &ResultFolder) -> Result<CompletionStore, EvalError> {
        if let Some(yaml) = folder.config()? {
            let goes_on = self.config.run.allow_changed;
            let changes = match changed_settings(&folder.config_path(), &yaml, &self.config) {
                Err(error) if goes_on => {
                    let cause = error.to_string();
                    let cause = cause.split("\nhint: ").next().unwrap_or_default();
                    base::say!("warning: what the settings were is not known: {cause}");
                    Vec::new()
                }
                changes => changes?,
            };
            if !changes.is_empty() && !goes_on {
                let line =
                    |c: &config::Change| format!("`{}`: was {}, is {}", c.key, c.before, c.now);
                return Err(EvalError::Changed {
                    folder: folder.path().to_owned(),
                    changes: changes.iter().map(line).collect(),
                });
            }
        }
        let longest = self.config.sampling.max_new_tokens.unwrap_or_default();
        let num_samples = self.config.sampling.num_samples;
        let store = CompletionStore::open(folder, &self.questions, num_samples, longest)?;
        folder.write_config(&to_yaml(&self.config)?)?;
        Ok(store)
    }

    /// Whether completions are missing.
    pub fn is_complete(&self, store: &CompletionStore) -> bool {
        let num_samples = self.config.sampling.num_samples;
        store.todo(&self.questions, num_samples).is_empty()
    }

    /// Scores all completions, sums them up and writes both.
    ///
    /// # Errors
    /// A reward that fails, a metric that has no value, a file that cannot be written.
    pub fn finish(
        &self,
        folder: &ResultFolder,
        store: &CompletionStore,
    ) -> Result<Outcome, EvalError> {
        let results = self.results(store)?;
        let summary = Summary::of(&results)?;
        let findings = Findings::of(&results, &self.config, self.scorer.units());
        let mut warnings = self.doubts();
        warnings.extend(findings.warnings());
        let outcome = Outcome { results, summary, findings, warnings };
        let mut counts = SamplingCounts::read(folder)?;
        // A process that was killed has kept its completions, and not counted them.
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
            "model": self.config.asked.model,
            "num_samples": self.config.sampling.num_samples,
            "exclude_bad": self.config.scoring.exclude_bad,
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
        if let (Value::Object(json), Value::Object(metrics)) = (&mut json, summary.to_json()) {
            json.extend(metrics);
            json.extend(own.map(|(name, value)| (name.to_owned(), value)));
        }
        json
    }

    fn results(&self, store: &CompletionStore) -> Result<Results, EvalError> {
        let num_samples = self.config.sampling.num_samples;
        let mut results: Vec<Scored> = Vec::with_capacity(self.questions.rows.len() * num_samples);
        let mut answered: Vec<(&Question, &StoredCompletion)> = Vec::new();
        for (row, question) in self.questions.rows.iter().enumerate() {
            for index in 0..num_samples {
                match (&question.example, store.get(row, index)) {
                    (Ok(_), Some(completion)) => answered.push((question, completion)),
                    (Err(cause), _) => results.push(scoring::bad(question, [row, index], cause)),
                    (Ok(_), None) => {
                        let cause = store.bad(row).unwrap_or("not answered");
                        results.push(scoring::bad(question, [row, index], cause));
                    }
                }
            }
        }
        results.extend(self.scorer.score(&answered, method_of(self.task))?);
        results.sort_by_key(|scored| (scored.row, scored.completion_index));
        for scored in &mut results {
            let subset = self.questions.rows[scored.row].subset;
            scored.subset.clone_from(&self.questions.subsets[subset]);
        }
        let mut results = Results {
            accuracy: 0.0,
            task: self.task,
            model: self.config.asked.model.clone().unwrap_or_default(),
            num_samples,
            exclude_bad: self.config.scoring.exclude_bad,
            apply_exif: self.config.load.apply_exif,
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

/// Of settings with their defaults.
fn template(config: &EvalConfig) -> Result<PromptTemplate, EvalError> {
    let given = config.questions.question_template.as_deref();
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
