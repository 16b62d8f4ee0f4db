//! `merge`: an adapter put into the weights that it was trained over.

use base::console::count;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cli::hub;
use config::MergeConfig;
use models::{SavedAdapter, merge_adapter};

use super::eval::{TRAINED_AS, file_of};
use crate::model::base_folder;

/// Writes the merged model beside its name, then renames it: it is whole or it is not there.
///
/// # Errors
/// An adapter of another model, a folder that exists, a disk that is full.
pub fn merge(config: &MergeConfig) -> Result<()> {
    let target = Path::new(&config.output_dir);
    if target.exists() {
        bail!("`{}` exists\nhint: give the name of a new folder", target.display());
    }
    let folder = hub::model_folder(&config.adapter, config.model_revision.as_deref())?;
    let adapter = SavedAdapter::read(&folder)?;
    let base =
        base_folder(&adapter, config.base_model.as_deref(), config.model_revision.as_deref())?;
    let io = |path: &Path| format!("{}", path.display());
    let name = target.file_name().context("`output_dir` has no name")?;
    let beside = target.with_file_name(format!(".{}.part", name.to_string_lossy()));
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| io(&beside))?;
    }
    fs::create_dir_all(&beside).with_context(|| io(&beside))?;
    let merged = merge_adapter(&base, &adapter, &beside).map_err(anyhow::Error::from);
    if let Err(error) = merged.and_then(|()| keep_training(&folder, &beside)) {
        // The cause counts more than what is left behind.
        let _ = fs::remove_dir_all(&beside);
        return Err(error);
    }
    fs::rename(&beside, target).with_context(|| io(target))?;
    base::say!(
        "{} of {} merged into {}",
        count(adapter.modules().count() as u64, "layer"),
        config.adapter,
        base.display()
    );
    base::print_data!("{}", target.display());
    Ok(())
}

/// Keeps the settings of the run that trained the adapter, where they lie beside it: an evaluation asks by them.
fn keep_training(adapter: &Path, merged: &Path) -> Result<()> {
    if let Some(file) = file_of(adapter) {
        let target = merged.join(TRAINED_AS);
        fs::copy(&file, &target).with_context(|| format!("{}", target.display()))?;
    }
    Ok(())
}
