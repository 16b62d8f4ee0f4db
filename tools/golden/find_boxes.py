"""Golden cases of the extractors of evaluation, by Python's own `re`, `int` and `float`.

Writes golden/rewards/find.jsonl and find_manifest.json. The rules are those that VLM-R1's evaluation scripts
(commit 90052f4) apply, written here from their description; nothing but the standard library is
needed: python3 tools/golden/find_boxes.py
"""

import json
import platform
import random
import re
import unicodedata
from pathlib import Path

SEED = 20250414
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards"

TUPLE = r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]"
NUMBER = r"(\s*-?\d*\.?\d+\s*)"


# --- the rules ---------------------------------------------------------------------------------

def answers(text):
    return re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)


def integers(match):
    """None where Python refuses the digits (more than 4300) or has no float for them."""
    try:
        box = [int(group) for group in match.groups()]
        [float(corner) for corner in box]
        return box
    except (ValueError, OverflowError):
        return None


def find_thinking(completion):
    found = answers(completion)
    match = re.search(r"\{.*" + TUPLE + r"\s*.*\}", found[0], re.DOTALL) if found else None
    return integers(match) if match else None


def find_baseline(completion):
    match = re.search(r"\[" + ",".join([NUMBER] + [r"\s*" + NUMBER] * 3) + r"\]", completion)
    if not match:
        return None
    box = [float(group) for group in match.groups()]
    return None if any(abs(corner) == float("inf") for corner in box) else box


# --- the cases ---------------------------------------------------------------------------------

def random_box(rng, width, height, spread=1.0):
    xs = sorted(rng.randint(0, int(width * spread)) for _ in range(2))
    ys = sorted(rng.randint(0, int(height * spread)) for _ in range(2))
    return [xs[0], ys[0], xs[1] + 1, ys[1] + 1]


def written(rng, box):
    """A box as models write it, now and then as they should not."""
    comma = rng.choice([", ", ", ", ",", ",\n", ", \t", ",\u00a0", ",\x1d", " ,", ";"])
    digits = rng.choice([str] * 8 + [lambda n: f"{n}.5", lambda n: f"-{n}", arabic, lambda n: f" {n} ", lambda n: f"0{n}"])
    text = "[" + comma.join(digits(n) for n in box) + "]"
    return text.replace("[", "[ ").replace("]", " ]") if rng.random() < 0.05 else text


def arabic(number):
    return "".join(chr(0x0660 + int(d)) if d.isdigit() else d for d in str(number))


def answer_body(rng, box):
    text = written(rng, box)
    other = written(rng, [n + 1 for n in box])
    return rng.choice([
        '{"bbox_2d": %s, "label": "red ball"}' % text,
        '```json\n[\n\t{"bbox_2d": %s, "label": "x"}\n]\n```' % text,
        '{"bbox_2d": %s}' % text,
        '{"a": %s, "b": %s}' % (text, other),
        "%s {%s} %s" % (other, text, other),
        "{%s} {}" % text,
        "}%s{" % text,
        text,
        "The box is %s." % text,
        '{"bbox_2d": [1, 2, 3]}',
        "",
        "{[[%s]]}" % text,
        "%s%s" % (text[:-1], text),
    ])


def completion_with(rng, body):
    space = rng.choice(["", "", " ", "\n", "\n\n", "\x1c", "\u2003", "x"])
    return rng.choice([
        f"<think>some\nthought</think>{space}<answer>{body}</answer>",
        f"<think>some thought</think>{space}<answer>\n{body}\n</answer>",
        f"<think></think>{space}<answer>{body}</answer>",
        f"<think>a</think>{space}<answer>{body}</answer>\n",
        f" <think>a</think>{space}<answer>{body}</answer>",
        f"<think>a</think> b <think>c</think>{space}<answer>{body}</answer>",
        f"<think>a <answer>{body}</answer> </think>{space}<answer>[1, 1, 2, 2]</answer>",
        f"<answer>{body}</answer>",
        f"<think>a</think><answer>{body}",
        f"<think>a<answer>{body}</answer>",
        f"<answer>none</answer><think>a</think>{space}<answer>{body}</answer>",
        f"<think>{body}</think>{space}<answer></answer>",
        body,
    ])


def find_cases(rng, count):
    for _ in range(count):
        box = random_box(rng, 500, 500)
        if rng.random() < 0.02:
            box[0] = int("7" * 400)
        completion = completion_with(rng, answer_body(rng, box))
        yield {
            "completion": completion, "thinking": find_thinking(completion),
            "baseline": find_baseline(completion),
        }


def main():
    lines = [json.dumps(case) for case in find_cases(random.Random(SEED), 200)]
    (OUT / "find.jsonl").write_text("\n".join(lines) + "\n")
    manifest = {
        "made_by": "tools/golden/find_boxes.py", "python": platform.python_version(),
        "unicode": unicodedata.unidata_version, "seed": SEED, "tolerance": 0, "cases": {"find.jsonl": len(lines)},
    }
    (OUT / "find_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
