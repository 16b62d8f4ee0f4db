"""Numbers of torch's AdamW and gradient clipping and of transformers' learning-rate schedules.

Writes `golden/grpo/optimizer.json`; small enough to read by eye.
"""

from __future__ import annotations

import argparse
import math

import torch
from transformers import get_scheduler

from common import GOLDEN, deterministic, versions, write_json

SEED = 3
STEPS = 6
ADAMW = {
    "defaults": {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
    "weight_decay": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    "large_eps": {"lr": 3e-3, "betas": [0.8, 0.99], "eps": 1e-2, "weight_decay": 0.01},
}
SCHEDULES = [
    ("linear", 20, 0), ("linear", 20, 5), ("cosine", 20, 0), ("cosine", 20, 5), ("constant", 20, 0),
    ("constant_with_warmup", 20, 5), ("linear", 7, 7), ("linear", 1, 0),
]  # fmt: skip


def adamw(options: dict, dtype: torch.dtype) -> dict:
    """Parameter and both moments after each of STEPS steps with given gradients; the last gradient is zero."""
    generator = torch.Generator().manual_seed(SEED)
    parameter = torch.randn(5, generator=generator).to(dtype).requires_grad_()
    initial = parameter.tolist()
    grads = torch.randn(STEPS, 5, generator=generator) * torch.tensor([1.0, 0.1, 1e-3, 10.0, 0.0])
    grads[-1] = 0.0
    optimizer = torch.optim.AdamW(
        [parameter], lr=options["lr"], betas=tuple(options["betas"]), eps=options["eps"],
        weight_decay=options["weight_decay"], foreach=False, fused=False,
    )  # fmt: skip
    values, first, second = [], [], []
    for grad in grads:
        parameter.grad = grad.to(dtype)
        optimizer.step()
        state = optimizer.state[parameter]
        values.append(parameter.tolist())
        first.append(state["exp_avg"].tolist())
        second.append(state["exp_avg_sq"].tolist())
    return {
        **options, "initial": initial, "gradients": grads.tolist(),
        "parameters": values, "exp_avg": first, "exp_avg_sq": second,
    }  # fmt: skip


def clipping() -> list[dict]:
    """Norm over all tensors, and the gradients after clipping to `max_norm`."""
    cases = []
    for grads, max_norm in [
        ([[3.0, 4.0], [12.0]], 1.0),
        ([[0.3, 0.4], [0.0]], 1.0),
        ([[0.6, 0.8], [0.0]], 1.0),
        ([[1e-3, -2e3], [5.0]], 0.5),
    ]:
        parameters = [torch.zeros(len(g), requires_grad=True) for g in grads]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        clipped = [parameter.grad.tolist() for parameter in parameters]
        cases.append({"gradients": grads, "max_norm": max_norm, "norm": norm.item(), "clipped": clipped})
    return cases


def schedule(name: str, total: int, warmup: int) -> dict:
    """Factor of the base learning rate that step 0, 1, 2, ... uses; one entry past the end."""
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    factors = []
    for _ in range(total + 1):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"name": name, "num_training_steps": total, "num_warmup_steps": warmup, "factors": factors}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    deterministic(SEED)
    noise = {}
    for name, options in ADAMW.items():
        single, double = (
            torch.tensor(adamw(options, dtype)["parameters"], dtype=torch.float64)
            for dtype in (torch.float32, torch.float64)
        )
        noise[name] = (single - double).abs().max().item()
    value = {
        "command": "python tools/golden/optimizer.py",
        "versions": versions(),
        "seed": SEED,
        "tolerance": {"adamw": 1e-6, "clipping_relative": 1e-6, "schedules": 1e-12},
        "noise_float32_against_float64": noise,
        "adamw": {name: adamw(options, torch.float32) for name, options in ADAMW.items()},
        "clipping": clipping(),
        "schedules": [schedule(*case) for case in SCHEDULES],
        "warmup_ratio": [
            {"warmup_ratio": ratio, "num_training_steps": total, "num_warmup_steps": math.ceil(total * ratio)}
            for ratio, total in [(0.03, 100), (0.1, 15), (0.0, 10), (0.5, 3)]
        ],
    }
    write_json(GOLDEN / "grpo" / "optimizer.json", value, compact=True)
    print(noise)


if __name__ == "__main__":
    main()
