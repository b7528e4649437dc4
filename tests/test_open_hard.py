"""Files that several readers accept, with different levels or pixels: which reader they get, and the reason in words."""

from __future__ import annotations

import shutil
import struct
import warnings

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from patchdrive.readers import choose, open_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
REAL = {
    "rs/rio-tiler/cog_int16.tif": ("tiff", "is a tiled georeferenced TIFF (generic), decoded here and placed by GDAL"),
    "rs/rasterio/cogeo.tif": ("tiff", "JPEG by libjpeg-turbo as other programs do"),
    "rs/gdal/utm.tif": ("tiff", "is a striped georeferenced TIFF"),
    "rs/gdal/rgbsmall_JXL_tiled.tif": ("tiff", "decoded here and placed by GDAL"),
    "rs/rio-tiler/nocog.tif": ("raster", "its strips are compressed, and GDAL keeps what it has decoded of them"),
    "rs/rasterio/RGB.byte.tif": ("raster", "its strips hold few rows"),
    "rs/rasterio/RGB2.byte.tif": ("raster", "RGB2.byte.tif.msk holds its mask"),
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1.tif": ("raster", "CL_1.tif.ovr holds its overviews"),
    "rs/misc/au-gcp.tif": ("raster", "it is placed by control points only"),
    "rs/rio-tiler/cog_gcps.tif": ("raster", "it is placed by control points only"),
    "rs/rio-cogeo/image_dec.tif": ("raster", "of its 1 overviews 0 are the image made smaller"),
    "rs/rio-cogeo/slc.tif": ("raster", "complex samples"),
    "rs/gdal/513x513.jp2": ("raster", "is JPEG2000"),
    "wsi/CMU-1-Small-Region.svs": ("tiff", "is a tiled TIFF (aperio), decoded here"),
    "wsi/OS-1-detail.ome.tif": ("tiff", "is a tiled TIFF (ome), decoded here"),
    "wsi/test3-DAPI-2-(387).ndpi": ("slide", "is a TIFF of OpenSlide's format hamamatsu"),
    "wsi/highdicom_sm_image.dcm": ("slide", "is DICOM: OpenSlide finds the levels in the other files of the series"),
    "broken/panimg_complex_tiff/Mirax2-Fluorescence-1.mrxs": ("slide", "the JPEG that it is by its bytes is only a preview"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_gets_its_reader_for_a_reason(real_file, name):
    reader, why = REAL[name]
    choice = choose(real_file(name))
    assert choice.reader == reader
    assert why in choice.why


def test_openslide_takes_the_masks_of_a_cog_for_levels(real_file):
    path = real_file("rs/rasterio/cogeo.tif")
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 13
    image = open_image(path)
    assert len(image.levels) == 7
    assert image.has_mask


def test_openslide_sees_one_level_of_an_ome_tiff(tmp_path):
    path = tmp_path / "a.ome.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(64, 64), photometric="rgb", subifds=1)
        file.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 1
    assert choose(path).reader == "tiff"
    assert len(open_image(path).levels) == 2


FRAME = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)}
PIXELS = np.random.default_rng(0).integers(1, 255, (3, 200, 300), np.uint8)


def write(path, bands=PIXELS, **options):
    """A TIFF of tiles of 64, without georeferencing unless `FRAME` is among the options."""
    count, height, width = bands.shape
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype, **profile) as dataset:
            dataset.write(bands)
    return path


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path / "scene.tif")


@pytest.fixture
def placed(tmp_path):
    return write(tmp_path / "scene.tif", **FRAME)


WORLD = "10\n0\n0\n-10\n500000\n5000000\n"


@pytest.mark.parametrize("name", ["scene.tfw", "scene.TFW", "scene.wld"])
def test_a_world_file_places_a_plain_tiff_and_no_other(tmp_path, plain, name):
    assert choose(plain).reader == "tiff"
    (tmp_path / name).write_text(WORLD)
    choice = choose(plain)
    assert choice.reader == "raster"
    assert f"{name} places it in the world" in choice.why
    assert open_image(plain).transform.a == 10
    write(plain, **FRAME)
    assert choose(plain).reader == "tiff"
    assert open_image(plain).transform == open_image(plain, reader="raster").transform == FRAME["transform"]


PAM = "<PAMDataset><PAMRasterBand band='1'>{}</PAMRasterBand></PAMDataset>"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (PAM.format("<NoDataValue>0</NoDataValue>"), "a nodata value"),
        (PAM.format("<Description>red edge</Description>"), "names of channels"),
        ("<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>1, 2, 0, 3, 0, -2</GeoTransform></PAMDataset>", "a CRS and a frame"),
        ("<PAMDataset>" + " " * (1 << 20) + "</PAMDataset>", "more than is looked through here"),
    ],
)
def test_what_gdal_keeps_beside_a_file_is_gdals(tmp_path, placed, text, what):
    (tmp_path / "scene.tif.aux.xml").write_text(text)
    choice = choose(placed)
    assert choice.reader == "raster"
    assert f"scene.tif.aux.xml holds {what}" in choice.why


def test_statistics_beside_a_file_change_nothing(tmp_path, placed):
    before = open_image(placed, reader="raster")
    statistics = PAM.format('<Metadata><MDI key="STATISTICS_MAXIMUM">7</MDI></Metadata>')
    (tmp_path / "scene.tif.aux.xml").write_text(statistics)
    assert choose(placed).reader == "tiff"
    after = open_image(placed, reader="raster")
    with rasterio.open(placed) as dataset:
        assert dataset.tags(1)["STATISTICS_MAXIMUM"] == "7"  # GDAL has read it
    assert (before.nodata, before.channels, before.transform) == (after.nodata, after.channels, after.transform)


def test_external_overviews_count_where_there_are_no_others(tmp_path, placed):
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(placed, "r+") as dataset:
        dataset.build_overviews([2])
    choice = choose(placed)
    assert (choice.reader, len(open_image(placed).levels)) == ("raster", 2)
    assert "scene.tif.ovr holds its overviews" in choice.why
    write(placed, **FRAME)
    with rasterio.open(placed, "r+") as dataset:
        dataset.build_overviews([2, 4])
    assert (choose(placed).reader, len(open_image(placed).levels)) == ("tiff", 3)


def test_a_slide_is_not_changed_by_what_gdal_left_beside_it(tmp_path, real_file):
    slide = tmp_path / "slide.svs"
    shutil.copy(real_file("wsi/CMU-1-Small-Region.svs"), slide)
    (tmp_path / "slide.svs.aux.xml").write_text(PAM.format("<NoDataValue>0</NoDataValue>"))
    (tmp_path / "slide.wld").write_text(WORLD)
    assert choose(slide).reader == "tiff"


def test_rpcs_are_no_frame(tmp_path):
    rpcs = RPC(
        height_off=0, height_scale=1, lat_off=0, lat_scale=1, line_den_coeff=[1] * 20, line_num_coeff=[1] * 20, line_off=0, line_scale=1,
        long_off=0, long_scale=1, samp_den_coeff=[1] * 20, samp_num_coeff=[1] * 20, samp_off=0, samp_scale=1,
    )  # fmt: skip
    path = write(tmp_path / "scene.tif", rpcs=rpcs)
    choice = choose(path)
    assert choice.reader == "raster"
    assert "it is placed by RPCs only" in choice.why
    assert open_image(path).properties["rpcs"] == "yes"


def test_colours_that_gdal_converts_are_gdals(tmp_path):
    path = write(tmp_path / "scene.tif", np.concatenate([PIXELS, PIXELS[:1]]), photometric="cmyk")
    choice = choose(path)
    assert choice.reader == "raster"
    assert "its colours are CMYK" in choice.why


def tagged(path, *pages, tag=None):
    """A TIFF of (height, width, subfiletype) pages with a pixel scale and a tie point."""
    frame = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    with tifffile.TiffWriter(path) as file:
        for index, (height, width, kind) in enumerate(pages):
            extra = [*frame, *([tag] if tag else [])] if index == 0 else []
            pixels = np.full((height, width), index + 1, bool if kind & 4 else np.int64 if tag else np.uint8)
            file.write(pixels, tile=(64, 64), subfiletype=kind, extratags=extra, metadata=None, photometric="minisblack")
    return path


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([(100, 150, 0), (200, 300, 1)], "its first directory, which is placed in the world, is not its finest level"),
        ([(200, 300, 0), (200, 300, 0)], "it holds several pictures"),
        ([(200, 300, 0), (70, 150, 1)], "of its 1 overviews 0 are the image made smaller"),
        ([(200, 300, 0), (70, 150, 5)], "it has a mask that fits no level"),
    ],
)
def test_pages_that_gdal_sees_otherwise_are_gdals(tmp_path, pages, why):
    path = tagged(tmp_path / "scene.tif", *pages)
    choice = choose(path)
    assert choice.reader == "raster"
    assert why in choice.why
    assert choose(tagged(tmp_path / "good.tif", (200, 300, 0), (100, 150, 1))).reader == "tiff"


@pytest.mark.parametrize(("text", "reader"), [("7", "tiff"), ("-7", "tiff"), ("none", "raster"), ("0.5", "raster"), ("9" * 20, "raster")])
def test_nodata_that_is_no_plain_number_is_gdals_to_read(tmp_path, text, reader):
    path = tagged(tmp_path / "scene.tif", (200, 300, 0), tag=(42113, 2, 0, text, True))
    choice = choose(path)
    assert choice.reader == reader
    assert ("is no plain number" in choice.why) == (reader == "raster")
    if reader == "tiff":
        assert open_image(path).nodata == open_image(path, reader="raster").nodata == int(text)


@pytest.mark.parametrize(
    ("rows", "compress", "reader", "why"),
    [
        (8, None, "tiff", "striped"),
        (4, None, "raster", "few rows"),
        (16, "jpeg", "tiff", "JPEG by libjpeg-turbo"),
        (64, "deflate", "raster", "compressed"),
        (8, "lzw", "raster", "compressed"),
    ],
)
def test_strips_go_to_the_faster_reader(tmp_path, rows, compress, reader, why):
    path = write(tmp_path / "scene.tif", tiled=False, blockysize=rows, blockxsize=300, compress=compress, **FRAME)
    choice = choose(path)
    assert choice.reader == reader
    assert why in choice.why
    ours, gdals = (open_image(path, reader=name) for name in ("tiff", "raster"))
    pixels, wanted = (image.read(image.levels[0].window) for image in (ours, gdals))
    if compress == "jpeg":
        assert np.abs(pixels.astype(int) - wanted).max() <= 30
    else:
        np.testing.assert_array_equal(pixels, wanted)


def test_a_strip_too_large_for_one_window_is_gdals(tmp_path):
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, np.zeros((2100, 2000), np.uint8), rowsperstrip=2100, metadata=None)
    choice = choose(path)
    assert choice.reader == "raster"
    assert "too large to decode for one window" in choice.why


def test_damage_behind_the_first_directory_leaves_the_image_to_gdal(tmp_path, placed):
    data = bytearray(placed.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data) + 1000)
    placed.write_bytes(data)
    choice = choose(placed)
    assert choice.reader == "raster"
    assert "lies outside a file" in choice.why
