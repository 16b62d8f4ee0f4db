"""The scoring functions of VLM-R1, taken from a checkout of it, without its training script.

The files are parsed and only their functions are run; what they import of models and services is not
needed. Its copy of pycocotools runs over the compiled mask module of the published package. Needs:

    git clone https://github.com/om-ai-lab/VLM-R1 && git -C VLM-R1 checkout 90052f4
    pip install pycocotools==2.0.11 math-verify==0.9.0 Levenshtein==0.27.5 json_repair==0.64.5
"""

import ast
import contextlib
import io
import json
import math
import os
import re
import sys
import types
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

COMMIT = "90052f4"
ROOT = "src/open-r1-multimodal/src/open_r1"
PACKAGES = ["pycocotools", "numpy", "math-verify", "latex2sympy2_extended", "sympy", "Levenshtein", "json_repair"]
METHODS = [
    "default", "mcq", "yes_no", "math", "all_match", "llm", "map", "od_ap", "od_ap50", "odLength", "weighted_sum",
]
MODULES = {
    "qwen2_5_vl": ("qwen_module.py", "Qwen2VLModule"),
    "internvl": ("internvl_module.py", "InvernVLModule"),
    "glm4v": ("glm_module.py", "GLMVModule"),
}


def versions():
    return {name: version(name) for name in PACKAGES}


class Unreachable:
    """A judge that no request reaches, so that only what follows a failure is left."""

    def __getattr__(self, name):
        raise ConnectionError("no judge")


class Sized:
    """In place of PIL.Image: a path here is the size of the picture itself."""

    @staticmethod
    def open(size):
        return types.SimpleNamespace(size=tuple(size))


class CountedTokens:
    """In place of the tokenizer: says as many tokens as the case does."""

    count = 0

    def encode(self, _text):
        return range(self.count)


class LenientJson:
    """In place of `json`: what cannot be read is no more than that, and items of a list are objects."""

    JSONDecodeError = json.JSONDecodeError

    @staticmethod
    def loads(text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), text, 0) from error
        return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else value


class WithoutOverwriting(ast.NodeTransformer):
    """Drops `acc_reward = 1.0` of `cosine_reward`, by which every answer counts as correct."""

    def visit_FunctionDef(self, node):
        if node.name == "cosine_reward":
            kept = [line for line in node.body if ast.unparse(line) != "acc_reward = 1.0"]
            if len(kept) + 1 != len(node.body):
                raise SystemExit("cosine_reward: expected one line `acc_reward = 1.0`")
            node.body = kept
        return node


def functions_of(path, names, change=None, inside=None):
    """Runs the functions of a file, or of its class `inside`, in `names` and returns those."""
    tree = ast.parse(path.read_text())
    body = tree.body
    if inside is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == inside).body
    tree.body = [node for node in body if isinstance(node, ast.FunctionDef) and node.name not in ("main", "__init__")]
    if inside is not None:
        tree.body = [node for node in tree.body if node.name in ("iou_reward", "format_reward_rec")]
        for node in tree.body:
            node.decorator_list = []
    if change is not None:
        tree = ast.fix_missing_locations(change.visit(tree))
    exec(compile(tree, str(path), "exec"), names)
    return names


def coco_of(folder):
    """VLM-R1's `COCO` and `COCOeval`; plots are never drawn."""
    absent = {}
    for name in ["matplotlib", "matplotlib.pyplot", "matplotlib.collections", "matplotlib.patches"]:
        absent[name] = types.ModuleType(name)
    absent["matplotlib.collections"].PatchCollection = absent["matplotlib.patches"].Polygon = None
    absent["matplotlib"].pyplot = absent["matplotlib.pyplot"]
    kept = {name: sys.modules.get(name) for name in absent}
    sys.modules.update(absent)
    try:
        found = {}
        for name in ["coco", "cocoeval"]:
            module = {"__name__": f"vlm_r1_{name}"}
            path = folder / f"{name}.py"
            exec(compile(path.read_text(), str(path), "exec"), module)
            found.update(module)
        return found["COCO"], found["COCOeval"]
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Reference:
    """`score(rule, case)` says what VLM-R1 says of a case, or `raises NAME`.

    Rules are the accuracy methods, `format`, `length`, `repetition`, `FAMILY/accuracy` and
    `FAMILY/format` of referring expressions; `length_mended`, which sees whether an answer is right, and
    `repetition_mended`, which fails on no list.
    """

    def __init__(self, checkout):
        from Levenshtein import ratio
        from json_repair import repair_json
        from math_verify import parse, verify

        folder = Path(checkout) / ROOT
        maths = functions_of(folder / "utils/math.py", {"parse": parse, "verify": verify})
        coco, evaluation = coco_of(folder / "utils/pycocotools")

        def main_file(change):
            names = {
                "re": re, "json": json, "math": math, "os": os, "datetime": datetime, "parse": parse, "verify": verify,
                "ratio": ratio, "repair_json": repair_json, "compute_score": maths["compute_score"], "COCO": coco,
                "COCOeval": evaluation, "client": Unreachable(), "tokenizer": CountedTokens(),
            }
            return functions_of(folder / "grpo_jsonl.py", names, change)

        os.environ.pop("DEBUG_MODE", None)
        self.names = main_file(None)
        self.mended = main_file(WithoutOverwriting())
        self.lenient = main_file(None)
        self.lenient["json"] = LenientJson
        self.families = {}
        for family, (file, module) in MODULES.items():
            names = {"re": re, "json": json, "os": os, "datetime": datetime, "Image": Sized}
            path = folder / "vlm_modules" / file
            self.families[family] = functions_of(path, names, inside=module)

    def call(self, rule, case):
        """The score itself; raises what VLM-R1 raises."""
        chat = [[{"role": "assistant", "content": case["completion"]}]]
        truth = [case["solution"]]
        if "/" in rule:
            family, kind = rule.split("/")
            names = self.families[family]
            if kind == "format":
                return names["format_reward_rec"](chat)[0]
            size, grid = [[case["image_size"]]], [case["image_grid_thw"]]
            return names["iou_reward"](chat, truth, image_path=size, image_grid_thw=grid)[0]
        if rule in METHODS:
            return self.names["accuracy_reward"](chat, truth, accu_reward_method=[rule])[0]
        if rule in ("length", "length_mended"):
            names = self.names if rule == "length" else self.mended
            names["tokenizer"].count = case["tokens"]
            return names["cosine_rewards"](chat, truth)[0]
        if rule == "format":
            return self.names["format_reward"](chat)[0]
        names = self.names if rule == "repetition" else self.lenient
        return names["repetition_rewards"](chat, truth)[0]

    def score(self, rule, case):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return float(self.call(rule, case))
        except Exception as error:
            return f"raises {type(error).__name__}"
