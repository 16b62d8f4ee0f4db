//! Names, weights, rows that lack something, rewards of the user's own.

use std::time::Duration;

use rewards::{
    Reward, RewardError, RewardInput, RewardOptions, RewardSet, ScoringTime, accuracy_methods,
    family_of,
};
use serde_json::Map;

use crate::{both, generic_options, input, rec_options};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn build_error(names: &[String], weights: Option<&[f64]>, options: &RewardOptions) -> RewardError {
    RewardSet::build(names, weights, options).err().expect("an error")
}

#[test]
fn an_unknown_reward_names_the_nearest_and_lists_all() {
    let error = build_error(&names(&["acuracy"]), None, &generic_options());
    assert_eq!(
        error.to_string(),
        "unknown reward `acuracy`\nhint: did you mean `accuracy`? valid: `accuracy`, `format`, \
         `length`, `repetition`, `count`, `json_valid`, `overlong`, `llm`, `giou`, `diou`, `point_in_box`, `click`"
    );
}

#[test]
fn an_unknown_method_names_row_nearest_and_all() {
    let columns = Map::new();
    let good = input("a", "a", &columns);
    let bad = RewardInput { accu_reward_method: Some("all_mach"), ..good };
    let set = both(&generic_options());
    let error = set.score(&[good, bad]).expect_err("an unknown method");
    assert_eq!(error.row(), Some(1));
    let known: Vec<String> = accuracy_methods().map(|name| format!("`{name}`")).collect();
    assert_eq!(
        error.to_string(),
        format!(
            "row 1: unknown accuracy method `all_mach`\nhint: did you mean `all_match`? valid: {}",
            known.join(", ")
        )
    );
    assert!(known.len() > 1 && known.contains(&"`odLength`".to_owned()));
    assert_eq!(set.check(1, "a", Some("all_mach")), Err(error));
    assert_eq!(set.check(0, "a", None), Ok(()));
    assert_eq!(set.check(0, "a", Some("all_match")), Ok(()));
}

#[test]
fn weights_must_fit_and_are_applied() {
    let options = generic_options();
    let two = names(&["accuracy", "format"]);
    let error = build_error(&two, Some(&[1.0]), &options);
    assert_eq!(error, RewardError::WeightCount { weights: 1, rewards: 2 });
    assert!(matches!(
        build_error(&two, Some(&[1.0, f64::NAN]), &options),
        RewardError::Weight { reward, .. } if reward == "format"
    ));
    let set = RewardSet::build(&two, Some(&[2.0, 0.25]), &options).expect("fits");
    let columns = Map::new();
    let scores =
        set.score(&[input("<think>a</think><answer>B.</answer>", "b", &columns)]).expect("scores");
    assert_eq!(scores.per_reward, [[Some(1.0)], [Some(1.0)]]);
    assert_eq!(scores.total, [2.25]);
}

#[test]
fn repeated_and_missing_names_are_errors() {
    let options = generic_options();
    assert!(matches!(
        build_error(&names(&["format", "format"]), None, &options),
        RewardError::RepeatedReward { .. }
    ));
    assert!(matches!(build_error(&[], None, &options), RewardError::NoReward { .. }));
}

#[test]
fn a_familys_own_rewards_need_the_task_rec_and_a_patch() {
    let one = names(&["accuracy"]);
    let options = RewardOptions {
        task_type: Some("ic".to_owned()),
        ..rec_options(family_of("internvl"), 14)
    };
    assert!(
        build_error(&one, None, &options)
            .to_string()
            .ends_with("got task type `ic`, expected `rec`")
    );
    assert_eq!(
        build_error(&one, None, &rec_options(family_of("qwen2_5_vl"), 0)),
        RewardError::PatchSize
    );
}

#[test]
fn families_read_the_same_answer_in_their_own_way() {
    // The model saw 112 x 112 of a 224 x 224 image: for Qwen the box doubles.
    let text = "<think>t</think><answer>[10, 10, 20, 20]</answer>";
    let columns = Map::new();
    let row = RewardInput {
        image_sizes: &[[224, 224]],
        ..input(text, "<answer> [20, 20, 40, 40] </answer>", &columns)
    };
    let score = |family| {
        let scores = both(&rec_options(family, 14)).score(&[row]).expect("scores");
        [scores.per_reward[0][0], scores.per_reward[1][0]]
    };
    assert_eq!(score(family_of("qwen2_5_vl")), [Some(1.0), Some(0.0)]);
    assert_eq!(score(family_of("internvl")), [Some(0.0), Some(1.0)]);
    assert_eq!(score(family_of("glm4v")), [Some(0.0), Some(1.0)]);
}

#[test]
fn qwen_needs_sizes_and_a_box_in_the_solution() {
    let columns = Map::new();
    let row = input("no box", "[1, 2, 3, 4]", &columns);
    let set = both(&rec_options(family_of("qwen2_5_vl"), 14));
    let error = |row| set.score(&[row]).expect_err("something is missing");
    let without_grid = error(RewardInput { image_grid_thw: &[], ..row });
    assert!(without_grid.to_string().contains("row 0: no image_grid_thw"), "{without_grid}");
    let without_size = error(RewardInput { image_sizes: &[], ..row });
    assert!(without_size.to_string().contains("row 0: no image_size"), "{without_size}");
    let empty = error(RewardInput { image_sizes: &[[0, 5]], ..row });
    assert!(empty.to_string().contains("the image is 0 x 5 px"), "{empty}");
    let unseen = error(RewardInput { image_grid_thw: &[[1, 0, 4]], ..row });
    assert!(unseen.to_string().contains("the model's input is 56 x 0 px"), "{unseen}");

    let text = set.check(7, "<answer> yes </answer>", None).expect_err("not a box");
    assert_eq!(
        text.to_string(),
        "reward `accuracy`, row 7: solution `<answer> yes </answer>`: not a list of numbers, \
         expected `[x1, y1, x2, y2]`"
    );
    assert_eq!(set.check(7, "[1, 2, 3, 4]", None), Ok(()));
}

struct Fixed(&'static str, Vec<Option<f64>>);

impl Reward for Fixed {
    fn name(&self) -> &str {
        self.0
    }

    fn score(&self, _rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(self.1.clone())
    }
}

fn fixed(values: &[Option<f64>], rows: usize) -> Result<Vec<f64>, RewardError> {
    let columns = Map::new();
    let set = RewardSet::new(
        vec![
            Box::new(Fixed("fixed", values.to_vec())),
            Box::new(Fixed("half", vec![Some(0.5); rows])),
        ],
        None,
    )?;
    let row = input("a", "a", &columns);
    set.score(&vec![row; rows]).map(|scores| scores.total)
}

#[test]
fn two_rewards_of_one_name_are_an_error() {
    let rewards: Vec<Box<dyn Reward>> =
        vec![Box::new(Fixed("mine", Vec::new())), Box::new(Fixed("mine", Vec::new()))];
    assert_eq!(
        RewardSet::new(rewards, None).err(),
        Some(RewardError::RepeatedReward { name: "mine".to_owned() })
    );
}

#[test]
fn a_reward_that_does_not_apply_is_left_out_of_the_sum() {
    assert_eq!(fixed(&[None, Some(2.0)], 2), Ok(vec![0.5, 2.5]));
}

#[test]
fn rewards_not_finite_or_too_few_are_errors() {
    let error = fixed(&[Some(1.0), Some(f64::INFINITY)], 2).expect_err("infinite");
    assert_eq!(error.to_string(), "reward `fixed`, row 1: got inf, expected a finite number");
    for large in [1e308, -1e308, f64::MAX, 1.1e50] {
        let error = fixed(&[Some(1.0), Some(large)], 2).expect_err("too large");
        let expected = format!(
            "reward `fixed`, row 1: got {large:e}, expected at most 1e50 in size, as the advantages square it"
        );
        assert_eq!((error.to_string(), error.row()), (expected, Some(1)));
        let rewards: Vec<Box<dyn Reward>> = vec![Box::new(Fixed("mine", Vec::new()))];
        let error = RewardSet::new(rewards, Some(&[large])).err().expect("too large");
        assert!(error.to_string().contains("at most 1e50 in size"), "{error}");
    }
    assert_eq!(fixed(&[Some(1e50), Some(-1e50)], 2), Ok(vec![1e50, -1e50]));
    assert!(matches!(
        fixed(&[Some(1.0)], 2),
        Err(RewardError::ScoreCount { got: 1, expected: 2, .. })
    ));
}

/// Scores the batch as a whole and takes its time.
struct Slow;

impl Reward for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        std::thread::sleep(Duration::from_millis(20));
        Ok(vec![Some(rows.len() as f64); rows.len()])
    }

    fn is_by_row(&self) -> bool {
        false
    }
}

#[test]
fn rows_are_timed_one_by_one_where_they_are_scored_so() {
    let columns = Map::new();
    let row = RewardInput { accu_reward_method: Some("all_match"), ..input("a", "a", &columns) };
    let set = both(&generic_options());
    let rows = [row, input("b", "a", &columns), row];
    let (scores, times) = set.score_timed(&rows).expect("scores");
    assert_eq!(Ok(scores), set.score(&rows));
    for time in &times {
        assert!(matches!(time, ScoringTime::Rows(rows) if rows.len() == 3), "{time:?}");
    }
    let bad = RewardInput { accu_reward_method: Some("all_mach"), ..row };
    let error = set.score_timed(&[row, row, bad]).expect_err("the method");
    assert_eq!(Err(error), set.score(&[row, row, bad]));

    let set = RewardSet::new(vec![Box::new(Slow)], None).expect("a set");
    let (scores, times) = set.score_timed(&rows).expect("scores");
    assert_eq!(scores.total, [3.0; 3], "the batch was split");
    assert!(
        matches!(times[..], [ScoringTime::Batch(time)] if time >= Duration::from_millis(20)),
        "{times:?}"
    );
}
