//! `reward`: scores of given completions, from a file ([`file`]) or over HTTP ([`serve`]).

mod file;
mod origin;
mod page;
mod row_input;
mod scorer;
mod serve;
mod summary;
mod tally;

use anyhow::Result;
use config::RewardConfig;

use crate::{rows, signals};
use scorer::Scorer;

/// Scores the rows of a file, writes them with their rewards and sums up on stderr; or serves.
///
/// # Errors
/// Where a row cannot be read or scored, and where nothing can be written or served.
pub fn reward(config: &RewardConfig) -> Result<()> {
    let next = match &config.server.serve {
        Some(_) => "stopping; what was asked is answered first",
        None => "stopping after this batch; no file is written",
    };
    let stop = signals::stop_flag(next)?;
    let given = config.rows.image_folder.as_deref();
    match (&config.rows.input, &config.server.serve) {
        (Some(input), _) => {
            let folder = rows::Images::of(given, input, config.rows.follow_links);
            let scorer = Scorer::new(config, Some(folder), &stop)?;
            file::score(config, input, &scorer, &stop)
        }
        (None, Some(address)) => {
            let folder =
                given.map(|folder| rows::Images::new(folder.into(), config.rows.follow_links));
            let scorer = Scorer::new(config, folder, &stop)?;
            serve::serve(config, address, scorer, &stop)
        }
        // Such a configuration is refused when it is read.
        (None, None) => Ok(()),
    }
}
