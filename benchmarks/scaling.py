"""How the time of our GRPO step grows with group size, prompt, answer and image, the prompt shared and not.

    python benchmarks/scaling.py [--dtype bfloat16] [--axes generations prompt answer image]

One prompt a step on the 39 M model of make_model.py, a process for each point and way, one after the other. Needs numpy,
pillow, safetensors, tokenizers and `make build`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median

import common
from common import BETA, HERE, Failure, run_ours
from flop import Work, step_flop
from make_model import write_model, write_rows
from shapes import SHAPES

BASE = Work(prompts=1)
# The images of the axis `image` stand in prompts that have as much text each.
IMAGE_TEXT_TOKENS = 48
AXES = {
    "generations": [replace(BASE, generations=g) for g in (2, 4, 8, 16, 32)],
    "prompt": [replace(BASE, prompt_tokens=p, image_px=112) for p in (128, 256, 512, 1024, 2048)],
    "answer": [replace(BASE, completion_tokens=c) for c in (16, 64, 128, 256)],
    "image": [
        replace(BASE, image_px=px, prompt_tokens=IMAGE_TEXT_TOKENS + (px // BASE.token_px) ** 2) for px in (112, 224, 336, 448, 672)
    ],
}
TITLES = {
    "generations": "Group size", "prompt": "Prompt length, tokens", "answer": "Answer length, tokens", "image": "Image side, px",
}  # fmt: skip
LABELS = {
    "generations": lambda w: w.generations, "prompt": lambda w: w.prompt_tokens, "answer": lambda w: w.completion_tokens,
    "image": lambda w: f"{w.image_px} ({w.image_tokens} tokens)",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Medians of a way at one point."""

    secs: float
    train: float
    rollout: float
    gib: float


def measure(args, data: Path, work: Work, share: bool) -> Point:
    run = run_ours(
        args.binary, data, work, args.dtype, args.threads, args.warmup, args.steps, {"share_prompt": share}
    )
    return Point(median(run.secs), run.phases["train"], run.phases["rollout"], run.peak_bytes / 2**30)


def table(axis: str, points: list[tuple[Work, Point, Point]]) -> list[str]:
    header = ["", "shared, s", "unshared, s", "unshared / shared", "rollout", "train", "shared, GiB", "unshared, GiB", "GFLOP/s"]
    lines = [f"## {TITLES[axis]}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for work, shared, unshared in points:
        rate = step_flop(SHAPES["39m"], work, BETA) / shared.secs / 1e9
        cells = [
            LABELS[axis](work), f"{shared.secs:.2f}", f"{unshared.secs:.2f}", f"{unshared.secs / shared.secs:.2f}",
            f"{shared.rollout:.2f} / {unshared.rollout:.2f}", f"{shared.train:.2f} / {unshared.train:.2f}",
            f"{shared.gib:.2f}", f"{unshared.gib:.2f}", f"{rate:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


def report(args, tables: list[str], note: str) -> str:
    return "\n".join([
        "# The step's time by its sizes", "",
        f"{date.today()}, commit {common.commit()}. {common.machine()}; threads: {args.threads}, {args.dtype}; {note}.",
        f"Command: `python benchmarks/scaling.py --dtype {args.dtype}`. Qwen2.5-VL shape, 39.4 M random weights. Where an axis does not say "
        f"otherwise: one prompt of {BASE.prompt_tokens} tokens with a {BASE.image_px} x {BASE.image_px} image, G {BASE.generations}, "
        f"{BASE.completion_tokens} tokens an answer, beta {BETA}; on the axis of prompts a 112 x 112 image, on that of images "
        f"{IMAGE_TEXT_TOKENS} tokens of text.", "",
        f"Medians of {args.steps} steps after {args.warmup} of warm-up. `rollout`, `train`: seconds, shared / unshared. GFLOP/s: the arithmetic of the shared "
        "step (`benchmarks/flop.py`) over its seconds.", "",
        *tables,
    ])  # fmt: skip


def run(args, data: Path) -> None:
    args.binary = common.find_binary(args.binary)
    note = common.load_note()
    tokenizer, _ = write_model(data / "model", SHAPES["39m"])
    count = sum(len(AXES[axis]) for axis in args.axes)
    print(f"plan: {count} points, shared and unshared, about {count * 28 / 60:.0f} minutes in bf16 on two idle cores", file=sys.stderr)
    start, tables = time.perf_counter(), []
    for axis in args.axes:
        points = []
        for work in AXES[axis]:
            write_rows(data, tokenizer, args.warmup + args.steps, work)
            shared, unshared = (measure(args, data, work, share) for share in (True, False))
            points.append((work, shared, unshared))
            at = f"[{time.perf_counter() - start:5.0f} s] {axis} {LABELS[axis](work)}"
            print(f"{at}: shared {shared.secs:.2f} s, unshared {unshared.secs:.2f} s", file=sys.stderr, flush=True)
        tables += table(axis, points)
    text = report(args, tables, note)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="our program; without it, target/release/vlm-r1")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scaling.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        try:
            run(args, Path(data))
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
