"""RasterImage against rasterio's whole bands and tifffile's pages, on real scenes and on files written here."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from contract import ImageContract
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Window
from patchdrive.readers.pixels import is_alpha
from patchdrive.readers.raster import RasterImage

SCENES = (
    "rs/rasterio/RGB.byte.tif",  # strips of 3 rows, nodata 0
    "rs/rasterio/RGB2.byte.tif",  # external mask
    "rs/rasterio/RGBA.uint16.tif",  # 16-bit alpha
    "rs/rasterio/cogeo.tif",  # JPEG COG, 6 overviews, internal mask
    "rs/rasterio/RGB.byte.gcp.vrt",
    "rs/misc/au-3577-rotated.tif",  # float32, rotated
    "rs/misc/cog_with_nan.tif",
    "rs/rio-tiler/201404_13SED190110_201404_0x1500m_CL_1.tif",  # external overviews
    "rs/rio-tiler/cog_hirise_mars.tif",  # overviews of 1683/841
    "rs/gdal/513x513.jp2",
    "rs/gdal/3_13bit_and_1bit.jp2",
    "rs/gdal/rgbsmall_LERC_tiled.tif",
    "broken/rio-pansharpen_jpeg_named_tif.TIF",
)
MASKED = (
    "rs/rasterio/RGB2.byte.tif",
    "rs/rasterio/alpha.tif",
    "rs/rasterio/all-nodata.tif",
    "rs/rasterio/goes.tif",
    "rs/gdal/test3_with_mask_1bit_and_ovr.tif",
    "rs/gdal/stefan_full_rgba.tif",
    "rs/rio-tiler/pix4d_alpha_nodata.tif",
    "rs/rio-tiler/cog_int16.tif",
    "rs/rio-tiler/cog_nonearth.tif",
    "rs/rio-cogeo/image_geos.tif",
    "rs/rio-cogeo/image_nan.tif",
    "rs/misc/cog_with_nan.tif",
)


def from_rasterio(path, take):
    """`take(dataset)` of level 0 and of every overview that is smaller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            found = [take(dataset)]
            count = len([factor for factor in dataset.overviews(1) if factor > 1])
        for index in range(count):
            with rasterio.open(path, overview_level=index) as dataset:
                found.append(take(dataset))
    return found


def bands_last(dataset):
    return np.moveaxis(dataset.read(), 0, 2)


@pytest.fixture(scope="module", params=SCENES)
def scene(request, real_file):
    """A path, and the pixels of its levels."""
    path = real_file(request.param)
    return path, from_rasterio(path, bands_last)


class TestScenes(ImageContract):
    @pytest.fixture
    def image(self, scene):
        image = RasterImage(scene[0])
        yield image
        image.close()

    @pytest.fixture
    def expected(self, scene):
        return scene[1]


def place(height, width, count=3, dtype=np.uint16):
    """(height, width, count): every value encodes row, column and channel."""
    y, x, c = np.mgrid[:height, :width, :count]
    return (y * 7 + x * 3 + c * 1009 + 1).astype(dtype)


def write(path, pixels, **options):
    """A GeoTIFF of (y, x, channel) pixels."""
    height, width, count = pixels.shape
    profile = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **profile) as dataset:
            dataset.write(np.moveaxis(pixels, 2, 0))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """31 channels of uint16 in 64-pixel tiles, with overviews of odd sizes: a path, and the pixels of its levels."""
    pixels = place(331, 467, 31)
    path = write(tmp_path_factory.mktemp("raster") / "31.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 5], Resampling.nearest)
    return path, [pixels, *tiff_overviews(path)]


class TestWrittenHere(ImageContract):
    @pytest.fixture
    def image(self, written):
        return RasterImage(written[0])

    @pytest.fixture
    def expected(self, written):
        return written[1]

    def test_overviews_have_exact_downsamples(self, image):
        assert [(level.height, level.width) for level in image.levels] == [(331, 467), (166, 234), (67, 94)]
        assert (image.levels[2].downsample_y, image.levels[2].downsample_x) == (331 / 67, 467 / 94)
        assert image.channels == tuple(f"band_{band}" for band in range(1, 32))


def tiff_overviews(path):
    """The reduced pages of a GeoTIFF, by tifffile."""
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages if page.is_reduced]


@pytest.mark.parametrize("name", ["rs/rio-tiler/cog_nodata.tif", "rs/misc/TCI.tif", "rs/landsat8/LC81070352015122LGN00_B4.tif"])
def test_pixels_equal_tifffile(real_file, name):
    path = real_file(name)
    image = RasterImage(path)
    with tifffile.TiffFile(path) as tiff:
        pages = [page.asarray() for page in tiff.pages]
    assert len(pages) == len(image.levels)
    for level, page in zip(image.levels, pages, strict=True):
        np.testing.assert_array_equal(image.read(level.window, level=level.index), page.reshape(level.height, level.width, -1))


@pytest.mark.parametrize("name", MASKED)
def test_masks_equal_gdals(real_file, name):
    path = real_file(name)
    image = RasterImage(path)
    assert image.has_mask
    masks = from_rasterio(path, lambda dataset: dataset.dataset_mask() > 0)
    for level, mask in zip(image.levels, masks, strict=True):
        np.testing.assert_array_equal(image.read_mask(level.window, level=level.index), mask)
        part = Window(y=level.height // 3, x=level.width // 4, height=level.height // 2, width=level.width // 2)
        np.testing.assert_array_equal(image.read_mask(part, level=level.index), mask[part.within(level.window)])


def test_nan_is_invalid_where_gdal_lets_it_pass(real_file):
    image = RasterImage(real_file("rs/misc/au-3577-rotated.tif"))  # declares nothing
    window = image.levels[0].window
    np.testing.assert_array_equal(image.read_mask(window), ~np.isnan(image.read(window)[:, :, 0]))
    assert image.has_mask


def test_infrared_tagged_as_alpha_is_no_mask(real_file):
    naip = RasterImage(real_file("rs/misc/m_3211605_ne_11_060_20200415.tif"))
    assert (naip.channels[3], naip.has_mask) == ("band_4", False)
    assert RasterImage(real_file("rs/rasterio/alpha.tif")).has_mask


def test_alpha_is_mostly_all_or_nothing():
    assert is_alpha(np.array([0, 0, 255, 255, 128]))
    assert is_alpha(np.array([1, 1, 0]))
    assert not is_alpha(np.array([90, 100, 110, 120, 130]))


def test_nodata_per_band_is_nodata_of_none(tmp_path):
    pixels = place(20, 30, 2, np.int16)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (-1, -2), (-1, 5), (-2, -1)
    first, second = (write(tmp_path / f"{band}.tif", pixels[:, :, [band]], nodata=-1 - band) for band in range(2))
    vrt = tmp_path / "both.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{band}"><NoDataValue>{-band}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
        for band, path in ((1, first), (2, second))
    )
    vrt.write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{bands}</VRTDataset>')
    image = RasterImage(vrt)
    assert image.nodata is None
    assert image.properties["patchdrive.nodata"].startswith("per band")
    mask = image.read_mask(Window(y=0, x=0, height=1, width=4))
    np.testing.assert_array_equal(mask, [[False, True, True, True]])  # invalid where every channel is


def test_nodata_that_no_pixel_can_hold_is_ignored(tmp_path):
    path = write(tmp_path / "scene.tif", place(8, 8, 1, np.uint8), nodata=None)
    vrt = tmp_path / "scene.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><NoDataValue>0.5</NoDataValue>'
        f"<SimpleSource><SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    image = RasterImage(vrt)
    assert (image.nodata, image.has_mask) == (None, False)
    assert "ignored" in image.properties["patchdrive.nodata"]


def test_frames_are_as_stored(real_file, tmp_path):
    rotated = RasterImage(real_file("rs/misc/au-3577-rotated.tif"))
    with rasterio.open(real_file("rs/misc/au-3577-rotated.tif")) as dataset:
        assert rotated.transform == dataset.transform
    assert rotated.transform.b != 0
    assert rotated.crs.to_epsg() == 3577
    assert RasterImage(real_file("rs/rio-tiler/inverted_lat.tif")).transform.e > 0
    for name in ("rs/misc/au-gcp.tif", "rs/rasterio/RGB.byte.gcp.vrt", "rs/rasterio/RGB.byte.rpc.vrt"):
        image = RasterImage(real_file(name))
        assert (image.transform, image.crs) == (None, None)
        assert "gcps" in image.properties or "rpcs" in image.properties
    plain = RasterImage(write(tmp_path / "plain.tif", place(9, 9), crs=None, transform=None))
    assert (plain.transform, plain.crs, plain.mpp) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "crs"),
    [("rs/rio-tiler/cog_hirise_mars.tif", "MARS"), ("rs/rio-tiler/cog_nonearth.tif", "EUROPA"), ("rs/gdal/3_13bit_and_1bit.jp2", "ECW")],
)
def test_odd_worlds_have_a_crs(real_file, name, crs):
    assert crs in RasterImage(real_file(name)).crs.name


def test_channel_names(real_file, tmp_path):
    assert RasterImage(real_file("rs/rasterio/all-nodata.tif")).channels == ("blue", "green", "red", "nir")  # descriptions
    assert RasterImage(real_file("rs/rio-tiler/cog_cmap.tif")).channels == ("palette",)
    path = write(tmp_path / "scene.tif", place(8, 8, 4))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    assert RasterImage(path).channels == ("band_1", "band_2", "band_3", "band_4")


def test_sentinel2_levels_are_its_resolutions(real_file):
    image = RasterImage(real_file("rs/sentinel2_T29UNU_20221005/T29UNU_20221005T115411_AOT_10m.jp2"))
    assert [level.height for level in image.levels] == [10980, 5490, 2745, 1373, 687]
    assert (image.levels[3].downsample_y, image.codec, image.dtype) == (10980 / 1373, "jpeg2000", np.uint16)


def test_an_overview_of_factor_one_is_no_level(real_file):
    assert len(RasterImage(real_file("rs/rio-cogeo/image_dec.tif")).levels) == 1


def test_a_sidecar_is_part_of_the_identity_and_the_name_is_not(tmp_path):
    path = write(tmp_path / "scene.tif", place(64, 64))
    (tmp_path / "copy.tif").write_bytes(path.read_bytes())
    alone = RasterImage(path).identity
    assert RasterImage(tmp_path / "copy.tif").identity == alone
    write(tmp_path / "scene.tif.msk", place(64, 64, 1, np.uint8), crs=None, transform=None)
    assert RasterImage(path).identity != alone


def test_complex_pixels_are_refused(real_file):
    with pytest.raises(FormatError, match="amplitude"):
        RasterImage(real_file("rs/rio-cogeo/slc.tif"))


@pytest.mark.parametrize(
    "target",
    ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "/vsis3/bucket/a.tif", "missing.tif", "/vsizip//tmp/a.zip/a.tif"],
)
@pytest.mark.parametrize("tag", ["SourceFilename", "SourceDataset"])
def test_a_vrt_of_anything_but_local_files_is_refused(tmp_path, target, tag):
    vrt = tmp_path / "scene.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<{tag} relativeToVRT="0">{target}</{tag}></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    outer = tmp_path / "outer.vrt"
    outer.write_text(
        '<?xml version="1.0"?>\n<!-- a VRT of a VRT -->\n<VRTDataset rasterXSize="8" rasterYSize="8">'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">scene.vrt</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    for path in (vrt, outer):
        with pytest.raises(FormatError, match="local files that exist"):
            RasterImage(path)


@pytest.mark.parametrize("text", ["<GDAL_WMS><Service/></GDAL_WMS>", '{"type": "Feature", "assets": {}}', "<VRTDataset rasterXSize='8'"])
def test_descriptions_of_other_files_are_refused(tmp_path, text):
    path = tmp_path / "scene.xml"
    path.write_text(text)
    with pytest.raises(FormatError):
        RasterImage(path)


def test_a_broken_block_is_a_read_error_and_the_others_read_on(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 1), np.uint8)
    path = write(tmp_path / "scene.tif", pixels, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[3]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    image = RasterImage(path)
    for _ in range(2):
        with pytest.raises(ReadError, match=r"rows 70\.\.80"):
            image.read(Window(y=70, x=70, height=10, width=10))
        np.testing.assert_array_equal(image.read(Window(y=0, x=0, height=64, width=128)), pixels[:64])
