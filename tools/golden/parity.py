"""Runs the tiny checkpoints in transformers and records what the Rust models must reproduce.

One folder a case under `golden/parity/cases`: `case.json` (text, ids, positions, log-probabilities, greedy
tokens), `tensors.safetensors` (image features, logits) and, for some cases, `grads.safetensors` (gradient of
the mean negative log-likelihood of the completion, by the tensor's name in the checkpoint).
With `--debug DIR` the intermediate tensors of one case go there; they are for eyes, not for the repository.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from common import (
    IM_END,
    PARITY,
    completion_logprobs,
    deterministic,
    float64_arithmetic,
    sha256,
    tensor_sha256,
    versions,
    write_json,
)
from tiny_qwen2_5_vl import flat_name

SEED = 7
GREEDY_TOKENS = 32
GREEDY_MIN_MARGIN = 1e-3
ATTENTION = "eager"
FULL_PIXELS_BELOW_BYTES = 150_000

LONG = "Please provide the bounding box coordinate of the region this sentence describes: the red circle."
ANSWER = '<think>left</think><answer>{"bbox_2d": [12, 34, 56, 78]}</answer>'

# name: (checkpoint, images, prompt, completion, gradients)
CASES = {
    "one_image": ("nested", ["scene.png"], LONG, ANSWER, True),
    "several_images": (
        "nested",
        ["wide.png", "photo.jpg", "small.png"],
        "Compare these pictures and say which one is the tallest.",
        "The second picture is the tallest.",
        True,
    ),
    "text_only": ("nested", [], "How many shapes are there? 4 + 38 = ?", "The answer is 42.", True),
    "small_31x29": ("nested", ["small.png"], "What is in the picture?", "A small circle.", False),
    "tall_90x333": ("nested", ["tall.png"], "Describe the image.", "A green triangle.", False),
    "grey": ("nested", ["grey.png"], "Which colour is the largest object?", "grey", False),
    "rgba": ("nested", ["rgba.png"], "Is it transparent? Déjà vu!", "Yes, déjà vu.", False),
    "jpeg": ("nested", ["photo.jpg"], "Describe the image.\nOne line.", "A yellow star.\n", False),
    "flat_one_image": ("flat", ["scene.png"], LONG, ANSWER, True),
    "flat_several_images": ("flat", ["tall.png", "small.png"], "Compare these pictures.", "Both are small.", False),
    "flat_text_only": ("flat", [], "The quick brown fox", " jumps over the lazy dog.", False),
}  # fmt: skip


def draw_scene(width: int, height: int, seed: int) -> Image.Image:
    """Shapes over a gradient with blocks of noise: edges, smooth parts and texture for the resampler."""
    generator = torch.Generator().manual_seed(seed)
    across = torch.linspace(30, 220, width)[None, :].expand(height, width)
    down = torch.linspace(200, 20, height)[:, None].expand(height, width)
    noise = torch.randint(0, 60, ((height + 4) // 5, (width + 4) // 5), generator=generator).float()
    noise = noise.repeat_interleave(5, 0).repeat_interleave(5, 1)[:height, :width]
    pixels = torch.stack([across, down, (across + down) / 2 + noise], dim=-1).clamp(0, 255).to(torch.uint8)
    image = Image.fromarray(pixels.numpy(), "RGB")
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
        x, y = (int(torch.randint(0, int(0.6 * side), (), generator=generator)) for side in (width, height))
        size = min(width, height) // 3
        colour = tuple(torch.randint(0, 256, (3,), generator=generator).tolist())
        shape((x, y, x + size, y + size), fill=colour)
    return image


def write_images(folder: Path) -> dict:
    """The input pictures. A JPEG encoder may change between versions, so the committed bytes are the input."""
    folder.mkdir(parents=True, exist_ok=True)
    rgba = draw_scene(100, 70, 5).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    pictures = {
        "scene.png": draw_scene(148, 200, 1),
        "wide.png": draw_scene(333, 90, 2),
        "tall.png": draw_scene(90, 333, 3),
        "small.png": draw_scene(31, 29, 4),
        "rgba.png": rgba,
        "grey.png": draw_scene(112, 84, 6).convert("L"),
    }
    for name, picture in pictures.items():
        if not (folder / name).exists():
            picture.save(folder / name, optimize=True)
    if not (folder / "photo.jpg").exists():
        draw_scene(260, 180, 7).save(folder / "photo.jpg", quality=85)
    found = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            found[path.name] = {"size": list(picture.size), "mode": picture.mode, "sha256": sha256(path.read_bytes())}
    return found


class Reference:
    """A checkpoint with its processor; knows the names its tensors have on disk."""

    def __init__(self, name: str):
        folder = PARITY / "checkpoints" / name
        self.name = name
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.template = self.processor.chat_template or self.tokenizer.chat_template
        self.model = self._load(folder)
        self.double = self._load(folder).double()

    @staticmethod
    def _load(folder: Path):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=ATTENTION
        )
        return model.eval()

    def stored_name(self, name: str) -> str:
        return flat_name(name) if self.name == "flat" else name

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
        with float64_arithmetic():
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
    worst = max(
        ((grads[n].double() - g).norm().item() / max(g.norm().item(), 1e-12), n) for n, g in grads64.items()
    )
    return worst


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
    """Facts of `pixel_values`; puts the vision tower's merged output (and small pictures whole) in `tensors`."""
    if "pixel_values" not in inputs:
        return {"image_grid_thw": [], "pixel_values": None}
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        features = reference.model.model.get_image_features(pixels, grid).pooler_output
        with float64_arithmetic():
            features64 = reference.double.model.get_image_features(pixels.double(), grid).pooler_output
    features, features64 = torch.cat(features), torch.cat(features64)
    tensors["image_features"] = features
    if pixels.numel() * 4 < FULL_PIXELS_BELOW_BYTES:
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


def run_case(reference: Reference, name: str, folder: Path) -> dict:
    checkpoint, images, prompt, completion, with_gradients = CASES[name]
    row = reference.prepare(images, prompt, completion)
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
    if with_gradients:
        grads = gradients(reference, reference.model, loss)
        with float64_arithmetic():
            noise["gradients_relative"], noise["gradients_worst"] = relative_noise(
                grads, gradients(reference, reference.double, loss64)
            )
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
            "checkpoint": checkpoint,
            "images": images,
            "prompt": prompt,
            "rendered": row["rendered"],
            "prompt_ids": prompt_ids.tolist(),
            "completion": completion,
            "completion_ids": completion_ids.tolist(),
            **image_facts,
            "position_ids": position_ids,
            "rope_delta": rope_delta,
            "logit_positions": positions,
            "logprobs": logprobs.tolist(),
            "loss": loss.item(),
            "has_gradients": with_gradients,
            **greedy(reference, inputs, reserved),
            "noise": noise,
        },
        compact=True,
    )
    return noise


def sensitivity(reference: Reference, name: str) -> dict[str, float]:
    """How far the logits move under typical mistakes: a golden file is worth what it tells apart."""
    _, images, prompt, completion, _ = CASES[name]
    row = reference.prepare(images, prompt, completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    visual, rotary = reference.model.model.visual, reference.model.model.language_model.rotary_emb
    norm = reference.model.model.language_model.norm
    mistakes = {
        "all vision blocks full attention": (visual, "fullatt_block_indexes", [0, 1, 2, 3]),
        "all vision blocks windowed": (visual, "fullatt_block_indexes", []),
        "window of 56 px": (visual, "window_size", 56),
        "vision rotary base 1e5": (visual.rotary_pos_emb, "inv_freq", visual.rotary_pos_emb.inv_freq ** 1.25),
        "mrope_section [2, 1, 1]": (rotary, "mrope_section", [2, 1, 1]),
        "text rotary base 1e4": (rotary, "inv_freq", rotary.inv_freq ** (2 / 3)),
        "final norm epsilon 1e-3": (norm, "variance_epsilon", 1e-3),
    }
    moved = {}
    with torch.no_grad():
        right = reference.logits(row["inputs"], ids)
        for mistake, (module, attribute, value) in mistakes.items():
            kept = getattr(module, attribute)
            setattr(module, attribute, value)
            moved[mistake] = (reference.logits(row["inputs"], ids) - right).abs().max().item()
            setattr(module, attribute, kept)
    if min(moved.values()) < 1e-3:
        raise SystemExit(f"a mistake would pass unseen: {moved}")
    return moved


def debug_tensors(reference: Reference, name: str, folder: Path) -> None:
    """Intermediate tensors of one case, vision blocks in the reference's window order."""
    _, images, prompt, completion, _ = CASES[name]
    row = reference.prepare(images, prompt, completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    model, seen = reference.model.model, {"input_ids": ids, "pixel_values": row["inputs"]["pixel_values"]}

    def keep(key):
        def hook(_module, _args, output):
            seen[key] = (output[0] if isinstance(output, tuple) else output).detach().clone().contiguous()

        return hook

    def keep_input(_module, args, kwargs):
        seen["inputs_embeds"] = kwargs["inputs_embeds"].detach().clone()
        positions = kwargs["position_ids"]
        seen["position_ids"] = positions.clone()

    handles = [model.language_model.register_forward_pre_hook(keep_input, with_kwargs=True)]
    handles += [model.visual.patch_embed.register_forward_hook(keep("visual.patch_embed"))]
    handles += [model.visual.merger.register_forward_hook(keep("visual.merger_window_order"))]
    handles += [b.register_forward_hook(keep(f"visual.blocks.{i}")) for i, b in enumerate(model.visual.blocks)]
    for i, block in enumerate(model.visual.blocks):
        handles += [block.attn.register_forward_hook(keep(f"visual.blocks.{i}.attn"))]
    for i, layer in enumerate(model.language_model.layers):
        handles += [layer.register_forward_hook(keep(f"layers.{i}"))]
        handles += [layer.self_attn.register_forward_hook(keep(f"layers.{i}.self_attn"))]
    handles += [model.language_model.norm.register_forward_hook(keep("norm"))]
    with torch.no_grad():
        seen["logits"] = reference.logits(row["inputs"], ids)
    for handle in handles:
        handle.remove()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(seen, folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debug", type=Path, help="folder for intermediate tensors of the image cases")
    args = parser.parse_args()
    deterministic(SEED)
    images = write_images(PARITY / "images")
    cases = PARITY / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    references = {name: Reference(name) for name in ("nested", "flat")}
    noise = {}
    for name, (checkpoint, pictures, *_rest) in CASES.items():
        noise[name] = run_case(references[checkpoint], name, cases / name)
        print(name, noise[name])
        if args.debug and pictures:
            debug_tensors(references[checkpoint], name, args.debug)
    several = {"nested": "several_images", "flat": "flat_several_images"}
    moved = {name: sensitivity(reference, several[name]) for name, reference in references.items()}
    print(moved)
    write_json(
        PARITY / "manifest.json",
        {
            "command": "python tools/golden/parity.py",
            "seed": SEED,
            "versions": versions(),
            "attention": ATTENTION,
            "dtype": "float32",
            "threads": 1,
            "tolerance": {
                "prompt_ids": "equal",
                "pixel_values": "equal",
                "logits": 1e-4,
                "gradients_relative": 1e-4,
                "greedy_ids": "equal",
            },
            "images": images,
            "noise_float32_against_float64": noise,
            "logits_moved_by_mistakes": moved,
        },
    )


if __name__ == "__main__":
    main()
