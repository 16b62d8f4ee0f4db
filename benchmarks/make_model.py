"""Makes a Qwen2.5-VL with random weights and rows to train it on, both from a fixed seed.

    python benchmarks/make_model.py OUT [--shape 39m] [--rows 16] [--image-px 336] [--prompt-tokens 256]

OUT/model is a folder as on the Hugging Face hub (flat names, float32); OUT/rows.jsonl are VLM-R1's rows, their
pictures in OUT/images. Every prompt has exactly --prompt-tokens tokens, those of its picture included; --image-px 0
makes rows of text alone. Weights are drawn from N(0, 1/fan_in): the next token is then nearly anything, and
answers differ.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PATCH_PX = 14
MERGE = 2
TOKEN_PX = PATCH_PX * MERGE
WINDOW_PX = 112
SEED = 20260


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
# What the template makes of one turn with one picture, and of one without.
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "<|vision_start|>{}<|vision_end|>"


def pseudo_words(count: int) -> list[str]:
    """Words of two to four syllables: a text to learn merges from, in no language."""
    draw = random.Random(SEED)
    syllables = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s", "l")]
    return ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(count)]


def build_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE with Qwen2.5's normaliser, splitting and special tokens, of exactly `vocab` tokens."""
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENS), behavior="isolated", invert=False)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    english = "You are a helpful assistant.\nsystem\nuser\nassistant\n What is in the picture? Where is it?\n"
    words = pseudo_words(30_000)
    lines = [" " + " ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    tokenizer.train_from_iterator([english] * 200 + lines, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    if tokenizer.get_vocab_size() != vocab:
        raise SystemExit(f"tokenizer: expected {vocab} tokens, got {tokenizer.get_vocab_size()}")
    return tokenizer


def config(shape: Shape, token) -> dict:
    """`config.json` in the layout of the hub's Qwen2.5-VL."""
    half = shape.head_dim // 2
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "float32",
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.mlp, "max_position_embeddings": 32768, "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8]},
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True, "use_cache": True,
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


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """All tensors by their name in the hub's files; the head is the embedding."""
    rng = np.random.default_rng(SEED)

    def normal(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims, dtype=np.float32) / np.float32(math.sqrt(math.prod(dims[1:])))

    tensors = {
        "visual.patch_embed.proj.weight": normal(shape.vision_hidden, 3, 2, PATCH_PX, PATCH_PX),
        "model.embed_tokens.weight": normal(shape.vocab, shape.hidden),
    }
    for name, (out, fan_in, bias) in linears(shape).items():
        tensors[f"{name}.weight"] = normal(out, fan_in)
        if bias:
            tensors[f"{name}.bias"] = np.zeros(out, np.float32)
    norms = {"visual.merger.ln_q": shape.vision_hidden, "model.norm": shape.hidden}
    for i in range(shape.vision_depth):
        norms |= {f"visual.blocks.{i}.norm{n}": shape.vision_hidden for n in (1, 2)}
    for i in range(shape.layers):
        norms |= {f"model.layers.{i}.{n}_layernorm": shape.hidden for n in ("input", "post_attention")}
    return tensors | {f"{name}.weight": np.ones(width, np.float32) for name, width in norms.items()}


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, shape: Shape) -> tuple[Tokenizer, int]:
    """Writes the model folder; gives its tokenizer and number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(shape.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    token = tokenizer.token_to_id
    write_json(folder / "config.json", config(shape, token))
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
    tensors = weights(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tokenizer, sum(tensor.size for tensor in tensors.values())


def picture(draw: random.Random, side: int) -> Image.Image:
    """Shapes on a coloured ground under noise."""

    def colour() -> tuple[int, ...]:
        return tuple(draw.randrange(256) for _ in range(3))

    image = Image.new("RGB", (side, side), colour())
    canvas = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = draw.randrange(side * 3 // 4), draw.randrange(side * 3 // 4)
        box = (x, y, x + side // 4, y + side // 6)
        (canvas.ellipse if draw.random() < 0.5 else canvas.rectangle)(box, fill=colour())
    noise = np.random.default_rng(draw.randrange(2**32)).integers(-12, 13, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def question(draw: random.Random, tokenizer: Tokenizer, image_px: int, prompt_tokens: int) -> str:
    """A question that makes the prompt exactly `prompt_tokens` tokens long."""
    picture_tokens = (image_px // TOKEN_PX) ** 2
    shown = PICTURE.format(PAD * picture_tokens) if image_px else ""

    def length(text: str) -> int:
        return len(tokenizer.encode(TURN.format(shown + text)).ids)

    text = "What is in the picture?"
    missing = prompt_tokens - length(text)
    if missing < 0:
        raise SystemExit(f"--prompt-tokens: expected at least {length(text)}, got {prompt_tokens}")
    words = sorted(w for w in tokenizer.get_vocab() if w.startswith("Ġ") and w[1:].isascii() and w[1:].isalpha())
    text += "".join(" " + word[1:] for word in draw.choices(words, k=missing))
    if length(text) != prompt_tokens:
        raise SystemExit(f"a question of {length(text)} tokens, expected {prompt_tokens}")
    return text


def write_rows(out: Path, tokenizer: Tokenizer, rows: int, image_px: int, prompt_tokens: int) -> None:
    """Writes `rows.jsonl` and its pictures."""
    if image_px % TOKEN_PX:
        raise SystemExit(f"--image-px: expected a multiple of {TOKEN_PX}, got {image_px}")
    draw = random.Random(SEED)
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(rows):
        text = question(draw, tokenizer, image_px, prompt_tokens)
        row = {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "a"}]}
        if image_px:
            row["image"] = f"{index}.png"
            picture(draw, image_px).save(out / "images" / row["image"])
        lines.append(json.dumps(row) + "\n")
    (out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="39m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--image-px", type=int, default=336)
    parser.add_argument("--prompt-tokens", type=int, default=192)
    args = parser.parse_args()
    tokenizer, parameters = write_model(args.out / "model", SHAPES[args.shape])
    write_rows(args.out, tokenizer, args.rows, args.image_px, args.prompt_tokens)
    print(f"{args.out}: {parameters:,} parameters, {args.rows} rows")


if __name__ == "__main__":
    main()
