"""Images a second, from files to patches: ours beside Pillow and transformers.

    cargo build --release -p data --example image_speed
    python benchmarks/images.py --binary target/release/examples/image_speed

Both get the same drawn images, in files, and the same processor settings; their patches are compared in the tests of
`crates/data`, byte for byte. In turns, in processes of their own; medians of rounds. Writes `benchmarks/results/images.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageDraw

import common

SEED = 5
SHAPES = [(336, 336, "png"), (640, 480, "jpg"), (640, 480, "png"), (1280, 960, "jpg")]

THEIRS = """
import sys, time
import torch
from PIL import Image
from transformers import AutoImageProcessor
folder, threads, rounds, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
processor = AutoImageProcessor.from_pretrained(folder)
for _ in range(int(rounds)):
    start = time.perf_counter()
    for file in files:
        with Image.open(file) as image:
            out = processor(images=[image.convert("RGB")], return_tensors="pt")
        assert out["pixel_values"].numel()
    print(time.perf_counter() - start)
"""

PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "min_pixels": 3136, "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255,
}  # fmt: skip


def draw(path: Path, width: int, height: int, rng: np.random.Generator) -> None:
    """Smooth colours, grain and shapes: as hard to decode as a photograph, nearly."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    pixels = np.stack([across, down, (across + down) / 2], -1) + rng.integers(0, 25, (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        side = int(rng.integers(20, height // 3))
        pen.ellipse((x, y, x + side, y + side), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def seconds(command: list[str], threads: int) -> list[float]:
    done = subprocess.run(command, env=common.environment(threads), stdout=subprocess.PIPE, check=True, text=True)
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=common.ROOT / "target/release/examples/image_speed")
    parser.add_argument("--model", type=Path, default=common.ROOT / "golden/parity/checkpoints/nested")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=common.HERE / "results" / "images.md")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Images: from files to patches", "",
        f"`benchmarks/images.py`, {args.images} drawn images a round, median of {2 * args.rounds} rounds, images a second.",
        f"{common.machine()}", "",
        "| images | Pillow + transformers, 1 thread | ours, 1 thread | ratio | "
        f"Pillow + transformers, {cores} threads | ours, {cores} threads | ratio |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        model.mkdir()
        for file in args.model.iterdir():
            if file.suffix != ".safetensors" and file.name != "processor_config.json":
                (model / file.name).write_bytes(file.read_bytes())
        (model / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        rng = np.random.default_rng(SEED)
        for width, height, kind in SHAPES:
            files = [folder / f"{width}_{index}.{kind}" for index in range(args.images)]
            for file in files:
                draw(file, width, height, rng)
            row = [f"{width} x {height} {kind}"]
            for threads in (1, cores):
                asked = [str(model), str(threads), str(args.rounds), *map(str, files)]
                ours, theirs = [], []
                for _ in range(2):
                    ours += seconds([str(args.binary), *asked], threads)
                    theirs += seconds([sys.executable, "-c", THEIRS, *asked], threads)
                speeds = [args.images / median(theirs), args.images / median(ours)]
                row += [f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{speeds[1] / speeds[0]:.1f}"]
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    args.results.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
