//! The runs that studies are made of, of one seed each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tiny::model::ModelShape;
use tiny::tokenizer::{MERGE_SIZE, PATCH_SIZE};

use crate::plan::{Grpo, Sft};
use crate::tokenizer_corpus::tokenizer_corpus;
use crate::workspace::Workspace;
use crate::{detection, grounding};

/// One seed's runs.
#[derive(Clone, Copy)]
pub struct Runs<'a> {
    /// Where they happen.
    pub workspace: &'a Workspace,
    /// The seed.
    pub seed: u64,
}

/// What a run starts from and learns on.
pub struct Task<'a> {
    /// Folder of the run, below that of the seed.
    pub name: &'a str,
    /// Model folder.
    pub model: &'a Path,
    /// File of rows.
    pub rows: PathBuf,
    /// Name of the question template.
    pub template: &'a str,
}

impl Runs<'_> {
    fn folder(&self, name: &str) -> String {
        format!("seed-{}/{name}", self.seed)
    }

    /// Where a run of this seed lies.
    pub fn at(&self, name: &str) -> PathBuf {
        self.workspace.out.join(self.folder(name))
    }

    /// The dataset of grounding.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn grounding(&self) -> Result<PathBuf> {
        let folder = self.at("grounding/data");
        self.workspace.once(&folder.join("base.jsonl"), || {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            grounding::write(&folder, &self.workspace.plan.grounding, self.seed)
        })?;
        Ok(folder)
    }

    /// The dataset of detection.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn detection(&self) -> Result<PathBuf> {
        let folder = self.at("detection/data");
        self.workspace.once(&folder.join("base.jsonl"), || {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            detection::write(&folder, &self.workspace.plan.detection, self.seed)
        })?;
        Ok(folder)
    }

    fn blank(&self, size: &str, shape: &ModelShape) -> Result<PathBuf> {
        let folder = self.at(&format!("blank-{size}"));
        self.workspace.once(&folder.join("model.safetensors"), || {
            tiny::model::write(&folder, shape, &tokenizer_corpus(), self.seed)
        })?;
        Ok(folder)
    }

    /// The base model of grounding: it answers with a box alone or with thinking, as it is asked.
    ///
    /// # Errors
    /// A run that fails.
    pub fn grounding_base(&self) -> Result<PathBuf> {
        let data = self.grounding()?;
        let (size, shape) = &self.workspace.plan.shapes[1];
        let task = Task {
            name: "grounding/base",
            model: &self.blank(size, shape)?,
            rows: data.join("base.jsonl"),
            template: "none",
        };
        self.sft(&task, &self.workspace.plan.grounding_base, warm_linear())
    }

    /// The base model of detection of one size.
    ///
    /// # Errors
    /// A run that fails.
    pub fn detection_base(&self, size: usize) -> Result<PathBuf> {
        let data = self.detection()?;
        let (size, shape) = &self.workspace.plan.shapes[size];
        let task = Task {
            name: &format!("detection/base-{size}"),
            model: &self.blank(size, shape)?,
            rows: data.join("base.jsonl"),
            template: "odLength",
        };
        self.sft(&task, &self.workspace.plan.detection_base, warm_linear())
    }

    fn common(&self, task: &Task<'_>, steps: usize, save_steps: usize) -> Value {
        let images = task.rows.with_file_name("images");
        json!({
            "model_name_or_path": task.model,
            "data_file_paths": task.rows,
            "image_folders": images,
            "question_template": task.template,
            "min_pixels": (PATCH_SIZE * MERGE_SIZE).pow(2),
            "adam_beta2": 0.95,
            "seed": self.seed,
            "save_steps": save_steps,
            "max_steps": steps,
            "num_threads": 1,
            "dataloader_num_workers": 1,
        })
    }

    /// Supervised training; the folder of its last checkpoint.
    ///
    /// # Errors
    /// A run that fails.
    pub fn sft(&self, task: &Task<'_>, sft: &Sft, more: Value) -> Result<PathBuf> {
        let save_steps = self.workspace.plan.eval_every.min(sft.steps);
        let settings = merged(
            self.common(task, sft.steps, save_steps),
            json!({"per_device_train_batch_size": sft.batch, "learning_rate": sft.lr}),
        );
        let folder = self.folder(task.name);
        let run = self.workspace.run("sft", &folder, merged(settings, more))?;
        Ok(run.join(format!("checkpoint-{}", sft.steps)))
    }

    /// Reinforcement learning; the folder of its last checkpoint.
    ///
    /// # Errors
    /// A run that fails.
    pub fn grpo(&self, task: &Task<'_>, grpo: &Grpo, more: Value) -> Result<PathBuf> {
        let group_size = self.workspace.plan.group_size;
        let save_steps = self.workspace.plan.eval_every.min(grpo.steps);
        let settings = merged(
            self.common(task, grpo.steps, save_steps),
            json!({
                "per_device_train_batch_size": grpo.prompts * group_size,
                "num_generations": group_size,
                "learning_rate": grpo.lr,
                "warmup_steps": 10,
                "max_completion_length": grpo.max_completion_length,
                "reward_funcs": ["accuracy", "format"],
            }),
        );
        let folder = self.folder(task.name);
        let run = self.workspace.run("grpo", &folder, merged(settings, more))?;
        Ok(run.join(format!("checkpoint-{}", grpo.steps)))
    }

    /// Reinforcement learning of detection from the base model of `size`, on the file `rows` of the
    /// dataset; the folder of its last checkpoint.
    ///
    /// # Errors
    /// A run that fails.
    pub fn detection_grpo(
        &self,
        name: &str,
        size: usize,
        rows: &str,
        method: &str,
        beta: f64,
    ) -> Result<PathBuf> {
        let task = Task {
            name,
            model: &self.detection_base(size)?,
            rows: self.detection()?.join(rows),
            template: "odLength",
        };
        self.grpo(
            &task,
            &self.workspace.plan.detection_grpo,
            json!({"reward_method": method, "beta": beta, "save_total_limit": 1}),
        )
    }

    /// Evaluates the model in `model` on all held-out parts of grounding.
    ///
    /// # Errors
    /// A run that fails.
    pub fn eval_grounding(&self, name: &str, model: &Path, extractor: &str) -> Result<Metrics> {
        let data = self.grounding()?;
        let files = grounding::TEST_PARTS.map(|part| {
            let file = data.join(format!("{part}.jsonl"));
            file.display().to_string()
        });
        let images = data.join("images").display().to_string();
        let settings = json!({
            "model": model,
            "task": "rec",
            "extractor": extractor,
            "data_file_paths": files.join(":"),
            "image_folders": vec![images; files.len()].join(":"),
            "max_new_tokens": self.workspace.plan.grounding_grpo.max_completion_length,
            "html_rows": 40,
            "seed": self.seed,
            "num_threads": 1,
        });
        let folder = self.folder(&format!("grounding/eval/{name}"));
        Metrics::read(&self.workspace.run("eval", &folder, settings)?)
    }

    /// Evaluates the model in `model` on the held-out images of detection.
    ///
    /// # Errors
    /// A run that fails.
    pub fn eval_detection(&self, name: &str, model: &Path) -> Result<Metrics> {
        let data = self.detection()?;
        let settings = json!({
            "model": model,
            "task": "ovd",
            "labels": "image",
            "data_file_paths": data.join("test.json"),
            "image_folders": data.join("images"),
            "max_new_tokens": self.workspace.plan.detection_grpo.max_completion_length,
            "html_rows": 40,
            "seed": self.seed,
            "num_threads": 1,
        });
        let folder = self.folder(&format!("detection/eval/{name}"));
        Metrics::read(&self.workspace.run("eval", &folder, settings)?)
    }
}

/// From nothing to a model: linear, with a warm-up, keeping the last checkpoint alone.
fn warm_linear() -> Value {
    json!({
        "with_thinking": true,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "warmup_steps": 50,
        "save_total_limit": 1,
    })
}

/// `base` with the fields of `more` over its own.
fn merged(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

/// The metrics of an evaluation.
#[derive(Clone, Debug)]
pub struct Metrics(Map<String, Value>);

impl Metrics {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("summary.json");
        let context = || path.display().to_string();
        let text = fs::read_to_string(&path).with_context(context)?;
        Ok(Self(serde_json::from_str(&text).with_context(context)?))
    }

    /// A metric of all files.
    ///
    /// # Errors
    /// An evaluation without it.
    pub fn get(&self, metric: &str) -> Result<f64> {
        self.pick(&["metrics", metric, "mean"])
    }

    /// A metric of one file.
    ///
    /// # Errors
    /// An evaluation without it.
    pub fn part(&self, part: &str, metric: &str) -> Result<f64> {
        self.pick(&["subsets", part, metric, "mean"])
    }

    fn pick(&self, path: &[&str]) -> Result<f64> {
        let mut at = self.0.get(path[0]);
        for key in &path[1..] {
            at = at.and_then(|value| value.get(key));
        }
        at.and_then(Value::as_f64)
            .with_context(|| format!("an evaluation without {}", path.join("/")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_files_and_of_all() {
        let value =
            json!({"metrics": {"ap": {"mean": 0.5}}, "subsets": {"a": {"ap": {"mean": 0.25}}}});
        let metrics = Metrics(value.as_object().unwrap().clone());
        assert_eq!(metrics.get("ap").unwrap(), 0.5);
        assert_eq!(metrics.part("a", "ap").unwrap(), 0.25);
        let error = metrics.part("b", "ap").unwrap_err().to_string();
        assert!(error.contains("subsets/b/ap"), "{error}");
    }
}
