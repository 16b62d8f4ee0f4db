#![allow(clippy::unwrap_used, reason = "a test")]
//! DeepSpeed's files: what is obeyed, what must agree, what is refused, each by its name.

use std::path::Path;

use config::{
    Config, ConfigError, DeepSpeedFile, GrpoConfig, Layers, PlanConfig, SftConfig, Validate,
    ZeroStage, ZeroStageSetting, resolve,
};

/// As VLM-R1's zero3.json is.
const ZERO_3: &str = r#"{
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1
    },
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "none", "pin_memory": true},
        "offload_param": {"device": "none", "pin_memory": true},
        "overlap_comm": true,
        "contiguous_gradients": true,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": true
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 100,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"#;

/// As its zero2.json.
const ZERO_2: &str = r#"{
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none", "pin_memory": true},
        "allgather_partitions": true,
        "allgather_bucket_size": 2e8,
        "overlap_comm": false,
        "reduce_scatter": true,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": true
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"#;

fn with<T: Config>(flags: &str) -> T {
    let required = "--model_name_or_path m --data_file_paths d --output_dir o ";
    let mut words: Vec<(String, Vec<String>)> = Vec::new();
    for word in format!("{required}{flags}").split_whitespace() {
        match (word.strip_prefix("--"), words.last_mut()) {
            (Some(name), _) => words.push((name.to_owned(), Vec::new())),
            (None, Some((_, values))) => values.push(word.to_owned()),
            (None, None) => panic!("{word}"),
        }
    }
    resolve::<T>(&Layers { flags: &words, ..Layers::default() }).unwrap().config
}

/// What becomes of a run on so many ranks with a file, and the keys without effect.
fn obeyed(text: &str, flags: &str, ranks: usize) -> Result<(GrpoConfig, Vec<String>), ConfigError> {
    let file = DeepSpeedFile::parse(Some(Path::new("zero.json")), text)?;
    let mut config = with::<GrpoConfig>(flags);
    let idle = config.fit_to_ranks(ranks, Some(&file))?;
    Ok((config, idle))
}

fn refused(text: &str, flags: &str, ranks: usize) -> String {
    match obeyed(text, flags, ranks) {
        Ok((config, _)) => panic!("{text} was taken: {:?}", config.shards),
        Err(error) => error.to_string(),
    }
}

#[test]
fn files_of_vlm_r1() {
    let (config, idle) = obeyed(ZERO_2, "--bf16", 8).unwrap();
    assert_eq!(config.shards.zero_stage, ZeroStageSetting::Two);
    assert_eq!(config.training().zero_stage(8), ZeroStage::Two);
    assert!(!config.machine.offload_optimizer);
    let buckets = ["allgather_partitions", "allgather_bucket_size", "reduce_scatter"];
    for key in buckets.map(|key| format!("zero_optimization.{key}")) {
        assert!(idle.contains(&key), "{key}: {idle:?}");
    }
    // What is off or left to the flags asks for nothing.
    assert!(!idle.iter().any(|key| key.contains("overlap_comm") || key.contains("wall_clock")));
    let (config, idle) = obeyed(ZERO_3, "--bf16", 8).unwrap();
    assert_eq!(config.shards.zero_stage, ZeroStageSetting::Three);
    assert_eq!(idle.first().unwrap(), "zero_optimization.overlap_comm");
    assert_eq!(idle.last().unwrap(), "steps_per_print");
    assert!(!idle.iter().any(|key| key.contains("reduce_bucket_size")), "{idle:?}");
    // As its zero3_offload.json.
    let offloaded = ZERO_3.replace(r#""device": "none""#, r#""device": "cpu""#);
    let said = refused(&offloaded, "--bf16", 8);
    let expected = "zero.json:14: `zero_optimization.offload_param.device: cpu` is not built yet: ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn stage_and_offload_are_obeyed() {
    let zero = |rest: &str| format!("{{\"zero_optimization\": {{{rest}}}}}");
    for (stage, flag, setting) in [
        (0, "auto", ZeroStageSetting::Zero),
        (1, "1", ZeroStageSetting::One),
        (2, "auto", ZeroStageSetting::Two),
        (3, "3", ZeroStageSetting::Three),
    ] {
        let text = zero(&format!("\"stage\": {stage}"));
        let (config, _) = obeyed(&text, &format!("--zero_stage {flag}"), 4).unwrap();
        assert_eq!(config.shards.zero_stage, setting);
        // Read back from the folder of the run it agrees with itself.
        let again = format!("--zero_stage {}", config.shards.zero_stage.word());
        assert_eq!(obeyed(&text, &again, 4).unwrap().0.shards, config.shards);
    }
    let offload = r#""stage": 2, "offload_optimizer": {"device": "cpu"}"#;
    assert!(obeyed(&zero(offload), "", 8).unwrap().0.machine.offload_optimizer);
    let whole = offload.replace('2', "0");
    assert!(obeyed(&zero(&whole), "", 1).is_ok());
    assert!(obeyed(&zero(&whole), "--use_peft true", 8).is_ok());
    let said = refused(&zero(&whole), "", 8);
    assert!(said.contains("`offload_optimizer`") && said.contains("zero_stage: 2"), "{said}");
    // By flags alone the same.
    let by_flags = "--offload_optimizer true --zero_stage 0";
    assert!(with::<SftConfig>(by_flags).fit_to_ranks(2, None).is_err());
    assert!(with::<SftConfig>(by_flags).fit_to_ranks(1, None).is_ok());
    assert!(with::<PlanConfig>(&format!("{by_flags} --ranks 2")).fit_to_ranks(1, None).is_err());
}

#[test]
fn what_flags_say_must_be_the_same() {
    let flags = "--bf16 --max_grad_norm 0.5 --per_device_train_batch_size 4 --gradient_accumulation_steps 2";
    let equal = r#"{"bf16": {"enabled": true}, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2, "train_batch_size": 64, "communication_data_type": "fp32",
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-6, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}}}"#;
    assert_eq!(obeyed(equal, flags, 8).unwrap().1, Vec::<String>::new());
    for (text, parts) in [
        (
            r#"{"gradient_clipping": 1.0}"#,
            ["`gradient_clipping`: got `1.0`", "`auto` or `0.5`: as `--max_grad_norm`"],
        ),
        (r#"{"bf16": {"enabled": false}}"#, ["`bf16.enabled`: got `false`", "--bf16"]),
        (r#"{"train_batch_size": 8}"#, ["`train_batch_size`: got `8`", "`64`"]),
        (r#"{"optimizer": {"type": "SGD"}}"#, ["`optimizer.type`: got `SGD`", "`AdamW`"]),
        (
            r#"{"optimizer": {"params": {"betas": [0.9, 0.95]}}}"#,
            ["`optimizer.params.betas`: got `[0.9,0.95]`", "`[0.9,0.999]`"],
        ),
        (
            r#"{"zero_optimization": {"stage": 1}}"#,
            ["`zero_optimization.stage`: got `1`", "2, as `--zero_stage`"],
        ),
        (
            r#"{"zero_optimization": {"offload_optimizer": {"device": "none"}}}"#,
            [
                "`zero_optimization.offload_optimizer.device`: got `none`",
                "--offload_optimizer true",
            ],
        ),
    ] {
        let said = refused(text, &format!("{flags} --zero_stage 2 --offload_optimizer true"), 8);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}

#[test]
fn what_is_not_built_or_not_known_is_refused_by_name() {
    for (text, part) in [
        (
            r#"{"fp16": {"enabled": true}}"#,
            "`fp16.enabled: true` is not built yet: half precision is `--bf16 true`",
        ),
        (
            r#"{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}"#,
            "offload_optimizer.device: nvme`",
        ),
        (
            r#"{"zero_optimization": {"offload_param": {"device": "nvme"}}}"#,
            "offload_param.device: nvme`",
        ),
        (
            r#"{"zero_optimization": {"zero_quantized_gradients": true}}"#,
            "zero_quantized_gradients: true`",
        ),
        (
            r#"{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}"#,
            "--lr_scheduler_type",
        ),
        (
            r#"{"zero_optimization": {"stage": 4}}"#,
            "`zero_optimization.stage`: got `4`, expected 0, 1, 2 or 3",
        ),
        (
            r#"{"zero_optimization": true}"#,
            "`zero_optimization`: got `true`, expected settings in braces",
        ),
        (
            "{\"bf16\":\n {\"enabeld\": true}}",
            "zero.json:2: unknown key `bf16.enabeld`\nhint: did you mean `enabled`?",
        ),
        (r#"{"zero": {"stage": 2}}"#, "unknown key `zero`"),
        ("[1]", "zero.json: expected settings of DeepSpeed in braces"),
        ("a: 1", "zero.json:1: no JSON"),
    ] {
        let said = refused(text, "", 8);
        assert!(said.contains(part), "{text}: {said}");
    }
}

#[test]
fn a_file_or_the_settings_themselves() {
    assert_eq!(DeepSpeedFile::path_of(" conf/zero2.json "), Some(Path::new("conf/zero2.json")));
    let inline = r#" {"zero_optimization": {"stage": 5}}"#;
    assert_eq!(DeepSpeedFile::path_of(inline), None);
    let file = DeepSpeedFile::parse(None, inline).unwrap();
    let said = with::<SftConfig>("").fit_to_ranks(2, Some(&file)).unwrap_err().to_string();
    assert!(said.starts_with("--deepspeed: `zero_optimization.stage`: got `5`"), "{said}");
}
