//! The processes of a run: who they are ([`Place`]), how they meet ([`join`]), what they agree on ([`Processes`]), and what each hears when
//! another one fails, ends or does not come.
//!
//! Two groups of `torch::ranks` are made: `control`, over which votes, metrics and texts go, always Gloo; and one for tensors. Beside them each rank
//! has a connection to rank 0 ([`monitor`]): it carries where each rank is and the first fault, so that ranks that wait learn within a second
//! whom for. Tensors, and what a run does with a fault, are left to others.

mod address;
mod error;
mod error_file;
mod fault;
mod join;
mod monitor;
mod place;
mod processes;
mod shared;

pub use error::JoinError;
pub use join::{JoinOptions, Ranks, join};
pub use place::{Place, PlaceError};
pub use processes::Processes;
pub use torch::ranks::leave;
