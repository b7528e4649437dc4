"""Synthetic images keep their word: the same bytes from a seed, the same pixels in any window, answers only the right scale shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from patchdrive.pipeline.synthetic import (
    SlideTruth,
    draw_canvas,
    draw_landscape,
    scene_field,
    training_field,
    write_scene,
    write_slide,
)
from patchdrive.pipeline.synthetic_disc import DISC_GAP, DISC_RADIUS, draw_disc
from patchdrive.pipeline.synthetic_scene import BANDS, CLASSES, NO_LABEL, WATER, render_scene
from patchdrive.pipeline.synthetic_slide import CELL, DOWNSAMPLES, MPP, draw_tissue, render
from patchdrive.pipeline.synthetic_texture import at_pixels
from patchdrive.readers import Window
from patchdrive.readers.errors import SettingsError


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "small.tiff"
    return path, write_slide(path, side=2080, seed=3, targets=4, lookalikes=8)


@pytest.fixture(scope="module")
def canvas():
    return draw_canvas(11, side=1536)


@pytest.fixture(scope="module")
def landscape():
    return draw_landscape(5, 1024, 1024)


def separation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Area under the curve: how often a value of `first` exceeds one of `second`."""
    rank = np.concatenate([first, second]).argsort().argsort()
    return float((rank[: len(first)].mean() - (len(first) - 1) / 2) / len(second))


# --- the slide


def test_a_seed_gives_the_same_bytes_whatever_the_threads(slide, tmp_path):
    path, truth = slide
    again = write_slide(tmp_path / "small.tiff", side=2080, seed=3, targets=4, lookalikes=8, workers=1)
    assert (tmp_path / "small.tiff").read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(again.targets_yx, truth.targets_yx)
    write_slide(tmp_path / "other.tiff", side=2080, seed=4, targets=4, lookalikes=8)
    assert (tmp_path / "other.tiff").read_bytes() != path.read_bytes()


def test_openslide_sees_its_levels_and_pixel_size(slide):
    path, _ = slide
    with openslide.OpenSlide(path) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert opened.level_dimensions == tuple((2080 // step, 2080 // step) for step in (1, *DOWNSAMPLES))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(MPP, rel=1e-6)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(MPP, rel=1e-6)
        assert opened.detect_format(path) == "generic-tiff"


def test_levels_are_the_means_of_what_was_drawn(slide):
    path, _ = slide
    drawn = render(draw_tissue(3, 2080, targets=4, lookalikes=8), Window(y=0, x=0, height=2080, width=2080)).astype(np.float64)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 1 + len(DOWNSAMPLES)
        assert np.abs(tiff.pages[0].asarray() - drawn).mean() < 4.0
        for page, step in zip(tiff.pages[1:], DOWNSAMPLES, strict=True):
            assert page.tile == (256, 256)
            means = drawn.reshape(2080 // step, step, 2080 // step, step, 3).mean(axis=(1, 3))
            error = np.abs(page.asarray() - means)
            assert error.mean() < 4.0  # what JPEG costs
            assert np.abs(np.roll(page.asarray(), 1, axis=1) - means).mean() > 2 * error.mean()


def test_a_window_shows_the_same_pixels_as_the_whole():
    tissue = draw_tissue(1, 1504, share=0.5, targets=2, lookalikes=2)
    whole = render(tissue, Window(y=0, x=0, height=1504, width=1504))
    rng = np.random.default_rng(0)
    corner = tissue.corners[0]
    places = [(int(corner[0]) + 20, int(corner[1]) - 9), *rng.integers(0, 1300, size=(4, 2)).tolist()]
    for y, x in places:
        window = Window(y=y, x=x, height=int(rng.integers(1, 200)), width=int(rng.integers(1, 200)))
        np.testing.assert_array_equal(render(tissue, window), whole[window.y : window.y_end, window.x : window.x_end])


def test_a_third_of_the_slide_is_tissue_and_its_border_is_glass():
    tissue = draw_tissue(0, 4096)
    assert 0.25 < (tissue.depth > 0).mean() < 0.35
    frame = np.concatenate([tissue.depth[0], tissue.depth[-1], tissue.depth[:, 0], tissue.depth[:, -1]])
    assert frame.max() < 0
    assert render(tissue, Window(y=0, x=0, height=64, width=4096)).min() > 225


def test_discs_lie_in_tissue_apart_from_each_other_and_the_border(slide):
    _, truth = slide
    centres = np.concatenate([truth.targets_yx, truth.lookalikes_yx])
    assert centres.shape == (12, 2)
    assert centres.min() >= DISC_RADIUS + DISC_GAP
    assert centres.max() <= 2080 - DISC_RADIUS - DISC_GAP
    distance = np.hypot(*(centres[:, None] - centres).transpose(2, 0, 1))
    assert distance[~np.eye(12, dtype=bool)].min() >= 2 * DISC_RADIUS + DISC_GAP
    depth = draw_tissue(3, 2080).depth
    assert all(depth[int(y) // CELL, int(x) // CELL] > 0 for y, x in centres)


def test_truth_is_read_back_from_beside_the_slide(slide):
    path, truth = slide
    read = SlideTruth.load(path.with_name("small.truth.json"))
    for field in dataclasses.fields(SlideTruth):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(truth, field.name))


def test_centres_are_where_the_discs_are(slide):
    """A disc is purple (green is its weakest channel by far), which neither brown nor blue stain is."""
    path, truth = slide
    pixels = tifffile.imread(path, key=0).astype(np.float64)
    for y, x in np.concatenate([truth.targets_yx, truth.lookalikes_yx]).tolist():
        part = pixels[int(y) - 40 : int(y) + 40, int(x) - 40 : int(x) + 40]
        purple = np.clip(np.minimum(part[:, :, 0], part[:, :, 2]) - part[:, :, 1] - 12, 0, None)
        rows, columns = np.mgrid[:80, :80] + 0.5
        assert abs((purple * rows).sum() / purple.sum() - 40) < 4
        assert abs((purple * columns).sum() / purple.sum() - 40) < 4


@pytest.mark.parametrize("side", [500, 2050, 16])
def test_a_side_that_makes_no_pyramid_is_refused(side, tmp_path):
    with pytest.raises(SettingsError, match="multiple of 16"):
        write_slide(tmp_path / "x.tiff", side=side)


def test_too_many_discs_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="do not fit"):
        write_slide(tmp_path / "x.tiff", side=1024, targets=40, lookalikes=160)


# --- what tells targets from look-alikes


def test_every_circle_of_both_kinds_holds_the_same_ink():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48] - 23.5
    ring = np.hypot(y, x).astype(int)
    profiles = [
        np.mean([np.bincount(ring.ravel(), draw_disc(rng, target=target)[:, :, 1].ravel())[:21] for _ in range(60)], axis=0)
        for target in (True, False)
    ]
    area = np.bincount(ring.ravel())[:21]
    assert np.abs((profiles[0] - profiles[1]) / area).max() < 2.0  # grey values


def seen_at(step: int, canvas, *, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Grey patches around targets and around look-alikes, (n, cells, cells), as a level at `step` shows them."""
    rng = np.random.default_rng(step)
    kinds: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    half = 24 // step
    while min(map(len, kinds)) < count:
        pixels, targets, lookalikes = training_field(canvas, rng, side=768, targets=9, lookalikes=9)
        level = pixels.reshape(768 // step, step, 768 // step, step, 3).mean(axis=(1, 3, 4))
        for found, centres in zip(kinds, (targets, lookalikes), strict=True):
            corners = np.floor(centres / step).astype(int) - half
            found.extend(level[y : y + 2 * half, x : x + 2 * half] for y, x in corners)
    return np.stack(kinds[0][:count]), np.stack(kinds[1][:count])


def linear_separation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """AUC on the second half of a ridge regression fitted on the first half, over pixels and their squares."""
    both = np.concatenate([first.reshape(len(first), -1), second.reshape(len(second), -1)])
    both = both - both.mean(axis=1, keepdims=True)
    both = np.concatenate([both, both**2], axis=1)
    both = (both - both.mean(axis=0)) / both.std(axis=0)
    truth = np.repeat([1.0, -1.0], [len(first), len(second)])
    odd = np.arange(len(both)) % 2 == 1
    weights = np.linalg.solve(both[~odd].T @ both[~odd] + 50 * np.eye(both.shape[1]), both[~odd].T @ truth[~odd])
    scores = both[odd] @ weights
    return separation(scores[truth[odd] > 0], scores[truth[odd] < 0])


def test_at_an_eighth_targets_and_lookalikes_are_the_same(canvas):
    targets, lookalikes = seen_at(8, canvas, count=400)
    inner = (slice(None), slice(1, 5), slice(1, 5))
    for measure in (np.mean, np.std):
        area = separation(measure(targets[inner], axis=(1, 2)), measure(lookalikes[inner], axis=(1, 2)))
        assert 0.42 < area < 0.58
    assert 0.38 < linear_separation(targets, lookalikes) < 0.62


def test_at_full_resolution_they_are_not(canvas):
    targets, lookalikes = seen_at(1, canvas, count=60)

    def turning(patches: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much more the grey changes across the radius than along it."""
        rows, columns = np.mgrid[:48, :48] - 23.5
        angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
        down, right = np.gradient(patches, axis=1), np.gradient(patches, axis=2)
        along, across = down * np.sin(angle) + right * np.cos(angle), down * np.cos(angle) - right * np.sin(angle)
        ring = (radius > 9) & (radius < 19)
        return np.abs(across[:, ring]).mean(axis=1) - np.abs(along[:, ring]).mean(axis=1)

    assert separation(turning(targets), turning(lookalikes)) > 0.99


def test_a_training_field_looks_like_the_slide_and_never_repeats(canvas):
    pixels, targets, lookalikes = training_field(canvas, np.random.default_rng(0), side=512, targets=3, lookalikes=3)
    again, targets_again, _ = training_field(canvas, np.random.default_rng(0), side=512, targets=3, lookalikes=3)
    other, _, _ = training_field(canvas, np.random.default_rng(1), side=512, targets=3, lookalikes=3)
    assert pixels.shape == (512, 512, 3)
    assert pixels.dtype == np.uint8
    assert len(targets) > 0
    assert len(lookalikes) > 0
    np.testing.assert_array_equal(pixels, again)
    np.testing.assert_array_equal(targets, targets_again)
    assert (pixels != other).any()
    assert canvas.pixels.flags.owndata
    with pytest.raises(SettingsError, match="multiple of 16"):
        training_field(canvas, np.random.default_rng(0), side=500)


# --- the scene


def test_a_scene_is_a_cog_with_its_labels_beside_it(tmp_path):
    truth = write_scene(tmp_path / "scene.tif", height=1100, width=1300, seed=2)
    assert truth.classes == CLASSES
    with rasterio.open(tmp_path / "scene.tif") as scene, rasterio.open(truth.labels) as answers:
        assert scene.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert answers.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert scene.crs.to_epsg() == answers.crs.to_epsg() == 32633
        assert scene.transform == answers.transform
        assert scene.res == (10.0, 10.0)
        assert (scene.nodata, answers.nodata) == (0, NO_LABEL)
        assert scene.descriptions == BANDS
        assert scene.overviews(1)
        assert scene.block_shapes[0] == (512, 512)
        pixels, labels = np.moveaxis(scene.read(), 0, 2), answers.read(1)
    outside = (pixels == 0).all(axis=2)
    assert 0.02 < outside.mean() < 0.35
    np.testing.assert_array_equal(outside, labels == NO_LABEL)
    assert pixels[~outside].min() > 0
    assert outside[0].sum() != outside[-1].sum() or (outside[0] != outside[-1]).any()  # slanted
    drawn = render_scene(draw_landscape(2, 1100, 1300, swath=True), Window(y=600, x=500, height=300, width=400))
    np.testing.assert_array_equal(pixels[600:900, 500:900], drawn[0])
    np.testing.assert_array_equal(labels[600:900, 500:900], drawn[1])


def test_a_seed_gives_the_same_scene(tmp_path):
    for name, workers in (("a", 2), ("b", 1)):
        write_scene(tmp_path / f"{name}.tif", height=600, width=700, seed=1, workers=workers)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert (tmp_path / "a.labels.tif").read_bytes() == (tmp_path / "b.labels.tif").read_bytes()


def test_every_class_is_there_and_fields_turn_with_their_labels(landscape):
    rng = np.random.default_rng(0)
    fields = [scene_field(landscape, rng, side=192) for _ in range(30)]
    seen = np.bincount(np.concatenate([labels.ravel() for _, labels in fields]), minlength=len(CLASSES))
    assert len(seen) == len(CLASSES)
    assert (seen / seen.sum()).min() > 0.01
    for pixels, labels in fields:
        water = labels == WATER
        if 500 < water.sum() < water.size - 500:
            assert pixels[water][:, 3].mean() + 800 < pixels[~water][:, 3].mean()  # water is dark in the near infrared


def test_single_pixels_are_ambiguous_and_neighbourhoods_decide(landscape):
    pixels, labels = render_scene(landscape, Window(y=0, x=0, height=1024, width=1024))
    values = pixels.astype(np.float64)
    means = uniform_filter(values, (9, 9, 1))
    spread = np.sqrt(np.maximum(uniform_filter(values**2, (9, 9, 1)) - means**2, 0))

    def nearest_centroid(features: NDArray[np.float64]) -> float:
        """Share of right labels on the right half, centroids from the left half."""
        left, right = (features[:, part].reshape(-1, features.shape[2]) for part in (slice(512), slice(512, None)))
        known, wanted = labels[:, :512].ravel(), labels[:, 512:].ravel()
        scale = left.std(axis=0)
        centroids = np.stack([np.median(left[known == label], axis=0) for label in range(len(CLASSES))])
        guess = (((right[::5, None] - centroids) / scale) ** 2).sum(axis=2).argmin(axis=1)
        return float((guess == wanted[::5]).mean())

    assert 0.62 < nearest_centroid(values) < 0.82
    assert nearest_centroid(np.concatenate([means, spread], axis=2)) > 0.90


@pytest.mark.parametrize(
    "call", [lambda: draw_landscape(0, 40, 400), lambda: scene_field(draw_landscape(0, 64, 64), np.random.default_rng(0), side=65)]
)
def test_scenes_that_cannot_be_are_refused(call):
    with pytest.raises(SettingsError, match=r"at (least|most)"):
        call()


def test_a_coarse_field_is_exact_at_its_samples_and_straight_between():
    field = np.arange(12, dtype=np.float32).reshape(3, 4)
    values = at_pixels(field, 5, Window(y=0, x=0, height=15, width=20))
    np.testing.assert_array_equal(values[2::5, 2::5], field)  # odd cells have a pixel centre on the sample
    np.testing.assert_allclose(np.diff(values[2, 2:18]), 0.2, rtol=1e-5)
    part = at_pixels(field, 5, Window(y=4, x=7, height=6, width=9))
    np.testing.assert_array_equal(part, values[4:10, 7:16])
