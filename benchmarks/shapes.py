"""Sizes and settings of the models, by family, without weights: needs nothing but Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MERGE = 2
WINDOW_PX = 112
# Tokens of a merged patch along a side of the benchmark's images.
SIDE_TOKENS = 12


@dataclass(frozen=True)
class Family:
    """How the files of a family name and set what all have."""

    title: str
    architecture: str
    processor: str
    patch_px: int
    # What the names of tensors begin with: text model, vision tower.
    text: str
    vision: str
    # Linear layers of an MLP in the tower, the narrowing one last, and of a merger.
    vision_mlp: tuple[str, ...]
    merger: tuple[str, str]
    merger_norm: str
    # Whether the tower has LayerNorms, which have a bias, and not RMSNorms.
    has_layer_norms: bool
    qkv_bias: bool
    # Norms of the queries and keys of a head.
    has_head_norms: bool
    patch_bias: bool

    @property
    def token_px(self) -> int:
        return self.patch_px * MERGE

    @property
    def image_px(self) -> int:
        """Side of the benchmark's images: as many tokens in every family."""
        return SIDE_TOKENS * self.token_px


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", 14, "model", "visual",
        ("gate_proj", "up_proj", "down_proj"), ("mlp.0", "mlp.2"), "ln_q",
        has_layer_norms=False, qkv_bias=True, has_head_norms=False, patch_bias=False,
    ),
    "qwen2_vl": Family(
        "Qwen2-VL", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", 14, "model", "visual",
        ("fc1", "fc2"), ("mlp.0", "mlp.2"), "ln_q",
        has_layer_norms=True, qkv_bias=True, has_head_norms=False, patch_bias=False,
    ),
    "qwen3_vl": Family(
        "Qwen3-VL", "Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", 16, "model.language_model", "model.visual",
        ("linear_fc1", "linear_fc2"), ("linear_fc1", "linear_fc2"), "norm",
        has_layer_norms=True, qkv_bias=False, has_head_norms=True, patch_bias=True,
    ),
}  # fmt: skip
DEFAULT_FAMILY = "qwen2_5_vl"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

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
    # Blocks of the tower that attend over the whole image, the others within windows; without it, all do.
    full_attention: tuple[int, ...] | None
    # Whether the head is the embedding.
    tied: bool = True
    family_name: str = DEFAULT_FAMILY
    # Rows of the tower's table of positions, a square.
    positions: int = 0
    # Blocks of the tower whose outputs, merged, are added after the first text layers.
    deepstack: tuple[int, ...] = ()

    @property
    def family(self) -> Family:
        return FAMILIES[self.family_name]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        return self.head_dim * self.kv_heads

    @property
    def merged_width(self) -> int:
        return self.vision_hidden * MERGE**2

    @property
    def num_full_attention(self) -> int:
        return self.vision_depth if self.full_attention is None else len(self.full_attention)


SHAPES = {
    "39m": Shape(512, 8, 8, 2, 1408, 8192, 320, 8, 4, 864, (3, 7)),
    "tiny": Shape(64, 2, 2, 1, 128, 1024, 32, 2, 2, 64, (1,)),
    # Qwen2.5-VL-3B-Instruct and -7B-Instruct.
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, 1280, 32, 16, 3420, (7, 15, 23, 31)),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, 1280, 32, 16, 3420, (7, 15, 23, 31), tied=False),
}
# The sizes that every family has: as many numbers within 6 %. Qwen3-VL's mergers of the deepstack take them from the text model's MLP.
SHAPES_BY_FAMILY = {
    "qwen2_5_vl": SHAPES,
    "qwen2_vl": {
        "39m": Shape(512, 8, 8, 2, 1408, 8192, 320, 8, 4, 1280, None, family_name="qwen2_vl"),
        "tiny": Shape(64, 2, 2, 1, 128, 1024, 32, 2, 2, 128, None, family_name="qwen2_vl"),
    },
    "qwen3_vl": {
        "39m": Shape(512, 8, 8, 2, 1024, 8192, 320, 8, 4, 1280, None, family_name="qwen3_vl", positions=576, deepstack=(1, 3, 5)),
        "tiny": Shape(64, 2, 2, 1, 128, 1024, 32, 2, 2, 128, None, family_name="qwen3_vl", positions=64, deepstack=(0, 1)),
    },
}  # fmt: skip

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


def text_config(shape: Shape, token) -> dict:
    """What the text model of every family has, in the order of the hub's Qwen2.5-VL."""
    return {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.mlp, "max_position_embeddings": 32768, "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": sections(shape, 2, 3, 3)},
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": shape.tied, "use_cache": True,
        "vocab_size": shape.vocab, "bos_token_id": token(END_OF_TEXT), "eos_token_id": token(END_OF_TURN),
    }  # fmt: skip


def sections(shape: Shape, *eighths: float) -> list[int]:
    """Rotary frequencies of time, height and width, from their eighths of half a head."""
    return [int(shape.head_dim // 2 * part / 8) for part in eighths]


def qwen2_config(shape: Shape, token, dtype: str) -> dict:
    """`config.json` in the flat layout of the hub's Qwen2-VL and Qwen2.5-VL."""
    is_older = shape.family_name == "qwen2_vl"
    return {
        "architectures": [shape.family.architecture], "model_type": shape.family_name, "torch_dtype": dtype,
        **text_config(shape, token),
        "vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"), "image_token_id": token(PAD), "video_token_id": token("<|video_pad|>"),
        "vision_config": qwen2_vision_config(shape) if is_older else qwen2_5_vision_config(shape),
    }  # fmt: skip


def qwen2_vision_config(shape: Shape) -> dict:
    return {
        "depth": shape.vision_depth, "embed_dim": shape.vision_hidden, "mlp_ratio": shape.vision_mlp // shape.vision_hidden,
        "num_heads": shape.vision_heads, "in_chans": 3, "hidden_size": shape.hidden, "patch_size": shape.family.patch_px,
        "spatial_merge_size": MERGE, "spatial_patch_size": shape.family.patch_px, "temporal_patch_size": 2,
    }  # fmt: skip


def qwen2_5_vision_config(shape: Shape) -> dict:
    return {
        "depth": shape.vision_depth, "hidden_size": shape.vision_hidden, "num_heads": shape.vision_heads,
        "intermediate_size": shape.vision_mlp, "out_hidden_size": shape.hidden, "hidden_act": "silu",
        "in_chans": 3, "patch_size": shape.family.patch_px, "spatial_patch_size": shape.family.patch_px,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": WINDOW_PX,
        "fullatt_block_indexes": list(shape.full_attention),
    }  # fmt: skip


def qwen3_config(shape: Shape, token, dtype: str) -> dict:
    """`config.json` in the nested layout of the hub's Qwen3-VL."""
    text = text_config(shape, token)
    for key in ("max_window_layers", "sliding_window", "use_sliding_window"):
        del text[key]
    rope = {"mrope_interleaved": True, "mrope_section": sections(shape, 3, 2.5, 2.5), "rope_type": "default"}
    return {
        "architectures": [shape.family.architecture], "image_token_id": token(PAD), "model_type": shape.family_name,
        "text_config": {
            **text, "attention_bias": False, "dtype": dtype, "head_dim": shape.head_dim, "model_type": "qwen3_vl_text",
            "rope_scaling": rope, "rope_theta": 5000000,
        },
        "tie_word_embeddings": shape.tied, "video_token_id": token("<|video_pad|>"),
        "vision_config": {
            "deepstack_visual_indexes": list(shape.deepstack), "depth": shape.vision_depth,
            "hidden_act": "gelu_pytorch_tanh", "hidden_size": shape.vision_hidden, "in_channels": 3,
            "initializer_range": 0.02, "intermediate_size": shape.vision_mlp, "model_type": "qwen3_vl",
            "num_heads": shape.vision_heads, "num_position_embeddings": shape.positions, "out_hidden_size": shape.hidden,
            "patch_size": shape.family.patch_px, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        },
        "vision_end_token_id": token("<|vision_end|>"), "vision_start_token_id": token("<|vision_start|>"),
    }  # fmt: skip


def config(shape: Shape, token, dtype: str) -> dict:
    """`config.json` in the layout of the family on the hub."""
    make = qwen3_config if shape.family_name == "qwen3_vl" else qwen2_config
    return make(shape, token, dtype)


def mergers(shape: Shape) -> list[str]:
    names = [f"deepstack_merger_list.{i}" for i in range(len(shape.deepstack))]
    return [f"{shape.family.vision}.{name}" for name in ("merger", *names)]


def blocks(shape: Shape) -> list[str]:
    return [f"{shape.family.vision}.blocks.{i}" for i in range(shape.vision_depth)]


def text_layers(shape: Shape) -> list[str]:
    return [f"{shape.family.text}.layers.{i}" for i in range(shape.layers)]


def linears(shape: Shape) -> dict[str, tuple[int, int, bool]]:
    """Output width, input width and bias of every linear layer, by name without `.weight`."""
    found, family = {}, shape.family
    for merger in mergers(shape):
        found[f"{merger}.{family.merger[0]}"] = (shape.merged_width, shape.merged_width, True)
        found[f"{merger}.{family.merger[1]}"] = (shape.hidden, shape.merged_width, True)
    for block in blocks(shape):
        found[f"{block}.attn.qkv"] = (3 * shape.vision_hidden, shape.vision_hidden, True)
        found[f"{block}.attn.proj"] = (shape.vision_hidden, shape.vision_hidden, True)
        *widening, narrowing = family.vision_mlp
        for name in widening:
            found[f"{block}.mlp.{name}"] = (shape.vision_mlp, shape.vision_hidden, True)
        found[f"{block}.mlp.{narrowing}"] = (shape.vision_hidden, shape.vision_mlp, True)
    for layer in text_layers(shape):
        found[f"{layer}.self_attn.q_proj"] = (shape.hidden, shape.hidden, family.qkv_bias)
        found[f"{layer}.self_attn.k_proj"] = (shape.kv_width, shape.hidden, family.qkv_bias)
        found[f"{layer}.self_attn.v_proj"] = (shape.kv_width, shape.hidden, family.qkv_bias)
        found[f"{layer}.self_attn.o_proj"] = (shape.hidden, shape.hidden, False)
        found[f"{layer}.mlp.gate_proj"] = (shape.mlp, shape.hidden, False)
        found[f"{layer}.mlp.up_proj"] = (shape.mlp, shape.hidden, False)
        found[f"{layer}.mlp.down_proj"] = (shape.hidden, shape.mlp, False)
    return found


def norms(shape: Shape) -> dict[str, tuple[int, bool]]:
    """Width and bias of every norm, by name without `.weight`."""
    family, bias = shape.family, shape.family.has_layer_norms
    merger, *levels = mergers(shape)
    found = {f"{merger}.{family.merger_norm}": (shape.vision_hidden, bias)}
    # Those of the deepstack come after the patches were merged.
    found |= {f"{level}.{family.merger_norm}": (shape.merged_width, bias) for level in levels}
    found[f"{family.text}.norm"] = (shape.hidden, False)
    for block in blocks(shape):
        found |= {f"{block}.norm{n}": (shape.vision_hidden, bias) for n in (1, 2)}
    for layer in text_layers(shape):
        found |= {f"{layer}.{n}_layernorm": (shape.hidden, False) for n in ("input", "post_attention")}
        if family.has_head_norms:
            found |= {f"{layer}.self_attn.{n}_norm": (shape.head_dim, False) for n in "qk"}
    return found


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Sizes of all tensors by their name in the hub's files."""
    family = shape.family
    found = {f"{family.vision}.patch_embed.proj.weight": (shape.vision_hidden, 3, 2, family.patch_px, family.patch_px)}
    if family.patch_bias:
        found[f"{family.vision}.patch_embed.proj.bias"] = (shape.vision_hidden,)
    if shape.positions:
        found[f"{family.vision}.pos_embed.weight"] = (shape.positions, shape.vision_hidden)
    found[f"{family.text}.embed_tokens.weight"] = (shape.vocab, shape.hidden)
    for name, (out, fan_in, bias) in linears(shape).items():
        found[f"{name}.weight"] = (out, fan_in)
        if bias:
            found[f"{name}.bias"] = (out,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocab, shape.hidden)
    for name, (width, bias) in norms(shape).items():
        found[f"{name}.weight"] = (width,)
        if bias:
            found[f"{name}.bias"] = (width,)
    return found


def constant(name: str, dims: tuple[int, ...]) -> float | None:
    """What all numbers of a tensor are: 0 for biases, 1 for norms; none where they are drawn."""
    if len(dims) > 1:
        return None
    return 0.0 if name.endswith(".bias") else 1.0


def preprocessor(shape: Shape) -> dict:
    """`preprocessor_config.json`; images of 4 tokens and more keep their size."""
    family = shape.family
    sides = {"patch_size": family.patch_px, "temporal_patch_size": 2, "merge_size": MERGE}
    if shape.family_name == "qwen3_vl":
        return {
            "size": {"longest_edge": 16777216, "shortest_edge": 4 * family.token_px**2}, **sides,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "processor_class": family.processor, "image_processor_type": "Qwen2VLImageProcessorFast",
        }  # fmt: skip
    return {
        "min_pixels": 3136, "max_pixels": 12845056, **sides, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": family.processor,
    }  # fmt: skip


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
    write_json(folder / "preprocessor_config.json", preprocessor(shape))
    ends = {"eos_token_id": [token(END_OF_TURN), token(END_OF_TEXT)], "pad_token_id": token(END_OF_TEXT)}
    write_json(folder / "generation_config.json", {"bos_token_id": token(END_OF_TEXT), **ends})
