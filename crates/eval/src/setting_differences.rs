//! Settings in which two evaluations differ. Some change the completions; others change the scoring,
//! so that the metrics cannot be compared.

use serde_json::{Map, Value, json};

use crate::results::Results;

/// Settings of scoring, and of what is asked about an image.
const YARDSTICK: [&str; 17] = [
    "extractor",
    "box_format",
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
pub struct SettingDifferences {
    /// Settings that differ.
    pub settings: Vec<SettingPair>,
    /// Whether the settings of both are known: folders of an older program do not hold them.
    pub are_known: [bool; 2],
}

impl SettingDifferences {
    pub(crate) fn of(before: &Results, after: &Results) -> Self {
        let are_known = [before, after].map(|results| !results.settings.is_empty());
        if are_known.contains(&false) {
            return Self { settings: Vec::new(), are_known };
        }
        let [first, second] = [&before.settings, &after.settings];
        let mut names: Vec<&String> = first.keys().chain(second.keys()).collect();
        names.sort();
        names.dedup();
        let pair = |name: &String| {
            let [before, after] =
                [first, second].map(|s| s.get(name).cloned().unwrap_or(Value::Null));
            (before != after).then(|| SettingPair { name: name.clone(), before, after })
        };
        Self { settings: names.into_iter().filter_map(pair).collect(), are_known }
    }

    /// Settings that make the metrics incomparable.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Verdict, compare};

    /// Forty questions, all of them answered right or all wrong.
    fn results(correct: u8) -> Results {
        let row = |row: usize| {
            json!({
                "image": "a.png", "question": format!("q{row}"), "ground_truth": "yes", "model_output": "",
                "input_size": null, "image_size": null, "extracted_answer": null, "correct": correct,
                "score": f64::from(correct), "values": {}, "image_paths": [], "subset": "val",
                "place": format!("val.jsonl:{}", row + 1), "row": row, "sample": 0,
            })
        };
        let rows: Vec<Value> = (0..40).map(row).collect();
        let all = json!({
            "accuracy": 0.0, "task": "yes_no", "model": "m", "num_samples": 1, "exclude_bad": false,
            "subsets": ["val"], "settings": {"temperature": 0.0}, "results": rows,
        });
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn settings_that_differ_are_named_and_other_yardsticks_call_no_winner() {
        let before = results(0);
        let with = |name: &str, value: Value| {
            let mut after = results(1);
            after.settings.insert(name.to_owned(), value);
            compare(&before, &after).unwrap()
        };
        for (name, value) in [
            ("temperature", json!(1.0)),
            ("question_template", json!("sft_rec")),
            ("max_new_tokens", json!(16)),
            ("image_processor", json!("pillow")),
            ("data_file_paths", json!("other.json")),
            ("commit", json!("0123abc")),
        ] {
            let comparison = with(name, value.clone());
            assert_eq!(comparison.verdict(), Verdict::Better, "{name}");
            let said = comparison.setting_differences.sentence().unwrap();
            assert!(said.starts_with(&format!("settings differ: `{name}` ")), "{said}");
            let json = comparison.to_json(&before, &before);
            assert_eq!(json["settings_differ"][name]["b"], value);
        }
        for name in
            ["correct_above", "reward_funcs", "exclude_bad", "labels", "extractor", "box_format"]
        {
            let comparison = with(name, json!("other"));
            assert_eq!(comparison.verdict(), Verdict::NotCalled, "{name}");
            let json = comparison.to_json(&before, &before);
            assert_eq!(json["verdict"], "not called");
            assert!(json["not_called_as"].as_str().unwrap().contains(name));
        }
        let mut old = results(1);
        old.settings = Map::new();
        let comparison = compare(&before, &old).unwrap();
        let said = comparison.setting_differences.sentence().unwrap();
        assert!(said.contains("settings of B are not recorded"), "{said}");
        let same = compare(&before, &results(1)).unwrap();
        assert_eq!(same.setting_differences.sentence(), None);
    }
}
