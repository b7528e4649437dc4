"""The tiled TIFF reader equals OpenSlide, tifffile and rasterio, on real files and on every way of storing a tile."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import imagecodecs
import numpy as np
import openslide
import pytest
import rasterio
import simplejpeg
import tifffile
from contract import ImageContract
from rasterio.windows import Window as RasterWindow

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_signs import sniff_tiff

SLIDE = "wsi/CMU-1-Small-Region.svs"
NIGHTWATCH = "wsi/nightwatch_15354x13230.ome.tif"
# Oracle tifffile; JPEG is bit for bit, for both are libjpeg-turbo.
BY_TIFFFILE = [
    SLIDE,
    "wsi/OS-1-detail.ome.tif",
    "wsi/OS-2-ndpi.ome.tif",
    "wsi/OS-2-vsi.ome.tif",
    NIGHTWATCH,
    "wsi/boxes.tiff",
    "wsi/panimg/no_dzi.tif",
    "wsi/panimg/dzi_tiff_valid_tiff.tif",
    "rs/gdal/ycbcr_with_mask.tif",
    "rs/rio-tiler/cog_hirise_mars.tif",
]
# Oracle GDAL, whose overviews are our levels.
BY_RASTERIO = [
    "rs/misc/rgb16.tif",
    "rs/misc/dem.tif",
    "rs/misc/above_cog.tif",
    "rs/misc/cog_with_nan.tif",
    "rs/misc/au-3577-rotated.tif",
    "rs/rio-tiler/cog_world.tif",
    "rs/rio-tiler/cog_int16.tif",
    "rs/rio-tiler/cog_nonearth.tif",
    "rs/rio-tiler/cog_rgb_mask.tif",
    "rs/rio-tiler/cog_scale_epsg4326.tif",
    "rs/rio-tiler/cog_cmap.tif",
    "rs/rio-cogeo/image_no_overview.tif",
    "rs/gdal/rgbsmall_ZSTD_tiled_separate.tif",
    "rs/gdal/rgbsmall_JPEG_tiled_separate.tif",
    "rs/gdal/contig_tiled.tif",
    "rs/gdal/separate_tiled.tif",
    "rs/gdal/sparse_tiled_contig.tif",
    "rs/gdal/sparse_tiled_separate.tif",
    "rs/gdal/cog_sparse_strile_arrays_zeroified_when_possible.tif",
    "rs/gdal/bigtiff_one_block_be_long8.tif",
    "rs/gdal/non_standard_tiled_blockysize_one.tif",
    "rs/gdal/tiled_blockysize_larger_than_rasterysize.tif",
]


@dataclass
class TifffileLevel:
    """One page as an array that decodes only the tiles it is asked for."""

    page: tifffile.TiffPage

    @property
    def shape(self):
        return self.page.imagelength, self.page.imagewidth, self.page.samplesperpixel

    @property
    def dtype(self):
        return self.page.dtype

    def __getitem__(self, key):
        rows, columns = key
        height, width = self.page.tilelength, self.page.tilewidth
        across = -(-self.page.imagewidth // width)
        y0, x0 = rows.start // height, columns.start // width
        y1, x1 = -(-rows.stop // height), -(-columns.stop // width)
        canvas = np.zeros(((y1 - y0) * height, (x1 - x0) * width, self.shape[2]), self.dtype)
        for y, x in itertools.product(range(y0, y1), range(x0, x1)):
            canvas[(y - y0) * height :][:height, (x - x0) * width :][:, :width] = self._tile(y * across + x)
        return canvas[rows.start - y0 * height :, columns.start - x0 * width :][: rows.stop - rows.start, : columns.stop - columns.start]

    def _tile(self, index):
        full = np.zeros((self.page.tilelength, self.page.tilewidth, self.shape[2]), self.dtype)
        if self.page.databytecounts[index] == 0:
            return full
        file = self.page.parent.filehandle
        file.seek(self.page.dataoffsets[index])
        data = file.read(self.page.databytecounts[index])
        segment, _, _ = self.page.decode(data, index, jpegtables=self.page.jpegtables)
        full[: segment.shape[1], : segment.shape[2]] = segment[0]
        return full


@dataclass
class RasterioLevel:
    """One overview as an array that GDAL reads by windows."""

    file: rasterio.DatasetReader

    @property
    def shape(self):
        return self.file.height, self.file.width, self.file.count

    @property
    def dtype(self):
        return np.dtype(self.file.dtypes[0])

    def __getitem__(self, key):
        return np.moveaxis(self.file.read(window=RasterWindow.from_slices(*key)), 0, 2)


class TestRealTiffByTifffile(ImageContract):
    @pytest.fixture(params=BY_TIFFFILE)
    def path(self, request, real_file):
        return real_file(request.param)

    @pytest.fixture
    def image(self, path):
        image = TiffImage(path)
        yield image
        image.close()

    @pytest.fixture
    def expected(self, path):
        with tifffile.TiffFile(path) as file:
            yield [TifffileLevel(level.pages[0].aspage()) for level in file.series[0].levels]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
class TestRealTiffByRasterio(ImageContract):
    @pytest.fixture(params=BY_RASTERIO)
    def path(self, request, real_file):
        return real_file(request.param)

    @pytest.fixture
    def image(self, path):
        image = TiffImage(path)
        yield image
        image.close()

    @pytest.fixture
    def expected(self, path):
        with rasterio.open(path) as file:
            factors = file.overviews(1)
        files = [rasterio.open(path)] + [rasterio.open(path, overview_level=index) for index in range(len(factors))]
        yield [RasterioLevel(file) for file in files]
        for file in files:
            file.close()

    def test_nodata_is_gdals(self, image, expected):
        nodata = expected[0].file.nodata
        assert image.nodata == nodata or (np.isnan(nodata) and np.isnan(image.nodata))


class TestSlideByOpenSlide(ImageContract):
    @pytest.fixture
    def path(self, real_file):
        return real_file(SLIDE)

    @pytest.fixture
    def image(self, path):
        return TiffImage(path)

    @pytest.fixture
    def expected(self, path):
        with openslide.OpenSlide(path) as slide:
            return [np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[:, :, :3]]

    def test_associated_images_are_openslides(self, image, path):
        with openslide.OpenSlide(path) as slide:
            assert set(image.associated) == set(slide.associated_images) == {"label", "macro", "thumbnail"}
            for name, picture in slide.associated_images.items():
                np.testing.assert_array_equal(image.associated[name], np.asarray(picture)[:, :, :3])

    def test_mpp_and_properties_are_openslides(self, image, path):
        with openslide.OpenSlide(path) as slide:
            assert image.mpp == (float(slide.properties["openslide.mpp-y"]), float(slide.properties["openslide.mpp-x"]))
            theirs = {key: value for key, value in slide.properties.items() if key.startswith("aperio.")}
        assert {key: value for key, value in image.properties.items() if key.startswith("aperio.")} == theirs


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("wsi/OS-1-detail.ome.tif", (0.22710240047237298, 0.2270972430394695)),
        ("wsi/panimg/no_dzi.tif", (0.97237, 0.97237)),
        ("wsi/boxes.tiff", None),  # 352.8: 72 dots per inch
        ("wsi/panimg/dzi_tiff_valid_tiff.tif", None),  # 1000
        (NIGHTWATCH, None),
        ("rs/misc/rgb16.tif", None),
    ],
)
def test_mpp_of_real_files(real_file, name, mpp):
    found = TiffImage(real_file(name)).mpp
    assert found == (None if mpp is None else pytest.approx(mpp, rel=1e-5))


@pytest.mark.parametrize(
    ("name", "tiled", "georeferenced", "dialect", "refused"),
    [
        (SLIDE, True, False, "aperio", ""),
        (NIGHTWATCH, True, False, "ome", ""),
        ("wsi/test3-DAPI-2-(387).ndpi", False, False, "ndpi", "Hamamatsu"),
        ("rs/rio-tiler/cog_world.tif", True, True, "generic", ""),
        ("rs/rio-tiler/nocog.tif", False, True, "generic", ""),
        ("rs/gdal/rgbsmall_WEBP_tiled.tif", True, True, "generic", ""),
        ("broken/openslide-python_unopenable.tiff", True, False, "generic", "compression 52479"),
    ],
)
def test_signs_of_real_files(real_file, name, tiled, georeferenced, dialect, refused):
    signs = sniff_tiff(real_file(name))
    assert (signs.tiled, signs.georeferenced, signs.dialect) == (tiled, georeferenced, dialect)
    assert refused in signs.refusal
    assert bool(signs.refusal) == bool(refused)


def test_complex_samples_are_a_sign(real_file):
    assert sniff_tiff(real_file("rs/rio-cogeo/slc.tif")).complex_samples


def test_signs_of_what_is_no_tiff(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    with pytest.raises(FormatError, match=r"a\.tif: not a TIFF"):
        sniff_tiff(path)


def place(height, width, samples, dtype):
    """(height, width, samples): channel c holds 1000 y + 7 x + 50 c, folded into the dtype."""
    y, x, c = np.mgrid[:height, :width, :samples]
    values = 1000 * y + 7 * x + 50 * c
    if np.dtype(dtype).kind == "f":
        return (values / 3 - 777).astype(dtype)
    return (values * 65537 % (2 ** (8 * np.dtype(dtype).itemsize))).astype(np.uint64).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)


@dataclass(frozen=True)
class Stored:
    """One way to store a tile."""

    codec: str
    predictor: int
    dtype: str

    def __str__(self):
        return f"{self.codec}-predictor{self.predictor}-{self.dtype}"


INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32"]
LOSSLESS = [
    Stored(codec, predictor, dtype)
    for codec in ["none", "deflate", "adobe_deflate", "lzw", "zstd"]
    for predictor, dtypes in [(1, ["uint8", "uint16", "float32", "float64"]), (2, INTEGERS), (3, ["float32", "float64"])]
    for dtype in dtypes
    if codec != "none" or predictor == 1
] + [Stored("packbits", 1, "uint8"), Stored("packbits", 1, "int16"), Stored("jpeg2000", 1, "uint8"), Stored("jpeg2000", 1, "uint16")]


@pytest.mark.parametrize("stored", LOSSLESS, ids=str)
@pytest.mark.parametrize("bigtiff", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", "<>", ids=["little", "big-endian"])
def test_every_lossless_way_to_store_a_tile(tmp_path, stored, bigtiff, order):
    if stored.codec == "jpeg2000" and stored.dtype == "uint16" and order == ">":
        pytest.skip("tifffile encodes swapped values here and does not read them back itself")
    path = tmp_path / "a.tif"
    samples = 3 if stored.dtype.startswith("u") else 1
    pixels = place(100, 130, samples, stored.dtype)
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=order) as writer:
        writer.write(
            pixels if samples == 3 else pixels[:, :, 0],
            tile=(32, 48),
            photometric="rgb" if samples == 3 else "minisblack",
            compression=stored.codec,
            compressionargs={"reversible": True, "level": 0} if stored.codec == "jpeg2000" else None,
            predictor=stored.predictor if stored.predictor > 1 else None,
            metadata=None,
        )
    image = TiffImage(path)
    np.testing.assert_array_equal(image.read(image.levels[0].window), pixels)
    inner = Window(y=32, x=48, height=32, width=48)  # one whole tile: straight into the array
    np.testing.assert_array_equal(image.read(inner), pixels[32:64, 48:96])


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("stored", ["RGB", "YCBCR"])
def test_jpeg_tiles_have_tifffiles_colors(tmp_path, stored, subsampling):
    path = tmp_path / "a.tif"
    smooth = np.repeat(np.repeat(place(20, 26, 3, "uint8") % 200, 8, axis=0), 8, axis=1)
    arguments = {"level": 95, "outcolorspace": stored}
    tifffile.imwrite(path, smooth, tile=(64, 48), photometric="rgb", compression="jpeg", subsampling=subsampling, compressionargs=arguments)
    image = TiffImage(path)
    pixels = image.read(image.levels[0].window)
    np.testing.assert_array_equal(pixels, tifffile.imread(path))
    assert np.abs(pixels.astype(int) - smooth).mean() < 8


def test_planes_stored_apart_are_joined(tmp_path):
    path = tmp_path / "a.tif"
    pixels = place(100, 130, 3, "uint8")
    planes = np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(path, planes, tile=(32, 48), photometric="rgb", planarconfig="separate", compression="lzw", predictor=2)
    image = TiffImage(path)
    assert image.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(image.read(image.levels[0].window), pixels)
    np.testing.assert_array_equal(image.read(image.levels[0].window, channels=[2, 0, 2]), pixels[:, :, [2, 0, 2]])


def test_rgb_jpeg_tiles_without_an_adobe_marker_are_not_color_transformed(tmp_path):
    """Aperio's tiles: nothing in the JPEG says that its components are red, green and blue."""
    path = tmp_path / "a.tif"
    red = np.zeros((64, 64, 3), np.uint8)
    red[:, :, 0] = 200
    tile = imagecodecs.jpeg8_encode(red, colorspace="RGB", outcolorspace="RGB")
    adobe = tile.index(b"\xff\xee")
    bare = tile[:adobe] + tile[adobe + 16 :]
    assert b"Adobe" not in bare
    tifffile.imwrite(path, iter([bare]), shape=(64, 64, 3), dtype="uint8", tile=(64, 64), compression="jpeg", photometric="rgb")
    pixels = TiffImage(path).read(Window(y=0, x=0, height=64, width=64))
    assert np.abs(pixels.astype(int) - red).max() <= 2


def test_grey_jpeg(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, place(96, 96, 1, "uint8")[:, :, 0] // 2, tile=(32, 32), compression="jpeg", photometric="minisblack")
    image = TiffImage(path)
    assert image.channels == ("gray",)
    np.testing.assert_array_equal(image.read(image.levels[0].window)[:, :, 0], tifffile.imread(path))


def test_colors_of_a_jpeg_tile_with_a_jfif_header_are_its_own(tmp_path):
    """Bio-Formats writes YCbCr JPEGs with JFIF headers and calls them RGB: the header is right."""
    path = tmp_path / "a.tif"
    red = np.zeros((64, 64, 3), np.uint8)
    red[:, :, 0] = 200
    tile = simplejpeg.encode_jpeg(red, 95)
    assert b"JFIF" in tile
    tifffile.imwrite(path, iter([tile]), shape=(64, 64, 3), dtype="uint8", tile=(64, 64), compression="jpeg", photometric="rgb")
    pixels = TiffImage(path).read(Window(y=0, x=0, height=64, width=64))
    assert np.abs(pixels.astype(int) - red).max() <= 2


@pytest.mark.parametrize("compression", [33003, 33005])
def test_aperio_jpeg2000_is_openslides(tmp_path, compression):
    path = tmp_path / "a.svs"
    pixels = place(64, 64, 3, "uint8")
    tile = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0, mct=False)
    tifffile.imwrite(
        path,
        iter([tile]),
        shape=(64, 64, 3),
        dtype="uint8",
        tile=(64, 64),
        compression=compression,
        photometric="rgb",
        description="Aperio Image Library v1\r\n64x64|MPP = 0.25",
        metadata=None,
    )
    with openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, (64, 64)))[:, :, :3]
    image = TiffImage(path)
    np.testing.assert_array_equal(image.read(image.levels[0].window), expected)
    assert (image.codec, image.mpp) == ("jpeg2000", (0.25, 0.25))


def test_one_whole_tile_is_decoded_into_out_and_nowhere_else(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, place(96, 96, 3, "uint8"), tile=(32, 32), compression="jpeg", photometric="ycbcr")
    image = TiffImage(path)
    slab = np.empty((4, 32, 32, 3), np.uint8)
    window = Window(y=32, x=64, height=32, width=32)
    made = []
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: made.append(a) or empty(*a, **k))
    assert image.read(window, out=slab[2]).base is slab
    assert made == []
    monkeypatch.undo()
    np.testing.assert_array_equal(slab[2], tifffile.imread(path)[32:64, 64:])
