//! Weight files: whole, sharded, broken.

use std::fs;

use torch::write_tensors;

use crate::support::{
    all_tensors, assert_names, checkpoint, copy, load, refusal, sample_logits, weight_files,
};

const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00002.safetensors";

#[test]
fn one_file_and_shards_are_the_same_model() {
    let folder = copy("flat");
    let tensors: Vec<_> = all_tensors(folder.path()).into_iter().collect();
    for file in weight_files(folder.path()) {
        fs::remove_file(file).unwrap();
    }
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
    let whole = sample_logits(load(folder.path()).as_ref());
    let sharded = sample_logits(load(&checkpoint("flat")).as_ref());
    assert!(whole.equal(&sharded));
}

#[test]
fn a_broken_index_is_named() {
    let folder = copy("flat");
    let index = folder.path().join(INDEX);
    for (text, cause) in [
        ("{\"weight_map\": {", "not JSON"),
        ("[]", "no object `weight_map`"),
        ("{\"weight_map\": [1]}", "no object `weight_map`"),
        (
            "{\"weight_map\": {\"a\": 1}}",
            "`weight_map.a`: expected a file name, got 1",
        ),
        (
            "{\"weight_map\": {\"a\": \"../a.safetensors\"}}",
            "`weight_map.a`",
        ),
        (
            "{\"weight_map\": {\"a\": \"/a.safetensors\"}}",
            "`weight_map.a`",
        ),
    ] {
        fs::write(&index, text).unwrap();
        assert_names(&refusal(folder.path()), &[index.to_str().unwrap(), cause]);
    }
}

#[test]
fn a_bad_shard_is_named() {
    let folder = copy("flat");
    let shard = folder.path().join(SHARD);
    let whole = fs::read(&shard).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[8..24].fill(b'x');
    let cut = whole[..whole.len() - 1].to_vec();
    let longer = [whole.as_slice(), &[0]].concat();
    for bad in [vec![], whole[..5].to_vec(), cut, longer, huge, garbled] {
        fs::write(&shard, bad).unwrap();
        assert_names(&refusal(folder.path()), &[shard.to_str().unwrap()]);
    }
    fs::remove_file(&shard).unwrap();
    assert_names(
        &refusal(folder.path()),
        &[shard.to_str().unwrap(), "No such file"],
    );
}

#[test]
fn a_folder_without_weights_names_the_file_it_lacks() {
    let folder = copy("nested");
    let file = folder.path().join("model.safetensors");
    fs::remove_file(&file).unwrap();
    assert_names(&refusal(folder.path()), &[file.to_str().unwrap()]);
}
