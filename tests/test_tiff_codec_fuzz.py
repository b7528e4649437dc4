"""Thousands of damaged tiles of every codec, each codec in a process of its own: pixels or a ReadError, in little memory, never a crash.

LERC is safe by its checksum alone: libLerc (4.0.0) reads out of bounds where a blob is damaged and then sealed again by hand.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
import simplejpeg

from patchdrive.readers.errors import ReadError
from patchdrive.readers.tiff_codecs import Coding, decode_tile, jpeg_prefix

TURNS = 3000
SIDE = 64
# A tile is at most 16 KiB here; decoders keep tables of their own, and xz a dictionary up to its limit.
MAX_GROWTH, MAX_LZMA_GROWTH = 16 * 2**20, 160 * 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A whole tile and what it means."""

    data: bytes
    coding: Coding


def coding(codec: str, *, dtype: str = "u1", samples: int = 3, photometric: int = 2, **other: Any) -> Coding:
    prefix = jpeg_prefix(b"", photometric) if codec == "jpeg" else b""
    plain = {"predictor": 1, "swapped": False, "prefix": prefix} | other
    return Coding(codec=codec, photometric=photometric, dtype=np.dtype(dtype), samples=samples, **plain)


def pixels(samples: int, dtype: str = "u1") -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = [(x * (k + 1) + y * 3) % 251 + (y // 16) for k in range(samples)]
    return np.stack(planes, axis=2).clip(0, 255).astype(dtype)


def masked_lerc() -> bytes:
    floats = pixels(1, "f4")[:, :, 0]
    return imagecodecs.lerc_encode(floats, masks=floats > 40, level=0.01)


def samples() -> dict[str, Sample]:
    """Codec's name to a whole tile."""
    rgb, rgba, grey = pixels(3), pixels(4), pixels(1)[:, :, 0]
    deep = (pixels(1, "u2")[:, :, 0] * 16).astype("u2")
    ycbcr = simplejpeg.encode_jpeg(rgb, 85, colorsubsampling="420")
    lerc = imagecodecs.lerc_encode(rgb, level=0)
    plain = np.ascontiguousarray(deep).tobytes()
    wide = {"dtype": "u2", "samples": 1, "photometric": 1}
    return {
        "jpeg": Sample(data=ycbcr, coding=coding("jpeg", photometric=6)),
        "jpeg-4": Sample(data=imagecodecs.jpeg8_encode(rgba, level=85), coding=coding("jpeg", samples=4)),
        "jpeg-12": Sample(data=imagecodecs.jpeg8_encode(deep, bitspersample=12, level=90), coding=coding("jpeg", **wide, bits=12)),
        "jpeg2000": Sample(data=imagecodecs.jpeg2k_encode(rgb, codecformat="j2k", reversible=True), coding=coding("jpeg2000")),
        "jp2": Sample(data=imagecodecs.jpeg2k_encode(rgb, codecformat="jp2", level=40), coding=coding("jpeg2000")),
        "lerc": Sample(data=lerc, coding=coding("lerc")),
        "lerc-mask": Sample(data=masked_lerc(), coding=coding("lerc", dtype="f4", samples=1, photometric=1)),
        "lerc-planes": Sample(data=imagecodecs.lerc_encode(np.moveaxis(rgb, 2, 0).copy(), planar=True, level=0), coding=coding("lerc")),
        "lerc-zstd": Sample(data=imagecodecs.zstd_encode(lerc), coding=coding("lerc", inner="zstd")),
        "lerc-deflate": Sample(data=imagecodecs.zlib_encode(lerc), coding=coding("lerc", inner="deflate")),
        "webp": Sample(data=imagecodecs.webp_encode(rgb, level=80), coding=coding("webp")),
        "webp-lossless": Sample(data=imagecodecs.webp_encode(rgba, lossless=True), coding=coding("webp", samples=4)),
        "jpegxl": Sample(data=imagecodecs.jpegxl_encode(rgb, level=90), coding=coding("jpegxl")),
        "jpegxl-lossless": Sample(data=imagecodecs.jpegxl_encode(deep, lossless=True), coding=coding("jpegxl", **wide)),
        "jpegxl-boxes": Sample(data=imagecodecs.jpegxl_encode(rgba, lossless=True, usecontainer=True), coding=coding("jpegxl", samples=4)),
        "deflate": Sample(data=imagecodecs.zlib_encode(plain), coding=coding("deflate", **wide)),
        "zstd": Sample(data=imagecodecs.zstd_encode(plain), coding=coding("zstd", **wide)),
        "lzma": Sample(data=imagecodecs.lzma_encode(plain), coding=coding("lzma", **wide)),
        "lzw": Sample(data=imagecodecs.lzw_encode(plain), coding=coding("lzw", **wide)),
        "lzw-12": Sample(data=imagecodecs.lzw_encode(grey.tobytes() * 2), coding=coding("lzw", **wide, bits=12)),
        "packbits": Sample(data=imagecodecs.packbits_encode(plain), coding=coding("packbits", **wide)),
    }


def harmed(whole: bytes, rng: np.random.Generator) -> bytes:
    """A copy with a few bytes changed (half of the time near its head), cut out, doubled, or cut short."""
    data = bytearray(whole)
    reach = min(len(data), 96) if rng.random() < 0.5 else len(data)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(reach))
        data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256), data[place] ^ (1 << rng.integers(8))]))
    turn = rng.random()
    start, end = sorted(int(place) for place in rng.integers(0, len(data), 2))
    if turn < 0.1:
        del data[start : min(end, start + 40)]
    elif turn < 0.2:
        data[start:start] = data[start:end]
    elif turn < 0.3:
        del data[max(end, 1) :]
    return bytes(data)


def main(name: str, seed: int) -> None:
    """Decode damaged tiles until one breaks a promise."""
    sample = samples()[name]
    out = np.empty((SIDE, SIDE, sample.coding.samples), sample.coding.dtype)
    sample.coding.check()
    decode_tile(memoryview(sample.data), sample.coding, SIDE, out)
    rng = np.random.default_rng(seed)
    refused, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for turn in range(TURNS):
        print(turn, end="\r", file=sys.stderr)  # noqa: T201 -- the last word of a process that crashes
        try:
            decode_tile(memoryview(harmed(sample.data, rng)), sample.coding, SIDE, out)
        except ReadError:
            refused += 1
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < (MAX_LZMA_GROWTH if name == "lzma" else MAX_GROWTH), f"{grown} bytes for tiles of {out.nbytes}"
    assert refused > TURNS // 20, f"only {refused} of {TURNS} refused"
    print(refused, grown)  # noqa: T201 -- for whoever runs it by hand


@pytest.mark.slow
@pytest.mark.parametrize("name", list(samples()))
def test_damaged_tiles_never_crash(name):
    done = subprocess.run([sys.executable, __file__, name, "7"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
