"""Golden cases of the evaluation of detection: COCO files and answers in, figures out.

Writes golden/eval/detection.jsonl and its manifest. AP is pycocotools' own; OVDEval's suppression (each truth
keeps one prediction) and the greedy matching behind precision and recall are written here a second time, on
numpy and lists, and share nothing with the program. Needs pycocotools:

    pip install pycocotools==2.0.11
    python tools/golden/eval_detection.py

`--count N --out DIR` writes N cases elsewhere; `VLM_R1_EVAL_CASES=DIR cargo test -p eval detection_metrics` compares those.
"""

import argparse
import contextlib
import copy
import io
import json
import platform
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SEED = 20250415
OUT = Path(__file__).resolve().parents[2] / "golden" / "eval"
NAMES = ["cat", "Traffic Light", "red cup", "man on a bench", "it's a \"sign\"", "zebra"]
SIZE = 200


# --- the reference -----------------------------------------------------------------------------

def average_precision(truth_file, detections):
    """[AP, AP50] of pycocotools."""
    # It writes into what it is given.
    truth_file, detections = copy.deepcopy([truth_file, detections])
    truth = COCO()
    truth.dataset = truth_file
    truth.createIndex()
    found = truth.loadRes(detections) if detections else COCO()
    if not detections:
        found.dataset = {**truth_file, "annotations": []}
        found.createIndex()
    run = COCOeval(truth, found, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(run.stats[0]), float(run.stats[1])]


def pairwise_iou(a, b):
    """[len(a), len(b)] of boxes [x, y, w, h]."""
    a, b = np.asarray(a, float)[:, None], np.asarray(b, float)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    sides = np.clip(high - low, 0, None)
    inside = sides[..., 0] * sides[..., 1]
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - inside
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0)


def suppress(truth_file, detections):
    """Each truth keeps the last of the predictions, of any label, that overlap it by more than half."""
    survivors = []
    for image in truth_file["images"]:
        truths = [a["bbox"] for a in truth_file["annotations"] if a["image_id"] == image["id"]]
        found = [d for d in detections if d["image_id"] == image["id"]]
        keep = np.ones(len(found), bool)
        if truths and found:
            near = pairwise_iou(truths, [d["bbox"] for d in found]) > 0.5
            best = {int(np.flatnonzero(row)[-1]) for row in near if row.any()}
            keep = ~near.any(axis=0)
            keep[list(best)] = True
        survivors += [d for d, kept in zip(found, keep) if kept]
    return survivors


def greedy(truth_file, detections):
    """[precision, recall] at 0.5: of the pairs of one label in an image the highest IoU is matched first."""
    hits = 0
    for image in truth_file["images"]:
        truths = [
            a for a in truth_file["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        found = [d for d in detections if d["image_id"] == image["id"]]
        if not truths or not found:
            continue
        iou = pairwise_iou([d["bbox"] for d in found], [t["bbox"] for t in truths])
        same = np.array([[d["category_id"] == t["category_id"] for t in truths] for d in found])
        iou = np.where(same, iou, -1.0)
        while iou.size and iou.max() >= 0.5:
            d, t = np.unravel_index(iou.argmax(), iou.shape)
            hits += 1
            iou[d, :] = -1.0
            iou[:, t] = -1.0
    objects = sum(not a["iscrowd"] for a in truth_file["annotations"])
    return [hits / len(detections) if detections else 0.0, hits / objects]


# --- cases -------------------------------------------------------------------------------------

def some_box(rng):
    x, y = rng.randint(0, 120), rng.randint(0, 120)
    return [x, y, rng.randint(4, 80), rng.randint(4, 80)]


def spelled(rng, name):
    return rng.choice([name, name, name, name.upper(), f" {name} "])


def answer_of(rng, boxes):
    """A text that names the boxes [x, y, w, h] with labels."""
    items = [{"bbox_2d": [x, y, x + w, y + h], "label": label} for (x, y, w, h), label in boxes]
    if rng.random() < 0.2:
        items.insert(rng.randint(0, len(items)), {"bbox_2d": [1, 2, 3], "label": "cat"})
    text = json.dumps(items)
    form = rng.choice([
        "<think>t</think><answer>```json\n{}\n```</answer>", "<answer>{}</answer>", "```json{}```", "{}",
        "<answer>```json []```</answer><answer>so: ```json [7]``` ```json {} ```</answer>",
    ])
    return form.replace("{}", text)


def case(rng):
    images = [{"id": i, "file_name": f"{i}.png"} for i in rng.sample(range(1, 500), rng.choice([1, 3, 6]))]
    names = rng.sample(NAMES, rng.choice([2, 4]))
    categories = [{"id": 10 * n + 3, "name": name} for n, name in enumerate(names)]
    annotations, answers, detections = [], {}, []
    for image in images:
        truths = []
        for _ in range(rng.choice([0, 1, 2, 5])):
            category = rng.choice(categories)
            box = some_box(rng)
            truths.append((box, category))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": category["id"], "bbox": box,
                "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1),
            })
        found = []
        for _ in range(rng.choice([0, 1, 3, 8])):
            box, category = rng.choice(truths) if truths and rng.random() < 0.8 else (some_box(rng), rng.choice(categories))
            shake = rng.choice([0, 1, 3, 9])
            box = [n + rng.randint(-shake, shake) for n in box[:2]] + [max(1, n + rng.randint(-shake, shake)) for n in box[2:]]
            if rng.random() < 0.25:
                category = rng.choice(categories)
            found.append((box, category))
        if not found and rng.random() < 0.5:
            answers[image["id"]] = rng.choice(["<answer>None</answer>", "I see nothing", "<answer>```json [{```</answer>"])
            continue
        named = [(box, spelled(rng, category["name"])) for box, category in found]
        if rng.random() < 0.2:
            named.append((some_box(rng), "unicorn"))
        answers[image["id"]] = answer_of(rng, named)
        detections += [
            {"image_id": image["id"], "category_id": c["id"], "bbox": box, "score": 1.0} for box, c in found
        ]
        # A label that the file does not list: wrong to precision, unknown to AP.
        detections += [
            {"image_id": image["id"], "category_id": -1, "bbox": box, "score": 1.0}
            for box, label in named if label == "unicorn"
        ]
    if not any(not a["iscrowd"] for a in annotations):
        return None
    truth_file = {"images": images, "annotations": annotations, "categories": categories}
    known = [d for d in detections if d["category_id"] >= 0]
    plain, kept = average_precision(truth_file, known), average_precision(truth_file, suppress(truth_file, known))
    precision, recall = greedy(truth_file, detections)
    return {
        "coco": truth_file, "answers": answers,
        "figures": {
            "ap": plain[0], "ap50": plain[1], "nms_ap": kept[0], "nms_ap50": kept[1],
            "precision": precision, "recall": recall,
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rng = random.Random(SEED)
    cases = []
    with contextlib.redirect_stdout(io.StringIO()):
        while len(cases) < arguments.count:
            made = case(rng)
            if made is not None:
                cases.append(made)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(c, separators=(",", ":")) + "\n" for c in cases]
    (arguments.out / "detection.jsonl").write_text("".join(lines))
    manifest = {
        "made_by": "tools/golden/eval_detection.py", "python": platform.python_version(),
        "numpy": version("numpy"), "pycocotools": version("pycocotools"), "seed": SEED, "tolerance": 1e-9,
        "cases": {"detection.jsonl": len(cases)},
    }
    (arguments.out / "detection_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
