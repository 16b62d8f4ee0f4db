//! Warns if the task is to find a box and no reward compares boxes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::box_reward;
use crate::boxes::{BoundingBox, parse_solution};
use crate::detection::predictions;
use crate::plugins::is_of_the_user;

/// Tasks whose answer is a box (`data::template::TASK_TEMPLATES`).
const BOX_TASKS: [&str; 2] = ["rec", "sft_rec"];

/// The warning that no reward compares boxes though the task is to find one; none where one does, or where one of the user's own may.
/// What a row's `accu_reward_method` says is not known here: [`compares_boxes`].
pub fn missing_box_reward(
    task_type: Option<&str>,
    reward_funcs: &[String],
    is_customized: bool,
) -> Option<String> {
    let task = task_type.filter(|task| BOX_TASKS.contains(task))?;
    let has = |names: &[&str]| reward_funcs.iter().any(|f| names.contains(&f.as_str()));
    let is_text = has(&["accuracy", "length"]);
    let may_compare = (is_customized && is_text)
        || has(&box_reward::NAMES)
        || reward_funcs.iter().any(|name| is_of_the_user(name));
    if may_compare {
        return None;
    }
    let what = match is_text {
        true => {
            "the reward `accuracy` compares the texts of the boxes, by which boxes that do not overlap can get 0.75 and more"
        }
        false => "no reward looks at the boxes",
    };
    let customized = match has(&["accuracy"]) {
        true => "`--is_reward_customized_from_vlm_module true`",
        false => "`accuracy` with `--is_reward_customized_from_vlm_module true`",
    };
    let task_too = if task == "rec" { "" } else { " and `--task_type rec`" };
    Some(format!(
        "`--task_type {task}` without a reward of boxes: {what}\nhint: {customized}{task_too} takes the IoU; `giou` and `diou` in `--reward_funcs` are rewards of boxes too"
    ))
}

/// Rows whose answers are boxes, counted where their texts are what is compared.
#[derive(Debug)]
pub struct BoxAnswers {
    /// Whether the rewards compare texts of a task that is not to find a box.
    is_counted: bool,
    rows: AtomicU64,
    boxes: AtomicU64,
}

impl BoxAnswers {
    /// None yet, under the settings of a run.
    pub fn new(task_type: Option<&str>, reward_funcs: &[String], is_customized: bool) -> Self {
        let is_told = task_type.is_some_and(|task| BOX_TASKS.contains(&task));
        let would_warn = missing_box_reward(Some(BOX_TASKS[0]), reward_funcs, is_customized);
        let by_text = reward_funcs.iter().any(|name| name == "accuracy");
        Self {
            is_counted: !is_told && by_text && would_warn.is_some(),
            rows: AtomicU64::new(0),
            boxes: AtomicU64::new(0),
        }
    }

    /// Counts a row, compared by `method` where it names one.
    pub fn add(&self, solution: &str, method: Option<&str>) {
        if !self.is_counted {
            return;
        }
        self.rows.fetch_add(1, Ordering::Relaxed);
        if method.is_none_or(|method| method == "default") && is_box(solution) {
            self.boxes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// That half the answers or more are boxes.
    pub fn warning(&self) -> Option<String> {
        let [rows, boxes] = [&self.rows, &self.boxes].map(|count| count.load(Ordering::Relaxed));
        (boxes > 0 && 2 * boxes >= rows).then(|| {
            format!(
                "the answers of {boxes} of {rows} rows are boxes, and the reward `accuracy` compares their texts, by which boxes that do not overlap can get 0.75 and more\n\
                 hint: `--task_type rec --is_reward_customized_from_vlm_module true` takes the IoU of one box; `giou` and `diou` in `--reward_funcs` are rewards of boxes too, and an `accu_reward_method` such as `map` compares lists of them"
            )
        })
    }
}

/// Whether a solution is one box, or a list of labelled ones.
fn is_box(solution: &str) -> bool {
    match parse_solution(solution) {
        Ok(BoundingBox { x1, y1, x2, y2 }) => x1 < x2 && y1 < y2,
        Err(_) => {
            let found = predictions(solution);
            found.is_readable && !found.boxes.is_empty()
        }
    }
}

/// Whether the method of `accuracy` called `name` compares boxes, not texts.
pub fn compares_boxes(name: &str) -> bool {
    let method = crate::generic::METHODS.iter().find(|(known, _)| *known == name);
    method.is_some_and(|(_, method)| matches!(method, crate::generic::Method::Boxes(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(task: Option<&str>, names: &[&str], is_customized: bool) -> Option<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        missing_box_reward(task, &names, is_customized)
    }

    #[test]
    fn a_search_for_boxes_without_a_reward_of_boxes_is_said() {
        let texts = warned(Some("rec"), &["accuracy", "format"], false);
        assert!(texts.is_some_and(|text| text.contains("0.75") && text.contains("\nhint: ")));
        let nothing = warned(Some("rec"), &["format"], true);
        assert!(nothing.is_some_and(|text| text.contains("no reward looks at the boxes")));
        assert!(warned(Some("sft_rec"), &["length"], false).is_some());
    }

    #[test]
    fn answers_that_are_boxes_are_said_where_their_texts_are_compared() {
        let told =
            |task: Option<&str>, names: &[&str], customized, rows: &[(&str, Option<&str>)]| {
                let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
                let answers = BoxAnswers::new(task, &names, customized);
                rows.iter().for_each(|(solution, method)| answers.add(solution, *method));
                answers.warning()
            };
        let boxed = ("<answer> [1, 2, 30, 40] </answer>", None);
        let list = (
            "<answer> ```json\n[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a\"}]\n``` </answer>",
            None,
        );
        let text = ("<answer> left </answer>", None);
        let warning = told(None, &["accuracy"], false, &[boxed, text]).expect("half of them");
        assert!(warning.contains("1 of 2 rows") && warning.contains("0.75"), "{warning}");
        assert!(told(Some("default"), &["accuracy", "format"], false, &[list]).is_some());
        for (task, names, customized, rows) in [
            (None, &["accuracy"][..], false, &[boxed, text, text][..]),
            (None, &["accuracy"], false, &[("<answer> [4, 3, 2, 1] </answer>", None)]),
            (None, &["accuracy"], false, &[(boxed.0, Some("map"))]),
            (None, &["accuracy", "giou"], false, &[boxed]),
            (None, &["format"], false, &[boxed]),
            (Some("rec"), &["accuracy"], false, &[boxed]),
            (None, &["accuracy"], false, &[]),
        ] {
            assert_eq!(told(task, names, customized, rows), None, "{names:?} {rows:?}");
        }
    }

    #[test]
    fn rewards_of_boxes_other_tasks_and_rewards_of_ones_own_are_let_be() {
        assert_eq!(warned(Some("rec"), &["accuracy", "format"], true), None);
        for name in [
            "giou",
            "diou",
            "point_in_box",
            "click",
            "llm",
            "iou.py:iou",
            "program:iou",
            "http://a/b",
            "./iou",
        ] {
            assert_eq!(warned(Some("rec"), &[name, "format"], false), None, "{name}");
        }
        for task in [None, Some("default"), Some("odLength")] {
            assert_eq!(warned(task, &["accuracy"], false), None, "{task:?}");
        }
        let methods: Vec<bool> =
            ["map", "od_ap", "weighted_sum", "math", "none of them"].map(compares_boxes).into();
        assert_eq!(methods, [true, true, true, false, false]);
    }
}
