//! Kept features: equal to computed ones, found by content and tower alone, whole on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use base::{PreparedImage, Prompt};
use models::{
    AdapterSource, FeatureCache, FeatureCacheOptions, FeatureStats, LoadOptions, LoraOptions,
    ModelError, Part, Targets, TrainedParts, VisionLanguageModel, load_model, load_with_adapter,
};
use serde_json::json;
use tch::{Kind, Tensor};
use torch::{read_tensors, write_tensors};

use crate::support::{
    all_checkpoints, checkpoint, copy, edit_config, edit_weights, image_of, load_as, logits,
    max_difference, prompt, test_image,
};

const LARGE: usize = 1 << 20;

fn cache(max_bytes: usize, folder: Option<&Path>) -> Rc<FeatureCache> {
    let options = FeatureCacheOptions { max_bytes, folder: folder.map(Path::to_path_buf) };
    Rc::new(FeatureCache::new(&options).unwrap())
}

/// The frozen model of a folder, with a cache where there is one.
fn frozen(folder: &Path, cache: Option<&Rc<FeatureCache>>) -> Box<dyn VisionLanguageModel> {
    let mut model = load_as(folder, Kind::Float, false).unwrap();
    if let Some(cache) = cache {
        model.keep_features(cache.clone()).unwrap();
    }
    model
}

/// Features of images through a cache of its own over `store`, and what it did.
fn stored(folder: &Path, store: &Path, images: &[Arc<PreparedImage>]) -> (Tensor, FeatureStats) {
    let cache = cache(LARGE, Some(store));
    let model = frozen(folder, Some(&cache));
    let features = model.features().unwrap().of(model.as_ref(), images, None);
    assert_eq!(cache.take_problems(), [""; 0]);
    (features, cache.stats())
}

fn counts(stats: FeatureStats) -> [usize; 3] {
    [stats.hits, stats.loads, stats.misses]
}

/// Two sizes, one image in two prompts, one equal to another without being the same.
fn items(patch_dim: usize) -> Vec<(Prompt, Vec<Vec<u32>>)> {
    let small = || image_of(patch_dim, 1, [4, 6]);
    let (a, b) = (small(), image_of(patch_dim, 2, [18, 12]));
    vec![
        (prompt(&[1, 2], &[a.clone(), b.clone()], &[3]), vec![vec![7, 8, 9], vec![10]]),
        (prompt(&[4, 5, 6], &[], &[]), vec![vec![11, 12]]),
        (prompt(&[4], &[b, small()], &[1, 1]), vec![]),
    ]
}

#[test]
fn kept_features_are_the_computed_ones() {
    for checkpoint in all_checkpoints().into_iter().map(checkpoint) {
        let plain = frozen(&checkpoint, None);
        let items = items(plain.patch_dim());
        let expected = logits(plain.as_ref(), &items);
        let cache = cache(LARGE, None);
        let model = frozen(&checkpoint, Some(&cache));
        let cold = logits(model.as_ref(), &items);
        // The copy of the small image is found though it is in the same batch.
        assert_eq!(counts(cache.stats()), [1, 0, 2]);
        let scale = f64::try_from(expected.abs().max()).unwrap();
        assert!(max_difference(&cold, &expected) < 1e-6 * scale.max(1.0));
        let warm = logits(model.as_ref(), &items);
        assert!(warm.equal(&cold));
        let stats = cache.stats();
        assert_eq!(counts(stats), [4, 0, 2]);
        assert_eq!(stats.num_bytes, (6 + 54) * plain.feature_size() as usize * 4);
        assert!(stats.saved_secs > 0.0);
        // In another order and company, the same bits.
        let alone = logits(frozen(&checkpoint, Some(&cache)).as_ref(), &items[2..]);
        let tokens = alone.size()[0];
        let packed = warm.narrow(0, warm.size()[0] - tokens, tokens);
        assert!(max_difference(&packed, &alone) < 1e-5);
        assert_eq!(counts(cache.stats()), [6, 0, 2]);
    }
}

#[test]
fn only_equal_towers_share() {
    let nested = checkpoint("nested");
    let cache = cache(LARGE, None);
    let image = [test_image(1, 6, 10)];
    let ask = |model: Box<dyn VisionLanguageModel>| {
        let before = cache.stats();
        let mut model = model;
        model.keep_features(cache.clone()).unwrap();
        let features = model.features().unwrap().of(model.as_ref(), &image, None);
        assert_eq!(features.size(), [15, 32]);
        cache.stats().misses > before.misses
    };
    let same = |folder: &Path| load_as(folder, Kind::Float, false).unwrap();
    assert!(ask(same(&nested)), "the first");
    assert!(!ask(same(&nested)), "the same again");
    let edited = |part: &'static str| {
        let folder = copy("nested");
        edit_weights(folder.path(), move |tensors| {
            let name = tensors.keys().find(|name| name.contains(part)).unwrap();
            let (name, changed) = (name.clone(), &tensors[name] * 1.01);
            tensors.insert(name, changed);
        });
        ask(same(folder.path()))
    };
    assert!(!edited("language_model"));
    assert!(edited("visual.blocks.1"));
    assert!(edited("visual.merger"));
    let folder = copy("nested");
    edit_config(folder.path(), |config| {
        config["vision_config"]["window_size"] = json!(28);
    });
    assert!(ask(same(folder.path())), "other windows");
    assert!(ask(load_as(&nested, Kind::BFloat16, false).unwrap()));
    assert!(!ask(load_as(&nested, Kind::BFloat16, false).unwrap()));
}

fn lora(targets: &[&str], vision: bool) -> LoraOptions {
    let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
    LoraOptions {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Targets::new(&targets, vision).unwrap(),
        seed: 1,
    }
}

#[test]
fn a_tower_that_changes_keeps_nothing() {
    let options =
        |trained| LoadOptions { kind: Kind::Float, device: torch::device_of_tests(), trained };
    let part =
        |vision, merger| TrainedParts { vision, merger, language: true, masters_on_host: false };
    for (vision, merger) in [(true, true), (true, false), (false, true)] {
        let mut model = load_model(&checkpoint("nested"), options(part(vision, merger))).unwrap();
        let refused = model.keep_features(cache(LARGE, None));
        assert!(matches!(refused, Err(ModelError::TrainedTower)));
        assert!(model.features().is_none());
    }
    let mut model = load_model(&checkpoint("nested"), options(part(false, false))).unwrap();
    model.keep_features(cache(LARGE, None)).unwrap();

    for trained in [TrainedParts::ALL, TrainedParts::NONE] {
        let adapted = |lora: &LoraOptions| {
            let source = AdapterSource::New(lora);
            load_with_adapter(&checkpoint("nested"), options(trained), source).unwrap()
        };
        let mut language = adapted(&lora(&[], false));
        language.keep_features(cache(LARGE, None)).unwrap();
        // Not even where none is trained: it can be switched off.
        let mut tower = adapted(&lora(&["qkv", "q_proj"], true));
        let refused = tower.keep_features(cache(LARGE, None));
        assert!(matches!(refused, Err(ModelError::TrainedTower)));
    }
}

#[test]
fn frozen_parts_hold_no_masters() {
    for (vision, merger, language) in
        [(false, false, true), (false, true, true), (true, false, false)]
    {
        let trained = TrainedParts { vision, merger, language, masters_on_host: false };
        let options =
            LoadOptions { kind: Kind::BFloat16, device: torch::device_of_tests(), trained };
        let model = load_model(&checkpoint("nested"), options).unwrap();
        for parameter in &model.parameters().list {
            let is_trained = trained.holds(parameter.part);
            let name = &parameter.name;
            assert_eq!(parameter.value.requires_grad(), is_trained, "{name}");
            assert_eq!(parameter.has_master(), is_trained, "{name}");
            assert_eq!(parameter.part == Part::Language, !name.contains("visual"));
        }
    }
}

#[test]
fn the_folder_serves_later_runs() {
    let store = tempfile::tempdir().unwrap();
    let nested = checkpoint("nested");
    let images = [test_image(1, 4, 6), test_image(2, 18, 12)];
    let (first, stats) = stored(&nested, store.path(), &images);
    assert_eq!(counts(stats), [0, 0, 2]);
    assert_eq!(files(store.path()).len(), 2);
    let (second, stats) = stored(&nested, store.path(), &images);
    assert_eq!(counts(stats), [0, 2, 0]);
    assert!(second.equal(&first));
    // Memory comes first, and may be nothing.
    let none = cache(0, Some(store.path()));
    let model = frozen(&nested, Some(&none));
    for _ in 0..2 {
        let features = model.features().unwrap().of(model.as_ref(), &images, None);
        assert!(features.equal(&first));
    }
    assert_eq!(counts(none.stats()), [0, 4, 0]);
    assert_eq!(none.stats().num_bytes, 0);

    let other = copy("nested");
    edit_weights(other.path(), |tensors| {
        let name = "model.visual.merger.mlp.2.bias";
        let changed = &tensors[name] + 1.0;
        tensors.insert(name.into(), changed);
    });
    let (changed, stats) = stored(other.path(), store.path(), &images);
    assert_eq!(counts(stats), [0, 0, 2]);
    assert!(max_difference(&changed, &first) > 0.9);
    assert_eq!(files(store.path()).len(), 4);
}

fn files(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn damaged_files_are_named_computed_again_and_replaced() {
    let store = tempfile::tempdir().unwrap();
    let nested = checkpoint("nested");
    let image = [test_image(1, 4, 6)];
    let (expected, _) = stored(&nested, store.path(), &image);
    let [path] = &files(store.path())[..] else {
        panic!("one image, one file");
    };
    let whole = fs::read(path).unwrap();
    let put = |bytes: &[u8]| fs::write(path, bytes).unwrap();
    let edit = |edit: fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let mut tensors = read_tensors(path).unwrap();
        edit(&mut tensors);
        write_tensors(path, &tensors.into_iter().collect::<Vec<_>>()).unwrap();
    };
    let damages: [(&dyn Fn(), &str); 7] = [
        (&|| put(&whole[..whole.len() - 5]), ""),
        (&|| put(b""), ""),
        (
            &|| {
                // The last number of the features, wherever they lie.
                let features = &read_tensors(path).unwrap()["features"];
                let last: f32 = features.double_value(&[5, 31]) as f32;
                let at = whole.windows(4).rposition(|w| w == last.to_le_bytes());
                let mut bytes = whole.clone();
                bytes[at.unwrap()] ^= 1;
                put(&bytes);
            },
            "checksum",
        ),
        (
            &|| edit(|t| drop(t.insert("features".into(), t["features"].narrow(0, 0, 5)))),
            "features: expected float [6, 32], got float [5, 32]",
        ),
        (
            &|| {
                edit(|t| {
                    let half = t["features"].to_kind(Kind::BFloat16);
                    t.insert("features".into(), half);
                })
            },
            "features: expected float [6, 32], got bfloat16 [6, 32]",
        ),
        (&|| edit(|t| drop(t.remove("secs"))), "no tensor `secs`"),
        (&|| edit(|t| drop(t.insert("secs".into(), Tensor::from_slice(&[f64::NAN])))), "secs"),
    ];
    for (damage, cause) in damages {
        put(&whole);
        damage();
        let cache = cache(LARGE, Some(store.path()));
        let model = frozen(&nested, Some(&cache));
        let features = model.features().unwrap().of(model.as_ref(), &image, None);
        assert!(features.equal(&expected), "{cause}");
        assert_eq!(counts(cache.stats()), [0, 0, 1], "{cause}");
        let [problem] = &cache.take_problems()[..] else {
            panic!("{cause}: not said");
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(problem.contains(name) && problem.contains(cause), "{problem}");
        let (again, stats) = stored(&nested, store.path(), &image);
        assert!(again.equal(&expected) && counts(stats) == [0, 1, 0]);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_said_once() {
    let outer = tempfile::tempdir().unwrap();
    let store = outer.path().join("deep/store");
    let cache = cache(LARGE, Some(&store));
    let model = frozen(&checkpoint("nested"), Some(&cache));
    fs::remove_dir_all(&store).unwrap();
    let images = [test_image(1, 4, 6), test_image(2, 4, 4), test_image(3, 4, 4)];
    let features = model.features().unwrap().of(model.as_ref(), &images, None);
    assert_eq!(features.size(), [14, 32]);
    assert_eq!(counts(cache.stats()), [0, 0, 3]);
    let problems = cache.take_problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("deep/store"), "{problems:?}");

    let file = outer.path().join("file");
    fs::write(&file, "").unwrap();
    let options = FeatureCacheOptions { max_bytes: 0, folder: Some(file.join("store")) };
    let refused = FeatureCache::new(&options).unwrap_err().to_string();
    assert!(refused.contains("file/store"), "{refused}");
}

#[test]
fn many_may_write_one_folder() {
    let store = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..12).map(|i| test_image(i, 4, 4 + 2 * (i % 3))).collect();
    let nested = checkpoint("nested");
    let model = frozen(&nested, Some(&cache(LARGE, None)));
    let expected = model.features().unwrap().of(model.as_ref(), &images, None);
    let expected: Vec<f32> = Vec::try_from(expected.flatten(0, -1)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let (features, stats) = stored(&nested, store.path(), &images);
                    assert_eq!(stats.loads + stats.misses, 12);
                    let features: Vec<f32> = Vec::try_from(features.flatten(0, -1)).unwrap();
                    assert_eq!(features, expected);
                }
            });
        }
    });
    let names = files(store.path());
    assert_eq!(names.len(), 12, "{names:?}");
    assert!(names.iter().all(|p| p.extension().unwrap() == "safetensors"));
}
