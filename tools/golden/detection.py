"""Golden cases of COCO's average precision, by pycocotools.

Writes golden/rewards/detection_coco.jsonl (boxes of several images in, AP, AP50 and both after OVDEval's
suppression out) and detection_manifest.json. Needs pycocotools:

    pip install pycocotools==2.0.11
    python tools/golden/detection.py

`--count N --out DIR` writes N cases elsewhere; `VLM_R1_DETECTION_CASES=DIR cargo test -p rewards
detection_golden` then compares those instead.
"""

import argparse
import contextlib
import io
import json
import platform
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SEED = 20250414
OUT = Path(__file__).resolve().parents[2] / "golden" / "rewards"
# Cases of `--count 8000` that were compared, once, beside the committed ones.
LARGE_RUN = {"detection_coco.jsonl": 8000}


# --- the reference -----------------------------------------------------------------------------

def coco_of(dataset):
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


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
        # `loadRes` takes no empty list; without a truth that counts there is no AP.
        return [0.0, 0.0] if any(0 <= t[4] * t[5] <= 1e10 for t in truths) else [-1.0, -1.0]
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


def is_counted(truth):
    x1, y1, x2, y2 = truth["bbox_2d"]
    return 0 <= (x2 - x1) * (y2 - y1) <= 1e10


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
    arguments.add_argument("--count", type=int, default=300)
    arguments.add_argument("--out", type=Path, default=OUT)
    arguments = arguments.parse_args()
    rng = random.Random(SEED)
    cases = many(arguments.count, lambda: coco_case(rng))
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(case, separators=(",", ":")) for case in cases]
    (arguments.out / "detection_coco.jsonl").write_text("\n".join(lines) + "\n")
    manifest = {
        "made_by": "tools/golden/detection.py", "python": platform.python_version(), "numpy": np.__version__,
        "pycocotools": version("pycocotools"), "seed": SEED, "tolerance": 1e-9,
        "cases": {"detection_coco.jsonl": len(lines)}, "cases_compared_once": LARGE_RUN,
    }
    (arguments.out / "detection_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
