"""Loads a model folder in transformers and writes the log-probabilities of given completions.

Rows and output are those of `vlm-r1 logprobs`, so that a checkpoint saved in Rust can be compared line by line:
in `{"images": ["a.png"], "prompt": "...", "completion": "..."}`, out
`{"prompt_ids": [..], "completion_ids": [..], "logprobs": [..], "completion": "..."}`.
Fails when tensors are missing, unexpected or of another shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from common import completion_logprobs, deterministic


def load(folder: Path, dtype: torch.dtype):
    """Model and processor of `folder`; weights must match the model exactly."""
    processor = AutoProcessor.from_pretrained(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if problems:
        raise SystemExit(f"{folder}: {json.dumps(problems)}")
    return model.eval(), processor


def end_of_turn(tokenizer) -> str:
    return "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token


def row_logprobs(model, processor, row: dict, image_folder: Path, temperature: float) -> dict:
    tokenizer = processor.tokenizer
    content = [{"type": "image"} for _ in row.get("images", [])] + [{"type": "text", "text": row["prompt"]}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template or tokenizer.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    pictures = [Image.open(image_folder / name) for name in row.get("images", [])]
    inputs = processor(text=[rendered], images=pictures or None, return_tensors="pt")
    completion = row["completion"] + end_of_turn(tokenizer)
    completion_ids = tokenizer(completion, return_tensors="pt", add_special_tokens=False).input_ids[0]
    ids = torch.cat([inputs["input_ids"][0], completion_ids])[None]
    kwargs = {"input_ids": ids, "mm_token_type_ids": (ids == model.config.image_token_id).int(), "use_cache": False}
    if pictures:
        kwargs |= {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad():
        logits = model(**kwargs).logits[0].float()
    return {
        "prompt_ids": inputs["input_ids"][0].tolist(),
        "completion_ids": completion_ids.tolist(),
        "logprobs": completion_logprobs(logits, completion_ids, temperature).tolist(),
        "completion": row["completion"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--image_folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    deterministic(0)
    model, processor = load(args.model, getattr(torch, args.dtype))
    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines() if line.strip()]
    with args.out.open("w", encoding="utf-8") as out:
        for row in rows:
            result = row_logprobs(model, processor, row, args.image_folder, args.temperature)
            out.write(json.dumps(result, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
