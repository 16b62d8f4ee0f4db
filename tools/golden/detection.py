"""Golden cases of the detection rewards, by VLM-R1's own functions over pycocotools.

Writes golden/rewards/detection.jsonl (texts in, score of each accuracy method out),
detection_coco.jsonl (boxes of several images in, AP, AP50 and both after OVDEval's suppression out)
and detection_manifest.json. Needs pycocotools and a checkout of VLM-R1, which it reads and does not
fetch:

    git clone https://github.com/om-ai-lab/VLM-R1 && git -C VLM-R1 checkout 90052f4
    pip install pycocotools==2.0.11
    python tools/golden/detection.py --reference VLM-R1

`--count N --out DIR` writes N cases of each kind elsewhere; `VLM_R1_DETECTION_CASES=DIR cargo test -p
rewards detection_golden` then compares those instead.
"""

import argparse
import ast
import contextlib
import io
import json
import math
import platform
import random
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SEED = 20250414
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards"
SOURCE = "src/open-r1-multimodal/src/open_r1/grpo_jsonl.py"
FUNCTIONS = [
    "calculate_map", "map_reward", "od_reward", "odLength_reward", "iou", "detection_score", "clean_text",
]
# Cases of `--count 8000` that were compared, once, beside the committed ones; the largest difference was 2.3e-15.
LARGE_RUN = {"detection.jsonl": 8000, "detection_coco.jsonl": 8000}


# --- the references ----------------------------------------------------------------------------

def coco_of(dataset):
    """VLM-R1's copy of pycocotools takes a dictionary; the published one does so in two steps."""
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def reference(checkout):
    """The scoring functions of VLM-R1 without the training script around them."""
    tree = ast.parse((Path(checkout) / SOURCE).read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
    names = {"re": re, "json": json, "math": math, "COCO": coco_of, "COCOeval": COCOeval}
    exec(compile(tree, SOURCE, "exec"), names)
    return names


def weighted_sum(names, completion, solution):
    clean = names["clean_text"]
    completion, solution = clean(completion), clean(solution)
    if solution == "none":
        return float(completion == "none")
    return names["detection_score"](completion, solution)


def scores(names, completion, solution):
    od = names["od_reward"]
    return {
        "od_ap": od(completion, solution),
        "od_ap50": od(completion, solution, score_type=1),
        "odLength": names["odLength_reward"](completion, solution),
        "map": names["map_reward"](completion, solution),
    }


def ap_of(truths, detections):
    """[AP, AP50] of pycocotools; truths and detections are [image, category, x, y, w, h(, score)]."""
    annotations = [
        {"id": n + 1, "image_id": t[0], "category_id": t[1], "bbox": t[2:6], "area": t[4] * t[5], "iscrowd": 0}
        for n, t in enumerate(truths)
    ]
    images = sorted({row[0] for row in truths + detections})
    truth = coco_of({
        "images": [{"id": image} for image in images], "annotations": annotations,
        "categories": [{"id": c} for c in sorted({t[1] for t in truths})],
    })
    if not detections:
        return [0.0, 0.0]
    found = truth.loadRes([
        {"image_id": d[0], "category_id": d[1], "bbox": d[2:6], "score": d[6]} for d in detections
    ])
    run = COCOeval(truth, found, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(run.stats[0]), float(run.stats[1])]


def overlap(truth, found):
    (x, y, w, h), (u, v, p, q) = truth, found
    inside = max(0, min(x + w, u + p) - max(x, u)) * max(0, min(y + h, v + q) - max(y, v))
    union = w * h + p * q - inside
    return 0 if union == 0 else inside / union


def suppressed(truths, detections):
    """OVDEval's rule; of equal scores the last detection is the best."""
    kept, dropped = set(), set()
    for truth in truths:
        near = [
            n for n, d in enumerate(detections)
            if d[0] == truth[0] and overlap(truth[2:6], d[2:6]) > 0.5
        ]
        ranked = sorted(near, key=lambda n: detections[n][6])
        kept.update(ranked[-1:])
        dropped.update(ranked[:-1])
    return [d for n, d in enumerate(detections) if n in kept or n not in dropped]


# --- cases -------------------------------------------------------------------------------------

def some_box(rng):
    size = rng.choice([12, 60, 300])
    x, y = rng.randint(0, 40), rng.randint(0, 40)
    box = [x, y, x + rng.randint(1, size), y + rng.randint(1, size)]
    if rng.random() < 0.25:
        box = [n + rng.choice([0.25, 0.5, 0.1, -0.7]) for n in box]
    return box


def odd_box(rng, box):
    """A box that no detector would write."""
    x1, y1, x2, y2 = box
    return rng.choice([
        [x2, y1, x1, y2], [x2, y2, x1, y1], [x1, y1, x1, y2], [x1, y1, x1, y1], [-x2, -y2, x2, y2],
        [0, 0, 200000, 200000], [x1 * 1e6, y1, x2 * 1e6, y2],
    ])


def near_box(rng, box):
    shake = rng.choice([0, 0, 1, 2, 6])
    return [n + rng.randint(-shake, shake) for n in box]


def not_a_box(rng, box):
    return rng.choice([
        [str(n) for n in box], box[:3], box + [5], [*box[:3], None], {"x": 1}, "box", None, 7, [box], [],
        [*box[:2], "9", box[3]], [True, False, *box[2:]],
    ])


TEXT_LABELS = ["cat", "dog", "Cat", "red car", "", "été", "ΟΔΟΣ"]
LABELS = ["cat", "1", 1, 1.0, True, 0, False, None]


def some_item(rng, truths, labels):
    kind = rng.random()
    near = rng.choice(truths)["bbox_2d"] if truths and kind < 0.8 else some_box(rng)
    box = near_box(rng, near)
    if rng.random() < 0.06:
        box = odd_box(rng, box)
    if rng.random() < 0.06:
        box = not_a_box(rng, box)
    label = rng.choice(labels)
    if rng.random() < 0.05:
        label = rng.choice(["absent", "absent", "other", [label], {"a": 1}, 2, None])
    item = {"bbox_2d": box, "label": label}
    if rng.random() < 0.05:
        item.pop(rng.choice(["bbox_2d", "label"]))
    if rng.random() < 0.03:
        item = rng.choice(["text", 5, None, [item], {}])
    return item


def truth_list(rng, labels):
    truths = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 9])):
        box = some_box(rng)
        if truths and rng.random() < 0.15:
            box = truths[-1]["bbox_2d"]
        if rng.random() < 0.05:
            box = odd_box(rng, box)
        truths.append({"bbox_2d": box, "label": rng.choice(labels)})
    return truths


def is_counted(truth):
    x1, y1, x2, y2 = truth["bbox_2d"]
    return 0 <= (x2 - x1) * (y2 - y1) <= 1e10


def written(rng, value):
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    if rng.random() < 0.08:
        text = rng.choice([
            text[:-1], text + "]", text.replace('"', "'"), text.replace("]", ",]", 1), "", " ",
            '{"a": 1, "a": 2}', '"text"', "7", "null", "[]", "{}", text.replace("{", '{"label": "x", ', 1),
            "\u00a0" + text + "\x1c", text + "\x00", "\ufeff" + text, "[" * 2000,
        ])
    return text


def block(rng, text):
    space = rng.choice(["\n", "\n", "", " ", "\r\n", "\u2003"])
    if rng.random() < 0.7:
        return f"```json{space}{text}{space}```"
    return rng.choice([
        f"```json{space}{text}", f"``` {text}```", text,
        f"```json []``` then ```json{space}{text}```", f"```json{space}{text}``` then ```json []```",
        f"```JSON{space}{text}{space}```",
    ])


def completion_of(rng, body):
    if rng.random() < 0.7:
        return f"<think>why</think><answer>{body}</answer>"
    return rng.choice([
        f"<think>why</think>\n<answer>{body}</answer>", f"<think>why</think><answer>\n{body}\n</answer>",
        f"<answer>{body}</answer>", f"<think>{body}</think><answer>None</answer>", body,
        f"<answer>None</answer> or <answer>{body}</answer>", f"<answer>{body}</answer><answer>x</answer>",
        f"<answer>{body}", f"<ANSWER>{body}</ANSWER>", f"<answer> None </answer>", f"<answer>None.</answer>",
        f"<answer>{body}</answer>.", "None",
    ])


def text_case(rng, names):
    labels = rng.sample(TEXT_LABELS if rng.random() < 0.8 else LABELS, rng.randint(1, 3))
    truths = truth_list(rng, labels)
    count = rng.choice([0, 1, 2, 3, 4, 6, 9]) if rng.random() < 0.99 else rng.randint(101, 130)
    items = [some_item(rng, truths, labels) for _ in range(count)]
    if items and rng.random() < 0.2:
        items += [rng.choice(items) for _ in range(rng.randint(1, 4))]
    if not truths:
        value = rng.choice(["None", "None", "```json\n[]\n```", "nothing", "```json```", " None "])
    else:
        value = f"```json\n{json.dumps(truths, ensure_ascii=False)}\n```"
    solution = f"<answer> {value} </answer>"
    completion = completion_of(rng, block(rng, written(rng, items)))
    if truths and not any(map(is_counted, truths)):
        return None
    case = {"completion": completion, "solution": solution, **scores(names, completion, solution)}
    # Where a label is no text, VLM-R1 takes that of the pair before, or fails.
    if all(not isinstance(i, dict) or isinstance(i.get("label"), str) for i in items):
        case["weighted_sum"] = weighted_sum(names, completion, solution)
    return case


def usable(case):
    numbers = [value for key, value in case.items() if key not in ("completion", "solution")]
    return all(math.isfinite(number) for number in numbers)


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco_case(rng):
    images = rng.sample(range(1000), rng.choice([1, 1, 2, 5]))
    categories = rng.sample(range(50), rng.choice([1, 2, 4]))
    truths, detections = [], []
    for image in images:
        for _ in range(rng.choice([0, 1, 2, 4])):
            box = some_box(rng) if rng.random() < 0.95 else odd_box(rng, some_box(rng))
            truths.append([image, rng.choice(categories), *xywh(box)])
    if not truths:
        return None
    scores_of = rng.choice([[1.0], [0.5, 1.0], [n / 7 for n in range(8)], [-1.0, 0.0, -0.0, 2.5]])
    count = rng.choice([0, 1, 3, 8, 20]) if rng.random() < 0.99 else rng.randint(101, 220)
    for _ in range(count):
        image, category, *near = rng.choice(truths)
        box = near_box(rng, [near[0], near[1], near[0] + near[2], near[1] + near[3]])
        if rng.random() < 0.06:
            box = odd_box(rng, box)
        if rng.random() < 0.2:
            category = rng.choice([*categories, 99])
        if rng.random() < 0.1:
            image = rng.choice(images)
        detections.append([image, category, *xywh(box), rng.choice(scores_of)])
    plain = ap_of(truths, detections)
    if plain[0] < 0:
        return {"truths": truths, "detections": detections, "ap": None, "nms_ap": None}
    return {
        "truths": truths, "detections": detections, "ap": plain,
        "nms_ap": ap_of(truths, suppressed(truths, detections)),
    }


def many(count, make):
    """`count` cases, without what pycocotools prints."""
    cases = []
    while len(cases) < count:
        with contextlib.redirect_stdout(io.StringIO()):
            case = make()
        if case is not None:
            cases.append(case)
    return cases


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--reference", required=True, help="a checkout of VLM-R1")
    arguments.add_argument("--count", type=int, default=300)
    arguments.add_argument("--out", type=Path, default=OUT)
    arguments = arguments.parse_args()
    names = reference(arguments.reference)
    rng = random.Random(SEED)

    def text():
        case = text_case(rng, names)
        return case if case is not None and usable(case) else None

    arguments.out.mkdir(parents=True, exist_ok=True)
    counts = {}
    files = {"detection.jsonl": text, "detection_coco.jsonl": lambda: coco_case(rng)}
    for name, make in files.items():
        cases = many(arguments.count, make)
        lines = [json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases]
        (arguments.out / name).write_text("\n".join(lines) + "\n")
        counts[name] = len(lines)
    manifest = {
        "made_by": "tools/golden/detection.py", "python": platform.python_version(), "numpy": np.__version__,
        "pycocotools": version("pycocotools"), "vlm_r1": "90052f4", "seed": SEED, "tolerance": 1e-9,
        "cases": counts, "cases_compared_once": LARGE_RUN,
    }
    (arguments.out / "detection_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
