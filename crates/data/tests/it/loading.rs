//! From rows to prompts on worker threads.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use base::Example;
use data::{
    DataError, DataFile, DataFiles, EpochOrder, Loaded, LoaderOptions, OnBadRow, Processor,
    ProcessorOptions, PromptLoader, PromptTemplate, RowChecks, load_rows,
};

use crate::prompts::options;
use testing::golden;

const OPTIONS: LoaderOptions = LoaderOptions {
    workers: 3,
    ahead: 4,
    cache_bytes: 1 << 20,
    on_bad_row: OnBadRow::Stop,
    digests: true,
};

/// Rows over the golden images; row 2 of them shows a truncated one.
fn examples(dir: &Path) -> Arc<[Example]> {
    for name in ["one.png", "wide.png"] {
        fs::copy(golden("text/images").join(name), dir.join(name)).expect("copies");
    }
    let whole = fs::read(golden("text/images/one.png")).expect("reads");
    fs::write(dir.join("cut.png"), &whole[..whole.len() / 2]).expect("writes");
    let rows: String = [r#""one.png""#, r#"["wide.png", "one.png", "wide.png"]"#, r#""cut.png""#, "null"]
        .map(|image| {
            format!(
                "{{\"image\": {image}, \"conversations\": [{{\"from\": \"human\", \"value\": \"Where?\"}}, {{\"from\": \"gpt\", \"value\": \"[1, 2, 3, 4]\"}}]}}\n"
            )
        })
        .concat();
    let path = dir.join("train.jsonl");
    fs::write(&path, rows).expect("writes");
    let files = vec![DataFile { path, image_folder: Some(dir.to_owned()), reward_method: None }];
    let report = load_rows(&DataFiles { files }, &RowChecks::default(), OnBadRow::Stop);
    report.expect("heads are whole").rows.into()
}

fn loader(
    examples: &Arc<[Example]>,
    order: Vec<usize>,
    options: LoaderOptions,
    processor: ProcessorOptions,
) -> PromptLoader {
    let processor = Processor::from_dir(&golden("text/tokenizer"), &processor).expect("a folder");
    let template = PromptTemplate::resolve("rec").expect("a task");
    PromptLoader::new(
        Arc::clone(examples),
        Arc::new(processor),
        template,
        order.into_iter(),
        options,
    )
    .expect("threads")
}

#[test]
fn prompts_come_in_order_and_share_images() {
    let dir = tempfile::tempdir().expect("a folder");
    let examples = examples(dir.path());
    let order = vec![1, 0, 3, 1, 1, 0];
    let prompts: Vec<_> = loader(&examples, order.clone(), OPTIONS, options())
        .map(|loaded| match loaded.expect("good rows") {
            Loaded::Ready { example_index, prompt } => (example_index, prompt),
            Loaded::Skipped { row, .. } => panic!("{row}"),
        })
        .collect();
    assert!(prompts.iter().map(|(index, _)| *index).eq(order));
    let [first, again] = [&prompts[0].1, &prompts[3].1];
    assert_eq!(first.images.len(), 3);
    assert_eq!(first.ids, again.ids);
    assert!(Arc::ptr_eq(&first.images[0], &first.images[2]));
    assert!(Arc::ptr_eq(&first.images[0], &again.images[0]), "the cache kept it");
    assert!(prompts[2].1.images.is_empty());
    // Without a cache an image named twice in a row is still one copy.
    let mut uncached =
        loader(&examples, vec![1], LoaderOptions { cache_bytes: 0, ..OPTIONS }, options());
    let Some(Ok(Loaded::Ready { prompt, .. })) = uncached.next() else { panic!("a prompt") };
    assert!(Arc::ptr_eq(&prompt.images[0], &prompt.images[2]));
    assert_eq!(prompt.images[0], first.images[0]);
}

#[test]
fn a_truncated_image_stops_or_is_skipped_at_its_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let examples = examples(dir.path());
    let order = vec![0, 2, 3];
    let stopped: Vec<_> = loader(&examples, order.clone(), OPTIONS, options()).collect();
    assert!(stopped[0].is_ok() && stopped[2].is_ok());
    let Err(error @ DataError::BadRows(_)) = &stopped[1] else { panic!("{:?}", stopped[1]) };
    let text = error.to_string();
    assert!(text.contains("train.jsonl:3: ") && text.contains("cut.png: truncated PNG"), "{text}");

    let skip = LoaderOptions { on_bad_row: OnBadRow::Skip, ..OPTIONS };
    let skipped: Vec<_> =
        loader(&examples, order, skip, options()).map(|l| l.expect("goes on")).collect();
    assert!(
        matches!(&skipped[1], Loaded::Skipped { example_index: 2, row } if row.source_line.line == 3)
    );
    assert!(matches!(&skipped[2], Loaded::Ready { example_index: 3, .. }));
}

#[test]
fn a_prompt_too_long_names_its_row() {
    let dir = tempfile::tempdir().expect("a folder");
    let short = ProcessorOptions { max_prompt_length: Some(10), ..options() };
    let all: Vec<_> = loader(&examples(dir.path()), vec![3], OPTIONS, short).collect();
    let text = all[0].as_ref().expect_err("too long").to_string();
    assert!(
        text.contains("train.jsonl:4: the prompt has ") && text.contains("`max_prompt_length` 10"),
        "{text}"
    );
}

#[test]
fn a_resumed_order_goes_on_where_it_was() {
    let sampler = EpochOrder::new(7, 3, 42);
    let whole: Vec<_> = (0..9).flat_map(|step| sampler.indices_of_step(step)).collect();
    let resumed = EpochOrder::new(7, 3, 42);
    let rest: Vec<_> = (4..9).flat_map(|step| resumed.indices_of_step(step)).collect();
    assert_eq!(whole[whole.len() - rest.len()..], rest);
    assert_eq!(whole.len(), 21);
}

/// A model folder with so many positions.
fn model(max_positions: usize) -> tempfile::TempDir {
    let dir = crate::model_folder::folder();
    crate::model_folder::edit(dir.path(), "config.json", |config| {
        config["vision_config"] = serde_json::json!({"patch_size": 14, "spatial_merge_size": 2});
        config["max_position_embeddings"] = max_positions.into();
    });
    dir
}

#[test]
fn rows_beyond_the_positions_of_the_model_are_bad_at_their_place() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["one.png", "wide.png"] {
        fs::copy(golden("text/images").join(name), dir.path().join(name)).expect("copies");
    }
    let row = |images: usize, text: &str| {
        let images = vec![r#""one.png""#; images].join(", ");
        format!(
            "{{\"image\": [{images}], \"conversations\": [{{\"from\": \"human\", \"value\": \"{text}\"}}, {{\"from\": \"gpt\", \"value\": \"a\"}}]}}\n"
        )
    };
    let long = "Where is it? ".repeat(8000);
    let longer = "x".repeat(5 << 20);
    let rows = [
        row(1, "Where?"),
        row(400, "Where?"),
        row(10_000, "Where?"),
        row(1, &long),
        row(0, &longer),
        row(2, "Where?"),
    ];
    let path = dir.path().join("train.jsonl");
    fs::write(&path, rows.concat()).expect("writes");
    let files =
        vec![DataFile { path, image_folder: Some(dir.path().to_owned()), reward_method: None }];
    let report = load_rows(&DataFiles { files }, &RowChecks::default(), OnBadRow::Stop);
    let examples: Arc<[Example]> = report.expect("rows").rows.into();
    let folder = model(2048);
    let load = |on_bad_row| {
        let processor = Processor::from_dir(folder.path(), &options()).expect("a folder");
        let template = PromptTemplate::resolve("none").expect("a template");
        let loading = LoaderOptions { on_bad_row, ..OPTIONS };
        PromptLoader::new(Arc::clone(&examples), Arc::new(processor), template, 0..6, loading)
            .expect("threads")
    };
    let skipped: Vec<String> = load(OnBadRow::Skip)
        .map(|loaded| match loaded.expect("goes on") {
            Loaded::Ready { .. } => String::new(),
            Loaded::Skipped { row, .. } => row.to_string(),
        })
        .collect();
    for (index, cause) in [
        (0, None),
        (1, Some("of 400 images take ")),
        (
            2,
            Some(
                "0 of 10000 images take 0 tokens, more than the 2048 that a prompt may have (`max_position_embeddings`",
            ),
        ),
        (3, Some("more than `max_position_embeddings` 2048 of config.json")),
        (4, Some("a prompt of 5242")),
        (5, None),
    ] {
        let text = &skipped[index];
        match cause {
            None => assert_eq!(text, ""),
            Some(cause) => {
                let place = format!("train.jsonl:{}: ", index + 1);
                assert!(text.contains(&place) && text.contains(cause), "{text}");
            }
        }
    }
    let error = load(OnBadRow::Stop).nth(1).expect("a row").expect_err("stops");
    assert!(error.to_string().contains("train.jsonl:2: "), "{error}");
}

#[test]
fn a_prompt_that_leaves_no_room_for_its_answer_is_told_once() {
    let folder = model(100);
    let processor = Processor::from_dir(folder.path(), &options()).expect("a folder");
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("log");
    let log = base::console::Log::open(&path, fs::File::create(&path).expect("a log"));
    processor.expect_answers(10);
    processor.prompt("Where?", &[]).expect("there is room");
    processor.expect_answers(99);
    for _ in 0..3 {
        processor.prompt("Where?", &[]).expect("said, not refused");
    }
    drop(log);
    let said = fs::read_to_string(&path).expect("reads");
    let told =
        said.matches("an answer of up to 99 are more than `max_position_embeddings` 100").count();
    assert_eq!(told, 1, "{said}");
    assert!(!said.contains("an answer of up to 10 "), "{said}");
}
