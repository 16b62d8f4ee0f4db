"""What each part of gpu.py does. One part a process, which gpu.py ends at the part's limit:

    python benchmarks/gpu_parts.py PART --record FILE --until SECS ...

The record is written anew whenever something was reached, so that what came before the limit is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

import common
import gpu_model
from common import HERE, Failure, Until
from flop import Work, decode_bytes, train_flop
from shapes import SHAPES

# VLM-R1's REC step: an image of 640 x 480 is 391 tokens, question, template and chat template some 98.
TEXT_TOKENS = 98
LORA_R = 64
# What the first runs are held against; 8 s is for the 3B model, trained whole, on one H200.
GOALS = {"sampling": 0.60, "training": 0.45, "peer": 5.0, "step3b_secs": 8.0}
# As `vlm-r1 plan --device` names cards, by what PyTorch's name of the device holds.
CARDS = {"H200": "H200", "H100": "H100", "A100": "A100", "RTX 4090": "RTX4090"}
COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
MATMUL_SIDE = {"cuda": 8192, "cpu": 512}
RATES = """
import json, sys, time, torch
device, size, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
is_cuda = device.startswith("cuda")
def best(work, repeats=10):
    secs = []
    for _ in range(repeats + 3):
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if is_cuda:
            torch.cuda.synchronize()
        secs.append(time.perf_counter() - start)
    return min(secs[3:])
source = torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
target = torch.empty_like(source)
copy = 2 * size / best(lambda: target.copy_(source))
del source, target
a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
mm = 2 * side ** 3 / best(lambda: a @ b)
name = torch.cuda.get_device_name() if is_cuda else "CPU"
print(json.dumps({"device": name, "torch": torch.__version__, "copy_bytes_per_sec": copy, "matmul_flop_per_sec": mm}))
"""


@dataclass(frozen=True)
class Step:
    """A shape and the work of a step."""

    shape: str
    work: Work
    # Completions of a forward and backward pass.
    micro_batch: int
    # Over the text model, the tower frozen; else all weights, with a reference.
    adapters: bool = False
    # Of decoding alone: prompts of text at once, completions of each, tokens.
    decoded: tuple[int, int, int] = (64, 2, 256)

    def options(self) -> dict:
        lora = {"use_peft": True, "lora_r": LORA_R, "lora_alpha": 2 * LORA_R, "lora_dropout": 0.05} if self.adapters else {}
        return {
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.work.completions // self.micro_batch,
            "max_concurrent_completions": self.work.completions, "dataloader_num_workers": 4, **lora,
        }  # fmt: skip


def numpy_rates(size: int, side: int) -> dict:
    """For a rehearsal without PyTorch: of numpy, in f32."""

    def best(work) -> float:
        secs = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            secs.append(time.perf_counter() - start)
        return min(secs)

    source, factor = np.ones(size // 4, np.float32), np.ones((side, side), np.float32)
    target = np.empty_like(source)
    copy, matmul = best(lambda: np.copyto(target, source)), best(lambda: factor @ factor)
    return {"device": "CPU", "torch": "none: numpy", "copy_bytes_per_sec": 2 * size / copy, "matmul_flop_per_sec": 2 * side**3 / matmul}


def work_of(prompts: int, generations: int, tokens: int, image_size: tuple[int, int], text_tokens: int) -> Work:
    size = Work(image_size=image_size)
    return Work(prompts, generations, size.image_tokens + text_tokens, tokens, image_size=image_size)


REC = work_of(16, 8, 256, (640, 480), TEXT_TOKENS)
REHEARSED = work_of(2, 4, 16, (112, 84), TEXT_TOKENS)
TINY_DECODED = (64, 2, 16)
# Two groups in a pass: half of what `vlm-r1 plan --device H200` lets fit with activations kept.
STEPS = {"step3b": Step("3b", REC, 16), "step7b": Step("7b", REC, 16, adapters=True)}


class Part:
    """One part on its way: its settings, and what it has reached."""

    def __init__(self, args):
        self.args, self.start = args, time.perf_counter()
        self.record: dict = {"date": str(date.today()), "device": args.device, "reached": []}

    def left(self) -> float:
        return self.args.until - (time.perf_counter() - self.start)

    def reach(self, what: str, **known) -> None:
        """Writes down what is done, with what is known by now."""
        self.record["reached"].append(f"{what} ({time.perf_counter() - self.start:.0f} s)")
        self.record |= known
        unfinished = self.args.record.with_suffix(".new")
        unfinished.write_text(json.dumps(self.record))
        unfinished.rename(self.args.record)
        print(f"    {self.record['reached'][-1]}", file=sys.stderr, flush=True)

    def goal(self, value: float, of: str, at_most: bool = False) -> str:
        """Whether a goal was met; a rehearsal says nothing of goals."""
        if self.args.rehearse:
            return ""
        met = value <= GOALS[of] if at_most else value >= GOALS[of]
        goal = f"{GOALS[of]:.0%}" if of in ("sampling", "training") else f"{GOALS[of]:g}"
        return f" (goal {'at most ' * at_most}{goal}: {'met' if met else 'missed'})"

    def step(self, name: str) -> Step:
        step = STEPS[name]
        return Step("tiny", REHEARSED, REHEARSED.completions // 2, step.adapters, TINY_DECODED) if self.args.rehearse else step

    def folder(self, shape: str) -> Path:
        """The folder of a shape's model, which is made once for all parts."""
        folder = self.args.data / shape
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            numbers = gpu_model.write_model(folder / "model", SHAPES[shape])
            (folder / "made").touch()
            self.reach(f"{shape} model of {numbers:,} random numbers written")
        return folder

    def rates(self) -> dict:
        """What the device does at best: bytes copied and bf16 multiply-adds, as PyTorch reaches them; measured once for all parts."""
        file = self.args.data / "rates.json"
        device = "cpu" if self.args.rehearse else self.args.device
        kind = device.split(":")[0]
        if not file.exists() and self.args.rehearse and importlib.util.find_spec("torch") is None:
            file.write_text(json.dumps(numpy_rates(COPY_BYTES[kind], MATMUL_SIDE[kind])))
        if not file.exists():
            command = [sys.executable, "-c", RATES, device, str(COPY_BYTES[kind]), str(MATMUL_SIDE[kind])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Failure(f"measuring the rates of `{device}`: {done.stderr.strip()[-2000:]}")
            file.write_text(done.stdout)
        rates = json.loads(file.read_text())
        self.reach("rates known", rates=rates, machine=common.machine(rates["device"]))
        return rates

    def call(self, command: str, options: dict, log: Path) -> list[tuple[float, str]]:
        """Runs `vlm-r1 COMMAND`; gives its lines with the seconds at which they came."""
        words = [str(self.args.binary), command, *common.flags(options)]
        with log.open("wb") as sink:
            environment = common.environment(self.args.threads, self.args.libtorch)
            process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=sink, text=True)
            lines = [(time.perf_counter() - self.start, line) for line in process.stdout]
        if process.wait():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise Failure(f"`{' '.join(words)}` exited with {process.returncode}:\n{tail}")
        return lines


# proof


def asked(folder: Path, rows: int) -> Path:
    """Questions with an image and a completion each, for `logprobs` and `generate`."""
    gpu_model.write_rows(folder, REHEARSED, rows)
    lines = []
    for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = row["conversations"][0]["value"]
        lines.append(json.dumps({"images": [row["image"]], "prompt": question, "completion": question[::-1][:24]}) + "\n")
    path = folder / "asked.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


# Of the largest difference of a log-probability from that on the CPU in f32.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


def proof(part: Part) -> str:
    """A tiny model on the device beside the CPU: log-probabilities, greedy tokens, and a short run whose fast paths prove themselves."""
    folder = part.folder("tiny")
    rows = asked(folder, 4)
    common_options = {"model": folder / "model", "input": rows, "image_folder": folder / "images"}

    def rows_of(command: str, device: str, dtype: str, **more) -> list[dict]:
        options = common_options | {"device": device, "dtype": dtype} | more
        return [json.loads(line) for _, line in part.call(command, options, folder / f"{command}.log")]

    plain = rows_of("logprobs", "cpu", "float32")
    differences = {}
    for dtype, tolerance in TOLERANCES.items():
        other = rows_of("logprobs", part.args.device, dtype)
        pairs = [pair for a, b in zip(plain, other, strict=True) for pair in zip(a["logprobs"], b["logprobs"], strict=True)]
        worst = max(abs(a - b) for a, b in pairs)
        differences[dtype] = worst
        part.reach(f"log-probabilities in {dtype}", tokens=len(pairs), logprob_differences=differences)
        if not worst <= tolerance:
            raise Failure(f"log-probabilities in {dtype}: {worst:.3g} from those on the CPU in float32, expected at most {tolerance:g}")
    greedy = {"temperature": 0, "max_new_tokens": 16, "min_completion_length": 16, "json": True}
    pairs = list(zip(rows_of("generate", "cpu", "float32", **greedy), rows_of("generate", part.args.device, "float32", **greedy), strict=True))
    equal, ties = same_tokens(pairs)
    part.reach("greedy tokens", greedy_tokens_equal=equal, greedy_near_ties=ties)
    paths = fast_paths(part, folder)
    # What the next parts need, as there is time for it here.
    part.rates()
    part.folder(part.step("step3b").shape)
    shown = "; ".join(f"{path['name']}: {path['verdict']}" for path in paths) or "none told in env.json"
    ties = f", {ties} rows apart after a near tie" if ties else ""
    return (
        f"beside the CPU in f32, {part.record['tokens']} log-probabilities at most {differences['float32']:.2g} apart in f32, "
        f"{differences['bfloat16']:.2g} in bf16; {equal} greedy tokens equal{ties}; fast paths: {shown}"
    )


def same_tokens(pairs: list[tuple[dict, dict]]) -> tuple[int, int]:
    """Equal tokens, and rows that part where both choices are as likely, which rounding may decide."""
    equal = ties = 0
    for a, b in pairs:
        ids = list(zip(a["completion_ids"], b["completion_ids"], strict=True))
        same = next((index for index, (x, y) in enumerate(ids) if x != y), len(ids))
        equal += same
        if same < len(ids):
            ties += 1
            apart = abs(a["logprobs"][same] - b["logprobs"][same])
            if apart > TOLERANCES["float32"]:
                raise Failure(f"greedy token {same + 1}: expected {ids[same][0]}, got {ids[same][1]}, their log-probabilities {apart:.3g} apart")
    return equal, ties


def fast_paths(part: Part, folder: Path) -> list[dict]:
    """Two steps in bf16; gives what env.json says of the fast paths."""
    gpu_model.write_rows(folder, REHEARSED, 3 * REHEARSED.prompts)
    options = {"device": part.args.device, "cuda_graphs": part.args.device.startswith("cuda"), "max_concurrent_completions": 8}
    run = common.run_ours(part.args.binary, folder, REHEARSED, "bfloat16", part.args.threads, 0, 2, options, libtorch=part.args.libtorch)
    norms = [line["grad_norm"] for line in run.metrics]
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise Failure(f"gradient norms: expected numbers above 0, got {norms}")
    env = json.loads((folder / "run" / "env.json").read_text(encoding="utf-8"))
    part.reach("two steps", fast_paths=env.get("fast_paths", []), commit=env["commit"])
    return part.record["fast_paths"]


# decode


def decode(part: Part) -> str:
    """Tokens a second of decoding alone: short prompts of text, all completions of one length."""
    step = part.step("step3b")
    rates, folder = part.rates(), part.folder(step.shape)
    prompts, generations, tokens = step.decoded
    completions, chunks = prompts * generations, 3
    asked = folder / "texts.jsonl"
    asked.write_text("".join(json.dumps({"images": [], "prompt": f"number {index}"}) + "\n" for index in range(chunks * prompts)))
    limit = completions * rates["copy_bytes_per_sec"] / decode_bytes(SHAPES[step.shape])
    found = {}
    for graphs in (False, True) if part.args.device.startswith("cuda") else (False,):
        options = {
            "model": folder / "model", "input": asked, "device": part.args.device, "dtype": "bfloat16", "num_generations": generations,
            "max_new_tokens": tokens, "min_completion_length": tokens, "json": True, "cuda_graphs": graphs,
        }  # fmt: skip
        lines = part.call("generate", options, folder / "generate.log")
        common.expect("completions", len(lines), chunks * completions)
        # A chunk's lines come together, after it; the first has the start of the program before it.
        ends = [lines[chunk * completions - 1][0] for chunk in range(1, chunks + 1)]
        secs = min(b - a for a, b in pairwise(ends))
        name = "graphs" if graphs else "one by one"
        found[name] = {"tokens_per_sec": completions * tokens / secs, "share": completions * tokens / secs / limit}
        part.reach(f"decoding, {name}", decoding=found, tokens_limit=limit)
    return f"of a limit of {limit:.0f} tokens/s: " + "; ".join(
        f"{name} {run['tokens_per_sec']:.0f}, {run['share']:.1%}" + (part.goal(run["share"], "sampling") if name == "graphs" else "")
        for name, run in found.items()
    )


# step3b, step7b


def train_step(part: Part) -> str:
    """One warm-up step and two measured ones, with the rows of VLM-R1's REC."""
    step, args, warmup, steps = part.step(part.args.part), part.args, 1, 2
    rates, folder = part.rates(), part.folder(step.shape)
    gpu_model.write_rows(folder, step.work, step.work.prompts * (warmup + steps + 1))
    options = {"device": args.device} | step.options() | dict(item.split("=", 1) for item in args.set)
    predicted = predict(part, folder, step, options)
    part.reach("rows written, prediction made", options={key: str(value) for key, value in options.items()}, predicted=predicted)
    run = common.run_ours(args.binary, folder, step.work, "bfloat16", args.threads, warmup, steps, options, part.left() - 2, args.libtorch)
    phases, shape = run.phases, SHAPES[step.shape]
    rate = train_flop(shape, step.work, step.adapters) / phases["train"]
    tokens_per_sec = step.work.tokens / phases["rollout"]
    limit = step.work.completions * rates["copy_bytes_per_sec"] / decode_bytes(shape)
    part.reach(
        f"{len(run.metrics)} steps", phases=phases, step_secs=phases["total"], all_step_secs=[line["secs"]["total"] for line in run.metrics],
        startup_secs=run.startup_secs, tokens_per_sec=tokens_per_sec, sampling_share=tokens_per_sec / limit,
        training_share=rate / rates["matmul_flop_per_sec"], peak_live_bytes=max(line["peak_live_bytes"] for line in run.metrics),
        peak_host_bytes=run.peak_bytes, oom_retries=sum(line["oom_retries"] for line in run.metrics),
        sampled_vs_trained_max=max(line["sampled_vs_trained_max"] for line in run.metrics),
        commit=json.loads((folder / "run" / "env.json").read_text(encoding="utf-8"))["commit"],
    )  # fmt: skip
    return step_says(part)


def step_says(part: Part) -> str:
    """The record of a step in one line."""
    known, phases = part.record, part.record["phases"]
    total = f"a step {phases['total']:.2f} s"
    if "a step" in known["predicted"]:
        total += f", predicted {known['predicted']['a step']:.2f}"
    if part.args.part == "step3b":
        total += part.goal(phases["total"], "step3b_secs", at_most=True)
    sampling = f"sampling {known['sampling_share']:.1%} of the bandwidth" + part.goal(known["sampling_share"], "sampling")
    training = f"training {known['training_share']:.1%} of `mm`" + part.goal(known["training_share"], "training")
    memory = f"peak {known['peak_live_bytes'] / 1e9:.1f} GB, passes halved {known['oom_retries']}"
    apart = f"sampled and trained log-probabilities at most {known['sampled_vs_trained_max']:.2g} apart"
    shown = ", ".join(f"{name} {secs:.2f}" for name, secs in phases.items() if name != "total")
    return f"{total}; {shown}; {sampling}, {training}; {memory}; {apart}"


def predict(part: Part, folder: Path, step: Step, options: dict) -> dict[str, float]:
    """Seconds of the phases as `vlm-r1 plan` predicts them; nothing for a card that it does not know, or that the step does not fit."""
    name = "NVIDIA H200" if part.args.rehearse else part.record["rates"]["device"]
    card = next((card for named, card in CARDS.items() if named in name), None)
    if card is None:
        return {}
    command = common.ours_command(part.args.binary, folder, folder / "plan", step.work, "bfloat16", 2, options | {"device": card})
    done = subprocess.run(
        [command[0], "plan", *command[2:]], env=common.environment(part.args.threads, part.args.libtorch), capture_output=True, text=True
    )
    if done.returncode:
        raise Failure(f"`vlm-r1 plan --device {card}`: {done.stderr.strip()[-2000:]}")
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    column = 3 if step.adapters else 1
    cells = {row[0].removesuffix(", s"): row[column] for row in rows if row[0].endswith(", s") and len(row) == 4}
    return {name: float(cell) for name, cell in cells.items() if cell not in ("-", "does not fit")}


# peer


def peer(part: Part) -> str:
    """The step of step3b by transformers, on the same prompts."""
    step = part.step("step3b")
    folder, output = part.folder(step.shape), part.args.data / "peer.json"
    gpu_model.write_rows(folder, step.work, 2 * step.work.prompts)
    options = {
        "device": "cpu" if part.args.rehearse else part.args.device, "prompts": step.work.prompts, "generations": step.work.generations,
        "completion-tokens": step.work.completion_tokens, "micro-batch": step.work.generations, "output": output,
    }  # fmt: skip
    part.reach("rows written")
    command = [sys.executable, str(HERE / "gpu_peer.py"), str(folder), *common.flags(options)]
    common.watch(command, part.args.threads, part.args.data / "peer.log", until=Until(part.left() - 2))
    found = json.loads(output.read_text())
    secs = median(one["total"] for one in found["steps"])
    part.reach("a step of transformers", **found, step_secs=secs)
    phases = ", ".join(f"{phase} {median(one[phase] for one in found['steps']):.2f}" for phase in found["steps"][0] if phase != "total")
    ours = part.args.beside and secs / part.args.beside
    beside = f", {ours:.1f} times ours{part.goal(ours, 'peer')}" if ours else ""
    return f"a step of transformers {secs:.2f} s{beside}; {phases}; at most {(found['peak_bytes'] or 0) / 1e9:.1f} GB of the card"


WORK = {"proof": proof, "decode": decode, "step3b": train_step, "step7b": train_step, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=WORK)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--libtorch", type=Path, help="libraries of the program")
    parser.add_argument("--device", required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="seconds after which this process is ended")
    parser.add_argument("--beside", type=float, help="seconds of our step, for peer")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    part = Part(args)
    try:
        says = WORK[args.part](part)
    except (Failure, OSError) as failure:
        part.reach("failed", failed=str(failure))
        raise SystemExit(1) from None
    part.reach("done", says=says)


if __name__ == "__main__":
    main()
