//! Reports of runs: curves, drawn boxes, intervals, and HTML pages that hold them.
//!
//! A [`Report`] is self-contained: no script, no style, font or image from elsewhere. It follows
//! the reader's light or dark setting. [`training`] turns `metrics.jsonl` into curves, and
//! [`write_svg`] writes one curve as a file of its own.

pub mod annotated_image;
mod atomic_write;
mod axis;
mod base64;
mod error;
pub mod histogram;
pub mod html;
pub mod intervals;
pub mod scored_page;
pub mod stats;
pub mod svg;
pub mod training;

pub use annotated_image::{AnnotatedImage, CaptionLine, EncodedImage, LabelledBox};
pub use atomic_write::write_svg;
pub use error::ReportError;
pub use histogram::{Histogram, HistogramChart};
pub use html::{Body, KeyMetric, Report, Section, Table};
pub use intervals::{IntervalChart, IntervalRow};
pub use scored_page::{Passage, ScoreLine, ScoredPage, ScoredRow, Tone};
pub use stats::{Interval, mean_interval, paired_difference_interval, resampled};
pub use svg::{Colour, LineChart, Series, Target};
pub use training::{read_metrics, reward_curve, training_charts};
