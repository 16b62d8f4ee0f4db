//! From rows to prompts on worker threads.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use base::Sample;
use data::{
    DataError, DataFile, DataFiles, EpochSampler, Loaded, LoaderOptions, OnBadRow, Processor,
    ProcessorOptions, PromptLoader, PromptTemplate, RowChecks, load_rows,
};

use crate::golden;
use crate::prompts::options;

const OPTIONS: LoaderOptions = LoaderOptions {
    workers: 3,
    ahead: 4,
    cache_bytes: 1 << 20,
    on_bad_row: OnBadRow::Stop,
    digests: true,
};

/// Rows over the golden images; row 2 of them shows a truncated one.
fn samples(dir: &Path) -> Arc<[Sample]> {
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
    let files = vec![DataFile {
        path,
        image_folder: Some(dir.to_owned()),
        reward_method: None,
    }];
    let report = load_rows(&DataFiles { files }, &RowChecks::default(), OnBadRow::Stop);
    report.expect("heads are whole").rows.into()
}

fn loader(
    samples: &Arc<[Sample]>,
    order: Vec<usize>,
    options: LoaderOptions,
    processor: ProcessorOptions,
) -> PromptLoader {
    let processor = Processor::from_dir(&golden("text/tokenizer"), &processor).expect("a folder");
    let template = PromptTemplate::resolve("rec").expect("a task");
    PromptLoader::new(
        Arc::clone(samples),
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
    let samples = samples(dir.path());
    let order = vec![1, 0, 3, 1, 1, 0];
    let prompts: Vec<_> = loader(&samples, order.clone(), OPTIONS, options())
        .map(|loaded| match loaded.expect("good rows") {
            Loaded::Ready {
                sample_index,
                prompt,
            } => (sample_index, prompt),
            Loaded::Skipped { row, .. } => panic!("{row}"),
        })
        .collect();
    assert!(prompts.iter().map(|(index, _)| *index).eq(order));
    let [first, again] = [&prompts[0].1, &prompts[3].1];
    assert_eq!(first.images.len(), 3);
    assert_eq!(first.ids, again.ids);
    assert!(Arc::ptr_eq(&first.images[0], &first.images[2]));
    assert!(
        Arc::ptr_eq(&first.images[0], &again.images[0]),
        "the cache kept it"
    );
    assert!(prompts[2].1.images.is_empty());
    // Without a cache a picture named twice in a row is still one copy.
    let mut uncached = loader(
        &samples,
        vec![1],
        LoaderOptions {
            cache_bytes: 0,
            ..OPTIONS
        },
        options(),
    );
    let Some(Ok(Loaded::Ready { prompt, .. })) = uncached.next() else {
        panic!("a prompt")
    };
    assert!(Arc::ptr_eq(&prompt.images[0], &prompt.images[2]));
    assert_eq!(prompt.images[0], first.images[0]);
}

#[test]
fn a_truncated_image_stops_or_is_skipped_at_its_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let samples = samples(dir.path());
    let order = vec![0, 2, 3];
    let stopped: Vec<_> = loader(&samples, order.clone(), OPTIONS, options()).collect();
    assert!(stopped[0].is_ok() && stopped[2].is_ok());
    let Err(error @ DataError::BadRows(_)) = &stopped[1] else {
        panic!("{:?}", stopped[1])
    };
    let text = error.to_string();
    assert!(
        text.contains("train.jsonl:3: ") && text.contains("cut.png: truncated PNG"),
        "{text}"
    );

    let skip = LoaderOptions {
        on_bad_row: OnBadRow::Skip,
        ..OPTIONS
    };
    let skipped: Vec<_> = loader(&samples, order, skip, options())
        .map(|l| l.expect("goes on"))
        .collect();
    assert!(
        matches!(&skipped[1], Loaded::Skipped { sample_index: 2, row } if row.source_line.line == 3)
    );
    assert!(matches!(
        &skipped[2],
        Loaded::Ready {
            sample_index: 3,
            ..
        }
    ));
}

#[test]
fn a_prompt_too_long_names_its_row() {
    let dir = tempfile::tempdir().expect("a folder");
    let short = ProcessorOptions {
        max_prompt_length: Some(10),
        ..options()
    };
    let all: Vec<_> = loader(&samples(dir.path()), vec![3], OPTIONS, short).collect();
    let text = all[0].as_ref().expect_err("too long").to_string();
    assert!(
        text.contains("train.jsonl:4: the prompt has ") && text.contains("`max_prompt_length` 10"),
        "{text}"
    );
}

#[test]
fn a_resumed_order_goes_on_where_it_was() {
    let sampler = EpochSampler::new(7, 3, 42);
    let whole: Vec<_> = (0..9)
        .flat_map(|step| sampler.indices_of_step(step))
        .collect();
    let resumed = EpochSampler::new(7, 3, 42);
    let rest: Vec<_> = (4..9)
        .flat_map(|step| resumed.indices_of_step(step))
        .collect();
    assert_eq!(whole[whole.len() - rest.len()..], rest);
    assert_eq!(whole.len(), 21);
}
