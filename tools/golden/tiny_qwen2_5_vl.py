"""Makes the two tiny random Qwen2.5-VL checkpoints of `golden/parity/checkpoints`.

`nested` is what transformers 5 saves; `flat` has the layout of the hub's Qwen2.5-VL repositories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from common import PARITY, deterministic, versions, write_json
from tiny_common import Family, flat_name, make, report

# Chosen so that the greedy answers are varied and no two candidates nearly tie.
SEEDS = {"nested": 20256, "flat": 20258}
MIN_PIXELS = 56 * 56
MAX_PIXELS = 40 * 28 * 28


def model_config(tokenizer: Tokenizer, vocab_size: int, tied: bool) -> Qwen2_5_VLConfig:
    token = tokenizer.token_to_id
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 4, "hidden_size": 24, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [1, 3], "tokens_per_second": 2, "hidden_act": "silu",
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip


def flat_config(config: Qwen2_5_VLConfig) -> dict:
    text, vision = config.text_config, config.vision_config
    keys = [
        "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "use_cache", "vocab_size",
        "attention_dropout", "bos_token_id", "eos_token_id",
    ]  # fmt: skip
    vision_keys = [
        "depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
        "spatial_merge_size", "window_size", "fullatt_block_indexes", "tokens_per_second", "temporal_patch_size",
    ]  # fmt: skip
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{key: getattr(text, key) for key in keys},
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "max_window_layers": 70,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "vision_token_id": config.image_token_id - 1,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_config": {
            **{key: getattr(vision, key) for key in vision_keys},
            "in_chans": 3,
            "spatial_patch_size": 14,
        },
    }


FAMILY = Family(
    model_class=Qwen2_5_VLForConditionalGeneration,
    processor_class=Qwen2_5_VLProcessor,
    video_processor_class=Qwen2VLVideoProcessor,
    config=model_config,
    hub_config=flat_config,
    hub_name=flat_name,
    preprocessor={
        "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": list(Qwen2VLImageProcessor.image_mean), "image_std": list(Qwen2VLImageProcessor.image_std),
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    },
    image_processor={"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS},
    hub_generation={"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PARITY / "checkpoints")
    args = parser.parse_args()
    deterministic(0)
    entries = {name: make(FAMILY, name, seed, args.out) for name, seed in SEEDS.items()}
    manifest = {
        "command": "python tools/golden/tiny_qwen2_5_vl.py",
        "versions": versions(),
        "attention": "eager",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "checkpoints": entries,
    }
    write_json(args.out / "manifest.json", manifest)
    report(entries)


if __name__ == "__main__":
    main()
