//! Weights that do not fit a model: which of them are errors, and how they are reported.

use std::path::Path;

use base::console::first_of;

use crate::ModelError;
use crate::checkpoint::HEAD;

/// Missing weights that are named; a folder of another kind lacks hundreds.
const MAX_NAMED: usize = 8;

/// Mismatches found while loading.
#[derive(Debug, Default)]
pub(crate) struct Mismatches {
    /// Weights that are not in the files.
    pub(crate) missing: Vec<String>,
    /// Tensors that no layer takes.
    pub(crate) unexpected: Vec<String>,
    /// All else, a line each.
    pub(crate) others: Vec<String>,
}

impl Mismatches {
    /// Refuses mismatches; warns of unexpected tensors.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub(crate) fn check(mut self, folder: &Path) -> Result<(), ModelError> {
        // Old checkpoints carry these buffers; they are computed, not learnt.
        self.unexpected.retain(|name| !name.ends_with("rotary_emb.inv_freq"));
        if self.missing.is_empty() && self.others.is_empty() {
            self.warn_unexpected(folder);
            return Ok(());
        }
        let hint = self.hint();
        let lines = |names: &[String], what: &str| {
            let line = |name: &String| format!("weight {name}: {what}");
            let mut lines: Vec<String> = names.iter().take(MAX_NAMED).map(line).collect();
            if names.len() > MAX_NAMED {
                let more = names.len() - MAX_NAMED;
                lines.push(format!("... and {more} more: {what}"));
            }
            lines
        };
        let mut problems = lines(&self.missing, "missing");
        problems.append(&mut self.others);
        problems.extend(lines(&self.unexpected, "unexpected"));
        problems.extend(hint);
        Err(ModelError::Weights { folder: folder.to_path_buf(), problems })
    }

    fn warn_unexpected(&self, folder: &Path) {
        let names: Vec<String> = self.unexpected.iter().map(|name| format!("`{name}`")).collect();
        if names.is_empty() {
            return;
        }
        base::console::say_once(&format!(
            "warning: {}: weights that this model has no layer for are passed over, as in transformers: {}",
            folder.display(),
            first_of(&names)
        ));
    }

    fn hint(&self) -> Option<String> {
        let is_packed = |name: &String| {
            let ends = [".qweight", ".qzeros", ".scales", ".absmax", ".weight_scale", ".quant_map"];
            ends.iter().any(|end| name.ends_with(end))
        };
        if self.missing == [HEAD] && self.others.is_empty() {
            let hint = "hint: where the head is the embedding, `tie_word_embeddings` of config.json is true";
            return Some(hint.into());
        }
        if self.unexpected.iter().any(is_packed) {
            return Some(
                "hint: these weights are quantised; take the model they were made of".into(),
            );
        }
        (self.missing.len() > MAX_NAMED)
            .then(|| "hint: are config.json and the weights of one model?".into())
    }
}
