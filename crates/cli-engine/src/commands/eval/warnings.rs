//! Warnings of an evaluation, each kind of them said once.

use std::collections::BTreeSet;

use eval::{Doubt, Warning};

/// What has been said.
#[derive(Debug, Default)]
pub struct Warned(BTreeSet<Doubt>);

impl Warned {
    /// Says what is of a kind that was not said yet; `label` stands before it.
    pub fn say(&mut self, warnings: &[Warning], label: &str) {
        for warning in warnings {
            if self.0.insert(warning.doubt) {
                base::say!("warning: {label}{}", warning.text);
            }
        }
    }
}
