//! Which linear layers get an adapter.

use regex::Regex;

use crate::ModelError;
use crate::model::Part;

/// `all-linear` of PEFT: every linear layer of the parts that may have adapters.
const ALL: &str = "all-linear";

/// A choice of linear layers by their names in transformers, such as
/// `model.language_model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug)]
pub struct Targets {
    patterns: Vec<(String, Regex)>,
    vision: bool,
}

impl Targets {
    /// As PEFT reads them: a name, the end of a name after a dot (`q_proj`), or a regular expression
    /// for whole names; none, or `all-linear`, means every linear layer. Layers outside the vision
    /// tower only, unless `vision`; the head never.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn new(patterns: &[String], vision: bool) -> Result<Self, ModelError> {
        let patterns = patterns.iter().filter(|p| *p != ALL).map(|pattern| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            let regex = if pattern.chars().all(is_name) {
                format!(r"(?:.*\.)?{}", regex::escape(pattern))
            } else {
                pattern.clone()
            };
            let regex = Regex::new(&format!("^(?:{regex})$")).map_err(|cause| {
                let cause = cause.to_string();
                let pattern = pattern.clone();
                ModelError::TargetPattern { pattern, cause }
            })?;
            Ok((pattern.clone(), regex))
        });
        Ok(Targets { patterns: patterns.collect::<Result<_, ModelError>>()?, vision })
    }

    /// Whether a layer of a part is meant.
    pub fn holds(&self, module: &str, part: Part) -> bool {
        if !self.vision && part != Part::Language {
            return false;
        }
        self.patterns.is_empty() || self.patterns.iter().any(|(_, regex)| regex.is_match(module))
    }

    /// A line for each pattern that means none of `modules`.
    pub(super) fn unmatched(&self, modules: &[String]) -> Vec<String> {
        if modules.is_empty() {
            return vec!["no linear layer is meant by the adapter's targets".to_owned()];
        }
        let meant = |regex: &Regex| modules.iter().any(|module| regex.is_match(module));
        let lost = self.patterns.iter().filter(|(_, regex)| !meant(regex));
        lost.map(|(pattern, _)| format!("no linear layer is meant by the target `{pattern}`"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "model.language_model.layers.1.self_attn.q_proj";
    const UP: &str = "model.language_model.layers.0.mlp.up_proj";
    const SEEN: &str = "model.visual.blocks.0.mlp.up_proj";

    fn held(patterns: &[&str], vision: bool) -> [bool; 3] {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let targets = Targets::new(&patterns, vision).unwrap();
        [(Q, Part::Language), (UP, Part::Language), (SEEN, Part::Vision)]
            .map(|(module, part)| targets.holds(module, part))
    }

    #[test]
    fn targets_are_names_ends_of_names_and_expressions() {
        assert_eq!(held(&[], false), [true, true, false]);
        assert_eq!(held(&["all-linear"], true), [true, true, true]);
        assert_eq!(held(&["q_proj"], true), [true, false, false]);
        assert_eq!(held(&["mlp.up_proj"], true), [false, true, true]);
        assert_eq!(held(&["p_proj"], true), [false, false, false]);
        assert_eq!(held(&[UP], true), [false, true, false]);
        assert_eq!(held(&[r".*layers\.[01]\..*"], true), [true, true, false]);
        assert!(Targets::new(&["(".to_owned()], false).is_err());
    }

    #[test]
    fn a_target_that_means_nothing_is_named() {
        let targets = Targets::new(&["q_proj".to_owned(), "w_proj".to_owned()], false).unwrap();
        let lines = targets.unmatched(&[Q.to_owned()]);
        assert_eq!(lines, ["no linear layer is meant by the target `w_proj`"]);
    }
}
