"""What the golden scripts share: paths, versions, manifests, a float64 twin of the float32 reference."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from importlib import import_module
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "golden"
PARITY = GOLDEN / "parity"
FAMILIES = GOLDEN / "families"
IM_END = "<|im_end|>"


def deterministic(seed: int) -> None:
    """One thread and a fixed seed: the same numbers on every run of the same machine type."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of everything whose arithmetic or text handling enters a golden file."""
    import PIL
    import tokenizers
    import torchvision
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "pillow": PIL.__version__,
    }


def _lines(value, depth: int) -> str:
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = ",\n".join(f"{json.dumps(key)}: {_lines(item, depth - 1)}" for key, item in value.items())
    return "{\n" + inner + "\n}"


def write_json(path: Path, value, compact: bool = False) -> None:
    """Writes JSON with a final newline; `compact` (a key a line, lists in one) where the bulk is numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _lines(value, 2) if compact else json.dumps(value, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Digest of the tensor's little-endian row-major bytes."""
    return sha256(tensor.detach().contiguous().cpu().numpy().tobytes())


class _DoubleTorch:
    """`torch` as a modelling file sees it, with float32 meaning float64."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def float64_arithmetic(family: str = "qwen2_5_vl"):
    """Makes explicit casts to float32 in the reference model of `family` casts to float64.

    Without it a model turned to double still normalises and rotates in float32, and the
    difference to the float32 run would understate the rounding noise.
    """
    from transformers import vision_utils

    modules = [import_module(f"transformers.models.{family}.modeling_{family}"), vision_utils]
    tensor_float = torch.Tensor.float
    for module in modules:
        module.torch = _DoubleTorch()
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        for module in modules:
            module.torch = torch
        torch.Tensor.float = tensor_float


def completion_logprobs(logits: torch.Tensor, completion_ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-softmax(logits / temperature) at the positions that predict the completion.

    logits: [tokens, vocab] of prompt + completion; completion_ids: [completion] -> [completion]
    """
    first = logits.shape[0] - completion_ids.shape[0] - 1
    rows = logits[first:-1] / temperature
    return torch.log_softmax(rows, dim=-1).gather(-1, completion_ids[:, None]).squeeze(-1)
