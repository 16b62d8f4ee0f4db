//! Datasets, chat template, tokenizer, images and samplers: everything between a row on disk and a
//! prompt for the model. No libtorch here.

pub mod image;
