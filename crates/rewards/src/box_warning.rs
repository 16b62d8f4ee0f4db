//! Whether the rewards of a run compare boxes where its task is to find one.

use crate::grounding;
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
        || has(&grounding::NAMES)
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
    let task_too = if task == "rec" {
        ""
    } else {
        " and `--task_type rec`"
    };
    Some(format!(
        "`--task_type {task}` without a reward of boxes: {what}\nhint: {customized}{task_too} takes the IoU; `giou` and `diou` in `--reward_funcs` are rewards of boxes too"
    ))
}

/// Whether the method of `accuracy` called `name` compares boxes, not texts.
pub fn compares_boxes(name: &str) -> bool {
    let method = crate::generic::METHODS
        .iter()
        .find(|(known, _)| *known == name);
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
            assert_eq!(
                warned(Some("rec"), &[name, "format"], false),
                None,
                "{name}"
            );
        }
        for task in [None, Some("default"), Some("odLength")] {
            assert_eq!(warned(task, &["accuracy"], false), None, "{task:?}");
        }
        let methods: Vec<bool> = ["map", "od_ap", "weighted_sum", "math", "none of them"]
            .map(compares_boxes)
            .into();
        assert_eq!(methods, [true, true, true, false, false]);
    }
}
