//! The table of all metrics, in the order in which the line of a step and the docs have them.

use super::{Better, Command, Metric, Reduction, Shown, Unit};

use Better::{Higher, Lower};
use Reduction::{Equal, Main, Max, Sum};
use Unit::{Bytes, Count, Nats, Number, Secs, Share, Tokens, TokensPerSec};

const GRPO: &[Command] = &[Command::Grpo];
const SFT: &[Command] = &[Command::Sft];

const fn metric(
    name: &'static str,
    unit: Unit,
    reduction: Reduction,
    help: &'static str,
) -> Metric {
    Metric::new(name, unit, reduction, help)
}

/// Seconds of the slowest rank.
const fn secs(name: &'static str, help: &'static str) -> Metric {
    metric(name, Secs, Max, help).measured()
}

/// Of two metrics of one name, each is of another command. Where a name fits several patterns, the first counts.
pub static TABLE: &[Metric] = &[
    metric("step", Count, Equal, "steps done"),
    metric("epoch", Number, Equal, "passes over the data"),
    metric("reward", Number, Equal, "mean over completions of the weighted sum of rewards")
        .better(Higher)
        .of(GRPO)
        .shown(Shown::Named("reward", 4)),
    metric("reward_std", Number, Equal, "mean over groups of the deviation within one").of(GRPO),
    metric("rewards/{reward}/judge_asked", Count, Sum, "requests to the judge; this and the next two since the start of the program")
        .of(GRPO),
    metric("rewards/{reward}/judge_cached", Count, Sum, "replies of the judge that were kept from before").of(GRPO),
    metric("rewards/{reward}/judge_failed", Count, Sum, "rows that the judge gave no score").of(GRPO),
    metric("rewards/{reward}", Number, Equal, "mean of one reward, unweighted, over the completions that it scored")
        .better(Higher)
        .of(GRPO)
        .shown(Shown::Parts(4)),
    metric("loss", Number, Sum, "the loss that the gradient is of; near 0 at the first update on a batch").of(GRPO)
        .shown(Shown::Named("loss", 4)),
    metric("loss", Nats, Sum, "mean of `-log p` over the answers' tokens").better(Lower).of(SFT)
        .shown(Shown::Named("loss", 4)),
    metric("grad_norm", Number, Equal, "norm of the gradient before clipping"),
    metric("learning_rate", Number, Equal, "of the update"),
    metric("kl", Nats, Sum, "divergence from the reference, before `--beta`; 0 without one; with `--kl_in_reward` its sum over a completion").of(GRPO)
        .shown(Shown::Named("kl", 4)),
    metric("clip_ratio", Share, Sum, "tokens whose gradient the clip cut off").of(GRPO),
    metric("clip_ratio_low", Share, Sum, "those of them below the lower bound").of(GRPO),
    metric("clip_ratio_high", Share, Sum, "those above the upper bound").of(GRPO),
    metric("sampler_weight", Number, Sum, "mean weight of `--sampler_correction`").of(GRPO),
    metric("entropy", Nats, Sum, "of the distributions that predict the completions' tokens"),
    metric("completion_length", Tokens, Equal, "mean of a completion").shown(Shown::Named("tokens", 1)),
    metric("groups", Count, Equal, "groups of the step").of(GRPO),
    metric("completions", Count, Equal, "completions of the step").of(GRPO),
    metric("resampled_groups", Count, Equal, "groups that took the place of others, `--dynamic_sample`").of(GRPO),
    metric("zero_spread_groups", Count, Equal, "groups whose rewards are all equal").better(Lower).of(GRPO),
    metric("cut_off_completions", Count, Equal, "completions that met `--max_completion_length`").better(Lower).of(GRPO),
    metric("zero_reward_completions", Count, Equal, "completions that no reward gave anything but 0")
        .better(Lower)
        .of(GRPO),
    metric("sampled_vs_trained_kl", Nats, Sum, "how far sampler and trainer disagree on the same tokens: k3")
        .better(Lower)
        .of(GRPO),
    metric("sampled_vs_trained_max", Nats, Max, "the same: the largest difference of two log-probabilities")
        .better(Lower)
        .of(GRPO),
    metric("skipped_rows", Count, Sum, "rows of this step left out under `--on_bad_row skip`").better(Lower),
    metric("bad_steps", Count, Equal, "steps refused since the start of the run; a refused step has no `loss` and nothing else of its passes")
        .better(Lower),
    metric("oom_retries", Count, Sum, "passes of this step that ran out of memory and were done again in smaller micro-batches")
        .better(Lower),
    metric("tokens_per_sec", TokensPerSec, Sum, "tokens of completions by the time of the step, evaluation left out")
        .better(Higher)
        .measured(),
    metric("peak_memory_bytes", Bytes, Max, "the largest this process has been").better(Lower).measured(),
    metric("live_bytes", Bytes, Max, "what tensors hold on the run's device after the step, counted by the allocator on the CPU, by libtorch on a GPU")
        .better(Lower)
        .measured(),
    metric("peak_live_bytes", Bytes, Max, "the most that they held since the line before").better(Lower).measured(),
    metric("feature_cache/hits", Count, Sum, "images that a pass found in memory").better(Higher).measured(),
    metric("feature_cache/loads", Count, Sum, "images found in `--feature_cache_dir`").measured(),
    metric("feature_cache/misses", Count, Sum, "images that went through the tower; more than there are images where `--feature_cache_bytes` is too small for an epoch")
        .better(Lower)
        .measured(),
    metric("feature_cache/bytes", Bytes, Sum, "memory that features take now").measured(),
    metric("feature_cache/saved_secs", Secs, Sum, "an estimate: the time the tower took for the found images when it computed them, less the time of reading files")
        .better(Higher)
        .measured(),
    secs("secs/total", "the whole step").better(Lower).shown(Shown::WithUnit(1)),
    secs("secs/rollout", "sampling").of(GRPO),
    secs("secs/reward", "the wait for rewards after the last completion").of(GRPO),
    secs("secs/reference", "passes of the reference").of(GRPO),
    secs("secs/old_policy", "passes of the old policy, where its log-probabilities must be known before the first update").of(GRPO),
    secs("secs/entropy", "passes for `--top_entropy_quantile`").of(GRPO),
    secs("secs/train", "forward and backward passes of the policy"),
    secs("secs/optimizer", "the update"),
    secs("secs/checkpoint", "the checkpoint that was written before this step, outside `secs/total`"),
    secs("secs/evaluation", "the evaluation after this step"),
    metric("eval/loss", Nats, Main, "where due: loss on the validation rows").better(Lower).of(SFT),
    metric("eval/reward", Number, Main, "where due: mean weighted sum of rewards of greedy completions of the validation rows")
        .better(Higher)
        .of(GRPO),
    metric("eval/rewards/{reward}/judge_asked", Count, Main, "as `rewards/<reward>/judge_asked`").of(GRPO),
    metric("eval/rewards/{reward}/judge_cached", Count, Main, "as `rewards/<reward>/judge_cached`").of(GRPO),
    metric("eval/rewards/{reward}/judge_failed", Count, Main, "as `rewards/<reward>/judge_failed`").of(GRPO),
    metric("eval/rewards/{reward}", Number, Main, "where due: mean of one reward of these completions").better(Higher).of(GRPO),
    metric("eval/{evaluation}/{metric}", Number, Main, "where due, by `--eval_config`: [metrics](evaluation.md#during-training)")
        .better(Higher),
];
