"""Broken files and files cut short: the right pixels or a PatchdriveError, soon, in little memory, and never a crash."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import tifffile

from patchdrive.readers import open_image

SECONDS, BYTES = 5.0, 500 << 20
OPENS = "opens"
OUTCOMES = {
    "broken/gdal/byte_truncated.tif": "ReadError",
    "broken/gdal/byte_zstd_corrupted.tif": "ReadError",
    "broken/gdal/corrupted_gtiff_tags.tif": "ReadError",
    "broken/gdal/excessive-memory-TIFFFillStrip.tif": "ReadError",
    "broken/gdal/excessive-memory-TIFFFillTile.tif": "ReadError",
    "broken/gdal/huge-number-strips.tif": "FormatError",
    "broken/gdal/hugeblocksize.tif": "FormatError",
    "broken/gdal/lzw_corrupted.tif": "ReadError",
    "broken/gdal/tiled_bad_offset.tif": "ReadError",
    "broken/gdal/unsupported_codec_jp2000.tif": "FormatError",
    "broken/histolab_broken.svs": "FormatError",
    "broken/omezarr/examples/invalid/image-01.zarr": "FormatError",
    "broken/omezarr/examples/invalid/image-02.zarr": "FormatError",
    "broken/omezarr/examples/invalid/image-03.zarr": "FormatError",
    "broken/omezarr/examples/invalid/image-04.zarr": "FormatError",
    "broken/omezarr/examples/warning/image-01.zarr": "FormatError",
    "broken/openslide-python_unopenable.tiff": "FormatError",
    "broken/openslide-python_unreadable.svs": "ReadError",
    "broken/panimg_complex_tiff/Hamamatsu-VMS": "FormatError",
    "broken/panimg_complex_tiff/Mirax2-Fluorescence-1.mrxs": "FormatError",
    "broken/panimg_invalid_meta_data_tiff.tif": OPENS,
    "broken/panimg_invalid_resolutions_tiff.tif": OPENS,
    "broken/panimg_invalid_resolutions_tiff_v1.tif": OPENS,
    "broken/panimg_invalid_tiles_tiff.tif": OPENS,
    "broken/rasterio_white-gemini-iv.vrt": "FormatError",
    "broken/rio-pansharpen_corrupt.TIF": "FormatError",
    "broken/rio-pansharpen_jpeg_named_tif.TIF": OPENS,
}
CUT_SHORT = (
    "wsi/test3-DAPI-2-(387).ndpi",
    "wsi/multiframe_camelyon_challenge_image.dcm",
    "wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm",
    "wsi/CMU-1-Small-Region.svs",
    "wsi/OS-1-detail.ome.tif",
    "rs/sentinel2_T29UNU_20221005/T29UNU_20221005T115411_B03_60m.jp2",
    "rs/gdal/3_13bit_and_1bit.jp2",
    "rs/rasterio/cogeo.tif",
    "rs/rasterio/RGB.byte.tif",
    "rs/misc/TCI.tif",
    "rs/rio-tiler/nocog.tif",
    "rs/gdal/rgbsmall_WEBP_tiled.tif",
    "broken/rio-pansharpen_jpeg_named_tif.TIF",
    "labelled/deepforest_neon",
)
READ_EACH = """
import json, resource, sys, time
from patchdrive.readers import PatchdriveError, open_image

for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        image = open_image(path)
        for level in image.levels:
            image.read(level.window, level=level.index)
            image.read_mask(level.window, level=level.index)
        outcome, says = "opens", ""
    except PatchdriveError as error:
        outcome, says = type(error).__name__, str(error)
    seconds, grown = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"path": path, "outcome": outcome, "says": says, "seconds": seconds, "bytes": grown << 10}), flush=True)
"""


def read_each(paths):
    """What became of each path, read whole, one after the other in a process of its own."""
    done = subprocess.run([sys.executable, "-c", READ_EACH, *map(str, paths)], capture_output=True, text=True, timeout=200, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died with {done.returncode} after {[line['path'] for line in lines]}: {done.stderr[-2000:]}"
    return lines


def within_limits(line):
    return line["seconds"] < SECONDS and line["bytes"] < BYTES


@pytest.fixture(scope="module")
def broken(real_file):
    """One line per listed file."""
    return dict(zip(OUTCOMES, read_each([real_file(name) for name in OUTCOMES]), strict=True))


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_broken_file_gives_pixels_or_a_reason(broken, name):
    line = broken[name]
    assert line["outcome"] == OUTCOMES[name], line
    assert within_limits(line), line
    if line["outcome"] != OPENS:
        assert name.rsplit("/", 1)[1] in line["says"], "an error names its file"


def test_no_broken_file_is_left_out(real_file):
    data = real_file("README.md").parent
    found = {path.relative_to(data).as_posix() for path in (data / "broken").rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith((*OUTCOMES, "broken/panimg_complex_tiff/"))} == set()


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome == OPENS and "panimg" in name])
def test_odd_metadata_leaves_the_pixels_right(real_file, name):
    image = open_image(real_file(name))
    with tifffile.TiffFile(real_file(name)) as tiff:
        np.testing.assert_array_equal(image.read(image.levels[0].window), tiff.pages[0].asarray())


@pytest.fixture(scope="module")
def originals(real_file):
    """Whole files; PNG is the format that lost its errors once."""
    return [next(path.glob("*.png")) if (path := real_file(name)).is_dir() else path for name in CUT_SHORT]


@pytest.fixture(scope="module")
def cut_short(originals, tmp_path_factory):
    """Each file at 30, 60, 90 and 99 % of its length, and what became of it."""
    folder = tmp_path_factory.mktemp("short")
    paths = []
    for original in originals:
        content = original.read_bytes()
        for percent in (30, 60, 90, 99):
            paths.append(folder / f"{percent}-{original.name}")
            paths[-1].write_bytes(content[: len(content) * percent // 100])
    return read_each(paths)


def test_a_file_cut_short_is_never_read_as_if_it_were_whole(cut_short):
    assert [line["path"] for line in cut_short if line["outcome"] == OPENS] == []


def test_a_file_cut_short_fails_soon_and_small(cut_short):
    assert [line for line in cut_short if not within_limits(line)] == []


def test_the_originals_are_whole(originals):
    """Else the test above would pass for the wrong reason."""
    lines = read_each(originals)
    assert {line["outcome"] for line in lines} == {OPENS}


def test_random_bytes_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    magics = (
        b"",
        b"II*\x00\x08\x00\x00\x00",
        b"MM\x00+\x00\x08\x00\x00",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"\x00\x00\x00\x0cjP  ",
    )
    paths = []
    for index in range(60):
        paths.append(tmp_path / f"{index}.bin")
        paths[-1].write_bytes(magics[index % len(magics)] + rng.bytes(int(rng.integers(0, 4000))))
    lines = read_each(paths)
    assert {line["outcome"] for line in lines} <= {"FormatError", "ReadError"}
    assert all(map(within_limits, lines))


def test_a_vast_image_in_a_small_file_is_read_by_windows(tmp_path):
    path = tmp_path / "vast.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=1 << 20, width=1 << 20, count=1, dtype="uint8", tiled=True, blockxsize=4096, blockysize=4096,
        sparse_ok=True, crs="EPSG:3857", transform=rasterio.Affine(2, 0, 0, 0, -2, 0), BIGTIFF="YES", compress="deflate",
    ):  # fmt: skip
        pass
    image = open_image(path)
    level = image.levels[0]
    corner = type(level.window)(y=level.height - 5, x=level.width - 5, height=5, width=5)
    assert (image.read(corner) == 0).all()
