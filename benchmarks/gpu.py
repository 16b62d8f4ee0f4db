"""GRPO steps of Qwen2.5-VL-3B and -7B shapes on a GPU, against what the card can do. Called by benchmarks/gpu.sh.

    benchmarks/gpu.sh [--binary vlm-r1] [--case 3b-640 3b-640-graphs 3b-1280 7b-640 7b-640-graphs 7b-1280] [--peer] [--results FOLDER]
    benchmarks/gpu.sh --smoke        # all of it on the CPU with a tiny model

Random weights in bf16, 8 prompts with an image each, G 8, exactly 256 tokens an answer. The 3B model is trained whole, with a reference; the 7B model by
adapters, as its moments do not fit one card; cases named graphs decode with --cuda_graphs true. Each case has a time limit of its own, and its record is in FOLDER/gpu.json as soon as it ended; FOLDER/gpu.md
shows all records there, so cases may come from several calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import common
import gpu_model
from common import HERE, Failure, Until, run_ours
from flop import Work, decode_bytes, step_flop, train_flop
from shapes import SHAPES

TEXT_TOKENS = 128
LORA_R = 64
GOALS = {"sampling": 0.60, "training": 0.45, "peer": 5.0}
# Dense bf16 TFLOP/s that the makers state, by what the device's name holds; the first that fits.
NOMINAL = (("H200", 989), ("H100 PCIe", 756), ("H100", 989), ("A100", 312), ("L40S", 362), ("RTX 4090", 165))
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
class Case:
    """One model and image size."""

    shape: str
    image_size: tuple[int, int]
    # Adapters over the text model, the tower frozen; else all weights, with a reference.
    adapters: bool = False
    # Decoding steps are recorded by the card and replayed.
    graphs: bool = False
    prompts: int = 8
    generations: int = 8
    completion_tokens: int = 256
    # Groups in one pass of training.
    groups_per_pass: int = 1

    @property
    def work(self) -> Work:
        size = Work(image_size=self.image_size)
        return Work(self.prompts, self.generations, size.image_tokens + TEXT_TOKENS, self.completion_tokens, image_size=self.image_size)

    def options(self, device: str) -> dict:
        graphs = {"cuda_graphs": True} if self.graphs else {}
        lora = {"use_peft": True, "lora_r": LORA_R, "lora_alpha": 2 * LORA_R} if self.adapters else {}
        return {
            "device": device, "per_device_train_batch_size": self.groups_per_pass * self.generations,
            "gradient_accumulation_steps": self.prompts // self.groups_per_pass, "max_concurrent_completions": self.work.completions,
            "dataloader_num_workers": 4, **lora, **graphs,
        }  # fmt: skip


CASES = {
    "3b-640": Case("3b", (640, 480)),
    "3b-640-graphs": Case("3b", (640, 480), graphs=True),
    "3b-1280": Case("3b", (1280, 960)),
    "7b-640": Case("7b", (640, 480), adapters=True),
    "7b-640-graphs": Case("7b", (640, 480), adapters=True, graphs=True),
    "7b-1280": Case("7b", (1280, 960), adapters=True),
}
SMOKE = {
    "tiny-112": Case("tiny", (112, 84), prompts=2, generations=4, completion_tokens=16),
    "tiny-112-adapters": Case("tiny", (112, 84), adapters=True, prompts=2, generations=4, completion_tokens=16),
    # Not on the CPU.
    "tiny-112-graphs": Case("tiny", (112, 84), graphs=True, prompts=2, generations=4, completion_tokens=16),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def rates(device: str) -> dict:
    """What the device does at best: bytes copied and bf16 multiply-adds, as PyTorch reaches them."""
    kind = device.split(":")[0]
    command = [sys.executable, "-c", RATES, device, str(COPY_BYTES[kind]), str(MATMUL_SIDE[kind])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failure(f"measuring the rates of `{device}`: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def prepare(args, case: Case) -> None:
    """Model and rows; the model stays for the next case of its shape, another one goes."""
    model, mark = args.data / "model", args.data / "shape"
    if not mark.exists() or mark.read_text() != case.shape:
        mark.unlink(missing_ok=True)
        shutil.rmtree(model, ignore_errors=True)
        start = time.perf_counter()
        parameters = gpu_model.write_model(model, SHAPES[case.shape])
        mark.write_text(case.shape)
        say(f"    {parameters:,} parameters written in {time.perf_counter() - start:.0f} s")
    shutil.rmtree(args.data / "images", ignore_errors=True)
    gpu_model.write_rows(args.data, case.work, case.prompts * (args.warmup + args.steps + 1))


def run_peer(args, case: Case) -> dict:
    """A step by transformers on the same prompts, or why there is none."""
    needed = ["torch", "transformers", "PIL", "torchvision"] + ["peft"] * case.adapters
    if case.graphs:
        return {"not_run": "beside the case without graphs"}
    missing = [package for package in needed if not has(package)]
    if not args.peer or missing:
        return {"not_run": f"no {', '.join(missing)}" if args.peer else "without --peer"}
    output = args.data / "peer.json"
    output.unlink(missing_ok=True)
    options = {
        "device": args.device, "prompts": case.prompts, "generations": case.generations, "completion-tokens": case.completion_tokens,
        "micro-batch": case.groups_per_pass * case.generations, "lora-r": LORA_R if case.adapters else 0, "output": output,
    }  # fmt: skip
    command = [sys.executable, str(HERE / "gpu_peer.py"), str(args.data), *common.flags(options)]
    command += ["--gradient-checkpointing"] * args.peer_recomputes
    try:
        common.watch(command, args.threads, args.data / "peer.log", until=Until(args.peer_secs))
    except Failure as failure:
        return {"not_run": str(failure)}
    return json.loads(output.read_text())


def run_case(args, case: Case) -> dict:
    """Everything that is known of a case."""
    start = time.perf_counter()
    speed = rates(args.device) if has("torch") else None
    if speed is None and not args.smoke:
        raise Failure("no torch in this Python: what the card can do cannot be measured\nhint: PYTHON=... names another")
    prepare(args, case)
    prepared = time.perf_counter() - start
    shape, work = SHAPES[case.shape], case.work
    extra = case.options(args.device) | dict(item.split("=", 1) for item in args.set)
    run = run_ours(args.binary, args.data, work, "bfloat16", args.threads, args.warmup, args.steps, extra, args.case_secs)
    phases, measured = run.phases, run.metrics[args.warmup :]
    record = {
        "case": asdict(case), "command_options": {key: str(value) for key, value in extra.items()}, "date": str(date.today()),
        "commit": commit(args), "machine": common.machine(speed["device"] if speed else "no GPU used"), "rates": speed,
        "prepare_secs": prepared, "startup_secs": run.startup_secs, "phases": phases, "step_secs": phases["total"],
        "all_step_secs": [line["secs"]["total"] for line in run.metrics],
        "tokens_per_sec": work.tokens / phases["rollout"], "train_flop": train_flop(shape, work, case.adapters),
        "step_flop": None if case.adapters else step_flop(shape, work, common.BETA),
        "peak_live_bytes": max(line["peak_live_bytes"] for line in measured), "peak_host_bytes": run.peak_bytes,
        "oom_retries": sum(line["oom_retries"] for line in run.metrics),
        "sampled_vs_trained_max": max(line["sampled_vs_trained_max"] for line in measured),
        "peer": run_peer(args, case),
    }  # fmt: skip
    return record | shares(args, case, record)


def shares(args, case: Case, record: dict) -> dict:
    """How near the run comes to what the card can do; numbers that need what was not measured are none."""
    speed, found = record["rates"], dict.fromkeys(("tokens_limit", "sampling_share", "train_share_measured", "train_share_nominal", "peer_ratio"))
    if speed:
        found["tokens_limit"] = case.work.completions * speed["copy_bytes_per_sec"] / decode_bytes(SHAPES[case.shape])
        found["sampling_share"] = record["tokens_per_sec"] / found["tokens_limit"]
        rate = record["train_flop"] / record["phases"]["train"]
        found["train_share_measured"] = rate / speed["matmul_flop_per_sec"]
        nominal = args.nominal_tflops or next((tflops for name, tflops in NOMINAL if name in speed["device"]), None)
        found["train_share_nominal"] = nominal and rate / (nominal * 1e12)
    if "steps" in record["peer"]:
        found["peer_ratio"] = median(step["total"] for step in record["peer"]["steps"]) / record["step_secs"]
    return found


def commit(args) -> str:
    """What the program says it was built from: it may have been carried to where there is no history."""
    said = json.loads((args.data / "run" / "env.json").read_text(encoding="utf-8"))["commit"]
    return said[:7] if said else "unknown"


HEADER = [
    "case", "trained", "sampling, tokens/s", "limit", f"share (goal {GOALS['sampling']:.0%})", "training, TFLOP in s",
    "share of measured", f"share of nominal (goal {GOALS['training']:.0%})", "reference / optimizer, s", "step, s", "peak GiB: tensors / host",
    f"transformers, s ( / ours, goal {GOALS['peer']:.0f})",
]  # fmt: skip


def cells(name: str, record: dict) -> list[str]:
    if "failed" in record:
        return [name, "failed, see below", *["-"] * (len(HEADER) - 2)]

    def share(key: str) -> str:
        return "not measured" if record[key] is None else f"**{record[key]:.1%}**"

    peer, limit, phases = record["peer"], record["tokens_limit"], record["phases"]
    if "steps" in peer:
        beside = f"{median(step['total'] for step in peer['steps']):.2f} (**{record['peer_ratio']:.1f}**)"
    else:
        beside = "not run, see below"
    return [
        name, f"adapters, r {LORA_R}" if record["case"]["adapters"] else "all weights", f"{record['tokens_per_sec']:.0f}",
        "not measured" if limit is None else f"{limit:.0f}", share("sampling_share"),
        f"{record['train_flop'] / 1e12:.3g} in {phases['train']:.2f}", share("train_share_measured"), share("train_share_nominal"),
        f"{phases.get('reference', 0):.2f} / {phases['optimizer']:.2f}", f"{record['step_secs']:.2f}",
        f"{record['peak_live_bytes'] / 2**30:.1f} / {record['peak_host_bytes'] / 2**30:.1f}", beside,
    ]  # fmt: skip


def quoted(failure: str) -> str:
    """A failure as a line: what went wrong, and the end of what the program said."""
    first, *rest = failure.splitlines()
    return " / ".join([first[:200], *(line.strip()[:200] for line in rest[-5:])])


def notes(name: str, record: dict) -> str:
    if "failed" in record:
        return f"- {name} failed: {quoted(record['failed'])}"
    speed = record["rates"]
    rate = "rates not measured" if speed is None else (
        f"copies {speed['copy_bytes_per_sec'] / 1e12:.3g} TB/s (read and written), `mm` in bf16 {speed['matmul_flop_per_sec'] / 1e12:.3g} TFLOP/s, "
        f"torch {speed['torch']}"
    )  # fmt: skip
    steps = " ".join(f"{secs:.2f}" for secs in record["all_step_secs"])
    phases = ", ".join(f"{phase} {secs:.2f}" for phase, secs in record["phases"].items())
    peer = record["peer"]
    if "steps" in peer:
        own = ", ".join(f"{phase} {median(step[phase] for step in peer['steps']):.2f}" for phase in peer["steps"][0])
        beside = f" transformers: {own}; {peer['trained']:,} numbers trained; {(peer['peak_bytes'] or 0) / 2**30:.1f} GiB of the card at most."
    else:
        beside = f" transformers not run: {quoted(peer['not_run'])}"
    return (
        f"- {name}: {record['date']}, commit {record['commit']}, {record['machine']}; {rate}. Medians in seconds: {phases}. All steps, warm-up first: "
        f"{steps}. Start to first step {record['startup_secs']:.1f} s. Passes halved for lack of memory: {record['oom_retries']}. Sampled against trained "
        f"log-probabilities: at most {record['sampled_vs_trained_max']:.3g} apart.{beside}"
    )


def write_report(results: Path, records: dict) -> str:
    line = lambda parts: "| " + " | ".join(parts) + " |"  # noqa: E731
    text = "\n".join([
        "# GRPO steps on a GPU", "",
        "Command: `benchmarks/gpu.sh`. Qwen2.5-VL shapes, random weights in bf16, f32 masters; an image a prompt, exactly as many tokens an answer as stated in gpu.json "
        f"(8 prompts, G 8, 256 tokens, {TEXT_TOKENS} tokens of text beside an image's). All weights: with a reference, beta {common.BETA}.", "",
        line(HEADER), "|" + "---|" * len(HEADER), *(line(cells(name, record)) for name, record in records.items()), "",
        "Limit of sampling: answers at a time x measured bandwidth / bytes of text layers and head, as if a decoding pass did nothing but read the weights; the time of sampling "
        "has prompts and images in it. Training: the counted arithmetic of the policy's forward and backward pass (`benchmarks/flop.py`) over its time; measured: the rate "
        "of a bf16 matrix product in the same call; nominal: the maker's dense bf16 rate. transformers: `generate`, reference pass, padded forward and backward pass, AdamW "
        "(`benchmarks/gpu_peer.py`).", "",
        *(notes(name, record) for name, record in records.items()), "",
    ])  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    (results / "gpu.md").write_text(text, encoding="utf-8")
    (results / "gpu.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return text


def check_smoke(records: dict) -> None:
    """Numbers that must be there on any machine."""
    for name, record in records.items():
        numbers = [record[key] for key in ("tokens_per_sec", "train_flop", "step_secs", "peak_live_bytes")]
        if record["rates"]:
            numbers += [record[key] for key in ("tokens_limit", "sampling_share", "train_share_measured")]
        if "steps" in record["peer"]:
            numbers.append(record["peer_ratio"])
        if not all(number > 0 for number in numbers):
            raise Failure(f"{name}: expected numbers above 0, got {numbers}")


def run(args) -> None:
    args.binary = common.find_binary(args.binary)
    known = SMOKE if args.smoke else CASES
    names = args.case or [name for name in known if not known[name].graphs or args.device.startswith("cuda")]
    if unknown := [name for name in names if name not in known]:
        raise Failure(f"--case: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    args.data.mkdir(parents=True, exist_ok=True)
    file = args.results / "gpu.json"
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    begin = time.perf_counter()
    for name in names:
        say(f"[{time.perf_counter() - begin:5.0f} s] {name}: at most {args.case_secs:.0f} s" + f" and {args.peer_secs:.0f} s for transformers" * args.peer)
        try:
            records[name] = run_case(args, known[name])
        except (Failure, subprocess.TimeoutExpired) as failure:
            records[name] = {"failed": str(failure)}
            say(f"    failed: {failure}")
        text = write_report(args.results, records)
    print(text)
    if failed := [name for name in names if "failed" in records[name]]:
        raise Failure(f"failed: {', '.join(failed)}; see {args.results / 'gpu.md'}")
    if args.smoke:
        check_smoke({name: records[name] for name in names})


def parse(temporary: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="our program; without it, target/release/vlm-r1")
    parser.add_argument("--case", nargs="+", help=f"some of {', '.join(CASES)}; without it, all")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--peer", action="store_true", help="transformers' step too, where it is installed")
    parser.add_argument("--peer-recomputes", action="store_true", help="transformers' activations are computed again in the backward pass")
    parser.add_argument("--device", help="as of vlm-r1; without it, cuda, for --smoke cpu")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--case-secs", type=float, default=300, help="longest run of ours in a case")
    parser.add_argument("--peer-secs", type=float, default=240, help="longest run of transformers in a case")
    parser.add_argument("--nominal-tflops", type=float, help="of the card in dense bf16; without it, by its name")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a flag of `vlm-r1 grpo`, several times")
    parser.add_argument("--data", type=Path, default=temporary, help="folder for model, rows and runs, 17 GB for the 7B shape")
    parser.add_argument("--results", type=Path, help="folder of gpu.md and gpu.json; without it, benchmarks/results, for --smoke none")
    args = parser.parse_args()
    args.device = args.device or ("cpu" if args.smoke else "cuda")
    args.results = args.results or (temporary / "results" if args.smoke else HERE / "results")
    if bad := [item for item in args.set if "=" not in item]:
        parser.error(f"--set: expected NAME=VALUE, got {', '.join(bad)}")
    return args


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            run(parse(Path(temporary)))
        except Failure as failure:
            raise SystemExit(f"error: {failure}") from None


if __name__ == "__main__":
    main()
