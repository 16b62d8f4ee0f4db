"""What the benchmarks share: running a program under watch, ours with its options, and naming the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from flop import Work

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BETA = 0.04
LEARNING_RATE = 1e-6
SEED = 42
BUSY = 0.7


class Failure(Exception):
    """A program that failed, or did other work than asked for."""


@dataclass(frozen=True)
class Watched:
    """How a program ran."""

    secs: float
    peak_bytes: int
    # Seconds from the start at which each line of the watched file had appeared.
    line_secs: list[float]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(threads: int, libtorch: Path | None = None) -> dict[str, str]:
    """The same threads for both programs. Waiting threads sleep soon, as ours have it, so that other load disturbs both alike. `libtorch`
    is where our program finds its libraries, where not in those that it was built with."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    libraries = {"LD_LIBRARY_PATH": str(libtorch)} if libtorch else {}
    return os.environ | dict.fromkeys(names, str(threads)) | {"GOMP_SPINCOUNT": "1000"} | quiet | libraries


@dataclass(frozen=True)
class Until:
    """When a program is killed that has not ended by itself."""

    # After so long; a failure, unless the watched file has `least` lines.
    secs: float = float("inf")
    least: int | None = None
    # No failure: the watched file has so many lines.
    lines: int | None = None


def watch(
    command: list[str], threads: int, log: Path, lines_of: Path | None = None, until: Until = Until(), libtorch: Path | None = None
) -> Watched:  # fmt: skip
    """Runs `command` to its end; its peak memory is that of its largest process."""
    line_secs: list[float] = []
    enough = False
    with log.open("wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment(threads, libtorch), stdout=sink, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.perf_counter() - start
            if lines_of is not None and lines_of.exists():
                line_secs += [now] * (lines_of.read_bytes().count(b"\n") - len(line_secs))
            if pid:
                break
            enough = until.lines is not None and len(line_secs) >= until.lines
            if enough or now > until.secs:
                # Not by `Popen`, which would take the exit status for itself.
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    if now > until.secs and not enough:
        enough = until.least is not None and len(line_secs) >= until.least
        if not enough:
            raise Failure(f"took more than {until.secs:g} s: `{' '.join(command)}`:\n{tail}")
    if process.returncode and not enough:
        raise Failure(f"`{' '.join(command)}` exited with {process.returncode}:\n{tail}")
    return Watched(now, usage.ru_maxrss * 1024, line_secs)


def expect(what: str, got, expected) -> None:
    if got != expected:
        raise Failure(f"{what}: expected {expected}, got {got}")


@dataclass(frozen=True)
class Ours:
    """Steps of our program: seconds as seen from outside and by its own clock, warm-up left out."""

    secs: list[float]
    phases: dict[str, float]
    peak_bytes: int
    metrics: list[dict]
    rollouts: list[dict]
    # Seconds from the start of the process to the beginning of its first step.
    startup_secs: float


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flags(options: dict) -> list[str]:
    def word(value) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [part for name, value in options.items() for part in (f"--{name}", word(value))]


def ours_command(binary: Path, data: Path, out: Path, work: Work, dtype: str, steps: int, extra: dict) -> list[str]:
    options = {
        "model_name_or_path": data / "model", "data_file_paths": data / "rows.jsonl", "image_folders": data / "images",
        "question_template": "none", "reward_funcs": f"{HERE / 'vowels.py'}:vowel_share", "reward_python": sys.executable,
        "bf16": dtype == "bfloat16", "num_generations": work.generations,
        "per_device_train_batch_size": work.completions, "min_completion_length": work.completion_tokens,
        "max_completion_length": work.completion_tokens, "beta": BETA, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "seed": SEED, "max_steps": steps, "save_strategy": "no", "output_dir": out,
    }  # fmt: skip
    return [str(binary), "grpo", *flags(options | extra)]


def run_ours(
    binary: Path, data: Path, work: Work, dtype: str, threads: int, warmup: int, steps: int,
    extra: dict | None = None, limit_secs: float | None = None, libtorch: Path | None = None,
) -> Ours:  # fmt: skip
    """Trains `warmup + steps` steps; fails where one did other work than `work` says. With a limit of seconds the program is killed in
    the step after, so that it writes no checkpoint, or at the limit, if a step after the warm-up was seen by then."""
    out = data / "run"
    shutil.rmtree(out, ignore_errors=True)
    options = {"num_threads": threads, **(extra or {})}
    asked = warmup + steps
    until = Until() if limit_secs is None else Until(limit_secs, warmup + 1, asked)
    command = ours_command(binary, data, out, work, dtype, asked + (limit_secs is not None), options)
    watched = watch(command, threads, data / "ours.log", out / "metrics.jsonl", until, libtorch)
    metrics = read_jsonl(out / "metrics.jsonl")[:asked]
    watched.line_secs[asked:] = []
    if limit_secs is None:
        expect("steps of ours", (len(metrics), len(watched.line_secs)), (asked,) * 2)
    rollouts = []
    for line in metrics:
        expect("tokens of a completion", line["completion_length"], float(work.completion_tokens))
        expect("groups with equal rewards", line["zero_spread_groups"], 0)
        rollouts = read_jsonl(out / "rollouts" / f"step_{line['step']:06}.jsonl")
        expect("completions of a step", len(rollouts), work.completions)
        expect("tokens of a step", sum(row["tokens"] for row in rollouts), work.tokens)
    own = [line["secs"]["total"] for line in metrics]
    # The first line has the start of the program before it: there only our own clock is to be had.
    seen = [own[0]] + [b - a for a, b in zip(watched.line_secs, watched.line_secs[1:])]
    measured = metrics[warmup:]
    phases = {key: median(line["secs"][key] for line in measured) for key in measured[0]["secs"] if key != "checkpoint"}
    return Ours(seen[warmup:], phases, watched.peak_bytes, metrics, rollouts, watched.line_secs[0] - own[0])


def machine(gpu: str = "no GPU used") -> str:
    """Processor, its matrix instructions, cores, memory."""
    text = Path("/proc/cpuinfo").read_text()
    field = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines()) if v}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    features = [name for name in known if name in field.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = field.get("model name", platform.machine())
    return f"{name} ({', '.join(features)}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {gpu}"


def commit() -> str:
    """The commit the checkout is at, marked where files of the program differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "crates", "Cargo.toml", "Cargo.lock")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def find_binary(given: Path | None) -> Path:
    packed = ROOT / "vlm-r1"
    path = given or (packed if packed.is_file() else ROOT / "target" / "release" / "vlm-r1")
    if not path.is_file():
        raise Failure(f"{path}: no such program\nhint: `make build`, or name it with --binary")
    return path.resolve()


def load_note() -> str:
    """For the results: how busy the machine was. Where other work shares the cores, times are not to be kept."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"warning: load average {load:.1f}: other work shares the cores", file=sys.stderr)
    return f"load average at the start {load:.1f}"


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
