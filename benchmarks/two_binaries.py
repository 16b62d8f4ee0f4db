"""A GRPO step of two builds of ours, in turns: is the one slower, or larger, than the other?

    python benchmarks/two_binaries.py --binary target/release/vlm-r1 --other OLD/vlm-r1   # about 9 minutes on two cores

Each turn runs both, a process each, the one that went second going first in the next turn. The table shows the median over turns
of the paired ratio (this build / the other), with a 95 % bootstrap interval. "Within 3 %" holds unless the whole interval is above
1.03. Work, model and settings are those of grpo_step.py. Needs numpy, pillow, safetensors, tokenizers.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median

import common
from common import Failure, run_ours
from flop import Work
from grpo_step import SHAPE, Plan, write_data

# Warm-up and measured steps of a process.
STEPS = {"float32": (1, 2), "bfloat16": (1, 4)}
RESAMPLES = 10_000
LIMIT = 1.03


def interval(ratios: list[float]) -> tuple[float, float]:
    """The middle 95 % of medians of resampled turns."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def row(name: str, this: list[float], other: list[float], unit: str) -> str:
    ratios = [a / b for a, b in zip(this, other, strict=True)]
    least, most = interval(ratios)
    verdict = "yes" if least <= LIMIT else "NO"
    return f"| {name} | {median(this):.3f} {unit} | {median(other):.3f} {unit} | {median(ratios):.3f} ({least:.3f} to {most:.3f}) | {verdict} |"


def compare(args) -> list[str]:
    work = Work()
    write_data(args.data, SHAPE, work, rows=32)
    lines = ["| | this | other | ratio (95 %) | within 3 % |", "|---|---|---|---|---|"]
    for dtype in args.dtypes:
        secs, peaks = {"this": [], "other": []}, {"this": [], "other": []}
        for turn in range(args.turns):
            pair = [("this", args.binary), ("other", args.other)]
            for name, binary in pair if turn % 2 == 0 else pair[::-1]:
                run = run_ours(common.find_binary(binary), args.data, work, dtype, args.threads, *STEPS[dtype])
                secs[name].append(median(run.secs))
                peaks[name].append(run.peak_bytes / 2**30)
            Plan.say(f"{dtype} {turn + 1}/{args.turns}: {secs['this'][-1]:.3f} s, other {secs['other'][-1]:.3f} s")
        lines.append(row(f"{dtype}, a step", secs["this"], secs["other"], "s"))
        lines.append(row(f"{dtype}, peak memory", peaks["this"], peaks["other"], "GiB"))
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--binary", type=Path, help="this build; without it, target/release/vlm-r1")
        parser.add_argument("--other", type=Path, required=True, help="the build to compare with")
        parser.add_argument("--turns", type=int, default=10)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--dtypes", nargs="+", choices=tuple(STEPS), default=list(STEPS))
        parser.add_argument("--data", type=Path, default=Path(temporary) / "data")
        args = parser.parse_args()
        try:
            print("\n".join(compare(args)))
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from failure


if __name__ == "__main__":
    main()
