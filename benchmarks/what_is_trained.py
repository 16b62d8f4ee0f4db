"""A GRPO step by what is trained: every weight, all but the vision tower's, or adapters; ours beside TRL's with PEFT.

    python benchmarks/what_is_trained.py               # 7 to 9 minutes on two cores
    python benchmarks/what_is_trained.py --only ours   # 2 minutes
    python benchmarks/what_is_trained.py --smoke       # tiny steps of both; with --only ours, of ours alone

The work of a step is that of grpo_step.py, and checked as there. The file of results is written after every process, so
that a run that was stopped leaves what it measured. Needs what grpo_step.py needs, and peft for TRL's adapters.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import median

import common
from common import BETA, HERE, Failure, Ours, expect, run_ours, spread
from flop import Work
from grpo_step import SHAPE, TRIED, TRL_SETTINGS, run_trl, write_data
from shapes import SHAPES, linears

ROWS = 32
LORA = {"lora_r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
FROZEN = {"freeze_vision_modules": True}
# What ours runs with, by the name of a line. Lines without a TRL of their own stand beside that of what they train.
OURS = {
    "full": {},
    "frozen": FROZEN,
    "frozen, nothing kept": FROZEN | {"feature_cache_bytes": 0},
    "frozen, same images every step": FROZEN,
    "lora": {"use_peft": True, **LORA},
}
TRL = ("full", "frozen", "lora")
SAME_IMAGES = "frozen, same images every step"
# Warm-up and measured steps; the last where there is no time for more.
OURS_STEPS = (1, 3)
TRL_STEPS = (1, 2)
TRL_STEPS_LATE = (1, 1)
# Seconds of a process on two idle cores, for the plan.
SECS = {("ours", "float32"): 19, ("ours", "bfloat16"): 11, ("trl", "float32"): 65, ("trl", "bfloat16"): 52}
GIB = 2**30


def trained(mode: str) -> str:
    return mode.split(",")[0]


def trained_parameters(shape: str, total: int, mode: str) -> int:
    """Numbers that a step changes, counted from the shapes."""
    layers = linears(SHAPES[shape])
    if mode == "lora":
        return sum(LORA["lora_r"] * (out + fan_in) for name, (out, fan_in, _) in layers.items() if name.startswith("model."))
    if mode == "full":
        return total
    vision = sum(out * fan_in + bias * out for name, (out, fan_in, bias) in layers.items() if name.startswith("visual."))
    width, depth = SHAPES[shape].vision_hidden, SHAPES[shape].vision_depth
    patch_embedding = width * 3 * 2 * 14 * 14
    return total - vision - patch_embedding - width * (2 * depth + 1)


class Results:
    """All runs by type and line."""

    def __init__(self):
        self.ours: dict[tuple[str, str], list[Ours]] = defaultdict(list)
        self.trl: dict[tuple[str, str], list[dict]] = defaultdict(list)
        self.versions: dict[str, str] = {}

    def row(self, dtype: str, mode: str) -> list[str]:
        ours, trl = self.ours[dtype, mode], self.trl.get((dtype, trained(mode)), [])
        secs = [value for run in ours for value in run.secs]
        peak = max(run.peak_bytes for run in ours) / GIB
        live = max(line["peak_live_bytes"] for run in ours for line in run.metrics) / GIB
        cells = [dtype, mode, spread(secs), f"{peak:.2f}", f"{live:.2f}"]
        if not trl:
            return cells + ["not run"] * 2 + [""] * 2
        trl_secs = [value for run in trl for value in run["secs"]]
        trl_peak = max(run["peak_memory_bytes"] for run in trl) / GIB
        ratios = [f"{median(secs) / median(trl_secs):.3f}", f"{peak / trl_peak:.2f}"]
        return [*cells, spread(trl_secs), f"{trl_peak:.2f}", *ratios]

    def kept(self, dtype: str, mode: str) -> list[str] | None:
        """What the frozen tower's kept features did in the last run; nothing where none are kept."""
        last = self.ours[dtype, mode][-1].metrics[-1]
        if "feature_cache/hits" not in last:
            return None
        keys = ("hits", "misses", "bytes", "saved_secs")
        hits, misses, size, saved = (last[f"feature_cache/{key}"] for key in keys)
        return [dtype, mode, str(hits), str(misses), f"{size / 2**20:.2f}", f"{saved:.2f}"]

    def phases(self, dtype: str, mode: str) -> str:
        keys = ("rollout", "reference", "train", "optimizer", "total")
        runs = self.ours[dtype, mode]
        return ", ".join(f"{key} {median(run.phases[key] for run in runs):.2f}" for key in keys)


HEADER = ["type", "trained", "ours, s", "ours, GiB", "live at most, GiB", "TRL, s", "TRL, GiB", "s, ours / TRL", "GiB, ours / TRL"]
KEPT = ["type", "trained", "hits", "misses", "MiB kept", "s saved, estimate"]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def report(results: Results, args, work: Work, counts: dict[str, int], note: str, left: int) -> str:
    done = list(results.ours)
    named = ", ".join(f"{name} {version}" for name, version in results.versions.items()) or "TRL was not run"
    settings = "; ".join(f"{dtype}: {TRL_SETTINGS[dtype]}" for dtype in args.dtypes)
    lines = [
        "# What is trained: time and memory of a step", "",
        f"{date.today()}, commit {args.commit}. {common.machine()}; threads each: {args.threads}; {note}. {named}.",
        f"Command: `{command(args)}`. Shape {args.shape} of Qwen2.5-VL, random weights; a step: {work.prompts} prompts of "
        f"{work.prompt_tokens} tokens with a {work.image_px} x {work.image_px} image, G {work.generations}, exactly {work.completion_tokens} tokens "
        f"an answer ({work.tokens} a step), beta {BETA}.",
        *([f"**Not finished: {left} processes of the plan are missing.**"] if left else []), "",
        *table(HEADER, [results.row(*key) for key in done]), "",
        "Seconds of a step: median (smallest to largest) over the steps after the warm-up, which stand below. "
        f"GiB: the largest the process was; live: the most that tensors of ours held. TRL's settings: {settings} "
        "(`results/trl_settings.md`).", "",
        f"Trained parameters: {', '.join(f'{mode} {count:,}' for mode, count in counts.items())}; TRL's are counted and must be these. "
        "`frozen`: not the vision tower, merger included. `lora`: r 64, alpha 128, dropout 0.05 over the linear layers of the language model; "
        "the reference is the model without adapters, on both sides; over bf16 weights PEFT's adapters are f32.", "",
        "## Kept features", "",
        "A row is seen once, so every step has new images: a frozen tower runs once for each where it ran for sampling, reference and "
        f"training. `same images every step` has as many rows as a step has prompts: only the first step, the warm-up, runs the tower. Over "
        f"all {sum(OURS_STEPS)} steps of a process:", "",
        *table(KEPT, [cells for key in done if (cells := results.kept(*key))]), "",
        "## Phases", "", "Where our step goes, medians in seconds:", "",
        *[f"- {dtype}, {mode}: {results.phases(dtype, mode)}" for dtype, mode in done], "",
        "## All steps", "", "A process between semicolons:", "",
        *[f"- {dtype}, {mode}, ours: " + each([run.secs for run in results.ours[dtype, mode]]) for dtype, mode in done],
        *[f"- {dtype}, {mode}, TRL: " + each([run["secs"] for run in runs]) for (dtype, mode), runs in results.trl.items()], "",
    ]  # fmt: skip
    return "\n".join(lines)


def command(args) -> str:
    """What to type to see it again, without the paths of a machine."""
    given = [*(["--smoke"] * args.smoke), *(["--only", args.only] if args.only else []), "--rounds", str(args.rounds)]
    return " ".join(["python benchmarks/what_is_trained.py", *given, "--dtypes", *args.dtypes])


def each(runs: list[list[float]]) -> str:
    return "; ".join(" ".join(f"{secs:.2f}" for secs in run) for run in runs)


def measure_ours(binary: Path, args, work: Work, dtype: str, mode: str) -> Ours:
    extra = dict(OURS[mode])
    if mode == SAME_IMAGES:
        rows = args.data / "same_rows.jsonl"
        lines = (args.data / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: work.prompts]), encoding="utf-8")
        extra["data_file_paths"] = rows
    run = run_ours(binary, args.data, work, dtype, args.threads, *OURS_STEPS, extra)
    distinct = len({row["completion"] for row in run.rollouts})
    expect("distinct completions of a step of ours", distinct, work.completions)
    if mode in ("frozen", SAME_IMAGES, "lora"):
        steps = 1 if mode == SAME_IMAGES else sum(OURS_STEPS)
        expect("images through the frozen tower", run.metrics[-1]["feature_cache/misses"], steps * work.prompts)
    return run


def measure_trl(args, work: Work, dtype: str, mode: str, steps: tuple[int, int]) -> dict:
    lora = [part for name, value in LORA.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    settings = TRIED[TRL_SETTINGS[dtype]]
    run = run_trl(args.data, work, dtype, args.threads, steps, *settings, "--train", mode, *lora)
    return run


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def plan(args) -> list[tuple[str, str, str]]:
    """Processes in turn: ours, then TRL's of the same."""
    turns = []
    for dtype in args.dtypes * args.rounds:
        for mode in OURS:
            turns.append(("ours", dtype, mode))
            if mode in TRL and args.only != "ours":
                turns.append(("trl", dtype, mode))
    return turns


class Pace:
    """How the run keeps to the plan."""

    def __init__(self, turns: list[tuple[str, str, str]], minutes: float):
        self.secs, self.minutes, self.start = [SECS[turn[:2]] for turn in turns], minutes, time.perf_counter()
        say(f"plan: {len(turns)} processes, about {sum(self.secs) / 60:.0f} minutes on two idle cores")

    def begin(self, index: int, name: str) -> tuple[int, int]:
        """Says what begins and gives the steps of TRL that there is time for, should it go on as it did."""
        elapsed, planned, left = time.perf_counter() - self.start, sum(self.secs[:index]), sum(self.secs[index:])
        left *= max(1.0, elapsed / planned) if planned else 1.0
        say(f"[{elapsed:5.0f} s] {name}; {left:.0f} s to go")
        return TRL_STEPS if elapsed + left <= 60 * self.minutes else TRL_STEPS_LATE


def measure(args) -> None:
    binary = common.find_binary(args.binary)
    work = Work(generations=4, prompt_tokens=64, completion_tokens=16, image_px=112) if args.smoke else Work()
    # The checkout may change during the run.
    args.shape, args.commit = "tiny" if args.smoke else SHAPE, common.commit()
    note, turns = common.load_note(), plan(args)
    _, total = write_data(args.data, args.shape, work, ROWS)
    counts = {mode: trained_parameters(args.shape, total, mode) for mode in TRL}
    results, pace, text = Results(), Pace(turns, args.minutes), ""
    for index, (who, dtype, mode) in enumerate(turns):
        steps = pace.begin(index, f"{who} {dtype} {mode}")
        if who == "ours":
            run = measure_ours(binary, args, work, dtype, mode)
            results.ours[dtype, mode].append(run)
            say(f"    {spread(run.secs)} s a step, {run.peak_bytes / GIB:.2f} GiB")
        else:
            run = measure_trl(args, work, dtype, mode, steps)
            expect(f"parameters that TRL trains ({mode})", run["trained_parameters"], counts[mode])
            results.trl[dtype, mode].append(run)
            results.versions |= run["versions"]
            say(f"    {spread(run['secs'])} s a step, {run['peak_memory_bytes'] / GIB:.2f} GiB")
        text = report(results, args, work, counts, note, len(turns) - index - 1)
        if not args.smoke:
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(text, encoding="utf-8")
    print(text)


def parse(temporary: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the tiny shape, for correctness; writes no results")
    parser.add_argument("--only", choices=("ours",), help="skip TRL")
    parser.add_argument("--binary", type=Path, help="our program; without it, target/release/vlm-r1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1, help="turns of each program, type and line")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--minutes", type=float, default=9.0, help="TRL measures one step, not two, where it would take longer")
    parser.add_argument("--data", type=Path, default=temporary / "data", help="folder for model, rows and runs; replaced")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "what_is_trained.md")
    return parser.parse_args()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            measure(parse(Path(temporary)))
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
