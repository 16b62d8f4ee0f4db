//! The binary, as a user calls it.

#[cfg(test)]
mod alerts;
#[cfg(test)]
mod arguments;
#[cfg(test)]
mod broken_streams;
#[cfg(test)]
mod configs;
#[cfg(test)]
mod data_check;
#[cfg(test)]
mod data_convert;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod error_places;
#[cfg(test)]
mod eval_command;
#[cfg(test)]
mod eval_warnings;
mod fake_hub;
#[cfg(test)]
mod generate_and_logprobs;
#[cfg(test)]
mod hub;
#[cfg(test)]
mod image_links;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod model_folder;
#[cfg(test)]
mod old_runs;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod program;
#[cfg(test)]
mod ranks;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod reward;
mod reward_rows;
#[cfg(test)]
mod reward_server;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod training;
#[cfg(test)]
mod training_evaluations;
#[cfg(test)]
mod two_programs;
#[cfg(test)]
mod which_model;
