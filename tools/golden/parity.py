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

from common import PARITY, deterministic, sha256, versions, write_json
from parity_common import ANSWER, ATTENTION, LONG, Case, Reference, run_case

SEED = 7
CASES = {
    "one_image": Case("nested", ["scene.png"], LONG, ANSWER, True),
    "several_images": Case(
        "nested",
        ["wide.png", "photo.jpg", "small.png"],
        "Compare these pictures and say which one is the tallest.",
        "The second picture is the tallest.",
        True,
    ),
    "text_only": Case("nested", [], "How many shapes are there? 4 + 38 = ?", "The answer is 42.", True),
    "small_31x29": Case("nested", ["small.png"], "What is in the picture?", "A small circle.", False),
    "tall_90x333": Case("nested", ["tall.png"], "Describe the image.", "A green triangle.", False),
    "grey": Case("nested", ["grey.png"], "Which colour is the largest object?", "grey", False),
    "rgba": Case("nested", ["rgba.png"], "Is it transparent? Déjà vu!", "Yes, déjà vu.", False),
    "jpeg": Case("nested", ["photo.jpg"], "Describe the image.\nOne line.", "A yellow star.\n", False),
    "flat_one_image": Case("flat", ["scene.png"], LONG, ANSWER, True),
    "flat_several_images": Case("flat", ["tall.png", "small.png"], "Compare these pictures.", "Both are small.", False),
    "flat_text_only": Case("flat", [], "The quick brown fox", " jumps over the lazy dog.", False),
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


def sensitivity(reference: Reference, name: str) -> dict[str, float]:
    """How far the logits move under typical mistakes: a golden file is worth what it tells apart."""
    case = CASES[name]
    row = reference.prepare(case.images, case.prompt, case.completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    visual, rotary = reference.model.model.visual, reference.model.model.language_model.rotary_emb
    norm = reference.model.model.language_model.norm
    mistakes = {
        "all vision blocks full attention": (visual, "fullatt_block_indexes", [0, 1, 2, 3]),
        "all vision blocks windowed": (visual, "fullatt_block_indexes", []),
        "window of 56 px": (visual, "window_size", 56),
        "vision rotary base 1e5": (visual.rotary_pos_emb, "inv_freq", visual.rotary_pos_emb.inv_freq**1.25),
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
    case = CASES[name]
    row = reference.prepare(case.images, case.prompt, case.completion)
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
    for name, case in CASES.items():
        noise[name] = run_case(references[case.checkpoint], case, cases / name)
        print(name, noise[name])
        if args.debug and case.images:
            debug_tensors(references[case.checkpoint], name, args.debug)
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
