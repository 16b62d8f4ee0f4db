"""Makes the two tiny random Qwen3-VL checkpoints of `golden/families/qwen3_vl/checkpoints`.

`nested` is what transformers 5 saves; `hub` has the layout of the hub's Qwen3-VL repositories.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tiny_common import SPECIAL_TOKENS, Family, make_family

# Chosen so that the greedy answers are varied and no two candidates nearly tie.
SEEDS = {"nested": 9, "hub": 7}
# In pixels, whatever the names say: at least 4 merged patches, at most 40.
SIZE = {"shortest_edge": 64 * 64, "longest_edge": 40 * 32 * 32}

# Like Qwen3-VL's: no system turn unless a message has it; images may be counted.
CHAT_TEMPLATE = """\
{%- set pictures = namespace(seen=0) -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set pictures.seen = pictures.seen + 1 -%}
{%- if add_vision_id -%}
{{- 'Picture ' ~ pictures.seen ~ ': ' -}}
{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def model_config(tokenizer: Tokenizer, vocab_size: int, tied: bool) -> Qwen3VLConfig:
    """The two checkpoints differ in what a reader may not take as given."""
    token = tokenizer.token_to_id
    theta, section = (60.0, [4, 2, 2]) if tied else (40.0, [4, 3, 1])
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocab_size, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5 if tied else 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "max_position_embeddings": 2048, "attention_bias": False,
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default", "mrope_interleaved": True, "rope_theta": theta, "mrope_section": section,
            },
        },
        vision_config={
            "depth": 5, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 24,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": 36 if tied else 49, "deepstack_visual_indexes": [1, 2, 4] if tied else [0, 2, 3],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip


def hub_config(config: Qwen3VLConfig) -> dict:
    text, vision = config.text_config, config.vision_config
    keys = [
        "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size",
        "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "use_cache", "vocab_size",
    ]  # fmt: skip
    vision_keys = [
        "deepstack_visual_indexes", "depth", "hidden_act", "hidden_size", "in_channels", "initializer_range",
        "intermediate_size", "num_heads", "num_position_embeddings", "out_hidden_size", "patch_size",
        "spatial_merge_size", "temporal_patch_size",
    ]  # fmt: skip
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": config.image_token_id,
        "model_type": "qwen3_vl",
        "text_config": {
            **{key: getattr(text, key) for key in keys},
            "dtype": "bfloat16",
            "model_type": "qwen3_vl_text",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": text.rope_parameters["mrope_section"],
                "rope_type": "default",
            },
            "rope_theta": text.rope_parameters["rope_theta"],
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": config.video_token_id,
        "vision_config": {**{key: getattr(vision, key) for key in vision_keys}, "model_type": "qwen3_vl"},
        "vision_end_token_id": config.vision_end_token_id,
        "vision_start_token_id": config.vision_start_token_id,
    }


FAMILY = Family(
    model_class=Qwen3VLForConditionalGeneration,
    processor_class=Qwen3VLProcessor,
    video_processor_class=Qwen3VLVideoProcessor,
    config=model_config,
    hub_config=hub_config,
    hub_name=lambda name: name,
    preprocessor={
        "size": SIZE, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
    },
    image_processor={"size": SIZE, "patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    hub_generation={"do_sample": True, "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0},
    template=CHAT_TEMPLATE,
    special_tokens=[
        *SPECIAL_TOKENS, ("<tool_response>", False), ("</tool_response>", False), ("<think>", False),
        ("</think>", False),
    ],
    has_template_file=True,
    # As large as what the patch kernel adds.
    deviations={"pos_embed": 1.0},
)  # fmt: skip


if __name__ == "__main__":
    make_family(FAMILY, "qwen3_vl", SEEDS, __doc__)
