//! Integration tests of `base`.

#[cfg(test)]
mod metrics;
#[cfg(test)]
mod run_folder;
#[cfg(test)]
mod run_folder_damage;
#[cfg(test)]
mod world;
