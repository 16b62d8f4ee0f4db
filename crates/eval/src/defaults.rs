//! Defaults of the settings that an evaluation was not given, so that the folder of the results holds the value of each.

use config::{BoxFormat, EvalConfig, EvalTask, Extractor, ImageProcessor};
use data::template::template_name;
use data::{DataFamily, Processor};
use rewards::{BoxUnits, RewardFamily};
use serde_json::{Map, Value, json};

/// Longest completion that is a box alone, tokens: VLM-R1's for `rec`.
const LONGEST_BOX: usize = 256;
/// Longest completion that thinks first, tokens: that of training.
const LONGEST: usize = 2048;

/// The template that asks for a box alone.
const PLAIN_BOX: &str = "sft_rec";

/// Settings that change no metric, and those that name what is compared.
const NO_MATTER: [&str; 21] = [
    "model",
    "model_revision",
    "base_model",
    "output_dir",
    "task",
    "device",
    "num_threads",
    "dataloader_num_workers",
    "max_concurrent_completions",
    "cuda_graphs",
    "fast_paths",
    "dry_run",
    "html_rows",
    "html",
    "allow_changed",
    "compare",
    "reward_workers",
    "reward_timeout_secs",
    "reward_python",
    "judge_concurrency",
    "judge_cache",
];

/// `config` with a value for each setting that it leaves open.
pub(crate) fn with_defaults(
    config: &EvalConfig,
    task: EvalTask,
    processor: &Processor,
    family: RewardFamily,
) -> EvalConfig {
    let mut config = config.clone();
    if matches!(task, EvalTask::Rec | EvalTask::Ovd | EvalTask::OvdEval) {
        let [answer, solution] = box_units(&config).on_image(family);
        config.rewards.box_format = Some(answer);
        // Pixels are what is taken without it.
        if solution != BoxFormat::Absolute {
            config.rewards.solution_box_format = Some(solution);
        }
    }
    if task == EvalTask::Rec {
        config.scoring.extractor.get_or_insert(Extractor::Thinking);
    }
    let own = default_template(task, config.scoring.extractor, processor.family());
    config.questions.question_template.get_or_insert(own.to_owned());
    // By the template, not the extractor: other eyes on the completions that are there do not make them longer.
    let longest = match config.questions.question_template.as_deref() {
        Some(PLAIN_BOX) => LONGEST_BOX,
        _ => LONGEST,
    };
    config.sampling.max_new_tokens.get_or_insert(longest);
    config.asked.image_processor.get_or_insert(ImageProcessor::Torchvision);
    let bounds = processor.image_processor().kind().pixel_bounds();
    config.load.min_pixels = Some(bounds.shortest_edge as usize);
    config.load.max_pixels = Some(bounds.longest_edge as usize);
    config
}

/// The units of boxes that the settings name.
pub(crate) fn box_units(config: &EvalConfig) -> BoxUnits {
    BoxUnits { answer: config.rewards.box_format, solution: config.rewards.solution_box_format }
}

/// The template of a task in a model's family; that of `rec` asks for what the extractor reads.
pub fn default_template(
    task: EvalTask,
    extractor: Option<Extractor>,
    family: DataFamily,
) -> &'static str {
    let task = match (task, extractor) {
        (EvalTask::Rec, Some(Extractor::Baseline)) => return PLAIN_BOX,
        (EvalTask::Rec, _) => Some("rec"),
        (EvalTask::Ovd | EvalTask::OvdEval, _) => Some("odLength"),
        _ => None,
    };
    template_name(None, task, true, family)
}

/// What of `config` may change metrics, and the program that made them.
pub(crate) fn recorded(config: &EvalConfig) -> Map<String, Value> {
    let mut settings = match json!(config) {
        Value::Object(settings) => settings,
        _ => Map::new(),
    };
    settings.retain(|name, _| !NO_MATTER.contains(&name.as_str()));
    if config.sampling.temperature == 0.0 {
        settings.remove("seed");
    }
    settings.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    settings.insert("commit".into(), base::run_folder::commit().into());
    settings
}
