//! Flags of VLM-R1's run scripts (and of the trainers under them) that have no field here.

/// A flag of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name there.
    pub name: &'static str,
    /// What it does here.
    pub effect: ForeignEffect,
}

/// What a foreign flag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignEffect {
    /// Nothing, whatever its value, and why.
    None(&'static str),
    /// Nothing with these values (lower case); any other asks for what is not built, and what to do.
    Only(&'static [&'static str], &'static str),
}

const fn none(name: &'static str, why: &'static str) -> Foreign {
    Foreign {
        name,
        effect: ForeignEffect::None(why),
    }
}

const fn only(
    name: &'static str,
    accepted: &'static [&'static str],
    reason: &'static str,
) -> Foreign {
    Foreign {
        name,
        effect: ForeignEffect::Only(accepted, reason),
    }
}

const OFF: &[&str] = &["false", "no", "0", "none", "null", ""];
const VLLM: &str = "answers are sampled in this program";
const TRACKERS: &str = "metrics.jsonl and TensorBoard files are always written";

/// Flags that `grpo` and `sft` take for the sake of VLM-R1's scripts.
pub const VLM_R1: &[Foreign] = &[
    none("deepspeed", "memory is not sharded over processes"),
    none("attn_implementation", "there is one attention"),
    none("report_to", TRACKERS),
    none("logging_dir", TRACKERS),
    none("log_level", "messages go to stderr and log.txt"),
    none(
        "disable_tqdm",
        "without a terminal the progress is plain lines",
    ),
    none("log_completions", "all completions are in rollouts/"),
    none("dataset_name", "data comes from `--data_file_paths`"),
    none("dataset_config", "data comes from `--data_file_paths`"),
    none("dataset_train_split", "data comes from `--data_file_paths`"),
    none("dataset_test_split", "data comes from `--data_file_paths`"),
    none("arrow_cache_dir", "rows are read as they are"),
    none("data_seed", "the order of the data follows `--seed`"),
    none("torch_dtype", "the precision follows `--bf16`"),
    none("trust_remote_code", "no code is taken from a model folder"),
    none("remove_unused_columns", "rows are kept whole"),
    none("save_safetensors", "weights are always safetensors"),
    none(
        "overwrite_output_dir",
        "a run is continued, never overwritten",
    ),
    none("do_train", "`grpo` and `sft` train"),
    none("ddp_timeout", "there is one process"),
    none("ddp_find_unused_parameters", "there is one process"),
    none("local_rank", "there is one process"),
    none("ds3_gather_for_generation", "weights are not sharded"),
    none(
        "gradient_checkpointing_kwargs",
        "there is one way to checkpoint",
    ),
    none("tf32", "f32 is computed as f32"),
    none(
        "per_device_eval_batch_size",
        "evaluation fills its own batches",
    ),
    none("max_anyres_num", "it belongs to InternVL"),
    none("dataloader_pin_memory", "rows are handed over without it"),
    none("vllm_device", VLLM),
    none("vllm_gpu_memory_utilization", VLLM),
    none("vllm_max_model_len", VLLM),
    none("vllm_dtype", VLLM),
    none("lora_task_type", "an adapter is for answering"),
    only(
        "use_vllm",
        OFF,
        "leave it out: answers are sampled in this program",
    ),
    only("load_in_4bit", OFF, "quantised weights; leave it out"),
    only("load_in_8bit", OFF, "quantised weights; leave it out"),
    only("fp16", OFF, "half precision here is `--bf16 true`"),
    only("push_to_hub", OFF, "upload the checkpoint folder by hand"),
    only(
        "sync_ref_model",
        OFF,
        "the reference stays the start of the run",
    ),
    only("mask_truncated_completions", OFF, "truncated answers count"),
    only(
        "scale_rewards",
        &["true", "yes", "1"],
        "advantages are divided by the deviation",
    ),
    only(
        "loss_type",
        &["grpo"],
        "the loss is the mean over answers of the mean over tokens",
    ),
];
