"""Damaged, hostile and cut-short TIFFs give pixels or a PatchdriveError: at once, in little memory, and nothing else."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
import rasterio
import tifffile

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError, PatchdriveError, ReadError
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_codecs import Coding, decode_tile
from patchdrive.readers.tiff_index import MAX_DIRECTORIES, walk
from patchdrive.readers.tiff_signs import sniff_tiff

# From the folder `broken`: what becomes of each. Strips are another reader's to judge.
BROKEN = {
    "gdal/byte_truncated.tif": "cut short or damaged",
    "gdal/byte_zstd_corrupted.tif": "zstd says",
    "gdal/corrupted_gtiff_tags.tif": "cut short or damaged",
    "gdal/excessive-memory-TIFFFillStrip.tif": "cut short or damaged",
    "gdal/excessive-memory-TIFFFillTile.tif": "cut short or damaged",
    "gdal/huge-number-strips.tif": "past the end",
    "gdal/hugeblocksize.tif": "more than the",
    "gdal/lzw_corrupted.tif": "lzw says",
    "gdal/tiled_bad_offset.tif": "cut short or damaged",
    "gdal/unsupported_codec_jp2000.tif": "without a codestream",
    "histolab_broken.svs": "not a TIFF",
    "openslide-python_unopenable.tiff": "compression 52479",
    "openslide-python_unreadable.svs": "tile row 0, column 0",
    "rio-pansharpen_corrupt.TIF": "not a TIFF",
    "rio-pansharpen_jpeg_named_tif.TIF": "not a TIFF",
}


def read_some(path):
    """Everything a user can ask of a small image, in windows of at most 256 pixels."""
    sniff_tiff(path)
    image = TiffImage(path)
    try:
        assert len(image.identity) == 64
        assert image.mpp is None or min(image.mpp) > 0
        for level in image.levels:
            window = Window(y=0, x=0, height=min(level.height, 256), width=min(level.width, 256))
            pixels = image.read(window, level=level.index)
            assert pixels.shape == (window.height, window.width, len(image.channels))
            image.read_mask(window, level=level.index)
        for name in image.associated:
            assert image.associated[name].shape[2] == 3
    finally:
        image.close()


@pytest.mark.parametrize(("name", "reason"), BROKEN.items())
def test_real_broken_files_fail_at_once_in_little_memory(real_file, name, reason):
    path = real_file(f"broken/{name}")
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises((FormatError, ReadError), match=reason):
            read_some(path)
        assert time.perf_counter() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["meta_data_tiff", "resolutions_tiff", "resolutions_tiff_v1", "tiles_tiff"])
def test_a_real_file_that_is_only_odd_is_read(real_file, name):
    path = real_file(f"broken/panimg_invalid_{name}.tif")
    image = TiffImage(path)
    assert image.mpp is None
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(image.read(image.levels[0].window), np.moveaxis(file.read(), 0, 2))


def small_pyramid(path, compression, *, big=False, predictor=None):
    y, x = np.mgrid[:80, :112]
    pixels = np.stack([x, y, x + y], axis=2).astype(np.uint8)
    description = "Aperio Image Library v1\r\n80x112|MPP = 0.5"
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        options = {"photometric": "rgb", "compression": compression, "predictor": predictor, "metadata": None}
        writer.write(pixels, tile=(32, 32), description=description, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        writer.write(pixels[::2, ::2], rowsperstrip=16, description="Aperio Image Library v1\r\nthumbnail", **options)
        writer.write(pixels[::2, ::2], tile=(32, 32), subfiletype=1, **options)
    return path.read_bytes()


CODINGS = [("none", None), ("zlib", 2), ("lzw", 2), ("zstd", None), ("packbits", None), ("jpeg", None), ("jpeg2000", None)]


@pytest.mark.parametrize(("compression", "predictor"), CODINGS, ids=[name for name, _ in CODINGS])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_flipped_bytes_give_pixels_or_our_error(tmp_path, compression, predictor, big):
    path = tmp_path / "a.tif"
    whole = np.frombuffer(small_pyramid(path, compression, big=big, predictor=predictor), np.uint8)
    with tifffile.TiffFile(path) as file:
        index = sorted({page.offset + step for page in file.pages for step in range(-40, 400)} | set(range(16)))
    index = np.array([place for place in index if 0 <= place < len(whole)])
    read_some(path)  # unharmed, it reads
    rng = np.random.default_rng(7)
    refused = 0
    for turn in range(150):
        harmed = whole.copy()
        where = index if turn % 2 else np.arange(len(whole))  # half of the harm to the directories, half anywhere
        harmed[rng.choice(where, size=rng.integers(1, 4))] = rng.integers(0, 256)
        path.write_bytes(harmed.tobytes())
        started = time.perf_counter()
        try:
            read_some(path)
        except PatchdriveError:
            refused += 1
        assert time.perf_counter() - started < 5
    assert refused > 20


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_cut_short_anywhere(tmp_path, big):
    path = tmp_path / "a.tif"
    whole = small_pyramid(path, "zlib", big=big)
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(PatchdriveError):
            read_some(path)


def test_a_tile_that_is_damaged_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.tif"
    whole = bytearray(small_pyramid(path, "zlib"))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    whole[offset : offset + count] = b"\xff" * count
    path.write_bytes(whole)
    image = TiffImage(path)
    assert image.read(Window(y=0, x=0, height=32, width=112)).any()
    with pytest.raises(ReadError, match=r"a\.tif, level 0, tile row 1, column 1 cannot be decoded: deflate"):
        image.read(Window(y=40, x=40, height=1, width=1))


def test_a_tile_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.tif"
    small_pyramid(path, "jpeg2000")
    whole = bytearray(path.read_bytes())
    start = whole.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">2I", whole, start + 8, 2**31 - 1, 2**31 - 1)
    path.write_bytes(whole)
    with pytest.raises(ReadError, match="2147483647 x 2147483647 pixels where the index says 32 x 32"):
        TiffImage(path).read(Window(y=0, x=0, height=8, width=8))


@pytest.mark.parametrize("first", [258, 300, 508])
def test_an_lzw_code_that_is_not_in_the_table_yet_is_refused(first):
    """A decoder that looks it up anyway follows a wild pointer and ends the process."""
    codes = [256, first, *range(258, 270)]  # clear, then a code that only a later entry could have
    bits = "".join(f"{code:09b}" for code in codes)
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    coding = Coding(codec="lzw", photometric=1, predictor=1, dtype=np.dtype("u1"), swapped=False, samples=1, prefix=b"")
    with pytest.raises(ReadError, match="lzw"):
        decode_tile(memoryview(data), coding, 8, np.empty((8, 8, 1), np.uint8))


def header(offset):
    return struct.pack("<2sHI", b"II", 42, offset)


def directory(next_offset, *entries):
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", next_offset)


def test_a_cycle_of_directories_ends():
    with pytest.raises(FormatError, match="cycle"):
        list(walk(header(8) + directory(14) + directory(8)))


def test_an_endless_chain_of_directories_ends():
    count = MAX_DIRECTORIES + 2
    data = header(8) + b"".join(directory(8 + 6 * (index + 1)) for index in range(count)) + b"\0" * 8
    with pytest.raises(FormatError, match="more than 4096"):
        list(walk(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II",
        header(0),
        header(2**31),
        header(8),
        b"II\x2b\x00\x08\x00\x00\x00" + b"\xff" * 8,
        header(8) + struct.pack("<H", 65535),
    ],
)
def test_headers_that_lead_nowhere(data):
    with pytest.raises(FormatError):
        list(walk(data))


@pytest.mark.parametrize("count", [2**16 + 1, 2**32 - 1])
def test_a_tag_that_says_it_is_huge_costs_nothing(count):
    (only,) = walk(header(8) + directory(0, (258, 3, count, 8)) + b"\0" * 64)
    with pytest.raises(FormatError):
        only.integers(258)


def test_what_is_not_there_or_is_a_folder(tmp_path):
    for path in (tmp_path / "none.tif", tmp_path):
        with pytest.raises(FormatError, match="cannot be opened"):
            TiffImage(path)
