"""GRPO's variants as TRL computes them: losses, gradients, metrics and advantages for a table of settings.

Every setting is a `GRPOTrainer` of its own, made by TRL's `__init__`, whose methods `_generate_and_score_completions`
and `_compute_loss` run as they are: advantages, masks, the sampler's ratio, the loss and the metrics are TRL's. Only
what they call is fixed here: the completions, the rewards, and the old, reference and sampled log-probabilities. The
whole batch is one micro-batch, except in the section `micro_batches`.

Each setting runs twice. The recorded numbers are of float64, each completion a row of its own, without padding. The
second run is TRL's to the end, its fused head and padded batch in float32 included; the first must agree with it, and
their distance is the `noise`. Writes `golden/grpo/variants.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, and TRL sends no telemetry

import torch
import trl
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

import grpo
from common import GOLDEN, PARITY, deterministic, float64_arithmetic, versions, write_json
from parity_common import ATTENTION, Reference, gradients, relative_noise

SEED = 11
OUT = GOLDEN / "grpo" / "variants.json"
CHECKPOINT = "nested"
DIGITS = 9
GRADIENT_DIGITS = 6

# The groups of `grpo.py`, four completions each. Completion `TRUNCATED` has no end-of-turn token.
TRUNCATED = 3
EXTRA_COMPLETION = "The red circle sits at the"
REWARDS = [1.85, 0.0, 0.4, 1.1, 0.9, 0.2, 0.75, 0.1]
GROUP_SIZE = 4

# By completion, the sum over its tokens of log(current / old) and of log(old / sampled): small enough that VESPO's
# weights are not 0, large enough that sequence-level bounds are passed on both sides.
RATIO_SUMS = [0.9, -0.5, 0.4, -1.0, 0.3, -0.6, 0.8, -0.2]
SAMPLER_SUMS = [1.3, -0.4, 0.25, -1.6, 0.5, 0.9, -0.7, 1.5]
# Bounds that the settings put on ratios; no ratio comes closer than `MARGIN`.
TOKEN_BOUNDS = [0.7, 0.8, 0.9, 1.1, 1.2, 1.28, 1.3, 1.4]
SEQUENCE_BOUNDS = [0.97, 1.01, 1.04]
SAMPLER_BOUNDS = [0.3, 0.5, 2.0, 3.0]
OFF_POLICY = 0.05
MARGIN = 2e-3

# What every setting starts from. `num_iterations` 2 makes TRL compute old log-probabilities; 1 is on-policy.
DEFAULTS = {
    "loss_type": "dapo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": None, "delta": None, "temperature": 1.0,
    "importance_sampling_level": "token", "use_bias_correction_kl": True, "num_iterations": 2,
    "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    "max_completion_length": 64, "mask_truncated_completions": False, "scale_rewards": "group",
    "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False,
    "entropy_coef_min": 0.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.005, "entropy_target": 0.2,
    "off_policy_mask_threshold": None, "use_vllm": False, "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0, "vllm_importance_sampling_clip_min": None,
}  # fmt: skip

KL = {"beta": 0.04}
TRUNCATE = {"mask_truncated_completions": True}
SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04}
SAMPLER = {"use_vllm": True}
BOUNDED = {"vllm_importance_sampling_clip_min": 0.3, "vllm_importance_sampling_clip_max": 2.0}


def sampler(mode: str, **changes) -> dict:
    return SAMPLER | {"vllm_importance_sampling_mode": mode} | changes


# By name, the changes from `DEFAULTS`. `sampled_missing` lists tokens whose sampled log-probability is unknown.
SETTINGS = {
    "grpo": {"loss_type": "grpo"},
    "grpo_changed": {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.3} | KL,
    "bnpo": {"loss_type": "bnpo"},
    "bnpo_changed": {"loss_type": "bnpo", "epsilon_high": 0.28, "use_bias_correction_kl": False} | KL,
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dr_grpo_changed": {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 100} | KL,
    "dapo": {},
    "dapo_changed": {"epsilon_high": 0.28, "scale_rewards": "batch"} | KL,
    "cispo": {"loss_type": "cispo"},
    "cispo_changed": {"loss_type": "cispo", "epsilon_high": 1.1} | KL,
    "sapo": {"loss_type": "sapo"},
    "sapo_changed": {"loss_type": "sapo", "sapo_temperature_pos": 0.75, "sapo_temperature_neg": 2.0} | KL,
    "luspo": {"loss_type": "luspo"} | SEQUENCE,
    "luspo_changed": {"loss_type": "luspo", "epsilon": 0.1} | KL,
    "vespo": {"loss_type": "vespo"},
    "vespo_changed": {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 1.5, "vespo_k_neg": 2.0,
                      "vespo_lambda_neg": 0.5} | KL,
    "grpo_sequence": {"loss_type": "grpo"} | SEQUENCE,
    "grpo_sequence_kl": {"loss_type": "grpo"} | SEQUENCE | KL,
    "bnpo_sequence": {"loss_type": "bnpo"} | SEQUENCE,
    "dr_grpo_sequence": {"loss_type": "dr_grpo"} | SEQUENCE,
    "dapo_sequence": SEQUENCE,
    "cispo_sequence": {"loss_type": "cispo"} | SEQUENCE | {"epsilon_high": 1.04},
    "sapo_sequence": {"loss_type": "sapo", "importance_sampling_level": "sequence"} | KL,
    "luspo_sequence_kl": {"loss_type": "luspo"} | SEQUENCE | KL,
    "vespo_sequence_kl": {"loss_type": "vespo", "importance_sampling_level": "sequence"} | KL,
    "grpo_delta": {"loss_type": "grpo", "delta": 1.3} | KL,
    "dapo_delta": {"delta": 1.4},
    "dapo_delta_sequence": SEQUENCE | {"delta": 1.01},
    "dapo_kl": KL,
    "dapo_kl_plain": {"use_bias_correction_kl": False} | KL,
    "on_policy": {"num_iterations": 1},
    "on_policy_kl": {"num_iterations": 1} | KL,
    "on_policy_kl_plain": {"num_iterations": 1, "use_bias_correction_kl": False} | KL,
    "on_policy_sequence": {"loss_type": "grpo", "num_iterations": 1} | SEQUENCE | KL,
    "grpo_truncated": {"loss_type": "grpo"} | TRUNCATE | KL,
    "bnpo_truncated": {"loss_type": "bnpo"} | TRUNCATE,
    "dr_grpo_truncated": {"loss_type": "dr_grpo"} | TRUNCATE,
    "dapo_truncated": TRUNCATE,
    "luspo_truncated": {"loss_type": "luspo"} | SEQUENCE | TRUNCATE | KL,
    "vespo_truncated": {"loss_type": "vespo"} | TRUNCATE | KL,
    "dapo_quantile": {"top_entropy_quantile": 0.5},
    "grpo_quantile_kl": {"loss_type": "grpo", "top_entropy_quantile": 0.5} | KL,
    "grpo_quantile_sequence": {"loss_type": "grpo", "top_entropy_quantile": 0.5} | SEQUENCE | TRUNCATE,
    "dapo_entropy": {"entropy_coef": 0.1},
    "grpo_entropy_quantile": {"loss_type": "grpo", "entropy_coef": 0.1, "top_entropy_quantile": 0.5},
    "dr_grpo_entropy_truncated": {"loss_type": "dr_grpo", "entropy_coef": 0.1} | TRUNCATE | KL,
    "cool": {"temperature": 0.7, "loss_type": "grpo"} | KL,
    "cool_entropy_quantile": {"temperature": 0.7, "entropy_coef": 0.1, "top_entropy_quantile": 0.5},
    "dapo_off_policy": {"off_policy_mask_threshold": OFF_POLICY},
    "grpo_off_policy_kl": {"loss_type": "grpo", "off_policy_mask_threshold": OFF_POLICY} | KL,
    "sapo_off_policy_sampler": {"loss_type": "sapo", "off_policy_mask_threshold": OFF_POLICY} | SAMPLER,
    "sampler_sequence_mask": SAMPLER,
    "sampler_sequence_mask_bounded": sampler("sequence_mask", **BOUNDED) | KL,
    "sampler_sequence_truncate": sampler("sequence_truncate", loss_type="grpo"),
    "sampler_sequence_truncate_bounded": sampler("sequence_truncate", loss_type="grpo", **BOUNDED) | KL,
    "sampler_token_mask": sampler("token_mask", loss_type="grpo"),
    "sampler_token_mask_bounded": sampler("token_mask", **BOUNDED) | KL,
    "sampler_token_truncate": sampler("token_truncate", loss_type="dr_grpo"),
    "sampler_token_truncate_bounded": sampler("token_truncate", **BOUNDED) | KL,
    "sampler_low_only": sampler("token_mask", vllm_importance_sampling_clip_max=None,
                                vllm_importance_sampling_clip_min=0.5),
    "sampler_missing_tokens": sampler("sequence_truncate", sampled_missing=[[1, 2], [6, 0], [6, 1]],
                                      off_policy_mask_threshold=OFF_POLICY),
    "sampler_uncorrected": SAMPLER | {"vllm_importance_sampling_correction": False,
                                      "off_policy_mask_threshold": OFF_POLICY},
    "sampler_sequence_level": sampler("token_truncate", loss_type="grpo") | SEQUENCE | KL,
    "vespo_token_mask": sampler("token_mask", loss_type="vespo"),
    "vespo_token_truncate": sampler("token_truncate", loss_type="vespo", **BOUNDED) | TRUNCATE | KL,
    "everything": sampler("token_mask", loss_type="grpo", delta=1.3, epsilon_high=0.28, top_entropy_quantile=0.5,
                          entropy_coef=0.05, off_policy_mask_threshold=OFF_POLICY, scale_rewards="batch") | TRUNCATE | KL,
}  # fmt: skip

# Several calls with one batch, so the entropy stays the same: above or below its target.
ADAPTIVE = {
    "below_target": {"entropy_coef": 0.02, "entropy_target": 5.5, "entropy_coef_delta": 0.01,
                     "entropy_coef_max": 0.035},
    "above_target": {"entropy_coef": 0.02, "entropy_target": 4.0, "entropy_coef_delta": 0.008,
                     "entropy_coef_min": 0.005},
}  # fmt: skip
ADAPTIVE_CALLS = 4

# Two micro-batches, where the denominators and masks of the parts are not those of the whole.
PARTS = 2
DIVIDED = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {},
    "luspo": {"loss_type": "luspo"} | SEQUENCE,
    "vespo": {"loss_type": "vespo"},
    "sapo": {"loss_type": "sapo"},
    "dapo_truncated": TRUNCATE | KL,
    "dapo_quantile": {"top_entropy_quantile": 0.5},
    "dapo_entropy": {"entropy_coef": 0.1},
}

ONE = [[reward] for reward in REWARDS]
TWO = [[1.85, 0.5], [0.0, 0.25], [0.4, 1.0], [1.1, 0.0], [0.9, 0.75], [0.2, 0.5], [0.75, 0.0], [0.1, 0.25]]
# A reward is missing; two of a group are missing; all but one; all of a row.
HOLES = [[1.85, None], [0.0, 0.25], [0.4, 1.0], [1.1, 0.0], [None, None], [0.2, 0.5], [0.75, None], [0.1, None]]
ALONE = [[None], [None], [0.4], [None], [0.9], [0.2], [0.75], [None]]
# A group, or a function of a group, in which all are equal.
EQUAL = [[0.5, 1.0], [0.5, 0.25], [0.5, 0.75], [0.5, 0.0], [0.25, 0.5], [0.25, 0.5], [0.25, 0.5], [0.25, 0.5]]
ALL_EQUAL = [[0.5]] * 8
WEIGHTS = [0.5, 2.0]
SUMMED = {"multi_objective_aggregation": "normalize_then_sum"}

# By name: rewards [completion][function], settings.
ADVANTAGES = {
    "group": (ONE, {}),
    "batch": (ONE, {"scale_rewards": "batch"}),
    "none": (ONE, {"scale_rewards": "none"}),
    "group_weights": (TWO, {"reward_weights": WEIGHTS}),
    "batch_weights": (TWO, {"reward_weights": WEIGHTS, "scale_rewards": "batch"}),
    "group_missing": (HOLES, {"reward_weights": WEIGHTS}),
    "batch_missing": (HOLES, {"scale_rewards": "batch"}),
    "none_missing": (HOLES, {"scale_rewards": "none"}),
    "group_alone": (ALONE, {}),
    "batch_alone": (ALONE, {"scale_rewards": "batch"}),
    "group_equal": (EQUAL, {}),
    "batch_equal": (EQUAL, {"scale_rewards": "batch"}),
    "group_all_equal": (ALL_EQUAL, {}),
    "batch_all_equal": (ALL_EQUAL, {"scale_rewards": "batch"}),
    "normalize_then_sum_one": (ONE, SUMMED),
    "normalize_then_sum": (TWO, SUMMED),
    "normalize_then_sum_weights": (TWO, SUMMED | {"reward_weights": WEIGHTS}),
    "normalize_then_sum_unscaled": (TWO, SUMMED | {"scale_rewards": "none"}),
    "normalize_then_sum_missing": (HOLES, SUMMED | {"reward_weights": WEIGHTS}),
    "normalize_then_sum_equal": (EQUAL, SUMMED),
    "normalize_then_sum_all_equal": (ALL_EQUAL, SUMMED),
}


def short(value, digits: int = DIGITS):
    """Floats with few digits (fewer in gradients), NaN as null, through lists and dicts."""
    if isinstance(value, dict):
        return {key: short(item, GRADIENT_DIGITS if "grad" in key else digits) for key, item in value.items()}
    if isinstance(value, list):
        return [short(item, digits) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{digits}g}")
    return value


@contextlib.contextmanager
def float64_everywhere():
    """float64 in the model, and in the tensors that TRL makes of Python numbers."""
    torch.set_default_dtype(torch.float64)
    try:
        with float64_arithmetic():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def prepare(reference: Reference) -> list[dict]:
    """One entry a completion: model inputs, ids, and the row that TRL's data set would have."""
    rows = []
    for index, group in enumerate(grpo.GROUPS):
        completions = group["completions"] + ([EXTRA_COMPLETION] if index == 0 else [])
        example = {
            "prompt": [{"role": "user", "content": group["prompt"]}],
            "images": [Image.open(PARITY / "images" / image) for image in group["images"]],
        }
        for completion in completions:
            row = reference.prepare(group["images"], group["prompt"], completion)
            if len(rows) == TRUNCATED:
                row["completion_ids"] = row["completion_ids"][:-1]
            ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
            rows.append(row | {"group": index, "completion": completion, "ids": ids, "example": example})
    return rows


def scores(rows: list[dict], logits, temperature: float) -> tuple[list, list]:
    """Log-probabilities of the completions' tokens and entropies of the distributions they come from."""
    logprobs, entropies = [], []
    for row in rows:
        completion = row["completion_ids"]
        predicting = logits(row["inputs"], row["ids"])[-len(completion) - 1 : -1] / temperature
        log_softmax = torch.log_softmax(predicting, dim=-1)
        logprobs.append(log_softmax.gather(-1, completion[:, None]).squeeze(-1))
        entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return logprobs, entropies


def moves(lens: list[int], sums: list[float], spread: float, bounds: list[float], generator) -> list[torch.Tensor]:
    """Random log-ratios with the given sum in each completion, kept off the bounds."""
    found = []
    for length, total in zip(lens, sums, strict=True):
        move = torch.randn(length, generator=generator, dtype=torch.float64) * spread
        move += total / length - move.mean()
        for bound in bounds:
            move[(move.exp() - bound).abs() < 2 * MARGIN] += 5 * MARGIN
        found.append(move)
    return found


def fixed_logprobs(rows: list[dict], reference: Reference, temperature: float) -> dict[str, list]:
    """Current scores, and the old, reference and sampled log-probabilities that are made from them."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad(), float64_everywhere():
        logprobs, entropies = scores(rows, reference.logits64, temperature)
    lens = [len(values) for values in logprobs]
    ratios = moves(lens, RATIO_SUMS, 0.25, TOKEN_BOUNDS, generator)
    samplers = moves(lens, SAMPLER_SUMS, 0.6, SAMPLER_BOUNDS, generator)
    references = moves(lens, [0.0] * len(lens), 0.4, [], generator)
    old = [(now - move).round(decimals=6) for now, move in zip(logprobs, ratios, strict=True)]
    sampled = [(before - move).round(decimals=6) for before, move in zip(old, samplers, strict=True)]
    check_margins(logprobs, old, sampled)
    return {
        "logprobs": [values.tolist() for values in logprobs],
        "entropies": [values.tolist() for values in entropies],
        "old_logprobs": [values.tolist() for values in old],
        "ref_logprobs": [
            (now + move).round(decimals=6).tolist() for now, move in zip(logprobs, references, strict=True)
        ],
        "sampled_logprobs": [values.tolist() for values in sampled],
    }


def check_margins(logprobs: list, old: list, sampled: list) -> None:
    def closest(ratios, bounds):
        return min((ratios - bound).abs().min().item() for bound in bounds)

    pairs = list(zip(logprobs, old, sampled, strict=True))
    drifts = [before.mean() - now.mean() for now, *past in pairs for before in past]
    found = {
        "token": closest(torch.cat([now - before for now, before, _ in pairs]).exp(), TOKEN_BOUNDS),
        "sequence": closest(torch.stack([(now - before).mean() for now, before, _ in pairs]).exp(), SEQUENCE_BOUNDS),
        "sampler": closest(torch.cat([before - at for _, before, at in pairs]).exp(), SAMPLER_BOUNDS),
        "sampler_sum": closest(torch.stack([(before - at).sum() for _, before, at in pairs]).exp(), SAMPLER_BOUNDS),
        "off_policy": closest(torch.stack(drifts), [OFF_POLICY]),
    }
    if min(found.values()) < MARGIN:
        raise SystemExit(f"a ratio is too close to a bound: {found}")


def padded(rows: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """[completion, token]; masked positions are 0, as TRL has them."""
    return torch.stack([torch.nn.functional.pad(row, (0, mask.shape[1] - len(row))) for row in rows]) * mask


class FixedTrainer(GRPOTrainer):
    """TRL's trainer on a batch whose completions, rewards and past log-probabilities are given."""

    rows: list[dict]
    rewards: list[list[float | None]]
    fixed: dict[str, list]
    sampled: list[list[float | None]] | None
    double: Reference | None  # whose float64 model computes the current scores; None: TRL does, in float32
    current: tuple  # the current log-probabilities and entropies, padded

    def _generate(self, prompts):
        prompt_ids = [row["inputs"]["input_ids"][0].tolist() for row in self.rows]
        completion_ids = [row["completion_ids"].tolist() for row in self.rows]
        texts = [row["completion"] for row in self.rows]
        return prompt_ids, completion_ids, None, texts, self.sampled, {}, None, []

    def _calculate_rewards(self, *_):
        return torch.tensor([[math.nan if r is None else r for r in row] for row in self.rewards])

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        mask = attention_mask[:, -logits_to_keep:]
        if not torch.is_grad_enabled():
            name = "ref_logprobs" if model is self.ref_model else "old_logprobs"
            return padded([torch.tensor(row) for row in self.fixed[name]], mask), None, None
        if self.double is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        logprobs, entropies = scores(self.rows, self.double.logits64, self.temperature)
        self.current = padded(logprobs, mask), padded(entropies, mask)
        for values in self.current:
            values.retain_grad()
        return *self.current, None


def make_trainer(reference, rows, fixed: dict, changes: dict, exact: bool, rewards=ONE, parts=1):
    """A trainer with these settings, whose optimizer step has `parts` micro-batches, and its batch as TRL makes it."""
    options = DEFAULTS | changes
    use_sampler, missing = options.pop("use_vllm"), options.pop("sampled_missing", [])
    functions = [lambda **_: [] for _ in rewards[0]]
    for index, function in enumerate(functions):
        function.__name__ = f"reward_{index}"
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(rows) // parts,
            gradient_accumulation_steps=parts,
            num_generations=GROUP_SIZE,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **options,
        )
        trainer = FixedTrainer(
            model=reference.model,
            reward_funcs=functions,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [row["example"]["prompt"] for row in rows]}),
            processing_class=reference.processor,
        )
    trainer.use_vllm = use_sampler  # after __init__, which would start vLLM
    trainer.rows, trainer.fixed, trainer.rewards = rows, fixed, rewards
    trainer.double = reference if exact else None
    trainer.sampled = None
    if use_sampler:
        trainer.sampled = [list(values) for values in fixed["sampled_logprobs"]]
        for completion, token in missing:
            trainer.sampled[completion][token] = None
    trainer.current_gradient_accumulation_steps = parts
    trainer.model.train()
    return trainer, trainer._generate_and_score_completions([row["example"] for row in rows])


def release(reference: Reference) -> None:
    """Takes the fused head off the model, which the next trainer puts on again."""
    del reference.model.forward
    reference.model.eval()


def metrics_of(trainer, wanted) -> dict[str, float]:
    return {key: values[-1] for key, values in trainer._metrics["train"].items() if wanted(key)}


def is_reward_metric(key: str) -> bool:
    return "reward" in key


def direction_dot(gradient: torch.Tensor) -> float:
    """Sum over i of gradient[i] cos(i + 1), row-major, i from 0."""
    flat = gradient.detach().double().flatten()
    return (flat * torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64))).sum().item()


def unpadded(values: torch.Tensor, rows: list[dict]) -> list[list[float]]:
    return [line[: len(row["completion_ids"])].tolist() for line, row in zip(values, rows, strict=True)]


def run_exact(reference: Reference, rows: list[dict], fixed: dict, changes: dict) -> tuple[dict, dict]:
    """The setting in float64: what is recorded, and the gradients."""
    with float64_everywhere():
        trainer, batch = make_trainer(reference, rows, fixed, changes, exact=True)
        loss = trainer._compute_loss(trainer.model, batch)
        grads = gradients(reference, reference.double, loss)
        release(reference)
    logprobs, entropies = trainer.current
    found = {
        "advantages": batch["advantages"].tolist(),
        "loss": loss.item(),
        "grad_norm": torch.stack([g.norm() for g in grads.values()]).norm().item(),
        "metrics": metrics_of(trainer, lambda key: not is_reward_metric(key)),
        "logprob_grads": unpadded(logprobs.grad, rows),
    }
    if entropies.grad is not None:
        found["entropy_grads"] = unpadded(entropies.grad, rows)
    if "importance_sampling_ratio" in batch:
        ratio = batch["importance_sampling_ratio"]
        per_token = ratio.shape[1] > 1
        found["sampler_ratio"] = unpadded(ratio, rows) if per_token else ratio[:, 0].tolist()
    return found, grads


def run_float32(reference: Reference, rows: list[dict], fixed: dict, changes: dict) -> tuple[float, dict]:
    """The setting as TRL runs it: loss and gradients."""
    trainer, batch = make_trainer(reference, rows, fixed, changes, exact=False)
    loss = trainer._compute_loss(trainer.model, batch)
    grads = gradients(reference, reference.model, loss)
    release(reference)
    return loss.item(), grads


def dot_noise(grads: dict, exact: dict) -> float:
    """Largest difference of the dots over norm(gradient) norm(direction)."""
    return max(
        abs(direction_dot(grads[n]) - direction_dot(g)) / max(g.norm().item() * math.sqrt(g.numel() / 2), 1e-12)
        for n, g in exact.items()
    )


def run_setting(name: str, reference: Reference, rows: list[dict], fixed: dict, parameters: list[str]) -> dict:
    changes = SETTINGS[name]
    found, grads = run_exact(reference, rows, fixed, changes)
    loss, grads32 = run_float32(reference, rows, fixed, changes)
    worst, _ = relative_noise(grads32, grads)
    noise = {
        "loss": abs(loss - found["loss"]),
        "gradients_relative": worst,
        "grad_dots_relative": dot_noise(grads32, grads),
    }
    if noise["loss"] > TOLERANCE["loss"] or worst > TOLERANCE["gradients_relative"]:
        raise SystemExit(f"{name}: {found['loss']}: TRL in float32 differs by {noise}")
    print(name, found["loss"], found["grad_norm"], noise)
    norms = [grads[parameter].norm().item() for parameter in parameters]
    dots = [direction_dot(grads[parameter]) for parameter in parameters]
    return {"changes": changes} | found | {"grad_norms": norms, "grad_dots": dots, "noise": noise}


def check_distinct(settings: dict) -> None:
    """Only BNPO and DAPO may give the same gradients, as one micro-batch makes them: a missing branch would show."""

    def meaning(name):
        return DEFAULTS | {key: "dapo" if value == "bnpo" else value for key, value in SETTINGS[name].items()}

    named = [(name, torch.tensor(found["grad_dots"])) for name, found in settings.items()]
    for index, (name, dots) in enumerate(named):
        for other, others in named[:index]:
            if (dots - others).norm() < 1e-4 * dots.norm() and meaning(name) != meaning(other):
                raise SystemExit(f"{name} and {other} have the same gradients")


def run_parts(reference: Reference, rows: list[dict], fixed: dict, changes: dict) -> dict:
    """The batch as two micro-batches of one optimizer step, a group each."""
    losses, norms = [], []
    with float64_everywhere():
        trainer, batch = make_trainer(reference, rows, fixed, changes, exact=True, parts=PARTS)
        for index, part in enumerate(split_tensor_dict(split_pixel_values_by_grid(batch), PARTS)):
            trainer.rows = rows[index * GROUP_SIZE :][:GROUP_SIZE]
            loss = trainer._compute_loss(trainer.model, unsplit_pixel_values_by_grid(part))
            grads = gradients(reference, reference.double, loss)
            losses.append(loss.item())
            norms.append(torch.stack([g.norm() for g in grads.values()]).norm().item())
        release(reference)
    return {"changes": changes, "losses": losses, "grad_norms": norms}


def run_adaptive(reference: Reference, rows: list[dict], fixed: dict, changes: dict) -> dict:
    """Several calls of the loss on one batch: the coefficient moves after each and is used by the next."""
    calls = []
    with float64_everywhere():
        trainer, batch = make_trainer(reference, rows, fixed, changes | {"use_adaptive_entropy": True}, exact=True)
        for _ in range(ADAPTIVE_CALLS):
            loss = trainer._compute_loss(trainer.model, batch)
            calls.append(
                {
                    "loss": loss.item(),
                    "policy_loss": trainer._metrics["train"]["policy_loss"][-1],
                    "entropy_coef_after": trainer.entropy_coef,
                    "last_world_entropy_after": trainer._last_world_entropy,
                }
            )
        release(reference)
    return {"changes": changes, "calls": calls}


def run_advantages(reference: Reference, rows: list[dict], fixed: dict, rewards: list, changes: dict) -> dict:
    with float64_everywhere():
        trainer, batch = make_trainer(reference, rows, fixed, changes, exact=True, rewards=rewards)
        release(reference)
    metrics = metrics_of(trainer, is_reward_metric)
    return {"rewards": rewards, "changes": changes, "advantages": batch["advantages"].tolist(), "metrics": metrics}


def estimator(name: str, rewards: list[float], scale: str, penalties: list[float], beta: float) -> list[float]:
    """RLOO's and REINFORCE++'s advantages, as ms-swift has them: plain arithmetic over Python's numbers.

    The reward is lowered by beta times the completion's sum of log(old / reference). RLOO's baseline is the mean of
    the others, REINFORCE++'s the mean of the group; RLOO divides by the deviation of the rewards, REINFORCE++ by that
    of the differences. Deviations are with n - 1, plus 1e-4.
    """
    lowered = [reward - beta * penalty for reward, penalty in zip(rewards, penalties, strict=True)]
    groups = [lowered[start : start + GROUP_SIZE] for start in range(0, len(lowered), GROUP_SIZE)]
    found = []
    for group in groups:
        total = sum(group)
        if name == "rloo":
            found.append([reward - (total - reward) / (len(group) - 1) for reward in group])
        else:
            found.append([reward - total / len(group) for reward in group])
    measured = groups if name == "rloo" else found
    whole = statistics.stdev([value for group in measured for value in group])
    deviations = {"none": lambda _: 1.0, "group": lambda g: statistics.stdev(g) + 1e-4, "batch": lambda _: whole + 1e-4}
    divisors = [deviations[scale](group) for group in measured]
    return [value / by for group, by in zip(found, divisors, strict=True) for value in group]


def estimators(fixed: dict) -> dict:
    """Every estimator with every scale, with and without the KL term in the reward."""
    penalties = [
        math.fsum(old) - math.fsum(ref) for old, ref in zip(fixed["old_logprobs"], fixed["ref_logprobs"], strict=True)
    ]
    cases = [
        {
            "advantage_estimator": name,
            "scale_rewards": scale,
            "beta": beta,
            "kl_in_reward": beta > 0,
            "advantages": estimator(name, REWARDS, scale, penalties, beta),
        }
        for name in ("rloo", "reinforce_plus_plus")
        for scale in ("none", "group", "batch")
        for beta in (0.0, 0.04)
    ]
    return {"rewards": REWARDS, "kl": penalties, "cases": cases}


def described(rows: list[dict]) -> list[dict]:
    groups = []
    for index, group in enumerate(grpo.GROUPS):
        own = [row for row in rows if row["group"] == index]
        groups.append(
            {
                "images": group["images"],
                "prompt": group["prompt"],
                "prompt_ids": own[0]["inputs"]["input_ids"][0].tolist(),
                "completions": [row["completion"] for row in own],
                "completion_ids": [row["completion_ids"].tolist() for row in own],
                "is_truncated": [row is rows[TRUNCATED] for row in own],
                "rewards": REWARDS[index * GROUP_SIZE :][:GROUP_SIZE],
            }
        )
    return groups


TOLERANCE = {
    "advantages": 1e-6, "logprobs": 1e-4, "loss": 1e-4, "metrics": 1e-4,
    "gradients_relative": 1e-4, "grad_dots_relative": 1e-4,
}  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    deterministic(SEED)
    reference = Reference(CHECKPOINT)
    rows = prepare(reference)
    temperatures = dict.fromkeys((DEFAULTS | changes)["temperature"] for changes in SETTINGS.values())
    fixed = {temperature: fixed_logprobs(rows, reference, temperature) for temperature in temperatures}
    plain = fixed[DEFAULTS["temperature"]]
    parameters = sorted(reference.stored_name(name) for name, _ in reference.model.named_parameters())
    settings = {
        name: run_setting(name, reference, rows, fixed[(DEFAULTS | changes)["temperature"]], parameters)
        for name, changes in SETTINGS.items()
    }
    check_distinct(settings)
    value = {
        "command": "python tools/golden/grpo_variants.py",
        "seed": SEED,
        "versions": versions() | {"trl": trl.__version__},
        "attention": ATTENTION,
        "dtype": "float64",
        "tolerance": TOLERANCE,
        "checkpoint": CHECKPOINT,
        "groups": described(rows),
        "fixed_logprobs": [{"temperature": temperature} | values for temperature, values in fixed.items()],
        "defaults": DEFAULTS,
        "parameters": parameters,
        "settings": settings,
        "adaptive_entropy": {name: run_adaptive(reference, rows, plain, changes) for name, changes in ADAPTIVE.items()},
        "micro_batches": {name: run_parts(reference, rows, plain, changes) for name, changes in DIVIDED.items()},
        "advantages": {
            name: run_advantages(reference, rows, plain, rewards, changes)
            for name, (rewards, changes) in ADVANTAGES.items()
        },
        "estimators": estimators(plain),
    }
    write_json(OUT, short(value), compact=True)


if __name__ == "__main__":
    main()
