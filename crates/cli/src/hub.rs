//! Models by name: a folder, or a model on the Hugging Face hub, kept in its cache.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClientSync, HFError};
use indicatif::{ProgressBar, ProgressStyle};
use models::{SavedAdapter, base_of, check_model_folder};

/// The files of a model folder that are read: first the weights.
const PATTERNS: [&str; 5] = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"];
/// Copies of the weights in other forms.
const OTHER_FORMS: [&str; 3] = ["onnx/**", "original/**", "openvino/**"];

/// The folder of a model: `name` itself, or where the hub's model of that name lies in the cache.
///
/// # Errors
/// Where `name` is neither, and where the hub cannot be reached and the cache does not hold it.
pub fn model_folder(name: &str) -> Result<PathBuf> {
    folder_with(name, &PATTERNS)
}

/// As [`model_folder`], but weights need not be there and are not fetched.
///
/// # Errors
/// As [`model_folder`].
pub fn description_folder(name: &str) -> Result<PathBuf> {
    folder_with(name, &PATTERNS[1..])
}

fn folder_with(name: &str, patterns: &[&str]) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        if patterns == PATTERNS {
            check_model_folder(path)?;
        }
        return Ok(path.to_owned());
    }
    if path.is_file() {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        bail!(
            "`{name}` is a file, not a model folder\nhint: give its folder, `{}`",
            folder.display()
        );
    }
    let Some((owner, model)) = hub_name(name) else {
        bail!(
            "model folder `{name}` does not exist\nhint: give a folder, or a name like `Qwen/Qwen2.5-VL-3B-Instruct`"
        );
    };
    let client = HFClientSync::new().context("hub")?;
    let repository = client.model(owner, model);
    if is_offline() {
        return repository
            .snapshot_download()
            .local_files_only(true)
            .send()
            .with_context(|| {
                format!("model `{name}` is not in the cache and HF_HUB_OFFLINE forbids to fetch it")
            });
    }
    let patterns = patterns.iter().map(ToString::to_string).collect();
    let others = OTHER_FORMS.map(str::to_owned).to_vec();
    let download = repository
        .snapshot_download()
        .allow_patterns(patterns)
        .ignore_patterns(others)
        .progress(Progress::new(Download::new(name)))
        .send();
    match download {
        Ok(folder) => Ok(folder),
        Err(HFError::Request { source, .. }) => {
            // Without a network the model may still lie in the cache.
            let cached = repository.snapshot_download().local_files_only(true).send();
            let folder = cached
                .map_err(|_| anyhow::Error::from(source))
                .with_context(|| {
                    format!(
                        "model `{name}` is no folder here, and the hub cannot be reached\n\
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
                "model `{name}` is no folder here and could not be fetched from the hub\n\
                 hint: check the name; for a gated model set HF_TOKEN"
            )
        }),
    }
}

/// The folder of the model that an adapter lies over: `given`, or the one that it names, a folder or a
/// name on the hub.
///
/// # Errors
/// As [`model_folder`], and where the adapter names none.
pub fn base_folder(adapter: &SavedAdapter, given: Option<&str>) -> Result<PathBuf> {
    if let Some(name) = given {
        return model_folder(name);
    }
    match adapter.base.as_deref() {
        Some(name) if !Path::new(name).exists() && hub_name(name).is_some() => {
            // A folder beside the adapter goes before a name on the hub.
            base_of(adapter).or_else(|_| model_folder(name))
        }
        _ => Ok(base_of(adapter)?),
    }
}

/// `owner/model`; a path that does not exist is not one.
fn hub_name(name: &str) -> Option<(&str, &str)> {
    let (owner, model) = name.split_once('/')?;
    let is_word = |word: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !word.is_empty() && !word.starts_with('.') && word.chars().all(allowed)
    };
    (is_word(owner) && is_word(model)).then_some((owner, model))
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
                        "fetching `{}`: {total_files} files, {megabytes} MB",
                        self.name
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        assert_eq!(
            hub_name("Qwen/Qwen2.5-VL-3B-Instruct"),
            Some(("Qwen", "Qwen2.5-VL-3B-Instruct"))
        );
        for path in [
            "model", "./a/b", "../a", "/a/b", "a/b/c", "a/", "/a", "a/.b", "a b/c", "",
        ] {
            assert_eq!(hub_name(path), None, "{path}");
        }
    }
}
