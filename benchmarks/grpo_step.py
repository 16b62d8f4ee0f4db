"""A GRPO step of ours beside TRL's, on the same weights, rows, rewards, types and threads.

    python benchmarks/grpo_step.py                 # everything, 9 to 12 minutes on two cores
    python benchmarks/grpo_step.py --family qwen3_vl   # the same with a model of another family
    python benchmarks/grpo_step.py --tune          # which of TRL's settings are fastest, about 9 minutes
    python benchmarks/grpo_step.py --smoke         # two tiny steps of ours alone, for CI

First both programs are given the same completions and must agree on prompts, log-probabilities, advantages, loss and
gradient norm. Then they run in turns, a process each time; the table shows medians over all steps after the
warm-up. Needs the packages of benchmarks/requirements.txt (for --smoke: numpy, pillow, safetensors, tokenizers) and
`make build`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import mean, median

import common
from common import BETA, HERE, LEARNING_RATE, SEED, Failure, Ours, expect, run_ours, spread
from flop import Work, step_flop
from make_model import write_model, write_rows
from shapes import DEFAULT_FAMILY, FAMILIES, SHAPES_BY_FAMILY, Shape

TOLERANCE = {"logprobs": 1e-3, "advantages": 1e-3, "loss": 1e-4, "kl": 1e-4, "entropy": 1e-3, "grad_norm": 1e-2, "reward": 1e-6}
# The two updates of the comparison must move the policy far enough for loss and KL to be more than rounding.
REPLAY_LEARNING_RATE = 1e-5
REPLAY_UPDATES = 2
# Seconds of a part on two cores of 2026, for the plan; warm-up and measured steps of each program.
OURS_STEPS = {"float32": (1, 4), "bfloat16": (2, 6)}
TRL_STEPS = {"float32": (1, 2), "bfloat16": (1, 3)}
PLAN = {"replay": 90, "matmul": 8, "ours float32": 25, "ours bfloat16": 18, "trl float32": 110, "trl bfloat16": 85}
MATMUL_REPEATS = 30
SHAPE = "39m"
# The fastest on a CPU of those that --tune tries with Qwen2.5-VL.
TRL_SETTINGS = {"float32": "sdpa, 16 at once", "bfloat16": "sdpa, 2 at once"}
TRIED = {
    "sdpa, 16 at once": (),
    "sdpa, 8 at once": ("--micro-batch", "8"),
    "sdpa, 2 at once": ("--micro-batch", "2"),
    "eager, 16 at once": ("--attention", "eager"),
    "eager, 2 at once": ("--attention", "eager", "--micro-batch", "2"),
    "sdpa, 2 at once, recomputing": ("--micro-batch", "2", "--gradient-checkpointing"),
}
# bf16 by autocast over f32 weights samples in f32: one line of its own.
AUTOCAST = ("sdpa, 2 at once, autocast", ("--micro-batch", "2", "--dtype", "float32", "--autocast"))


class Plan:
    """The parts to come with their seconds, and what is left after each."""

    def __init__(self, parts: list[str]):
        self.left, self.start = parts, time.perf_counter()
        total = sum(PLAN[part] for part in parts)
        self.say(f"plan: {len(parts)} parts, about {total / 60:.0f} minutes on two idle cores")

    @staticmethod
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self) -> None:
        secs = sum(PLAN[part] for part in self.left)
        self.say(f"[{time.perf_counter() - self.start:5.0f} s] {self.left.pop(0)}; {secs} s to go by plan")


def trl_command(data: Path, threads: int, output: Path, *extra: str) -> list[str]:
    script = str(HERE / "trl_step.py")
    return [sys.executable, script, str(data), "--threads", str(threads), "--output", str(output), *extra]


def run_trl(data: Path, work: Work, dtype: str, threads: int, steps: tuple[int, int], *extra: str) -> dict:
    output = data / "trl.json"
    counts = ["--prompts", work.prompts, "--generations", work.generations, "--completion-tokens", work.completion_tokens]
    counts += ["--warmup", steps[0], "--steps", steps[1], "--beta", BETA, "--learning-rate", LEARNING_RATE, "--seed", SEED]
    command = trl_command(data, threads, output, "--dtype", dtype, *map(str, counts), *extra)
    watched = common.watch(command, threads, data / "trl.log")
    result = json.loads(output.read_text())
    expect("TRL: completions, tokens and prompt tokens of a step",
        [result[key] for key in ("completions", "completion_tokens", "prompt_tokens")],
        [work.completions, work.tokens, work.prompt_tokens])  # fmt: skip
    return result | {"peak_memory_bytes": watched.peak_bytes}


def replay(binary: Path, data: Path, work: Work, threads: int) -> dict[str, float]:
    """Lets both programs train on the same completions; gives the differences, and fails above the tolerance."""
    extra = {"num_iterations": REPLAY_UPDATES, "learning_rate": REPLAY_LEARNING_RATE}
    ours = run_ours(binary, data, work, "float32", threads, 0, 1, extra)
    # `generate` draws as the first step does: its answers come with ids and log-probabilities.
    groups = ours.rollouts[:: work.generations]
    questions = data / "questions.jsonl"
    lines = [json.dumps({"images": [Path(i).name for i in row["images"]], "prompt": row["prompt"]}) for row in groups]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = data / "answers.jsonl"
    options = {
        "model": data / "model", "input": questions, "image_folder": data / "images", "output": answers, "seed": SEED,
        "num_generations": work.generations, "max_new_tokens": work.completion_tokens,
        "min_completion_length": work.completion_tokens, "num_threads": threads,
    }  # fmt: skip
    common.watch([str(binary), "generate", *common.flags(options)], threads, data / "generate.log")
    rows = common.read_jsonl(answers)
    expect("answers of `generate`", [row["completion"] for row in rows], [row["completion"] for row in ours.rollouts])
    output = data / "replay.json"
    settings = ["--prompts", work.prompts, "--generations", work.generations, "--beta", BETA]
    settings += ["--num-iterations", REPLAY_UPDATES, "--learning-rate", REPLAY_LEARNING_RATE, "--seed", SEED]
    command = trl_command(data, threads, output, "--replay", str(answers), *map(str, settings))
    common.watch(command, threads, data / "replay.log")
    return differences(ours, rows, json.loads(output.read_text()), work)


def differences(ours: Ours, rows: list[dict], trl: dict, work: Work) -> dict[str, float]:
    prompts = [row["prompt_ids"] for row in rows[:: work.generations]]
    expect("ids of the prompts by transformers", trl["prompt_ids"], prompts)
    # TRL shuffles the completions of a batch; its scores are kept in their order before.
    pairs = zip([row["logprobs"] for row in rows], trl["logprobs"], strict=True)
    metrics = ours.metrics[0]
    found = {
        "logprobs": max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True)),
        "advantages": max(abs(row["advantage"] - b) for row, b in zip(ours.rollouts, trl["advantages"], strict=True)),
        "reward": abs(metrics["reward"] - trl["reward"]),
        **{key: abs(metrics[key] - mean(trl[key])) for key in ("loss", "kl", "entropy", "grad_norm")},
    }
    scale = {"grad_norm": metrics["grad_norm"]}
    found = {key: value / scale.get(key, 1.0) for key, value in found.items()}
    values = {key: (metrics[key], mean(trl[key])) for key in ("loss", "kl", "entropy", "grad_norm")}
    for key, (left, right) in values.items():
        Plan.say(f"    {key}: ours {left:.7f}, TRL {right:.7f}")
    for key, value in found.items():
        if not value <= TOLERANCE[key]:
            raise Failure(f"ours and TRL differ on the same completions: {key} by {value:.3g}, tolerance {TOLERANCE[key]}")
    return found


def matmul_rate(shape: Shape, threads: int) -> dict[str, float]:
    """FLOP/s of libtorch's own product on the largest layers of the model: the best of many tries."""
    hidden, mlp = shape.hidden, shape.mlp
    code = f"""
import json, time, torch
torch.set_num_threads({threads})
best = {{}}
for dtype in (torch.float32, torch.bfloat16):
    for rows, fan_in, out in ((2048, {hidden}, {mlp}), (2048, {mlp}, {hidden}), (2048, {hidden}, {4 * hidden}), (2048, {hidden}, {shape.vocab})):
        x, w = torch.randn(rows, fan_in).to(dtype), torch.randn(out, fan_in).to(dtype)
        for _ in range({MATMUL_REPEATS}):
            start = time.perf_counter()
            torch.mm(x, w.t())
            rate = 2 * rows * fan_in * out / (time.perf_counter() - start)
            name = str(dtype).removeprefix("torch.")
            best[name] = max(best.get(name, 0), rate)
print(json.dumps(best))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=common.environment(threads), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


class Results:
    """All runs by type."""

    def __init__(self):
        self.ours: dict[str, list[Ours]] = defaultdict(list)
        self.trl: dict[str, list[dict]] = defaultdict(list)
        self.rates: dict[str, float] = {}

    def add_rates(self, rates: dict[str, float]) -> None:
        self.rates = {dtype: max(rate, self.rates.get(dtype, 0.0)) for dtype, rate in rates.items()}

    def rows(self, dtype: str, flop: int) -> list[str]:
        """The cells of the table's line."""
        ours = [secs for run in self.ours[dtype] for secs in run.secs]
        trl = [secs for run in self.trl[dtype] for secs in run["secs"]]
        ours_peak = max(run.peak_bytes for run in self.ours[dtype]) / 2**30
        trl_peak = max(run["peak_memory_bytes"] for run in self.trl[dtype]) / 2**30
        floor = flop / self.rates[dtype]
        return [
            dtype, spread(ours), spread(trl), f"**{median(trl) / median(ours):.1f}**", f"{ours_peak:.2f}", f"{trl_peak:.2f}",
            f"{ours_peak / trl_peak:.2f}", f"{self.rates[dtype] / 1e9:.0f}", f"{floor:.2f}", f"**{median(ours) / floor:.2f}**",
        ]  # fmt: skip

    def phases(self, dtype: str) -> str:
        keys = [key for key in ("rollout", "reward", "reference", "train", "optimizer", "total")]
        return ", ".join(f"{key} {median(run.phases[key] for run in self.ours[dtype]):.2f}" for key in keys)


HEADER = [
    "type", "ours, s", "TRL, s", "TRL / ours", "ours, GiB", "TRL, GiB", "ours / TRL", "GFLOP/s of `mm`", "floor, s", "ours / floor",
]  # fmt: skip


def beyond_default(family: str, text: str) -> str:
    """`text` with the family in it; nothing for the default."""
    return "" if family == DEFAULT_FAMILY else text.format(family)


def report(
    args, results: Results, differ: dict[str, float] | None, work: Work, parameters: int, versions: dict, note: str
) -> str:  # fmt: skip
    flop = step_flop(SHAPES_BY_FAMILY[args.family][SHAPE], work, BETA)
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    table = [line(HEADER), "|" + "---|" * len(HEADER)]
    table += [line(results.rows(dtype, flop)) for dtype in results.ours]
    phases = [f"- {dtype}: {results.phases(dtype)}" for dtype in results.ours]
    steps = [
        f"- {dtype}, {name}: " + "; ".join(" ".join(f"{secs:.2f}" for secs in run) for run in runs)
        for dtype in results.ours
        for name, runs in (("ours", [r.secs for r in results.ours[dtype]]), ("TRL", [r["secs"] for r in results.trl[dtype]]))
    ]
    startup = median(run.startup_secs for runs in results.ours.values() for run in runs)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = "; ".join(f"{dtype}: {TRL_SETTINGS[dtype]}" for dtype in results.ours)
    replayed = "not compared in this run" if differ is None else ", ".join(f"{k} {v:.1e}" for k, v in differ.items())
    return "\n".join([
        "# A GRPO step beside TRL's" + beyond_default(args.family, f", {FAMILIES[args.family].title}"), "",
        f"{date.today()}, commit {common.commit()}. {common.machine()}; threads each: {args.threads}; {note}. {named}.",
        f"Command: `python benchmarks/grpo_step.py{beyond_default(args.family, ' --family {}')}`. {FAMILIES[args.family].title} shape, {parameters / 1e6:.1f} M random weights; a step: {work.prompts} prompts of "
        f"{work.prompt_tokens} tokens with a {work.image_px} x {work.image_px} image, G {work.generations}, exactly "
        f"{work.completion_tokens} tokens an answer ({work.tokens} a step), beta {BETA}.", "",
        *table, "",
        f"Seconds of a step: median (smallest to largest) over the steps after the warm-up, processes in turns. TRL's settings: {settings} (`results/trl_settings.md`). "
        f"Memory: the largest the process was. Floor: {flop / 1e12:.3f} TFLOP (`benchmarks/flop.py`) at the rate of libtorch's own matrix product in this run.", "",
        "Differences on the same completions, f32, two updates (grad_norm relative, the rest absolute): " + replayed + ".", "",
        "Where our step goes, medians in seconds:", "", *phases, "",
        f"From the start of our program to the beginning of its first step: {startup:.2f} s.", "",
        "All steps, a process between semicolons:", "", *steps, "",
    ])  # fmt: skip


def compare(args) -> None:
    binary = common.find_binary(args.binary)
    work, threads, shape = Work.of(FAMILIES[args.family]), args.threads, SHAPES_BY_FAMILY[args.family][SHAPE]
    note = common.load_note()
    turns = [f"{who} {dtype}" for _ in range(args.rounds) for dtype in args.dtypes for who in ("ours", "trl")]
    plan = Plan(["replay"] * (not args.no_replay) + ["matmul"] + turns + ["matmul"])
    data = args.data
    _, parameters = write_data(data, SHAPE, work, rows=32, family=args.family)
    Plan.say(f"    {args.family}: {parameters:,} parameters, {step_flop(shape, work, BETA) / 1e12:.3f} TFLOP a step, {note}")
    differ = None
    if not args.no_replay:
        plan.begin()
        differ = replay(binary, data, work, threads)
    results, versions = Results(), {}
    plan.begin()
    results.add_rates(matmul_rate(shape, threads))
    for turn in turns:
        plan.begin()
        who, dtype = turn.split()
        if who == "ours":
            run = run_ours(binary, data, work, dtype, threads, *OURS_STEPS[dtype])
            results.ours[dtype].append(run)
            Plan.say(f"    {spread(run.secs)} s a step, {run.peak_bytes / 2**30:.2f} GiB")
        else:
            run = run_trl(data, work, dtype, threads, TRL_STEPS[dtype], *TRIED[TRL_SETTINGS[dtype]])
            results.trl[dtype].append(run)
            versions = run["versions"]
            Plan.say(f"    {spread(run['secs'])} s a step, {run['peak_memory_bytes'] / 2**30:.2f} GiB")
    plan.begin()
    results.add_rates(matmul_rate(shape, threads))
    text = report(args, results, differ, work, parameters, versions, note)
    write_results(args.results, text)
    print(text)


def write_results(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tune(args) -> None:
    """A measured step of TRL for every setting and type, as a table."""
    work, note = Work.of(FAMILIES[args.family]), common.load_note()
    write_data(args.data, SHAPE, work, rows=32, family=args.family)
    tried = [(dtype, *item) for dtype in args.dtypes for item in TRIED.items()]
    tried += [("bfloat16", *AUTOCAST)] * ("bfloat16" in args.dtypes)
    lines = ["# TRL's settings", "", f"{date.today()}. {common.machine()}; threads: {args.threads}; {note}.",
             f"Command: `python benchmarks/grpo_step.py --tune{beyond_default(args.family, ' --family {}')}`. The second step of a process, the work that of grpo_step.md.", "",
             "| type | setting | s | CPU s | peak GiB |", "|---|---|---|---|---|"]  # fmt: skip
    for dtype, name, extra in tried:
        run = run_trl(args.data, work, dtype, args.threads, (1, 1), *extra)
        cells = [dtype, name, f"{run['secs'][0]:.2f}", f"{run['cpu_secs'][0]:.1f}", f"{run['peak_memory_bytes'] / 2**30:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
        Plan.say(lines[-1])
    lines.append("\n" + ", ".join(f"{name} {version}" for name, version in run["versions"].items()))
    name = f"trl_settings{beyond_default(args.family, '_{}')}.md"
    write_results(args.results.parent / name, "\n".join([*lines, ""]))
    print("\n".join(lines))


def write_data(data: Path, shape: str, work: Work, rows: int, family: str = DEFAULT_FAMILY):
    shutil.rmtree(data, ignore_errors=True)
    tokenizer, parameters = write_model(data / "model", SHAPES_BY_FAMILY[family][shape])
    write_rows(data, tokenizer, rows, work)
    return tokenizer, parameters


def smoke(args) -> None:
    """Two tiny steps of ours, their work checked."""
    family = FAMILIES[args.family]
    work = Work.of(family, generations=4, prompt_tokens=64, completion_tokens=16, image_px=4 * family.token_px)
    write_data(args.data, "tiny", work, rows=4, family=args.family)
    run = run_ours(common.find_binary(args.binary), args.data, work, "float32", args.threads, 1, 1)
    print(f"smoke: {args.family}: a step of {work.completions} completions in {run.secs[0]:.3f} s, {run.peak_bytes / 2**20:.0f} MiB")


def parse(temporary: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two tiny steps of ours alone")
    parser.add_argument("--tune", action="store_true", help="try TRL's settings")
    parser.add_argument("--family", choices=FAMILIES, default=DEFAULT_FAMILY, help="of the model")
    parser.add_argument("--binary", type=Path, help="our program; without it, target/release/vlm-r1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2, help="turns of each program and type")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--no-replay", action="store_true", help="do not compare the two on the same completions")
    parser.add_argument("--data", type=Path, default=temporary / "data", help="folder for model, rows and runs; replaced")
    parser.add_argument("--results", type=Path, help="the file written; without it, grpo_step[_FAMILY].md in results/")
    args = parser.parse_args()
    args.results = args.results or HERE / "results" / f"grpo_step{beyond_default(args.family, '_{}')}.md"
    return args


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        args = parse(Path(temporary))
        try:
            act = smoke if args.smoke else tune if args.tune else compare
            act(args)
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
