"""Adapters made and saved by PEFT, and what the tiny checkpoints compute under them.

One folder a case under `golden/lora`: the adapter as PEFT writes it, `case.json` (log-probabilities of the
completion of a case of `golden/parity`, with the adapter and merged) and `grads.safetensors` (gradient of
their negated mean, by the adapter's names in the file). Needs torch, transformers and peft:
python3 tools/golden/lora.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from common import GOLDEN, completion_logprobs, deterministic, versions, write_json
from parity import CASES
from parity_common import Case, Reference

SEED = 11
OUT = GOLDEN / "lora"
LANGUAGE = r".*language_model\.layers.*(_proj)"

# case: (case of golden/parity, settings of the adapter)
ADAPTERS = {
    "language": ("one_image", {"target_modules": LANGUAGE, "r": 4, "lora_alpha": 8}),
    "flat": ("flat_one_image", {"target_modules": LANGUAGE, "r": 3, "lora_alpha": 5, "use_rslora": True}),
    "vision": ("several_images", {"target_modules": "all-linear", "r": 2, "lora_alpha": 1}),
    "queries": ("text_only", {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16}),
}


def saved_name(name: str) -> str:
    return name.replace(".default", "")


def run(reference: Reference, case_name: str, case: Case, settings: dict, folder: Path, checkpoints: str) -> None:
    """Writes the adapter of `settings` and what `case` gives under it to `folder`.

    `checkpoints` is the relative path from `folder` that the adapter names as its base.
    """
    row = reference.prepare(case.images, case.prompt, case.completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    model = get_peft_model(reference.model, LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **settings)).eval()
    adapters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    reference.model = model.base_model.model
    logprobs = completion_logprobs(reference.logits(row["inputs"], ids), row["completion_ids"])
    loss = -logprobs.mean()
    loss.backward()
    with torch.no_grad(), model.disable_adapter():
        without = completion_logprobs(reference.logits(row["inputs"], ids), row["completion_ids"])

    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"{checkpoints}/{case.checkpoint}"
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", config)
    gradients = {saved_name(n): p.grad.contiguous() for n, p in adapters.items() if p.grad is not None}
    save_file(gradients, folder / "grads.safetensors")

    reference.model = model.merge_and_unload()
    with torch.no_grad():
        if case.checkpoint != "nested":  # its file holds bfloat16
            for parameter in reference.model.parameters():
                parameter.copy_(parameter.bfloat16().float())
        merged = completion_logprobs(reference.logits(row["inputs"], ids), row["completion_ids"])
    moved = (logprobs - without).abs().max().item()
    if moved < 1e-2:
        raise SystemExit(f"{folder.name}: the adapter moves the log-probabilities by {moved} only")
    expected = {
        "case": case_name,
        "checkpoint": case.checkpoint,
        "logprobs": logprobs.tolist(),
        "logprobs_merged": merged.tolist(),
        "loss": loss.item(),
        "moved": moved,
    }
    write_json(folder / "case.json", expected, compact=True)


def main() -> None:
    deterministic(SEED)
    for name, (case_name, settings) in ADAPTERS.items():
        case = CASES[case_name]
        run(Reference(case.checkpoint), case_name, case, settings, OUT / name, "../../parity/checkpoints")
    import peft

    manifest = {
        "command": "python tools/golden/lora.py",
        "seed": SEED,
        "versions": versions() | {"peft": peft.__version__},
        "tolerance": {"logprobs": 1e-4, "gradients_relative": 1e-4},
    }
    write_json(OUT / "manifest.json", manifest)


if __name__ == "__main__":
    main()
