"""The coarse look is exact means in an exact frame; the scorers find what people find, on drawn slides and on real ones."""

from __future__ import annotations

import tracemalloc
from typing import Any, ClassVar

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.data import immunohistochemistry

from patchdrive.models.descriptor import Descriptor
from patchdrive.pipeline.coarse import Coarse, block_means, coarse_look, look_bytes
from patchdrive.pipeline.glance import thumbnail_of, traits_of
from patchdrive.pipeline.run import run
from patchdrive.pipeline.saliency import complexity, load_scorer, score_look, valid
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.synthetic_slide import CELL, draw_tissue, render
from patchdrive.pipeline.tissue import tissue
from patchdrive.readers import Level, MemoryImage, Window, open_image
from patchdrive.readers.errors import ReadError, SettingsError

GLASS = (238, 238, 235)
EOSIN = (232, 190, 214)
FAINT = (233, 222, 229)
HEMATOXYLIN = (110, 80, 150)


def all_valid(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.ones(pixels.shape[:2], np.bool_)


def worth(pixels: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    return tissue(pixels, all_valid(pixels) if mask is None else mask) >= 0.5


def glass_slide(height: int = 200, width: int = 240, *, noise: float = 1.0, seed: int = 0) -> NDArray[np.float64]:
    return np.full((height, width, 3), GLASS, np.float64) + np.random.default_rng(seed).normal(0, noise, (height, width, 3))


def disc(shape: tuple[int, ...], y: float, x: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - y, columns - x) < radius


def as_bytes(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


# --- the coarse look


def slow_means(pixels: NDArray[Any], mask: NDArray[np.bool_], by_y: int, by_x: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The obvious twin of `block_means`."""
    shape = (-(-pixels.shape[0] // by_y), -(-pixels.shape[1] // by_x))
    means, seen = np.zeros((*shape, pixels.shape[2])), np.zeros(shape, np.bool_)
    for y in range(shape[0]):
        for x in range(shape[1]):
            part = (slice(y * by_y, (y + 1) * by_y), slice(x * by_x, (x + 1) * by_x))
            known = pixels[part][mask[part]].astype(np.float64)
            seen[y, x] = len(known) > 0
            for channel in range(pixels.shape[2]):
                finite = known[:, channel][np.isfinite(known[:, channel])]
                means[y, x, channel] = finite.mean() if finite.size else 0.0
    return means, seen


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), by_y=st.integers(1, 9), by_x=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32", "bool"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_block_means_equal_their_slow_twin(height, width, by_y, by_x, dtype, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2 if dtype == "bool" else 30_000, size=(height, width, 2)).astype(dtype)
    if dtype == "float32":
        pixels[rng.random(pixels.shape) < 0.2] = np.nan
    mask = rng.random((height, width)) < 0.7
    means, seen = slow_means(pixels, mask, by_y, by_x)
    got = block_means(pixels, mask, by_y, by_x)
    np.testing.assert_allclose(got[:, :, :-1], means, rtol=1e-12)
    np.testing.assert_array_equal(got[:, :, -1] > 0, seen)


def place(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, (x + y) % 239], axis=2).astype(np.uint8)


def test_an_image_without_a_pyramid_is_shrunk_by_exact_means():
    stored = place(1003, 777)
    look = coarse_look(MemoryImage([stored], mpp=(0.5, 0.5), tile=64), microns=8.0)
    assert look.level == Level(index=0, height=63, width=49, downsample_y=16.0, downsample_x=16.0, tile_height=63, tile_width=49)
    means, _ = slow_means(stored, all_valid(stored), 16, 16)
    assert look.pixels.dtype == np.uint8
    np.testing.assert_array_equal(look.pixels, np.rint(means))
    assert look.mask.all()


@settings(max_examples=25, deadline=None)
@given(height=st.integers(40, 300), width=st.integers(40, 300), tile=st.sampled_from([16, 48, 50, 256]), microns=st.floats(1.0, 9.0))
def test_chunks_that_fit_no_block_change_nothing(height, width, tile, microns):
    stored = place(height, width)
    look = coarse_look(MemoryImage([stored], mpp=(0.5, 0.25), tile=tile), microns=microns)
    by_y, by_x = int(look.level.downsample_y), int(look.level.downsample_x)
    assert (by_y, by_x) == (look.level.downsample_y, look.level.downsample_x)
    assert 0.5 * by_y <= microns * 1.05
    assert 0.25 * by_x <= microns * 1.05
    assert look.pixels.shape[:2] == look.mask.shape == (look.level.height, look.level.width) == (-(-height // by_y), -(-width // by_x))
    np.testing.assert_array_equal(look.pixels, np.rint(slow_means(stored, all_valid(stored), by_y, by_x)[0]))


def test_the_number_of_threads_changes_no_byte():
    image = MemoryImage([place(900, 1100)], mpp=(0.25, 0.25), tile=64)
    looks = [coarse_look(image, workers=workers) for workers in (1, 5)]
    assert looks[0].pixels.tobytes() == looks[1].pixels.tobytes()
    assert looks[0].mask.tobytes() == looks[1].mask.tobytes()


def test_a_stored_level_near_enough_is_read_as_it_is():
    levels = [place(800, 1200), place(200, 301), place(50, 75)]
    image = MemoryImage(levels, mpp=(0.5, 0.5))
    look = coarse_look(image)  # 8 um is a downsample of 16
    assert look.level == image.levels[2]
    np.testing.assert_array_equal(look.pixels, levels[2])


def test_the_mpp_given_goes_before_the_images_own():
    image = MemoryImage([place(640, 640)], mpp=(8.0, 8.0))
    assert coarse_look(image).level.downsample_y == 1.0
    assert coarse_look(image, mpp=(1.0, 2.0)).level.downsample_y == 8.0
    assert coarse_look(image, mpp=(1.0, 2.0)).level.downsample_x == 4.0


def test_an_unknown_pixel_size_gives_a_look_between_half_and_all_of_the_longest_side():
    look = coarse_look(MemoryImage([place(300, 1000)]), max_side=200)
    assert (look.level.downsample_y, look.level.downsample_x) == (10.0, 10.0)
    small = coarse_look(MemoryImage([place(30, 90)]), max_side=200)
    assert small.level.downsample_x == 1.0


def test_no_look_is_longer_than_asked():
    look = coarse_look(MemoryImage([place(700, 900)], mpp=(8.0, 8.0)), max_side=256)
    assert max(look.pixels.shape) <= 256
    assert look.level.downsample_x == 4.0


def test_means_are_over_valid_pixels_only():
    stored = np.zeros((8, 8, 2), np.uint16)
    stored[:4, :2] = (100, 200)
    look = coarse_look(MemoryImage([stored], mpp=(2.0, 2.0), nodata=0), microns=8.0)
    np.testing.assert_array_equal(look.mask, [[True, False], [False, False]])
    np.testing.assert_array_equal(look.pixels[0, 0], (100, 200))


# --- what cannot be decoded


class Holed(MemoryImage):
    """Some of its tiles cannot be decoded: {level: windows}."""

    holes: ClassVar[dict[int, list[Window]]] = {}

    def read(self, window, *, level=0, channels=None, out=None):
        if any(window.intersect(hole) for hole in self.holes.get(level, [])):
            raise ReadError(f"a tile of level {level} is torn")
        return super().read(window, level=level, channels=channels, out=out)


def holed(levels, holes, **facts):
    image = Holed(levels, **facts)
    image.holes = holes
    return image


@pytest.mark.parametrize("nodata", [None, 255])
def test_a_torn_tile_of_the_level_is_unknown_and_nothing_else_is(nodata):
    level = place(800, 900)
    hole = Window(y=256, x=512, height=256, width=256)
    whole = coarse_look(MemoryImage([level], mpp=(8.0, 8.0), nodata=nodata, tile=256))
    look = coarse_look(holed([level], {0: [hole]}, mpp=(8.0, 8.0), nodata=nodata, tile=256))
    torn = np.zeros((800, 900), np.bool_)
    torn[256:512, 512:768] = True
    np.testing.assert_array_equal(look.unknown, torn)
    np.testing.assert_array_equal(look.mask, whole.mask & ~torn)
    np.testing.assert_array_equal(look.pixels[~torn], whole.pixels[~torn])
    assert look.possible.all()
    assert (look.torn, look.reason) == (1, "a tile of level 0 is torn")
    assert (whole.unknown, whole.torn) == (None, 0)


@pytest.mark.parametrize("by", [4, 6])
def test_a_torn_tile_that_is_shrunk_leaves_its_blocks_unknown(by):
    level = place(1000, 1100)
    hole = Window(y=250, x=500, height=250, width=250)
    look = coarse_look(holed([level], {0: [hole]}, mpp=(8.0 / by, 8.0 / by), tile=250))
    assert look.level.downsample_y == by
    mask = all_valid(level)
    mask[250:500, 500:750] = False
    np.testing.assert_array_equal(look.pixels, np.rint(slow_means(np.where(mask[:, :, None], level, 0), mask, by, by)[0]))
    touched = np.zeros(look.mask.shape, np.bool_)
    touched[250 // by : -(-500 // by), 500 // by : -(-750 // by)] = True
    np.testing.assert_array_equal(look.unknown, touched)


@pytest.mark.parametrize("name", ["tissue", "valid", "complexity"])
def test_what_nobody_could_see_is_just_worth_reading(name):
    picture = as_bytes(glass_slide(600, 700))
    hole = Window(y=256, x=256, height=256, width=256)
    look = coarse_look(holed([picture], {0: [hole]}, mpp=(8.0, 8.0), tile=256))
    scores = score_look(look, load_scorer(name), name)
    np.testing.assert_array_equal(scores[256:512, 256:512], 0.5)
    if name == "tissue":
        assert scores[look.mask].max() < 0.5
    blind = coarse_look(holed([picture], {0: [hole]}, mpp=(2.0, 2.0), tile=256))
    assert (score_look(blind, load_scorer(name), name)[64:128, 64:128] >= 0.5).all()


def test_a_level_of_which_nothing_can_be_decoded_is_an_error():
    levels = [place(1024, 1024), place(128, 128)]
    with pytest.raises(ReadError, match=r"looks at level 1 .* not one of its 4 tiles .*is torn"):
        coarse_look(holed(levels, {1: [Window(y=0, x=0, height=128, width=128)]}, mpp=(1.0, 1.0), tile=64))


def test_a_tile_torn_at_every_level_is_planned_and_counted_by_the_feed(tmp_path):
    level = place(1000, 1000)
    hole = Window(y=500, x=750, height=250, width=250)
    image = holed([level], {0: [hole]}, mpp=(0.5, 0.5), tile=250)
    report = run(
        image,
        Descriptor(traits_of(image)),
        tmp_path / "s.zarr",
        settings=RunSettings(saliency="valid", patch_size=250, device="cpu", batch_size=4),
    )
    assert (report.planned, report.done, report.failed) == (16, 15, 1)


def test_a_truncated_tiff_is_looked_at_as_far_as_it_goes(tmp_path):
    path = tmp_path / "cut.tif"
    stored = np.random.default_rng(0).integers(0, 200, (1024, 1024, 3)).astype(np.uint8)
    tifffile.imwrite(path, stored, tile=(256, 256), photometric="rgb", compression="zlib", resolution=(1250, 1250), resolutionunit=3)
    whole = coarse_look(open_image(path))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    look = coarse_look(open_image(path))
    assert look.unknown is not None
    assert 3 <= look.torn <= 6
    assert not look.unknown[: look.unknown.shape[0] // 2].any()
    np.testing.assert_array_equal(look.pixels[~look.unknown], whole.pixels[~look.unknown])


# --- memory


def stained(height: int, width: int, channels: int, dtype: str) -> NDArray[Any]:
    """Glass with stain, of any dtype."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    picture = np.where(np.sin(rows / 37) * np.sin(columns / 29) > 0.2, 0.5, 0.93)[:, :, None] * np.linspace(1, 0.9, channels)
    return (top * (picture + rng.random((height, width, 1)) * 0.02)).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "facts"),
    [
        ((1500, 1600, 3), "uint8", {"mpp": (8.0, 8.0)}),
        ((400, 500, 3), "uint8", {"mpp": (8.0, 8.0)}),
        ((3000, 3100, 3), "uint8", {"mpp": (4.0, 4.0)}),
        ((4500, 4500, 3), "uint8", {"mpp": (0.25, 0.25)}),
        ((1300, 1200, 5), "uint16", {"mpp": (8.0, 8.0)}),
        ((2500, 2500, 5), "uint16", {"mpp": (2.0, 2.0)}),
        ((1500, 1500, 4), "uint16", {"nodata": 0}),
        ((2100, 2100, 1), "float32", {}),
    ],
    ids=["as-is", "small", "shrunk", "no-pyramid", "multichannel", "multichannel-shrunk", "nodata", "float"],
)
def test_what_a_glance_holds_is_known_before_it_is_made(shape, dtype, facts):
    image = MemoryImage([stained(*shape, dtype)], **facts)
    peaks = []
    for name in ("tissue", "valid", "complexity"):
        tracemalloc.start()
        look = coarse_look(image)
        scores = score_look(look, load_scorer(name), name)
        thumbnail_of(look.pixels, look.mask, image.channels, max(1, -(-max(look.mask.shape) // 1024)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del look, scores
    assert max(peaks) <= look_bytes(image, mpp=image.mpp) <= 2 * max(peaks)


# --- tissue


def test_strong_faint_and_empty_places_on_glass():
    picture = glass_slide()
    strong, faint = disc(picture.shape, 60, 60, 35), disc(picture.shape, 140, 170, 30)
    picture[strong] += np.subtract(HEMATOXYLIN, GLASS)
    picture[faint] += np.subtract(FAINT, GLASS)
    found = worth(as_bytes(picture))
    assert overlap(found, strong | faint) > 0.93


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_empty_slide_has_no_tissue(noise, seed):
    assert not worth(as_bytes(glass_slide(noise=noise, seed=seed))).any()


def test_uneven_light_and_dust_are_not_tissue():
    picture = glass_slide()
    picture -= 5 * np.linspace(0, 1, picture.shape[1])[None, :, None]
    picture[disc(picture.shape, 50, 50, 1.5)] = 60
    assert not worth(as_bytes(picture)).any()


def test_a_crop_of_nothing_but_tissue_is_worth_reading():
    rng = np.random.default_rng(0)
    shade = gaussian_filter(rng.normal(size=(150, 150)), 4)[:, :, None] * 60
    assert worth(as_bytes(np.array(EOSIN) - 25 + shade)).mean() > 0.98
    assert worth(as_bytes(np.array(HEMATOXYLIN) + shade)).mean() > 0.98


@pytest.mark.parametrize(("radius", "closed"), [(6, True), (30, False)])
def test_small_holes_are_closed_and_large_ones_stay_open(radius, closed):
    picture = glass_slide(300, 300)
    ring = disc(picture.shape, 150, 150, 100) & ~disc(picture.shape, 150, 150, radius)
    picture[ring] += np.subtract(EOSIN, GLASS) - 20
    assert bool(worth(as_bytes(picture))[150, 150]) is closed


@pytest.mark.parametrize("ink", [(20, 60, 170), (25, 120, 60), (20, 20, 24)], ids=["blue", "green", "black"])
def test_pen_is_not_tissue(ink):
    picture = glass_slide()
    stained = disc(picture.shape, 80, 70, 40)
    picture[stained] += np.subtract(HEMATOXYLIN, GLASS)
    picture[20:180, 180:192] = ink
    found = worth(as_bytes(picture))
    assert not found[22:178, 182:190].any()
    assert overlap(found[:, :150], stained[:, :150]) > 0.93


def test_glass_of_very_few_shades_is_still_glass():
    picture = np.full((10, 10, 3), 60, np.uint8)
    picture[5:] = 192
    picture[0, 0] = 248  # the mode of the histogram, smoothed, lies between the two
    assert np.isfinite(tissue(picture, all_valid(picture))).all()


def test_what_the_scanner_did_not_scan_is_neither_glass_nor_tissue():
    picture = glass_slide(300, 300)
    stained = disc(picture.shape, 200, 200, 40)
    picture[stained] += np.subtract(EOSIN, GLASS)
    for fill in (0, 255):
        scanned = as_bytes(picture)
        scanned[:110] = fill
        found = worth(scanned)
        assert overlap(found, stained) > 0.9
        assert not found[:100].any()


def test_fluorescence_is_found_on_the_dark():
    rng = np.random.default_rng(0)
    signal = rng.normal(4, 1.5, (200, 240, 3)).clip(0)
    cells = disc(signal.shape, 90, 100, 50)
    signal[cells] += (0, 0, 40)
    assert overlap(worth(as_bytes(signal)), cells) > 0.9
    assert not worth(as_bytes(rng.normal(4, 1.5, (200, 240, 3)).clip(0))).any()
    assert not worth(np.zeros((50, 50, 3), np.uint8)).any()


def test_sixteen_bit_fluorescence_of_many_channels():
    rng = np.random.default_rng(1)
    signal = rng.normal(300, 20, (200, 240, 5))
    cells = disc(signal.shape, 90, 100, 50)
    signal[cells, 3] += 600
    assert overlap(worth(signal.astype(np.uint16)), cells) > 0.9
    assert not worth(rng.normal(300, 20, (200, 240, 5)).astype(np.uint16)).any()


def test_what_is_not_valid_is_not_tissue():
    picture = glass_slide()
    stained = disc(picture.shape, 100, 100, 60)
    picture[stained] += np.subtract(EOSIN, GLASS) - 30
    mask = np.ones(picture.shape[:2], np.bool_)
    mask[:, :100] = False
    found = worth(as_bytes(picture), mask)
    assert not found[:, :100].any()
    assert found[100, 110]
    assert not worth(as_bytes(picture), np.zeros_like(mask)).any()


def test_the_synthetic_slides_tissue_is_found():
    drawn = draw_tissue(2, 2048, share=0.4)
    stored = render(drawn, Window(y=0, x=0, height=2048, width=2048))
    look = coarse_look(MemoryImage([stored], mpp=(0.5, 0.5)))
    assert look.level.downsample_y == CELL
    found = score_look(look, tissue, "tissue") >= 0.5
    assert overlap(found, drawn.depth > 0) > 0.9


def test_the_bundled_photograph_is_mostly_tissue():
    look = coarse_look(MemoryImage([immunohistochemistry()], mpp=(0.5, 0.5)), microns=4.0)
    found = score_look(look, tissue, "tissue") >= 0.5
    assert 0.7 < found.mean() < 0.98
    assert not found[40:46, 0:4].any()  # the lumen on the left


# --- real slides


def opened(path, *, mpp: float | None = None) -> MemoryImage:
    if path.name.endswith(".ome.tif"):
        assert mpp is not None
        return MemoryImage([tifffile.imread(path)], mpp=(mpp, mpp))
    with openslide.OpenSlide(path) as slide:
        size = tuple(float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "yx")
        whole = [np.asarray(slide.read_region((0, 0), index, shape).convert("RGB")) for index, shape in enumerate(slide.level_dimensions)]
    return MemoryImage(whole, mpp=(size[0], size[1]))


@pytest.mark.parametrize(
    ("name", "mpp", "least", "most"),
    [
        ("wsi/CMU-1-Small-Region.svs", None, 0.36, 0.46),
        ("wsi/test3-DAPI-2-(387).ndpi", None, 0.65, 0.85),
        ("wsi/OS-1-detail.ome.tif", 0.25, 0.99, 1.0),
        ("wsi/OS-2-ndpi.ome.tif", 0.25, 0.80, 0.95),
        ("wsi/OS-2-vsi.ome.tif", 0.35, 0.75, 0.95),
        ("wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm", None, 0.30, 0.42),
        ("wsi/multiframe_camelyon_challenge_image.dcm", None, 0.20, 0.33),
    ],
)
def test_real_slides_have_the_share_of_tissue_that_one_sees(real_file, name, mpp, least, most):
    look = coarse_look(opened(real_file(name), mpp=mpp))
    share = (score_look(look, tissue, "tissue") >= 0.5).mean()
    assert least <= share <= most


def test_the_same_stain_from_two_scanners_gives_the_same_tissue(real_file):
    shares = [
        (score_look(coarse_look(opened(real_file(name), mpp=mpp)), tissue, "tissue") >= 0.5).mean()
        for name, mpp in (("wsi/OS-2-ndpi.ome.tif", 0.25), ("wsi/OS-2-vsi.ome.tif", 0.35))
    ]
    assert abs(shares[0] - shares[1]) < 0.08


# --- valid


def test_undeclared_collars_are_not_valid():
    scene = np.random.default_rng(0).integers(200, 900, (120, 150, 2)).astype(np.uint16)
    rows, columns = np.mgrid[:120, :150]
    collar = columns < 30 - rows // 5
    scene[collar] = 0
    scene[60:66, 80:90] = 0  # a dark lake inside is data
    scene[118:, 140:] = 0  # so is a little shadow at the border
    np.testing.assert_array_equal(valid(scene, all_valid(scene)) > 0, ~collar)
    mask = all_valid(scene)
    mask[:40] = False
    assert not valid(scene, mask)[:40].any()


def test_a_white_collar_is_not_valid_but_saturated_clouds_are():
    scene = np.random.default_rng(0).integers(20, 90, (120, 150, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:120, :150]
    collar = (columns < 30 - rows // 5) | (columns > 140 - rows // 5)
    framed, cloudy = scene.copy(), scene.copy()
    framed[collar] = 255
    cloud = disc(scene.shape, 10, 60, 30) | disc(scene.shape, 110, 20, 25) | disc(scene.shape, 60, 149, 20)
    cloudy[cloud] = 255
    np.testing.assert_array_equal(valid(framed, all_valid(scene)) > 0, ~collar)
    assert valid(cloudy, all_valid(scene)).all()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("rs/landsat8/LC81070352015122LGN00_B4.tif", 0.68),
        ("rs/sentinel2_T29UNU_20221005/T29UNU_20221005T115411_B04_60m.jp2", 0.60),
        ("rs/sentinel2_T29UNU_20221005/T29UNU_20221005T115411_TCI_60m.jp2", 0.60),
    ],
)
def test_real_scenes_lose_their_collar_and_nothing_else(real_file, name, share):
    with rasterio.open(real_file(name)) as scene:
        pixels = np.moveaxis(scene.read(), 0, 2)
    found = valid(pixels, all_valid(pixels)) > 0
    assert found.mean() == pytest.approx(share, abs=0.01)
    np.testing.assert_array_equal(found, (pixels != 0).any(axis=2) | found)
    assert ((pixels != 0).any(axis=2) & ~found).sum() == 0


# --- complexity


def test_complexity_rises_with_detail_and_not_with_brightness():
    rng = np.random.default_rng(0)
    flat = np.full((64, 64, 3), 180, np.uint8)
    busy = as_bytes(180 + 120 * gaussian_filter(rng.normal(size=(64, 64)), 2)[:, :, None].repeat(3, axis=2) * 4)
    assert complexity(flat, all_valid(flat)).max() < 1e-3
    assert complexity(busy, all_valid(busy)).mean() > 0.5
    brighter = as_bytes(busy * 0.5 + 100)
    np.testing.assert_allclose(complexity(as_bytes(busy * 0.5 + 20), all_valid(busy)), complexity(brighter, all_valid(busy)), atol=0.05)


def test_complexity_at_a_place_does_not_depend_on_the_rest():
    rng = np.random.default_rng(0)
    picture = as_bytes(128 + 30 * rng.normal(size=(96, 96, 1)))
    other = picture.copy()
    other[60:] = 255 - other[60:]
    np.testing.assert_array_equal(complexity(picture, all_valid(picture))[:40], complexity(other, all_valid(other))[:40])


def test_the_edge_of_the_data_is_no_detail():
    scene = np.full((80, 80, 1), 2000, np.uint16)
    mask = all_valid(scene)
    mask[:, :30] = False
    scene[:, :30] = 0
    scores = complexity(scene, mask)
    assert scores.max() < 0.05
    assert complexity(scene, all_valid(scene)).max() < 0.05  # nor where nobody declared it


def test_a_blob_has_the_response_of_the_formula():
    """|s^2 LoG_s| of a Gaussian blob of deviation b and height a is 2 a b^2 s^2 / (b^2 + s^2)^2 at its centre."""
    rows, columns = np.mgrid[:65, :65] - 32
    blob, height = 3.2, 0.4
    picture = (height * np.exp(-(rows**2 + columns**2) / (2 * blob**2)))[:, :, None].astype(np.float32)
    wanted = max(2 * height * blob**2 * s**2 / (blob**2 + s**2) ** 2 for s in (1.6, 3.2))
    assert complexity(picture, all_valid(picture))[32, 32] == pytest.approx(wanted / (wanted + 0.03), rel=0.03)


# --- scorers by name, and what they must return


def lopsided(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)


def look_of(height: int, width: int) -> Coarse:
    image = MemoryImage([place(height, width)])
    return coarse_look(image)


@pytest.mark.parametrize(("name", "function"), [("tissue", tissue), ("valid", valid), ("complexity", complexity)])
def test_built_in_scorers_have_names(name, function):
    assert load_scorer(name) is function


def test_your_own_scorer_is_loaded_by_module_and_function():
    scorer = load_scorer("skimage.data:immunohistochemistry")
    assert callable(scorer)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tisue", "tissue, valid, complexity"),
        ("no.such.module:f", "cannot be imported"),
        ("numpy:no_such_function", "cannot be imported"),
        ("numpy:pi", "must be a function"),
        (":f", "cannot be imported"),
    ],
)
def test_a_scorer_that_is_not_there_is_refused(name, says):
    with pytest.raises(SettingsError, match=says):
        load_scorer(name)


def test_scores_are_zero_where_nothing_is_valid():
    look = look_of(20, 30)
    look.mask[:, :10] = False
    scores = score_look(look, lopsided, "mine")
    assert not scores[:, :10].any()
    np.testing.assert_array_equal(scores[:, 10:], lopsided(look.pixels, look.mask)[:, 10:])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda _, mask: mask.astype(np.float64), "float64"),
        (lambda _, mask: mask[1:].astype(np.float32), r"\(19, 30\)"),
        (lambda _, mask: mask * np.float32(1.5), "1.5"),
        (lambda _, mask: mask * np.float32(np.nan), "nan"),
        (lambda _, mask: mask.tolist(), "list"),
    ],
)
def test_what_is_no_saliency_is_refused(wrong, says):
    with pytest.raises(SettingsError, match=rf"must return a float32 array.*{says}"):
        score_look(look_of(20, 30), wrong, "mine")
