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
        ("{\"weight_map\": {\"a\": 1}}", "`weight_map.a`: expected a file name, got 1"),
        ("{\"weight_map\": {\"a\": \"../a.safetensors\"}}", "`weight_map.a`"),
        ("{\"weight_map\": {\"a\": \"/a.safetensors\"}}", "`weight_map.a`"),
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
    assert_names(&refusal(folder.path()), &[shard.to_str().unwrap(), "No such file"]);
}

#[test]
fn a_folder_without_weights_names_the_file_it_lacks() {
    let folder = copy("nested");
    let file = folder.path().join("model.safetensors");
    fs::remove_file(&file).unwrap();
    assert_names(&refusal(folder.path()), &[file.to_str().unwrap()]);
}

#[test]
fn a_folder_that_is_no_model_says_where_one_may_be() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let error =
        |folder: &str| base::model_folder::read_family(&at(folder)).unwrap_err().to_string();
    for (folder, files, parts) in [
        (
            "empty",
            &[][..],
            &["config.json: No such file", "hint: a model folder is what `save_pretrained`"][..],
        ),
        (
            "run",
            &["checkpoint-9/config.json", "checkpoint-100/config.json", "log.txt"],
            &["checkpoint-100`, `", "checkpoint-9`"],
        ),
        ("hub", &["snapshots/abc/config.json", "refs/main"], &["snapshots/abc`"]),
        ("lora", &["checkpoint-5/adapter_config.json"], &["checkpoint-5`"]),
        ("packed", &["model-q4.gguf", "README.md"], &["but `model-q4.gguf`", "GGUF"]),
        (
            "half",
            &["adapter_model.safetensors"],
            &["but `adapter_model.safetensors`", "adapter_config.json"],
        ),
        (
            "mistral",
            &["consolidated.safetensors", "params.json"],
            &["`consolidated.safetensors`", "their authors"],
        ),
        ("bare", &["pytorch_model.bin"], &["but `pytorch_model.bin`"]),
        ("whole/inner", &["a.txt", "../config.json"], &["there is one in `", "whole`"]),
    ] {
        for file in files {
            let path = at(folder).join(file);
            fs::create_dir_all(at(folder)).unwrap();
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        fs::create_dir_all(at(folder)).unwrap();
        assert_names(&error(folder), parts);
        assert_names(&error(folder), &[at(folder).to_str().unwrap()]);
    }
}

#[test]
fn weights_in_another_form_name_the_way_to_this_one() {
    for (name, hint) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model-q8.gguf", "GGUF is not read"),
        ("consolidated.safetensors", "their authors' own form"),
        ("adapter_model.safetensors", "adapter_config.json"),
    ] {
        let folder = copy("nested");
        let file = folder.path().join("model.safetensors");
        fs::rename(&file, folder.path().join(name)).unwrap();
        assert_names(&refusal(folder.path()), &[&format!("not read: {name}"), "\nhint: ", hint]);
    }
}

#[test]
fn chat_templates_by_name_go_into_checkpoints() {
    let folder = copy("nested");
    let templates = folder.path().join("additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    fs::write(templates.join("tools.jinja"), "{{ messages }}").unwrap();
    fs::write(templates.join("other.bin"), "no template").unwrap();
    let model = load(folder.path());
    let target = tempfile::tempdir().unwrap();
    models::save_weights(model.as_ref(), folder.path(), target.path()).unwrap();
    let saved = target.path().join("additional_chat_templates");
    assert_eq!(fs::read_to_string(saved.join("tools.jinja")).unwrap(), "{{ messages }}");
    assert!(!saved.join("other.bin").exists());
}
