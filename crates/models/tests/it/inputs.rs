//! Prompts with images: positions, packing, and what does not fit.

use std::sync::Arc;

use base::{ImageLayout, PreparedImage, Prompt};
use models::{InputsBuilder, ModelError, VisionLanguageModel};
use proptest::prelude::*;
use tch::Kind;

use crate::support::{
    PATCH_DIM, assert_names, checkpoint, load, logits, max_difference, prompt, test_image,
};

const IMAGE: u32 = 548;

#[derive(Clone, Debug)]
enum Part {
    Text(usize),
    /// Merged patches down and across.
    Image(usize, usize),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = prop_oneof![
        (1usize..6).prop_map(Part::Text),
        (1usize..6, 1usize..6).prop_map(|(h, w)| Part::Image(h, w)),
    ];
    prop::collection::vec(part, 1..8)
}

/// Every part begins one after the largest position before it; in an image, time stands still.
fn restated(parts: &[Part]) -> (Vec<u32>, Vec<[usize; 3]>, Vec<[i64; 3]>) {
    let (mut ids, mut grids, mut positions) = (Vec::new(), Vec::new(), Vec::<[i64; 3]>::new());
    for part in parts {
        let start = positions.iter().flatten().max().map_or(0, |max| max + 1);
        match *part {
            Part::Text(len) => {
                ids.extend(0..len as u32);
                positions.extend((0..len as i64).map(|i| [start + i; 3]));
            }
            Part::Image(rows, columns) => {
                grids.push([1, 2 * rows, 2 * columns]);
                for cell in 0..rows * columns {
                    ids.push(IMAGE);
                    let (row, column) = ((cell / columns) as i64, (cell % columns) as i64);
                    positions.push([start, start + row, start + column]);
                }
            }
        }
    }
    (ids, grids, positions)
}

#[test]
fn positions_of_text_and_images() {
    let model = load(&checkpoint("nested"));
    proptest!(|(parts in parts())| {
        let (ids, grids, positions) = restated(&parts);
        let layouts: Vec<_> = grids.iter().map(|grid| ImageLayout::merged(*grid, 2)).collect();
        let got = model.prompt_positions(&ids, &layouts.iter().collect::<Vec<_>>());
        let next = positions.iter().flatten().max().map_or(0, |max| max + 1);
        prop_assert_eq!(got.positions, positions);
        prop_assert_eq!(got.next, next);
    });
}

#[test]
fn an_image_used_twice_goes_through_the_tower_once() {
    let model = load(&checkpoint("nested"));
    let (a, b) = (test_image(1, 4, 6), test_image(2, 4, 4));
    let mut builder = InputsBuilder::new(model.as_ref());
    builder.push_prompt(&prompt(&[1, 2], &[a.clone(), b.clone()], &[3])).unwrap();
    builder.push_prompt(&prompt(&[4], &[b.clone(), a.clone()], &[])).unwrap();
    let tokens = builder.num_tokens() as i64;
    let batch = builder.build();
    assert_eq!(batch.input_ids.size(), [tokens]);
    assert_eq!(batch.position_ids.size(), [3, tokens]);
    let images = batch.images.unwrap();
    assert_eq!(images.tiles(), [[1, 4, 6], [1, 4, 4]]);
    let pixel_values = images.pixel_values(Kind::Float, torch::device_of_tests());
    assert_eq!(pixel_values.size(), [40, PATCH_DIM as i64]);
    let sources = Vec::<i64>::try_from(&images.sources).unwrap();
    assert_eq!(sources, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5]);
    let ids = Vec::<i64>::try_from(&batch.input_ids).unwrap();
    let targets = Vec::<i64>::try_from(&images.targets).unwrap();
    let placeholders: Vec<i64> = (0..tokens).filter(|&i| ids[i as usize] == 548).collect();
    assert_eq!(targets, placeholders);
}

#[test]
fn packed_prompts_are_those_alone() {
    let model = load(&checkpoint("nested"));
    let (a, b) = (test_image(1, 4, 6), test_image(2, 18, 12));
    let items = [
        (prompt(&[1, 2], &[a.clone(), b.clone()], &[3]), vec![vec![7, 8, 9], vec![10]]),
        (prompt(&[4, 5, 6], &[], &[]), vec![vec![11, 12]]),
        (prompt(&[4], &[b, a], &[1, 1]), vec![]),
    ];
    let packed = logits(model.as_ref(), &items);
    let mut at = 0;
    for (prompt, completions) in &items {
        let alone = logits(model.as_ref(), &[(prompt.clone(), vec![])]);
        let len = alone.size()[0];
        assert!(max_difference(&packed.narrow(0, at, len), &alone) < 1e-5);
        at += len;
        for completion in completions {
            let alone = logits(model.as_ref(), &[(prompt.clone(), vec![completion.clone()])]);
            let tokens = completion.len() as i64;
            let alone = alone.narrow(0, len, tokens);
            assert!(max_difference(&packed.narrow(0, at, tokens), &alone) < 1e-5);
            at += tokens;
        }
    }
    assert_eq!(at, packed.size()[0]);
}

fn refused(model: &dyn VisionLanguageModel, prompt: &Prompt) -> String {
    let error: ModelError = InputsBuilder::new(model).push_prompt(prompt).unwrap_err();
    error.to_string()
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let model = load(&checkpoint("nested"));
    let image = test_image(1, 4, 4);
    let with = |ids: &[u32], images: &[Arc<PreparedImage>]| Prompt {
        ids: ids.to_vec(),
        images: images.to_vec(),
    };
    let two = [image.clone(), image.clone()];
    for (ids, images, expected, got) in [
        (vec![1, IMAGE, IMAGE], &two[..1], "[4]", "[2]"),
        (vec![1, IMAGE], &[], "[]", "[1]"),
        (vec![1, 2], &two[..1], "[4]", "[]"),
        // As many placeholders as patches, but shared out wrongly.
        (
            vec![IMAGE, IMAGE, IMAGE, 1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE],
            &two[..],
            "[4, 4]",
            "[3, 4, 1]",
        ),
        (
            vec![IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 1, IMAGE, IMAGE, IMAGE],
            &two[..],
            "[4, 4]",
            "[4, 1, 3]",
        ),
    ] {
        assert_names(
            &refused(model.as_ref(), &with(&ids, images)),
            &[&format!("in runs of {got}, its images give {expected}")],
        );
    }
    // Images without a token between them are two all the same.
    let mut builder = InputsBuilder::new(model.as_ref());
    builder.push_prompt(&with(&[IMAGE; 8], &two)).unwrap();

    assert_names(&refused(model.as_ref(), &with(&[1, 558], &[])), &["token id 558", "558 rows"]);
    assert_names(&refused(model.as_ref(), &with(&[], &[])), &["without tokens"]);
    let mut wide = image.as_ref().clone();
    wide.pixel_values = vec![0.0; 16 * 3 * 2 * 16 * 16];
    let message = refused(model.as_ref(), &with(&[IMAGE; 4], &[Arc::new(wide)]));
    assert_names(&message, &["1536", "1176", "`patch_size`"]);
}
