//! Detection on rows of the training form: each row has its own question, and its answer holds the true boxes.

use std::sync::Arc;

use base::Example;
use config::EvalConfig;
use data::coco::Id;
use data::convert::asked_labels;
use rewards::detection::predictions;
use serde_json::Value;

use crate::EvalError;
use crate::coco_file::{Object, Objects};
use crate::questions::{Question, Truth};

/// Gives rows their true boxes; one whose answer holds none is bad.
///
/// # Errors
/// Settings that do not apply to rows.
pub(crate) fn take(rows: &mut [Question], config: &EvalConfig) -> Result<(), EvalError> {
    let unused = [
        ("labels", config.questions.labels.is_some()),
        ("max_boxes_per_category", config.questions.max_boxes_per_category.is_some()),
    ];
    if let Some((name, _)) = unused.into_iter().find(|(_, is_given)| *is_given) {
        let cause = "is for files of COCO's form: rows ask their own questions".to_owned();
        return Err(EvalError::Setting { name, cause });
    }
    let mut categories: Vec<String> = Vec::new();
    let mut all: Vec<Option<Vec<Object>>> = Vec::with_capacity(rows.len());
    for row in rows.iter_mut() {
        let read =
            row.example.as_ref().map(|example| (truths(example), asked_labels(&example.problem)));
        let Ok((truths, asked)) = read else {
            all.push(None);
            continue;
        };
        match truths {
            Ok(truths) => {
                let labels = truths.iter().map(|truth| truth.label.clone());
                for label in labels.chain(asked) {
                    if !categories.contains(&label) {
                        categories.push(label);
                    }
                }
                all.push(Some(truths));
            }
            Err(cause) => {
                row.example = Err(cause);
                all.push(None);
            }
        }
    }
    let categories = Arc::new(categories);
    for (index, (row, truths)) in rows.iter_mut().zip(all).enumerate() {
        if let Some(truths) = truths {
            row.truth = Truth::Objects(Objects {
                image_id: Some(Id::Whole(index as i64)),
                truths,
                left_out: Vec::new(),
                categories: Arc::clone(&categories),
                is_of_row: true,
            });
        }
    }
    Ok(())
}

/// The true boxes of a row.
fn truths(example: &Example) -> Result<Vec<Object>, String> {
    if example.images.len() != 1 {
        return Err(format!("expected one image, got {}", example.images.len()));
    }
    let answer = example.columns.get("conversations");
    let answer = answer.and_then(|turns| turns.get(1)?.get("value"));
    let read = match answer {
        // Written as JSON, not as a text with JSON in it.
        Some(list @ (Value::Array(_) | Value::Object(_))) => predictions(&list.to_string()),
        _ => predictions(&example.answer),
    };
    if !read.is_readable || read.num_unread > 0 {
        return Err(
            "the answer is no list of boxes with `bbox_2d` and `label`, and not `None`".to_owned()
        );
    }
    let objects = read.boxes.into_iter().map(|found| Object {
        label: found.label,
        corners: found.corners.into(),
        is_crowd: false,
    });
    Ok(objects.collect())
}
