"""What Pillow makes of damaged and odd PNG files, and of a JPEG with arithmetic coding: golden/images/damaged.json.

    python tools/golden/damaged.py

Needs Pillow 13 (12.3 gives the same) and numpy. Files are built here byte by byte and stored as hex; what Pillow
makes of each is the SHA-256 of its RGB samples, or null where it raises. golden/images/arithmetic.jpg, which Pillow reads
and cannot write, was made by `jpegtran -arithmetic`. `flips` are single bytes of small good
files that were changed: [offset, xor, first 8 digits of the SHA-256 or null].
"""

import hashlib
import io
import json
import random
import struct
import warnings
import zlib
from pathlib import Path

import PIL
from PIL import Image

OUT = Path("golden/images/damaged.json")
SEED = 20504
SIGNATURE = b"\x89PNG\r\n\x1a\n"
W, H = 7, 5
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
PALETTE = bytes((37 * i + 11 * (i % 3)) % 256 for i in range(48))


def chunk(kind: bytes, data: bytes = b"", flip_sum: int = 0, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) ^ flip_sum
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", crc)


def ihdr(depth=8, color=2, width=W, height=H, method=0, filters=0, interlace=0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, color, method, filters, interlace)


def rows(depth: int, color: int, interlace: bool, rng: random.Random, filters=(0, 1, 2, 3, 4)) -> list[bytes]:
    """Rows of random bytes with random filters, pass by pass."""
    found = []
    for x0, y0, dx, dy in PASSES if interlace else [(0, 0, 1, 1)]:
        columns = len(range(x0, W, dx))
        if columns:
            size = (columns * SAMPLES[color] * depth + 7) // 8
            for _ in range(y0, H, dy):
                found.append(bytes([rng.choice(filters)]) + rng.randbytes(size))
    return found


def png(*middle: bytes, header: bytes = ihdr(), end: bytes = chunk(b"IEND")) -> bytes:
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(middle) + end


def pngs(rng: random.Random) -> dict[str, bytes]:
    good = rows(8, 2, False, rng)
    raw = b"".join(good)
    stream = zlib.compress(raw, 9)
    idat = chunk(b"IDAT", stream)
    bad_sum = stream[:-4] + bytes(b ^ 0x55 for b in stream[-4:])
    text = lambda flip=0: chunk(b"tEXt", b"Title\0a title", flip)
    unknown = lambda name=b"ABCD", flip=0: chunk(name, b"something", flip)
    bomb = zlib.compress(bytes((1 << 20) + 6000), 9)
    most = zlib.compress(bytes(1 << 19), 9)
    fctl = lambda number=0, w=W, h=H, x=0, y=0: chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", number, w, h, x, y, 1, 10, 0, 0)
    )
    actl = lambda frames=2: chunk(b"acTL", struct.pack(">II", frames, 0))
    fdat = lambda number=2: chunk(b"fdAT", struct.pack(">I", number) + stream)
    files = {"good": png(idat)}
    for depth, color in [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 4), (16, 4), (8, 6), (16, 6)]:
        for interlace in (0, 1):
            palette = [chunk(b"PLTE", PALETTE)] if color == 3 else []
            content = zlib.compress(b"".join(rows(depth, color, bool(interlace), rng)))
            files[f"kind_{depth}_{color}_{interlace}"] = png(
                *palette, chunk(b"IDAT", content), header=ihdr(depth, color, interlace=interlace)
            )
    # The stream.
    for level in (0, 1, 6):
        files[f"level_{level}"] = png(chunk(b"IDAT", zlib.compress(raw, level)))
    fixed = zlib.compressobj(9, strategy=zlib.Z_FIXED)
    files["fixed_codes"] = png(chunk(b"IDAT", fixed.compress(raw) + fixed.flush()))
    blocks = zlib.compressobj(9)
    parts = b"".join(blocks.compress(row) + blocks.flush(zlib.Z_FULL_FLUSH) for row in good)
    files["many_blocks"] = png(chunk(b"IDAT", parts + blocks.flush()))
    files["small_window"] = png(chunk(b"IDAT", zlib.compressobj(9, wbits=9).compress(b"") + (lambda c: c.compress(raw) + c.flush())(zlib.compressobj(9, wbits=9))))
    files["idat_adler"] = png(chunk(b"IDAT", bad_sum))
    files["no_adler"] = png(chunk(b"IDAT", stream[:-4]))
    files["half_adler"] = png(chunk(b"IDAT", stream[:-2]))
    files["adler_in_own_chunk"] = png(chunk(b"IDAT", stream[:-4]), chunk(b"IDAT", stream[-4:]))
    files["extra_rows"] = png(chunk(b"IDAT", zlib.compress(raw + raw)))
    files["extra_rows_bad_adler"] = png(chunk(b"IDAT", zlib.compress(raw + raw)[:-1] + b"\0"))
    files["extra_byte"] = png(chunk(b"IDAT", zlib.compress(raw + b"\0")))
    files["behind_stream"] = png(chunk(b"IDAT", stream + b"more"))
    files["lacks_rows"] = png(chunk(b"IDAT", zlib.compress(b"".join(good[:3]))))
    files["lacks_rows_bad_adler"] = png(chunk(b"IDAT", zlib.compress(b"".join(good[:3]))[:-1] + b"\1"))
    files["lacks_half_row"] = png(chunk(b"IDAT", zlib.compress(raw[:-9])))
    files["lacks_all_rows"] = png(chunk(b"IDAT", zlib.compress(b"")))
    files["filter_5"] = png(chunk(b"IDAT", zlib.compress(b"\5" + raw[1:])))
    files["filter_255_last"] = png(chunk(b"IDAT", zlib.compress(b"".join(good[:-1]) + b"\xff" + good[-1][1:])))
    files["bad_zlib_header"] = png(chunk(b"IDAT", b"\x78\x9d" + stream[2:]))
    files["bad_zlib_method"] = png(chunk(b"IDAT", b"\x79" + bytes([31 - (0x7900 % 31)]) + stream[2:]))
    files["bad_block_type"] = png(chunk(b"IDAT", stream[:2] + b"\x07" + stream[3:]))
    files["bad_stored_length"] = png(chunk(b"IDAT", stream[:2] + b"\x01\x05\x00\x00\x00" + stream[7:]))
    # Its chunks.
    files["idat_sum"] = png(chunk(b"IDAT", stream, 1))
    for cut in range(0, len(stream), 9):
        files[f"two_idats_{cut}"] = png(chunk(b"IDAT", stream[:cut], 7), chunk(b"IDAT", stream[cut:]))
    files["empty_idats"] = png(chunk(b"IDAT"), chunk(b"IDAT", stream[:20]), chunk(b"IDAT"), chunk(b"IDAT", stream[20:]))
    files["byte_by_byte"] = png(*[chunk(b"IDAT", stream[i : i + 1]) for i in range(len(stream))])
    files["text_between_idats"] = png(chunk(b"IDAT", stream[:40]), text(), chunk(b"IDAT", stream[40:]))
    files["second_picture"] = png(idat, text(), idat)
    files["idat_too_long"] = png(chunk(b"IDAT", stream, 0, len(stream) + 1000), end=b"")
    files["idat_too_short"] = png(chunk(b"IDAT", stream, 0, len(stream) - 20))
    whole = png(idat)
    for cut in (4, 8, 12, 13, 16, 17, 20, 24, 40, len(whole) - 33, len(whole) - 50, len(whole) - 60, 0):
        files[f"cut_{cut}"] = whole[: len(whole) - cut] if cut else whole[:8]
    # Chunks before it.
    files["header_sum"] = SIGNATURE + chunk(b"IHDR", ihdr(), 1) + idat + chunk(b"IEND")
    files["header_short"] = png(idat, header=ihdr()[:12])
    files["header_long"] = png(idat, header=ihdr() + b"\0")
    files["header_twice"] = png(chunk(b"IHDR", ihdr()), idat)
    files["header_missing"] = SIGNATURE + idat + chunk(b"IEND")
    files["header_late"] = SIGNATURE + text() + chunk(b"IHDR", ihdr()) + idat + chunk(b"IEND")
    files["picture_missing"] = png()
    files["zero_width"] = png(idat, header=ihdr(width=0))
    files["zero_height"] = png(idat, header=ihdr(height=0))
    files["width_2_31"] = png(idat, header=ihdr(width=1 << 31, height=1))
    for depth, color in [(3, 0), (16, 3), (4, 2), (1, 4), (2, 6), (8, 1), (8, 5), (8, 7), (32, 2), (0, 0)]:
        files[f"no_kind_{depth}_{color}"] = png(idat, header=ihdr(depth, color))
    files["compression_method"] = png(idat, header=ihdr(method=1))
    files["filter_method"] = png(idat, header=ihdr(filters=1))
    files["interlace_2"] = png(chunk(b"IDAT", zlib.compress(b"".join(rows(8, 2, True, rng)))), header=ihdr(interlace=2))
    lacking = rows(8, 2, True, rng)
    for kept in range(1, len(lacking)):
        files[f"interlaced_{kept}_rows"] = png(chunk(b"IDAT", zlib.compress(b"".join(lacking[:kept]))), header=ihdr(interlace=1))
    for name, packed in [
        ("unknown_critical", unknown()), ("unknown_ancillary", unknown(b"abCd")), ("unknown_sum", unknown(flip=1)),
        ("ancillary_sum", unknown(b"abCd", 1)), ("text_sum", text(1)), ("odd_name", unknown(b"ab-d")),
        ("digit_name", unknown(b"a1_d")), ("null_name", unknown(b"\0\0\0\0")), ("latin_name", unknown(b"abc\xe9")),
        ("time", chunk(b"tIME", b"x")), ("too_long", chunk(b"teST", b"x", 0, 1 << 20)),
        ("text_without_zero", chunk(b"tEXt", b"Title")), ("text_without_key", chunk(b"tEXt", b"\0Title")),
        ("packed_text", chunk(b"zTXt", b"Title\0\0" + most)), ("packed_bomb", chunk(b"zTXt", b"Title\0\0" + bomb)),
        ("packed_method", chunk(b"zTXt", b"Title\0\1" + most)), ("packed_empty", chunk(b"zTXt", b"Title\0")),
        ("packed_broken", chunk(b"zTXt", b"Title\0\0rubbish")), ("packed_bomb_without_key", chunk(b"zTXt", b"\0\0" + bomb)),
        ("packed_cut_bomb", chunk(b"zTXt", b"Title\0\0" + bomb[:-6])),
        ("packed_without_zero", chunk(b"zTXt", b"Title")),
        ("international", chunk(b"iTXt", b"Title\0\0\0en\0Titel\0text")), ("international_latin", chunk(b"iTXt", b"Title\0\0\0en\0\0\xff\xfe")),
        ("international_bomb", chunk(b"iTXt", b"Title\0\1\0en\0\0" + bomb)),
        ("international_flag_2_bomb", chunk(b"iTXt", b"Title\0\2\0en\0\0" + bomb)),
        ("international_method", chunk(b"iTXt", b"Title\0\1\1en\0\0" + bomb)), ("international_short", chunk(b"iTXt", b"Title\0\1")),
        ("international_no_language", chunk(b"iTXt", b"Title\0\1\0en")),
        ("international_broken", chunk(b"iTXt", b"Title\0\1\0\0\0rubbish")),
        ("profile", chunk(b"iCCP", b"sRGB\0\0" + most)), ("profile_bomb", chunk(b"iCCP", b"sRGB\0\0" + bomb)),
        ("profile_method", chunk(b"iCCP", b"sRGB\0\1" + most)), ("profile_without_zero", chunk(b"iCCP", b"sRGB")),
        ("profile_empty", chunk(b"iCCP", b"")), ("profile_ends", chunk(b"iCCP", b"sRGB\0")),
        ("profile_broken", chunk(b"iCCP", b"sRGB\0\0rubbish")), ("profile_cut", chunk(b"iCCP", b"sRGB\0\0" + most[:-7])),
        ("gamma", chunk(b"gAMA", b"abc")), ("chroma", chunk(b"cHRM", b"abc")), ("srgb", chunk(b"sRGB", b"")),
        ("density", chunk(b"pHYs", b"abc")), ("exif", chunk(b"eXIf", b"abc")), ("transparency", chunk(b"tRNS", b"abc")),
        ("palette", chunk(b"PLTE", PALETTE)), ("palette_sum", chunk(b"PLTE", PALETTE, 1)),
        ("animation_short", chunk(b"acTL", b"abc")), ("frame_short", chunk(b"fcTL", b"abc")), ("data_short", chunk(b"fdAT", b"abc")),
    ]:  # fmt: skip
        files[f"before_{name}"] = png(packed, idat)
        files[f"behind_{name}"] = png(idat, packed)
    # Palettes.
    indexed = chunk(b"IDAT", zlib.compress(b"".join(rows(8, 3, False, rng))))
    nibbles = chunk(b"IDAT", zlib.compress(b"".join(rows(4, 3, False, rng))))
    for name, palette in [
        ("none", b""), ("short", chunk(b"PLTE", PALETTE[:9])), ("ragged", chunk(b"PLTE", PALETTE[:10])),
        ("empty", chunk(b"PLTE")), ("full", chunk(b"PLTE", bytes(reversed(range(256))) * 3)),
        ("long", chunk(b"PLTE", bytes(257 * 3))), ("ragged_long", chunk(b"PLTE", bytes(256 * 3 + 1))),
        ("sum", chunk(b"PLTE", PALETTE, 1)), ("twice", chunk(b"PLTE", PALETTE) + chunk(b"PLTE", PALETTE[24:])),
        ("transparent", chunk(b"PLTE", PALETTE) + chunk(b"tRNS", b"\xff\0\xff")),
        ("half_transparent", chunk(b"PLTE", PALETTE) + chunk(b"tRNS", b"\x80\x10\xff")),
        ("transparency_first", chunk(b"tRNS", b"\xff\0\xff") + chunk(b"PLTE", PALETTE)),
        ("transparency_long", chunk(b"PLTE", PALETTE[:6]) + chunk(b"tRNS", bytes(300))),
    ]:  # fmt: skip
        files[f"palette_{name}"] = png(palette, indexed, header=ihdr(8, 3))
        files[f"palette_4_{name}"] = png(palette, nibbles, header=ihdr(4, 3))
    files["palette_behind"] = png(indexed, chunk(b"PLTE", PALETTE), header=ihdr(8, 3))
    files["palette_lacks_rows"] = png(chunk(b"PLTE", PALETTE), chunk(b"IDAT", zlib.compress(b"\0" + bytes(W))), header=ihdr(8, 3))
    grey = chunk(b"IDAT", zlib.compress(b"".join(rows(8, 0, False, rng))))
    files["grey_transparent"] = png(chunk(b"tRNS", b"\0\7"), grey, header=ihdr(8, 0))
    files["grey_transparent_short"] = png(chunk(b"tRNS", b"\0"), grey, header=ihdr(8, 0))
    # Animations.
    files["animated"] = png(actl(), fctl(), idat, fctl(1), fdat())
    files["animated_default"] = png(actl(), idat, fctl(0), fdat(1))
    files["animated_no_end"] = png(actl(), fctl(), idat, end=b"")
    files["animated_out_of_order"] = png(actl(), fctl(1), idat)
    files["animated_out_of_order_behind"] = png(idat, fctl(1), fdat())
    files["animated_leaves"] = png(actl(), fctl(w=W + 1), idat)
    files["animated_leaves_behind"] = png(actl(), fctl(), idat, fctl(1, w=W + 1), fdat())
    files["frame_leaves_behind"] = png(idat, fctl(0, w=W + 1))
    files["data_without_frame_behind"] = png(idat, fdat(0))
    files["data_without_frame"] = png(fdat(0))
    files["frame_before_header"] = SIGNATURE + fctl(0) + chunk(b"IHDR", ihdr()) + idat + chunk(b"IEND")
    files["animated_no_frames"] = png(actl(0), fctl(), idat, fctl(5))
    files["animated_one_frame"] = png(actl(1), fctl(), idat, fctl(5))
    files["animated_twice"] = png(actl(), actl(), fctl(), idat, fctl(5))
    # Ends.
    files["trailing"] = png(idat) + b"anything" * 9
    files["end_sum"] = png(idat, end=chunk(b"IEND", b"", 1))
    files["end_with_data"] = png(idat, end=chunk(b"IEND", b"data"))
    files["no_end_but_text"] = png(idat, text(), end=b"")
    files["rubbish_behind"] = png(idat, b"rubbish, and more of it")
    files["zeros_behind"] = png(idat, bytes(64))
    return files


def verdict(data: bytes) -> tuple[str | None, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # whatever it is, the file is refused
        return None, type(error).__name__
    return hashlib.sha256(image.tobytes()).hexdigest(), ""


def main() -> None:
    rng = random.Random(SEED)
    files = pngs(rng)
    cases = []
    for name, data in files.items():
        assert len(data) < 5000, (name, len(data))
        rgb, _ = verdict(data)
        cases.append({"name": name, "bytes": data.hex(), "rgb_sha256": rgb})
    flips = {}
    for name in ["good", "kind_4_3_0", "kind_8_6_1", "before_profile", "animated"]:
        data = files[name]
        found = []
        for _ in range(150):
            offset, xor = rng.randrange(8, len(data)), rng.randrange(1, 256)
            changed = bytearray(data)
            changed[offset] ^= xor
            rgb, _ = verdict(bytes(changed))
            found.append([offset, xor, rgb and rgb[:8]])
        flips[name] = found
    arithmetic, _ = verdict(Path("golden/images/arithmetic.jpg").read_bytes())
    assert arithmetic
    head = {"command": "python tools/golden/damaged.py", "versions": {"pillow": PIL.__version__}, "seed": SEED, "arithmetic": arithmetic}
    text = json.dumps(head)[:-1] + ',\n"cases": [\n' + ",\n".join(json.dumps(case) for case in cases)
    text += '\n],\n"flips": {\n' + ",\n".join(f'"{name}": {json.dumps(found)}' for name, found in flips.items()) + "\n}}\n"
    OUT.write_text(text)
    print(f"{len(cases)} files, {sum(c['rgb_sha256'] is None for c in cases)} of them refused; {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
