"""GRPO's loss and gradients from the published formula, each completion computed as a row of its own.

The batch is two groups on the `nested` tiny checkpoint. With r = exp(logp - old_logp), advantage A of the
completion and the k3 estimate k = exp(ref - logp) - (ref - logp) - 1, the loss is

    mean over completions of mean over their tokens of  -min(r A, clip(r, 1 - eps, 1 + eps_high) A) + beta k

where logp = log-softmax(logits / temperature). No prefix is shared and nothing is padded here, which is what
makes it a reference for code that does share. Writes `golden/grpo`.
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import save_file

from common import GOLDEN, completion_logprobs, deterministic, float64_arithmetic, versions, write_json
from parity_common import ATTENTION, Reference, gradients, relative_noise

SEED = 11
OUT = GOLDEN / "grpo"
CHECKPOINT = "nested"

GROUPS = [
    {
        "images": ["scene.png"],
        "prompt": "Please provide the bounding box coordinate of the red circle.",
        "completions": [
            '<think>The red circle is left.</think><answer>{"bbox_2d": [12, 34, 56, 78]}</answer>',
            "The circle is near the edge.",
            "<answer>[1, 2, 3, 4]</answer>",
        ],
        "rewards": [1.85, 0.0, 0.4],
    },
    {
        "images": [],
        "prompt": "How many shapes are there?",
        "completions": ["three", "The answer is 42.", "There are three small circles.", "<answer>3</answer>"],
        "rewards": [0.9, 0.9, 0.9, 0.9],
    },
]

# `on_policy` has no old log-probabilities: they are the current ones, detached.
SETTINGS = {
    "plain": {"beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.2, "temperature": 1.0, "on_policy": False},
    "no_kl": {"beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28, "temperature": 1.0, "on_policy": False},
    "cool": {"beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.28, "temperature": 0.7, "on_policy": False},
    "cool_no_kl": {"beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2, "temperature": 0.7, "on_policy": False},
    "on_policy": {"beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.2, "temperature": 1.0, "on_policy": True},
}
GRADIENTS_OF = "cool"


def advantages(rewards: list[float]) -> list[float]:
    """(r - mean) / (std + 1e-4), std with n - 1; exactly 0 where all rewards are equal."""
    if all(reward == rewards[0] for reward in rewards):
        return [0.0] * len(rewards)
    values = torch.tensor(rewards, dtype=torch.float64)
    return ((values - values.mean()) / (values.std(correction=1) + 1e-4)).tolist()


def token_terms(logprobs, old, ref, advantage: float, setting: dict) -> dict[str, torch.Tensor]:
    """Per token: ratio, whether the clip is active, k3, loss. All [completion]."""
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - setting["epsilon"], 1 + setting["epsilon_high"])
    kl = torch.exp(ref - logprobs) - (ref - logprobs) - 1
    policy = -torch.minimum(ratio * advantage, clipped * advantage)
    low = (ratio < 1 - setting["epsilon"]) & (advantage < 0)
    high = (ratio > 1 + setting["epsilon_high"]) & (advantage > 0)
    return {"ratio": ratio, "is_clipped": low | high, "kl": kl, "loss": policy + setting["beta"] * kl}


def prepare(reference: Reference) -> list[dict]:
    """One entry a completion: model inputs, ids, advantage."""
    rows = []
    for index, group in enumerate(GROUPS):
        for completion, advantage in zip(group["completions"], advantages(group["rewards"]), strict=True):
            row = reference.prepare(group["images"], group["prompt"], completion)
            ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
            rows.append(row | {"group": index, "ids": ids, "advantage": advantage})
    return rows


def all_logprobs(rows: list[dict], logits, temperature: float) -> list[torch.Tensor]:
    return [completion_logprobs(logits(r["inputs"], r["ids"]), r["completion_ids"], temperature) for r in rows]


def fixed_logprobs(rows, reference: Reference, temperature: float) -> dict[str, list[list[float]]]:
    """Old and reference log-probabilities: the current ones moved at random, rounded, kept off the clip's edges."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        current = all_logprobs(rows, reference.logits, temperature)
    found = {"old_logprobs": [], "ref_logprobs": []}
    for logprobs in current:
        log_ratio = torch.randn(logprobs.shape, generator=generator) * 0.25
        for edge in (0.8, 1.2, 1.28):
            log_ratio[(log_ratio.exp() - edge).abs() < 0.01] += 0.03
        old = logprobs - log_ratio
        ref = logprobs + torch.randn(logprobs.shape, generator=generator) * 0.4
        found["old_logprobs"].append([round(value, 6) for value in old.tolist()])
        found["ref_logprobs"].append([round(value, 6) for value in ref.tolist()])
    return found


def loss_of(rows: list[dict], logprobs: list[torch.Tensor], fixed: dict, setting: dict):
    """The loss of the batch and the per-token terms it is made of."""
    terms = []
    for index, (row, current) in enumerate(zip(rows, logprobs, strict=True)):
        old = torch.tensor(fixed["old_logprobs"][index], dtype=current.dtype)
        ref = torch.tensor(fixed["ref_logprobs"][index], dtype=current.dtype)
        old = current.detach() if setting["on_policy"] else old
        terms.append(token_terms(current, old, ref, row["advantage"], setting))
    loss = torch.stack([term["loss"].mean() for term in terms]).mean()
    return loss, terms


def tokens_mean(terms: list[dict], key: str) -> float:
    return torch.cat([term[key].detach().double() for term in terms]).mean().item()


def completions_mean(terms: list[dict], key: str) -> float:
    return torch.stack([term[key].detach().double().mean() for term in terms]).mean().item()


def run_setting(name: str, rows, fixed: dict, reference: Reference) -> dict:
    setting = SETTINGS[name]
    temperature = setting["temperature"]
    logprobs = all_logprobs(rows, reference.logits, temperature)
    loss, terms = loss_of(rows, logprobs, fixed, setting)
    grads = gradients(reference, reference.model, loss)
    with float64_arithmetic():
        logprobs64 = all_logprobs(rows, reference.logits64, temperature)
    loss64, _ = loss_of(rows, logprobs64, fixed, setting)
    with float64_arithmetic():
        grads64 = gradients(reference, reference.double, loss64)
    worst, worst_name = relative_noise(grads, grads64)
    clip = [term["is_clipped"] for term in terms]
    if not setting["on_policy"] and not 0.05 < torch.cat(clip).double().mean() < 0.6:
        raise SystemExit(f"{name}: the clip is active on {torch.cat(clip).double().mean():.2f} of the tokens")
    if name == GRADIENTS_OF:
        save_file(grads, OUT / f"grads_{name}.safetensors")
    return {
        **setting,
        "loss": loss.item(),
        "grad_norm": torch.stack([g.double().norm() for g in grads.values()]).norm().item(),
        "grad_norms": {n: g.double().norm().item() for n, g in sorted(grads.items())},
        "kl_token_mean": tokens_mean(terms, "kl"),
        "kl_completion_mean": completions_mean(terms, "kl"),
        "clip_ratio_token_mean": tokens_mean(terms, "is_clipped"),
        "clip_ratio_completion_mean": completions_mean(terms, "is_clipped"),
        "logprobs": [values.tolist() for values in logprobs],
        "ratio": [term["ratio"].tolist() for term in terms],
        "is_clipped": [flags.tolist() for flags in clip],
        "kl": [term["kl"].tolist() for term in terms],
        "token_loss": [term["loss"].tolist() for term in terms],
        "noise": {
            "loss": abs(loss.item() - loss64.item()),
            "logprobs": max((a.double() - b).abs().max().item() for a, b in zip(logprobs, logprobs64, strict=True)),
            "gradients_relative": worst,
            "gradients_worst": worst_name,
        },
    }


def batch_description(rows: list[dict], fixed: dict[float, dict]) -> dict:
    groups = []
    for index, group in enumerate(GROUPS):
        own = [row for row in rows if row["group"] == index]
        groups.append(
            group
            | {
                "prompt_ids": own[0]["inputs"]["input_ids"][0].tolist(),
                "completion_ids": [row["completion_ids"].tolist() for row in own],
                "advantages": [row["advantage"] for row in own],
            }
        )
    temperatures = [{"temperature": temperature, **values} for temperature, values in fixed.items()]
    return {"checkpoint": CHECKPOINT, "groups": groups, "fixed_logprobs": temperatures}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    deterministic(SEED)
    reference = Reference(CHECKPOINT)
    rows = prepare(reference)
    temperatures = dict.fromkeys(setting["temperature"] for setting in SETTINGS.values())
    fixed = {temperature: fixed_logprobs(rows, reference, temperature) for temperature in temperatures}
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "batch.json", batch_description(rows, fixed), compact=True)
    expected = {}
    for name, setting in SETTINGS.items():
        expected[name] = run_setting(name, rows, fixed[setting["temperature"]], reference)
        shown = ("loss", "grad_norm", "kl_token_mean", "clip_ratio_token_mean", "noise")
        print(name, {key: expected[name][key] for key in shown})
    write_json(OUT / "expected.json", expected, compact=True)
    write_json(
        OUT / "manifest.json",
        {
            "command": "python tools/golden/grpo.py",
            "seed": SEED,
            "versions": versions(),
            "attention": ATTENTION,
            "dtype": "float32",
            "threads": 1,
            "gradients_of": GRADIENTS_OF,
            "tolerance": {"advantages": 1e-6, "logprobs": 1e-4, "loss": 1e-5, "gradients_relative": 1e-4},
        },
    )


if __name__ == "__main__":
    main()
