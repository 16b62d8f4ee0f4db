//! Integration tests of the crate `data`: one binary.

mod chat_bounds;
mod check;
mod contradictions;
mod convert;
mod families;
mod image;
mod image_bombs;
mod image_damaged;
mod image_decode;
mod image_folder;
mod image_processor;
mod image_resize;
mod loading;
mod model_folder;
mod odd_rows;
mod orientation;
mod prompts;
mod rows;
