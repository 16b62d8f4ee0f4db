//! `reward`: scores of given answers, from a file ([`file`]) or over HTTP ([`serve`]).

mod answer;
mod file;
mod page;
mod scorer;
mod serve;
mod service;
mod summary;
mod tally;

use std::path::PathBuf;

use anyhow::Result;
use base::config::RewardConfig;

use crate::rows;
use scorer::Scorer;

/// Scores the rows of a file, writes them with their rewards and sums up on stderr; or serves.
///
/// # Errors
/// Where a row cannot be read or scored, and where nothing can be written or served.
pub fn reward(config: &RewardConfig) -> Result<()> {
    let given = config.image_folder.as_deref();
    match (&config.input, &config.serve) {
        (Some(input), _) => {
            let folder = rows::image_folder(given, input);
            file::score(config, input, &Scorer::new(config, Some(folder))?)
        }
        (None, Some(address)) => {
            let folder = given.map(PathBuf::from);
            serve::serve(address, Scorer::new(config, folder)?, config.explain)
        }
        // Such a configuration is refused when it is read.
        (None, None) => Ok(()),
    }
}
