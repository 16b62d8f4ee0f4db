"""Golden files of the image path: inputs, and what Pillow, torchvision and transformers make of them.

Writes golden/images/inputs/* and golden/images/manifest.json. Run from the repository root:

    python tools/golden/images.py

Needs torch 2.11, torchvision 0.26, transformers 5.17 and Pillow 12, on a CPU with AVX2 (elsewhere
torchvision resizes uint8 images in floats). Expected samples are stored as SHA-256 of their bytes.
"""

import hashlib
import io
import json
import platform
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
import transformers
from PIL import Image, ImageDraw, ImageFile
from torchvision.transforms.v2 import functional as tvF
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

SEED = 20504
OUT = Path("golden/images")
INPUTS = OUT / "inputs"

# Settings of image processors, key for key as preprocessor_config.json has them.
CONFIGS = {
    "qwen2_5_vl": {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "shrinking": {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 784, "longest_edge": 3136},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.3],
    },
    "small_patches": {
        "patch_size": 8,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "size": {"shortest_edge": 1024, "longest_edge": 16384},
    },
    "bilinear": {"min_pixels": 784, "max_pixels": 50176, "resample": 2},
    "not_normalised": {"min_pixels": 784, "max_pixels": 50176, "do_normalize": False},
    "not_rescaled": {"min_pixels": 784, "max_pixels": 50176, "do_rescale": False},
}

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def picture(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A gradient with shapes and some noise: smooth parts, sharp edges and texture."""
    y, x = np.mgrid[0:height, 0:width]
    gradient = np.stack(
        [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 120 * np.sin((x + 2 * y) / 9)], -1
    )
    image = Image.fromarray(gradient.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = [x0, y0, x0 + int(rng.integers(3, width)), y0 + int(rng.integers(3, height))]
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    samples = np.asarray(image).astype(np.int64)
    noisy = samples + rng.integers(-12, 13, samples.shape) * (x[..., None] > width // 2)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def png(width: int, height: int, depth: int, color: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of a kind that Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + body + chunk(b"IEND", b"")


def bmp(width: int, height: int, depth: int, compression: int, pixels: bytes, extra: bytes = b"") -> bytes:
    """A BMP of a kind that Pillow cannot write; `extra` is masks or the palette."""
    offset = 14 + 40 + len(extra)
    colors = len(extra) // 4 if depth <= 8 else 0
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(pixels), 0, 0, colors, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + extra + pixels


def save(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_inputs(rng: np.random.Generator) -> dict[str, bytes]:
    rgb = picture(31, 29, rng)
    alpha = Image.fromarray(rng.integers(0, 256, (29, 31), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = rgb.convert("L")
    la.putalpha(alpha)
    palette = rgb.quantize(40)
    grey16 = rng.integers(0, 600, (29, 31)).astype(">u2")
    rgb16 = rng.integers(0, 65536, (29, 31, 3)).astype(">u2")
    rgba16 = rng.integers(0, 65536, (29, 31, 4)).astype(">u2")
    la16 = rng.integers(0, 65536, (29, 31, 2)).astype(">u2")

    def rows16(array: np.ndarray) -> list[bytes]:
        return [row.tobytes() for row in array]

    bits = rng.integers(0, 256, (29, 16), dtype=np.uint8)
    return {
        "rgb_31x29.png": save(rgb, "PNG"),
        "rgb_90x333.png": save(picture(90, 333, rng), "PNG", optimize=True),
        "rgb_64x64.png": save(picture(64, 64, rng), "PNG"),
        "rgb_20x50.png": save(picture(20, 50, rng), "PNG"),
        "rgb_27x13.png": save(picture(27, 13, rng), "PNG"),
        "rgb_400x2.png": save(picture(400, 8, rng).crop((0, 0, 400, 2)), "PNG"),
        "png_named.jpg": save(picture(33, 47, rng), "PNG"),
        "grey.png": save(rgb.convert("L"), "PNG"),
        "grey_trns.png": save(rgb.convert("L"), "PNG", transparency=100),
        "grey_2bit.png": png(31, 29, 2, 0, [row.tobytes()[:8] for row in bits]),
        "grey_4bit.png": png(31, 29, 4, 0, [row.tobytes() for row in bits]),
        "one_bit.png": save(rgb.convert("1"), "PNG"),
        "palette.png": save(palette, "PNG"),
        "palette_2bit.png": save(rgb.quantize(4), "PNG", bits=2),
        "palette_trns.png": save(palette, "PNG", transparency=bytes(range(0, 200, 5))),
        "palette_trns_index.png": save(palette, "PNG", transparency=3),
        "rgb_trns.png": save(rgb, "PNG", transparency=rgb.getpixel((3, 3))),
        "rgba.png": save(rgba, "PNG"),
        "la.png": save(la, "PNG"),
        "grey_16bit.png": png(31, 29, 16, 0, rows16(grey16)),
        "grey_16bit_trns.png": png(31, 29, 16, 0, rows16(grey16), (b"tRNS", struct.pack(">H", 77))),
        "la_16bit.png": png(31, 29, 16, 4, rows16(la16)),
        "rgb_16bit.png": png(31, 29, 16, 2, rows16(rgb16)),
        "rgba_16bit.png": png(31, 29, 16, 6, rows16(rgba16)),
    }


def jpeg_inputs(rng: np.random.Generator) -> dict[str, bytes]:
    rgb = picture(75, 61, rng)
    cmyk = rgb.convert("CMYK")
    cmyk.putdata([(c, m, y, (c + m + y) // 5) for c, m, y, _ in cmyk.getdata()])
    with_adobe = save(cmyk, "JPEG", quality=90)
    adobe = with_adobe.index(b"Adobe")
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "444.jpg": save(rgb, "JPEG", quality=95, subsampling=0),
        "422.jpg": save(rgb, "JPEG", quality=75, subsampling=1),
        "420.jpg": save(rgb, "JPEG", quality=75, subsampling=2),
        "420_90x333.jpg": save(picture(90, 333, rng), "JPEG", quality=85),
        "420_31x29.jpg": save(picture(31, 29, rng), "JPEG", quality=80),
        "420_20x50.jpg": save(picture(20, 50, rng), "JPEG", quality=90),
        "420_320x240.jpg": save(picture(320, 240, rng), "JPEG", quality=60),
        "progressive_444.jpg": save(rgb, "JPEG", quality=80, subsampling=0, progressive=True),
        "progressive_420.jpg": save(rgb, "JPEG", quality=50, progressive=True),
        "restarts.jpg": save(rgb, "JPEG", quality=75, restart_marker_blocks=3),
        "rotated_exif.jpg": save(rgb, "JPEG", quality=75, exif=exif),
        "rgb_stored.jpg": save(rgb, "JPEG", quality=90, keep_rgb=True),
        "grey.jpg": save(rgb.convert("L"), "JPEG", quality=80),
        "progressive_grey.jpg": save(rgb.convert("L"), "JPEG", quality=60, progressive=True),
        "cmyk.jpg": with_adobe,
        # The transform byte of the Adobe segment: 2 says YCCK.
        "ycck.jpg": with_adobe[: adobe + 11] + b"\2" + with_adobe[adobe + 12 :],
        "cmyk_no_adobe.jpg": with_adobe[: adobe - 4] + with_adobe[adobe + 12 :],
        "trailing_bytes.jpg": save(rgb, "JPEG", quality=70) + b"\0" * 33,
    }


def other_inputs(rng: np.random.Generator) -> dict[str, bytes]:
    rgb = picture(57, 40, rng)
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(rng.integers(0, 256, (40, 57), dtype=np.uint8)))
    small = picture(20, 16, rng).quantize(16)
    gif = bytearray(save(small, "GIF"))
    # The logical screen becomes larger than the frame, and the frame moves into it.
    gif[6:10] = struct.pack("<HH", 31, 29)
    frame = gif.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 20, 16))
    gif[frame + 1 : frame + 5] = struct.pack("<HH", 5, 4)
    gif_outside = bytearray(gif)
    gif_outside[frame + 1 : frame + 5] = struct.pack("<HH", 17, 19)
    offset_trns = bytearray(save(small, "GIF", transparency=5))
    offset_trns[6:10] = struct.pack("<HH", 31, 29)
    pixels16 = rng.integers(0, 65536, (9, 10), dtype=np.uint16).astype("<u2")
    rgb565 = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    runs = b"".join(bytes([6, v, 4, 255 - v, 0, 0]) for v in range(9)) + b"\0\1"
    ramp = b"".join(bytes([i, 255 - i, (i * 7) % 256, 0]) for i in range(256))
    return {
        "lossy.webp": save(rgb, "WEBP", quality=70),
        "lossless.webp": save(rgb, "WEBP", lossless=True),
        "lossy_alpha.webp": save(rgba, "WEBP", quality=70),
        "lossless_alpha.webp": save(rgba, "WEBP", lossless=True, exact=True),
        "animated.webp": save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)], lossless=True),
        "palette.gif": save(rgb.quantize(64), "GIF"),
        "grey.gif": save(rgb.convert("L"), "GIF"),
        "transparent.gif": save(rgb.quantize(64), "GIF", transparency=7),
        "interlaced.gif": save(rgb.quantize(64), "GIF", interlace=1),
        "animated.gif": save(rgb.quantize(32), "GIF", save_all=True, append_images=[rgb.rotate(90).quantize(32)]),
        "offset_frame.gif": bytes(gif),
        "frame_outside.gif": bytes(gif_outside),
        "small_transparent_frame.gif": bytes(offset_trns),
        "rgb.bmp": save(rgb.crop((0, 0, 21, 17)), "BMP"),
        "rgba.bmp": save(rgba.crop((0, 0, 21, 17)), "BMP"),
        "grey.bmp": save(rgb.convert("L").crop((0, 0, 21, 17)), "BMP"),
        "palette.bmp": save(small, "BMP"),
        "one_bit.bmp": save(rgb.convert("1").crop((0, 0, 21, 17)), "BMP"),
        "rgb555.bmp": bmp(10, 9, 16, 0, pixels16.tobytes()),
        "rgb565.bmp": bmp(10, 9, 16, 3, pixels16.tobytes(), rgb565),
        "rle8.bmp": bmp(10, 9, 8, 1, runs, ramp),
        "top_down.bmp": bmp(5, -4, 24, 0, rng.integers(0, 256, 64, dtype=np.uint8).tobytes()),
    }


def truncations(inputs: dict[str, bytes]) -> list[dict]:
    """What Pillow says of the first bytes of a file."""
    cases = []
    for name in [
        "rgb_31x29.png", "palette.png", "grey_16bit.png", "444.jpg", "420.jpg", "progressive_420.jpg", "grey.jpg",
        "cmyk.jpg", "restarts.jpg", "lossy.webp", "lossless.webp", "palette.gif", "rgb.bmp",
    ]:  # fmt: skip
        size = len(inputs[name])
        for keep in sorted({20, size // 4, size // 2, 3 * size // 4, size - 60, size - 12, size - 2, size - 1}):
            case = {"file": name, "keep": keep}
            try:
                image = Image.open(io.BytesIO(inputs[name][:keep])).convert("RGB")
                case["rgb_sha256"] = sha(image.tobytes())
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                case["pillow_error"] = type(error).__name__
            cases.append(case)
    return cases


def resize_torchvision(image: Image.Image, width: int, height: int, name: str) -> bytes:
    mode = {"bilinear": tvF.InterpolationMode.BILINEAR, "bicubic": tvF.InterpolationMode.BICUBIC}[name]
    tensor = tvF.resize(tvF.pil_to_tensor(image), [height, width], interpolation=mode, antialias=True)
    return tensor.permute(1, 2, 0).contiguous().numpy().tobytes()


def resizes(inputs: dict[str, bytes]) -> list[dict]:
    cases = []
    targets = [(28, 28), (84, 336), (100, 37), (1, 1), (13, 200), (90, 60), (28, 333), (448, 448)]
    for name in ["rgb_90x333.png", "rgb_31x29.png", "420_320x240.jpg", "rgba_16bit.png"]:
        image = Image.open(io.BytesIO(inputs[name])).convert("RGB")
        for width, height in targets:
            case = {"file": name, "size": [width, height], "rgb_sha256": {}}
            for kind in FILTERS:
                resized = image.resize((width, height), FILTERS[kind]).tobytes()
                case["rgb_sha256"][f"pillow_{kind}"] = sha(resized)
                if kind != "lanczos":
                    resized = resize_torchvision(image, width, height, kind)
                    case["rgb_sha256"][f"torchvision_{kind}"] = sha(resized)
            cases.append(case)
    return cases


TINY_PX = 28


def enlarge_tiny(image: Image.Image) -> Image.Image:
    """VLM-R1's guard (grpo_trainer.py): one number, whatever the patches."""
    side = TINY_PX
    width, height = image.size
    if width >= side and height >= side:
        return image
    if width < height:
        size = (side, int(height * (side / width)))
    else:
        size = (int(width * (side / height)), side)
    return image.resize(size, Image.Resampling.LANCZOS)


def prepared(processors: dict, config: str, backend: str, image: Image.Image) -> dict:
    out = processors[config][backend](images=[image], return_tensors="pt")
    values = out["pixel_values"].to(torch.float32).contiguous().numpy()
    return {"grid_thw": out["image_grid_thw"][0].tolist(), "shape": list(values.shape), "sha256": sha(values.tobytes())}


def processor_cases(inputs: dict[str, bytes]) -> list[dict]:
    processors = {
        name: {
            "torchvision": Qwen2VLImageProcessor(**json.loads(json.dumps(config))),
            "pillow": Qwen2VLImageProcessorPil(**json.loads(json.dumps(config))),
        }
        for name, config in CONFIGS.items()
    }
    cases = []
    for file, data in inputs.items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        configs = list(CONFIGS) if file.startswith(("rgb_", "420")) else ["qwen2_5_vl"]
        for config in configs:
            for tiny in [False, True]:
                if tiny and min(image.size) >= TINY_PX or max(image.size) / min(image.size) > 200:
                    continue
                given = enlarge_tiny(image) if tiny else image
                for backend in ["torchvision", "pillow"]:
                    case = {"file": file, "config": config, "backend": backend, "enlarge_tiny": tiny}
                    cases.append(case | prepared(processors, config, backend, given))
    return cases


def main() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    rng = np.random.default_rng(SEED)
    inputs = png_inputs(rng) | jpeg_inputs(rng) | other_inputs(rng)
    INPUTS.mkdir(parents=True, exist_ok=True)
    decoded = []
    for name, data in inputs.items():
        (INPUTS / name).write_bytes(data)
        image = Image.open(INPUTS / name)
        mode, rgb = image.mode, image.convert("RGB")
        decoded.append({"file": name, "mode": mode, "size": list(rgb.size), "rgb_sha256": sha(rgb.tobytes())})
    manifest = {
        "command": "python tools/golden/images.py",
        "seed": SEED,
        "tolerance": 0,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "configs": CONFIGS,
        "decoded": decoded,
        "truncated": truncations(inputs),
        "resized": resizes(inputs),
        "prepared": processor_cases(inputs),
    }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print({key: len(value) for key, value in manifest.items() if isinstance(value, list)}, file=sys.stderr)


if __name__ == "__main__":
    main()
