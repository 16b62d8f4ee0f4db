"""Makes `golden/text`: a small byte-level BPE tokenizer with Qwen2.5-VL's special tokens and
pre-tokeniser, a chat template in its form, and prompts with the ids transformers gives them.

Run from the repository root, in a Python with transformers, tokenizers and Pillow:
    python tools/golden/text.py
"""

import hashlib
import json
import unicodedata
from pathlib import Path

import tokenizers
import transformers
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

OUT = Path("golden/text")
TOKENIZER = OUT / "tokenizer"
VOCAB_SIZE = 600  # with the added tokens

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
).split()

# One turn of the chat: what Qwen2.5-VL's own template renders, character for character.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

REC = (
    "Please provide the bounding box coordinate of the region this sentence describes: {query}."
    " First output the thinking process in <think> </think> tags and then output the final answer"
    " in <answer> </answer> tags. Output the final answer in JSON format."
)
UNICODE = [
    "",
    " ",
    "\n\n  leading and trailing  \n",
    "It's what WE'LL say; they'RE sure you'd've 'seen",
    "tabs\tand\r\nline\rends\n\n\n   x",
    "1234567890 3.14 ٣٤٥ Ⅷ ½ x²",
    "图片中有几只猫？请描述这张图片。",
    "Где красный круг? Ελληνικά עברית العربية हिन्दी ไทย 한국어",
    "e\u0301 and \u00e9 and \u1e9b\u0323 and ﬁ",  # NFC joins the first, leaves the ligature
    "emoji 👩‍👩‍👧‍👦 🇫🇷 👍🏽 \u200d\ufe0f",
    "non-breaking\u00a0space\u2003em\u3000wide\u2028line\u0085next",
    "\u0000\u0001\u007f control \ufeff mark",
    "code: fn main() { println!(\"{}\", x != y && z[0]); } // <tool_call> {{ not_jinja }} {% raw %}",
    "<think></think><answer>[1, 2, 3, 4]</answer> <|not_special|> <image>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd 𝟘𝟙",
]


def make_tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = (OUT / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    bpe.train_from_iterator(lines, trainer)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    assert bpe.get_vocab_size() == VOCAB_SIZE, bpe.get_vocab_size()
    return bpe


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(bpe):
    """A folder as the hub has it for Qwen2.5-VL, less the weights."""
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    bpe.save(str(TOKENIZER / "tokenizer.json"), pretty=False)
    ids = {t: bpe.token_to_id(t) for t in SPECIAL + ADDED}
    write_json(
        TOKENIZER / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(ids[t]): {
                    "content": t,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": t in SPECIAL,
                }
                for t in SPECIAL + ADDED
            },
            "additional_special_tokens": SPECIAL[1:],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(TOKENIZER / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(
        TOKENIZER / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    write_json(
        TOKENIZER / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "repetition_penalty": 1.05,
            "temperature": 0.000001,
        },
    )
    write_json(
        TOKENIZER / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_token_id": ids["<|vision_pad|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vocab_size": VOCAB_SIZE,
        },
    )


def draw(name, width, height):
    path = OUT / "images" / name
    path.parent.mkdir(exist_ok=True)
    image = Image.new("RGB", (width, height), (240, 240, 235))
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, width // 2, height // 2], fill="red")
    image.save(path)
    return name


def cases():
    one, wide, tiny = draw("one.png", 84, 56), draw("wide.png", 333, 90), draw("tiny.png", 31, 29)
    yield "one image", [one], REC.replace("{query}", "the red circle on the left")
    yield "several images", [one, wide, tiny], "What is the difference between the images?"
    yield "the same image twice", [one, one], "Are they equal?"
    yield "text only", [], "How many sides has a triangle?"
    for i, text in enumerate(UNICODE):
        yield f"unicode {i}", [tiny] if i % 5 == 0 else [], text


def main():
    bpe = make_tokenizer()
    write_folder(bpe)
    processor = transformers.AutoProcessor.from_pretrained(TOKENIZER)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor", type(processor)
    merge = processor.image_processor.merge_size**2
    image_id = bpe.token_to_id("<|image_pad|>")

    prompts = []
    for name, files, text in cases():
        content = [{"type": "image"} for _ in files] + [{"type": "text", "text": text}]
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        images = [Image.open(OUT / "images" / f).convert("RGB") for f in files]
        out = processor(text=[rendered], images=images or None, return_tensors="pt")
        ids = out["input_ids"][0].tolist()
        grids = out["image_grid_thw"].tolist() if files else []
        assert ids.count(image_id) == sum(t * h * w // merge for t, h, w in grids)
        prompts.append(
            {"name": name, "images": files, "text": text, "rendered": rendered, "grids": grids,
             "ids": ids}
        )

    tokenizer = processor.tokenizer
    texts = []
    for text in UNICODE + [REC, "<|im_start|>user<|image_pad|><|im_end|>", "a<tool_call>b"]:
        ids = tokenizer(text)["input_ids"]
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        full = tokenizer.decode(ids, skip_special_tokens=False)
        assert full == unicodedata.normalize("NFC", text)
        texts.append({"text": text, "ids": ids, "decoded": full, "decoded_plain": plain})
    # Half characters: an answer cut by the token limit.
    halves = []
    for ids in [tokenizer("猫")["input_ids"][:1], [1, 2, 250], list(range(0, 256, 7))]:
        halves.append({"ids": ids, "decoded": tokenizer.decode(ids)})

    write_json(OUT / "prompts.json", {"prompts": prompts, "texts": texts, "halves": halves})
    write_json(
        OUT / "manifest.json",
        {
            "made_by": "tools/golden/text.py",
            "versions": {
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "seed": None,
            "tolerance": "equal",
            "vocab_size": VOCAB_SIZE,
            "sha256": {
                str(p.relative_to(OUT)): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(OUT.rglob("*"))
                if p.is_file() and p.name != "manifest.json"
            },
        },
    )


if __name__ == "__main__":
    main()
