//! Layers of a configuration: what wins, what is refused, and how it is said.

use std::path::Path;

use config::{
    Config, ConfigError, DemoConfig, EvalConfig, EvalTask, FilterSection, GenerateConfig,
    GrpoConfig, Kind, Layers, LogprobsConfig, LrSchedulerType, PlanConfig, Resolved, Resume,
    RewardConfig, SaveStrategy, SchedulerKwargs, Section, SftConfig, Validate, changed_settings,
    compat_flags_of_grpo, resolve, to_yaml,
};

fn flags(line: &str) -> Vec<(String, Vec<String>)> {
    let mut flags: Vec<(String, Vec<String>)> = Vec::new();
    for word in line.split_whitespace() {
        match (word.strip_prefix("--"), flags.last_mut()) {
            (Some(name), _) => flags.push((name.into(), vec![])),
            (None, Some((_, values))) => values.push(word.into()),
            (None, None) => panic!("value before flag"),
        }
    }
    flags
}

const REQUIRED: &str = "--model_name_or_path m --data_file_paths a.jsonl --output_dir o ";

fn grpo(yaml: &str, line: &str, sets: &[&str]) -> Result<Resolved<GrpoConfig>, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    resolve(&Layers {
        file: Some((Path::new("run.yaml"), yaml)),
        flags: &flags(&format!("{REQUIRED}{line}")),
        sets: &sets,
        compat: compat_flags_of_grpo(),
    })
}

fn config(yaml: &str, line: &str, sets: &[&str]) -> GrpoConfig {
    grpo(yaml, line, sets).unwrap().config
}

fn message(yaml: &str, line: &str, sets: &[&str]) -> String {
    grpo(yaml, line, sets).unwrap_err().to_string()
}

#[test]
fn later_layers_win() {
    let yaml = "beta: 0.1\nepsilon: 0.3\ntemperature: 0.5\n";
    let config = config(yaml, "--epsilon 0.4 --temperature 0.6", &["temperature=0.7"]);
    assert_eq!((config.algorithm.num_generations, config.algorithm.beta), (8, 0.1));
    assert_eq!((config.algorithm.epsilon, config.sampling.temperature), (0.4, 0.7));
}

#[test]
fn both_spellings_name_the_same_field() {
    let with_dashes = config("num-train-epochs: 2", "--learning-rate 1e-5", &["max-steps=7"]);
    let without = config("num_train_epochs: 2", "--learning_rate 1e-5", &["max_steps=7"]);
    assert_eq!(with_dashes, without);
    assert_eq!(
        (
            without.optimizer.learning_rate,
            without.optimizer.num_train_epochs,
            without.optimizer.max_steps
        ),
        (1e-5, 2.0, 7)
    );
}

#[test]
fn booleans_are_read_in_every_common_form() {
    for on in ["--bf16", "--bf16 true", "--bf16 True", "--bf16 yes", "--bf16 1"] {
        assert!(config("", on, &[]).model.bf16, "{on}");
        assert!(config("bf16: true", "", &[]).model.bf16);
    }
    for off in ["", "--bf16 false", "--bf16 False", "--bf16 no", "--bf16 0"] {
        assert!(!config("", off, &[]).model.bf16, "{off}");
    }
    assert!(!config("bf16: true", "--bf16 false", &[]).model.bf16);
    assert!(config("bf16: 'yes'", "", &[]).model.bf16 && config("bf16: yes", "", &[]).model.bf16);
    assert_eq!(config("save_strategy: no", "", &[]).save.save_strategy, SaveStrategy::No);
}

#[test]
fn lists_come_from_flags_yaml_and_set() {
    let expected = ["format", "accuracy"];
    assert_eq!(config("", "--reward_funcs format accuracy", &[]).rewards.reward_funcs, expected);
    assert_eq!(config("reward_funcs: [format, accuracy]", "", &[]).rewards.reward_funcs, expected);
    assert_eq!(
        config("reward_funcs:\n- format\n- accuracy", "", &[]).rewards.reward_funcs,
        expected
    );
    assert_eq!(config("", "", &["reward_funcs=format,accuracy"]).rewards.reward_funcs, expected);
    assert_eq!(config("reward_funcs: format", "", &[]).rewards.reward_funcs, ["format"]);
    assert_eq!(
        config("", "--reward_weights 1 0.5", &[]).rewards.reward_weights,
        Some(vec![1.0, 0.5])
    );
    let files = config("", "--data_file_paths a.jsonl:b.jsonl", &[]).data.data_file_paths;
    assert_eq!(&*files, "a.jsonl:b.jsonl");
    let folders = config("image_folders: [x, y]", "", &[]).data.image_folders.unwrap();
    assert_eq!(&*folders, "x:y");
}

#[test]
fn numbers_may_stand_in_quotes_and_in_every_notation() {
    for yaml in ["learning_rate: 1e-6", "learning_rate: '1e-6'", "learning_rate: 0.000001"] {
        assert_eq!(config(yaml, "", &[]).optimizer.learning_rate, 1e-6, "{yaml}");
    }
    assert_eq!(config("beta: 1", "", &[]).algorithm.beta, 1.0);
    assert_eq!(config("max_steps: -1\nnum_generations: '4'", "", &[]).algorithm.num_generations, 4);
}

#[test]
fn none_unsets_an_optional_field() {
    let config = config("epsilon_high: 0.3\nmin_p: ~", "--epsilon_high none", &[]);
    assert_eq!((config.algorithm.epsilon_high, config.filters.min_p), (None, None));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
    assert_eq!(
        message("# a comment\nbeta: 0.1\nlerning_rate: 1", "", &[]),
        "run.yaml:3: unknown key `lerning_rate`\nhint: did you mean `learning_rate`?"
    );
    assert_eq!(
        message("", "--num_generation 4", &[]),
        "command line: unknown key `num_generation`\nhint: did you mean `num_generations`?"
    );
    assert_eq!(
        message("", "", &["grpo.beta=1"]),
        "`--set grpo.beta=1`: unknown key `grpo.beta`\nhint: did you mean `beta`?"
    );
    assert_eq!(message("", "", &["beta"]), "`--set beta`: expected `key=value`");
}

#[test]
fn a_wrong_type_names_key_value_and_expectation() {
    assert_eq!(
        message("num_generations: many", "", &[]),
        "run.yaml:1: `num_generations`: got `many`, expected a whole number from 0"
    );
    assert_eq!(
        message("", "--lr_scheduler_type polynomial", &[]),
        "command line: `lr_scheduler_type`: got `polynomial`, expected one of `linear`, `cosine`, \
         `cosine_with_min_lr`, `constant`, `constant_with_warmup`"
    );
    assert_eq!(
        message("reward_weights: [1, x]", "", &[]),
        "run.yaml:1: `reward_weights`: got `x`, expected a finite number"
    );
    for (yaml, line, sets) in [
        ("beta: 'nan'", "", ""),
        ("beta: 'inf'", "", ""),
        ("beta: true", "", ""),
        ("beta: [1]", "", ""),
        ("beta:", "", ""),
        ("run_name: 42", "", ""),
        ("bf16: 2", "", ""),
        ("save_steps: 1.5", "", ""),
        ("save_steps: -1", "", ""),
        ("", "--beta", ""),
        ("", "--beta nan", ""),
        ("", "--beta 1 2", ""),
        ("", "--save_steps -3", ""),
        ("", "", "bf16=maybe"),
    ] {
        let sets: Vec<&str> = [sets].into_iter().filter(|set| !set.is_empty()).collect();
        let error = grpo(yaml, line, &sets).unwrap_err();
        assert!(matches!(error, ConfigError::WrongType { .. }), "{yaml}{line}: {error}");
    }
}

#[test]
fn text_that_is_no_mapping_is_refused() {
    for yaml in ["- a\n- b", "beta: [1", "just text", "beta: 1\nbeta: 2", "beta: .nan"] {
        let error = grpo(yaml, "", &[]).unwrap_err();
        assert!(matches!(error, ConfigError::Yaml { .. }), "{yaml}: {error}");
    }
    assert!(grpo("# nothing\n\n", "", &[]).is_ok());
}

#[test]
fn required_fields_are_named_together() {
    let error = resolve::<GrpoConfig>(&Layers::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "missing `--model_name_or_path`, `--data_file_paths`, `--output_dir`"
    );
    let yaml = "model_name_or_path: m\ndata_file_paths: d\noutput_dir: o";
    let layers = Layers { file: Some((Path::new("run.yaml"), yaml)), ..Layers::default() };
    assert_eq!(resolve::<GrpoConfig>(&layers).unwrap().config.run.output_dir, "o");
}

#[test]
fn values_out_of_range_are_refused() {
    for (line, key) in [
        ("--num_generations 1", "num_generations"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps"),
        ("--max_steps 0", "max_steps"),
        ("--max_steps -2", "max_steps"),
        ("--temperature 0", "temperature"),
        ("--top_p 0", "top_p"),
        ("--val_split_ratio 1", "val_split_ratio"),
        ("--min_completion_length 9 --max_completion_length 8", "min_completion_length"),
        ("--beta -0.1", "beta"),
        ("--overlong_max_tokens 0", "overlong_max_tokens"),
        ("--max_completion_length 9 --overlong_cache_tokens 10", "overlong_cache_tokens"),
    ] {
        match grpo("", line, &[]) {
            Err(ConfigError::OutOfRange { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn flags_of_vlm_r1_without_effect_are_taken_and_named() {
    let line = "--attn_implementation flash_attention_2 --report_to wandb \
                --dataset-name not_used --use_vllm False --data_seed 42";
    let resolved = grpo("", line, &[]).unwrap();
    let names: Vec<&str> = resolved.without_effect.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["attn_implementation", "report_to", "dataset_name", "use_vllm", "data_seed"];
    assert_eq!(names, expected);
    assert_eq!(resolved.config, config("", "", &[]));
}

#[test]
fn settings_of_lora_without_lora_are_named() {
    let named = |yaml: &str, line: &str, sets: &[&str]| -> Vec<String> {
        let resolved = grpo(yaml, line, sets).unwrap();
        let (names, whys): (Vec<_>, Vec<_>) = resolved.without_effect.into_iter().unzip();
        assert!(whys.iter().all(|why| why.contains("--use_peft true")));
        names
    };
    let line = "--lora_r 16 --lora_alpha 64";
    assert_eq!(named("", line, &["lora_vision=true"]), ["lora_r", "lora_alpha", "lora_vision"]);
    assert!(named("", &format!("{line} --use_peft true"), &[]).is_empty());
    // A run's own config.yaml holds all settings; only what differs from the default was meant.
    assert!(named("lora_r: 16\nlora_dropout: 0.05", "", &[]).is_empty());
    assert_eq!(named("lora_r: 8\nlora_dropout: 0.05", "", &[]), ["lora_r"]);
}

#[test]
fn the_optimizer_has_the_names_of_transformers() {
    for (line, is_8bit) in
        [("", false), ("--optim adamw_hf", false), ("--optim adamw_bnb_8bit", true)]
    {
        assert_eq!(config("", line, &[]).optimizer.optim.is_8bit(), is_8bit, "{line}");
    }
    let said = message("", "--optim sgd", &[]);
    assert!(said.contains("`optim`") && said.contains("adamw_8bit"), "{said}");
}

#[test]
fn flags_of_vlm_r1_that_ask_for_what_is_not_built_are_refused() {
    for line in ["--use_vllm True", "--fp16"] {
        let error = grpo("", line, &[]).unwrap_err();
        assert!(matches!(error, ConfigError::NotBuilt { .. }), "{line}: {error}");
        assert!(error.to_string().contains("is not built yet"), "{error}");
    }
    let layers = Layers { flags: &flags("--out o --deepspeed x"), ..Layers::default() };
    assert!(matches!(resolve::<DemoConfig>(&layers), Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn every_configuration_survives_its_own_yaml() {
    let mut grpo = config("", "", &[]);
    grpo.algorithm.epsilon_high = Some(0.28);
    grpo.data.question_template = Some("yes: {Question}\n  \"no\" # - 'x' \u{e9}\n".into());
    grpo.run.run_name = Some("1e-6".into());
    grpo.data.task_type = Some("none".into());
    grpo.save.save_strategy = SaveStrategy::No;
    grpo.optimizer.lr_scheduler_type = LrSchedulerType::CosineWithMinLr;
    grpo.optimizer.lr_scheduler_kwargs =
        Some(SchedulerKwargs { min_lr: Some(1e-9), ..SchedulerKwargs::default() });
    grpo.start.resume_from_checkpoint = Resume::From("out/checkpoint-3".into());
    grpo.optimizer.warmup_steps = 0.25;
    grpo.optimizer.learning_rate = 3.123e-7;
    survives(&grpo);
    survives(&SftConfig::default().with(|c| {
        c.model.model_name_or_path = "true".into();
        c.run.output_dir = "o".into();
        c.optimizer.lr_scheduler_type = LrSchedulerType::ConstantWithWarmup;
    }));
    survives(&GenerateConfig::default().with(|c| c.question.prompt = Some("- a: b".into())));
    survives(&LogprobsConfig::default());
    survives(&RewardConfig::default().with(|c| c.rows.input = Some("rows.jsonl".into())));
    survives(&DemoConfig::default());
}

fn survives<T: Config + PartialEq + std::fmt::Debug>(config: &T) {
    let yaml = to_yaml(config).unwrap();
    let layers = Layers { file: Some((Path::new("config.yaml"), &yaml)), ..Layers::default() };
    let read = resolve::<T>(&layers).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    assert_eq!(&read.config, config, "{yaml}");
}

#[test]
fn only_settings_that_alter_the_run_count_as_changed() {
    let before = config("", "", &[]);
    let yaml = to_yaml(&before).unwrap();
    let free = config("", "--output_dir elsewhere --save_steps 5 --num_threads 1", &[]);
    let file = Path::new("config.yaml");
    assert_eq!(changed_settings(file, &yaml, &free).unwrap(), vec![]);
    let altered = config("", "--beta 0.1 --seed 43", &[]);
    let changes = changed_settings(file, &yaml, &altered).unwrap();
    let keys: Vec<&str> = changes.iter().map(|change| change.key).collect();
    assert_eq!(keys, ["seed", "beta"]);
    assert_eq!((&changes[1].before, &changes[1].now), (&0.04.into(), &0.1.into()));
}

config::section! {
    /// A section.
    pub struct Inner {
        "all" {
            /// A number
            /// on two lines.
            number: i64 = 5,
            /// A name.
            needed: String,
        }
    }
}

config::command! {
    /// What two sections make.
    pub struct Outer {
        inner: Inner,
        filters: FilterSection,
    }
    with {
        filters.top_k = 7 => "Another help.",
    }
}

impl Validate for Outer {}

#[test]
fn the_keys_of_a_command_are_those_of_its_sections() {
    let yaml = "number: 6\nneeded: a\nmin-p: 0.5";
    let file = Some((Path::new("run.yaml"), yaml));
    let layers = Layers { file, ..Layers::default() };
    let config = resolve::<Outer>(&layers).unwrap().config;
    assert_eq!(config.inner, Inner { number: 6, needed: "a".into() });
    let filters = FilterSection { min_p: Some(0.5), top_k: 7, ..FilterSection::default() };
    assert_eq!(config.filters, filters);
    let again = to_yaml(&config).unwrap();
    let file = Some((Path::new("config.yaml"), again.as_str()));
    assert_eq!(resolve::<Outer>(&Layers { file, ..Layers::default() }).unwrap().config, config);
    for (set, said) in [
        ("numbr=7", "`--set numbr=7`: unknown key `numbr`\nhint: did you mean `number`?"),
        (
            "inner.number=7",
            "`--set inner.number=7`: unknown key `inner.number`\nhint: did you mean `number`?",
        ),
    ] {
        let sets = [set.to_owned()];
        let error = resolve::<Outer>(&Layers { sets: &sets, ..layers }).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
    let missing = ConfigError::Missing { keys: vec!["needed".into()] };
    assert_eq!(resolve::<Outer>(&Layers::default()).unwrap_err(), missing);
}

#[test]
fn a_missing_task_lists_the_tasks() {
    let flags = flags("--model m --data_file_paths d --output_dir o");
    let layers = Layers { flags: &flags, ..Layers::default() };
    let said = resolve::<EvalConfig>(&layers).unwrap_err().to_string();
    let Kind::Choice(tasks) = <EvalTask as config::Setting>::KIND else {
        panic!("tasks are words");
    };
    for task in tasks {
        assert!(said.contains(&format!("`{task}`")), "{task}: {said}");
    }
}

#[test]
fn declarations_say_what_they_hold() {
    let field = Inner::FIELDS[0];
    assert_eq!((field.name, field.kind, field.required), ("number", Kind::Int, false));
    assert_eq!(field.help, " A number on two lines.");
    let names: Vec<&str> = Outer::FIELDS.iter().map(|field| field.name).collect();
    assert_eq!(names, ["number", "needed", "top_p", "top_k", "min_p", "repetition_penalty"]);
    assert_eq!(Outer::FIELDS[3].help, "Another help.");
    let required: Vec<&str> =
        GrpoConfig::FIELDS.iter().filter(|field| field.required).map(|field| field.name).collect();
    assert_eq!(required, ["model_name_or_path", "data_file_paths", "output_dir"]);
}

#[test]
fn a_plan_is_a_run_of_grpo_and_amounts_of_memory() {
    let words = |memory: &[&str]| {
        PlanConfig::default().with(|c| {
            c.plan.memory = memory.iter().map(ToString::to_string).collect();
            c.grpo.algorithm.num_generations = 5;
            c.plan.cost_per_hour = Some(2.0);
        })
    };
    let amounts = words(&["24GB", "1.5GiB", "3 MB", "2MiB", "17"]).plan.memory_bytes();
    assert_eq!(amounts.unwrap(), [24_000_000_000, 1_610_612_736, 3_000_000, 2_097_152, 17]);
    for bad in ["", "GB", "0", "-1GB", "24TB", "1.2.3GB"] {
        let error = words(&[bad]).plan.memory_bytes().unwrap_err();
        assert!(error.to_string().contains("memory"), "{bad}: {error}");
    }
    let run = words(&[]).grpo;
    let expected = GrpoConfig::default().with(|c| c.algorithm.num_generations = 5);
    assert_eq!(run, expected);
}
