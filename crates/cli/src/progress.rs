//! Bars on a terminal.

use base::console::{self, AroundGuard};
use indicatif::ProgressBar;

/// Has all that is said go around `bar`.
pub fn around_bar(bar: &ProgressBar) -> AroundGuard {
    let bar = bar.clone();
    console::around(move |speak| bar.suspend(speak))
}
