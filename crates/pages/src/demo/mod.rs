//! `report.html` of the demo, and the metrics that it shows.

mod page;
mod results;

pub use page::{Demo, write};
pub use results::{Results, Scored};
