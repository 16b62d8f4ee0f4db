"""Writes `golden/families/hub_configs.json`: the facts of the hub's Qwen-VL repositories, for tests of reading them.

The facts are typed in here. Parameters are counted on transformers' own classes without memory (the meta device), and
must add up to the totals in the index of the hub's weights. `sources` and `source` say what the facts rest on.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from common import FAMILIES, versions, write_json

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IDS = {
    "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
}  # fmt: skip
STOP = {"bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643]}
QWEN2_TEXT = {
    "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768, "use_cache": True, "use_sliding_window": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
}  # fmt: skip


def sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict:
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    }  # fmt: skip


def qwen2_vl(text: dict, vocab_size: int, max_window_layers: int, tied: bool) -> dict:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **IDS, **QWEN2_TEXT, **text,
        "max_position_embeddings": 32768, "max_window_layers": max_window_layers, "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
            "hidden_size": text["hidden_size"], "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }  # fmt: skip


def qwen2_5_vl(text: dict, vision_intermediate: int, vocab_size: int, max_window_layers: int, tied: bool) -> dict:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **IDS, **QWEN2_TEXT,
        **text, "max_position_embeddings": 128000, "max_window_layers": max_window_layers, "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": vision_intermediate,
            "num_heads": 16, "in_chans": 3, "out_hidden_size": text["hidden_size"], "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip


SMALL_TOWER = {
    "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
}  # fmt: skip
LARGE_TOWER = {
    "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
}  # fmt: skip


def qwen3_vl(text: dict, tower: dict, tied: bool) -> dict:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "tie_word_embeddings": tied, "transformers_version": "4.57.0.dev0",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
            "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 262144, "model_type": "qwen3_vl_text", "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936, **text,
            **({"tie_word_embeddings": True} if tied else {}),
        },
        "vision_config": {
            **tower, "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "initializer_range": 0.02,
            "model_type": "qwen3_vl", "num_heads": 16, "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"], "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip


PREPROCESSORS = {
    "qwen2_vl": {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **CLIP,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    },
    "qwen2_5_vl": {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **CLIP,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    },
    "qwen3_vl": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
    },
}  # fmt: skip
GENERATION = {
    "qwen2_vl": {**STOP, "do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
    "qwen2_5_vl": {**STOP, "do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06},
    "qwen3_vl": {**STOP, "do_sample": True, "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0},
}
MEMORY = "from memory"
COPY = "config.json seen in a public copy or another form of the repository"

# name: (config.json, parameters in the index of the weights, what config.json rests on)
MODELS = {
    "Qwen2-VL-2B-Instruct": (qwen2_vl(sizes(1536, 8960, 28, 12, 2), 151936, 28, True), 2_208_985_600, COPY),
    "Qwen2-VL-7B-Instruct": (qwen2_vl(sizes(3584, 18944, 28, 28, 4), 152064, 28, False), 8_291_375_616, COPY),
    "Qwen2-VL-72B-Instruct": (qwen2_vl(sizes(8192, 29568, 80, 64, 8), 152064, 80, False), 73_405_560_320, COPY),
    "Qwen2.5-VL-3B-Instruct": (qwen2_5_vl(sizes(2048, 11008, 36, 16, 2), 3420, 151936, 70, True), 3_754_622_976, COPY),
    "Qwen2.5-VL-7B-Instruct": (qwen2_5_vl(sizes(3584, 18944, 28, 28, 4), 3420, 152064, 28, False), 8_292_166_656, COPY),
    "Qwen2.5-VL-32B-Instruct": (
        qwen2_5_vl(sizes(5120, 27648, 64, 40, 8), 3456, 152064, 64, False), 33_452_718_336, MEMORY,
    ),
    "Qwen2.5-VL-72B-Instruct": (
        qwen2_5_vl(sizes(8192, 29568, 80, 64, 8), 3456, 152064, 80, False), 73_410_777_344,
        COPY + "; its intermediate_size (29568) from memory: the AWQ copy has it padded to 29696",
    ),
    "Qwen3-VL-2B-Instruct": (
        qwen3_vl(sizes(2048, 6144, 28, 16, 8), SMALL_TOWER, True), 2_127_532_032,
        "sizes seen in other programs; form from memory",
    ),
    "Qwen3-VL-4B-Instruct": (qwen3_vl(sizes(2560, 9728, 36, 32, 8), SMALL_TOWER, True), 4_437_815_808, COPY),
    "Qwen3-VL-8B-Instruct": (qwen3_vl(sizes(4096, 12288, 36, 32, 8), LARGE_TOWER, False), 8_767_123_696, COPY),
    "Qwen3-VL-32B-Instruct": (qwen3_vl(sizes(5120, 25600, 64, 64, 8), LARGE_TOWER, False), 33_357_390_064, COPY),
}  # fmt: skip


def saved_again(name: str, version: str, change) -> dict:
    """The configuration of `name` as a transformers of `version` writes it; `change` says how."""
    config = copy.deepcopy(MODELS[name][0])
    config["transformers_version"] = version
    change(config)
    return config


def without_defaults(config: dict, *kept: str) -> None:
    config["vision_config"] = {key: config["vision_config"][key] for key in kept}
    config["vision_config"]["model_type"] = config["model_type"]
    config["rope_scaling"] = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}


def with_rope_parameters(config: dict) -> None:
    text = config["text_config"]
    scaling, theta = text.pop("rope_scaling"), text.pop("rope_theta")
    text |= {"rope_parameters": scaling | {"rope_theta": theta}, "pad_token_id": None}
    config["vision_config"] |= {"model_type": "qwen3_vl_vision", "dtype": "bfloat16"}


# Forms of fine-tuned models: transformers 4.45 to 4.49 left the defaults of the tower out, 5 renames the rotary keys.
OTHER_FORMS = {
    "Qwen2-VL-2B-Instruct, saved by transformers 4.46": saved_again(
        "Qwen2-VL-2B-Instruct", "4.46.1", lambda c: without_defaults(c, "hidden_size", "in_chans", "spatial_patch_size")
    ),
    "Qwen2-VL-7B-Instruct, saved by transformers 4.47": saved_again(
        "Qwen2-VL-7B-Instruct", "4.47.0", lambda c: without_defaults(c, "in_chans", "spatial_patch_size")
    ),
    "Qwen2.5-VL-3B-Instruct, saved by transformers 4.49": saved_again(
        "Qwen2.5-VL-3B-Instruct",
        "4.49.0",
        lambda c: without_defaults(
            c, "hidden_size", "in_chans", "out_hidden_size", "spatial_patch_size", "tokens_per_second"
        ),
    ),
    "Qwen3-VL-8B-Instruct, saved by transformers 5.0": saved_again(
        "Qwen3-VL-8B-Instruct", "5.0.0", with_rope_parameters
    ),
    "Qwen3-VL-32B-Instruct, saved by transformers 5.0": saved_again(
        "Qwen3-VL-32B-Instruct", "5.0.0", with_rope_parameters
    ),
}


def part_of(name: str) -> str:
    """tower, merger (deepstack's too), embedding, layers or head."""
    if "visual." in name:
        return "merger" if "merger" in name else "tower"
    if "embed_tokens" in name:
        return "embedding"
    return "head" if name.startswith("lm_head") else "layers"


def parameters(config: dict) -> dict[str, int]:
    """Counts by part of transformers' model; a tied head counts once, as the embedding."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        read = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(read)
    model.tie_weights()
    counts = dict.fromkeys(["tower", "merger", "embedding", "layers", "head"], 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts | {"total": sum(counts.values())}


def main() -> None:
    models = {}
    for name, (config, total, source) in MODELS.items():
        counts = parameters(config)
        print(name, counts)
        if counts["total"] != total:
            raise SystemExit(f"{name}: {counts['total']} parameters counted, {total} in the index of its weights")
        models[name] = {
            "config": config,
            "preprocessor": PREPROCESSORS[config["model_type"]],
            "generation": GENERATION[config["model_type"]],
            "parameters": counts,
            "source": source,
        }
    for name, config in OTHER_FORMS.items():
        counts = parameters(config)
        base = name.split(",")[0]
        if counts != models[base]["parameters"]:
            raise SystemExit(f"{name}: {counts} parameters, {models[base]['parameters']} in {base}")
        models[name] = models[base] | {"config": config, "source": "keys seen in fine-tuned models; values of " + base}
    write_json(
        FAMILIES / "hub_configs.json",
        {
            "command": "python tools/golden/hub_configs.py",
            "versions": versions(),
            "sources": {
                "parameters": "counted on transformers' classes; equal to the totals of the hub's indexes, from memory",
                "preprocessor": "seen in copies of the repositories, equal for all sizes of a family",
                "generation": "Qwen3-VL: seen in copies of the Instruct models, Thinking samples at temperature 1.0 "
                "and top_p 0.95; Qwen2-VL and Qwen2.5-VL: from memory, and not equal for all sizes and dates",
                "Thinking": "Qwen3-VL's Thinking models have the config.json of the Instruct models, from memory",
            },
            "models": models,
        },
        compact=True,
    )


if __name__ == "__main__":
    main()
