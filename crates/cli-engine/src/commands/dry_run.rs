//! `--dry_run`: what keeps the work from beginning, found all at once before a model is read: rewards, model, data,
//! folders, evaluations.

use std::path::Path;

use anyhow::Result;
use base::model_folder::{is_adapter, read_family};
use base::run_folder::TRAINER_STATE;
use cli::commands::eval::check_comparison;
use cli::problems::Problems;
use cli::which_model::{Chosen, choose};
use config::{EvalConfig, GrpoConfig, PlanConfig, Resume, SftConfig, TrainingSections};
use data::template::template;
use data::{DataFamily, DataFiles};
use tch::Kind;
use torch::{check_kind, parse_device};
use train::reward_problems;

use super::training::Run;
use crate::model::kind;

/// What both trainers name; `thinks` says which template is asked for, `methods` how files are compared.
fn check_training(
    problems: &mut Problems,
    sections: &TrainingSections,
    thinks: bool,
    methods: Option<&str>,
) {
    let TrainingSections { model, data, run, start, machine, .. } = sections;
    let task = data.task_type.as_deref();
    // Whatever the family, the same can be wrong with it.
    let family = DataFamily::WITHOUT_MODEL;
    problems.note(template(&data.question_template, task, thinks, family));
    problems.note(engine::FastPathChoice::parse(&machine.fast_paths));
    check_device(problems, &machine.device, if model.bf16 { Kind::BFloat16 } else { Kind::Float });
    check_model(problems, &model.model_name_or_path, model.model_revision.as_deref());
    let folders = data.image_folders.as_deref();
    check_files(problems, "", &data.data_file_paths, folders, methods);
    check_output(problems, Path::new(&run.output_dir));
    if let Resume::From(folder) = &start.resume_from_checkpoint
        && !folder.join(TRAINER_STATE).is_dir()
    {
        problems.add(format!(
            "`resume_from_checkpoint`: `{}` is no checkpoint with a `{TRAINER_STATE}`",
            folder.display()
        ));
    }
    if let Some(folder) = machine.feature_cache_dir.as_deref().map(Path::new)
        && folder.exists()
        && !folder.is_dir()
    {
        problems.add(format!("`feature_cache_dir`: `{}` is not a folder", folder.display()));
    }
}

/// Looks at all that a run of `grpo` names.
///
/// # Errors
/// All that is wrong, in one message.
pub fn check_grpo(config: &GrpoConfig) -> Result<()> {
    let mut problems = Problems::default();
    for problem in reward_problems(config, true) {
        problems.note::<()>(Err(problem));
    }
    if let Some(path) = config.rewards.judge_prompt.as_deref().map(Path::new)
        && !path.is_file()
    {
        problems.add(format!("`judge_prompt`: no file `{}`", path.display()));
    }
    let methods = config.scoring.reward_method.as_deref();
    check_training(&mut problems, &config.training(), true, methods);
    check_evaluations(&mut problems, &Run::from(config));
    problems.done()
}

/// As [`check_grpo`], for `sft`.
///
/// # Errors
/// As [`check_grpo`].
pub fn check_sft(config: &SftConfig) -> Result<()> {
    let mut problems = Problems::default();
    check_training(&mut problems, &config.training(), config.sft.with_thinking, None);
    check_evaluations(&mut problems, &Run::from(config));
    problems.done()
}

/// As [`check_grpo`], for `plan`.
///
/// # Errors
/// As [`check_grpo`].
pub fn check_plan(config: &PlanConfig) -> Result<()> {
    check_grpo(&config.grpo)
}

/// As [`check_grpo`], for `eval`: the model, adapter or not, its questions, the folder of the results.
///
/// # Errors
/// As [`check_grpo`].
pub fn check_eval(config: &EvalConfig) -> Result<()> {
    if !config.run.compare.is_empty() {
        return check_comparison(config);
    }
    let mut problems = Problems::default();
    let model = config.asked.model.as_deref().unwrap_or_default();
    let chosen = problems.note(choose(model, config.load.model_revision.as_deref()));
    if let Some(Chosen::Folder(folder)) = chosen.filter(|chosen| !chosen.is_adapter()) {
        problems.note(read_family(&folder));
    }
    problems.note(engine::FastPathChoice::parse(&config.machine.fast_paths));
    check_device(&mut problems, &config.machine.device, kind(config.load.dtype));
    let questions = config.questions.data_file_paths.as_deref().unwrap_or_default();
    let folders = config.questions.image_folders.as_deref();
    check_files(&mut problems, "", questions, folders, config.references.reward_method.as_deref());
    check_output(&mut problems, Path::new(config.run.output_dir.as_deref().unwrap_or_default()));
    problems.done()
}

fn check_device(problems: &mut Problems, name: &str, kind: Kind) {
    if let Some(device) = problems.note(parse_device(name)) {
        problems.note(check_kind(device, kind));
    }
}

/// A model on the hub is looked for when the run begins.
fn check_model(problems: &mut Problems, name: &str, revision: Option<&str>) {
    let Some(Chosen::Folder(folder)) = problems.note(choose(name, revision)) else {
        return;
    };
    if is_adapter(&folder) {
        problems.add(format!(
            "model `{name}` is an adapter: training starts from whole models\nhint: `vlm-r1 merge` makes one of it"
        ));
        return;
    }
    problems.note(read_family(&folder));
    let is_weights = |path: &Path| path.extension().is_some_and(|e| e == "safetensors");
    let mut files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    if !files.any(|file| is_weights(&file.path())) {
        problems.add(format!("model `{name}`: no `*.safetensors` in {}", folder.display()));
    }
}

fn check_files(
    problems: &mut Problems,
    of: &str,
    files: &str,
    folders: Option<&str>,
    methods: Option<&str>,
) {
    let Some(files) = problems.note(DataFiles::from_lists(files, folders, methods)) else {
        return;
    };
    for file in files.files {
        let path = file.path.display();
        match std::fs::File::open(&file.path) {
            Err(error) => problems.add(format!("{of}`data_file_paths`: `{path}`: {error}")),
            Ok(_) if file.path.is_dir() => {
                problems
                    .add(format!("{of}`data_file_paths`: `{path}` is a folder, expected a file"));
            }
            Ok(_) => {}
        }
        if let Some(folder) = file.image_folder.filter(|folder| !folder.is_dir()) {
            problems.add(format!("{of}`image_folders`: no folder `{}`", folder.display()));
        }
    }
}

/// Whether a run could be written there.
fn check_output(problems: &mut Problems, folder: &Path) {
    // The nearest that is there: a folder is made below a folder alone.
    let mut place = Some(folder);
    while let Some(path) = place.filter(|path| path.symlink_metadata().is_err()) {
        place = path.parent();
    }
    let place = place.filter(|path| *path != Path::new(""));
    if let Some(path) = place.filter(|path| !path.is_dir()) {
        problems.add(format!("`output_dir`: `{}` is not a folder", path.display()));
        return;
    }
    let lock = folder.join(".lock");
    if lock.is_dir() {
        problems.add(format!(
            "{}: a folder, expected the file that keeps others out\nhint: remove it, or give another --output_dir",
            lock.display()
        ));
    }
}

fn check_evaluations(problems: &mut Problems, run: &Run) {
    let evaluations = problems.note(run.read_evaluations()).unwrap_or_default();
    for named in evaluations {
        let EvalConfig { questions, references, .. } = &named.config;
        check_files(
            problems,
            &format!("evaluation `{}`: ", named.name),
            questions.data_file_paths.as_deref().unwrap_or_default(),
            questions.image_folders.as_deref(),
            references.reward_method.as_deref(),
        );
    }
}
