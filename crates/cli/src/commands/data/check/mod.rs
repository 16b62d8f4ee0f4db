//! `data check`: flags to one pass over the data, and what is said of it.

mod text;
mod true_scores;

use base::console::count;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use base::run_folder::StopFlag;
use config::DataCheckConfig;
use data::check::{CheckOptions, CheckReport, RowProbe, SeenRow, check};
use data::image::ImageOptions;
use data::{DataFamily, DataFiles, ImageProcessor, Processor, ProcessorOptions, RowChecks};
use indicatif::{ProgressBar, ProgressStyle};
use pages::data_check::PageRows;
use rewards::{BoxUnits, RewardFamily};

use crate::signals::{self, Stopped};
use crate::{hub, output};
use true_scores::TrueScores;

const TEMPLATE: &str = "{pos} rows {spinner} {msg}";

/// Reads all rows and images and says what is wrong with them.
///
/// # Errors
/// Settings that mean nothing; data in which errors were found, or, with `strict`, warnings.
pub fn data_check(config: &DataCheckConfig) -> Result<()> {
    let stop = signals::stop_flag("stopping; what was found so far is told")?;
    let train = DataFiles::from_lists(
        &config.data_file_paths,
        config.image_folders.as_deref(),
        config.reward_method.as_deref(),
    )?;
    let test = config
        .test_file_paths
        .as_ref()
        .map(|files| DataFiles::from_lists(files, config.test_image_folders.as_deref(), None));
    let test = test.transpose()?;
    for path in [&config.html, &config.json].into_iter().flatten() {
        output::check_folder(path)?;
    }
    let (options, told) = options(config)?;
    let mut shown = PageRows::new(config);
    let report = pass(&train, test.as_ref(), &options, &stop, &mut shown)?;
    // Rows may hold what a terminal obeys.
    print(&base::console::printable(&text::text(&report, &told)))?;
    if let Some(path) = &config.json {
        let report = serde_json::to_value(&report)?;
        output::write_whole(Path::new(path), format!("{report:#}\n").as_bytes())?;
    }
    if let Some(path) = &config.html {
        shown.page(&report, &told.tried).write(Path::new(path))?;
    }
    verdict(&report, config.strict)
}

/// Fails where the data should not be trained on.
fn verdict(report: &CheckReport, is_strict: bool) -> Result<()> {
    let (errors, warnings) = (report.errors, report.warnings);
    if report.stopped {
        bail!(Stopped("stopped: the rest of the rows was not looked at".into()));
    }
    if errors > 0 || (is_strict && warnings > 0) {
        bail!("{} and {} in the data", count(errors, "error"), count(warnings, "warning"));
    }
    Ok(())
}

/// What the text says of how rows were looked at.
struct Told {
    /// Names of the rewards that true answers are scored by.
    tried: Vec<String>,
    /// How the boxes of data and model are taken; none without a model.
    boxes: Option<String>,
}

/// The options, and what is said of them.
fn options(config: &DataCheckConfig) -> Result<(CheckOptions, Told)> {
    let folder = config.model_name_or_path.as_deref();
    let folder = folder.map(|name| hub::description_folder(name, None)).transpose()?;
    let processor = folder.as_deref().map(|folder| processor(config, folder));
    let processor = processor.transpose()?;
    let is_rec =
        config.is_reward_customized_from_vlm_module && config.task_type.as_deref() == Some("rec");
    let mut rows =
        RowChecks { expect_box: is_rec, follow_links: config.follow_links, ..RowChecks::default() };
    if let Some(processor) = &processor {
        rows.reserve(processor.tokenizer().reserved_tokens());
    }
    let image_processor = match &processor {
        Some(processor) => processor.image_processor().clone(),
        None => image_processor(config)?,
    };
    let patch_size = image_processor.kind().patch_size() as usize;
    let model_type = folder.as_deref().map(base::model_folder::read_family).transpose()?;
    let family = model_type.as_deref().map_or(RewardFamily::WITHOUT_MODEL, rewards::family_of);
    let scores = TrueScores::new(config, family, patch_size)?;
    let told = Told {
        tried: scores.names(),
        boxes: model_type.map(|model_type| box_line(config, &model_type, family)),
    };
    let texts = processor.as_ref().map_or(DataFamily::WITHOUT_MODEL, Processor::family);
    let task = config.task_type.as_deref();
    let template = data::template::template(&config.question_template, task, true, texts)?;
    let workers = config.dataloader_num_workers.map(|workers| workers.max(1));
    let options = CheckOptions {
        rows,
        box_format: config.solution_box_format,
        assumed_boxes: family.data_boxes(),
        image_processor: Arc::new(image_processor),
        processor: processor.map(Arc::new),
        template,
        probe: (!scores.is_idle()).then(|| Arc::new(scores) as Arc<dyn RowProbe>),
        workers: workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        examples: config.examples,
    };
    Ok((options, told))
}

/// Units of the boxes of data and model, and who brings them together.
fn box_line(config: &DataCheckConfig, model_type: &str, family: RewardFamily) -> String {
    let units = BoxUnits { answer: config.box_format, solution: config.solution_box_format };
    let [written, data] = units.on_image(family);
    let what_follows = match (written == data, units.of_lists(family)) {
        (true, _) => "the same",
        (false, Some(_)) => {
            "rewards convert the model's; `sft` teaches those of the data as they stand"
        }
        (false, None) => {
            "rewards of one box convert the model's, those of lists compare numbers as they stand; `sft` teaches \
             those of the data as they stand"
        }
    };
    format!(
        "boxes: taken for {} in the data, {} in what the model (`{model_type}`) writes: {what_follows}",
        data.described(),
        written.described()
    )
}

fn processor(config: &DataCheckConfig, folder: &Path) -> Result<Processor> {
    let options = ProcessorOptions {
        resize_backend: data::image::resize_backend(config.image_processor),
        min_pixels: Some(config.min_pixels as u64),
        max_pixels: Some(config.max_pixels as u64),
        apply_exif: config.apply_exif,
        max_prompt_length: config.max_prompt_length,
    };
    Ok(Processor::from_dir(folder, &options)?)
}

/// Where no model folder says how images are resized.
fn image_processor(config: &DataCheckConfig) -> Result<ImageProcessor> {
    let options = ImageOptions {
        min_pixels: Some(config.min_pixels as u64),
        max_pixels: Some(config.max_pixels as u64),
        ..ImageOptions::new(data::image::resize_backend(config.image_processor))
    };
    Ok(ImageProcessor::without_model(&options)?.with_apply_exif(config.apply_exif))
}

fn pass(
    train: &DataFiles,
    test: Option<&DataFiles>,
    options: &CheckOptions,
    stop: &StopFlag,
    shown: &mut PageRows,
) -> Result<CheckReport> {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style);
    }
    let mut visit = |row: &SeenRow| {
        shown.keep(row);
        bar.inc(1);
        match stop.is_raised() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let report = check(train, test, options, &mut visit);
    bar.finish_and_clear();
    Ok(report?)
}

/// Prints the text; a reader that has seen enough is no failure of the data.
fn print(text: &str) -> Result<()> {
    let printed = std::io::stdout().lock().write_all(text.as_bytes());
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("stdout")
        }
        _ => Ok(()),
    }
}
