"""Runs the tiny checkpoints of the families beside Qwen2.5-VL and records what the Rust models must reproduce.

For each model type, under `golden/families/<model_type>`: `cases` in the form of `golden/parity/cases`, with
deepstack features where the family has them and bfloat16 logits for one case; `lora`, as `golden/lora`; `manifest.json`
with the rounding noise and with how far each of a list of mistakes moves a log-probability. A golden file is worth what
it tells apart: the script fails when a mistake, or the negative of the images, moves too little.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path

import peft
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

import lora
from common import FAMILIES, completion_logprobs, deterministic, versions, write_json
from parity_common import ANSWER, ATTENTION, LONG, Case, Reference, run_case

SEED = 7
MODEL_TYPES = ("qwen2_vl", "qwen3_vl")
NOISE_BELOW = 2e-5
MISTAKE_MOVES = 0.02
NEGATIVE_MOVES = 0.2

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
    "hub_one_image": Case("hub", ["scene.png"], LONG, ANSWER, True),
    "hub_several_images": Case("hub", ["tall.png", "small.png"], "Compare these pictures.", "Both are small.", False),
    "hub_text_only": Case("hub", [], "The quick brown fox", " jumps over the lazy dog.", False),
}  # fmt: skip
BF16_CASE = "one_image"
MISTAKEN = {"nested": "several_images", "hub": "hub_several_images"}

# name: (case, settings of the adapter)
ADAPTERS = {
    "language": ("one_image", {"target_modules": lora.LANGUAGE, "r": 2, "lora_alpha": 4}),
    "hub": ("hub_one_image", {"target_modules": lora.LANGUAGE, "r": 2, "lora_alpha": 3, "use_rslora": True}),
}


@contextlib.contextmanager
def replaced(*changes):
    """Sets attributes, (owner, name, value) each, and puts the old ones back."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def zeroed(*parameters):
    """The parameters' values as zeros."""
    return replaced(*((parameter, "data", torch.zeros_like(parameter.data)) for parameter in parameters))


def alternating_heads(key_values: torch.Tensor, repeats: int) -> torch.Tensor:
    """`repeat_kv` with the heads 0 1 0 1 in place of 0 0 1 1."""
    return key_values.repeat(1, repeats, 1, 1)


def transposed_merge(merger) -> callable:
    """The merger with the four patches of each square in column order."""

    def forward(x):
        columns_first = x.view(-1, 4, x.shape[-1])[:, [0, 2, 1, 3]].reshape(x.shape)
        return type(merger).forward(merger, columns_first)

    return forward


def one_sequence(function):
    """Attention bounds that let all images see each other."""

    def bounds(*args, **kwargs):
        seqlens, longest = function(*args, **kwargs)
        return seqlens[[0, -1]], longest

    return bounds


def transposed_positions(function):
    """Patch positions with rows and columns exchanged."""
    return lambda *args, **kwargs: function(*args, **kwargs).flip(-1)


def shared_mistakes(model, modeling) -> dict:
    """Mistakes that both families can suffer; the text model is M-RoPE over Qwen's decoder in each."""
    visual, text = model.model.visual, model.model.language_model
    rotary, attentions = text.rotary_emb, [layer.self_attn for layer in text.layers]
    blocks = visual.blocks
    attention_biases = [p for b in blocks for p in (b.attn.qkv.bias, b.attn.proj.bias)]
    mlp_biases = [p for b in blocks for n, p in b.mlp.named_parameters() if n.endswith("bias")]
    recompose = rotary.recomposition_frequencies
    vision_rotary = visual.rotary_pos_emb
    return {
        "height and width of M-RoPE exchanged": replaced(
            (rotary, "recomposition_frequencies", lambda freq: recompose(freq[[0, 2, 1]].clone()))
        ),
        "time in place of height": replaced(
            (rotary, "recomposition_frequencies", lambda freq: recompose(freq[[0, 0, 2]].clone()))
        ),
        "text rotary base 1e6": replaced(
            (rotary, "inv_freq", 1e6 ** -(torch.arange(len(rotary.inv_freq)) / len(rotary.inv_freq)))
        ),
        "key heads repeated as 0 1 0 1": replaced((modeling, "repeat_kv", alternating_heads)),
        "vision positions transposed": replaced(
            (modeling, "get_vision_position_ids", transposed_positions(modeling.get_vision_position_ids))
        ),
        "vision rotary left out": replaced((vision_rotary, "inv_freq", torch.zeros_like(vision_rotary.inv_freq))),
        "images see each other": replaced(
            (modeling, "get_vision_attention_seqlens", one_sequence(modeling.get_vision_attention_seqlens))
        ),
        "merger takes columns first": replaced((visual.merger, "forward", transposed_merge(visual.merger))),
        "biases of vision norms left out": zeroed(*(n.bias for b in blocks for n in (b.norm1, b.norm2))),
        "biases of vision attention left out": zeroed(*attention_biases),
        "biases of vision MLPs left out": zeroed(*mlp_biases),
        "last vision block left out": replaced((blocks[-1], "forward", lambda x, **_: x)),
        "last text layer left out": replaced((text.layers[-1], "forward", lambda x, **_: x)),
        "attention scaled as for heads of 4": replaced(*((a, "scaling", 0.5) for a in attentions)),
    }


def qwen2_vl_mistakes(model) -> tuple[dict, dict]:
    visual, text = model.model.visual, model.model.language_model
    rotary, section = text.rotary_emb, text.rotary_emb.mrope_section
    text_biases = [p for n, p in text.named_parameters() if n.endswith("_proj.bias")]
    mistakes = shared_mistakes(model, modeling_qwen2_vl) | {
        "sections [1, 1, 2] of M-RoPE": replaced((rotary, "mrope_section", [1, 1, 2])),
        "sections of M-RoPE interleaved": replaced(
            (rotary, "recomposition_frequencies", lambda freq: interleaved_mrope(freq, section))
        ),
        "biases of queries, keys and values left out": zeroed(*text_biases),
        "bias of the merger's norm left out": zeroed(visual.merger.ln_q.bias),
    }
    gelu = {
        "GELU in place of quick GELU": replaced(*((b.mlp, "act", torch.nn.GELU()) for b in visual.blocks)),
        "tanh GELU in the merger": replaced((visual.merger.mlp[1], "approximate", "tanh")),
    }
    return mistakes, gelu


def interleaved_mrope(freq: torch.Tensor, section: list[int]) -> torch.Tensor:
    rows = freq[0].clone()
    for axis in (1, 2):
        rows[..., axis : 3 * section[axis] : 3] = freq[axis, ..., axis : 3 * section[axis] : 3]
    return torch.cat([rows, rows], dim=-1)


def chunked_mrope(freq: torch.Tensor, section: list[int]) -> torch.Tensor:
    rows = torch.cat([part[axis] for axis, part in enumerate(freq.split(section, dim=-1))], dim=-1)
    return torch.cat([rows, rows], dim=-1)


def nearest(indices_and_weights):
    """The table's nearest row in place of the weighted four."""

    def resample(*args, **kwargs):
        indices, weights = indices_and_weights(*args, **kwargs)
        return indices, torch.nn.functional.one_hot(weights.argmax(1), weights.shape[1]).to(weights.dtype)

    return resample


def in_raster_order(indices_and_weights):
    """The patches in rows of the image in place of rows of merged squares."""
    return lambda *args, **kwargs: indices_and_weights(*args, **(kwargs | {"spatial_merge_size": 1}))


def without_resampling(grid_thw, num_grid_per_side, spatial_merge_size=1, **_):
    """The rows and columns of the image themselves, as far as the table goes."""
    positions = modeling_qwen3_vl.get_vision_position_ids(grid_thw, spatial_merge_size)
    rows, columns = positions.clamp(max=num_grid_per_side - 1).T
    indices = rows * num_grid_per_side + columns
    return indices[:, None], torch.ones(len(indices), 1)


def qwen3_vl_mistakes(model) -> tuple[dict, dict]:
    visual, text = model.model.visual, model.model.language_model
    rotary, section = text.rotary_emb, text.rotary_emb.mrope_section
    taps = modeling_qwen3_vl.get_vision_interpolation_indices_and_weights
    name = "get_vision_interpolation_indices_and_weights"
    side = visual.num_grid_per_side
    table = visual.pos_embed.weight
    add, levels = text._deepstack_process, list(visual.deepstack_visual_indexes)
    attentions = [layer.self_attn for layer in text.layers]
    norms = [(a.q_norm, a.k_norm) for a in attentions]
    off = 1 if levels[-1] + 1 < len(visual.blocks) else -1
    other_levels = [level + off for level in levels]

    def add_if_given(hidden, masks, embeds):
        return hidden if embeds is None else add(hidden, masks, embeds)

    def forward_with(change):
        forward = type(text).forward

        def changed(*args, **kwargs):
            embeds = kwargs.get("deepstack_visual_embeds")
            if embeds is not None:
                kwargs["deepstack_visual_embeds"] = change(embeds)
            return forward(text, *args, **kwargs)

        return replaced((text, "forward", changed), (text, "_deepstack_process", add_if_given))

    mistakes = shared_mistakes(model, modeling_qwen3_vl) | {
        "sections of M-RoPE in chunks": replaced(
            (rotary, "recomposition_frequencies", lambda freq: chunked_mrope(freq, section))
        ),
        "height's and width's sections of M-RoPE changed": replaced(
            (rotary, "mrope_section", [4, 1, 3] if section[1] != 1 else [4, 3, 1])
        ),
        "deepstack order reversed": forward_with(lambda embeds: embeds[::-1]),
        "deepstack left out": forward_with(lambda embeds: []),
        "deepstack one layer late": forward_with(lambda embeds: [None, *embeds]),
        "last deepstack level left out": forward_with(lambda embeds: embeds[:-1]),
        "deepstack read one block off": replaced((visual, "deepstack_visual_indexes", other_levels)),
        "deepstack merger takes columns first": replaced(
            *((merger, "forward", transposed_merge(merger)) for merger in visual.deepstack_merger_list)
        ),
        "position table left out": zeroed(table),
        "position table transposed": replaced(
            (table, "data", table.data.view(side, side, -1).transpose(0, 1).reshape(table.shape).clone())
        ),
        "position table not resampled": replaced((modeling_qwen3_vl, name, without_resampling)),
        "position table's nearest rows": replaced((modeling_qwen3_vl, name, nearest(taps))),
        "position table without aligned corners": replaced((visual, "interpolation_align_corners", False)),
        "position table in raster order": replaced((modeling_qwen3_vl, name, in_raster_order(taps))),
        "query and key norms exchanged": replaced(
            *((a, "q_norm", k) for a, (_, k) in zip(attentions, norms)),
            *((a, "k_norm", q) for a, (q, _) in zip(attentions, norms)),
        ),
        "query and key norms left out": replaced(
            *((a, n, torch.nn.Identity()) for a in attentions for n in ("q_norm", "k_norm"))
        ),
        "bias of the patch kernel left out": zeroed(visual.patch_embed.proj.bias),
        "biases of mergers' norms left out": zeroed(
            visual.merger.norm.bias, *(merger.norm.bias for merger in visual.deepstack_merger_list)
        ),
    }
    gelu = {
        "exact GELU in the blocks": replaced(*((b.mlp, "act_fn", torch.nn.GELU()) for b in visual.blocks)),
        "tanh GELU in the mergers": replaced(
            *((m.act_fn, "approximate", "tanh") for m in (visual.merger, *visual.deepstack_merger_list))
        ),
    }
    return mistakes, gelu


MISTAKES = {"qwen2_vl": qwen2_vl_mistakes, "qwen3_vl": qwen3_vl_mistakes}


def row_logprobs(reference: Reference, case: Case) -> torch.Tensor:
    row = reference.prepare(case.images, case.prompt, case.completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    with torch.no_grad():
        return completion_logprobs(reference.logits(row["inputs"], ids), row["completion_ids"])


def moved_by_mistakes(reference: Reference, case: Case) -> dict[str, dict[str, float]]:
    """Largest change of a log-probability under each mistake. The kind of GELU moves little: it is only reported."""
    right = row_logprobs(reference, case)
    found = []
    for mistakes in MISTAKES[reference.family](reference.model):
        moved = {}
        for mistake, change in mistakes.items():
            with change:
                moved[mistake] = (row_logprobs(reference, case) - right).abs().max().item()
        found.append(moved)
    if (row_logprobs(reference, case) - right).abs().max() != 0:
        raise SystemExit("a mistake was not taken back")
    return {"mistakes": found[0], "kinds_of_gelu": found[1]}


def moved_by_negatives(references: dict[str, Reference]) -> dict[str, float]:
    """Largest change of a log-probability when each image is replaced by its negative, by case."""
    moved = {}
    for name, case in CASES.items():
        if case.images:
            right = row_logprobs(references[case.checkpoint], case)
            opened = Image.open
            with replaced((Image, "open", lambda path: ImageOps.invert(opened(path).convert("RGB")))):
                moved[name] = (row_logprobs(references[case.checkpoint], case) - right).abs().max().item()
    return moved


def add_bf16_logits(reference: Reference, case: Case, folder: Path) -> dict[str, float]:
    """Adds transformers' own bfloat16 logits to a case's tensors; returns their distance to float32's."""
    row = reference.prepare(case.images, case.prompt, case.completion)
    ids = torch.cat([row["inputs"]["input_ids"][0], row["completion_ids"]])
    path = folder / "tensors.safetensors"
    tensors = load_file(path)
    predicting = torch.arange(len(row["inputs"]["input_ids"][0]) - 1, len(ids) - 1)
    positions = sorted({*predicting.tolist(), *range(0, len(ids), 8)})
    kept = reference.model
    reference.model = Reference.load(reference.folder).bfloat16()
    with torch.no_grad():
        logits = reference.logits(row["inputs"], ids)
    reference.model = kept
    tensors["logits_bf16"] = logits[positions].contiguous()
    save_file(tensors, path)
    difference = tensors["logits_bf16"].float() - tensors["logits"]
    return {
        "largest": difference.abs().max().item(),
        "relative": (difference.norm() / tensors["logits"].norm()).item(),
    }


def check(model_type: str, what: str, values: dict[str, float], at_least: float) -> None:
    low = {name: round(value, 4) for name, value in values.items() if value < at_least}
    if low:
        raise SystemExit(f"{model_type}: {what} must move a log-probability by {at_least}: {low}")


def run_family(model_type: str, out: Path) -> None:
    shutil.rmtree(out / "cases", ignore_errors=True)
    references = {
        name: Reference(name, FAMILIES / model_type / "checkpoints", full_pixels_below_bytes=0) for name in MISTAKEN
    }
    noise = {}
    for name, case in CASES.items():
        noise[name] = run_case(references[case.checkpoint], case, out / "cases" / name)
        if noise[name]["logprobs"] > NOISE_BELOW:
            raise SystemExit(f"{model_type}, {name}: float32 is {noise[name]['logprobs']} from float64")
    mistakes = {name: moved_by_mistakes(references[name], CASES[case]) for name, case in MISTAKEN.items()}
    negatives = moved_by_negatives(references)
    for name, moved in mistakes.items():
        check(model_type, f"{name}: a mistake", moved["mistakes"], MISTAKE_MOVES)
    check(model_type, "a negative", negatives, NEGATIVE_MOVES)
    bf16 = add_bf16_logits(references["nested"], CASES[BF16_CASE], out / "cases" / BF16_CASE)
    for name, (case_name, settings) in ADAPTERS.items():
        case = CASES[case_name]
        reference = Reference(case.checkpoint, FAMILIES / model_type / "checkpoints")
        lora.run(reference, case_name, case, settings, out / "lora" / name, "../../checkpoints")
    write_json(
        out / "manifest.json",
        {
            "command": "python tools/golden/families.py",
            "seed": SEED,
            "versions": versions() | {"peft": peft.__version__},
            "attention": ATTENTION,
            "dtype": "float32",
            "threads": 1,
            "tolerance": {
                "prompt_ids": "equal", "pixel_values": "equal", "logits": 1e-4, "logprobs": 1e-4,
                "gradients_relative": 1e-4, "greedy_ids": "equal",
            },
            "images": "../../parity/images",
            "noise_float32_against_float64": noise,
            "bfloat16_against_float32": {BF16_CASE: bf16},
            "logprobs_moved_by_mistakes": mistakes,
            "logprobs_moved_by_negatives": negatives,
        },
    )  # fmt: skip
    smallest = min(value for moved in mistakes.values() for value in moved["mistakes"].values())
    print(f"{model_type}: a mistake moves {smallest:.3f} or more, a negative {min(negatives.values()):.2f} or more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", default=MODEL_TYPES)
    args = parser.parse_args()
    for model_type in args.model_types:
        deterministic(SEED)
        run_family(model_type, FAMILIES / model_type)


if __name__ == "__main__":
    main()
