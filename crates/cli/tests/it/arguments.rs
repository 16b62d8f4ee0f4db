//! Flags, files, help: what is taken, what is refused, and how it is said.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::LazyLock;

use tempfile::TempDir;
use testing::{checkpoint, repository};

use crate::program::{CallResult, call, call_result, command};

const REQUIRED: &str = "--model_name_or_path m --data_file_paths a.jsonl --output_dir o";

/// A folder in which all is there that the lines below name.
static PLACE: LazyLock<TempDir> = LazyLock::new(|| {
    let place = TempDir::new().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::create_dir(path("models")).unwrap();
    for model in ["m", "models/Qwen2.5-VL-3B-Instruct"] {
        let nested = checkpoint("nested");
        symlink(nested.canonicalize().unwrap(), path(model)).unwrap();
    }
    let files = ["a", "refcoco_train", "refcocop_train", "refcocog_train"];
    for file in files {
        fs::write(path(&format!("{file}.jsonl")), "").unwrap();
    }
    fs::create_dir(path("coco")).unwrap();
    fs::write(path("coco/zero3.json"), "{\"zero_optimization\": {\"stage\": 3}}").unwrap();
    place
});

fn call_there(line: &str) -> CallResult {
    let mut command = command();
    command.current_dir(PLACE.path());
    call_result(command.args(line.split_whitespace()).output().unwrap())
}

/// A training script's line, resolved.
fn dry(line: &str) -> CallResult {
    call_there(&format!("grpo --dry_run {REQUIRED} {line}"))
}

fn dry_yaml(line: &str) -> String {
    let result = dry(line);
    assert_eq!(result.code, Some(0), "{line}: {}", result.stderr);
    result.stdout
}

fn refused(result: &CallResult) -> &str {
    assert_eq!((result.code, result.stdout.as_str()), (Some(2), ""), "{}", result.stderr);
    &result.stderr
}

#[test]
fn help_lists_every_command() {
    let help = call("--help");
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    for command in ["demo", "grpo", "sft", "generate", "logprobs", "reward"] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command}");
        let own = call(&format!("{command} --help"));
        assert_eq!(own.code, Some(0));
        assert!(own.stdout.contains("--config <FILE>"), "{}", own.stdout);
    }
    assert_eq!(call("--version").stdout, concat!("vlm-r1 ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// What users read must not move when the declarations behind it do: `UPDATE_HELP=1` writes what is said now.
#[test]
fn help_is_as_it_was() {
    const COMMANDS: [&str; 15] = [
        "",
        "demo",
        "grpo",
        "sft",
        "launch",
        "plan",
        "eval",
        "generate",
        "logprobs",
        "reward",
        "merge",
        "doctor",
        "data",
        "data check",
        "data convert",
    ];
    let updates = std::env::var_os("UPDATE_HELP").is_some();
    for command in COMMANDS {
        let name = if command.is_empty() { "vlm-r1".into() } else { command.replace(' ', "-") };
        let path = repository(format!("golden/cli/help/{name}.txt"));
        let help = call(&format!("{command} --help")).stdout;
        if updates {
            fs::write(&path, &help).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap();
        for (expected, got) in expected.lines().zip(help.lines()) {
            assert_eq!(expected, got, "{}", path.display());
        }
        assert_eq!(expected, help, "{}", path.display());
    }
}

#[test]
fn help_says_defaults_and_requirements_and_hides_foreign_flags() {
    let help: String = call("grpo --help").stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Policy optimisation: ",
        "--num_generations <N> Completions of one prompt: the size of a group [default: 8]",
        "[default: accuracy format]",
        "--learning_rate <X> Highest learning rate [default: 1e-6]",
        "--lr_scheduler_type <linear|cosine|cosine_with_min_lr|constant|constant_with_warmup>",
        "[required]",
    ] {
        assert!(help.contains(part), "{part}\n{help}");
    }
    assert!(!help.contains("attn_implementation"));
    let help: String = call("sft --help").stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("[default: cosine]"), "{help}");
}

#[test]
fn wrong_words_are_refused_with_the_nearest() {
    let error = "error: unknown flag `--lerning_rate`\nhint: did you mean `--learning_rate`?\n";
    assert_eq!(refused(&dry("--lerning-rate 1")), error);
    let error = "error: unknown flag `--wandb_name`\nhint: `vlm-r1 grpo --help` lists the flags\n";
    assert_eq!(refused(&dry("--wandb_name 1")), error);
    let error = "error: unknown command `grop`\nhint: did you mean `grpo`?\n";
    assert_eq!(refused(&call("grop --beta 0")), error);
    refused(&call(""));
    refused(&dry("stray"));
    refused(&dry("-x"));
    refused(&dry("--beta"));
    let foreign = call("generate --model m --prompt p --nproc_per_node 8");
    assert!(
        refused(&foreign).contains("`--nproc_per_node` is a flag of a launcher, and `generate`"),
        "{}",
        foreign.stderr
    );
}

#[test]
fn both_spellings_and_the_equals_sign_mean_the_same() {
    let expected = dry_yaml("--num_train_epochs 2 --max_steps -1 --bf16 true --image_folders coco");
    let dashes = dry_yaml("--num-train-epochs 2 --max-steps=-1 --bf16 --image-folders=coco");
    assert_eq!(dashes, expected);
    assert!(expected.contains("num_train_epochs: 2"), "{expected}");
    assert!(expected.contains("bf16: true"), "{expected}");
    // A value keeps its dashes.
    assert!(dry_yaml("--run-name=my-run").contains("run_name: my-run"));
}

#[test]
fn of_a_repeated_flag_the_last_counts() {
    assert!(
        dry_yaml("--beta 0.1 --reward_funcs accuracy --beta 0.2 --reward_funcs format")
            .contains("beta: 0.2")
    );
}

/// The arguments of VLM-R1's `run_scripts/run_grpo_rec.sh`, with its variables filled in.
const RUN_GRPO_REC: &str = "--use_vllm False --output_dir checkpoints/rl/rec --resume_from_checkpoint True \
    --model_name_or_path models/Qwen2.5-VL-3B-Instruct \
    --data_file_paths refcoco_train.jsonl:refcocop_train.jsonl:refcocog_train.jsonl \
    --image_folders coco:coco:coco --is_reward_customized_from_vlm_module True --task_type rec \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --gradient_checkpointing true \
    --logging_steps 1 --num_train_epochs 2 --bf16 --attn_implementation flash_attention_2 \
    --run_name rec --data_seed 42 --save_steps 100 --num_generations 8 --max_completion_length 2048 \
    --reward_funcs accuracy format --beta 0.04 --report_to wandb --dataset-name this_is_not_used \
    --deepspeed coco/zero3.json";

#[test]
fn the_rec_script_of_vlm_r1_is_taken_as_it_is() {
    let result = call_there(&format!("grpo --dry_run {RUN_GRPO_REC}"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    for line in [
        "output_dir: checkpoints/rl/rec",
        "is_reward_customized_from_vlm_module: true",
        "task_type: rec",
        "per_device_train_batch_size: 8",
        "gradient_accumulation_steps: 2",
        "gradient_checkpointing: true",
        "bf16: true",
        "beta: 0.04",
        "image_folders: coco:coco:coco",
    ] {
        assert!(result.stdout.contains(line), "{line}\n{}", result.stdout);
    }
    assert!(result.stdout.contains("\nzero_stage: \"3\"\n"), "{}", result.stdout);
    assert_eq!(result.stderr.lines().count(), 1, "{}", result.stderr);
    assert!(result.stderr.starts_with("warning: no effect here: "), "{}", result.stderr);
    for flag in ["use_vllm", "attn_implementation", "data_seed", "report_to", "dataset_name"] {
        assert_eq!(
            result.stderr.matches(&format!("`--{flag}`")).count(),
            1,
            "{flag}: {}",
            result.stderr
        );
    }
}

#[test]
fn the_other_scripts_of_vlm_r1_differ_by_what_they_say() {
    for (more, expected) in [
        ("--epsilon_high 0.28", "epsilon_high: 0.28"),
        ("--max_anyres_num 6", "beta: 0.04"),
        ("--reward_method all_match:all_match:all_match --max_steps 1200", "max_steps: 1200"),
    ] {
        let result = call_there(&format!("grpo --dry_run {RUN_GRPO_REC} {more}"));
        assert_eq!(result.code, Some(0), "{}", result.stderr);
        assert!(result.stdout.contains(expected), "{expected}\n{}", result.stdout);
    }
}

#[test]
fn the_lora_script_of_vlm_r1_is_taken_as_it_is() {
    let lora = "--learning_rate 1e-5 --use_peft true --lora_r 64 --lora_alpha 128 --lora_dropout 0.05 \
                --lora_task_type CAUSAL_LM --freeze_vision_modules true";
    let result = call_there(&format!("grpo --dry_run {RUN_GRPO_REC} {lora}"));
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    for line in ["use_peft: true", "lora_r: 64", "lora_alpha: 128.0", "lora_dropout: 0.05"] {
        assert!(result.stdout.contains(line), "{line}\n{}", result.stdout);
    }
}

/// VLM-R1's `multinode_training_args.yaml`.
const MULTINODE: &str = "\
output_dir: /path/to/output/runs/ai2d
model_name_or_path: /path/to/models/Qwen2.5-VL-3B-Instruct
dataset_name: Idefics-ai2d
data_file_paths: /path/to/data/ai2d.jsonl
image_folders: /path/to/images
max_prompt_length: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
logging_steps: 1
bf16: true
report_to: wandb
gradient_checkpointing: false
deepspeed: /path/to/config/zero3.json
attn_implementation: flash_attention_2
max_pixels: 401408
max_steps: 500
run_name: ai2d
save_steps: 100
save_total_limit: 3
save_only_model: true
num_generations: 8
";

#[test]
fn a_file_is_overridden_by_flags_and_these_by_set() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("args.yaml");
    fs::write(&file, MULTINODE).unwrap();
    let file = file.display();
    let result = call(&format!(
        "grpo --config {file} --max_steps 7 --save_steps 8 --set save_steps=9 --set reward_funcs=format --dry_run"
    ));
    // Nothing of it is there.
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    for line in [
        "max_pixels: 401408",
        "max_steps: 7",
        "save_steps: 9",
        "save_total_limit: 3",
        "reward_funcs:\n- format",
    ] {
        assert!(result.stdout.contains(line), "{line}\n{}", result.stdout);
    }
    // What was printed is a file to start from.
    let printed = dir.path().join("printed.yaml");
    fs::write(&printed, &result.stdout).unwrap();
    assert_eq!(call(&format!("grpo --config {}", printed.display())).stdout, result.stdout);
}

#[test]
fn bad_values_name_their_place() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("args.yaml");
    fs::write(&file, "beta: 0.1\nnum_generations: many\n").unwrap();
    let shown = file.display();
    let expected = format!(
        "error: {shown}:2: `num_generations`: got `many`, expected a whole number from 0\n"
    );
    assert_eq!(refused(&dry(&format!("--config {shown}"))), expected);
    fs::write(&file, "beta: 0.1\n\nnum_generation: 4\n").unwrap();
    let expected = format!(
        "error: {shown}:3: unknown key `num_generation`\nhint: did you mean `num_generations`?\n"
    );
    assert_eq!(refused(&dry(&format!("--config {shown}"))), expected);
    let expected = "error: command line: `bf16`: got `maybe`, expected `true` or `false`\n";
    assert_eq!(refused(&dry("--bf16 maybe")), expected);
    let expected = "error: `--set beta=x`: `beta`: got `x`, expected a finite number\n";
    assert_eq!(refused(&dry("--set beta=x")), expected);
    let expected = "error: `num_generations`: got 1, expected at least 2\n";
    assert_eq!(refused(&dry("--num_generations 1")), expected);
    let expected = "error: missing `--data_file_paths`, `--output_dir`\n";
    assert_eq!(refused(&call("grpo --model_name_or_path m")), expected);
    let expected = "error: `output_dir`: got nothing, expected a folder\n";
    assert_eq!(refused(&dry("--output_dir=")), expected);
    let result = dry("--lora_r 1000000");
    assert!(refused(&result).starts_with("error: `lora_r`: got 1000000, expected at most 4096: "));
    let missing = dry("--config nowhere.yaml");
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.starts_with("error: nowhere.yaml: "), "{}", missing.stderr);
}

#[test]
fn a_dry_run_finds_all_that_keeps_a_run_from_beginning() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("file"), "").unwrap();
    fs::create_dir_all(path("locked/.lock")).unwrap();
    fs::create_dir(path("folder.jsonl")).unwrap();
    fs::write(
        path("evals.yaml"),
        "val:\n  task: rec\n  data_file_paths: none.json\n  image_folders: nowhere\n",
    )
    .unwrap();
    let (file, evals) = (path("file"), path("evals.yaml"));
    let result = dry(&format!(
        "--model_name_or_path nowhere --data_file_paths none.jsonl:{} --image_folders here:coco \
         --reward_funcs acuracy format --reward_weights 1 2 3 --output_dir {file}/out --eval_steps 1 \
         --eval_config {evals} --resume_from_checkpoint old/checkpoint-3 --device gpu",
        path("folder.jsonl")
    ));
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert!(result.stdout.contains("model_name_or_path: nowhere"));
    for part in [
        "error: 11 problems keep the work from beginning\n",
        "`acuracy`",
        "reward weights: got 3, expected 2",
        "model folder `nowhere` does not exist",
        "`data_file_paths`: `none.jsonl`: No such file",
        "folder.jsonl` is a folder, expected a file",
        "`image_folders`: no folder `here`",
        &format!("`output_dir`: `{file}` is not a folder"),
        "`old/checkpoint-3` is no checkpoint",
        "evaluation `val`: `data_file_paths`: `none.json`",
        "evaluation `val`: `image_folders`: no folder `nowhere`",
        "gpu",
    ] {
        assert!(result.stderr.contains(part), "{part}\n{}", result.stderr);
    }
    for (flags, part) in [
        (format!("--output_dir {}", path("locked")), ".lock: a folder, expected"),
        (format!("--eval_steps 1 --eval_config {}", path("none.yaml")), "none.yaml"),
        (format!("--feature_cache_dir {file}"), "`feature_cache_dir`"),
        ("--model_name_or_path coco".to_owned(), "coco/config.json"),
        ("--deepspeed none.json".to_owned(), "none.json"),
        (format!("--deepspeed {}", path("folder.jsonl")), "folder.jsonl"),
    ] {
        let result = dry(&flags);
        assert_eq!(result.code, Some(1), "{flags}: {}", result.stderr);
        assert!(result.stderr.contains(part), "{flags}: {}", result.stderr);
    }
    let no_json = dry(&format!("--deepspeed {evals}"));
    assert_eq!(no_json.code, Some(2), "{}", no_json.stderr);
    assert!(no_json.stderr.contains("evals.yaml:1: no JSON"), "{}", no_json.stderr);
    // A name is looked at before the model is.
    let line = REQUIRED.replace("path m", "path somebody/something");
    let result = call_there(&format!("grpo {line} --reward_funcs acuracy"));
    assert!(result.stderr.starts_with("error: unknown reward `acuracy`"), "{}", result.stderr);
}

#[test]
fn a_file_of_deepspeed_is_obeyed_or_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("zero.json");
    let dry_with = |text: &str, more: &str| {
        fs::write(&file, text).unwrap();
        dry(&format!("--deepspeed {} {more}", file.display()))
    };
    let obeyed = r#"{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": true},
        "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 10}"#;
    let result = dry_with(obeyed, "");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    for line in ["zero_stage: \"2\"", "offload_optimizer: true"] {
        assert!(result.stdout.contains(line), "{line}: {}", result.stdout);
    }
    let warning = format!(
        "warning: {}: no effect here, where buckets and reports are our own: `zero_optimization.overlap_comm`, \
         `steps_per_print`\n",
        file.display()
    );
    assert_eq!(result.stderr, warning);
    // What it asks of several ranks, as a launcher has them.
    let whole = obeyed.replace("\"stage\": 2", "\"stage\": 0");
    assert_eq!(dry_with(&whole, "").code, Some(0));
    let refused = dry_with(r#"{"gradient_clipping": 0.5, "fp16": {"enabled": true}}"#, "");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let expected = format!(
        "error: {}: `gradient_clipping`: got `0.5`, expected `auto` or `1.0`",
        file.display()
    );
    assert!(refused.stderr.starts_with(&expected), "{}", refused.stderr);
    let differs = dry_with(obeyed, "--zero_stage 0");
    assert!(differs.stderr.contains("expected 0, as `--zero_stage` has it"), "{}", differs.stderr);
    assert_eq!(differs.code, Some(2));
}

fn with_world_size(size: &str, line: &str) -> CallResult {
    let mut command = command();
    command.args(line.split_whitespace()).current_dir(PLACE.path()).env("WORLD_SIZE", size);
    call_result(command.output().unwrap())
}

#[test]
fn settings_are_shown_whatever_ranks_there_are() {
    for size in ["1", "2"] {
        let shown = with_world_size(size, &format!("grpo --dry_run {REQUIRED}"));
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    }
}

#[test]
fn commands_without_ranks_are_done_by_one_process() {
    for (line, hint) in [
        ("reward --dry_run --input rows.jsonl --reward_funcs format", "hint: start it once"),
        ("data check --data_file_paths a.jsonl", "env -u WORLD_SIZE"),
        ("demo --dry_run", "hint: start it once"),
        (
            "plan --dry_run --model_name_or_path m --data_file_paths a --output_dir o",
            "plan --ranks 8",
        ),
        ("eval --compare coco models", "hint: start it once"),
    ] {
        let result = with_world_size("8", line);
        let name = line.split(" --").next().unwrap();
        let said = refused(&result);
        let expected = format!("error: WORLD_SIZE is `8`, and `{name}` is done by one process\n");
        assert!(said.starts_with(&expected) && said.contains(hint), "{said}");
    }
    let grpo = format!("grpo --dry_run {REQUIRED}");
    let wrong = with_world_size("two", &grpo);
    assert!(
        wrong.stderr.contains("WORLD_SIZE is `two`, expected the number of ranks, from 1\nhint: "),
        "{}",
        wrong.stderr
    );
    assert_eq!(wrong.code, Some(2));
}

#[test]
fn a_model_that_is_nowhere_is_named() {
    let dir = TempDir::new().unwrap();
    let ask = |model: &str| {
        let mut command = command();
        command.args(["generate", "--model", model, "--prompt", "hello"]);
        call_result(command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", dir.path()).output().unwrap())
    };
    let folder = ask("./nowhere");
    assert_eq!(folder.code, Some(1));
    assert!(
        folder.stderr.starts_with("error: model folder `./nowhere` does not exist\nhint: "),
        "{}",
        folder.stderr
    );
    let hub = ask("somebody/something");
    assert_eq!(hub.code, Some(1));
    let expected = "error: model `somebody/something` is no folder here and not in the cache, and HF_HUB_OFFLINE forbids to fetch it";
    assert!(hub.stderr.starts_with(expected), "{}", hub.stderr);
}

#[test]
fn a_hub_that_cannot_be_reached_is_an_error_with_a_way_out() {
    let dir = TempDir::new().unwrap();
    let mut command = command();
    command.args(["generate", "--model", "somebody/something", "--prompt", "hello"]);
    // A port that nobody listens on.
    command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", dir.path());
    let result = call_result(command.output().unwrap());
    assert_eq!(result.code, Some(1));
    assert!(result.stderr.contains("the hub cannot be reached"), "{}", result.stderr);
    assert!(
        result.stderr.contains("\nhint: give the path of a downloaded model folder"),
        "{}",
        result.stderr
    );
}

#[test]
fn the_other_name_of_the_model_is_suggested() {
    for (line, meant) in [
        ("eval --model_name_or_path out", "`--model`"),
        ("generate --model_name_or_path out", "`--model`"),
        ("grpo --model out", "`--model_name_or_path`"),
    ] {
        let result = crate::program::call(line);
        assert_eq!(result.code, Some(2), "{line}: {}", result.stderr);
        assert!(
            result.stderr.contains(&format!("did you mean {meant}")),
            "{line}: {}",
            result.stderr
        );
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.json");
    std::fs::write(&file, "{}").unwrap();
    let result = crate::program::call(&format!("eval --compare {0} {0}", file.display()));
    assert!(result.stderr.contains("a file, expected a folder"), "{}", result.stderr);
}
