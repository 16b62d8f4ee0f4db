"""Other people's data sets in small, in the very bytes that their libraries write.

Writes `golden/sources`: RefCOCO's pickle in protocols 0, 2 and 4 beside its `instances.json`, D-cube's folder of
pickles with NumPy arrays, and Parquet files as `datasets` writes them, in three compressions. All content is made
up here.

    python tools/golden/sources.py
"""

from __future__ import annotations

import io
import json
import pickle
import platform
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as pq
from PIL import Image

OUT = Path(__file__).resolve().parents[2] / "golden" / "sources"
PROTOCOLS = (0, 2, 4)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def refs() -> list[dict]:
    def ref(ref_id, ann_id, image_id, split, texts):
        sentences = [
            {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * ref_id + i, "sent": text}
            for i, text in enumerate(texts)
        ]
        return {
            "sent_ids": [s["sent_id"] for s in sentences],
            "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
            "ann_id": ann_id,
            "ref_id": ref_id,
            "image_id": image_id,
            "split": split,
            "sentences": sentences,
            "category_id": 1,
        }

    return [
        ref(0, 100, 1, "train", ["the red cup", "cup on the left"]),
        ref(1, 101, 1, "val", ["café table"]),
        ref(2, 102, 2, "testA", ["dog's tail", "tail", "the end"]),
        ref(3, 103, 2, "train", ["no such box"]),
        ref(4, 104, 2, "train", ["a box without area"]),
    ]


def instances() -> dict:
    def annotation(id, image_id, bbox):
        return {"id": id, "image_id": image_id, "category_id": 1, "bbox": bbox, "iscrowd": 0, "segmentation": [[1.5, 2]]}

    return {
        "info": {},
        "images": [
            {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 640, "height": 480},
            {"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "width": 300, "height": 200},
        ],
        "annotations": [
            annotation(100, 1, [10.4, 20.6, 100.2, 50.0]),
            annotation(101, 1, [600.0, 400.0, 80.0, 100.0]),
            annotation(102, 2, [1, 2, 30, 40]),
            annotation(104, 2, [10.0, 10.0, 0.1, 20.0]),
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def d3() -> dict[str, dict]:
    def box(*xywh):
        return np.array([xywh], dtype=np.float64)

    def annotation(id, sentences, image, bbox):
        rle = [{"size": [48, 64], "counts": b"PP1\x00\xff"}]
        return {"id": id, "sent_id": sentences, "segmentation": rle, "area": np.uint32(9), "iscrowd": 0,
                "image_id": image, "bbox": bbox, "group_id": 0}

    def image(id, annotations, group):
        return {"id": id, "file_name": f"group{group}/{id}.jpg", "height": 48, "width": 64, "flickr_url": "",
                "anno_id": annotations, "group_id": group, "license": ""}

    names = ["a dog on a lead", "a dog without a lead", "a red kite", "an unlit candle", "a person with a hat"]
    sentences = {
        i + 1: {"id": i + 1, "anno_id": [], "group_id": [0 if i < 3 else 1], "is_negative": i % 2 == 1,
                "raw_sent": name, "raw_sent_zh": "狗"}
        for i, name in enumerate(names)
    }
    return {
        "sentences": sentences,
        "annotations": {
            7: annotation(7, [1], 0, box(1.0, 2.0, 30.0, 40.0)),
            8: annotation(8, [1, 3], 0, box(5.5, 6.5, 10.0, 10.0)),
        },
        "images": {0: image(0, [7, 8], 0), 1: image(1, [], 1)},
        "groups": {
            0: {"id": 0, "inner_sent_id": [1, 2, 3], "outer_sent_id": [], "pos_sent_id": [1, 3], "img_id": [0]},
            1: {"id": 1, "inner_sent_id": [4, 5], "outer_sent_id": [], "pos_sent_id": [], "img_id": [1]},
        },
    }


def tables() -> None:
    red, blue = png((200, 10, 10)), png((10, 10, 200))
    one = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": red, "path": "red.png"}, {"bytes": blue, "path": None}, {"bytes": red, "path": "x"}],
            "problem": ["<image>What colour?", "What colour is it?", "Again?"],
            "answer": ["red", "blue", "red"],
            "level": [1, 2, 3],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "problem": datasets.Value("string"), "answer": datasets.Value("string"),
             "level": datasets.Value("int32")}
        ),
    )
    one.to_parquet(OUT / "one_image.parquet")
    many = pyarrow.table(
        {
            "images": pyarrow.array(
                [[{"bytes": red, "path": None}, {"bytes": blue, "path": None}], []],
                pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ),
            "question": ["Which differ?", "No picture?"],
            "solution": pyarrow.array([[1.0, 2.0, 3.5, 4.0], [7.0]], pyarrow.list_(pyarrow.float64())),
        }
    )
    pq.write_table(many, OUT / "many_images.parquet", compression="zstd", store_schema=False)
    broken = pyarrow.table(
        {
            "image": pyarrow.array([{"bytes": b"<html>"}, {"bytes": None}, None], pyarrow.struct([("bytes", pyarrow.binary())])),
            "question": ["Not a picture?", "Nothing?", "Text only?"],
            "answer": [1, 2, 3],
        }
    )
    pq.write_table(broken, OUT / "odd_rows.parquet", compression="gzip", store_schema=False)
    file = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    whole, empty = {"bytes": red, "path": None}, {"bytes": None, "path": None}
    ones = [None, whole, empty, {"bytes": None, "path": ""}, {"bytes": b"", "path": None}, whole]
    lists = [None, [], [whole, None], [empty], [None], [whole]]
    for name, column in [("absent_image", pyarrow.array(ones, file)), ("absent_images", pyarrow.array(lists, pyarrow.list_(file)))]:
        numbers = list(range(1, 7))
        questions = [f"Number {number}?" for number in numbers]
        table = pyarrow.table({"image": column, "question": questions, "answer": numbers})
        pq.write_table(table, OUT / f"{name}.parquet", store_schema=False)
    text = pyarrow.table({"image": pyarrow.array([None, None], file), "question": ["a?", "b?"], "answer": [1, 2]})
    pq.write_table(text, OUT / "text_alone.parquet", store_schema=False)
    others = pyarrow.table({"image_1": pyarrow.array([whole], file), "question": ["a?"], "answer": [1]})
    pq.write_table(others, OUT / "image_1.parquet", store_schema=False)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for protocol in PROTOCOLS:
        (OUT / f"refs_protocol_{protocol}.p").write_bytes(pickle.dumps(refs(), protocol))
    (OUT / "instances.json").write_text(json.dumps(instances()), encoding="utf-8")
    for protocol in (2, 4, 5):
        folder = OUT / f"d3_protocol_{protocol}"
        folder.mkdir(exist_ok=True)
        for name, table in d3().items():
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(table, protocol))
    tables()
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
        "datasets": datasets.__version__,
    }
    manifest = {"command": "python tools/golden/sources.py", "versions": versions, "tolerance": 0}
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
