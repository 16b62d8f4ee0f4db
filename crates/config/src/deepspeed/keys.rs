//! The keys of DeepSpeed 0.18's configuration, and what each means here.

use serde_json::{Value, json};

use crate::TrainingSections;

/// What a key means.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// The stage of ZeRO.
    Stage,
    /// Where the optimizer's state lies.
    OptimizerDevice,
    /// Where weights lie.
    WeightDevice,
    /// A setting that we have: it must be `auto` or as it is here, by this flag.
    As(fn(&TrainingSections, usize) -> Value, &'static str),
    /// Must ask for nothing; why not, and what to do.
    Off(&'static str),
    /// How fast DeepSpeed is, or what it reports: named as without effect.
    Idle,
    /// Belongs to something that is off or the same here.
    Silent,
    /// Further keys.
    In(Keys),
}

/// Keys of one mapping.
pub(super) type Keys = &'static [(&'static str, Meaning)];

use Meaning::{As, Idle, In, Off, OptimizerDevice, Silent, Stage, WeightDevice};

const F32_SUMS: &str = "gradients are summed in f32";
const NOT_HERE: &str = "leave it out";

pub(super) const TOP: Keys = &[
    ("zero_optimization", In(ZERO)),
    ("fp16", In(FP16)),
    ("bf16", In(BF16)),
    ("bfloat16", In(BF16)),
    ("gradient_clipping", As(|of, _| json!(of.optimizer.max_grad_norm), "--max_grad_norm")),
    (
        "gradient_accumulation_steps",
        As(
            |of, _| json!(of.optimizer.gradient_accumulation_steps),
            "--gradient_accumulation_steps",
        ),
    ),
    (
        "train_micro_batch_size_per_gpu",
        As(
            |of, _| json!(of.optimizer.per_device_train_batch_size),
            "--per_device_train_batch_size",
        ),
    ),
    (
        "train_batch_size",
        As(
            |of, ranks| {
                let optimizer = &of.optimizer;
                let of_rank =
                    optimizer.per_device_train_batch_size * optimizer.gradient_accumulation_steps;
                json!(of_rank * ranks)
            },
            "`--per_device_train_batch_size` x `--gradient_accumulation_steps` x ranks",
        ),
    ),
    ("optimizer", In(OPTIMIZER)),
    ("scheduler", Off("the learning rate follows `--lr_scheduler_type` and `--warmup_steps`")),
    ("communication_data_type", As(|_, _| json!("fp32"), F32_SUMS)),
    ("seq_parallel_communication_data_type", Silent),
    ("data_types", In(&[("grad_accum_dtype", As(|_, _| json!("fp32"), F32_SUMS))])),
    ("amp", Off("half precision is `--bf16 true`")),
    ("elasticity", Off("the number of ranks is the launcher's")),
    ("autotuning", Off("`vlm-r1 plan` says which micro-batch fits")),
    ("tensor_parallel", Off("ranks differ by their rows alone")),
    ("sparse_attention", Off(NOT_HERE)),
    ("compression_training", Off(NOT_HERE)),
    ("quantize_training", Off(NOT_HERE)),
    ("data_efficiency", Off(NOT_HERE)),
    ("curriculum_learning", Off(NOT_HERE)),
    ("progressive_layer_drop", Off(NOT_HERE)),
    ("hybrid_engine", Off("the policy is its own sampler; leave it out")),
    ("pipeline", Off("ranks differ by their rows alone")),
    ("prescale_gradients", Idle),
    ("gradient_predivide_factor", Idle),
    ("sparse_gradients", Idle),
    ("disable_allgather", Idle),
    ("dataloader_drop_last", Idle),
    ("use_data_before_expert_parallel_", Silent),
    ("zero_allow_untested_optimizer", Silent),
    ("zero_force_ds_cpu_optimizer", Silent),
    ("steps_per_print", Idle),
    ("wall_clock_breakdown", Idle),
    ("memory_breakdown", Idle),
    ("dump_state", Idle),
    ("flops_profiler", Idle),
    ("comms_logger", Idle),
    ("comms_config", Idle),
    ("tensorboard", Idle),
    ("wandb", Idle),
    ("csv_monitor", Idle),
    ("comet", Idle),
    ("activation_checkpointing", Idle),
    ("aio", Idle),
    ("checkpoint", Idle),
    ("nebula", Idle),
    ("compile", Idle),
];

const ZERO: Keys = &[
    ("stage", Stage),
    ("offload_optimizer", In(OFFLOAD_OPTIMIZER)),
    ("offload_param", In(OFFLOAD_PARAM)),
    ("cpu_offload", Off("it is `offload_optimizer` with `device: cpu` now")),
    ("cpu_offload_params", Off("weights are whole on each rank; leave it out")),
    ("cpu_offload_use_pin_memory", Silent),
    ("zero_quantized_weights", Off("weights travel as they are")),
    ("zero_quantized_nontrainable_weights", Off("weights travel as they are")),
    ("zero_quantized_gradients", Off(F32_SUMS)),
    ("zero_hpz_partition_size", Idle),
    ("mics_shard_size", Idle),
    ("mics_hierarchical_params_gather", Idle),
    ("allgather_partitions", Idle),
    ("allgather_bucket_size", Idle),
    ("reduce_scatter", Idle),
    ("reduce_bucket_size", Idle),
    ("use_multi_rank_bucket_allreduce", Idle),
    ("overlap_comm", Idle),
    ("contiguous_gradients", Idle),
    ("round_robin_gradients", Idle),
    ("grad_hooks", Idle),
    ("sub_group_size", Idle),
    ("prefetch_bucket_size", Idle),
    ("param_persistence_threshold", Idle),
    ("model_persistence_threshold", Idle),
    ("max_live_parameters", Idle),
    ("max_reuse_distance", Idle),
    ("gather_16bit_weights_on_model_save", Idle),
    ("module_granularity_threshold", Idle),
    ("use_all_reduce_for_fetch_params", Idle),
    ("stage3_prefetch_bucket_size", Idle),
    ("stage3_param_persistence_threshold", Idle),
    ("stage3_model_persistence_threshold", Idle),
    ("stage3_max_live_parameters", Idle),
    ("stage3_max_reuse_distance", Idle),
    ("stage3_gather_16bit_weights_on_model_save", Idle),
    ("stage3_gather_fp16_weights_on_model_save", Idle),
    ("stage3_module_granularity_threshold", Idle),
    ("stage3_use_all_reduce_for_fetch_params", Idle),
    ("ignore_unused_parameters", Idle),
    ("legacy_stage1", Idle),
    ("load_from_fp32_weights", Idle),
    ("elastic_checkpoint", Idle),
    ("pipeline_loading_checkpoint", Idle),
    ("override_module_apply", Idle),
    ("memory_efficient_linear", Idle),
    ("log_trace_cache_warnings", Idle),
    ("zeropp_loco_param", Silent),
];

const OFFLOAD_OPTIMIZER: Keys = &[
    ("device", OptimizerDevice),
    ("pin_memory", Silent),
    ("nvme_path", Silent),
    ("buffer_count", Silent),
    ("pipeline_read", Silent),
    ("pipeline_write", Silent),
    ("pipeline", Silent),
    ("fast_init", Silent),
    ("super_offload", Silent),
    ("cpuadam_cores_perc", Silent),
    ("ratio", As(|_, _| json!(1.0), "all of it is offloaded")),
];

const OFFLOAD_PARAM: Keys = &[
    ("device", WeightDevice),
    ("pin_memory", Silent),
    ("nvme_path", Silent),
    ("buffer_count", Silent),
    ("buffer_size", Silent),
    ("max_in_cpu", Silent),
];

/// `auto` is transformers' `--fp16`, which is off.
const FP16: Keys = &[
    ("enabled", Off("half precision is `--bf16 true`")),
    ("auto_cast", Silent),
    ("loss_scale", Silent),
    ("initial_scale_power", Silent),
    ("loss_scale_window", Silent),
    ("hysteresis", Silent),
    ("consecutive_hysteresis", Silent),
    ("min_loss_scale", Silent),
    ("fp16_master_weights_and_grads", Off("the optimizer keeps exact weights")),
    ("fp16_master_weights_and_gradients", Off("the optimizer keeps exact weights")),
];

const BF16: Keys = &[
    ("enabled", As(|of, _| json!(of.model.bf16), "--bf16")),
    ("immediate_grad_update", Silent),
    ("check_grad_overflow", Silent),
    ("bf16_master_weights_and_grads", Off("the optimizer keeps exact weights")),
    ("bf16_optimizer_states", Off("moments are f32, or 8 bits by `--optim adamw_8bit`")),
];

const OPTIMIZER: Keys = &[
    (
        "type",
        As(
            |of, _| json!(if of.optimizer.optim.is_8bit() { "AdamW of 8 bits" } else { "AdamW" }),
            "--optim",
        ),
    ),
    ("params", In(ADAMW)),
    ("legacy_fusion", Silent),
];

const ADAMW: Keys = &[
    ("lr", As(|of, _| json!(of.optimizer.learning_rate), "--learning_rate")),
    (
        "betas",
        As(
            |of, _| json!([of.optimizer.adam_beta1, of.optimizer.adam_beta2]),
            "--adam_beta1 and --adam_beta2",
        ),
    ),
    ("eps", As(|of, _| json!(of.optimizer.adam_epsilon), "--adam_epsilon")),
    ("weight_decay", As(|of, _| json!(of.optimizer.weight_decay), "--weight_decay")),
    ("adam_w_mode", As(|_, _| json!(true), "the optimizer is AdamW")),
    ("bias_correction", As(|_, _| json!(true), "the optimizer is AdamW")),
    ("amsgrad", Off("the optimizer is AdamW")),
    ("torch_adam", Silent),
];
