"""Time of VLM-R1's own reward functions and of ours, on the same rows, in one run, on one core.

    cargo build --release -p rewards --example reward_speed
    python benchmarks/rewards.py --checkout VLM-R1 --binary target/release/examples/reward_speed

Needs what `tools/golden/vlm_r1_code.py` names. Writes the table to `benchmarks/results/rewards.md`. The scores of both are
compared row by row; where more differ than the known few (docs/maths.md), the run fails.

Time is of the processor, user and system, so that other load disturbs little: of Python's call alone, and of ours as
the mean over many passes, with the reading of the rows taken off; beside it the median pass by the clock. A whole
process starts, reads the rows, scores them once and prints the scores.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "golden"))

import vlm_r1_cases as cases  # noqa: E402
from vlm_r1_code import COMMIT, METHODS, Reference, versions  # noqa: E402

SEED = 20250417
ROWS = 1000
BOXES, TRUTHS = 20, 10
LABELS = ["person", "traffic light", "dog", "red car"]
TOLERANCE = 1e-9
# Largest share of rows whose mathematics is read otherwise.
MATHS_SHARE = 0.01
THOUGHT = "There are a few things here; let me look at them one by one. " * 8
OUR_PASSES, PYTHON_PASSES = 20, 3


# --- rows --------------------------------------------------------------------------------------

def boxes_row(rng, _index):
    truths, found = [], []
    for n in range(BOXES):
        x, y = rng.randint(0, 900), rng.randint(0, 700)
        label = rng.choice(LABELS)
        box = [x, y, x + rng.randint(20, 200), y + rng.randint(20, 200)]
        if n < TRUTHS:
            truths.append({"bbox_2d": box, "label": label})
        found.append({"bbox_2d": [corner + rng.randint(-6, 6) for corner in box], "label": label})
    rng.shuffle(found)
    block = "```json\n%s\n```"
    return block % json.dumps(found), block % json.dumps(truths)


def rec_row(rng, _index):
    x, y = rng.randint(0, 400), rng.randint(0, 300)
    box = [x, y, x + rng.randint(20, 200), y + rng.randint(20, 200)]
    near = [max(0, corner + rng.randint(-9, 9)) for corner in box]
    return json.dumps({"bbox_2d": near, "label": "the red car"}), json.dumps(box)


def words_row(rng, index):
    return (cases.word_case if index % 2 else cases.number_case)(rng)


MAKERS = {
    "boxes": boxes_row, "rec": rec_row, "choice": lambda rng, _: cases.choice_case(rng), "words": words_row,
    "maths": lambda rng, _: cases.maths_case(rng),
}
RULES = [
    ("odLength+format", "boxes"), ("map", "boxes"), ("od_ap50", "boxes"), ("weighted_sum", "boxes"),
    ("length", "boxes"), ("repetition", "boxes"), ("qwen2_5_vl/accuracy", "rec"), ("qwen2_5_vl/format", "rec"),
    ("mcq", "choice"), ("yes_no", "choice"), ("all_match", "words"), ("default", "words"), ("math", "maths"),
]


def rows_of(kind):
    rng = random.Random(f"{SEED} {kind}")
    for index in range(ROWS):
        answer, truth = MAKERS[kind](rng, index)
        yield {
            "completion": f"<think>{THOUGHT}</think>\n<answer>{answer}</answer>",
            "solution": f"<answer> {truth} </answer>",
            "tokens": rng.randint(1, 1024), "image_size": [640, 480], "image_grid_thw": [1, 34, 46],
        }


# --- the two -----------------------------------------------------------------------------------

def python_once(reference, rule, rows):
    """Milliseconds by processor and by clock, and the scores, of one call with all rows."""
    names = {"length": reference.mended}.get(rule, reference.names)
    chats = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
    truths = [row["solution"] for row in rows]
    more = {}
    if "/" in rule:
        family, kind = rule.split("/")
        call = reference.families[family]["iou_reward" if kind == "accuracy" else "format_reward_rec"]
        more = {"image_path": [[row["image_size"]] for row in rows], "image_grid_thw": [row["image_grid_thw"] for row in rows]}
    elif rule in METHODS:
        call, more = names["accuracy_reward"], {"accu_reward_method": [rule] * len(rows)}
    else:
        call = names[{"format": "format_reward", "length": "cosine_rewards", "repetition": "repetition_rewards"}[rule]]
    if rule == "length":
        names["tokenizer"] = Counted(rows)
    cpu, clock = time.process_time(), time.perf_counter()
    scores = call(chats, solution=truths, **more)
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3, scores


class Counted:
    """In place of a tokenizer: as many tokens as each row says, at no cost."""

    def __init__(self, rows):
        self.counts = {row["completion"]: range(row["tokens"]) for row in rows}

    def encode(self, text):
        return self.counts[text]


def python(reference, rules, rows):
    cpu, clock, scores = [], [], []
    with open(os.devnull, "w") as nothing:
        kept, sys.stdout = sys.stdout, nothing
        try:
            for _ in range(PYTHON_PASSES):
                parts = [python_once(reference, rule, rows) for rule in rules.split("+")]
                cpu.append(sum(part[0] for part in parts))
                clock.append(sum(part[1] for part in parts))
                scores = [sum(values) for values in zip(*(part[2] for part in parts))]
        finally:
            sys.stdout = kept
    return statistics.median(cpu), statistics.median(clock), scores


def watched(command):
    """Milliseconds of processor and clock of a process, and what it printed."""
    clock = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: exit status {status}")
    return (usage.ru_utime + usage.ru_stime) * 1e3, (time.perf_counter() - clock) * 1e3, json.loads(out)


def ours(binary, path, rules):
    start = min(watched([binary, path, rules, "0"])[0] for _ in range(5))
    total, _, said = watched([binary, path, rules, str(OUR_PASSES)])
    whole = statistics.median(watched([binary, path, rules, "1"])[1] for _ in range(5))
    return (total - start) / OUR_PASSES, statistics.median(said["pass_ms"]), whole, said["scores"]


# --- the table ---------------------------------------------------------------------------------

def compare(reference, binary, path, rules, kind):
    rows = list(rows_of(kind))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cpu, clock, expected = python(reference, rules, rows)
    our_cpu, our_clock, whole, got = ours(binary, path, rules)
    differing = sum(abs(a - b) > TOLERANCE for a, b in zip(expected, got, strict=True))
    if differing > (MATHS_SHARE * ROWS if rules in ("default", "math") else 0):
        raise SystemExit(f"{rules}: {differing} of {ROWS} rows score otherwise than in VLM-R1")
    print(f"{rules}: {cpu:.1f} ms and {our_cpu:.2f} ms", file=sys.stderr)
    return (
        f"| {rules} | {kind} | {cpu:,.0f} | {our_cpu:.2f} | {cpu / our_cpu:,.0f} | {clock:,.0f} | {our_clock:.2f} | {whole:.1f} "
        f"| {differing} |"
    )


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkout", type=Path, required=True, help="a checkout of VLM-R1")
    arguments.add_argument("--binary", type=Path, required=True, help="the example reward_speed")
    arguments.add_argument("--rules", help="only these, split by commas; then the table is only printed")
    arguments.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "rewards.md")
    arguments = arguments.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    reference = Reference(arguments.checkout)
    only = arguments.rules.split(",") if arguments.rules else [rule for rule, _ in RULES]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        lines = [compare(reference, arguments.binary, path, *pair) for pair in RULES if pair[0] in only]
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    text = f"""# Rewards: VLM-R1's functions and ours

`benchmarks/rewards.py` at {commit}; {ROWS:,} rows of each kind, the same for both, seed {SEED}. One core of {os.cpu_count()} ({processor()}), which
other programs shared (load {load:.1f} at the start). VLM-R1 {COMMIT}, Python {platform.python_version()}, {named}.

Milliseconds for all rows. "Processor" is the time that the core spent on it, in Python the median of {PYTHON_PASSES} calls, in ours the mean of
{OUR_PASSES} passes; the ratio is of these. "Clock" is the median. "Process" is ours from start to end: reading, one pass, printing.

| rule | rows | Python, processor | ours, processor | ratio | Python, clock | ours, clock | ours, process | scores that differ |
|---|---|---|---|---|---|---|---|---|
""" + "\n".join(lines) + f"""

`boxes`: {BOXES} boxes, {TRUTHS} true ones, four labels; `rec`: one box; `choice`, `words`, `maths`: the corpus of `tools/golden/vlm_r1.py`,
each within the tags that are asked for and after a thought of {len(THOUGHT)} characters. Scores that differ are readings of
mathematics ([which](../../docs/maths.md)). `length` in Python is without `acc_reward = 1.0`; tokens are given, not counted.
"""
    if arguments.rules:
        print(text)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
