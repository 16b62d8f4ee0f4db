//! What ranks share out: gradients that are summed over them, exact weights, moments and the reference model that each holds a part of,
//! and the pieces that checkpoints have of these.

pub(crate) mod buckets;
pub(crate) mod layout;
#[cfg(test)]
mod model_tests;
pub(crate) mod pieces;
pub(crate) mod reduction;
pub(crate) mod saved;
#[cfg(test)]
mod tests;
