//! Settings in which two evaluations differ: some make the model answer otherwise, others measure by
//! another yardstick, so that the figures cannot be held against each other.

use serde_json::{Map, Value, json};

use crate::results::Results;

/// Settings of scoring, and of what is asked about an image.
const YARDSTICK: [&str; 15] = [
    "correct_above",
    "exclude_bad",
    "reward_funcs",
    "reward_weights",
    "reward_method",
    "task_type",
    "is_reward_customized_from_vlm_module",
    "judge_model",
    "judge_prompt",
    "judge_images",
    "solution_box_format",
    "overlong_max_tokens",
    "overlong_cache_tokens",
    "labels",
    "max_boxes_per_category",
];

/// A setting of both.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingPair {
    /// Its name.
    pub name: String,
    /// Its value in the first.
    pub before: Value,
    /// Its value in the second.
    pub after: Value,
}

/// What two evaluations do not have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    /// Settings that differ.
    pub settings: Vec<SettingPair>,
    /// Whether the settings of both are known: folders of an older program do not hold them.
    pub are_known: [bool; 2],
}

impl Differences {
    pub(crate) fn of(before: &Results, after: &Results) -> Self {
        let are_known = [before, after].map(|results| !results.settings.is_empty());
        if are_known.contains(&false) {
            return Self {
                settings: Vec::new(),
                are_known,
            };
        }
        let [first, second] = [&before.settings, &after.settings];
        let mut names: Vec<&String> = first.keys().chain(second.keys()).collect();
        names.sort();
        names.dedup();
        let pair = |name: &String| {
            let [before, after] =
                [first, second].map(|s| s.get(name).cloned().unwrap_or(Value::Null));
            (before != after).then(|| SettingPair {
                name: name.clone(),
                before,
                after,
            })
        };
        Self {
            settings: names.into_iter().filter_map(pair).collect(),
            are_known,
        }
    }

    /// Settings by which the figures are not of one kind.
    pub(crate) fn of_yardstick(&self) -> impl Iterator<Item = &str> {
        let names = self.settings.iter().map(|pair| pair.name.as_str());
        names.filter(|name| YARDSTICK.contains(name))
    }

    /// In a line; none where there are no differences.
    pub fn sentence(&self) -> Option<String> {
        let unknown: Vec<&str> = ["A", "B"]
            .into_iter()
            .zip(self.are_known)
            .filter_map(|(side, is_known)| (!is_known).then_some(side))
            .collect();
        if !unknown.is_empty() {
            return Some(format!(
                "the settings of {} are not recorded there, and may differ",
                unknown.join(" and ")
            ));
        }
        let pairs = self.settings.iter().map(|pair| {
            let [before, after] = [&pair.before, &pair.after].map(shown);
            format!("`{}` {before} and {after}", pair.name)
        });
        let pairs: Vec<String> = pairs.collect();
        (!pairs.is_empty()).then(|| format!("settings differ: {}", pairs.join(", ")))
    }

    pub(crate) fn to_json(&self) -> Value {
        let each = self.settings.iter().map(|pair| {
            let both = json!({"a": pair.before, "b": pair.after});
            (pair.name.clone(), both)
        });
        Value::Object(each.collect::<Map<_, _>>())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("`{text}`"),
        value => value.to_string(),
    }
}
