"""SlideImage against OpenSlide's own whole levels and tifffile's pages, on real slides and on slides written here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
import tifffile
from contract import ImageContract, some_windows
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.slide import SlideImage, cut, exact_origin, round_half_up

TIFFS = ("wsi/CMU-1-Small-Region.svs", "wsi/boxes.tiff", "wsi/panimg/dzi_tiff_valid_tiff.tif")
OTHERS = (
    "wsi/test3-DAPI-2-(387).ndpi",
    "wsi/highdicom_sm_image.dcm",
    "wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm",
    "wsi/multiframe_camelyon_challenge_image.dcm",
    "wsi/panimg/dicom_wsi/full_with_bot/full_with_bot.dcm",
    "wsi/panimg/dicom_wsi/sparse_no_bot/sparse_no_bot.dcm",
)
NDPI = "wsi/test3-DAPI-2-(387).ndpi"


def tiled_pages(path):
    """Every tiled page, as (y, x, c); tifffile decodes each tile by itself."""
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages if page.is_tiled]


def whole_levels(path):
    """OpenSlide's RGBA of whole levels: from the origin no downsample is fractional."""
    with openslide.OpenSlide(path) as slide:
        return [np.array(slide.read_region((0, 0), level, size)) for level, size in enumerate(slide.level_dimensions)]


@pytest.fixture(scope="module", params=TIFFS)
def tiff_slide(request, real_file):
    """A path, and what it holds."""
    path = real_file(request.param)
    return path, tiled_pages(path)


@pytest.fixture(scope="module", params=OTHERS)
def other_slide(request, real_file):
    """A path, and what it holds, as RGBA."""
    path = real_file(request.param)
    return path, whole_levels(path)


class TestTiffsThroughOpenSlide(ImageContract):
    """Their pyramids have downsamples such as 4.016 and 8.086, which OpenSlide blends where nobody takes care."""

    @pytest.fixture
    def image(self, tiff_slide):
        return SlideImage(tiff_slide[0])

    @pytest.fixture
    def expected(self, tiff_slide):
        return tiff_slide[1]

    def test_no_level_is_blended(self, image):
        assert "patchdrive.blended-levels" not in image.properties


class TestOtherFormats(ImageContract):
    @pytest.fixture
    def image(self, other_slide):
        return SlideImage(other_slide[0])

    @pytest.fixture
    def expected(self, other_slide):
        return [rgba[:, :, :3] for rgba in other_slide[1]]

    def test_a_slide_without_mask_has_no_transparent_pixel(self, image, other_slide):
        assert image.has_mask or all((rgba[:, :, 3] == 255).all() for rgba in other_slide[1])


def place(height, width):
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = tile parity."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, (x // 64 + y // 64) % 2 * 255], axis=2).astype(np.uint8)


def write_slide(path, levels, **options):
    """A generic tiled TIFF; OpenSlide takes it for a slide."""
    with tifffile.TiffWriter(path) as tiff:
        for index, pixels in enumerate(levels):
            tiff.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(index > 0), metadata=None, **options)


class TestFractionalLevels(ImageContract):
    """Downsample 1203/300 and 1001/250 average to 4.007: every cell has an exact origin before it."""

    @pytest.fixture
    def expected(self):
        base = np.random.default_rng(0).integers(0, 256, (1001, 1203, 3), np.uint8)
        return [base, base[2::4, 1::4][:250, :300].copy()]

    @pytest.fixture
    def image(self, tmp_path, expected):
        write_slide(tmp_path / "slide.tif", expected)
        return SlideImage(tmp_path / "slide.tif")


@pytest.fixture(scope="module")
def blended(tmp_path_factory):
    """Downsample 4.0001: whole level-0 pixels hit the level's pixels only near its start. Values change slowly."""
    base = np.minimum(np.arange(40001) // 160, 255).astype(np.uint8)
    levels = [np.broadcast_to(base[:, None, None], (40001, 65, 3)), np.broadcast_to(base[2::4, None, None][:10000], (10000, 16, 3))]
    path = tmp_path_factory.mktemp("blended") / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        for index, pixels in enumerate(levels):
            tiff.write(np.ascontiguousarray(pixels), tile=(64, 64), photometric="rgb", subfiletype=int(index > 0), compression="zlib")
    return SlideImage(path), levels


def test_a_level_that_openslide_cannot_hit_says_so(blended):
    image, levels = blended
    assert image.properties["patchdrive.blended-levels"] == "1"
    pixels = image.read(image.levels[1].window, level=1)
    assert np.abs(pixels.astype(int) - levels[1]).max() <= 1  # neighbours differ by at most one


def test_a_blended_pixel_has_one_value_in_every_window(blended):
    image, _ = blended
    level = image.levels[1]
    whole = image.read(level.window, level=1)
    for window in some_windows(level.height, level.width, count=20):
        np.testing.assert_array_equal(image.read(window, level=1), whole[window.within(level.window)])


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    tile=st.sampled_from([(8, 3968), (10, 10), (64, 64), (240, 240), (512, 512), (1, 62)]),
    downsample=st.one_of(st.sampled_from([1.0, 2.0, 64.0]), st.floats(1.001, 40)),
    data=st.data(),
)
def test_cut_covers_the_window_once_and_asks_for_no_pixel_outside(height, width, tile, downsample, data):
    level = Level(
        index=1,
        height=height,
        width=width,
        downsample_y=downsample,
        downsample_x=downsample,
        tile_height=min(tile[0], height),
        tile_width=min(tile[1], width),
    )
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(y=y, x=x, height=data.draw(st.integers(1, height - y)), width=data.draw(st.integers(1, width - x)))
    seen = np.zeros((window.height, window.width), np.uint8)
    for part, ask in cut(window, level, downsample):
        seen[part.within(window)] += 1
        assert ask.contains(part)
        assert level.window.contains(ask)
        assert ask.width <= 4096
    assert (seen == 1).all()


@given(start=st.integers(0, 100_000), downsample=st.floats(1, 64))
def test_an_exact_origin_is_hit_by_a_whole_pixel(start, downsample):
    origin = exact_origin(start, downsample)
    if origin is not None:
        assert start - 128 <= origin <= start
        assert round_half_up(origin * downsample) / downsample == pytest.approx(origin, abs=1 / 512)


def test_holes_are_white_and_masked(real_file):
    path = real_file("wsi/panimg/no_dzi.tif")
    image = SlideImage(path)
    level = image.levels[1]
    with openslide.OpenSlide(path) as slide:
        rgba = np.array(slide.read_region((0, 0), 1, (level.width, level.height)))
    pixels, mask = image.read(level.window, level=1), image.read_mask(level.window, level=1)
    np.testing.assert_array_equal(mask, rgba[:, :, 3] > 0)
    assert not mask.all()
    assert (pixels[~mask] == 255).all()
    np.testing.assert_array_equal(pixels[mask], rgba[:, :, :3][mask])


def test_what_the_slide_says(real_file):
    ndpi = SlideImage(real_file(NDPI))
    assert [(level.tile_height, level.tile_width) for level in ndpi.levels[:2]] == [(8, 3968), (8, 1984)]
    assert (ndpi.codec, ndpi.has_mask, ndpi.transform, ndpi.crs) == ("jpeg", False, None, None)
    assert ndpi.mpp == pytest.approx((0.2281750559, 0.2281750559))
    anisotropic = SlideImage(real_file("wsi/multiframe_camelyon_challenge_image.dcm"))
    assert (anisotropic.mpp, anisotropic.codec) == ((28.968, 28.969), "jpeg")
    assert SlideImage(real_file("wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm")).codec == "jpeg2000"


@pytest.mark.parametrize(
    "name", ["wsi/boxes.tiff", "wsi/panimg/dzi_tiff_valid_tiff.tif", "wsi/panimg/dicom_wsi/full_no_bot/full_no_bot.dcm"]
)
def test_unbelievable_mpp_is_none(real_file, name):
    assert SlideImage(real_file(name)).mpp is None


def test_associated_images_are_decoded_when_asked_for(real_file):
    path = real_file("wsi/CMU-1-Small-Region.svs")
    image = SlideImage(path)
    assert sorted(image.associated) == ["label", "macro", "thumbnail"]
    with openslide.OpenSlide(path) as slide:
        for name, wanted in slide.associated_images.items():
            np.testing.assert_array_equal(image.associated[name], np.asarray(wanted)[:, :, :3])
    with pytest.raises(KeyError):
        image.associated["portrait"]


def test_identity_survives_moving(real_file, tmp_path):
    path = real_file("wsi/highdicom_sm_image.dcm")
    (tmp_path / "moved.dcm").write_bytes(path.read_bytes())
    assert SlideImage(path).identity == SlideImage(tmp_path / "moved.dcm").identity
    assert SlideImage(path).identity != SlideImage(real_file("wsi/multiframe_camelyon_challenge_image.dcm")).identity


@pytest.fixture
def torn(tmp_path):
    """A slide of 3 x 3 JPEG tiles, the middle one overwritten."""
    path = tmp_path / "torn.tif"
    write_slide(path, [place(192, 192)], compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[4], tiff.pages[0].databytecounts[4]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x00" * length)
    return SlideImage(path)


def test_a_tile_that_fails_does_not_poison_the_others(torn):
    good, bad = Window(y=0, x=0, height=64, width=192), Window(y=70, x=70, height=10, width=10)
    before = torn.read(good)
    for _ in range(2):
        with pytest.raises(ReadError, match=r"columns 70\.\.80 of level 0"):
            torn.read(bad)
        np.testing.assert_array_equal(torn.read(good), before)


def test_threads_that_fail_do_not_fail_their_neighbours(torn):
    good, bad = Window(y=128, x=0, height=64, width=192), Window(y=64, x=64, height=64, width=64)
    wanted = torn.read(good)

    def read(index):
        if index % 3:
            return np.array_equal(torn.read(good), wanted)
        with pytest.raises(ReadError):
            torn.read(bad)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(60)))


def test_a_slide_is_read_again_after_close(real_file):
    image = SlideImage(real_file("wsi/boxes.tiff"))
    before = image.read(image.levels[0].window)
    image.close()
    np.testing.assert_array_equal(image.read(image.levels[0].window), before)


@pytest.mark.parametrize(
    "name", ["broken/histolab_broken.svs", "broken/openslide-python_unopenable.tiff", "omezarr/simple_0.4", "wsi/nothing"]
)
def test_what_openslide_refuses_is_a_format_error(real_file, name):
    with pytest.raises(FormatError, match="OpenSlide cannot open it"):
        SlideImage(real_file("wsi").parent / name)
