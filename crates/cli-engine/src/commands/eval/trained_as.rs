//! How a model was trained, as the folder of its run says it, and what of that an evaluation takes over
//! where it is not told otherwise: it asks as the training asked.

use std::fs;
use std::path::{Path, PathBuf, absolute};

use config::{Config, EvalConfig, EvalTask, parse_mapping};
use data::template::template_name;
use data::{DataFamily, PromptTemplate};
use serde_json::{Map, Value, json};

/// Where a run keeps its settings, and a merged model those of the run of its adapter.
const CONFIG: &str = "config.yaml";
/// Name of the settings of training in the folder of a merged model.
pub const TRAINED_AS: &str = "trained_as.yaml";

/// The settings of a run of `grpo` or `sft`.
pub struct TrainedAs {
    source: String,
    settings: Map<String, Value>,
    /// Whether it learnt by rewards, else from true answers.
    by_rewards: bool,
}

/// What an evaluation has from the training of its model.
#[derive(Debug, Default)]
pub struct Following {
    source: String,
    taken: Map<String, Value>,
    /// Settings that were given and are not those of the training, with these.
    against: Vec<(&'static str, Value, Value)>,
    /// Why template and lengths were not taken.
    other_task: Option<String>,
}

impl TrainedAs {
    /// The training of the model in `model`, where that is a checkpoint in the folder of its run, or merged of one;
    /// a file that cannot be read is named, and no reason to stop.
    pub fn of_model(model: &Path) -> Option<Self> {
        let file = file_of(model)?;
        let source = file.display().to_string();
        let text = fs::read_to_string(&file).map_err(|error| error.to_string());
        let settings = text.and_then(|text| {
            let settings = parse_mapping(&file, &text);
            settings.map_err(|error| error.to_string())
        });
        match settings {
            Ok(settings) => Self::of_settings(source, settings),
            Err(error) => {
                base::say!("warning: how the model was trained is not known: {source}: {error}");
                None
            }
        }
    }

    /// The run in `folder` that is under way, by its settings.
    pub fn of_run(folder: &str, config: &impl Config) -> Option<Self> {
        let source = Path::new(folder).join(CONFIG).display().to_string();
        match json!(config) {
            Value::Object(settings) => Self::of_settings(source, settings),
            _ => None,
        }
    }

    /// None where these are not the settings of a training.
    fn of_settings(source: String, settings: Map<String, Value>) -> Option<Self> {
        let has = |key: &str| settings.contains_key(key);
        let (by_rewards, from_answers) = (has("num_generations"), has("with_thinking"));
        (has("model_name_or_path") && by_rewards != from_answers).then_some(Self {
            source,
            settings,
            by_rewards,
        })
    }

    /// Gives `config` the settings of the training for those that it leaves open; `family` is the model's.
    pub fn lay_under(&self, config: &mut EvalConfig, family: DataFamily) -> Following {
        let mut following = Following { source: self.source.clone(), ..Following::default() };
        let of = |key: &str| self.settings.get(key).filter(|value| !value.is_null());
        let template = self.template(family);
        following.other_task = self.other_task(config, template);
        if following.other_task.is_none() {
            let extractor = config.scoring.extractor;
            let own = eval::default_template(EvalTask::Rec, extractor, family);
            self.lay_form(config, [template, own], &mut following);
            self.lay_units(config, &mut following);
            let longest = of("max_completion_length");
            let trained = longest.and_then(Value::as_u64).unwrap_or_default();
            // Longer completions than in training lose nothing.
            if config.sampling.max_new_tokens.is_none_or(|given| (given as u64) < trained) {
                following.lay("max_new_tokens", longest, &mut config.sampling.max_new_tokens);
            }
        }
        let images = of("image_processor");
        following.lay("image_processor", images, &mut config.asked.image_processor);
        following.lay("max_pixels", of("max_pixels"), &mut config.load.max_pixels);
        following.lay("min_pixels", of("min_pixels"), &mut config.load.min_pixels);
        following
    }

    /// Template and extractor: where the second is given its own template asks for what it reads.
    fn lay_form(
        &self,
        config: &mut EvalConfig,
        [template, own]: [&str; 2],
        following: &mut Following,
    ) {
        let resolved = match PromptTemplate::resolve(template) {
            Ok(resolved) => resolved,
            Err(error) => {
                base::say!(
                    "warning: the template of the training is not taken: {}: {error}",
                    self.source
                );
                return;
            }
        };
        let thinks = resolved.apply("").contains("<answer>");
        let extractor = json!(if thinks { "thinking" } else { "baseline" });
        let is_rec = config.questions.task == Some(EvalTask::Rec);
        if is_rec
            && config.questions.question_template.is_none()
            && config.scoring.extractor.is_some()
        {
            config.questions.question_template = Some(own.to_owned());
        }
        if is_rec {
            following.lay("extractor", Some(&extractor), &mut config.scoring.extractor);
        }
        let template = json!(template);
        following.lay(
            "question_template",
            Some(&template),
            &mut config.questions.question_template,
        );
    }

    fn lay_units(&self, config: &mut EvalConfig, following: &mut Following) {
        use EvalTask::{Gui, Ovd, OvdEval, Rec, Reward};
        if !matches!(config.questions.task, Some(Rec | Ovd | OvdEval | Gui | Reward)) {
            return;
        }
        let of = |key: &str| self.settings.get(key).filter(|value| !value.is_null());
        let absolute = json!("absolute");
        let units = match self.by_rewards {
            true => of("box_format"),
            // What it learnt to write are the boxes of the rows.
            false => Some(&absolute),
        };
        following.lay("box_format", units, &mut config.rewards.box_format);
        let rows = of("solution_box_format");
        following.lay("solution_box_format", rows, &mut config.rewards.solution_box_format);
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(Value::as_str)
    }

    fn template(&self, family: DataFamily) -> &str {
        let thinks = self.settings.get("with_thinking").and_then(Value::as_bool);
        let thinks = self.by_rewards || thinks.unwrap_or_default();
        template_name(self.text("question_template"), self.text("task_type"), thinks, family)
    }

    /// What the model was trained for, where that is not what it is asked.
    fn other_task(&self, config: &EvalConfig, template: &str) -> Option<String> {
        let own = match template {
            "rec" | "sft_rec" => Some("rec"),
            "odLength" | "ic" => Some(template),
            _ => self.text("task_type"),
        }?;
        let is_same = match config.questions.task? {
            EvalTask::Rec => own == "rec",
            EvalTask::Ovd | EvalTask::OvdEval => own == "odLength",
            EvalTask::Reward => {
                config.references.task_type.as_deref().is_none_or(|task| task == own)
            }
            _ => !["rec", "odLength", "ic"].contains(&own),
        };
        (!is_same).then(|| own.to_owned())
    }
}

impl Following {
    /// Gives `slot` the value of the training, or notes that it has another.
    fn lay<T>(&mut self, name: &'static str, trained: Option<&Value>, slot: &mut Option<T>)
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let Some(trained) = trained else { return };
        match slot {
            Some(given) if json!(given) != *trained => {
                self.against.push((name, json!(given), trained.clone()));
            }
            Some(_) => {}
            None => match serde_json::from_value(trained.clone()) {
                Ok(value) => {
                    *slot = Some(value);
                    self.taken.insert(name.to_owned(), trained.clone());
                }
                Err(error) => {
                    base::say!(
                        "warning: `{name}` of the training is not taken: {}: {error}",
                        self.source
                    );
                }
            },
        }
    }

    /// Logs what was taken from where, and what was given against it.
    pub fn log(&self, label: &str) {
        if !self.taken.is_empty() {
            let taken = self.taken.iter();
            let taken: Vec<String> =
                taken.map(|(name, value)| format!("{name} {}", shown(value))).collect();
            base::say!("{label}as the model was trained ({}): {}", self.source, taken.join(", "));
        }
        if let Some(task) = &self.other_task {
            base::say!(
                "{label}the model was trained for `{task}` ({}): template and lengths are those of the task that is asked",
                self.source
            );
        }
        if !self.against.is_empty() {
            let against = self.against.iter();
            let against: Vec<String> = against
                .map(|(name, given, trained)| {
                    format!("--{name} {}, not {}", shown(given), shown(trained))
                })
                .collect();
            base::say!(
                "warning: {label}otherwise than the model was trained ({}): {}",
                self.source,
                against.join("; ")
            );
        }
    }

    /// For the results.
    pub fn to_json(&self) -> Value {
        let against = self.against.iter().map(|(name, given, trained)| {
            let both = json!({"given": given, "trained": trained});
            ((*name).to_owned(), both)
        });
        json!({
            "file": self.source,
            "taken": self.taken,
            "against": Value::Object(against.collect()),
            "other_task": self.other_task,
        })
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains(char::is_whitespace) => format!("`{text}`"),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The settings beside a checkpoint, or those that a merged model carries.
pub fn file_of(model: &Path) -> Option<PathBuf> {
    let merged = model.join(TRAINED_AS);
    if merged.is_file() {
        return Some(merged);
    }
    // As the user calls it, then where links lead.
    let places = [absolute(model).ok(), model.canonicalize().ok()];
    let given = model.is_dir().then(|| model.to_owned());
    let places = given.into_iter().chain(places.into_iter().flatten());
    places
        .filter(|place| {
            let name = place.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("checkpoint-"))
        })
        .filter_map(|place| Some(place.parent()?.join(CONFIG)))
        .find(|file| file.is_file())
}
