"""Makes the two tiny random Qwen2-VL checkpoints of `golden/families/qwen2_vl/checkpoints`.

`nested` is what transformers 5 saves; `hub` has the layout of the hub's Qwen2-VL repositories.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tiny_common import SPECIAL_TOKENS, Family, flat_name, make_family

# Chosen so that the greedy answers are varied and no two candidates nearly tie.
SEEDS = {"nested": 11, "hub": 17}
MIN_PIXELS = 56 * 56
MAX_PIXELS = 40 * 28 * 28


def model_config(tokenizer: Tokenizer, vocab_size: int, tied: bool) -> Qwen2VLConfig:
    """The two checkpoints differ in what a reader may not take as given."""
    token = tokenizer.token_to_id
    theta, section = (500.0, [2, 1, 1]) if tied else (300.0, [1, 2, 1])
    return Qwen2VLConfig(
        text_config={
            "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5 if tied else 1e-6,
            "hidden_act": "silu", "max_position_embeddings": 2048,
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": section},
        },
        vision_config={
            "depth": 3, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 4 if tied else 3,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu",
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip


def hub_config(config: Qwen2VLConfig) -> dict:
    text, vision = config.text_config, config.vision_config
    keys = [
        "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range",
        "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "use_cache", "vocab_size",
    ]  # fmt: skip
    vision_keys = [
        "depth", "embed_dim", "mlp_ratio", "num_heads", "hidden_size", "patch_size", "spatial_merge_size",
        "temporal_patch_size",
    ]  # fmt: skip
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **{key: getattr(text, key) for key in keys},
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "vision_token_id": config.image_token_id - 1,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "max_window_layers": 28,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": text.rope_parameters["mrope_section"]},
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "vision_config": {
            **{key: getattr(vision, key) for key in vision_keys},
            "in_chans": 3,
            "spatial_patch_size": 14,
        },
    }


FAMILY = Family(
    model_class=Qwen2VLForConditionalGeneration,
    processor_class=Qwen2VLProcessor,
    video_processor_class=Qwen2VLVideoProcessor,
    config=model_config,
    hub_config=hub_config,
    hub_name=flat_name,
    preprocessor={
        "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": list(Qwen2VLImageProcessor.image_mean), "image_std": list(Qwen2VLImageProcessor.image_std),
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    },
    image_processor={"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS},
    hub_generation={"do_sample": True, "repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
    # Its vocabulary ends there.
    special_tokens=SPECIAL_TOKENS[:14],
    has_template_file=True,
)  # fmt: skip


if __name__ == "__main__":
    make_family(FAMILY, "qwen2_vl", SEEDS, __doc__)
