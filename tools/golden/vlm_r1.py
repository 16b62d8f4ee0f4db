"""A corpus of completions scored by VLM-R1's own reward functions.

Writes golden/rewards/vlm_r1/{texts,boxes,repeats,rec}.jsonl and manifest.json. A line is a completion, its
solution, what else the rules look at, and `scores`: by rule a number, or, where ours is meant to differ,
`{"reference": ..., "ours": ..., "why": ...}`. Needs a checkout of VLM-R1, which it reads and does not fetch,
and the packages that `vlm_r1_code.py` names:

    python tools/golden/vlm_r1.py --checkout VLM-R1

`--scale N --seed S --out DIR` writes N times as many other cases elsewhere; `VLM_R1_CASES=DIR cargo test -p rewards
vlm_r1` then compares those instead.

`length` of the reference is as released. Ours is meant to be the same without the line `acc_reward = 1.0`, by which
every answer is scored as a correct one, and with at most 1,024 tokens. Tokens are not counted but given.
"""

import argparse
import collections
import json
import math
import platform
import random
import re
import subprocess
from pathlib import Path

import vlm_r1_cases as cases
from detection import is_counted
from vlm_r1_code import COMMIT, METHODS, MODULES, Reference, versions

SEED = 20250416
TOLERANCE = 1e-9
MAX_TOKENS = 1024
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards" / "vlm_r1"
OD = ["od_ap", "od_ap50", "odLength"]
BOXES = ["map", *OD, "weighted_sum"]
REC = [f"{family}/{kind}" for family in MODULES for kind in ["accuracy", "format"]]
TEXT = [method for method in METHODS if method not in BOXES]
# File: maker, lines, rules.
FILES = {
    "texts": (cases.text_case, 1600, [*TEXT, "format"]),
    "boxes": (cases.boxes_case, 800, [*BOXES, "format", "length", "repetition"]),
    "repeats": (cases.repeats_case, 500, ["length", "repetition", "format"]),
    "rec": (cases.rec_case, 600, REC),
}
REASONS = {
    "truth": "a truth that cannot be read is an error when the data is loaded",
    "bare truth": "a truth without answer tags is read as a whole",
    "number": "a predicted box with a number that is not finite or does not fit is dropped",
    "label": "a predicted label that is not text is empty in weighted_sum",
    "lines": "llm without a judge: VLM-R1 does not see the answer of a truth in several lines",
    "list": "repetition of a list: VLM-R1 fails on items that are no objects, and on numbers and depths that Python refuses",
    "overwritten": "length of a wrong answer: VLM-R1 overwrites the accuracy by 1",
    "tokens": "length of more than 1,024 tokens: VLM-R1's cosine comes back",
    "area": "no true box has an area of 0 to 1e10 px^2: an error when the data is loaded",
}
BLOCK = re.compile(r"```json(.*?)```", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


# --- what ours is meant to say, by VLM-R1's functions over mended texts ------------------------

def is_finite(number):
    try:
        return isinstance(number, (int, float)) and math.isfinite(number)
    except OverflowError:
        return False


def is_box(box):
    return isinstance(box, list) and len(box) >= 4 and all(map(is_finite, box[:4]))


def fault_of(block):
    """Why a truth's block is an error: `truth`, `area` or nothing."""
    if not block:
        return None
    try:
        items = json.loads(block)
    except (ValueError, RecursionError):
        return "truth"
    if not isinstance(items, list):
        return "truth"
    for item in items:
        if not isinstance(item, dict) or not is_box(item.get("bbox_2d")):
            return "truth"
        if "label" not in item or isinstance(item["label"], (list, dict)):
            return "truth"
    if items and not any(is_counted({"bbox_2d": [float(n) for n in item["bbox_2d"][:4]]}) for item in items):
        return "area"
    return None


def block_in(text, which):
    blocks = BLOCK.findall(text)
    return blocks[which].strip() if blocks else None


def fault_of_truth(rule, solution, clean):
    if rule == "weighted_sum" or rule == "length":
        return None if clean(solution) == "none" else fault_of(block_in(clean(clean(solution)), 0))
    if rule in OD:
        answer = ANSWER.search(solution)
        return fault_of(block_in(answer.group(1).strip(), -1)) if answer else "truth"
    return fault_of(block_in(solution, -1))


def fault_of_box(solution):
    """As `fault_of`, of a referring expression's truth."""
    found = ANSWER.findall(solution)
    try:
        box = json.loads((found[-1] if found else solution).strip())
    except ValueError:
        return "truth"
    is_read = isinstance(box, list) and len(box) == 4 and all(is_finite(n) and not isinstance(n, bool) for n in box)
    return None if is_read else "truth"


def mended(rule, completion, clean):
    """The text that a rule scores with odd boxes dropped and odd labels empty, and why it differs from before."""
    if rule in OD:
        found = ANSWER.findall(completion)
        text = found[-1].strip() if found else None
    else:
        text = completion if rule == "map" else clean(clean(completion))
    why = None

    def mend(match):
        nonlocal why
        try:
            items = json.loads(match.group(1).strip())
        except (ValueError, RecursionError):
            return match.group()
        if not isinstance(items, list):
            return match.group()
        for item in items:
            if not isinstance(item, dict):
                continue
            box = item.get("bbox_2d")
            if isinstance(box, list) and not is_box(box) and any(isinstance(n, (int, float)) and not is_finite(n) for n in box[:4]):
                del item["bbox_2d"]
                why = "number"
            if rule not in OD and rule != "map" and not isinstance(item.get("label"), str):
                item["label"] = ""
                why = why or "label"
        return f"```json\n{json.dumps(items)}\n```"

    if text is None:
        return completion, None
    text = BLOCK.sub(mend, text)
    if why is None:
        return completion, None
    return (f"<answer>{text}</answer>" if rule in OD else text), why


def meant(reference, rule, case):
    """What ours is meant to say where it may differ from VLM-R1, and why."""
    clean = reference.names["clean_text"]
    if rule.endswith("/accuracy"):
        why = fault_of_box(case["solution"])
        if why is None and not ANSWER.search(case["solution"]):
            tagged = {**case, "solution": f"<answer>{case['solution']}</answer>"}
            return reference.score(rule, tagged), "bare truth"
        return "error", why
    if rule == "llm":
        answer = ANSWER.search(case["solution"])
        bare = answer.group(1) if answer else case["solution"]
        return reference.score(rule, {**case, "solution": bare}), "lines"
    if rule == "repetition":
        return reference.score("repetition_mended", case), "list"
    why = fault_of_truth(rule, case["solution"], clean)
    if why is not None:
        return "error", why
    completion, why = mended(rule, case["completion"], clean)
    case = {**case, "completion": completion}
    if rule == "length":
        why = why or ("tokens" if case["tokens"] > MAX_TOKENS else "overwritten")
        return reference.score("length_mended", {**case, "tokens": min(case["tokens"], MAX_TOKENS)}), why
    return reference.score(rule, case), why


def scored(reference, rule, case):
    score = reference.score(rule, case)
    if rule.endswith("/accuracy") or rule in [*BOXES, "length", "repetition", "llm"]:
        ours, why = meant(reference, rule, case)
        if why is not None and ours != score:
            return {"reference": score, "ours": ours, "why": why}
    return score


# --- files -------------------------------------------------------------------------------------

def plain(score):
    """JSON has no NaN, and a whole number is shorter without its point."""
    if isinstance(score, dict):
        return {key: plain(value) for key, value in score.items()}
    if isinstance(score, float):
        return int(score) if score.is_integer() else score if math.isfinite(score) else str(score)
    return score


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkout", type=Path, required=True, help="a checkout of VLM-R1")
    arguments.add_argument("--scale", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--out", type=Path, default=OUT)
    arguments = arguments.parse_args()
    git = ["git", "-C", arguments.checkout, "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    if commit not in ("", COMMIT):
        raise SystemExit(f"{arguments.checkout}: at commit {commit}, expected {COMMIT}")
    reference = Reference(arguments.checkout)
    rng = random.Random(arguments.seed)
    counts, differences = collections.Counter(), collections.defaultdict(collections.Counter)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, (make, lines, rules) in FILES.items():
        texts = []
        for _ in range(lines * arguments.scale):
            case = make(rng)
            case["scores"] = {rule: plain(scored(reference, rule, case)) for rule in rules}
            for rule, score in case["scores"].items():
                counts[rule] += 1
                if isinstance(score, dict):
                    differences[rule][score["why"]] += 1
            texts.append(json.dumps(case, ensure_ascii=True, separators=(",", ":")))
        (arguments.out / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
    manifest = {
        "made_by": "tools/golden/vlm_r1.py", "vlm_r1": COMMIT, "python": platform.python_version(), **versions(),
        "seed": arguments.seed, "tolerance": TOLERANCE, "cases": sum(counts.values()), "cases_by_rule": counts,
        "reasons": REASONS, "meant_to_differ": differences,
    }
    (arguments.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
