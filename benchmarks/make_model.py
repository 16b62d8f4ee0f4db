"""Makes a model with random weights and rows to train it on, both from a fixed seed.

    python benchmarks/make_model.py OUT [--family qwen2_5_vl] [--shape 39m] [--rows 16] [--image-px 336] [--prompt-tokens 192]

OUT/model is a folder as the family has it on the Hugging Face hub (float32); OUT/rows.jsonl are VLM-R1's rows, their
images in OUT/images. Every prompt has exactly --prompt-tokens tokens, those of its image included; --image-px 0
makes rows of text alone. Weights are drawn from N(0, 1/fan_in): the next token is then nearly anything, and
answers differ.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flop import Work
from shapes import (
    DEFAULT_FAMILY, FAMILIES, PAD, PICTURE, PRETOKENS, SHAPES_BY_FAMILY, SPECIAL, TURN, Shape, constant, tensors, write_settings,
)  # fmt: skip

SEED = 20260


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


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """All tensors by their name in the hub's files, drawn from N(0, 1/fan_in)."""
    rng = np.random.default_rng(SEED)

    def filled(name: str, dims: tuple[int, ...]) -> np.ndarray:
        value = constant(name, dims)
        if value is not None:
            return np.full(dims, value, np.float32)
        return rng.standard_normal(dims, dtype=np.float32) / np.float32(math.sqrt(math.prod(dims[1:])))

    return {name: filled(name, dims) for name, dims in tensors(shape).items()}


def write_model(folder: Path, shape: Shape) -> tuple[Tokenizer, int]:
    """Writes the model folder; gives its tokenizer and number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(shape.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_settings(folder, shape, tokenizer.token_to_id, "float32")
    made = weights(shape)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return tokenizer, sum(tensor.size for tensor in made.values())


def draw_image(draw: random.Random, side: int) -> Image.Image:
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


def question(draw: random.Random, tokenizer: Tokenizer, work: Work) -> str:
    """A question that makes the prompt exactly `work.prompt_tokens` tokens long."""
    shown = PICTURE.format(PAD * work.image_tokens) if work.image_px else ""

    def length(text: str) -> int:
        return len(tokenizer.encode(TURN.format(shown + text)).ids)

    text = "What is in the picture?"
    missing = work.prompt_tokens - length(text)
    if missing < 0:
        raise SystemExit(f"--prompt-tokens: expected at least {length(text)}, got {work.prompt_tokens}")
    words = sorted(w for w in tokenizer.get_vocab() if w.startswith("Ġ") and w[1:].isascii() and w[1:].isalpha())
    text += "".join(" " + word[1:] for word in draw.choices(words, k=missing))
    if length(text) != work.prompt_tokens:
        raise SystemExit(f"a question of {length(text)} tokens, expected {work.prompt_tokens}")
    return text


def write_rows(out: Path, tokenizer: Tokenizer, rows: int, work: Work) -> None:
    """Writes `rows.jsonl` and its images, which are square."""
    if work.image_px % work.token_px:
        raise SystemExit(f"--image-px: expected a multiple of {work.token_px}, got {work.image_px}")
    draw = random.Random(SEED)
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(rows):
        text = question(draw, tokenizer, work)
        row = {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "a"}]}
        if work.image_px:
            row["image"] = f"{index}.png"
            draw_image(draw, work.image_px).save(out / "images" / row["image"])
        lines.append(json.dumps(row) + "\n")
    (out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default=DEFAULT_FAMILY)
    parser.add_argument("--shape", choices=("39m", "tiny"), default="39m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--image-px", type=int, help="without it, 144 tokens: 336 with patches of 14 px, 384 with 16")
    parser.add_argument("--prompt-tokens", type=int, default=192)
    args = parser.parse_args()
    family = FAMILIES[args.family]
    image_px = family.image_px if args.image_px is None else args.image_px
    tokenizer, parameters = write_model(args.out / "model", SHAPES_BY_FAMILY[args.family][args.shape])
    write_rows(args.out, tokenizer, args.rows, Work.of(family, image_px=image_px, prompt_tokens=args.prompt_tokens))
    print(f"{args.out}: {parameters:,} parameters, {args.rows} rows")


if __name__ == "__main__":
    main()
