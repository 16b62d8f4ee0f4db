//! Compares two evaluations of the same questions: whether the second is better, by how much, and which completions changed.
//!
//! SettingDifferences are paired: question by question, or for average precision image by image, the same
//! draws for both. Whether more questions became better than worse by chance is the exact sign test,
//! which for correct and wrong completions is McNemar's.

use base::FinishReason;
use base::console::{count, plain_zero};
use report::Interval;
use serde_json::{Value, json};

use crate::EvalError;
use crate::paired::Paired;
use crate::paired_metrics::{question_differences, set_differences};
use crate::results::{Results, Scored};
use crate::setting_differences::SettingDifferences;
use crate::summary::{is_binary, is_detection, per_question};

/// Two evaluations side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Metrics of both, the main metric of the task first.
    pub differences: Vec<Difference>,
    /// Questions that both answered, in the order of the first.
    pub pairs: Vec<Pair>,
    /// Questions that only one of them has.
    pub unpaired: [usize; 2],
    /// Completions of each, and how many of them met the limit of tokens.
    pub cut_off: [CutOff; 2],
    /// Settings that they do not share.
    pub setting_differences: SettingDifferences,
    /// Whether pairs are compared by right and wrong, else by their scores.
    pub is_binary: bool,
    /// Pairs of which the second is better.
    pub better: usize,
    /// Pairs of which the second is worse.
    pub worse: usize,
    /// Two-sided exact probability of so uneven a count among those that differ.
    pub p_value: f64,
}

/// How many completions of a side met the limit of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutOff {
    /// Completions that were asked for.
    pub completions: usize,
    /// Those of them that were cut off.
    pub cut: usize,
}

impl CutOff {
    fn of(results: &[&Scored]) -> Self {
        let asked = results.iter().filter(|scored| scored.finish_reason.is_some());
        let is_cut = |scored: &&&Scored| scored.finish_reason == Some(FinishReason::Length);
        Self { completions: asked.clone().count(), cut: asked.filter(is_cut).count() }
    }

    fn is_all(self) -> bool {
        self.completions > 0 && self.cut == self.completions
    }
}

/// A metric of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Its value in the first.
    pub before: f64,
    /// Its value in the second.
    pub after: f64,
    /// The second less the first.
    pub difference: Interval,
}

/// A question that both answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Indices of the completions in the first's results.
    pub before: Vec<usize>,
    /// Indices of the completions in the second's results.
    pub after: Vec<usize>,
    /// What the first's completions are worth, as compared.
    pub score_before: f64,
    /// What the second's completions are worth.
    pub score_after: f64,
}

impl Pair {
    /// Whether a correct completion became a wrong one or the other way round, by the majority where there
    /// are several.
    pub fn is_flipped(&self) -> bool {
        (self.score_before > 0.5) != (self.score_after > 0.5)
    }
}

/// The verdict of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval of the main metric's difference lies above 0.
    Better,
    /// It lies below 0.
    Worse,
    /// 0 lies in it.
    Undecided,
    /// The questions or the scoring differ: no interval would show which model is better.
    NotCalled,
}

/// Compares two results.
///
/// # Errors
/// Other tasks, no question in common, a metric that has no value.
pub fn compare(before: &Results, after: &Results) -> Result<Comparison, EvalError> {
    if before.task != after.task {
        let name = |results: &Results| json!(results.task).to_string();
        let cause = format!("tasks {} and {}", name(before), name(after));
        return Err(EvalError::Unpaired { cause });
    }
    let paired = Paired::of(before, after)?;
    let differences = if is_detection(before.task) {
        set_differences(before, after, &paired)?
    } else {
        question_differences(&paired)?
    };
    let all: Vec<&Scored> = [&paired.before[..], &paired.after[..]].concat();
    let is_binary = is_binary(&all) || !is_detection(before.task);
    let worth = |scored: &Scored| match is_binary {
        true => f64::from(scored.correct),
        false => scored.score,
    };
    let scores = [&paired.before, &paired.after].map(|results| per_question(results, worth));
    let mut pairs = paired.pairs;
    for (index, pair) in pairs.iter_mut().enumerate() {
        pair.score_before = scores[0][index];
        pair.score_after = scores[1][index];
    }
    let better = pairs.iter().filter(|p| p.score_after > p.score_before).count();
    let worse = pairs.iter().filter(|p| p.score_after < p.score_before).count();
    Ok(Comparison {
        differences,
        pairs,
        unpaired: paired.unpaired,
        cut_off: [&paired.before, &paired.after].map(|results| CutOff::of(results)),
        setting_differences: SettingDifferences::of(before, after),
        is_binary,
        better,
        worse,
        p_value: sign_test(better, worse),
    })
}

/// The exact two-sided sign test: the probability, were both signs equally likely, of counts at least
/// as uneven as these. 1 where there are none.
pub fn sign_test(better: usize, worse: usize) -> f64 {
    let (all, fewer) = (better + worse, better.min(worse));
    // Logarithms: 2^-all is 0 in an f64 from 1075 on.
    let mut log_term = -(all as f64) * std::f64::consts::LN_2;
    let mut log_terms = vec![log_term];
    for i in 1..=fewer {
        log_term += ((all - i + 1) as f64 / i as f64).ln();
        log_terms.push(log_term);
    }
    // The last term is the largest, as it is nearest to the middle.
    let tail: f64 = log_terms.iter().map(|term| (term - log_term).exp()).sum();
    (2.0 * tail * log_term.exp()).min(1.0)
}

impl Comparison {
    /// What the main metric's interval says, where it may speak.
    pub fn verdict(&self) -> Verdict {
        if self.why_not_called().is_some() {
            return Verdict::NotCalled;
        }
        match self.differences.first().map(|main| main.difference) {
            Some(interval) if interval.low > 0.0 => Verdict::Better,
            Some(interval) if interval.high < 0.0 => Verdict::Worse,
            _ => Verdict::Undecided,
        }
    }

    /// Why no winner is named, whatever the metrics are.
    pub fn why_not_called(&self) -> Option<String> {
        let [only_before, only_after] = self.unpaired;
        if only_before + only_after > 0 {
            return Some(format!(
                "the questions differ: {only_before} are in A alone, {only_after} in B alone"
            ));
        }
        if let Some((side, _)) = self.sides().find(|(_, cut_off)| cut_off.is_all()) {
            return Some(format!("every completion of {side} was cut off"));
        }
        let yardstick: Vec<&str> = self.setting_differences.of_yardstick().collect();
        (!yardstick.is_empty()).then(|| {
            let names = yardstick.join("`, `");
            format!("they are scored or asked by other rules: `{names}`")
        })
    }

    fn sides(&self) -> impl Iterator<Item = (&'static str, CutOff)> {
        ["A", "B"].into_iter().zip(self.cut_off)
    }

    /// How many completions of each side were cut off, where one has some.
    pub fn cut_off_sentence(&self) -> Option<String> {
        let parts = self.sides().filter(|(_, cut_off)| cut_off.cut > 0);
        let parts: Vec<String> = parts
            .map(|(side, cut_off)| {
                let completions = count(cut_off.completions as u64, "completion");
                format!("{} of {completions} of {side}", cut_off.cut)
            })
            .collect();
        (!parts.is_empty()).then(|| {
            format!("cut off at --max_new_tokens, and not scored beyond: {}", parts.join(", "))
        })
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        let Some(main) = self.differences.first() else {
            return String::new();
        };
        let verdict = match self.verdict() {
            Verdict::Better => "B is better",
            Verdict::Worse => "B is worse",
            Verdict::Undecided => "which is better cannot be told",
            Verdict::NotCalled => "which is better is not said",
        };
        let why = self.why_not_called();
        let why = why.map(|why| format!(", as {why}")).unwrap_or_default();
        let Interval { mean, low, high, .. } = main.difference;
        let shown = [main.before, main.after, mean, low, high];
        let [before, after, mean, low, high] = shown.map(|value| plain_zero(value, 4));
        format!(
            "{verdict}{why}: {} {before:.4} to {after:.4}, difference {mean:+.4} [{low:+.4}, {high:+.4}] over {} questions",
            main.name,
            self.pairs.len()
        )
    }

    /// The probability of the sign test in few digits.
    pub fn p_shown(&self) -> String {
        match self.p_value {
            p if p < 1e-4 => format!("{p:.1e}"),
            p => format!("{p:.4}"),
        }
    }

    /// All of it but the completions.
    pub fn to_json(&self, before: &Results, after: &Results) -> Value {
        let differences = self.differences.iter().map(|d| {
            let interval = d.difference;
            let json = json!({
                "a": d.before, "b": d.after, "difference": interval.mean,
                "low": interval.low, "high": interval.high,
            });
            (d.name.clone(), json)
        });
        let flipped = |to_right: bool| -> Vec<Value> {
            let pairs = self.pairs.iter().filter(|pair| pair.is_flipped());
            let pairs = pairs.filter(|pair| (pair.score_after > 0.5) == to_right);
            let places = pairs.map(|pair| &before.results[pair.before[0]]);
            places.map(|scored| json!({"row": scored.row, "place": scored.place})).collect()
        };
        json!({
            "verdict": match self.verdict() {
                Verdict::Better => "b is better",
                Verdict::Worse => "a is better",
                Verdict::Undecided => "cannot be told",
                Verdict::NotCalled => "not called",
            },
            "not_called_as": self.why_not_called(),
            "settings_differ": self.setting_differences.to_json(),
            "settings_known": {"a": self.setting_differences.are_known[0], "b": self.setting_differences.are_known[1]},
            "a": side(before),
            "b": side(after),
            "cut_off": {"a": self.cut_off[0].cut, "b": self.cut_off[1].cut},
            "num_questions": self.pairs.len(),
            "only_in_a": self.unpaired[0],
            "only_in_b": self.unpaired[1],
            "metrics": Value::Object(differences.collect()),
            "b_better_on": self.better,
            "b_worse_on": self.worse,
            "sign_test_p": self.p_value,
            "became_right": flipped(true),
            "became_wrong": flipped(false),
        })
    }
}

/// Whose completions a side holds, and by which settings they came about.
fn side(results: &Results) -> Value {
    json!({
        "model": results.model,
        "trained_as": results.trained_as,
        "settings": results.settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::EvalTask;
    use serde_json::Map;

    fn scored(row: usize, question: &str, score: f64) -> Scored {
        Scored {
            image: json!("a.png"),
            question: question.to_owned(),
            ground_truth: json!("yes"),
            model_output: String::new(),
            input_size: Value::Null,
            image_size: Value::Null,
            extracted_answer: Value::Null,
            correct: u8::from(score > 0.5),
            score,
            values: Map::new(),
            reason: String::new(),
            unread: None,
            finish_reason: None,
            truths: Vec::new(),
            predicted: Vec::new(),
            image_id: None,
            image_paths: Vec::new(),
            subset: "val".to_owned(),
            place: format!("val.jsonl:{}", row + 1),
            row,
            completion_index: 0,
            bad: None,
        }
    }

    fn results(scores: &[f64]) -> Results {
        let each = scores.iter().enumerate();
        Results {
            accuracy: 0.0,
            task: EvalTask::YesNo,
            model: "m".to_owned(),
            num_samples: 1,
            exclude_bad: false,
            apply_exif: false,
            subsets: vec!["val".to_owned()],
            settings: Map::from_iter([("temperature".to_owned(), json!(0.0))]),
            trained_as: Value::Null,
            results: each.map(|(row, score)| scored(row, &format!("q{row}"), *score)).collect(),
        }
    }

    #[test]
    fn the_sign_test_by_hand() {
        let close = |p: f64, expected: f64| assert!((p - expected).abs() < 1e-12, "{p} {expected}");
        close(sign_test(0, 0), 1.0);
        close(sign_test(1, 0), 1.0);
        close(sign_test(3, 3), 1.0);
        // 2 * (1 + 8) / 2^8
        close(sign_test(7, 1), 18.0 / 256.0);
        close(sign_test(0, 6), 2.0 / 64.0);
        // 2 * (1 + 10 + 45) / 2^10
        close(sign_test(2, 8), 112.0 / 1024.0);
        // Where 2^-n is 0: by the normal approximation with continuity (100 - 1) / sqrt(4000) = 1.5653.
        let p = sign_test(2_050, 1_950);
        assert!((p - 0.1175).abs() < 5e-4, "{p}");
        assert!(sign_test(3_000, 1_000) > 0.0 && sign_test(3_000, 1_000) < 1e-200);
    }

    #[test]
    fn ten_pairs_by_hand() {
        let before = results(&[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let after = results(&[1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
        let comparison = compare(&before, &after).unwrap();
        assert_eq!((comparison.better, comparison.worse), (5, 1));
        // 2 * (1 + 6) / 2^6
        assert!((comparison.p_value - 14.0 / 64.0).abs() < 1e-12);
        let main = &comparison.differences[0];
        assert_eq!((main.name.as_str(), main.before, main.after), ("accuracy", 0.4, 0.8));
        assert!((main.difference.mean - 0.4).abs() < 1e-12);
        // Deviation of the mean: sqrt((6/10 - 0.16) / 10) = 0.21; 0.4 -+ 0.41.
        assert!((main.difference.low - 0.0).abs() <= 0.11, "{:?}", main.difference);
        assert!((main.difference.high - 0.8).abs() <= 0.11, "{:?}", main.difference);
        let json = comparison.to_json(&before, &after);
        let rows = |key: &str| -> Vec<u64> {
            let flipped = json[key].as_array().unwrap().iter();
            flipped.map(|flip| flip["row"].as_u64().unwrap()).collect()
        };
        assert_eq!(rows("became_right"), [3, 4, 5, 6, 7]);
        assert_eq!(rows("became_wrong"), [2]);
        assert_eq!(comparison.differences.len(), 1, "0 and 1 alone: no score beside accuracy");
    }

    #[test]
    fn what_is_always_better_is_said_to_be() {
        let before = results(&[0.0; 40]);
        let after = results(&[1.0; 40]);
        let comparison = compare(&before, &after).unwrap();
        assert_eq!(comparison.verdict(), Verdict::Better);
        assert_eq!(compare(&after, &before).unwrap().verdict(), Verdict::Worse);
        assert_eq!(compare(&before, &before).unwrap().verdict(), Verdict::Undecided);
        assert_eq!(compare(&before, &before).unwrap().p_value, 1.0);
        assert!(comparison.sentence().starts_with("B is better: accuracy 0.0000 to 1.0000"));
    }

    #[test]
    fn a_side_that_was_cut_off_is_told() {
        let with_cut = |scores: &[f64], cut: usize| {
            let mut results = results(scores);
            for (index, scored) in results.results.iter_mut().enumerate() {
                scored.finish_reason = Some(match index < cut {
                    true => FinishReason::Length,
                    false => FinishReason::Stop,
                });
            }
            results
        };
        let before = with_cut(&[0.0; 40], 40);
        for (cut, verdict) in [(0, Verdict::NotCalled), (3, Verdict::NotCalled)] {
            let after = with_cut(&[1.0; 40], cut);
            let comparison = compare(&before, &after).unwrap();
            assert_eq!(comparison.verdict(), verdict);
            let why = comparison.why_not_called().unwrap();
            assert_eq!(why, "every completion of A was cut off");
            let told = comparison.cut_off_sentence().unwrap();
            assert!(told.contains("40 of 40 completions of A"), "{told}");
            assert_eq!(told.contains("3 of 40 completions of B"), cut == 3, "{told}");
        }
        let some = compare(&with_cut(&[0.0; 40], 39), &with_cut(&[1.0; 40], 0)).unwrap();
        assert_eq!(some.verdict(), Verdict::Better);
        assert!(some.cut_off_sentence().is_some());
        let none = compare(&results(&[0.0; 40]), &results(&[1.0; 40])).unwrap();
        assert_eq!(none.cut_off_sentence(), None);
    }

    #[test]
    fn what_keeps_questions_apart_is_said() {
        let before = results(&[1.0; 4]);
        let apart = |change: fn(&mut Scored)| {
            let mut after = results(&[1.0; 4]);
            after.results.iter_mut().for_each(change);
            compare(&before, &after).unwrap_err().to_string()
        };
        for (change, parts) in [
            (
                (|scored| scored.subset = "val2".to_owned()) as fn(&mut Scored),
                ["the names of their files differ: `val` and `val2`", "hint: "],
            ),
            (
                |scored| scored.ground_truth = json!([1, 2, 3, 4]),
                ["their true answers differ", "--solution_box_format"],
            ),
            (
                |scored| scored.image = json!("b.png"),
                ["their images differ: `\"a.png\"` and `\"b.png\"`", "hint: "],
            ),
            (
                |scored| scored.question.push('?'),
                ["no question is in both", "no question is in both"],
            ),
        ] {
            let said = apart(change);
            for part in parts {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }

    #[test]
    fn questions_pair_by_what_they_ask() {
        let before = results(&[1.0, 0.0, 1.0]);
        let mut after = results(&[1.0, 0.0, 1.0]);
        after.results.reverse();
        after.results[0].question = "another".to_owned();
        for (row, scored) in after.results.iter_mut().enumerate() {
            scored.row = row;
        }
        let comparison = compare(&before, &after).unwrap();
        assert_eq!(comparison.unpaired, [1, 1]);
        let pairs = comparison.pairs.iter();
        let indices: Vec<(usize, usize)> = pairs.map(|p| (p.before[0], p.after[0])).collect();
        assert_eq!(indices, [(0, 2), (1, 1)]);
        assert_eq!((comparison.better, comparison.worse), (0, 0));
        assert_eq!(comparison.verdict(), Verdict::NotCalled);
        let sentence = comparison.sentence();
        assert!(sentence.contains("1 are in A alone, 1 in B alone"), "{sentence}");
        after.results.iter_mut().for_each(|scored| scored.question.push('!'));
        assert!(compare(&before, &after).is_err());
        after.task = EvalTask::Mcq;
        let error = compare(&before, &after).unwrap_err().to_string();
        assert!(error.contains("\"yes_no\" and \"mcq\""), "{error}");
    }
}
