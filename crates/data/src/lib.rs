//! Datasets, chat template, tokenizer, images and order of examples: everything between a row on
//! disk and a prompt for the model. No libtorch here.
//!
//! [`rows`] reads and checks a row, [`order`] decides when it is used, and [`loader`] prepares its
//! prompt on worker threads with [`processor`], which joins [`template`], [`chat`], [`tokenizer`]
//! and [`image`]. [`check`] validates whole files, [`convert`] imports other formats.

pub mod chat;
mod chat_bounds;
mod chat_files;
pub mod check;
pub mod coco;
mod coco_id;
pub mod convert;
pub mod error;
mod eval_rows;
mod families;
mod file_form;
pub mod image;
mod image_folder;
pub mod loader;
mod model_files;
mod notices;
mod once;
pub mod order;
mod placeholders;
pub mod prefetch;
pub mod processor;
pub mod row;
mod row_index;
mod row_texts;
pub mod rows;
mod special_ids;
pub mod template;
pub mod tokenizer;
mod tokenizer_files;
mod unread;

pub use chat::{ChatTemplate, Content, Message};
pub use error::{BadRows, DataError, RowCause, RowError};
pub use eval_rows::load_eval_rows;
pub use families::DataFamily;
pub use image::{ImageError, ImageProcessor, ResizeBackend};
pub use image_folder::{ImageFolder, Link};
pub use loader::{Examples, ImageCache, Loaded, LoaderOptions, PromptLoader, load_prompt};
pub use notices::{About, Notices, Oddity, lost_values, notices_of, oddities};
pub use once::{Repeat, once};
pub use order::EpochOrder;
pub use placeholders::placeholders;
pub use prefetch::Prefetcher;
pub use processor::{Processor, ProcessorOptions};
pub use row::{RowChecks, parse_columns, parse_row, refuse_lost, wrapped};
pub use row_index::Rows;
pub use row_texts::{RowText, RowTexts, is_rows};
pub use rows::{DataFile, DataFiles, LoadReport, OnBadRow, index_rows, load_rows, split};
pub use template::{PromptTemplate, TASK_TEMPLATES};
pub use tokenizer::Tokenizer;
pub use unread::{ReadKeys, UnreadKey, Why, hidden_media, meant};
