"""What the makers of tiny checkpoints share: tokenizer, random weights, the two folder layouts, checks.

`nested` is what transformers 5 saves: float32, one file, a head of its own. The other layout is that of the hub's
repositories: bfloat16, two shards, a tied head, more vocabulary rows than the tokenizer has tokens. Weights are drawn
at 1/sqrt(fan_in) with random norms and biases, so that every parameter matters and the logits depend on the image;
the scripts fail if they do not.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedConfig, Qwen2TokenizerFast, Qwen2VLImageProcessor

from common import FAMILIES, IM_END, deterministic, sha256, versions, write_json

VOCAB_BEFORE_SPECIAL = 560

# In the order of Qwen2.5's vocabulary; the ones marked False are ordinary added tokens there too.
SPECIAL_TOKENS = [
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
    ("<|object_ref_start|>", True), ("<|object_ref_end|>", True), ("<|box_start|>", True), ("<|box_end|>", True),
    ("<|quad_start|>", True), ("<|quad_end|>", True), ("<|vision_start|>", True), ("<|vision_end|>", True),
    ("<|vision_pad|>", True), ("<|image_pad|>", True), ("<|video_pad|>", True),
    ("<tool_call>", False), ("</tool_call>", False), ("<|fim_prefix|>", False), ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False), ("<|fim_pad|>", False), ("<|repo_name|>", False), ("<|file_sep|>", False),
]  # fmt: skip

PRETOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = """\
You are a helpful assistant. Please provide the bounding box coordinate of the region this sentence describes.
First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags.
Output the final answer in JSON format. The red circle is left of the blue square. What is in the picture?
{"bbox_2d": [12, 34, 56, 78], "label": "green triangle"} How many shapes are there? There are three small circles.
Compare these pictures and say which one is the tallest. The second picture shows a yellow star above a large box.
The answer is 42. Describe the image. Which colour is the largest object? It is at the top right, near the edge.
The quick brown fox jumps over the lazy dog. user system assistant image picture shape colour small large
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Family:
    """What differs between families."""

    model_class: type
    processor_class: type
    video_processor_class: type
    # (tokenizer, rows of the vocabulary, whether the head is tied) -> configuration
    config: Callable[[Tokenizer, int, bool], PreTrainedConfig]
    # `config.json` as the hub has it
    hub_config: Callable[[PreTrainedConfig], dict]
    # transformers 5 module name -> name in the hub's files
    hub_name: Callable[[str], str]
    # `preprocessor_config.json` as the hub has it
    preprocessor: dict
    # settings of the image processor that transformers saves
    image_processor: dict
    # `generation_config.json` of the hub, but for the ids
    hub_generation: dict
    template: str = CHAT_TEMPLATE
    special_tokens: list[tuple[str, bool]] = field(default_factory=lambda: SPECIAL_TOKENS)
    # whether the hub has the template in `chat_template.json` too
    has_template_file: bool = False
    # part of a name: standard deviation of that matrix, in place of 1/sqrt(fan_in)
    deviations: dict[str, float] = field(default_factory=dict)


def build_tokenizer(special_tokens: list[tuple[str, bool]]) -> Tokenizer:
    """A byte-level BPE with Qwen2.5's normaliser and pre-tokeniser, trained on CORPUS."""
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_BEFORE_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in special_tokens])
    return tokenizer


def randomise(model, seed: int, reserved_ids: list[int], deviations: dict[str, float]) -> None:
    """Draws every parameter; rows of `reserved_ids` are small so that greedy decoding never picks them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, std):
        return torch.randn(shape, generator=generator) * std

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            shape = parameter.shape
            if name.endswith("bias"):
                parameter.copy_(normal(shape, 0.3))
            elif parameter.dim() == 1:
                parameter.copy_(0.6 + 0.8 * torch.rand(shape, generator=generator))
            elif "embed_tokens" in name or "lm_head" in name:
                # Small beside what the layers add, so that the next token depends on more than the last one.
                parameter.copy_(normal(shape, 0.3))
                parameter[reserved_ids] *= 0.25
            elif given := [value for part, value in deviations.items() if part in name]:
                parameter.copy_(normal(shape, given[0]))
            else:
                # Queries and keys stay small: a saturated softmax would multiply rounding noise.
                gain = 0.9 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.2
                parameter.copy_(normal(shape, gain / math.sqrt(math.prod(shape[1:]))))


def image_effect(model) -> float:
    """Largest change of the last logits when one picture (a 4 x 4 grid of patches) is replaced by another."""
    config = model.config
    values = config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    generator = torch.Generator().manual_seed(1)
    grid = torch.tensor([[1, 4, 4]])
    picture = [config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id]
    ids = torch.tensor([[1, *picture, 7, 9]])
    rows = []
    for _ in range(2):
        colour = torch.randn(1, 3, 1, generator=generator).expand(16, 3, values).reshape(16, 3 * values)
        pixels = colour + 0.3 * torch.randn(16, 3 * values, generator=generator)
        types = (ids == config.image_token_id).int()
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=types)
        rows.append(out.logits[0, -1])
    return (rows[0] - rows[1]).abs().max().item()


def flat_name(name: str) -> str:
    """transformers 5 module name -> name in the hub's Qwen2.5-VL files."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def nested_state(model) -> dict[str, torch.Tensor]:
    tied = model.config.tie_word_embeddings
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if not (tied and n == "lm_head.weight")}


def write_nested(folder: Path, family: Family, model, tokenizer: Tokenizer) -> None:
    """Model and processor as `save_pretrained` writes them; names are the module's own."""
    model.save_pretrained(folder, save_original_format=False)
    tokenizer_file = folder / "tokenizer.json"
    named = ("<|endoftext|>", "<|im_start|>", IM_END)
    tokenizer.save(str(tokenizer_file))
    fast = Qwen2TokenizerFast(
        tokenizer_file=str(tokenizer_file), pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None,
        bos_token=None, model_max_length=2048,
        additional_special_tokens=[
            text for text, special in family.special_tokens if special and text not in named
        ],
    )  # fmt: skip
    processor = family.processor_class(
        image_processor=Qwen2VLImageProcessor(**family.image_processor),
        tokenizer=fast,
        video_processor=family.video_processor_class(),
        chat_template=family.template,
    )
    processor.save_pretrained(folder)
    generation_config(tokenizer, do_sample=False).save_pretrained(folder)


def generation_config(tokenizer: Tokenizer, **extra) -> GenerationConfig:
    token = tokenizer.token_to_id
    return GenerationConfig(
        bos_token_id=token("<|endoftext|>"), pad_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")], **extra,
    )  # fmt: skip


def write_hub(folder: Path, family: Family, model, tokenizer: Tokenizer) -> None:
    """The hub's layout: its names and config.json, two bf16 shards, template in tokenizer_config.json."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", family.hub_config(model.config))
    state = {family.hub_name(n): t.to(torch.bfloat16) for n, t in nested_state(model).items()}
    shards = [{n: t for n, t in sorted(state.items()) if ("visual." in n) == vision} for vision in (True, False)]
    # One layer of the text model goes to the first shard: a shard is not a component.
    shards[0].update({n: shards[1].pop(n) for n in list(shards[1]) if ".layers.0." in n})
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(t.numel() * t.element_size() for t in state.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special,
        }
        for text, special in family.special_tokens
    }  # fmt: skip
    tokenizer_config = {
        "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": [t for t, special in family.special_tokens if special and t != "<|endoftext|>"],
        "bos_token": None, "chat_template": family.template, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 2048, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    if family.has_template_file:
        write_json(folder / "chat_template.json", {"chat_template": family.template})
    write_json(folder / "preprocessor_config.json", family.preprocessor)
    generation = generation_config(tokenizer, **family.hub_generation)
    write_json(folder / "generation_config.json", json.loads(generation.to_json_string()))


def make(family: Family, name: str, seed: int, out: Path) -> dict:
    """Writes checkpoint `name` under `out` and returns its manifest entry."""
    tied = name != "nested"
    tokenizer = build_tokenizer(family.special_tokens)
    used = tokenizer.get_vocab_size()
    # The hub's vocabulary is larger than its tokenizer's; the hub's layout keeps that.
    vocab_size = used + 10 if tied else used
    config = family.config(tokenizer, vocab_size, tied)
    model = family.model_class._from_config(config, attn_implementation="eager").float().eval()
    reserved = [tokenizer.token_to_id(text) for text, _ in family.special_tokens] + list(range(used, vocab_size))
    randomise(model, seed, reserved, family.deviations)
    effect = image_effect(model)
    if effect < 0.1:
        raise SystemExit(f"{name}: replacing the image moves the logits by only {effect:.3f}")
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    (write_hub if tied else write_nested)(folder, family, model, tokenizer)
    check_loads(folder, family, model, bf16=tied)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p.read_bytes())} for p in sorted(folder.iterdir())}
    return {
        "seed": seed, "parameters": sum(t.numel() for t in nested_state(model).values()), "vocab_size": vocab_size,
        "tokenizer_vocab_size": used, "reserved_ids": reserved, "image_changes_logits_by": effect, "files": files,
    }  # fmt: skip


def check_loads(folder: Path, family: Family, model, bf16: bool) -> None:
    """Fails unless transformers reads back exactly the weights meant, with nothing missing or unexpected."""
    loaded, info = family.model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {key: list(value) for key, value in info.items() if value}
    if problems:
        raise SystemExit(f"{folder.name}: {problems}")
    expected = nested_state(model)
    for name, tensor in nested_state(loaded).items():
        want = expected[name].bfloat16().float() if bf16 else expected[name]
        if not torch.equal(tensor, want):
            raise SystemExit(f"{folder.name}: {name} differs after loading")
    stored = set().union(*(load_file(path) for path in folder.glob("*.safetensors")))
    if stored != {family.hub_name(name) if bf16 else name for name in expected}:
        raise SystemExit(f"{folder.name}: unexpected tensor names {sorted(stored)[:3]}")


def report(entries: dict) -> None:
    for name, entry in entries.items():
        size = sum(file["bytes"] for file in entry["files"].values())
        effect = entry["image_changes_logits_by"]
        print(f"{name}: {entry['parameters']} parameters, {size} bytes, image effect {effect:.2f}")


def make_family(family: Family, model_type: str, seeds: dict[str, int], doc: str) -> None:
    """Writes the checkpoints of a family to `golden/families/<model_type>/checkpoints`, or to `--out`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, default=FAMILIES / model_type / "checkpoints")
    args = parser.parse_args()
    deterministic(0)
    entries = {name: make(family, name, seed, args.out) for name, seed in seeds.items()}
    manifest = {
        "command": f"python tools/golden/tiny_{model_type}.py",
        "versions": versions(),
        "attention": "eager",
        "checkpoints": entries,
    }
    write_json(args.out / "manifest.json", manifest)
    report(entries)
