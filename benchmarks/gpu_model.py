"""Makes a Qwen2.5-VL of billions of random parameters in bf16, and rows for it, with numpy alone and in little memory.

    python benchmarks/gpu_model.py OUT --shape 3b [--rows 8] [--image-size 640 480] [--text-tokens 128]

OUT is as make_model.py makes it, but the weights lie in shards and come from a pool of normal numbers that is read over and over, from
another place for each tensor. The tokenizer knows bytes and the special tokens; its other tokens are words of four letters that
no text becomes, so that answers can be read while every letter of a prompt is a token.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import Failure
from flop import Work
from shapes import PICTURE, PRETOKENS, SHAPES, SPECIAL, TURN, Shape, constant, tensors, write_json, write_settings

SEED = 20260
BF16 = 2
SHARD_BYTES = 4 << 30
# Odd, so that rows of a tensor that is larger do not repeat.
POOL_NUMBERS = (1 << 24) + 43
# Where the special tokens of Qwen2.5 begin.
FIRST_SPECIAL = 151643
# A step between neighbours that shares no factor with the number of words, so that all differ and look mixed.
WORD_STEP = 250_007
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


def word(index: int) -> str:
    number, text = index * WORD_STEP % 26**4, ""
    for _ in range(4):
        number, letter = divmod(number, 26)
        text += LETTERS[letter]
    return text


def tokenizer(vocab: int) -> tuple[dict, dict[str, int]]:
    """`tokenizer.json` of up to `vocab` tokens, and the ids of the special ones."""
    first = min(FIRST_SPECIAL, vocab - len(SPECIAL))
    tokens = byte_letters() + [word(index) for index in range(first - 256)]
    special = {text: first + index for index, text in enumerate(SPECIAL)}
    if len(set(tokens)) != first:
        raise Failure(f"tokenizer: expected {first} different tokens, got {len(set(tokens))}")
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PRETOKENS}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    made = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": id_, "content": text, **flags, "special": True} for text, id_ in special.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "post_processor": bytes_, "decoder": bytes_,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "vocab": {text: id_ for id_, text in enumerate(tokens)}, "merges": [],
        },
    }  # fmt: skip
    return made, special


def to_bf16(numbers: np.ndarray) -> np.ndarray:
    """f32 cut to bf16; the bits."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


class Numbers:
    """bf16 numbers from N(0, 1/fan_in), a pool read in a circle."""

    def __init__(self, size: int):
        self.pool = np.random.default_rng(SEED).standard_normal(size, dtype=np.float32)
        self.scaled: dict[int, np.ndarray] = {}
        self.at = 0

    def write(self, sink, count: int, fan_in: int) -> None:
        if fan_in not in self.scaled:
            self.scaled[fan_in] = to_bf16(self.pool / np.float32(math.sqrt(fan_in)))
        pool = self.scaled[fan_in]
        while count:
            part = pool[self.at : self.at + count]
            sink.write(part.data)
            count -= len(part)
            self.at = (self.at + len(part)) % len(pool)


def model_bytes(shape: Shape) -> int:
    return BF16 * sum(math.prod(dims) for dims in tensors(shape).values())


def check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failure(f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed\nhint: name another folder with --data")


def write_shard(path: Path, sizes: dict[str, tuple[int, ...]], numbers: Numbers) -> None:
    header, start = {}, 0
    for name, dims in sizes.items():
        end = start + BF16 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
        start = end
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as sink:
        sink.write(struct.pack("<Q", len(head)) + head)
        for name, dims in sizes.items():
            value = constant(name, dims)
            if value is None:
                numbers.write(sink, math.prod(dims), math.prod(dims[1:]))
            else:
                sink.write(to_bf16(np.full(dims, value, np.float32)).data)


def write_model(folder: Path, shape: Shape, shard_bytes: int = SHARD_BYTES) -> int:
    """Writes the model folder; gives the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, model_bytes(shape) * 21 // 20)
    made, special = tokenizer(shape.vocab)
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    write_settings(folder, shape, special.__getitem__, "bfloat16")
    shards, room = [], 0
    for name, dims in tensors(shape).items():
        size = BF16 * math.prod(dims)
        if size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = dims
        room -= size
    numbers = Numbers(min(POOL_NUMBERS, model_bytes(shape) // BF16 | 1))
    place = {}
    for index, sizes in enumerate(shards, 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, sizes, numbers)
        place |= dict.fromkeys(sizes, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": model_bytes(shape)}, "weight_map": place})
    return model_bytes(shape) // BF16


def draw_image(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Colours that change slowly, under grain."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    ground = np.stack([across, down, (across + down) / 2], -1)[:, :, rng.permutation(3)]
    return (ground + rng.integers(0, 25, (height, width, 1))).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Each line begins with its filter: none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def num_tokens(text: str) -> int:
    """Of a text in ASCII: a special token is one, each other letter another."""
    for special in SPECIAL:
        text = text.replace(special, " ")
    return len(text)


def write_rows(out: Path, work: Work, rows: int) -> None:
    """Writes `rows.jsonl` with prompts of exactly `work.prompt_tokens` tokens, and their images."""
    width, height = work.image_size
    around = num_tokens(TURN.format(PICTURE.format("")))
    letters = work.prompt_tokens - work.image_tokens - around
    if letters < 1:
        raise Failure(f"prompts of {work.prompt_tokens} tokens: expected more than {work.image_tokens + around}")
    draw, rng = random.Random(SEED), np.random.default_rng(SEED)
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(rows):
        question = "".join(draw.choices(LETTERS, k=letters))
        name = f"{index}.png"
        (out / "images" / name).write_bytes(png(draw_image(rng, width, height)))
        conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]
        lines.append(json.dumps({"conversations": conversation, "image": name}) + "\n")
    (out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--image-size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--text-tokens", type=int, default=128, help="tokens of a prompt beside those of its image")
    args = parser.parse_args()
    work = Work(image_size=tuple(args.image_size))
    work = replace(work, prompt_tokens=work.image_tokens + args.text_tokens)
    try:
        parameters = write_model(args.out / "model", SHAPES[args.shape])
        write_rows(args.out, work, args.rows)
    except Failure as failure:
        raise SystemExit(f"error: {failure}") from None
    print(f"{args.out}: {parameters:,} parameters, {args.rows} rows")


if __name__ == "__main__":
    main()
