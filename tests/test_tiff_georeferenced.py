"""TiffImage is RasterImage, only faster: levels, channels, frame, nodata, validity and pixels of georeferenced TIFFs, to the bit.

JPEG is the exception: GDAL's wheel brings libjpeg 9, which rounds otherwise than libjpeg-turbo. There tifffile is the oracle of bits.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from affine import Affine
from contract import ImageContract, some_windows
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from patchdrive.readers import FormatError, choose
from patchdrive.readers.raster import RasterImage
from patchdrive.readers.tiff import TiffImage

SAME = (
    "rs/gdal/bigtiff_one_block_be_long8.tif",
    "rs/gdal/byte_LZMA_tiled.tif",
    "rs/gdal/cog_sparse_strile_arrays_zeroified_when_possible.tif",
    "rs/gdal/contig_tiled.tif",
    "rs/gdal/non_standard_tiled_blockysize_one.tif",
    "rs/gdal/quad-lzw-old-style.tif",
    "rs/gdal/rgbsmall_JPEG_tiled_separate.tif",  # grey planes: no colours to round
    "rs/gdal/rgbsmall_LERC_tiled.tif",
    "rs/gdal/rgbsmall_WEBP_tiled.tif",
    "rs/gdal/rgbsmall_ZSTD_tiled_separate.tif",
    "rs/gdal/separate_tiled.tif",
    "rs/gdal/sparse_tiled_contig.tif",
    "rs/gdal/sparse_tiled_separate.tif",
    "rs/gdal/stefan_full_rgba.tif",
    "rs/gdal/test3_with_1mask_1bit.tif",
    "rs/gdal/test3_with_mask_1bit_and_ovr.tif",
    "rs/gdal/tiled_blockysize_larger_than_rasterysize.tif",
    "rs/gdal/uint16_nodata_65535_bigtiff.tif",
    "rs/landsat8/LC81070352015122LGN00_B4.tif",
    "rs/misc/LC08_L2SR_099120_20191129_20201016_02_T2_SR_B2.TIF",
    "rs/misc/TCI.tif",
    "rs/misc/above_cog.tif",
    "rs/misc/au-3577-rotated.tif",
    "rs/misc/au-gcp.tif",
    "rs/misc/cog_with_nan.tif",
    "rs/misc/dem.tif",
    "rs/misc/ga_ls_wofs_3_090081_1993_01_05_interim_water_clipped.tif",
    "rs/misc/m_3211605_ne_11_060_20200415.tif",  # infrared tagged as alpha
    "rs/misc/rgb16.tif",
    "rs/rasterio/RGB.byte.tif",
    "rs/rasterio/RGB2.byte.tif.msk",
    "rs/rasterio/RGBA.uint16.tif",
    "rs/rasterio/all-nodata.tif",
    "rs/rasterio/alpha.tif",  # JPEG without a colour transform
    "rs/rasterio/float_nan.tif",
    "rs/rasterio/rgb1.tif",
    "rs/rasterio/rgb2.tif",
    "rs/rasterio/rgb3.tif",
    "rs/rasterio/rgb4.tif",
    "rs/rasterio/rotated.tif",
    "rs/rasterio/shade.tif",
    "rs/rasterio/test_esri_wkt.tif",
    "rs/rasterio/world.byte.tif",
    "rs/rio-cogeo/cog_no_offest.tif",
    "rs/rio-cogeo/image_dec.tif",
    "rs/rio-cogeo/image_external.tif.ovr",
    "rs/rio-cogeo/image_nan.tif",
    "rs/rio-cogeo/image_no_overview.tif",
    "rs/rio-cogeo/image_nocolormap.tif",
    "rs/rio-cogeo/image_web_z5_z11.tif",
    "rs/rio-cogeo/image_webp.tif",
    "rs/rio-cogeo/image_with_offsets.tif",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1.tif.ovr",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_alpha.tif",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_extmask.tif.msk",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_mask.tif",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_nodata.tif",
    "rs/rio-tiler/cog_cmap.tif",
    "rs/rio-tiler/cog_dateline.tif",
    "rs/rio-tiler/cog_gcps.tif",
    "rs/rio-tiler/cog_int16.tif",
    "rs/rio-tiler/cog_nodata.tif",
    "rs/rio-tiler/cog_nodata_nan.tif",
    "rs/rio-tiler/cog_nonearth.tif",
    "rs/rio-tiler/cog_rgb_mask.tif",
    "rs/rio-tiler/cog_scale_epsg4326.tif",
    "rs/rio-tiler/cog_world.tif",
    "rs/rio-tiler/inverted_lat.tif",
    "rs/rio-tiler/nocog.tif",
    "rs/rio-tiler/pix4d_alpha_nodata.tif",
    "wsi/boxes.tiff",
    "wsi/panimg/dzi_tiff_valid_tiff.tif",
)
JPEG = (
    "rs/gdal/ycbcr_with_mask.tif",
    "rs/rasterio/cogeo.tif",
    "rs/rasterio/goes.tif",
    "rs/rio-cogeo/image_geos.tif",
    "rs/rio-tiler/cog_hirise_mars.tif",
    "wsi/nightwatch_15354x13230.ome.tif",
)
APART = {
    "rs/gdal/rgbsmall_JXL_tiled.tif": "GDAL's wheel has no JPEG XL",
    "rs/gdal/utm.tif": "GDAL cuts its one strip into smaller ones: the same pixels in other tiles",
    "rs/rasterio/RGB2.byte.tif": "its mask lies beside it",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1.tif": "its overviews lie beside it",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1_extmask.tif": "its mask lies beside it",
    "wsi/CMU-1-Small-Region.svs": "GDAL takes the macro for an overview",
    "wsi/OS-1-detail.ome.tif": "GDAL's wheel has no JPEG 2000 in TIFF",
    "wsi/OS-2-ndpi.ome.tif": "GDAL's wheel has no JPEG 2000 in TIFF",
    "wsi/OS-2-vsi.ome.tif": "GDAL's wheel has no JPEG 2000 in TIFF",
    "wsi/panimg/no_dzi.tif": "GDAL knows no pixel size of microscopy",
}
LIBJPEG_9 = 30
"""Largest difference of a JPEG sample, of 255, between libjpeg 9 and libjpeg-turbo, where chroma is stored at half size."""
LIBJPEG_9_MEAN = 0.6
"""Largest mean difference over a level."""


def assert_same_facts(tiff, raster):
    assert tiff.levels == raster.levels
    assert (tiff.dtype, tiff.channels, tiff.transform, tiff.crs) == (raster.dtype, raster.channels, raster.transform, raster.crs)
    assert repr(tiff.nodata) == repr(raster.nodata)  # NaN is NaN there
    assert (tiff.has_mask, tiff.mpp) == (raster.has_mask, raster.mpp)


def assert_same_pixels(tiff, raster, *, tolerance=0):
    """Windows inside, at borders and corners of every level, and their masks."""
    for level in tiff.levels:
        for window in some_windows(level.height, level.width, seed=level.index):
            pixels, wanted = (image.read(window, level=level.index) for image in (tiff, raster))
            if tolerance:
                assert np.abs(pixels.astype(int) - wanted).max() <= tolerance
            else:
                np.testing.assert_array_equal(pixels, wanted)
            masks = [image.read_mask(window, level=level.index) for image in (tiff, raster)]
            np.testing.assert_array_equal(masks[0], masks[1])


def both(path):
    return TiffImage(path), RasterImage(path)


@pytest.mark.parametrize("name", SAME)
def test_a_real_file_is_gdals_to_the_bit(real_file, name):
    tiff, raster = both(real_file(name))
    assert_same_facts(tiff, raster)
    assert_same_pixels(tiff, raster)
    if tiff.transform is not None:
        assert raster.properties.items() <= tiff.properties.items()


@pytest.mark.parametrize("name", [*JPEG[:-1], pytest.param(JPEG[-1], marks=pytest.mark.slow)])  # the last has 200 Mpx
def test_a_real_jpeg_is_gdals_but_for_rounding_and_tifffiles_to_the_bit(real_file, name):
    tiff, raster = both(real_file(name))
    assert_same_facts(tiff, raster)
    assert_same_pixels(tiff, raster, tolerance=LIBJPEG_9)
    with tifffile.TiffFile(real_file(name)) as file:
        pages = [*file.pages, *(page for whole in file.pages for page in whole.pages or ())]
        by_size = {page.shape[:2]: page for page in reversed(pages) if page.samplesperpixel == len(tiff.channels)}
        for level in tiff.levels[1 if tiff.levels[0].height > 4096 else 0 :]:
            whole = tiff.read(level.window, level=level.index)
            np.testing.assert_array_equal(whole, by_size[level.height, level.width].asarray())
            assert np.abs(whole.astype(int) - raster.read(level.window, level=level.index)).mean() <= LIBJPEG_9_MEAN


def is_accepted(path):
    try:
        TiffImage(path).close()
    except FormatError:
        return False
    return True


def test_no_real_file_is_left_out(real_file):
    data = real_file("README.md").parent
    found = [path for path in [*data.glob("rs/**/*"), *data.glob("wsi/**/*")] if path.is_file() and is_accepted(path)]
    assert {path.relative_to(data).as_posix() for path in found} == {*SAME, *JPEG, *APART}


def test_a_codec_that_gdal_lacks_is_placed_all_the_same(real_file):
    image = TiffImage(real_file("rs/gdal/rgbsmall_JXL_tiled.tif"))
    twin = RasterImage(real_file("rs/gdal/rgbsmall_ZSTD_tiled_separate.tif"))
    assert (image.transform, image.crs, image.channels) == (twin.transform, twin.crs, twin.channels)


def place(height, width, count, dtype):
    """(count, height, width): every value encodes row, column and channel."""
    y, x, c = np.mgrid[:height, :width, :count]
    return np.moveaxis((y * 7 + x * 3 + c * 29 + 1).astype(dtype), 2, 0)


def write(path, bands, *, driver="GTiff", mask=None, levels=(), describe=None, colours=None, **options):
    """A GeoTIFF of (channel, y, x) bands in tiles of 128."""
    count, height, width = bands.shape
    tiles = {} if driver == "COG" else {"tiled": True, "blockxsize": 128, "blockysize": 128}
    profile = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)} | tiles | options
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype, **profile) as dataset:
            dataset.write(bands)
            if mask is not None:
                dataset.write_mask(mask)
            if describe is not None:
                dataset.descriptions = describe
            if colours is not None:
                dataset.colorinterp = colours
            if levels:
                dataset.build_overviews(levels, Resampling.nearest)
    return path


def cog(path, source, **options):
    """`source` through GDAL's COG driver, overviews and masks of its own."""
    rasterio.shutil.copy(source, path, driver="COG", blocksize=128, overview_resampling="nearest", **options)
    return path


def disc(height, width):
    """(height, width) uint8: 255 in an ellipse, 0 outside, as a scene's swath or an orthophoto's outline."""
    y, x = np.mgrid[:height, :width]
    return np.where(((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2) < 0.2, 255, 0).astype(np.uint8)


def holes(bands, value):
    """`bands` with `value` where the disc is not, in every channel, and in one channel besides."""
    bands = bands.copy()
    bands[:, disc(*bands.shape[1:]) == 0] = value
    bands[0, 100:150, 200:240] = value
    return bands


RGB, FLOATS = place(421, 533, 3, np.uint8), place(421, 533, 2, np.float32) / 7
WRITTEN = {
    "cog": lambda at: cog(at / "b.tif", write(at / "a.tif", RGB), compress="deflate", predictor="yes"),
    "cog-mask": lambda at: cog(at / "b.tif", write(at / "a.tif", RGB, mask=disc(421, 533)), compress="lzw"),
    "cog-alpha": lambda at: cog(
        at / "b.tif", write(at / "a.tif", np.concatenate([RGB, disc(421, 533)[None]]), photometric="rgb", alpha="yes")
    ),
    "cog-int16-nodata": lambda at: cog(
        at / "b.tif", write(at / "a.tif", holes(place(421, 533, 2, np.int16), -99), nodata=-99), compress="zstd", predictor="yes"
    ),
    "cog-lerc": lambda at: cog(at / "b.tif", write(at / "a.tif", holes(FLOATS, -9.5), nodata=-9.5), compress="lerc_zstd"),
    "mask": lambda at: write(at / "a.tif", RGB, mask=disc(421, 533), levels=[2, 4], compress="deflate"),
    "mask-and-nodata": lambda at: write(at / "a.tif", RGB, mask=disc(421, 533), nodata=8, levels=[2]),
    "mask-of-floats": lambda at: write(at / "a.tif", holes(FLOATS, np.nan), mask=disc(421, 533)[::-1], levels=[3]),
    "alpha-and-nodata": lambda at: write(
        at / "a.tif", np.concatenate([holes(RGB, 7), disc(421, 533)[None, ::-1]]), photometric="rgb", alpha="yes", nodata=7
    ),
    "alpha-of-floats": lambda at: write(
        at / "a.tif", np.concatenate([holes(FLOATS, np.nan), disc(421, 533)[None, ::-1]]), photometric="minisblack", alpha="yes"
    ),
    "infrared-tagged-alpha": lambda at: write(at / "a.tif", place(421, 533, 4, np.uint8), photometric="rgb", alpha="yes", nodata=9),
    "nodata-nan": lambda at: write(at / "a.tif", holes(FLOATS, np.nan), nodata=np.nan, compress="deflate", predictor=3, levels=[2]),
    "nan-undeclared": lambda at: write(at / "a.tif", holes(FLOATS, np.nan), compress="zstd", predictor=3),
    "nodata-float32": lambda at: write(at / "a.tif", holes(FLOATS, 0.1), nodata=0.1),
    "nodata-lowest": lambda at: write(at / "a.tif", holes(FLOATS, np.finfo("f4").min), nodata=-3.4028234663852886e38),
    "sparse": lambda at: write(at / "a.tif", place(421, 533, 3, np.uint8) * (disc(421, 533) > 0), sparse_ok=True),
    "sparse-nodata": lambda at: write(at / "a.tif", holes(place(421, 533, 2, np.int16), -7), sparse_ok=True, nodata=-7, levels=[2]),
    "separate": lambda at: write(
        at / "a.tif", place(421, 533, 5, np.uint16), interleave="band", compress="lzw", predictor=2, describe=list("abcde")
    ),
    "big-endian": lambda at: write(
        at / "a.tif", place(421, 533, 3, np.int32), endianness="BIG", bigtiff="YES", compress="deflate", predictor=2
    ),
    "float64": lambda at: write(at / "a.tif", place(421, 533, 1, np.float64) / 3, compress="deflate", predictor=3, endianness="BIG"),
    "int8": lambda at: write(at / "a.tif", place(421, 533, 1, np.uint8).view(np.int8), nodata=-1),
    "uint64": lambda at: write(at / "a.tif", place(421, 533, 1, np.uint64), nodata=2.0**40),
    "one-bit": lambda at: write(at / "a.tif", place(421, 533, 1, np.uint8) % 2, nbits=1),
    "twelve-bits": lambda at: write(at / "a.tif", place(421, 533, 2, np.uint16) % 4096, nbits=12),
    "min-is-white": lambda at: write(at / "a.tif", place(421, 533, 1, np.uint8), photometric="miniswhite"),
    "colours-named": lambda at: write(
        at / "a.tif", place(421, 533, 3, np.uint8), colours=[ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    ),
    "webp-lossless": lambda at: write(at / "a.tif", RGB, compress="webp", webp_lossless="yes"),
    "frame-without-crs": lambda at: write(at / "a.tif", RGB, crs=None),
    "crs-without-frame": lambda at: write(at / "a.tif", RGB, transform=None),
    "neither": lambda at: write(at / "a.tif", RGB, crs=None, transform=None),
    "strips": lambda at: write(at / "a.tif", RGB, tiled=False, blockysize=32, blockxsize=533, mask=disc(421, 533)),
}


@pytest.fixture(scope="module", params=WRITTEN)
def written(request, tmp_path_factory):
    return WRITTEN[request.param](tmp_path_factory.mktemp("georeferenced"))


def test_a_file_written_here_is_gdals_to_the_bit(written):
    tiff, raster = both(written)
    assert_same_facts(tiff, raster)
    assert_same_pixels(tiff, raster)


def test_tiles_are_the_same_with_their_validity(written):
    """Of some channels, which are not those that decide."""
    tiff, raster = both(written)
    level = tiff.levels[-1]
    grid = tiff.grid(level=level.index)
    tiles = grid.touched(level.window)
    channels = [len(tiff.channels) - 1]
    out = np.empty((len(tiles), grid.tile_height, grid.tile_width, 1), tiff.dtype)
    valid = np.empty(out.shape[:3], np.bool_)
    assert tiff.decode(tiles, level=level.index, channels=channels, out=out, valid=valid) == ()
    for at, tile in enumerate(tiles):
        window = grid.window(*tile)
        inside = (at, slice(window.height), slice(window.width))
        np.testing.assert_array_equal(out[inside], raster.read(window, level=level.index, channels=channels))
        np.testing.assert_array_equal(valid[inside], raster.read_mask(window, level=level.index))


class TestCogByContract(ImageContract):
    @pytest.fixture(params=["cog-mask", "cog-alpha", "sparse-nodata"])
    def path(self, request, tmp_path):
        return WRITTEN[request.param](tmp_path)

    @pytest.fixture
    def image(self, path):
        return TiffImage(path)

    @pytest.fixture
    def expected(self, path):
        image = RasterImage(path)
        return [image.read(level.window, level=level.index) for level in image.levels]


def test_half_floats_are_given_as_stored_where_gdal_widens_them(tmp_path):
    tiff, raster = both(write(tmp_path / "a.tif", FLOATS, nbits=16, compress="deflate", predictor=3))
    assert (tiff.dtype, raster.dtype) == (np.float16, np.float32)
    assert_same_pixels(tiff, raster)


@pytest.mark.parametrize("name", ["cog-int16-nodata", "cog-alpha", "nan-undeclared"])
def test_validity_costs_no_second_decoding(tmp_path, monkeypatch, name):
    image = TiffImage(WRITTEN[name](tmp_path))
    assert image.has_mask
    decoded = []
    real = image._planes(0, [0])[0].decode.__func__
    monkeypatch.setattr(
        "patchdrive.readers.tiff_window.StoredPlane.decode",
        lambda self, row, column, out: decoded.append((self.plane, row, column)) or real(self, row, column, out),
    )
    grid = image.grid(level=0)
    out = np.empty((1, grid.tile_height, grid.tile_width, len(image.channels)), image.dtype)
    image.decode([(1, 2)], level=0, channels=range(len(image.channels)), out=out, valid=np.empty(out.shape[:3], np.bool_))
    assert decoded == [(plane, 1, 2) for plane in range(image._pyramid.layouts[0][0].planes)]


@pytest.fixture
def asked(monkeypatch):
    """The files that GDAL was asked of."""
    files = []
    real = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda path, **options: files.append(str(path)) or real(path, **options))
    return files


@pytest.mark.parametrize("name", ["wsi/CMU-1-Small-Region.svs", "wsi/boxes.tiff", "wsi/nightwatch_15354x13230.ome.tif"])
def test_a_slide_is_none_of_gdals_business(real_file, asked, name):
    image = TiffImage(real_file(name))
    assert (image.transform, image.crs, image.has_mask) == (None, None, False)
    assert len(image.channels) in {1, 3}
    image.read_mask(image.levels[-1].window, level=len(image.levels) - 1)
    assert asked == []


def test_gdal_is_asked_once_and_only_when_somebody_wants_to_know(real_file, asked):
    path = real_file("rs/rio-tiler/cog_world.tif")
    image = TiffImage(path)
    image.read(image.levels[-1].window, level=len(image.levels) - 1)
    assert asked == []
    with ThreadPoolExecutor(8) as threads:
        frames = list(threads.map(lambda _: (image.transform, image.crs, image.channels), range(32)))
    assert set(asked) == {str(path)}
    assert all(frame == frames[0] for frame in frames)
    before = len(asked)
    assert image.crs.to_epsg() == 4326
    assert len(asked) == before


@pytest.fixture
def half_masked(tmp_path):
    """A mask for the image, none for its overview."""
    path = tmp_path / "half.tif"
    pixels = np.moveaxis(RGB, 0, 2)
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
        file.write(pixels, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
        file.write(disc(421, 533) > 0, subfiletype=4, tile=(128, 128), photometric="minisblack", metadata=None)
    return path


def test_a_level_whose_validity_is_stored_nowhere_is_gdals_to_decide(half_masked):
    with pytest.raises(FormatError, match="level 1 has no mask of its size"):
        TiffImage(half_masked)
    choice = choose(half_masked)
    assert choice.reader == "raster"
    assert "level 1 has no mask of its size" in choice.why
    assert RasterImage(half_masked).has_mask


def test_a_torn_mask_is_named(tmp_path):
    path = WRITTEN["mask"](tmp_path)
    with tifffile.TiffFile(path) as file:
        page = next(page for page in file.pages if page.subfiletype & 4 and not page.subfiletype & 1)
        start, count = page.dataoffsets[0], page.databytecounts[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * count)
    image = TiffImage(path)
    grid = image.grid(level=0)
    out = np.empty((1, grid.tile_height, grid.tile_width, 3), np.uint8)
    torn = image.decode([(0, 0)], level=0, channels=[0, 1, 2], out=out, valid=np.empty(out.shape[:3], np.bool_))
    assert "mask of level 0, tile row 0, column 0" in torn[0].reason
