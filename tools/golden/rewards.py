"""Golden cases of the rewards, by Python's own `re`, `int`, `float` and `str`.

Writes golden/rewards/{rec,text,find}.jsonl and manifest.json. The rules are those that VLM-R1
(commit 90052f4) applies, written here from their description; nothing but the standard library
is needed: python3 tools/golden/rewards.py
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
BARE = TUPLE.replace("(", "").replace(")", "")
NUMBER = r"(\s*-?\d*\.?\d+\s*)"


# --- the rules ---------------------------------------------------------------------------------

def answers(text):
    return re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)


def iou(a, b, pixel):
    """`pixel` is 1 for VLM-R1's own rule and 0 for the plain one."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[2], b[2]) - pixel, min(a[3], b[3]) - pixel
    shared = 0
    if left < right and top < bottom:
        shared = (right - left + pixel) * (bottom - top + pixel)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    try:
        return float(shared) / (both - shared)
    except (ZeroDivisionError, OverflowError):
        return 0.0


def integers(match):
    """None where Python refuses the digits (more than 4300) or has no float for them."""
    try:
        box = [int(group) for group in match.groups()]
        [float(corner) for corner in box]
        return box
    except (ValueError, OverflowError):
        return None


def to_image(box, seen, original):
    sides = [0, 1, 0, 1]
    return [corner / seen[side] * original[side] for corner, side in zip(box, sides)]


def rec_accuracy(family, completion, solution, seen, original):
    truth = json.loads(answers(solution)[-1])
    found = answers(completion)
    match = re.search(TUPLE, found[0]) if found else None
    box = integers(match) if match else None
    if box is None:
        return 0.0
    if family == "qwen2_5_vl":
        box = to_image(box, seen, original)
    return iou(box, truth, 0 if family == "glm4v" else 1)


REC_FORMAT = {
    "qwen2_5_vl": r"<think>.*?</think>\s*<answer>.*?\{.*" + BARE + r".*\}.*?</answer>",
    "internvl": r"<think>.*?</think>\s*<answer>.*?" + BARE + r".*?</answer>",
    "glm4v": r"<think>(.*?)<answer>(.*?)</answer>",
}


def rec_format(family, completion):
    return float(re.search(REC_FORMAT[family], completion, re.DOTALL) is not None)


def whole_format(completion):
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    return float(re.fullmatch(pattern, completion, re.DOTALL) is not None)


def cleaned(text):
    found = answers(text)
    if found:
        text = found[-1]
    for line_break in "\n\r":
        text = re.sub(r"(?<=\s)" + line_break, "", text)
        text = re.sub(r"(?<!\s)" + line_break, " ", text)
    return text.strip().rstrip(".").lower()


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
    digits = rng.choice([str] * 8 + [lambda n: f"{n}.5", lambda n: f"-{n}", arabic, lambda n: f" {n} "])
    text = "[" + comma.join(digits(n) for n in box) + "]"
    return text.replace("[", "[ ").replace("]", " ]") if rng.random() < 0.05 else text


def arabic(number):
    return "".join(chr(0x0660 + int(d)) for d in str(number))


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


def rec_cases(rng, count):
    for index in range(count):
        family = list(REC_FORMAT)[index % 3]
        original = [rng.randint(20, 900), rng.randint(20, 900)]
        patch = rng.choice([8, 14, 14, 16])
        grid = [1, 2 * rng.randint(1, 32), 2 * rng.randint(1, 32)]
        seen = [grid[2] * patch, grid[1] * patch]
        truth = random_box(rng, *original)
        if rng.random() < 0.2:
            truth = [n + rng.choice([0.25, 0.5, 0.1]) for n in truth]
        if family == "qwen2_5_vl":
            near = [n * s / o for n, s, o in zip(truth, seen * 2, original * 2)]
        else:
            near = truth
        shake = rng.choice([0, 1, 4, 20])
        box = [max(0, round(n) + rng.randint(-shake, shake)) for n in near]
        if rng.random() < 0.1:
            box = [box[2], box[1], box[0], box[3]]
        if rng.random() < 0.02:
            box[2] = int("9" * 400)
        completion = completion_with(rng, answer_body(rng, box))
        solution = f"<answer> {json.dumps(truth)} </answer>"
        yield {
            "family": family, "completion": completion, "solution": solution,
            "image_size": original, "image_grid_thw": grid, "patch_size": patch,
            "accuracy": rec_accuracy(family, completion, solution, seen, original),
            "format": rec_format(family, completion),
        }


def text_cases(rng, count):
    words = ["Yes", "no", "CLICK", "Straße", "ΟΔΟΣ", "İ", "3.0", "a b", "None", "ﬁ", "."]
    glue = [" ", "\n", " \n", "\r\n", "\r", "\n\n", "\t", "\x1f", "\u0085", ".", "...", "", "\n \r"]
    for _ in range(count):
        def text():
            parts = [rng.choice(words + glue) for _ in range(rng.randint(0, 5))]
            body = "".join(parts)
            return body, rng.choice(glue) + body + rng.choice(glue)
        plain, loose = text()
        other = rng.choice([loose, loose.upper(), plain, text()[1]])
        tagged = rng.choice([
            other, f"<answer>{other}</answer>", f"<answer>x</answer><answer>{other}</answer>",
            completion_with(rng, other), f"<answer>{other}",
        ])
        solution = f"<answer> {plain} </answer>"
        yield {
            "completion": tagged, "solution": solution, "cleaned": cleaned(tagged),
            "all_match": float(cleaned(tagged) == cleaned(solution)),
            "format": whole_format(tagged),
        }


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
    rng = random.Random(SEED)
    OUT.mkdir(parents=True, exist_ok=True)
    files = {"rec": rec_cases(rng, 300), "text": text_cases(rng, 250), "find": find_cases(rng, 200)}
    counts = {}
    for name, cases in files.items():
        lines = [json.dumps(case, ensure_ascii=True) for case in cases]
        (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        counts[f"{name}.jsonl"] = len(lines)
    manifest = {
        "made_by": "tools/golden/rewards.py", "python": platform.python_version(),
        "unicode": unicodedata.unidata_version, "seed": SEED, "tolerance": 0, "cases": counts,
    }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
