"""Every way to store a TIFF tile or strip, written by tifffile or GDAL, is decoded bit for bit as they decode it themselves."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import simplejpeg
import tifffile

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.tiff_codecs import Coding, decode_tile
from patchdrive.readers.tiff_index import walk
from patchdrive.readers.tiff_tiles import TileLayout, tile_layout

HEIGHT, WIDTH = 75, 90
TILE = {"tile": (32, 48)}
STRIPS = {"rowsperstrip": 20}  # a last strip of 15 rows
CONTAINERS = {"little": {"byteorder": "<", "bigtiff": False}, "big-endian-bigtiff": {"byteorder": ">", "bigtiff": True}}
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64"]
PREDICTED = ["zlib", "lzw", "zstd", "lzma"]


def decode_page(data: bytes, page: int = 0) -> np.ndarray:
    """(height, width, samples) of one directory, tile by tile."""
    return decode_layout(data, tile_layout(list(walk(data))[page]))


def decode_layout(data: bytes, layout: TileLayout) -> np.ndarray:
    pixels = np.empty((layout.height, layout.width, layout.samples), layout.coding.dtype)
    for plane in range(layout.planes):
        for row in range(layout.rows):
            for column in range(layout.columns):
                tile = layout.window(row, column)
                out = np.full((tile.height, tile.width, layout.coding.samples), 77, layout.coding.dtype)
                offset, count = layout.place(row, column, plane)
                rows = min(tile.height, layout.height - tile.y)
                if count:
                    decode_tile(memoryview(data)[offset : offset + count], layout.coding, rows, out)
                else:
                    out[...] = 0
                part = pixels[tile.y : tile.y_end, tile.x : tile.x_end, plane : plane + layout.coding.samples]
                part[...] = out[: part.shape[0], : part.shape[1]]
    return pixels


def noise(samples: int, dtype: str, *, bits: int | None = None, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, samples): a ramp with noise, over the whole range of the type or of its lowest `bits`."""
    rng = np.random.default_rng(3)
    kind = np.dtype(dtype)
    shape = (height, width, samples)
    if kind.kind == "f":
        return (rng.normal(size=shape) * 100 + np.arange(width)[None, :, None]).astype(kind)
    if bits is not None:
        return rng.integers(0, 2**bits, shape, dtype=np.uint64).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def smooth(samples: int, dtype: str = "uint8", scale: int = 1) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(x * (k + 1) + 2 * y) % 256 * scale for k in range(samples)], axis=2).astype(dtype)


def planes_last(pixels: np.ndarray) -> np.ndarray:
    """(band, y, x) to (y, x, band)."""
    return np.moveaxis(pixels, 0, 2)


def write_gdal(path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Write (y, x, band) through GDAL and give what GDAL reads back."""
    tiled = {"tiled": True, "blockxsize": 48, "blockysize": 32} if options.pop("tiled", True) else {"blockysize": 20}
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype} | tiled | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.moveaxis(pixels, 2, 0))
        with rasterio.open(path) as file:
            return planes_last(file.read())


@dataclass(frozen=True)
class Stored:
    """A lossless way to store samples."""

    codec: str
    predictor: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.codec}-{self.predictor}-{self.dtype}"


LOSSLESS = [
    *(Stored("none", 1, dtype) for dtype in INTEGERS + FLOATS),
    *(Stored(codec, 1, dtype) for codec in ("packbits", *PREDICTED) for dtype in ("uint8", "int16", "float32", "uint64")),
    *(Stored("zlib", 2, dtype) for dtype in INTEGERS),
    *(Stored(codec, 2, dtype) for codec in PREDICTED[1:] for dtype in ("uint8", "int16", "uint32", "int64")),
    *(Stored(codec, 3, dtype) for codec in PREDICTED for dtype in FLOATS),
]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("grid", [TILE, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("stored", LOSSLESS, ids=str)
def test_lossless_bytes(tmp_path, stored, planar, grid, container):
    path = tmp_path / "a.tif"
    pixels = noise(3, stored.dtype)
    tifffile.imwrite(
        path,
        pixels if planar == "contig" else np.moveaxis(pixels, 2, 0),
        photometric="rgb" if stored.dtype[0] == "u" else "minisblack",
        planarconfig=planar,
        compression=stored.codec,
        predictor=stored.predictor if stored.predictor > 1 else None,
        metadata=None,
        **grid,
        **CONTAINERS[container],
    )
    read = decode_page(path.read_bytes())
    assert read.dtype == np.dtype(stored.dtype)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, pixels)
    theirs = tifffile.imread(path)
    np.testing.assert_array_equal(read, theirs if planar == "contig" else planes_last(theirs))


@pytest.mark.parametrize("layout", ["pixel-tiles", "band-strips"])
@pytest.mark.parametrize(
    ("codec", "bits"),
    [("none", bits) for bits in (*range(1, 8), *range(9, 16), *range(17, 32))]
    + [(codec, bits) for codec in ("deflate", "lzw", "zstd", "lzma", "packbits") for bits in (1, 12, 20)],
)
def test_packed_bits_are_gdals(tmp_path, codec, bits, layout):
    path = tmp_path / "a.tif"
    dtype = "uint8" if bits <= 8 else "uint16" if bits <= 16 else "uint32"
    pixels = noise(3, dtype, bits=bits)
    interleave, grid = layout.split("-")
    order = "BIG" if grid == "strips" and bits != 24 else "LITTLE"
    theirs = write_gdal(path, pixels, nbits=bits, compress=codec, interleave=interleave, tiled=grid == "tiles", ENDIANNESS=order)
    read = decode_page(path.read_bytes())
    assert read.dtype == theirs.dtype
    np.testing.assert_array_equal(read, theirs)
    np.testing.assert_array_equal(read, pixels)


def test_24_bit_integers_in_a_big_endian_file_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    write_gdal(path, noise(1, "uint32", bits=24), nbits=24, ENDIANNESS="BIG")
    with pytest.raises(FormatError, match="24 bits in a big-endian file"):
        decode_page(path.read_bytes())


def write_raw(path, tiles: list[bytes], shape: tuple[int, ...], **tags: Any) -> bytes:
    """A TIFF of tiles that are compressed already, 32 x 48 pixels each."""
    options = {"dtype": "uint8", "tile": (32, 48), "photometric": "minisblack", "metadata": None}
    tifffile.imwrite(path, iter(tiles), shape=shape, **options | tags)
    return path.read_bytes()


@pytest.mark.parametrize("order", "<>", ids=["little", "big-endian"])
def test_floats_of_24_bits_are_tifffiles(tmp_path, order):
    path = tmp_path / "a.tif"
    pixels = noise(1, "float32", height=32, width=48)[:, :, 0]
    raw = imagecodecs.float24_encode(pixels, byteorder=order)
    data = write_raw(path, [imagecodecs.zlib_encode(raw)], (32, 48), dtype="float32", byteorder=order, compression="zlib")
    data = with_bits(data, order, 24)
    path.write_bytes(data)
    read = decode_page(data)[:, :, 0]
    np.testing.assert_array_equal(read, tifffile.imread(path))
    np.testing.assert_allclose(read, pixels, rtol=1e-4)


def with_bits(data: bytes, order: str, bits: int) -> bytes:
    """A copy that says another BitsPerSample."""
    changed = bytearray(data)
    struct.pack_into(order + "H", changed, next(walk(data)).entries[258].offset, bits)
    return bytes(changed)


def bare_tiff(tile: bytes, **tags: int) -> bytes:
    """A TIFF of one grey tile, 32 x 48, with nothing but the tags it needs and those of `tags` ("t266" for tag 266)."""
    needed = {256: 48, 257: 32, 258: 8, 259: 1, 262: 1, 277: 1, 322: 48, 323: 32, 325: len(tile)}
    entries = needed | {int(name[1:]): value for name, value in tags.items()} | {324: 0}
    entries[324] = 8 + 2 + 12 * len(entries) + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4) + tile


MIRRORED: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    8: imagecodecs.zlib_encode,
    5: imagecodecs.lzw_encode,
    32773: imagecodecs.packbits_encode,
}


@pytest.mark.parametrize("number", MIRRORED)
def test_bits_in_reverse_order_are_turned(tmp_path, number):
    path = tmp_path / "a.tif"
    pixels = noise(1, "uint8", height=32, width=48)[:, :, 0]
    path.write_bytes(bare_tiff(imagecodecs.bitorder_decode(MIRRORED[number](pixels.tobytes())), t259=number, t266=2))
    np.testing.assert_array_equal(decode_page(path.read_bytes())[:, :, 0], pixels)
    np.testing.assert_array_equal(tifffile.imread(path), pixels)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), pixels)


@pytest.mark.parametrize("grid", ["tiles", "strips"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("inner", ["LERC", "LERC_DEFLATE", "LERC_ZSTD"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_lerc_is_gdals(tmp_path, dtype, inner, interleave, grid):
    path = tmp_path / "a.tif"
    pixels = noise(3, dtype)
    order = "BIG" if inner == "LERC_ZSTD" and dtype[0] != "f" else "LITTLE"
    theirs = write_gdal(path, pixels, compress=inner, interleave=interleave, tiled=grid == "tiles", ENDIANNESS=order)
    read = decode_page(path.read_bytes())
    np.testing.assert_array_equal(read, theirs)
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", [1, 3])
def test_lossy_lerc_with_nan_is_gdals(tmp_path, bands, interleave):
    path = tmp_path / "a.tif"
    pixels = noise(bands, "float32")
    for band in range(bands):
        pixels[10 * band : 10 * band + 20, 5:60, band] = np.nan
    theirs = write_gdal(path, pixels, compress="LERC", MAX_Z_ERROR=0.5, interleave=interleave)
    read = decode_page(path.read_bytes())
    np.testing.assert_array_equal(read, theirs)
    np.testing.assert_array_equal(np.isnan(read), np.isnan(pixels))
    assert np.nanmax(np.abs(read - pixels)) <= 0.5


@pytest.mark.parametrize("hole", [False, True], ids=["opaque", "masked"])
@pytest.mark.parametrize("bands", [2, 4])
def test_lerc_with_alpha_as_its_mask_is_gdals(tmp_path, bands, hole):
    path = tmp_path / "a.tif"
    pixels = smooth(bands)
    pixels[:, :, -1] = 255
    if hole:
        pixels[20:40, 30:70] = 0
    photometric = "RGB" if bands == 4 else "MINISBLACK"
    theirs = write_gdal(path, pixels, compress="LERC_ZSTD", interleave="pixel", photometric=photometric, ALPHA="NON-PREMULTIPLIED")
    read = decode_page(path.read_bytes())
    np.testing.assert_array_equal(read, theirs)
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("grid", ["tiles", "strips"])
@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
@pytest.mark.parametrize("bands", [3, 4])
def test_webp_is_gdals(tmp_path, bands, lossless, grid):
    path = tmp_path / "a.tif"
    pixels = smooth(bands)
    options = {"WEBP_LOSSLESS": "YES"} if lossless else {"WEBP_LEVEL": 60}
    photometric = {"photometric": "RGB"} | ({"ALPHA": "YES"} if bands == 4 else {})
    theirs = write_gdal(path, pixels, compress="WEBP", interleave="pixel", tiled=grid == "tiles", **options, **photometric)
    read = decode_page(path.read_bytes())
    np.testing.assert_array_equal(read, theirs)
    assert np.array_equal(read[:, :, :3], pixels[:, :, :3]) == (lossless and bands == 3) or bands == 4


@pytest.mark.parametrize("number", [50002, 52546])
@pytest.mark.parametrize("stored", [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1), ("uint16", 3), ("float16", 1), ("float32", 3)])
@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
def test_jpeg_xl_is_tifffiles(tmp_path, stored, lossless, number):
    dtype, samples = stored
    path = tmp_path / "a.tif"
    pixels = smooth(samples, dtype) / (256 if dtype[0] == "f" else 1)
    pixels = np.ascontiguousarray(pixels[:64, :48].astype(dtype))
    how = {"lossless": True} if lossless else {"level": 80}
    tiles = [imagecodecs.jpegxl_encode(part, **how) for part in (pixels[:32], pixels[32:])]
    photometric, extra = ("rgb", {"extrasamples": ["unassalpha"]} if samples == 4 else {}) if samples > 1 else ("minisblack", {})
    shape = (64, 48, samples) if samples > 1 else (64, 48)
    data = write_raw(path, tiles, shape, dtype=dtype, compression=number, photometric=photometric, **extra)
    read = decode_page(data)
    np.testing.assert_array_equal(read, tifffile.imread(path).reshape(read.shape))
    if lossless:
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("box", ["j2k", "jp2"])
@pytest.mark.parametrize(
    ("dtype", "samples", "bits"),
    [("uint8", 1, 8), ("uint8", 3, 8), ("uint8", 4, 8), ("int8", 1, 8), ("uint16", 3, 16), ("uint16", 1, 12), ("int16", 1, 16)],
)
def test_jpeg_2000_of_every_depth(tmp_path, dtype, samples, bits, box):
    pixels = noise(samples, dtype, bits=bits if bits == 12 else None, height=32, width=48)
    pixels = pixels if samples > 1 else pixels[:, :, 0]
    tile = imagecodecs.jpeg2k_encode(pixels, codecformat=box, level=0, reversible=True, bitspersample=bits)
    rgb = {"photometric": "rgb", "extrasamples": ["unassalpha"] if samples == 4 else None} if samples > 2 else {}
    data = write_raw(tmp_path / "a.tif", [tile], pixels.shape, dtype=dtype, compression="jpeg2000", bitspersample=bits, **rgb)
    np.testing.assert_array_equal(decode_page(data), pixels.reshape(32, 48, samples))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), pixels)


def test_jpeg_2000_with_fewer_chroma_pixels_is_refused_at_once(tmp_path):
    tile = bytearray(imagecodecs.jpeg2k_encode(noise(3, "uint8", height=32, width=48), codecformat="j2k", level=0, reversible=True))
    tile[42 + 3 + 1] = tile[42 + 6 + 1] = 2  # horizontal spacing of the second and third component
    data = write_raw(tmp_path / "a.tif", [bytes(tile)], (32, 48, 3), compression=33003, photometric="rgb")
    with pytest.raises(FormatError, match=r'fewer chroma than luma pixels; try reader "slide"'):
        decode_page(data)


@pytest.mark.parametrize("grid", ["tiles", "strips"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_jpeg_of_plain_samples_is_gdals(tmp_path, bands, interleave, grid):
    """With shared tables, as GDAL writes them; four samples are no CMYK to be inverted, three no YCbCr to be turned."""
    path = tmp_path / "a.tif"
    options = {"compress": "JPEG", "JPEG_QUALITY": 90, "interleave": interleave, "photometric": "RGB" if bands > 2 else "MINISBLACK"}
    # Whole blocks of 16 pixels; the tiles are larger than the image on one axis.
    where = {"blockxsize": 96, "blockysize": 32} if grid == "tiles" else {"tiled": False, "blockysize": 24}
    theirs = write_gdal(path, smooth(bands), **options, **where)
    data = path.read_bytes()
    assert 347 in next(walk(data))
    np.testing.assert_array_equal(decode_page(data), theirs)


@pytest.mark.parametrize("grid", ["tiles", "strips"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_ycbcr_jpeg_in_strips_and_tiles_is_tifffiles(tmp_path, subsampling, grid):
    path = tmp_path / "a.tif"
    where = {"rowsperstrip": 32} if grid == "strips" else TILE
    tifffile.imwrite(
        path, smooth(3), photometric="rgb", compression="jpeg", subsampling=subsampling, compressionargs={"level": 90}, **where
    )
    np.testing.assert_array_equal(decode_page(path.read_bytes()), tifffile.imread(path))


@pytest.mark.parametrize("adobe", [True, False], ids=["adobe", "bare"])
def test_three_samples_that_are_no_colors_stay_as_they_are(tmp_path, adobe):
    tile = imagecodecs.jpeg8_encode(smooth(3)[:32, :48], colorspace="RGB", outcolorspace="RGB", level=95)
    if not adobe:
        place = tile.index(b"\xff\xee")
        tile = tile[:place] + tile[place + 16 :]
    data = write_raw(tmp_path / "a.tif", [tile], (32, 48, 3), compression="jpeg", photometric="minisblack", planarconfig="contig")
    read = decode_page(data)
    np.testing.assert_array_equal(read, imagecodecs.jpeg8_decode(tile, colorspace="RGB", outcolorspace="RGB"))
    assert np.abs(read.astype(int) - smooth(3)[:32, :48]).mean() < 8


@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_of_12_bits_is_tifffiles(tmp_path, samples):
    path = tmp_path / "a.tif"
    pixels = smooth(samples, "uint16", scale=16)[:64]
    options = {"compression": "jpeg", "compressionargs": {"bitspersample": 12, "level": 95}, "bitspersample": 12}
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(path, pixels if samples == 3 else pixels[:, :, 0], photometric=photometric, **TILE, **options)
    read = decode_page(path.read_bytes())
    assert read.dtype == np.uint16
    assert read.max() > 3000
    np.testing.assert_array_equal(read, tifffile.imread(path).reshape(read.shape))


@pytest.mark.parametrize("separate", [False, True])
def test_sparse_tiles_and_tiles_larger_than_the_image(tmp_path, separate):
    path = tmp_path / "a.tif"
    pixels = np.zeros((70, 100, 2), np.uint16)
    pixels[33:40, 10:20] = 7
    theirs = write_gdal(path, pixels, compress="ZSTD", interleave="band" if separate else "pixel", SPARSE_OK="TRUE")
    layout = tile_layout(next(walk(path.read_bytes())))
    assert (layout.counts == 0).sum() == (16 if separate else 8)
    np.testing.assert_array_equal(decode_layout(path.read_bytes(), layout), theirs)
    theirs = write_gdal(path, pixels, compress="LZMA", blockxsize=256, blockysize=128)
    np.testing.assert_array_equal(decode_page(path.read_bytes()), theirs)


REAL = [
    "rs/gdal/rgbsmall_LERC_tiled.tif",
    "rs/gdal/byte_LZMA_tiled.tif",
    "rs/gdal/rgbsmall_WEBP_tiled.tif",
    "rs/rio-cogeo/image_webp.tif",
    "rs/rasterio/alpha.tif",
    "rs/rasterio/RGBA.uint16.tif",
    "rs/rasterio/rotated.tif",
    "rs/rasterio/float_nan.tif",
    "rs/rasterio/all-nodata.tif",
    "rs/gdal/quad-lzw-old-style.tif",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_mask.tif",
    "rs/rio-tiler/pix4d_alpha_nodata.tif",
    "labelled/stardist/img2d.tif",
]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_gdals(real_file, name):
    path = real_file(name)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(decode_page(path.read_bytes()), planes_last(file.read()))


def test_a_real_jpeg_xl_is_tifffiles(real_file):
    path = real_file("rs/gdal/rgbsmall_JXL_tiled.tif")
    np.testing.assert_array_equal(decode_page(path.read_bytes()), tifffile.imread(path))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_real_mask_of_one_bit_is_gdals(real_file):
    path = real_file("rs/gdal/ycbcr_with_mask.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(decode_page(path.read_bytes(), 1)[:, :, 0] * 255, file.dataset_mask())


def coding(codec: str, **other: Any) -> Coding:
    plain = {"photometric": 1, "predictor": 1, "dtype": np.dtype("u1"), "swapped": False, "samples": 3, "prefix": b""}
    return Coding(**plain | other, codec=codec)


def jp2_decoy(tile: bytes) -> bytes:
    """A JP2 file with a small codestream's header in a box before the real one."""
    small = imagecodecs.jpeg2k_encode(noise(3, "uint8", height=8, width=8), codecformat="j2k")[:100]
    place = tile.index(b"jp2c") - 4
    return tile[:place] + struct.pack(">I4s", 8 + len(small), b"free") + small + tile[place:]


def patched(data: bytes, place: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, place, *values)
    return bytes(changed)


BIG = noise(3, "uint8", height=16, width=16)
SMALL = BIG[:8, :8].copy()
J2K = imagecodecs.jpeg2k_encode(BIG, codecformat="j2k", reversible=True)
LERC = imagecodecs.lerc_encode(BIG, level=0)
WEBP = imagecodecs.webp_encode(BIG, lossless=True)
WRONG = {
    "jpeg-size": (coding("jpeg", samples=4), imagecodecs.jpeg8_encode(noise(4, "uint8", height=16, width=16)), "where the index says"),
    "jpeg-samples": (coding("jpeg", samples=4), simplejpeg.encode_jpeg(SMALL), r"\(8, 8, 3\) pixels of 8 bits where"),
    "jpeg-bits": (coding("jpeg", bits=12, dtype=np.dtype("u2"), samples=3), simplejpeg.encode_jpeg(SMALL), "8 bits where"),
    "jpeg-lossless": (
        coding("jpeg", samples=4),
        imagecodecs.jpeg8_encode(noise(4, "uint8", height=8, width=8), lossless=True),
        "frame marker ffc3",
    ),
    "jpeg2000-size": (coding("jpeg2000"), J2K, "16 x 16 pixels where the index says 8 x 8"),
    "jpeg2000-decoy": (coding("jpeg2000"), jp2_decoy(imagecodecs.jpeg2k_encode(BIG, codecformat="jp2")), "16 x 16 pixels where"),
    "jpeg2000-samples": (coding("jpeg2000", samples=1), imagecodecs.jpeg2k_encode(SMALL, codecformat="j2k"), "3 components where"),
    "jpeg2000-tiles": (coding("jpeg2000"), patched(patched(J2K, 24, ">2I", 1, 1), 8, ">2I", 2**30, 2**30), "1073741824 x 1073741824"),
    "jpeg2000-none": (coding("jpeg2000"), b"\0" * 100, "without a codestream"),
    "lerc-size": (coding("lerc"), LERC, r"\(16, 16\) pixels where the index says \(8, 8\)"),
    "lerc-damaged": (coding("lerc"), patched(imagecodecs.lerc_encode(SMALL, level=0), 80, "B", 9), "lerc says"),
    "lerc-huge": (coding("lerc"), patched(LERC, 14, "<2i", 2**30, 2**30), r"\(1073741824, 1073741824\) pixels|it is damaged"),
    "lerc-version": (coding("lerc"), patched(LERC, 6, "<i", 2), "a version of"),
    "lerc-inner-bomb": (coding("lerc", inner="zstd"), imagecodecs.zstd_encode(bytes(10**7)), "too small"),
    "lerc-smuggled": (coding("lerc"), imagecodecs.zstd_encode(LERC), "begins with b'Lerc2 '"),
    "webp-size": (coding("webp"), WEBP, "shape"),
    "webp-animation": (coding("webp"), WEBP[:12] + b"VP8X" + struct.pack("<IB3x6s", 10, 2, b"\xff" * 6) + WEBP[12:], "animation"),
    "webp-none": (coding("webp"), b"RIFF", "begins with RIFF"),
    "jpegxl-size": (coding("jpegxl"), imagecodecs.jpegxl_encode(BIG, lossless=True), "shape"),
    "jpegxl-none": (coding("jpegxl"), b"\0" * 50, "jpegxl says"),
    "lzma-none": (coding("lzma"), b"\xff" * 50, "lzma says"),
    "lzma-short": (coding("lzma"), imagecodecs.lzma_encode(bytes(9)), "holds 9 bytes of pixels, it should hold 192"),
    "lzma-bomb": (coding("lzma"), b"\x5d" + struct.pack("<IQ", 2**32 - 1, 192) + b"\0" * 50, "[Mm]emory usage limit"),
    "zstd-bomb": (coding("zstd"), imagecodecs.zstd_encode(bytes(10**7)), "too small"),
    "packed-short": (coding("none", bits=12, dtype=np.dtype("u2")), bytes(200), "holds 200 bytes of pixels, it should hold 288"),
    "empty": (coding("zstd"), b"", "the tile is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tile_that_is_another_is_refused(name):
    what, data, reason = WRONG[name]
    what.check()
    with pytest.raises(ReadError, match=reason):
        decode_tile(memoryview(data), what, 8, np.empty((8, 8, what.samples), what.dtype))


def test_a_codestream_of_too_many_tiles_is_refused():
    tile = imagecodecs.jpeg2k_encode(noise(1, "uint8", height=64, width=64)[:, :, 0], codecformat="j2k")
    with pytest.raises(ReadError, match="4096 tiles of its own, more than 1024"):
        decode_tile(memoryview(patched(tile, 24, ">2I", 1, 1)), coding("jpeg2000", samples=1), 64, np.empty((64, 64, 1), np.uint8))


REFUSED = [
    (coding("jpeg", samples=5), "JPEG tiles of 5 samples"),
    (coding("jpeg", dtype=np.dtype("u2")), "16-bit uint16"),
    (coding("jpeg", samples=4, photometric=6), "photometric 6"),
    (coding("jpeg2000", dtype=np.dtype("f4")), "JPEG 2000 tiles"),
    (coding("lerc", dtype=np.dtype("f2")), "LERC tiles of float16"),
    (coding("lerc", dtype=np.dtype("f4"), swapped=True), "LERC floats in the other byte order"),
    (coding("lerc", bits=12, dtype=np.dtype("u2")), "LERC"),
    (coding("lerc", mirrored=True), "FillOrder 2"),
    (coding("webp", samples=1), "WebP has 3 or 4"),
    (coding("webp", dtype=np.dtype("u2")), "WebP has 3 or 4 of 8 bits"),
    (coding("jpegxl", samples=2), "JPEG XL tiles of 2"),
    (coding("jpegxl", dtype=np.dtype("u2"), swapped=True), "in the other byte order"),
    (coding("deflate", photometric=6), "YCbCr pixels stored as deflate"),
    (coding("deflate", predictor=3), "predictor 3 on uint8"),
    (coding("deflate", predictor=4), "TIFF defines 1, 2"),
    (coding("deflate", predictor=2, bits=12, dtype=np.dtype("u2")), "predictor 2 on samples of 12 bits"),
    (coding("none", predictor=2), "some programs undo it there and some do not"),
]


@pytest.mark.parametrize(("what", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_does_not_go_together_is_refused_at_open(what, reason):
    with pytest.raises(FormatError, match=reason):
        what.check()


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (259, 2, r'2 \(CCITT run lengths\).*try reader "raster"'),
        (259, 4, r"4 \(CCITT Group 4\)"),
        (259, 6, r"6 \(old-style JPEG\)"),
        (259, 34933, r"34933 \(PNG\)"),
        (259, 999, "compression 999 is not one"),
        (258, 40, r'samples of 40 bits in format 1.*try reader "raster"'),
        (266, 3, "FillOrder 3"),
        (339, 6, "complex samples"),
    ],
)
def test_directories_that_are_refused_name_the_way_out(tag, value, reason):
    with pytest.raises(FormatError, match=reason):
        decode_page(bare_tiff(bytes(1536), **{f"t{tag}": value}))
