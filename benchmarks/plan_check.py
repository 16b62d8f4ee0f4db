"""What `vlm-r1 plan` foretells beside what a run takes: the most live bytes of tensors, and seconds of a step.

    python benchmarks/plan_check.py                # about 4 minutes on two cores

The work of a step is that of grpo_step.py. Fails where memory is more than 15 % off, after writing the table; time is told, not judged:
it depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from datetime import date
from pathlib import Path
from statistics import median

import common
from common import HERE, Failure, ours_command, run_ours
from flop import Work
from grpo_step import SHAPE, write_data

LORA = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
# The columns of the plan, and what makes a run one of them.
WAYS = (
    ("full", {}),
    ("frozen tower", {"freeze_vision_modules": True}),
    ("LoRA", {"use_peft": True, **LORA}),
)
# Type, activations recomputed.
RUNS = (("float32", False), ("bfloat16", False), ("float32", True))
STEPS = (1, 2)
ROWS = 8
MOST_OFF = 0.15
NAME_WIDTH = 28
MIB = 2**20


def foretold(binary: Path, args, work: Work, dtype: str, extra: dict) -> dict[str, list[float]]:
    """The lines of numbers that `plan` prints, by name."""
    extra = {**LORA, "num_threads": args.threads, **extra}
    command = ours_command(binary, args.data, args.data / "plan", work, dtype, sum(STEPS), extra)
    command[1] = "plan"
    done = subprocess.run(command, env=common.environment(args.threads), capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"plan: {done.stderr.strip()}")
    lines = {}
    for line in done.stdout.splitlines():
        try:
            lines[line[:NAME_WIDTH].strip()] = [float(cell) for cell in line[NAME_WIDTH:].split()]
        except ValueError:
            continue
    return lines


def measure(args) -> None:
    binary, work = common.find_binary(args.binary), Work()
    commit, note = common.commit(), common.load_note()
    write_data(args.data, SHAPE, work, ROWS)
    rows, worst = [], 0.0
    for dtype, recompute in RUNS:
        common_extra = {"gradient_checkpointing": recompute}
        plan = foretold(binary, args, work, dtype, common_extra)
        for column, (way, extra) in enumerate(WAYS):
            run = run_ours(binary, args.data, work, dtype, args.threads, *STEPS, {**common_extra, **extra})
            live = max(line["peak_live_bytes"] for line in run.metrics) / MIB
            secs = median(run.secs)
            memory, time = plan["peak"][column] / live, plan["a step, s"][column] / secs
            worst = max(worst, abs(memory - 1))
            cells = [dtype, "recomputed" if recompute else "kept", way, f"{plan['peak'][column]:.0f}", f"{live:.0f}", f"{memory:.3f}"]
            rows.append([*cells, f"{plan['a step, s'][column]:.2f}", f"{secs:.2f}", f"{time:.2f}"])
    header = ["type", "activations", "trained", "plan, MiB", "run, MiB", "plan / run", "plan, s", "run, s", "plan / run"]
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    text = "\n".join([
        "# Plan and run", "",
        f"{date.today()}, commit {commit}. {common.machine()}; threads: {args.threads}; {note}. Command: `python benchmarks/plan_check.py`.",
        f"Shape {SHAPE} of Qwen2.5-VL, random weights; a step in one micro-batch: {work.prompts} prompts of {work.prompt_tokens} tokens with a "
        f"{work.image_px} x {work.image_px} image, G {work.generations}, {work.completion_tokens} tokens an answer, beta {common.BETA}; "
        "LoRA r 16, dropout 0.05.", "",
        *table, "",
        f"Run: the most live bytes of tensors over {sum(STEPS)} steps; seconds: median of those after the first. "
        "The plan counts prompt and answers at their longest, which here all are.", "",
    ])  # fmt: skip
    print(text)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(text, encoding="utf-8")
    if worst > MOST_OFF:
        raise Failure(f"memory: expected within {MOST_OFF:.0%}, got {worst:.0%}")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--binary", type=Path, help="our program; without it, target/release/vlm-r1")
        parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
        parser.add_argument("--data", type=Path, default=Path(temporary) / "data", help="folder for model, rows and runs; replaced")
        parser.add_argument("--results", type=Path, default=HERE / "results" / "plan.md")
        try:
            measure(parser.parse_args())
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
