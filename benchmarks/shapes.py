"""Sizes and settings of a Qwen2.5-VL, without weights: needs nothing but Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PATCH_PX = 14
MERGE = 2
TOKEN_PX = PATCH_PX * MERGE
WINDOW_PX = 112


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    vision_mlp: int
    full_attention: tuple[int, ...]
    # Whether the head is the embedding.
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        return self.head_dim * self.kv_heads

    @property
    def merged_width(self) -> int:
        return self.vision_hidden * MERGE**2


SHAPES = {
    "39m": Shape(512, 8, 8, 2, 1408, 8192, 320, 8, 4, 864, (3, 7)),
    "tiny": Shape(64, 2, 2, 1, 128, 1024, 32, 2, 2, 64, (1,)),
    # Qwen2.5-VL-3B-Instruct and -7B-Instruct.
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, 1280, 32, 16, 3420, (7, 15, 23, 31)),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, 1280, 32, 16, 3420, (7, 15, 23, 31), tied=False),
}

# In the order of Qwen2.5's vocabulary.
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
END_OF_TEXT, END_OF_TURN, PAD = "<|endoftext|>", "<|im_end|>", "<|image_pad|>"

PRETOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

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
# What the template makes of one turn with one image, and of one without.
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "<|vision_start|>{}<|vision_end|>"


def config(shape: Shape, token, dtype: str) -> dict:
    """`config.json` in the layout of the hub's Qwen2.5-VL."""
    half = shape.head_dim // 2
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": dtype,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.mlp, "max_position_embeddings": 32768, "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8]},
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": shape.tied, "use_cache": True,
        "vocab_size": shape.vocab, "bos_token_id": token(END_OF_TEXT), "eos_token_id": token(END_OF_TURN),
        "vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"), "image_token_id": token(PAD), "video_token_id": token("<|video_pad|>"),
        "vision_config": {
            "depth": shape.vision_depth, "hidden_size": shape.vision_hidden, "num_heads": shape.vision_heads,
            "intermediate_size": shape.vision_mlp, "out_hidden_size": shape.hidden, "hidden_act": "silu",
            "in_chans": 3, "patch_size": PATCH_PX, "spatial_patch_size": PATCH_PX, "spatial_merge_size": MERGE,
            "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": WINDOW_PX,
            "fullatt_block_indexes": list(shape.full_attention),
        },
    }  # fmt: skip


def linears(shape: Shape) -> dict[str, tuple[int, int, bool]]:
    """Output width, input width and bias of every linear layer, by name without `.weight`."""
    found = {"visual.merger.mlp.0": (shape.merged_width, shape.merged_width, True)}
    found["visual.merger.mlp.2"] = (shape.hidden, shape.merged_width, True)
    for block in (f"visual.blocks.{i}" for i in range(shape.vision_depth)):
        found[f"{block}.attn.qkv"] = (3 * shape.vision_hidden, shape.vision_hidden, True)
        found[f"{block}.attn.proj"] = (shape.vision_hidden, shape.vision_hidden, True)
        found[f"{block}.mlp.gate_proj"] = (shape.vision_mlp, shape.vision_hidden, True)
        found[f"{block}.mlp.up_proj"] = (shape.vision_mlp, shape.vision_hidden, True)
        found[f"{block}.mlp.down_proj"] = (shape.vision_hidden, shape.vision_mlp, True)
    for layer in (f"model.layers.{i}" for i in range(shape.layers)):
        found[f"{layer}.self_attn.q_proj"] = (shape.hidden, shape.hidden, True)
        found[f"{layer}.self_attn.k_proj"] = (shape.kv_width, shape.hidden, True)
        found[f"{layer}.self_attn.v_proj"] = (shape.kv_width, shape.hidden, True)
        found[f"{layer}.self_attn.o_proj"] = (shape.hidden, shape.hidden, False)
        found[f"{layer}.mlp.gate_proj"] = (shape.mlp, shape.hidden, False)
        found[f"{layer}.mlp.up_proj"] = (shape.mlp, shape.hidden, False)
        found[f"{layer}.mlp.down_proj"] = (shape.hidden, shape.mlp, False)
    return found


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Sizes of all tensors by their name in the hub's files."""
    found = {
        "visual.patch_embed.proj.weight": (shape.vision_hidden, 3, 2, PATCH_PX, PATCH_PX),
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
    }
    for name, (out, fan_in, bias) in linears(shape).items():
        found[f"{name}.weight"] = (out, fan_in)
        if bias:
            found[f"{name}.bias"] = (out,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocab, shape.hidden)
    found |= {"visual.merger.ln_q.weight": (shape.vision_hidden,), "model.norm.weight": (shape.hidden,)}
    for i in range(shape.vision_depth):
        found |= {f"visual.blocks.{i}.norm{n}.weight": (shape.vision_hidden,) for n in (1, 2)}
    for i in range(shape.layers):
        found |= {f"model.layers.{i}.{n}_layernorm.weight": (shape.hidden,) for n in ("input", "post_attention")}
    return found


def constant(name: str, dims: tuple[int, ...]) -> float | None:
    """What all numbers of a tensor are: 0 for biases, 1 for norms; none where they are drawn."""
    if len(dims) > 1:
        return None
    return 0.0 if name.endswith(".bias") else 1.0


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_settings(folder: Path, shape: Shape, token, dtype: str) -> None:
    """All JSON files of a model folder but the tokenizer's; `token` gives the id of a special token."""
    write_json(folder / "config.json", config(shape, token, dtype))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False, "bos_token": None, "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False, "eos_token": END_OF_TURN, "errors": "replace",
            "model_max_length": 32768, "pad_token": END_OF_TEXT, "split_special_tokens": False,
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
        },
    )  # fmt: skip
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": PATCH_PX, "temporal_patch_size": 2,
            "merge_size": MERGE, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        },
    )  # fmt: skip
    ends = {"eos_token_id": [token(END_OF_TURN), token(END_OF_TEXT)], "pad_token_id": token(END_OF_TEXT)}
    write_json(folder / "generation_config.json", {"bos_token_id": token(END_OF_TEXT), **ends})
