//! Units of boxes: the same box in other units earns the same, and a row that lacks a size is named.

use rewards::{
    BoxFormat, BoxUnits, RewardError, RewardFamily, RewardInput, RewardOptions, RewardSet,
    family_of,
};
use serde::Deserialize;
use serde_json::Map;
use testing::golden_cases;

use crate::{both, generic_options, input, rec_options};

const FORMATS: [BoxFormat; 4] =
    [BoxFormat::Absolute, BoxFormat::ModelInput, BoxFormat::Relative1000, BoxFormat::Relative1];

const FAMILIES: [&str; 6] =
    ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "glm4v", "unheard_of"];

/// Of an image of 400 x 200 px, which the model sees as 112 x 56.
const IMAGE: [u32; 2] = [400, 200];
const GRID: [usize; 3] = [1, 4, 8];

/// One box in each of the formats.
fn same_box(format: BoxFormat) -> &'static str {
    match format {
        BoxFormat::Absolute => "[100, 50, 200, 150]",
        BoxFormat::ModelInput => "[28, 14, 56, 42]",
        BoxFormat::Relative1000 => "[250, 250, 500, 750]",
        BoxFormat::Relative1 => "[0.25, 0.25, 0.5, 0.75]",
    }
}

/// The centre of that box.
fn same_point(format: BoxFormat) -> &'static str {
    match format {
        BoxFormat::Absolute => "(150, 100)",
        BoxFormat::ModelInput => "(42, 28)",
        BoxFormat::Relative1000 => "(375, 500)",
        BoxFormat::Relative1 => "(0.375, 0.5)",
    }
}

fn units(answer: impl Into<Option<BoxFormat>>, solution: impl Into<Option<BoxFormat>>) -> BoxUnits {
    BoxUnits { answer: answer.into(), solution: solution.into() }
}

fn set(names: &[&str], options: RewardOptions) -> Result<RewardSet, RewardError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    RewardSet::build(&names, None, &options)
}

fn scores(set: &RewardSet, row: RewardInput<'_>) -> Vec<f64> {
    let scores = set.score(&[row]).expect("scores").per_reward;
    scores.iter().map(|of| of[0].expect("applies")).collect()
}

fn rec(family: RewardFamily, box_units: BoxUnits) -> RewardSet {
    both(&RewardOptions { box_units, ..rec_options(family, 14) })
}

fn answered(bbox: &str) -> String {
    format!("<think>t</think><answer>{{\"bbox_2d\": {bbox}}}</answer>")
}

#[test]
fn one_box_is_right_in_all_units() {
    let columns = Map::new();
    for (answer, solution) in FORMATS.iter().flat_map(|a| FORMATS.map(|b| (*a, b))) {
        let completion = answered(same_box(answer));
        let row = RewardInput {
            image_sizes: &[IMAGE],
            image_grid_thw: &[GRID],
            ..input(&completion, same_box(solution), &columns)
        };
        for family in FAMILIES.map(family_of) {
            let box_units = units(answer, solution);
            let got = scores(&rec(family, box_units), row);
            assert!((got[0] - 1.0).abs() < 1e-9, "{family:?} {answer:?} {solution:?}: {got:?}");
            assert_eq!(got[1], 1.0, "{family:?} {answer:?}: form");
            let options = RewardOptions { family, box_units, ..generic_options() };
            let grounding = set(&["giou", "diou", "point_in_box"], options.clone());
            let got = scores(&grounding.expect("all exist"), row);
            let is_one = got.iter().all(|score| (score - 1.0).abs() < 1e-9);
            assert!(is_one, "{family:?} {answer:?} {solution:?}: {got:?}");
            let click = format!("<answer>click{}</answer>", same_point(answer));
            let row = RewardInput { completion: &click, ..row };
            let clicked = set(&["click", "point_in_box"], options).expect("both exist");
            assert_eq!(scores(&clicked, row), [1.0, 1.0], "{answer:?} {solution:?}");
        }
    }
}

#[test]
fn lists_of_boxes_are_right_in_all_units() {
    let columns = Map::new();
    let listed = |format| {
        let list = format!("[{{\"bbox_2d\": {}, \"label\": \"cat\"}}]", same_box(format));
        format!("<think>t</think><answer>```json\n{list}\n```</answer>")
    };
    for method in ["map", "map_strict", "od_ap", "od_ap50", "odLength", "weighted_sum"] {
        for (answer, solution) in FORMATS.iter().flat_map(|a| FORMATS.map(|b| (*a, b))) {
            let (completion, truth) = (listed(answer), listed(solution));
            let row = RewardInput {
                accu_reward_method: Some(method),
                image_sizes: &[IMAGE],
                image_grid_thw: &[GRID],
                ..input(&completion, &truth, &columns)
            };
            let score = |box_units| {
                let options = RewardOptions { box_units, ..generic_options() };
                scores(&both(&options), row)[0]
            };
            let what = format!("{method} {answer:?} {solution:?}");
            assert!((score(units(answer, solution)) - 1.0).abs() < 1e-9, "{what}");
            // Numbers as they stand: other units are other boxes, and shares lie within a pixel.
            let raw = score(BoxUnits::default());
            let is_found =
                answer == solution && !(method == "weighted_sum" && answer == BoxFormat::Relative1);
            assert_eq!(raw > 0.9, is_found, "{what}: {raw}");
        }
    }
}

#[derive(Debug, Deserialize)]
struct RecCase {
    completion: String,
    solution: String,
    image_size: [u32; 2],
    image_grid_thw: [usize; 3],
}

#[test]
fn units_that_are_the_familys_own_change_no_bit() {
    let columns = Map::new();
    for case in golden_cases::<RecCase>("rewards/vlm_r1/rec.jsonl", 500) {
        let row = RewardInput {
            image_sizes: &[case.image_size],
            image_grid_thw: &[case.image_grid_thw],
            ..input(&case.completion, &case.solution, &columns)
        };
        for (family, own) in [
            (family_of("qwen2_5_vl"), units(BoxFormat::ModelInput, None)),
            (family_of("qwen2_5_vl"), units(None, BoxFormat::Absolute)),
            (family_of("qwen2_vl"), units(BoxFormat::ModelInput, None)),
            (family_of("qwen3_vl"), units(BoxFormat::Relative1000, None)),
            (family_of("internvl"), units(BoxFormat::Relative1000, BoxFormat::Relative1000)),
            (family_of("internvl"), units(None, BoxFormat::Relative1000)),
            (family_of("glm4v"), units(BoxFormat::Absolute, None)),
        ] {
            let [unset, set] =
                [BoxUnits::default(), own].map(|units| rec(family, units).score(&[row]));
            assert_eq!(unset, set, "{family:?} {own:?}: {case:?}");
        }
    }
}

#[test]
fn only_sizes_that_are_needed_are_asked_for() {
    let columns = Map::new();
    let completion = answered(same_box(BoxFormat::Relative1000));
    let bare = RewardInput {
        image_sizes: &[],
        image_grid_thw: &[],
        ..input(&completion, "[1, 2, 3, 4]", &columns)
    };
    let sized = RewardInput { image_sizes: &[IMAGE], ..bare };
    let error = |box_units, row| {
        let error = rec(family_of("qwen2_5_vl"), box_units).score(&[bare_of(row), row]);
        error.map(drop).map_err(|error| (error.row(), error.to_string()))
    };
    // The first row stands in, so that the second is the one at fault.
    fn bare_of(row: RewardInput<'_>) -> RewardInput<'_> {
        RewardInput { image_sizes: &[IMAGE], image_grid_thw: &[GRID], ..row }
    }
    assert_eq!(error(units(BoxFormat::Absolute, None), bare), Ok(()));
    assert_eq!(error(units(BoxFormat::Relative1000, None), sized), Ok(()));
    let relative = units(BoxFormat::Relative1000, BoxFormat::Relative1000);
    assert_eq!(error(relative, bare), Ok(()));
    for (box_units, row, what) in [
        (BoxUnits::default(), sized, "image_grid_thw"),
        (units(BoxFormat::Relative1000, None), bare, "image_size"),
        (units(None, BoxFormat::Relative1), sized, "image_grid_thw"),
        (units(BoxFormat::Relative1, BoxFormat::Relative1), bare, "image_size"),
        (units(BoxFormat::Absolute, BoxFormat::ModelInput), sized, "image_grid_thw"),
    ] {
        let (row, text) = error(box_units, row).expect_err("a size is missing");
        assert_eq!(row, Some(1), "{box_units:?}");
        let expected = format!("reward `accuracy`, row 1: no {what}, needed to convert");
        assert!(text.starts_with(&expected), "{box_units:?}: {text}");
    }
}

#[test]
fn methods_of_text_need_no_sizes_and_those_of_boxes_name_the_row() {
    let columns = Map::new();
    let set = both(&RewardOptions {
        box_units: units(BoxFormat::Relative1000, None),
        ..generic_options()
    });
    let text = RewardInput { image_sizes: &[], ..input("<answer>a</answer>", "a", &columns) };
    assert_eq!(set.score(&[text]).expect("scores").per_reward[0], [Some(1.0)]);
    let boxes = RewardInput { accu_reward_method: Some("map"), ..text };
    let error = set.score(&[text, boxes]).expect_err("no size");
    assert_eq!(error.row(), Some(1));
    assert!(error.to_string().contains("no image_size"), "{error}");
}

#[test]
fn patches_of_no_size_are_refused_where_they_count() {
    let build = |box_units| {
        let options = RewardOptions { patch_size: 0, box_units, ..generic_options() };
        set(&["accuracy"], options).err()
    };
    assert_eq!(build(BoxUnits::default()), None);
    assert_eq!(build(units(BoxFormat::Relative1, None)), None);
    let seen = units(BoxFormat::ModelInput, None);
    assert_eq!(build(seen), Some(RewardError::PatchSize));
}

#[test]
fn a_box_too_large_for_its_units_is_a_bad_answer_and_no_error() {
    let columns = Map::new();
    let huge = "9".repeat(308);
    let bbox = format!("[0, 0, {huge}, -{huge}]");
    let list = format!("[{{\"bbox_2d\": {bbox}, \"label\": \"cat\"}}]");
    let truth = "[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cat\"}]";
    let (completion, truth) = (
        format!("<answer>```json\n{list}\n```</answer>"),
        format!("<answer>```json\n{truth}\n```</answer>"),
    );
    for method in ["map", "map_strict", "od_ap", "od_ap50", "odLength", "weighted_sum"] {
        let row = RewardInput {
            accu_reward_method: Some(method),
            image_sizes: &[IMAGE],
            ..input(&completion, &truth, &columns)
        };
        let options =
            RewardOptions { box_units: units(BoxFormat::Relative1, None), ..generic_options() };
        assert_eq!(scores(&both(&options), row)[0], 0.0, "{method}");
    }
    let completion = answered(&bbox);
    let row = RewardInput { image_sizes: &[IMAGE], ..input(&completion, "[1, 2, 3, 4]", &columns) };
    for family in FAMILIES.map(family_of) {
        let set = rec(family, units(BoxFormat::Relative1, None));
        assert_eq!(scores(&set, row)[0], 0.0, "{family:?}");
    }
}

#[test]
fn a_family_without_rewards_in_vlm_r1_writes_thousandths_of_an_image_whose_boxes_are_pixels() {
    let columns = Map::new();
    let completion = answered(same_box(BoxFormat::Relative1000));
    let list = |format| {
        let list = format!("[{{\"bbox_2d\": {}, \"label\": \"cat\"}}]", same_box(format));
        format!("<answer>```json\n{list}\n```</answer>")
    };
    let (listed, truths) = (list(BoxFormat::Relative1000), list(BoxFormat::Absolute));
    let row = RewardInput {
        image_sizes: &[IMAGE],
        image_grid_thw: &[],
        ..input(&completion, same_box(BoxFormat::Absolute), &columns)
    };
    let lists = RewardInput {
        completion: &listed,
        solution: &truths,
        accu_reward_method: Some("map"),
        ..row
    };
    for (family, one_box, map) in [
        ("qwen3_vl", 1.0, 1.0),
        ("unheard_of", 1.0, 1.0),
        // As they stand.
        ("internvl", 0.0, 0.0),
        ("glm4v", 0.0, 0.0),
    ] {
        let family = family_of(family);
        let got = scores(&rec(family, BoxUnits::default()), row)[0];
        assert!((got - one_box).abs() < 0.05, "{family:?}: {got}");
        let set = both(&RewardOptions { family, ..generic_options() });
        assert!((scores(&set, lists)[0] - map).abs() < 1e-9, "{family:?}");
    }
}

#[test]
fn what_is_shown_on_the_image_is_what_is_compared() {
    use BoxFormat::{Absolute, ModelInput, Relative1, Relative1000};
    let of = |family, answer, solution| units(answer, solution).on_image(family_of(family));
    for (family, expected) in [
        ("qwen2_vl", [ModelInput, Absolute]),
        ("qwen3_vl", [Relative1000, Absolute]),
        ("unheard_of", [Relative1000, Absolute]),
        ("internvl", [Relative1000, Relative1000]),
        ("glm4v", [Absolute, Absolute]),
    ] {
        assert_eq!(of(family, None, None), expected, "{family}");
        assert_eq!(family_of(family).data_boxes(), expected[1], "{family}");
        assert_eq!(of(family, Some(Relative1), None), [Relative1, Absolute], "{family}");
        let data = of(family, None, Some(Relative1));
        let is_alike = family_of(family).data_alike;
        let answer = if is_alike { Relative1 } else { expected[0] };
        assert_eq!(data, [answer, Relative1], "{family}");
    }
}
