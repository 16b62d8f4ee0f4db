//! Integration tests of `base`.

#[cfg(test)]
mod config;
#[cfg(test)]
mod evaluations;
mod flags;
#[cfg(test)]
mod run_folder;
#[cfg(test)]
mod run_folder_damage;
