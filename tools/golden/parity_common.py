"""What a checkpoint computes in transformers: rows, log-probabilities, gradients, greedy tokens, and a case's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from common import IM_END, PARITY, completion_logprobs, float64_arithmetic, tensor_sha256, write_json
from tiny_common import flat_name

GREEDY_TOKENS = 32
GREEDY_MIN_MARGIN = 1e-3
ATTENTION = "eager"
# A gradient below this share of the largest one, in float64, is zero but for rounding.
ZERO_GRADIENT = 1e-12

LONG = "Please provide the bounding box coordinate of the region this sentence describes: the red circle."
ANSWER = '<think>left</think><answer>{"bbox_2d": [12, 34, 56, 78]}</answer>'


@dataclass(frozen=True)
class Case:
    """A row to compute. `images` lie in `golden/parity/images` and stand before the text in one user turn."""

    checkpoint: str
    images: list[str]
    prompt: str
    completion: str
    has_gradients: bool


class Reference:
    """A checkpoint with its processor; knows the names its tensors have on disk."""

    def __init__(self, name: str, checkpoints: Path = PARITY / "checkpoints", full_pixels_below_bytes: int = 150_000):
        folder = checkpoints / name
        self.name = name
        self.full_pixels_below_bytes = full_pixels_below_bytes
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.template = self.processor.chat_template or self.tokenizer.chat_template
        self.folder = folder
        self.model = self.load(folder)
        self.double = self.load(folder).double()
        self.family = self.model.config.model_type
        self.stored = {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}

    @staticmethod
    def load(folder: Path):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)
        return model.eval()

    def stored_name(self, name: str) -> str:
        return name if name in self.stored else flat_name(name)

    def prepare(self, images: list[str], prompt: str, completion: str) -> dict:
        """Renders and tokenises one user turn, images first; the completion ends with the end-of-turn token."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        pictures = [Image.open(PARITY / "images" / image) for image in images]
        inputs = self.processor(text=[rendered], images=pictures or None, return_tensors="pt")
        completion_ids = self.tokenizer(completion + IM_END, return_tensors="pt").input_ids[0]
        return {"rendered": rendered, "inputs": inputs, "completion_ids": completion_ids}

    def model_inputs(self, inputs, ids: torch.Tensor) -> dict:
        image_token = self.model.config.image_token_id
        kwargs = {"input_ids": ids[None], "mm_token_type_ids": (ids[None] == image_token).int(), "use_cache": False}
        if "pixel_values" in inputs:
            kwargs |= {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
        return kwargs

    def logits(self, inputs, ids: torch.Tensor) -> torch.Tensor:
        return self.model(**self.model_inputs(inputs, ids)).logits[0]

    def logits64(self, inputs, ids: torch.Tensor) -> torch.Tensor:
        kwargs = self.model_inputs(inputs, ids)
        if "pixel_values" in kwargs:
            kwargs["pixel_values"] = kwargs["pixel_values"].double()
        with float64_arithmetic(self.family):
            return self.double(**kwargs).logits[0]

    def position_ids(self, inputs, ids: torch.Tensor) -> tuple[list, int]:
        """M-RoPE positions [3, tokens]; a row without images counts 0, 1, 2 in all three."""
        if "pixel_values" not in inputs:
            return [list(range(len(ids)))] * 3, 0
        kwargs = self.model_inputs(inputs, ids)
        positions, deltas = self.model.model.get_rope_index(
            ids[None], kwargs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
        return positions[:, 0].tolist(), int(deltas[0, 0])


def gradients(reference: Reference, model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of `loss` by stored name; parameters outside the graph (vision in a text row) are absent."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {reference.stored_name(n): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def relative_noise(grads: dict, grads64: dict) -> tuple[float, str]:
    """Largest norm(f32 - f64) / norm(f64) over the tensors, and the tensor's name."""
    worst = max(((grads[n].double() - g).norm().item() / max(g.norm().item(), 1e-12), n) for n, g in grads64.items())
    return worst


def zero_gradients(grads64: dict) -> list[str]:
    """Names of the gradients that are zero but for rounding: only their size can be compared."""
    largest = max(g.abs().max().item() for g in grads64.values())
    return sorted(n for n, g in grads64.items() if g.abs().max().item() < ZERO_GRADIENT * largest)


def greedy(reference: Reference, inputs, reserved: set[int]) -> dict:
    """32 greedy tokens by whole forward passes without a cache; the end of answer does not stop them.

    Reserved ids (added tokens, rows past the tokenizer) are never the largest logit: checked, so that
    no rule about forbidden tokens or ends of answer enters the expectation.
    """
    ids, chosen, margins = inputs["input_ids"][0], [], []
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            top = reference.logits(inputs, ids)[-1].topk(2)
            token = int(top.indices[0])
            if token in reserved:
                raise SystemExit(f"greedy decoding chose the reserved token {token}")
            chosen.append(token)
            margins.append(float(top.values[0] - top.values[1]))
            ids = torch.cat([ids, top.indices[:1]])
        config = dict(max_new_tokens=GREEDY_TOKENS, do_sample=False, repetition_penalty=1.0, temperature=None)
        kwargs = reference.model_inputs(inputs, inputs["input_ids"][0]) | {"use_cache": True}
        generated = reference.model.generate(**kwargs, **config)[0, inputs["input_ids"].shape[1] :].tolist()
    if min(margins) < GREEDY_MIN_MARGIN:
        raise SystemExit(f"two greedy candidates lie within {min(margins):.1e}: choose another seed")
    if generated != chosen:
        raise SystemExit(f"generate() with a cache gives {generated}, whole passes {chosen}")
    return {"greedy_ids": chosen, "greedy_min_margin": min(margins), "greedy_margins": margins}


def image_numbers(reference: Reference, inputs, tensors: dict) -> dict:
    """Facts of `pixel_values`; puts the vision tower's output (and small pictures whole) in `tensors`."""
    if "pixel_values" not in inputs:
        return {"image_grid_thw": [], "pixel_values": None}
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        found = reference.model.model.get_image_features(pixels, grid)
        with float64_arithmetic(reference.family):
            found64 = reference.double.model.get_image_features(pixels.double(), grid)
    features, features64 = torch.cat(found.pooler_output), torch.cat(found64.pooler_output)
    tensors["image_features"] = features
    if "deepstack_features" in found:
        tensors["deepstack_features"] = torch.stack(found.deepstack_features)
    if pixels.numel() * 4 < reference.full_pixels_below_bytes:
        tensors["pixel_values"] = pixels
    flat = pixels.flatten()
    return {
        "image_grid_thw": grid.tolist(),
        "pixel_values": {
            "shape": list(pixels.shape), "sha256": tensor_sha256(pixels), "first": flat[:64].tolist(),
            "stride": 997, "strided": flat[::997].tolist(),
        },
        "image_features_noise": (features.double() - features64).abs().max().item(),
    }  # fmt: skip


def run_case(reference: Reference, case: Case, folder: Path) -> dict:
    """Writes the files of a case and returns the differences between float32 and float64."""
    row = reference.prepare(case.images, case.prompt, case.completion)
    inputs, completion_ids = row["inputs"], row["completion_ids"]
    prompt_ids = inputs["input_ids"][0]
    ids = torch.cat([prompt_ids, completion_ids])
    tensors: dict[str, torch.Tensor] = {}
    image_facts = image_numbers(reference, inputs, tensors)

    logits, logits64 = reference.logits(inputs, ids), reference.logits64(inputs, ids)
    logprobs, logprobs64 = completion_logprobs(logits, completion_ids), completion_logprobs(logits64, completion_ids)
    loss, loss64 = -logprobs.mean(), -logprobs64.mean()
    noise = {
        "logits": (logits.double() - logits64).abs().max().item(),
        "logprobs": (logprobs.double() - logprobs64).abs().max().item(),
        "loss": abs(loss.item() - loss64.item()),
    }
    if "image_features_noise" in image_facts:
        noise["image_features"] = image_facts.pop("image_features_noise")
    folder.mkdir(parents=True)
    zeros = []
    if case.has_gradients:
        grads = gradients(reference, reference.model, loss)
        with float64_arithmetic(reference.family):
            grads64 = gradients(reference, reference.double, loss64)
        zeros = zero_gradients(grads64)
        compared = {n: g for n, g in grads64.items() if n not in zeros}
        noise["gradients_relative"], noise["gradients_worst"] = relative_noise(grads, compared)
        save_file(grads, folder / "grads.safetensors")
    predicting = range(len(prompt_ids) - 1, len(ids) - 1)
    positions = sorted({*predicting, *range(0, len(ids), 8)})
    tensors["logits"] = logits.detach()[positions].contiguous()
    save_file(tensors, folder / "tensors.safetensors")
    position_ids, rope_delta = reference.position_ids(inputs, ids)
    reserved = set(reference.tokenizer.added_tokens_decoder) | set(range(len(reference.tokenizer), logits.shape[1]))
    write_json(
        folder / "case.json",
        {
            "checkpoint": case.checkpoint,
            "images": case.images,
            "prompt": case.prompt,
            "rendered": row["rendered"],
            "prompt_ids": prompt_ids.tolist(),
            "completion": case.completion,
            "completion_ids": completion_ids.tolist(),
            **image_facts,
            "position_ids": position_ids,
            "rope_delta": rope_delta,
            "logit_positions": positions,
            "logprobs": logprobs.tolist(),
            "loss": loss.item(),
            "has_gradients": case.has_gradients,
            **({"zero_gradients": zeros} if zeros else {}),
            **greedy(reference, inputs, reserved),
            "noise": noise,
        },
        compact=True,
    )
    return noise
