//! Models by name: a folder, or a model on the Hugging Face hub, kept in its cache.

use base::console::count;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClientSync, HFError};
use indicatif::{ProgressBar, ProgressStyle};
use models::{SavedAdapter, base_of, is_adapter};

use crate::which_model::{Chosen, choose, hub_name};

/// The files of a model folder that are read: first the weights.
const PATTERNS: [&str; 5] = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"];
/// Copies of the weights in other forms.
const OTHER_FORMS: [&str; 3] = ["onnx/**", "original/**", "openvino/**"];

/// The folder of a model that [`choose`] finds; one of the hub is fetched, or lies in the cache.
///
/// # Errors
/// As [`choose`], and where the hub cannot be reached and the cache does not hold the model.
pub fn model_folder(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    folder_with(name, revision, &PATTERNS)
}

/// As [`model_folder`], but weights need not be there and are not fetched.
///
/// # Errors
/// As [`model_folder`].
pub fn description_folder(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    folder_with(name, revision, &PATTERNS[1..])
}

fn folder_with(name: &str, revision: Option<&str>, patterns: &[&str]) -> Result<PathBuf> {
    match choose(name, revision)? {
        Chosen::Hub { name, revision } => fetched(&name, revision, patterns),
        Chosen::Folder(folder) => {
            // Of an adapter it may be meant for the model under it.
            let given = revision.filter(|revision| !["", "main"].contains(revision));
            if let Some(revision) = given.filter(|_| !is_adapter(&folder)) {
                base::say!(
                    "warning: no effect here: `--model_revision {revision}` (`{name}` is a folder, not a name on the hub)"
                );
            }
            Ok(folder)
        }
    }
}

fn fetched(name: &str, revision: Option<String>, patterns: &[&str]) -> Result<PathBuf> {
    let Some((owner, model)) = hub_name(name) else {
        bail!("model `{name}`: expected a name like `Qwen/Qwen2.5-VL-3B-Instruct`");
    };
    let at = revision
        .as_ref()
        .map(|revision| format!(" at `{revision}`"))
        .unwrap_or_default();
    let client = HFClientSync::new().context("hub")?;
    let repository = client.model(owner, model);
    if is_offline() {
        return repository
            .snapshot_download()
            .maybe_revision(revision)
            .local_files_only(true)
            .send()
            .with_context(|| {
                format!(
                    "model `{name}`{at} is not in the cache and HF_HUB_OFFLINE forbids to fetch it"
                )
            });
    }
    let patterns = patterns.iter().map(ToString::to_string).collect();
    let others = OTHER_FORMS.map(str::to_owned).to_vec();
    let download = repository
        .snapshot_download()
        .maybe_revision(revision.clone())
        .allow_patterns(patterns)
        .ignore_patterns(others)
        .progress(Progress::new(Download::new(name)))
        .send();
    match download {
        Ok(folder) => Ok(folder),
        Err(HFError::Request { source, .. }) => {
            // Without a network the model may still lie in the cache.
            let cached = repository
                .snapshot_download()
                .maybe_revision(revision)
                .local_files_only(true)
                .send();
            let folder = cached
                .map_err(|_| anyhow::Error::from(source))
                .with_context(|| {
                    format!(
                        "model `{name}`{at} is no folder here, and the hub cannot be reached\n\
                     hint: give the path of a downloaded model folder"
                    )
                })?;
            base::say!(
                "warning: the hub cannot be reached: `{name}` is taken from the cache as it is"
            );
            Ok(folder)
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "model `{name}`{at} is no folder here and could not be fetched from the hub\n\
                 hint: check the name and the revision; for a gated model set HF_TOKEN"
            )
        }),
    }
}

/// The folder of the model that an adapter lies over: `given`, or the one that it names, a folder or a
/// name on the hub.
///
/// # Errors
/// As [`model_folder`], and where the adapter names none.
pub fn base_folder(
    adapter: &SavedAdapter,
    given: Option<&str>,
    revision: Option<&str>,
) -> Result<PathBuf> {
    if let Some(name) = given {
        return model_folder(name, revision);
    }
    match adapter.base.as_deref() {
        Some(name) if !Path::new(name).exists() && hub_name(name).is_some() => {
            // A folder beside the adapter goes before a name on the hub.
            base_of(adapter).or_else(|_| model_folder(name, revision))
        }
        _ => Ok(base_of(adapter)?),
    }
}

fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// A bar over the bytes of all files; without a terminal one line.
struct Download {
    name: String,
    bar: ProgressBar,
    bytes_of_files: Mutex<HashMap<String, u64>>,
}

impl Download {
    fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        Self {
            name: name.to_owned(),
            bar,
            bytes_of_files: Mutex::default(),
        }
    }
}

impl ProgressHandler for Download {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start {
                total_files,
                total_bytes,
            } => {
                // The first start speaks of all files, later ones of one each.
                if self.bar.length().unwrap_or(0) > 0 {
                    return;
                }
                self.bar.set_length(*total_bytes);
                if self.bar.is_hidden() && *total_bytes > 0 {
                    let megabytes = total_bytes.div_ceil(1_000_000);
                    base::say!(
                        "fetching `{}`: {}, {megabytes} MB",
                        self.name,
                        count(*total_files as u64, "file")
                    );
                }
            }
            DownloadEvent::Progress { files } => {
                let Ok(mut bytes) = self.bytes_of_files.lock() else {
                    return;
                };
                for file in files {
                    bytes.insert(file.filename.clone(), file.bytes_completed);
                }
                self.bar.set_position(bytes.values().sum());
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                self.bar.set_position(*bytes_completed);
            }
            DownloadEvent::Complete => self.bar.finish_and_clear(),
        }
    }
}
