"""transformers' side of gpu.sh: the same step by `generate` and padded passes.

    python benchmarks/gpu_peer.py DATA --device cuda --prompts 8 --generations 8 --completion-tokens 256 --output OUT.json

A step: answers by `generate`; a forward pass without gradients for the reference; a forward and backward pass and AdamW for the policy, in
micro-batches, every completion with its prompt and image. The policy stands in for the reference, which costs the same. All in bf16 with sdpa, only
the answers' logits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def load(args):
    model = AutoModelForImageTextToText.from_pretrained(args.data / "model", dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.to(args.device)


def inputs_of(args, processor, rows: list[dict]):
    """What the model takes for one prompt a row."""
    texts, images = [], []
    for row in rows:
        question = row["conversations"][0]["value"]
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True))
        with Image.open(args.data / "images" / row["image"]) as image:
            images.append(image.convert("RGB"))
    return processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="left").to(args.device)


def repeated(inputs, rows: slice, generations: int) -> dict:
    """`generations` copies of the prompts of `rows`, images too."""
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    pixels = torch.split(inputs["pixel_values"], patches)[rows]
    return {
        "pixel_values": torch.cat([pixel for pixel in pixels for _ in range(generations)]),
        "image_grid_thw": inputs["image_grid_thw"][rows].repeat_interleave(generations, 0),
    }


def logprobs(model, ids, mask, answer_tokens: int, vision_inputs: dict):
    kinds = {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=answer_tokens + 1, **kinds, **vision_inputs).logits
    logits = logits[:, :-1].float()
    chosen = ids[:, -answer_tokens:]
    return torch.gather(logits.log_softmax(-1), 2, chosen.unsqueeze(2)).squeeze(2)


def step(args, model, optimizer, inputs, now) -> dict[str, float]:
    """One step; gives the seconds of its phases."""
    start = now()
    model.eval()
    with torch.no_grad():
        out = model.generate(
            **inputs, num_return_sequences=args.generations, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            min_new_tokens=args.completion_tokens, max_new_tokens=args.completion_tokens,
            # What the model reads as places of images: random weights would write them.
            suppress_tokens=[model.config.image_token_id, model.config.video_token_id],
        )  # fmt: skip
    sampled = now()
    expected = [args.prompts * args.generations, inputs["input_ids"].shape[1] + args.completion_tokens]
    if list(out.shape) != expected:
        raise SystemExit(f"generate: expected ids {expected}, got {list(out.shape)}")
    model.train()
    mask = torch.cat([inputs["attention_mask"].repeat_interleave(args.generations, 0), torch.ones_like(out[:, -args.completion_tokens :])], 1)
    parts = []
    groups = max(1, args.micro_batch // args.generations)
    for first in range(0, args.prompts, groups):
        rows = slice(first, first + groups)
        of = slice(first * args.generations, (first + groups) * args.generations)
        parts.append((out[of], mask[of], repeated(inputs, rows, args.generations)))
    with torch.no_grad():
        references = [logprobs(model, ids, mask, args.completion_tokens, vision_inputs) for ids, mask, vision_inputs in parts]
    referred = now()
    for (ids, mask, vision_inputs), reference in zip(parts, references, strict=True):
        current = logprobs(model, ids, mask, args.completion_tokens, vision_inputs)
        advantages = torch.linspace(-1, 1, len(ids), device=current.device).unsqueeze(1)
        difference = reference - current
        loss = (-(current - current.detach()).exp() * advantages + 0.04 * (difference.exp() - difference - 1)).mean()
        (loss / len(parts)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    end = now()
    return {"rollout": sampled - start, "reference": referred - sampled, "train": end - referred, "total": end - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=8, help="completions of a pass, whole groups")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    def now() -> float:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    model, processor = load(args), AutoProcessor.from_pretrained(args.data / "model")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
    rows = [json.loads(line) for line in (args.data / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = []
    for index in range(args.warmup + args.steps):
        batch = [rows[(index * args.prompts + i) % len(rows)] for i in range(args.prompts)]
        seen.append(step(args, model, optimizer, inputs_of(args, processor, batch), now))
    peak = torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else None
    result = {"steps": seen[args.warmup :], "peak_bytes": peak, "trained": sum(weight.numel() for weight in trained)}
    args.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
