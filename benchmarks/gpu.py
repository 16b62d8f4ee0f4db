"""The first minutes on a GPU, in parts that each have a limit and a result of their own. Called by benchmarks/gpu.sh.

    benchmarks/gpu.sh --minutes 10 [--binary vlm-r1] [--parts proof,decode] [--results FOLDER]
    benchmarks/gpu.sh --rehearse                       # all parts whole with a tiny model, on the stand-in for CUDA
    benchmarks/gpu.sh --pack FOLDER                    # what a machine without Rust needs

Needs Python with PyTorch 2.11 and numpy, for `peer` transformers, Pillow and torchvision too. A part that is not done at its limit is
ended, and what it reached is kept. FOLDER/gpu.json has the record of each part as soon as it ended, FOLDER/gpu.md shows
them. Records of earlier calls stay. The exit code is 0 where all parts that ran passed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import HERE, Failure, say

# Seconds of each part, in the order of running. Half a minute of ten is left for one with several GPUs.
LIMITS = {"proof": 120, "decode": 60, "step3b": 120, "step7b": 120, "peer": 120}
TRAINED = {"step3b": "3B, all weights", "step7b": "7B, LoRA"}
# A rehearsal does without the first.
NEEDED = ("torch", "numpy")
NEEDED_BY_PEER = ("torch", "transformers", "PIL", "torchvision")
TORCH = "2.11."


def missing(packages: tuple[str, ...]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def torch_libraries() -> Path | None:
    """The libraries of this Python's PyTorch, which the program runs on."""
    found = importlib.util.find_spec("torch")
    if found is None:
        return None
    version = importlib.metadata.version("torch")
    if not version.startswith(TORCH):
        raise Failure(f"{sys.executable} has torch {version}, expected {TORCH}x\nhint: PYTHON=... names another interpreter")
    return Path(found.origin).parent / "lib"


def ended(process: subprocess.Popen, secs: float) -> bool:
    """Whether the process came to its end in time; else it is killed, with all that it started."""
    try:
        process.wait(secs)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def run_part(args, name: str, ours: float | None) -> dict:
    """Everything that is known of a part."""
    if name == "peer" and (lacking := missing(NEEDED_BY_PEER)):
        return {"outcome": "not run", "failed": f"no {', '.join(lacking)} in {sys.executable}"}
    file = args.data / f"{name}.json"
    file.unlink(missing_ok=True)
    options = {"device": args.device, "threads": args.threads, "data": args.data, "record": file, "until": LIMITS[name], "binary": args.binary}
    options |= {"libtorch": args.libtorch} if args.libtorch else {}
    options |= {"beside": ours} if ours else {}
    command = [sys.executable, str(HERE / "gpu_parts.py"), name, *common.flags(options), *["--rehearse"] * args.rehearse]
    command += [word for item in args.set for word in ("--set", item)]
    start = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    in_time = ended(process, LIMITS[name])
    record = json.loads(file.read_text()) if file.exists() else {"reached": []}
    record |= {"secs": time.perf_counter() - start, "limit_secs": LIMITS[name], "rehearsal": args.rehearse}
    if not in_time:
        return record | {"outcome": "killed at its limit"}
    if process.returncode:
        return record | {"outcome": "failed", "failed": record.get("failed", f"exited with {process.returncode}")}
    return record | {"outcome": "passed"}


def quoted(failure: str) -> str:
    """A failure as a line: what went wrong, and the end of what the program said."""
    first, *rest = failure.splitlines()
    return " / ".join([first[:300], *(line.strip()[:200] for line in rest[-5:])]).replace("|", "\\|")


def provenance(record: dict) -> str:
    """Day, program, machine, and what PyTorch reaches on it, as far as the part came to know them."""
    known = [record["date"], record.get("machine", record["device"])]
    if commit := record.get("commit"):
        known.append(f"commit {commit[:7]}")
    if rates := record.get("rates"):
        known.append(f"copies {rates['copy_bytes_per_sec'] / 1e12:.3g} TB/s (read and written)")
        known.append(f"`mm` {rates['matmul_flop_per_sec'] / 1e12:.3g} TFLOP/s, torch {rates['torch']}")
    return ", ".join(known)


def report(records: dict) -> str:
    lines = [
        "# The first minutes on a GPU",
        "",
        "Command: `benchmarks/gpu.sh` ([how](../README.md#on-a-gpu)). Qwen2.5-VL shapes, random weights in bf16.",
        "",
    ]
    if any(record.get("rehearsal") for record in records.values()):
        lines += ["**Rows marked as a rehearsal say nothing of a GPU**: tiny model, rates and peer on the CPU.", ""]
    lines += ["| part | outcome | s, of at most | result |", "|---|---|---|---|"]
    for name, record in records.items():
        outcome = record["outcome"] + ", rehearsal" * record.get("rehearsal", False)
        result = record.get("says") or quoted(record.get("failed") or "reached: " + "; ".join(record["reached"]))
        secs = f"{record['secs']:.0f} of {record['limit_secs']}" if "secs" in record else "-"
        lines.append(f"| {name}{', ' + TRAINED[name] if name in TRAINED else ''} | {outcome} | {secs} | {result} |")
    notes = [f"- {name}: {provenance(record)}" for name, record in records.items() if "date" in record]
    return "\n".join([*lines, "", *notes, ""])


def write_report(results: Path, records: dict) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / "gpu.md").write_text(report(records), encoding="utf-8")
    (results / "gpu.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def run(args) -> None:
    args.binary = common.find_binary(args.binary)
    args.libtorch = args.libtorch or torch_libraries()
    if lacking := missing(NEEDED[args.rehearse :]):
        raise Failure(f"no {', '.join(lacking)} in {sys.executable}\nhint: PYTHON=... names another interpreter")
    args.data.mkdir(parents=True, exist_ok=True)
    file = args.results / "gpu.json"
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    begin, ran = time.perf_counter(), []
    for name in args.parts:
        left = args.minutes * 60 - (time.perf_counter() - begin)
        if left < LIMITS[name]:
            say(f"{name}: not run, it may take {LIMITS[name]} s and {left:.0f} are left")
            continue
        say(f"[{time.perf_counter() - begin:4.0f} s] {name}: at most {LIMITS[name]} s")
        ours = records.get("step3b", {})
        ours = ours.get("step_secs") if ours.get("rehearsal") == args.rehearse else None
        records[name] = run_part(args, name, ours)
        say(f"    {records[name]['outcome']}" + (f": {records[name]['failed']}" if "failed" in records[name] else ""))
        write_report(args.results, records)
        ran.append(name)
    if ran:
        print(report(records))
    # A rehearsal may do without transformers.
    forgiven = ("passed", "not run") if args.rehearse else ("passed",)
    if not ran or (failed := [name for name in ran if records[name]["outcome"] not in forgiven]):
        raise Failure(f"not passed: {', '.join(failed)}; see {file}" if ran else "no part fits into --minutes")


def parse(temporary: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=sum(LIMITS.values()) / 60, help="parts are run while their limits fit")
    parser.add_argument("--parts", default=",".join(LIMITS), help=f"some of {','.join(LIMITS)}; without it, all")
    parser.add_argument("--binary", type=Path, help="our program, its engine beside it; without it, that of this checkout or pack")
    parser.add_argument("--libtorch", type=Path, help="folder of the program's libtorch; without it, that of this Python's PyTorch")
    parser.add_argument("--rehearse", action="store_true", help="all parts with a tiny model; rates and peer on the CPU")
    parser.add_argument("--device", default="cuda:0", help="as of vlm-r1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a flag of `vlm-r1 grpo` for the steps, several times")
    parser.add_argument("--data", type=Path, default=temporary, help="folder for models, rows and runs: 25 GB for all parts")
    parser.add_argument("--results", type=Path, help="folder of gpu.md and gpu.json; without it, benchmarks/results, of a rehearsal none")
    args = parser.parse_args()
    args.results = args.results or (temporary / "results" if args.rehearse else HERE / "results")
    args.parts = args.parts.split(",")
    if unknown := [name for name in args.parts if name not in LIMITS]:
        parser.error(f"--parts: got {', '.join(unknown)}, expected some of {', '.join(LIMITS)}")
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
