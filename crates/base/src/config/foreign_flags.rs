//! The flags themselves of [`compatibility`](super::compatibility): those of transformers 5.17's `TrainingArguments`
//! and of the 4.49 that VLM-R1 ran, of TRL 1.16's `GRPOConfig`, `SFTConfig`, `ModelConfig` and `ScriptArguments`, of
//! VLM-R1's own arguments, and of launchers.

use super::compatibility::{Foreign, none, only};

const OFF: &[&str] = &["false", "no", "off", "0", "none", "null", "", "[]", "{}"];
const ON: &[&str] = &["true", "yes", "on", "1", "none", "null"];

const VLLM: &str = "answers are sampled in this program";
const TRACKERS: &str = "metrics.jsonl and TensorBoard files are always written";
const DATA: &str = "data comes from `--data_file_paths`";
const ONE_PROCESS: &str = "there is one process";
const HUB: &str = "nothing is uploaded";
const KERNELS: &str = "there is one set of kernels";
const READERS: &str = "rows are read by threads";
const EVALUATION: &str = "evaluation fills its own batches";
const NO_PADDING: &str = "there is no padding";
const OTHER_LOSS: &str = "it belongs to another loss";
const QUANTISED: &str = "it belongs to quantised weights";
const BEST: &str = "it belongs to `load_best_model_at_end`";
const SEVERAL: &str = "several processes; start the program without a launcher, for one process";
const UPLOAD: &str = "upload the checkpoint folder by hand";
const TEMPLATE: &str = "the chat template is that of the model's folder";
const NO_ENTROPY: &str = "the loss holds no entropy; leave it out";

/// Flags that `grpo` and `sft` take for the sake of scripts of VLM-R1, TRL and transformers.
pub const VLM_R1: &[Foreign] = &[
    // Of VLM-R1 and open-r1.
    none("arrow_cache_dir", "rows are read as they are"),
    none("max_anyres_num", "it belongs to InternVL"),
    none("benchmarks", "evaluations are those of `--eval_config`"),
    none("callbacks", "there are none"),
    none("wandb_entity", TRACKERS),
    none("wandb_project", TRACKERS),
    none("wandb_run_group", TRACKERS),
    none("hub_model_revision", HUB),
    none("overwrite_hub_revision", HUB),
    only("image_root", OFF, "folders of images are `--image_folders`"),
    only("push_to_hub_revision", OFF, UPLOAD),
    only("chat_template", OFF, TEMPLATE),
    only(
        "system_prompt",
        OFF,
        "write it into `--question_template`, or into the model's chat template",
    ),
    // Of TRL's ScriptArguments.
    none("dataset_name", DATA),
    none("dataset_config", DATA),
    none("dataset_train_split", DATA),
    none("dataset_test_split", DATA),
    none("dataset_streaming", DATA),
    none("datasets", DATA),
    none("streaming", DATA),
    none("ignore_bias_buffers", ONE_PROCESS),
    none(
        "gradient_checkpointing_use_reentrant",
        "there is one way to checkpoint",
    ),
    only(
        "test_split_size",
        OFF,
        "rows are held out by `--val_split_ratio`",
    ),
    // Of TRL's ModelConfig.
    none("attn_implementation", "there is one attention"),
    none("torch_dtype", "the precision follows `--bf16`"),
    none("dtype", "the precision follows `--bf16`"),
    none("lora_task_type", "an adapter is for answering"),
    none("bnb_4bit_quant_type", QUANTISED),
    none("bnb_4bit_quant_storage", QUANTISED),
    none("use_bnb_nested_quant", QUANTISED),
    only("load_in_4bit", OFF, "quantised weights; leave it out"),
    only("load_in_8bit", OFF, "quantised weights; leave it out"),
    only(
        "use_rslora",
        OFF,
        "an update is scaled by `lora_alpha / lora_r`; give the `--lora_alpha` that it would have",
    ),
    only("use_dora", OFF, "adapters are those of plain LoRA"),
    only(
        "lora_target_parameters",
        OFF,
        "adapters lie over linear layers: `--lora_target_modules`",
    ),
    only(
        "lora_modules_to_save",
        OFF,
        "adapters alone are trained; without `--use_peft` all is",
    ),
    // Of the configurations of TRL, those that several have.
    none("trust_remote_code", "no code is taken from a model folder"),
    none("router_aux_loss_coef", "there is no mixture of experts"),
    none("pad_to_multiple_of", NO_PADDING),
    none("use_liger_kernel", KERNELS),
    none("use_liger_loss", KERNELS),
    none("liger_kernel_config", KERNELS),
    none(
        "torch_empty_cache_steps",
        "memory is given back where it is short",
    ),
    only(
        "model_init_kwargs",
        OFF,
        "give a model folder that is as it should be",
    ),
    only(
        "disable_dropout",
        OFF,
        "give `--lora_dropout 0`; there is no other dropout",
    ),
    // Of transformers: where and how fast a run happens.
    none("deepspeed", "memory is not sharded over processes"),
    none("fsdp", "memory is not sharded over processes"),
    none("fsdp_config", "memory is not sharded over processes"),
    none(
        "fsdp_min_num_params",
        "memory is not sharded over processes",
    ),
    none(
        "fsdp_transformer_layer_cls_to_wrap",
        "memory is not sharded over processes",
    ),
    none("sharded_ddp", "memory is not sharded over processes"),
    none("ds3_gather_for_generation", "weights are not sharded"),
    none("accelerator_config", ONE_PROCESS),
    none("parallelism_config", ONE_PROCESS),
    none("average_tokens_across_devices", ONE_PROCESS),
    none("ddp_backend", ONE_PROCESS),
    none("ddp_broadcast_buffers", ONE_PROCESS),
    none("ddp_bucket_cap_mb", ONE_PROCESS),
    none("ddp_find_unused_parameters", ONE_PROCESS),
    none("ddp_static_graph", ONE_PROCESS),
    none("ddp_timeout", ONE_PROCESS),
    none("log_on_each_node", ONE_PROCESS),
    none("save_on_each_node", ONE_PROCESS),
    none("split_batches", ONE_PROCESS),
    none("dispatch_batches", ONE_PROCESS),
    none("ray_scope", ONE_PROCESS),
    none("mp_parameters", ONE_PROCESS),
    none("tpu_num_cores", ONE_PROCESS),
    none("tpu_metrics_debug", ONE_PROCESS),
    none("torch_compile", KERNELS),
    none("torch_compile_backend", KERNELS),
    none("torch_compile_mode", KERNELS),
    none("torchdynamo", KERNELS),
    none("jit_mode_eval", KERNELS),
    none("use_ipex", KERNELS),
    none("use_cache", "the sampler always has its cache"),
    none("tf32", "f32 is computed as f32"),
    none(
        "full_determinism",
        "draws are keyed by step, prompt and token",
    ),
    none(
        "auto_find_batch_size",
        "a micro-batch that finds no memory is halved anyway",
    ),
    none(
        "gradient_checkpointing_kwargs",
        "there is one way to checkpoint",
    ),
    none(
        "half_precision_backend",
        "half precision here is `--bf16 true`",
    ),
    none("fp16_opt_level", "half precision here is `--bf16 true`"),
    none("fp16_backend", "half precision here is `--bf16 true`"),
    only("use_cpu", OFF, "it is `--device cpu`"),
    only("no_cuda", OFF, "it is `--device cpu`"),
    only(
        "use_mps_device",
        OFF,
        "devices are `--device cpu` and `cuda:N`",
    ),
    // Rows and batches.
    none("data_seed", "the order of the data follows `--seed`"),
    none("remove_unused_columns", "rows are kept whole"),
    none("label_names", "labels are the `solution` of the rows"),
    none("length_column_name", "rows are not grouped by length"),
    none("dataloader_pin_memory", "rows are handed over without it"),
    none("dataloader_persistent_workers", READERS),
    none("dataloader_prefetch_factor", READERS),
    none("dataloader_multiprocessing_context", READERS),
    only(
        "dataloader_in_order",
        ON,
        "rows come in the order of `--seed`",
    ),
    only(
        "dataloader_drop_last",
        OFF,
        "every row of an epoch is trained on",
    ),
    only(
        "group_by_length",
        OFF,
        "rows come in a random order; there is no padding that it could save",
    ),
    only(
        "train_sampling_strategy",
        &["random"],
        "rows come in a random order",
    ),
    only(
        "ignore_data_skip",
        OFF,
        "a run goes on with the rows that come next",
    ),
    // Loss and optimizer.
    only("fp16", OFF, "half precision here is `--bf16 true`"),
    only(
        "fp16_full_eval",
        OFF,
        "evaluation computes as training does: `--bf16`",
    ),
    only(
        "bf16_full_eval",
        OFF,
        "evaluation computes as training does: `--bf16`",
    ),
    only(
        "optim_args",
        OFF,
        "AdamW has `--adam_beta1`, `--adam_beta2`, `--adam_epsilon`, `--weight_decay`",
    ),
    only(
        "optim_target_modules",
        OFF,
        "all that is trained has the same optimizer",
    ),
    only("adafactor", OFF, "the optimizer is AdamW, see `--optim`"),
    only(
        "label_smoothing_factor",
        &["0"],
        "the loss is that of the answers as they are",
    ),
    only(
        "neftune_noise_alpha",
        OFF,
        "embeddings are trained without noise",
    ),
    only(
        "cast_lm_head_to_fp32",
        OFF,
        "logits are computed as the model is: `--bf16`",
    ),
    only(
        "past_index",
        &["-1"],
        "there are no past states between batches",
    ),
    // What is said and written down.
    none("report_to", TRACKERS),
    none("logging_dir", TRACKERS),
    none("project", TRACKERS),
    none("trackio_space_id", TRACKERS),
    none("trackio_bucket_id", TRACKERS),
    none("trackio_static_space_id", TRACKERS),
    none(
        "logging_strategy",
        "metrics are written every `--logging_steps` steps",
    ),
    none("logging_nan_inf_filter", "figures are written as they are"),
    none("log_level", "messages go to stderr and log.txt"),
    none("log_level_replica", "messages go to stderr and log.txt"),
    none(
        "disable_tqdm",
        "without a terminal the progress is plain lines",
    ),
    none("include_num_input_tokens_seen", "tokens are counted anyway"),
    none("include_tokens_per_second", "it is measured anyway"),
    none("skip_memory_metrics", "memory is measured anyway"),
    none("debug", "loss and gradients are checked in every step"),
    // Evaluation and checkpoints.
    none("do_train", "`grpo` and `sft` train"),
    none("do_eval", "the policy is evaluated by `--eval_strategy`"),
    none("do_predict", "a trained model is asked by `vlm-r1 eval`"),
    none("per_device_eval_batch_size", EVALUATION),
    none("eval_accumulation_steps", EVALUATION),
    none("eval_do_concat_batches", EVALUATION),
    none("eval_use_gather_object", EVALUATION),
    none("batch_eval_metrics", EVALUATION),
    none("include_for_metrics", EVALUATION),
    none("include_inputs_for_metrics", EVALUATION),
    none("prediction_loss_only", EVALUATION),
    none("use_legacy_prediction_loop", EVALUATION),
    only(
        "eval_delay",
        &["0"],
        "evaluations come every `--eval_steps` steps from the start",
    ),
    none("save_safetensors", "weights are always safetensors"),
    none(
        "overwrite_output_dir",
        "a run is continued, never overwritten",
    ),
    none(
        "enable_jit_checkpoint",
        "a signal ends a run with a checkpoint anyway",
    ),
    none(
        "restore_callback_states_from_checkpoint",
        "there are no callbacks",
    ),
    only(
        "load_best_model_at_end",
        OFF,
        "all checkpoints are kept unless `--save_total_limit` is given; `--model RUN@best` reads the best one",
    ),
    none("metric_for_best_model", BEST),
    none("greater_is_better", BEST),
    only("push_to_hub", OFF, UPLOAD),
    none("hub_token", HUB),
    none("hub_private_repo", HUB),
    none("hub_model_id", HUB),
    none("hub_strategy", HUB),
    none("hub_always_push", HUB),
    none("hub_revision", HUB),
    none("push_to_hub_model_id", HUB),
    none("push_to_hub_organization", HUB),
    none("push_to_hub_token", HUB),
    // Names of old that meant something.
    only(
        "per_gpu_train_batch_size",
        OFF,
        "it is `--per_device_train_batch_size`",
    ),
    only("per_gpu_eval_batch_size", OFF, EVALUATION),
    only("evaluation_strategy", &["no"], "it is `--eval_strategy`"),
    // Of launchers, which would start several processes.
    only("local_rank", &["-1", "0"], SEVERAL),
    only("nproc_per_node", &["1"], SEVERAL),
    only("nnodes", &["1", "1:1"], SEVERAL),
    only("node_rank", &["0"], SEVERAL),
    only("num_processes", &["1"], SEVERAL),
    only("num_machines", &["1"], SEVERAL),
    only("machine_rank", &["0"], SEVERAL),
    only("multi_gpu", OFF, SEVERAL),
    none("master_addr", ONE_PROCESS),
    none("master_port", ONE_PROCESS),
    none("main_process_ip", ONE_PROCESS),
    none("main_process_port", ONE_PROCESS),
    none("rdzv_backend", ONE_PROCESS),
    none("rdzv_endpoint", ONE_PROCESS),
    none("rdzv_id", ONE_PROCESS),
    none("rdzv_conf", ONE_PROCESS),
    none("standalone", ONE_PROCESS),
    none("max_restarts", ONE_PROCESS),
    none("start_method", ONE_PROCESS),
];

/// Those of `grpo` alone, of TRL's `GRPOConfig`.
pub(super) const OF_GRPO: &[Foreign] = &[
    only("shuffle_dataset", ON, "rows come in a random order"),
    only(
        "num_generations_eval",
        OFF,
        "held-out rows are answered once, greedily; for more there is `--eval_config`",
    ),
    only(
        "generation_batch_size",
        OFF,
        "a step samples `--per_device_train_batch_size` x `--gradient_accumulation_steps` answers; leave it out",
    ),
    only(
        "steps_per_generation",
        OFF,
        "a step samples its own answers; several updates of one batch are `--num_iterations`",
    ),
    only(
        "generation_kwargs",
        OFF,
        "sampling has flags of its own: `--temperature`, `--top_p`, ...",
    ),
    only("chat_template_kwargs", OFF, TEMPLATE),
    none("cache_implementation", "the sampler has its own cache"),
    only(
        "use_vllm",
        OFF,
        "leave it out: answers are sampled in this program",
    ),
    none("vllm_mode", VLLM),
    none("vllm_model_impl", VLLM),
    none("vllm_enable_sleep_mode", VLLM),
    none("vllm_enable_prefix_caching", VLLM),
    none("vllm_structured_outputs_regex", VLLM),
    none("vllm_guided_decoding_regex", VLLM),
    none("vllm_server_base_url", VLLM),
    none("vllm_server_host", VLLM),
    none("vllm_server_port", VLLM),
    none("vllm_server_timeout", VLLM),
    none("vllm_group_port", VLLM),
    none("vllm_device", VLLM),
    none("vllm_dtype", VLLM),
    none("vllm_gpu_memory_utilization", VLLM),
    none("vllm_max_model_len", VLLM),
    none("vllm_max_model_length", VLLM),
    none("vllm_tensor_parallel_size", VLLM),
    none("vllm_importance_sampling_correction", VLLM),
    none("vllm_importance_sampling_mode", VLLM),
    none("vllm_importance_sampling_cap", VLLM),
    none("vllm_importance_sampling_clip_max", VLLM),
    none("vllm_importance_sampling_clip_min", VLLM),
    none("use_transformers_paged", VLLM),
    none("use_transformers_continuous_batching", VLLM),
    none("transformers_continuous_batching_config", VLLM),
    none("max_tool_calling_iterations", "there are no tools"),
    only("delta", OFF, "the ratio has no further bound; leave it out"),
    only(
        "loss_type",
        &["grpo"],
        "the loss is the mean over answers of the mean over tokens",
    ),
    none("sapo_temperature_neg", OTHER_LOSS),
    none("sapo_temperature_pos", OTHER_LOSS),
    none("vespo_k_pos", OTHER_LOSS),
    none("vespo_lambda_pos", OTHER_LOSS),
    none("vespo_k_neg", OTHER_LOSS),
    none("vespo_lambda_neg", OTHER_LOSS),
    only(
        "importance_sampling_level",
        &["token"],
        "ratios are those of tokens",
    ),
    only(
        "multi_objective_aggregation",
        &["sum_then_normalize"],
        "rewards are summed, then normalised",
    ),
    only(
        "scale_rewards",
        &["true", "yes", "on", "1", "group"],
        "advantages are divided by the deviation within the group",
    ),
    only("mask_truncated_completions", OFF, "truncated answers count"),
    only(
        "sync_ref_model",
        OFF,
        "the reference stays the start of the run",
    ),
    none("ref_model_mixup_alpha", "it belongs to `sync_ref_model`"),
    none("ref_model_sync_steps", "it belongs to `sync_ref_model`"),
    only("top_entropy_quantile", &["1"], "all tokens count"),
    only("entropy_coef", &["0"], NO_ENTROPY),
    only("use_adaptive_entropy", OFF, NO_ENTROPY),
    none("entropy_coef_min", "it belongs to `use_adaptive_entropy`"),
    none("entropy_coef_max", "it belongs to `use_adaptive_entropy`"),
    none("entropy_coef_delta", "it belongs to `use_adaptive_entropy`"),
    none("entropy_target", "it belongs to `use_adaptive_entropy`"),
    only("off_policy_mask_threshold", OFF, "all answers count"),
    only(
        "use_bias_correction_kl",
        OFF,
        "the divergence is not multiplied by the ratio",
    ),
    none("log_completions", "all completions are in rollouts/"),
    none("log_multimodal", "rollouts/ name the images"),
    none("log_unique_prompts", "all completions are in rollouts/"),
    none(
        "num_completions_to_print",
        "all completions are in rollouts/",
    ),
    none("log_completions_hub_repo", HUB),
];

/// Those of `sft` alone, of TRL's `SFTConfig`.
pub(super) const OF_SFT: &[Foreign] = &[
    none("shuffle_dataset", "rows come in a random order anyway"),
    none(
        "dataset_text_field",
        "rows are `image`, `problem` and `solution`",
    ),
    none("dataset_kwargs", DATA),
    none("dataset_num_proc", READERS),
    none("dataset_batch_size", READERS),
    none("log_completions", "there are no completions"),
    none("use_vllm", "nothing is sampled"),
    only("chat_template_path", OFF, TEMPLATE),
    only("eos_token", OFF, "it is that of the model's tokenizer"),
    none("pad_token", NO_PADDING),
    none("padding_free", NO_PADDING),
    only(
        "max_length",
        OFF,
        "no row is cut; `--max_seq_length` refuses longer ones",
    ),
    none("truncation_mode", "no row is cut"),
    only(
        "packing",
        OFF,
        "a row stays a row: it counts as one of a step",
    ),
    only("eval_packing", OFF, "a row stays a row"),
    none("packing_strategy", "it belongs to `packing`"),
    only(
        "completion_only_loss",
        ON,
        "the loss is that of the answers",
    ),
    none(
        "assistant_only_loss",
        "the loss is that of the answers anyway",
    ),
    only(
        "loss_type",
        &["nll", "chunked_nll"],
        "the loss is -log p of the answers' tokens",
    ),
    only(
        "activation_offloading",
        OFF,
        "to save memory there is `--gradient_checkpointing true`",
    ),
];

/// Flags of launchers, with what each would mean in the place of this program.
pub(super) const LAUNCHERS: &[&str] = &[
    "deepspeed",
    "local_rank",
    "nproc_per_node",
    "nnodes",
    "node_rank",
    "num_processes",
    "num_machines",
    "machine_rank",
    "multi_gpu",
    "master_addr",
    "master_port",
    "main_process_ip",
    "main_process_port",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "rdzv_conf",
    "standalone",
    "max_restarts",
    "start_method",
];
