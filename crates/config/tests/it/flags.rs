//! Flags of other trainers: each of their fields is one of ours, named as without effect, or refused with a reason.

use std::collections::BTreeSet;
use std::path::Path;

use config::{
    CompatFlag, Config, ConfigError, GrpoConfig, Interval, Layers, LossType, LrSchedulerType,
    Resolved, Resume, SamplerCorrection, SaveStrategy, ScaleRewards, Section, SftConfig, ZeroStage,
    compat_flags_of_grpo, compat_flags_of_sft, is_of_launcher, nearest, resolve,
};

const FIELDS: &str = include_str!("fields_of_trainers.txt");

fn with<T: Config>(
    foreign: &'static [CompatFlag],
    yaml: &str,
    flags: &[(&str, &str)],
) -> Result<Resolved<T>, ConfigError> {
    let given = [("model_name_or_path", "m"), ("data_file_paths", "d"), ("output_dir", "o")];
    let flags = given.iter().chain(flags).map(|(name, value)| {
        let values = value.split_whitespace().map(str::to_owned);
        ((*name).to_owned(), values.collect())
    });
    let flags: Vec<(String, Vec<String>)> = flags.collect();
    resolve(&Layers {
        file: Some((Path::new("run.yaml"), yaml)),
        flags: &flags,
        sets: &[],
        compat: foreign,
    })
}

fn grpo(flags: &[(&str, &str)]) -> Result<Resolved<GrpoConfig>, ConfigError> {
    with(compat_flags_of_grpo(), "", flags)
}

fn one(command: &str, name: &str, value: &str) -> Result<Vec<String>, ConfigError> {
    let flags = [(name, value)];
    let named = match command {
        "grpo" => grpo(&flags)?.without_effect,
        _ => with::<SftConfig>(compat_flags_of_sft(), "", &flags)?.without_effect,
    };
    Ok(named.into_iter().map(|(name, _)| name).collect())
}

/// Defaults there that are refused here: what they ask for is not what happens.
const OTHER_DEFAULTS: [(&str, &str); 1] = [("sft", "max_length")];

#[test]
fn every_field_of_the_trainers_is_known_and_its_default_taken() {
    let lines = FIELDS.lines().filter(|line| !line.starts_with('#'));
    let mut seen = 0;
    for line in lines {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let (command, name) = (words[0], words[1]);
        let value = words.get(2).copied().unwrap_or_default();
        let (fields, foreign) = match command {
            "grpo" => (GrpoConfig::FIELDS, compat_flags_of_grpo()),
            _ => (SftConfig::FIELDS, compat_flags_of_sft()),
        };
        let is_ours = fields.iter().any(|field| field.name == name);
        let is_foreign = foreign.iter().any(|foreign| foreign.name == name);
        assert!(is_ours != is_foreign, "{line}: {is_ours} {is_foreign}");
        seen += 1;
        if is_ours && ["None", ""].contains(&value) {
            continue;
        }
        let taken = one(command, name, value);
        match OTHER_DEFAULTS.contains(&(command, name)) {
            true => {
                assert!(matches!(&taken, Err(ConfigError::NotBuilt { .. })), "{line}: {taken:?}")
            }
            false => assert!(taken.is_ok(), "{line}: {}", taken.unwrap_err()),
        }
    }
    assert!(seen > 280, "{seen}");
}

#[test]
fn no_foreign_flag_stands_twice_or_hides_a_field() {
    let tables =
        [(compat_flags_of_grpo(), GrpoConfig::FIELDS), (compat_flags_of_sft(), SftConfig::FIELDS)];
    for (foreign, fields) in tables {
        let mut names = BTreeSet::new();
        for foreign in foreign {
            assert!(names.insert(foreign.name), "{}", foreign.name);
            assert!(fields.iter().all(|field| field.name != foreign.name), "{}", foreign.name);
        }
    }
}

#[test]
fn what_would_change_the_result_is_refused_with_the_reason() {
    for (command, name, value, reason) in [
        ("grpo", "load_best_model_at_end", "true", "RUN@best"),
        ("grpo", "group_by_length", "True", "random order"),
        ("sft", "train_sampling_strategy", "sequential", "random"),
        ("grpo", "ignore_data_skip", "true", "rows that come next"),
        ("grpo", "label_smoothing_factor", "0.1", "as they are"),
        ("sft", "neftune_noise_alpha", "5", "without noise"),
        ("grpo", "eval_delay", "100", "eval_steps"),
        ("grpo", "use_cpu", "true", "--device cpu"),
        ("grpo", "use_dora", "true", "plain LoRA"),
        ("grpo", "generation_batch_size", "64", "steps_per_generation"),
        ("grpo", "use_adaptive_entropy", "true", "entropy_coef"),
        ("sft", "packing", "true", "a row stays a row"),
        ("sft", "completion_only_loss", "false", "answers"),
        ("sft", "max_length", "1024", "max_seq_length"),
        ("sft", "loss_type", "dft", "-log p"),
        ("grpo", "nproc_per_node", "8", "vlm-r1 launch --nproc_per_node 8 -- grpo"),
        ("sft", "parallelism_config", "{\"tp_size\": 2}", "by their rows alone"),
        ("grpo", "ddp_backend", "mpi", "NCCL on GPUs"),
    ] {
        let error = one(command, name, value).unwrap_err();
        assert!(matches!(error, ConfigError::NotBuilt { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(name) && said.contains(reason), "{said}");
    }
}

#[test]
fn what_changes_nothing_is_named() {
    for (command, name, value) in [
        ("grpo", "torch_compile", "true"),
        ("grpo", "fsdp", "full_shard auto_wrap"),
        ("sft", "logging_strategy", "epoch"),
        ("grpo", "dataloader_persistent_workers", "true"),
        ("grpo", "auto_find_batch_size", "true"),
        ("grpo", "wandb_project", "mine"),
        ("grpo", "group_by_length", "False"),
        ("grpo", "master_port", "29500"),
        ("grpo", "nproc_per_node", "1"),
        ("grpo", "local_rank", "3"),
        ("grpo", "ddp_backend", "NCCL"),
        ("sft", "ddp_backend", "gloo"),
        ("sft", "loss_type", "nll"),
    ] {
        assert_eq!(one(command, name, value).unwrap(), [name], "{value}");
    }
}

#[test]
fn flags_that_are_built_mean_what_they_mean_there() {
    let config = grpo(&[
        ("dataloader_num_workers", "0"),
        ("max_grad_norm", "0"),
        ("save_strategy", "epoch"),
        ("eval_strategy", "epoch"),
        ("val_split_ratio", "0.1"),
        ("logging_first_step", "true"),
        ("resume_from_checkpoint", "out/checkpoint-5"),
        ("lr_scheduler_type", "cosine_with_min_lr"),
        ("lr_scheduler_kwargs", r#"{"min_lr_rate":0.1}"#),
        ("warmup_steps", "0.03"),
    ]);
    let config = config.unwrap().config;
    assert_eq!(config.save.save_strategy.interval(100), Some(Interval::Epoch));
    assert_eq!(config.start.resume_from_checkpoint, Resume::From("out/checkpoint-5".into()));
    assert_eq!(config.optimizer.lr_scheduler_type, LrSchedulerType::CosineWithMinLr);
    assert_eq!(config.optimizer.lr_scheduler_kwargs.unwrap().rate(1e-6), Some(0.1));
    assert_eq!((config.optimizer.max_grad_norm, config.optimizer.warmup_steps), (0.0, 0.03));
    for (value, resume) in [("True", true), ("", true), ("false", false), ("no", false)] {
        let config = grpo(&[("resume_from_checkpoint", value)]).unwrap().config;
        assert_eq!(config.start.resume_from_checkpoint, Resume::Newest(resume));
    }
    let yaml = "resume_from_checkpoint: true\nlr_scheduler_type: cosine_with_min_lr\n\
                lr_scheduler_kwargs:\n  min_lr: 1e-7\n";
    let config = with::<GrpoConfig>(compat_flags_of_grpo(), yaml, &[]).unwrap().config;
    assert_eq!(config.optimizer.lr_scheduler_kwargs.unwrap().min_lr, Some(1e-7));
    assert_eq!(Interval::Epoch.steps(7), 7);
    assert_eq!(SaveStrategy::Steps.interval(0), None);
}

#[test]
fn ranks_have_the_flags_of_transformers_and_of_deepspeed() {
    let ranks = |flags: &[(&str, &str)]| grpo(flags).unwrap().config.training();
    let plain = ranks(&[]);
    assert_eq!((plain.ranks.ddp_timeout, plain.ranks.check_collectives), (1800, false));
    let given = ranks(&[("ddp_timeout", "60"), ("check_collectives", "true"), ("zero_stage", "0")]);
    assert_eq!((given.ranks.ddp_timeout, given.ranks.check_collectives), (60, true));
    let (zero, two) = (ZeroStage::Zero, ZeroStage::Two);
    for (flag, lora, of_one, of_eight) in [
        ("auto", "false", zero, two),
        ("auto", "true", zero, zero),
        ("0", "false", zero, zero),
        ("1", "false", zero, two),
        ("2", "true", zero, two),
        ("3", "false", zero, two),
    ] {
        let sections = ranks(&[("zero_stage", flag), ("use_peft", lora)]);
        let stages = [1, 8].map(|ranks| sections.zero_stage(ranks));
        assert_eq!(stages, [of_one, of_eight], "{flag}, LoRA {lora}");
    }
    for (flag, value, part) in [("zero_stage", "4", "`3`"), ("ddp_timeout", "0", "at least 1")] {
        let said = grpo(&[(flag, value)]).unwrap_err().to_string();
        assert!(said.contains(flag) && said.contains(part), "{said}");
    }
    // A number of YAML is a word too.
    let yaml = with::<SftConfig>(compat_flags_of_sft(), "zero_stage: 2", &[]).unwrap();
    assert_eq!(yaml.config.training().zero_stage(2), two);
}

#[test]
fn schedules_are_told_what_they_know() {
    for (kind, kwargs, reason) in [
        ("cosine_with_min_lr", "", "got nothing"),
        ("cosine", r#"{"min_lr":1e-7}"#, "cosine_with_min_lr"),
        ("cosine_with_min_lr", r#"{"min_lr":1}"#, "at most `learning_rate`"),
        ("cosine_with_min_lr", r#"{"min_lr":1e-7,"min_lr_rate":0.1}"#, "both"),
        ("cosine_with_min_lr", r#"{"num_cycles":2}"#, "`num_cycles`"),
        ("cosine_with_min_lr", "7", "numbers by name"),
    ] {
        let mut flags = vec![("lr_scheduler_type", kind)];
        flags.extend(Some(("lr_scheduler_kwargs", kwargs)).filter(|_| !kwargs.is_empty()));
        let said = grpo(&flags).unwrap_err().to_string();
        assert!(said.contains("lr_scheduler_kwargs") && said.contains(reason), "{said}");
    }
    assert!(grpo(&[("lr_scheduler_kwargs", "{}")]).is_ok());
    for bad in ["-1", "1.5"] {
        let said = grpo(&[("warmup_steps", bad)]).unwrap_err().to_string();
        assert!(said.contains("a part of the steps below 1"), "{said}");
    }
}

#[test]
fn names_are_suggested_where_they_are_near() {
    let names = || GrpoConfig::FIELDS.iter().map(|field| field.name);
    for (given, expected) in [
        ("lerning_rate", Some("learning_rate")),
        ("num_generation", Some("num_generations")),
        ("save_step", Some("save_steps")),
        ("betta", Some("beta")),
        ("model", Some("model_name_or_path")),
        ("max", None),
        ("eval", None),
        ("train_batch_size", Some("per_device_train_batch_size")),
        ("wandb_projekt", None),
        ("foo", None),
        ("x", None),
        ("", None),
        ("torch_empty_my_cache", None),
    ] {
        let found = nearest(given, names());
        assert_eq!(found, expected, "{given}");
    }
}

#[test]
fn absurd_numbers_are_refused_by_name_with_the_bound() {
    for (name, value, bound) in [
        ("num_generations", "10000000", "at most 65536"),
        ("lora_r", "1000000", "at most 4096"),
        ("gradient_accumulation_steps", "4294967296", "at most 65536"),
        ("per_device_train_batch_size", "18446744073709551615", "at most 65536"),
        ("num_threads", "4294967297", "at most 1024"),
        ("dataloader_num_workers", "100000", "at most 1024"),
        ("max_completion_length", "9223372036854775807", "at most 1048576"),
        ("max_steps", "9223372036854775807", "at most 1000000000"),
        ("save_steps", "18446744073709551615", "at most 9007199254740992"),
        ("min_pixels", "999999999999", "at most 67108864"),
        ("temperature", "1e-300", "at least 0.000001"),
        ("temperature", "1e300", "at most 1000000"),
        ("learning_rate", "1e9", "at most 100"),
        ("reward_timeout_secs", "1e300", "at most 100000000"),
        ("reward_weights", "1 1e300", "at most 1000000000"),
        ("num_train_epochs", "1e300", "at most 1000000"),
    ] {
        let error = grpo(&[("max_pixels", "1000000000000"), (name, value)]).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(&format!("`{name}`: got ")) && said.contains(bound), "{said}");
    }
    let both = [("per_device_train_batch_size", "65536"), ("gradient_accumulation_steps", "65536")];
    let said = grpo(&both).unwrap_err().to_string();
    assert!(said.contains("at most 1048576 rows in a step"), "{said}");
    for (name, value) in [
        ("seed", "18446744073709551615"),
        ("save_steps", "999999999999"),
        ("max_grad_norm", "1e10"),
        ("epsilon_high", "1e6"),
    ] {
        grpo(&[(name, value)]).unwrap();
    }
}

#[test]
fn yaml_that_is_wrong_is_told_in_our_words() {
    for (yaml, expected) in [
        ("beta: 1\nseed: 2\nbeta: 2", "run.yaml:3: `beta` is there twice, first in line 1"),
        ("num-generations: 4\nnum_generations: 8", "is the same"),
        ("beta: 1\n\tseed: 2", "run.yaml:2: the line begins with a tab, expected spaces"),
        ("- a\n- b", "run.yaml: got a list, expected lines `key: value`"),
        ("just text", "expected lines `key: value`"),
        ("beta: .inf", "run.yaml:1: got `.inf`, expected a finite number"),
        ("beta: 1\n---\nbeta: 2", "got several documents (`---`), expected one"),
        ("beta: [1", "not YAML"),
        ("beta: *nowhere", "run.yaml:1: not YAML: alias references unknown anchor"),
        ("beta: [1, 2]", "`beta`: got a list, expected a finite number"),
        ("beta: {a: 1}", "`beta`: got a mapping"),
        ("training:\n  beta: 1", "run.yaml:1: unknown key `training`"),
    ] {
        let error = with::<GrpoConfig>(compat_flags_of_grpo(), yaml, &[]).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(expected), "{yaml:?}: {said}");
        assert!(
            !said.contains("Policy") && !said.contains("Options") && !said.contains("error:"),
            "{said}"
        );
        assert!(said.starts_with("run.yaml"), "{said}");
    }
    for yaml in [
        "",
        "---",
        "---\n# nothing\n",
        "\u{feff}beta: 0.04",
        "bf16: off\nuse_peft: no\nfreeze_merger: No",
        "x: &base 0.04\nbeta: *base",
        "learning_rate: 1e-6",
        "num_generations: 1_000",
        "beta: 0.04\r\nseed: 42\r\n",
    ] {
        let yaml = yaml.replace("x: &base 0.04", "epsilon: &base 0.04");
        with::<GrpoConfig>(compat_flags_of_grpo(), &yaml, &[])
            .unwrap_or_else(|error| panic!("{yaml:?}: {error}"));
    }
}

#[test]
fn flags_of_launchers_are_known() {
    for name in ["nproc_per_node", "rdzv_endpoint", "master_port", "nnodes"] {
        assert!(is_of_launcher(name), "{name}");
    }
    assert!(!is_of_launcher("beta"));
}

/// Settings of the algorithm that exclude one another; the field that the message names.
#[test]
fn contradictions_of_the_algorithm_are_refused_by_name() {
    for (yaml, named) in [
        ("delta: 1.5\nloss_type: cispo", "delta"),
        ("sync_ref_model: true\nbeta: 0", "sync_ref_model"),
        ("sync_ref_model: true\nuse_peft: true", "sync_ref_model"),
        ("kl_in_reward: true\nbeta: 0", "kl_in_reward"),
        ("use_bias_correction_kl: true\nadvantage_estimator: rloo", "use_bias_correction_kl"),
        ("multi_objective_aggregation: normalize_then_sum\nscale_rewards: none", "scale_rewards"),
        (
            "multi_objective_aggregation: normalize_then_sum\nadvantage_estimator: rloo",
            "kl_in_reward",
        ),
        ("loss_type: vespo\nsampler_correction: sequence_mask", "sampler_correction"),
        ("sampler_correction: token_mask\nsampler_correction_max: none", "sampler_correction_max"),
        ("sampler_correction: token_mask\nsampler_correction_min: 4", "sampler_correction_min"),
        ("steps_per_generation: 3\ngradient_accumulation_steps: 2", "steps_per_generation"),
        ("top_entropy_quantile: 1.5", "top_entropy_quantile"),
        ("ref_model_mixup_alpha: -0.1", "ref_model_mixup_alpha"),
    ] {
        let error = with::<GrpoConfig>(compat_flags_of_grpo(), yaml, &[]).unwrap_err();
        assert!(matches!(error, ConfigError::OutOfRange { .. }), "{yaml}: {error}");
        assert!(error.to_string().contains(named), "{yaml}: {error}");
    }
}

#[test]
fn settings_of_other_variants_are_named_as_inactive() {
    let yaml = "vespo_k_pos: 1\nsapo_temperature_pos: 2\nref_model_sync_steps: 3\nmax_resample_times: 1\n\
                sampler_correction_min: 0.1\nloss_type: sapo\nepsilon: 0.1";
    let resolved = with::<GrpoConfig>(compat_flags_of_grpo(), yaml, &[]).unwrap();
    let mut names: Vec<&str> =
        resolved.without_effect.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "epsilon",
            "max_resample_times",
            "ref_model_sync_steps",
            "sampler_correction_min",
            "vespo_k_pos"
        ]
    );
}

#[test]
fn words_and_other_names_of_the_algorithm() {
    let algorithm = |flags: &[(&str, &str)]| grpo(flags).unwrap().config.algorithm;
    for (text, scale) in [
        ("true", ScaleRewards::Group),
        ("group", ScaleRewards::Group),
        ("batch", ScaleRewards::Batch),
        ("False", ScaleRewards::None),
        ("none", ScaleRewards::None),
    ] {
        assert_eq!(algorithm(&[("scale_rewards", text)]).scale(), scale, "{text}");
    }
    let of_trl = algorithm(&[
        ("vllm_importance_sampling_mode", "token_truncate"),
        ("vllm_importance_sampling_clip_max", "2"),
        ("vllm-importance-sampling-clip-min", "0.5"),
    ]);
    assert_eq!(of_trl.sampler_correction, SamplerCorrection::TokenTruncate);
    assert_eq!(
        (of_trl.sampler_correction_min, of_trl.sampler_correction_max),
        (Some(0.5), Some(2.0))
    );
    let yaml = "scale_rewards: false\nloss_type: dr_grpo";
    let dr_grpo = with::<GrpoConfig>(compat_flags_of_grpo(), yaml, &[]).unwrap().config;
    assert_eq!(dr_grpo.algorithm.scale(), ScaleRewards::None);
    assert_eq!(dr_grpo.algorithm.loss_type, LossType::DrGrpo);
}
