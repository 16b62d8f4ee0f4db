//! The binary, as a user calls it.

#[cfg(test)]
mod alerts;
#[cfg(test)]
mod arguments;
#[cfg(test)]
mod asking;
#[cfg(test)]
mod configs;
#[cfg(test)]
mod data_check;
#[cfg(test)]
mod data_convert;
#[cfg(test)]
mod doubts;
#[cfg(test)]
mod evaluation;
#[cfg(test)]
mod evaluations;
#[cfg(test)]
mod hub;
mod hub_stand_in;
#[cfg(test)]
mod links;
#[cfg(test)]
mod model_folder;
#[cfg(test)]
mod older;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod reward;
mod reward_rows;
#[cfg(test)]
mod run;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod training;
#[cfg(test)]
mod two_programs;
#[cfg(test)]
mod which_model;
#[cfg(test)]
mod words;
