//! What a run looks like: curves, drawn boxes, intervals, and one HTML file that holds them all.
//!
//! A [`Report`] is self-contained: no script, no style, font or picture from elsewhere. It follows
//! the reader's light or dark setting. [`training`] turns `metrics.jsonl` into curves, and
//! [`write_svg`] writes one curve as a file of its own.

mod axis;
mod base64;
mod error;
pub mod histogram;
pub mod html;
pub mod intervals;
pub mod picture;
pub mod scored;
pub mod stats;
pub mod svg;
pub mod training;
mod write;

pub use error::ReportError;
pub use histogram::{Histogram, HistogramChart};
pub use html::{Body, KeyFigure, Report, Section, Table};
pub use intervals::{IntervalChart, IntervalRow};
pub use picture::{CaptionLine, EncodedImage, LabelledBox, Picture};
pub use scored::{Passage, ScoreLine, ScoredPage, ScoredRow, Tone};
pub use stats::{Interval, mean_interval, paired_difference_interval, resampled};
pub use svg::{Colour, LineChart, Series, Target};
pub use training::{read_metrics, reward_curve, training_charts};
pub use write::write_svg;
