"""Every real file opens in the right reader as its own library describes it, or is refused with the reason."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
import zarr
from rasterio.errors import NotGeoreferencedWarning

from patchdrive.readers import FormatError, choose, open_image
from patchdrive.readers.open import Plugin

SLIDE = (
    "wsi/highdicom_sm_image.dcm",
    "wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm",
    "wsi/multiframe_camelyon_challenge_image.dcm",
    "wsi/panimg/dicom_wsi/full_no_bot/full_no_bot.dcm",
    "wsi/panimg/dicom_wsi/full_with_bot/full_with_bot.dcm",
    "wsi/panimg/dicom_wsi/sparse_no_bot/sparse_no_bot.dcm",
    "wsi/panimg/dicom_wsi/sparse_with_bot/sparse_with_bot.dcm",
    "wsi/test3-DAPI-2-(387).ndpi",
)
TIFF = (
    "wsi/CMU-1-Small-Region.svs",
    "wsi/OS-1-detail.ome.tif",
    "wsi/OS-2-ndpi.ome.tif",
    "wsi/OS-2-vsi.ome.tif",
    "wsi/boxes.tiff",
    "wsi/nightwatch_15354x13230.ome.tif",
    "wsi/panimg/dzi_tiff_valid_tiff.tif",
    "wsi/panimg/no_dzi.tif",
    "rs/gdal/bigtiff_one_block_be_long8.tif",
    "rs/gdal/cog_sparse_strile_arrays_zeroified_when_possible.tif",
    "rs/gdal/contig_tiled.tif",
    "rs/gdal/non_standard_tiled_blockysize_one.tif",
    "rs/gdal/rgbsmall_JXL_tiled.tif",
    "rs/gdal/separate_tiled.tif",
    "rs/gdal/sparse_tiled_contig.tif",
    "rs/gdal/sparse_tiled_separate.tif",
    "rs/gdal/tiled_blockysize_larger_than_rasterysize.tif",
    "rs/rio-cogeo/cog_no_offest.tif",
    "rs/rio-cogeo/image_external.tif.ovr",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1.tif.ovr",
)
PLACED = (
    "rs/gdal/byte_LZMA_tiled.tif",
    "rs/gdal/rgbsmall_JPEG_tiled_separate.tif",
    "rs/gdal/rgbsmall_LERC_tiled.tif",
    "rs/gdal/rgbsmall_WEBP_tiled.tif",
    "rs/gdal/rgbsmall_ZSTD_tiled_separate.tif",
    "rs/gdal/stefan_full_rgba.tif",
    "rs/gdal/test3_with_1mask_1bit.tif",
    "rs/gdal/test3_with_mask_1bit_and_ovr.tif",
    "rs/gdal/utm.tif",
    "rs/gdal/ycbcr_with_mask.tif",
    "rs/landsat8/LC81070352015122LGN00_B4.tif",
    "rs/misc/LC08_L2SR_099120_20191129_20201016_02_T2_SR_B2.TIF",
    "rs/misc/TCI.tif",
    "rs/misc/above_cog.tif",
    "rs/misc/au-3577-rotated.tif",
    "rs/misc/cog_with_nan.tif",
    "rs/misc/dem.tif",
    "rs/misc/rgb16.tif",
    "rs/rasterio/all-nodata.tif",
    "rs/rasterio/alpha.tif",
    "rs/rasterio/cogeo.tif",
    "rs/rasterio/goes.tif",
    "rs/rasterio/shade.tif",
    "rs/rasterio/world.byte.tif",
    "rs/rio-cogeo/image_geos.tif",
    "rs/rio-cogeo/image_no_overview.tif",
    "rs/rio-cogeo/image_web_z5_z11.tif",
    "rs/rio-cogeo/image_with_offsets.tif",
    "rs/rio-tiler/cog_cmap.tif",
    "rs/rio-tiler/cog_dateline.tif",
    "rs/rio-tiler/cog_hirise_mars.tif",
    "rs/rio-tiler/cog_int16.tif",
    "rs/rio-tiler/cog_nodata.tif",
    "rs/rio-tiler/cog_nodata_nan.tif",
    "rs/rio-tiler/cog_nonearth.tif",
    "rs/rio-tiler/cog_rgb_mask.tif",
    "rs/rio-tiler/cog_scale_epsg4326.tif",
    "rs/rio-tiler/cog_world.tif",
    "rs/rio-tiler/inverted_lat.tif",
)
"""Read by their own tiles, or strips, with GDAL as the oracle."""
REFUSED = {
    "rs/rio-cogeo/slc.tif": "amplitude",
    "rs/sentinel2_T29UNU_20221005/MTD_TL.xml": "open the image file itself",
    "omezarr/examples/valid/image-03.zarr": "one plane",
    "omezarr/examples/valid/image-04.zarr": "one plane",
    "omezarr/examples/valid/plate-01.zarr": "open one of",
    "omezarr/zarr-java/v0.4": "one plane",
    "omezarr/zarr-java/v0.5": "one plane",
    "omezarr/zarr-java/v0.5_hcs": "open one of",
    "omezarr/fiji-java/bioformats2raw_testing/bf2raw_dataset_v5.ome.zarr": "open one of",
    "omezarr/fiji-java/pyramid_testing/pyramid_v4.zarr": "one plane",
    "omezarr/fiji-java/pyramid_testing/pyramid_v5.zarr": "one plane",
    "wsi/panimg/dicom_wsi": "any one .dcm",
}


@pytest.fixture(scope="module")
def data(real_file):
    return real_file("README.md").parent


def scenes(data):
    """Every file under rs/ that is not listed under another reader."""
    listed = {*TIFF, *REFUSED}
    found = [path.relative_to(data).as_posix() for path in sorted(data.glob("rs/*/*")) if path.is_file()]
    return [name for name in found if name not in listed]


def test_no_slide_is_left_out(data):
    found = {path.relative_to(data).as_posix() for path in data.glob("wsi/**/*") if path.is_file()}
    assert found == {name for name in (*SLIDE, *TIFF) if name.startswith("wsi/")}


@pytest.mark.parametrize("name", SLIDE)
def test_slides_are_as_openslide_says(real_file, name):
    assert choose(real_file(name)).reader == "slide"
    image = open_image(real_file(name))
    with openslide.OpenSlide(real_file(name)) as slide:
        assert [(level.width, level.height) for level in image.levels] == list(slide.level_dimensions)
        stated = slide.properties.get("openslide.mpp-y"), slide.properties.get("openslide.mpp-x")
        believed = None if None in stated else tuple(map(float, stated))
        assert image.mpp == (believed if believed is None or believed[0] < 100 else None)
        level = image.levels[-1]
        whole = np.array(slide.read_region((0, 0), level.index, (level.width, level.height)))
    np.testing.assert_array_equal(image.read(level.window, level=level.index), whole[:, :, :3])


@pytest.mark.parametrize("name", TIFF)
def test_tiled_tiffs_are_as_tifffile_says(real_file, name):
    assert choose(real_file(name)).reader == "tiff"
    image = open_image(real_file(name))
    with tifffile.TiffFile(real_file(name)) as tiff:
        series = tiff.series[0]
        pages = [level.pages[0] for level in series.levels]
        assert image.dtype == series.dtype
        assert len(image.channels) == pages[0].samplesperpixel
        sizes = [(page.imagelength, page.imagewidth) for page in pages]
        assert sizes[: len(image.levels)] == [(level.height, level.width) for level in image.levels] or len(sizes) == 1


def test_scenes_are_as_rasterio_says(data):
    names = scenes(data)
    assert len(names) > 60
    for name in names:
        path = data / name
        assert choose(path).reader == ("tiff" if name in PLACED else "raster"), name
        image = open_image(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
        with dataset:
            assert (image.levels[0].height, image.levels[0].width, len(image.channels)) == (*dataset.shape, dataset.count), name
            assert {str(image.dtype)} == set(dataset.dtypes), name
            assert len(image.levels) == 1 + sum(factor > 1 for factor in dataset.overviews(1)), name
            assert repr(image.nodata) == repr(dataset.nodata), name
            assert image.transform in (dataset.transform, None), name
            assert image.mpp is None, name
            if image.transform is not None and dataset.crs is not None:
                assert image.crs is not None, name
                assert rasterio.crs.CRS.from_wkt(image.crs.to_wkt()) == dataset.crs, name
            level = image.levels[0]
            height, width = min(50, level.height), min(50, level.width)
            window = rasterio.windows.Window(level.width - width, level.height - height, width, height)
            corner = image.levels[0].window.intersect(
                type(level.window)(y=level.height - height, x=level.width - width, height=height, width=width)
            )
            pixels, wanted = image.read(corner), np.moveaxis(dataset.read(window=window), 0, 2)
            if image.reader == "tiff" and image.codec == "jpeg":  # GDAL's libjpeg 9 rounds otherwise; see test_tiff_georeferenced.py
                assert np.abs(pixels.astype(int) - wanted).max() <= 30, name
            else:
                np.testing.assert_array_equal(pixels, wanted, err_msg=name)
        image.close()


def zarr_groups(data):
    """Every group under omezarr/ that lists one image, those inside plates and labels left out."""
    groups = []
    for marker in sorted([*data.glob("omezarr/**/.zattrs"), *data.glob("omezarr/**/zarr.json")]):
        name = marker.parent.relative_to(data).as_posix()
        inside = any(name.startswith(group + "/") for group in groups)
        if "multiscales" in marker.read_text() and not inside and not any(name.startswith(refused) for refused in REFUSED):
            groups.append(name)
    return groups


def test_ome_zarr_images_are_as_zarr_says(data):
    groups = zarr_groups(data)
    assert len(groups) >= 10
    for name in groups:
        assert choose(data / name).reader == "multiscale", name
        image = open_image(data / name)
        group = zarr.open_group(data / name, mode="r", use_consolidated=False)
        attributes = group.attrs.asdict()
        multiscale = attributes.get("ome", attributes)["multiscales"][0]
        axes = [axis["name"] for axis in multiscale["axes"]]
        for level, entry in zip(image.levels, multiscale["datasets"], strict=True):
            array = group[entry["path"]]
            assert (level.height, level.width) == (array.shape[axes.index("y")], array.shape[axes.index("x")]), name
            assert image.dtype == array.dtype, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(real_file, name):
    with pytest.raises(FormatError, match=REFUSED[name]):
        open_image(real_file(name))


def test_bytes_win_over_the_suffix(real_file, tmp_path):
    assert choose(real_file("broken/rio-pansharpen_jpeg_named_tif.TIF")).why == "is JPEG"
    for name, reader in (("wsi/boxes.tiff", "tiff"), ("wsi/highdicom_sm_image.dcm", "slide"), ("rs/gdal/513x513.jp2", "raster")):
        misnamed = tmp_path / "misnamed.png"
        misnamed.write_bytes(real_file(name).read_bytes())
        assert choose(misnamed).reader == reader


def test_a_folder_of_a_slide_stands_for_its_file(real_file):
    folder = real_file("broken/panimg_complex_tiff")
    choice = choose(folder / "Mirax2-Fluorescence-1")
    assert (choice.reader, choice.path) == ("slide", folder / "Mirax2-Fluorescence-1.mrxs")
    choice = choose(folder / "Hamamatsu-VMS")
    assert (choice.reader, choice.path.suffix) == ("slide", ".vms")
    assert choose(folder / "Mirax2-Fluorescence-1.mrxs").reader == "slide"  # a JPEG by its bytes


def test_the_reader_can_be_named(real_file):
    path = real_file("wsi/boxes.tiff")
    images = [open_image(path, reader=name) for name in ("tiff", "slide", "raster")]
    assert [image.reader for image in images] == ["tiff", "slide", "raster"]
    window = images[0].levels[0].window
    for image in images[1:]:
        np.testing.assert_array_equal(image.read(window), images[0].read(window))
    with pytest.raises(FormatError, match="there are tiff, slide, raster, multiscale"):
        open_image(path, reader="bioformats")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (b"\x1f\x8b" + bytes(60), "gzip"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "the bytes 01 02 03 04 05 06 07 08"),
        (b"<GDAL_WMS></GDAL_WMS>", "XML or JSON"),
        (b"II*\x00\xff\xff\xff\xff", "damaged TIFF"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, says):
    (tmp_path / "file.tif").write_bytes(content)
    with pytest.raises(FormatError, match=says):
        choose(tmp_path / "file.tif")


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        open_image(tmp_path / "nothing.svs")
    with pytest.raises(FormatError, match="fetch it first"):
        open_image("https://example.org/a.tif")
    with pytest.raises(FormatError, match="no Zarr group"):
        open_image(tmp_path)
    zarr.create_array(tmp_path / "plain.zarr", shape=(4, 4), dtype="u1", zarr_format=2)
    (tmp_path / "plain.zarr" / ".zattrs").unlink(missing_ok=True)
    with pytest.raises(FormatError, match="says nothing of axes"):
        open_image(tmp_path / "plain.zarr")


PLUGIN = """
from patchdrive.readers import MemoryImage
import numpy as np

class Squares:
    def claim(self, path, head):
        return "begins with SQUARE" if head.startswith(b"SQUARE") else ""

    def open(self, path):
        side = int(path.read_bytes()[6:])
        return MemoryImage([np.full((side, side, 1), side, np.uint8)])

squares = Squares()
"""


def test_a_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "squares-1.dist-info").mkdir(parents=True)
    (site / "squares.py").write_text(PLUGIN)
    (site / "squares-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: squares\nVersion: 1\n")
    (site / "squares-1.dist-info" / "entry_points.txt").write_text("[patchdrive.readers]\nsquares = squares:squares\n")
    monkeypatch.syspath_prepend(site)
    source = tmp_path / "a.square"
    source.write_bytes(b"SQUARE7")
    choice = choose(source)
    assert (choice.reader, choice.why, choice.path) == ("squares", "begins with SQUARE", source)
    assert open_image(source).levels[0].height == open_image(source, reader="squares").levels[0].width == 7
    plugin: Plugin = sys.modules["squares"].squares
    assert plugin.claim(Path("other"), b"CIRCLE") == ""
