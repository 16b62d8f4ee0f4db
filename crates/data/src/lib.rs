//! Datasets, chat template, tokenizer, images and samplers: everything between a row on disk and a
//! prompt for the model. No libtorch here.
//!
//! The way of a row: [`rows`] reads and checks it, [`sampler`] says when its turn is, [`loader`]
//! prepares it ahead of need with [`template`], [`chat`], [`tokenizer`] and [`image`], which
//! [`processor`] joins. [`check`] is the doctor of whole files,
//! [`convert`] makes rows of other people's.

pub mod chat;
mod chat_bounds;
mod chat_files;
pub mod check;
pub mod coco;
mod coco_id;
pub mod convert;
pub mod error;
pub mod image;
mod image_folder;
mod items;
pub mod loader;
mod model_files;
mod notices;
mod once;
mod placeholders;
pub mod prefetch;
pub mod processor;
pub mod row;
mod row_form;
mod row_index;
mod row_texts;
pub mod rows;
pub mod sampler;
mod special_ids;
pub mod template;
pub mod tokenizer;
mod tokenizer_files;
mod unread;

pub use chat::{ChatTemplate, Content, Message};
pub use error::{BadRows, DataError, RowCause, RowError};
pub use image::{ImageError, ImageProcessor, ResizeBackend};
pub use image_folder::{ImageFolder, Link};
pub use items::load_items;
pub use loader::{ImageCache, Loaded, LoaderOptions, PromptLoader, Samples, load_prompt};
pub use notices::{About, Notices, Oddity, lost_values, notices_of, oddities};
pub use once::{Repeat, once};
pub use placeholders::placeholders;
pub use prefetch::Prefetcher;
pub use processor::{Processor, ProcessorOptions};
pub use row::{RESERVED_TOKENS, RowChecks, parse_columns, parse_row, refuse_lost, wrapped};
pub use row_index::Rows;
pub use row_texts::{RowText, RowTexts, is_rows};
pub use rows::{DataFile, DataFiles, LoadReport, OnBadRow, index_rows, load_rows, split};
pub use sampler::EpochSampler;
pub use template::{PromptTemplate, TASK_TEMPLATES};
pub use tokenizer::Tokenizer;
pub use unread::{ReadKeys, UnreadKey, Why, hidden_media, meant};
