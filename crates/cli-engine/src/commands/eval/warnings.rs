//! Warnings of an evaluation, each kind of them logged once.

use std::collections::BTreeSet;

use eval::{Doubt, Warning};

/// Kinds that have been logged.
#[derive(Debug, Default)]
pub struct Warned(BTreeSet<Doubt>);

impl Warned {
    /// Logs what is of a kind that was not logged yet; `label` stands before it.
    pub fn log(&mut self, warnings: &[Warning], label: &str) {
        for warning in warnings {
            if self.0.insert(warning.doubt) {
                base::say!("warning: {label}{}", warning.text);
            }
        }
    }
}
