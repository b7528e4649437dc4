"""Reports: the arithmetic of their pictures against slow twins, and whole pages of real runs."""

from __future__ import annotations

import shutil
import tracemalloc
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.io import imread
from test_result import SETTINGS, SMALL, Impatient, Means, Thirds, place, scene

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.pipeline import pictures
from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_group
from patchdrive.pipeline.best_patches import best_rows, read_best
from patchdrive.pipeline.components import feature_colors
from patchdrive.pipeline.map_view import open_map
from patchdrive.pipeline.metadata import frame_of, image_label, multiscales, omero
from patchdrive.pipeline.pictures import Canvas
from patchdrive.pipeline.plan import ordered, target_grid
from patchdrive.pipeline.report import write_report
from patchdrive.pipeline.result import ResultRound, open_result
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shrink import shrink
from patchdrive.pipeline.tables import STATES
from patchdrive.readers import Level, MemoryImage, open_image
from patchdrive.readers.errors import StoreError
from patchdrive.readers.tiff import TiffImage


def level(height, width):
    return Level(index=0, height=height, width=width, downsample_y=1.0, downsample_x=1.0, tile_height=1, tile_width=1)


def stored(path, values, kind, *, chunk=64):
    """A map of the store's layout that holds `values`, (height, width) uint8; None: nothing written, (h, w) = 24000 x 14000."""
    height, width = (24000, 14000) if values is None else values.shape
    label = kind == "label"
    frame = frame_of(level(height, width), None, None, None)
    colors = {"image-label": image_label(list("abc"), ["111111"] * 3)} if label else {"omero": omero(["p"], ["FFFFFF"], 0, 254)}
    entry = multiscales("m", [frame], "nearest" if label else "mean", channel_axis=not label)
    ensure_group(path, {"ome": {"version": "0.5", "multiscales": [entry], **colors}})
    lead = () if label else (1,)
    spec = ArraySpec(shape=(*lead, height, width), dtype="uint8", chunks=(*lead, chunk, chunk), fill=255)
    ensure_array(path / "0" / "map", spec, {"patchdrive:kind": kind, "_FillValue": 255})
    view = open_map(path)
    if values is not None:
        zarr.open_array(store=path / "0" / "map", mode="r+")[...] = values if label else values[None]
    return view


@pytest.mark.parametrize(("height", "width", "most"), [(200, 333, 50), (64, 64, 64), (129, 500, 7), (1, 300, 40)])
def test_a_shrunk_probability_is_the_mean_of_each_block(tmp_path, height, width, most):
    values = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    values[: height // 2, : width // 3] = 255
    small = shrink(stored(tmp_path / "m", values, "probability"), most)
    cell = -(-max(height, width) // most)
    assert max(small.values.shape[1:]) <= most
    assert small.downsample == (cell, cell)
    plain = np.where(values == 255, np.nan, values / 254)
    for row in range(small.values.shape[1]):
        for column in range(small.values.shape[2]):
            block = plain[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            wanted = np.nan if np.isnan(block).all() else np.nanmean(block)
            np.testing.assert_allclose(small.values[0, row, column], wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "most"), [(200, 333, 50), (129, 500, 7)])
def test_a_shrunk_label_map_has_the_middle_classes_and_all_counts(tmp_path, height, width, most):
    values = np.random.default_rng(1).choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    small = shrink(stored(tmp_path / "m", values, "label"), most)
    np.testing.assert_array_equal(small.counts, [(values == index).sum() for index in range(3)])
    cell = -(-max(height, width) // most)
    for row in range(small.values.shape[1]):
        for column in range(small.values.shape[2]):
            block = values[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            wanted = block[block.shape[0] // 2, block.shape[1] // 2]
            np.testing.assert_array_equal(small.values[0, row, column], np.nan if wanted == 255 else wanted)


def test_a_large_map_is_shrunk_in_little_memory(tmp_path):
    view = stored(tmp_path / "m", None, "label", chunk=1000)
    tracemalloc.start()
    try:
        shrink(view, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < view.height * view.width * 0.3


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(1, 9),
    st.floats(1, 9),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_sampled_takes_the_pixel_under_each_middle(height, width, fine, coarse, rows, columns):
    canvas = Canvas(pixels=np.zeros((height, width, 3), np.uint8), downsample=(coarse, coarse))
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    taken = pictures.sampled(values, (fine, fine), canvas, -1)
    for y in range(height):
        for x in range(width):
            at_y, at_x = int((y + 0.5) * coarse / fine), int((x + 0.5) * coarse / fine)
            assert taken[y, x] == (values[at_y, at_x] if at_y < rows and at_x < columns else -1)


def some_plan(height=400, width=600, *, downsample=1.5, side=40, count=50):
    rng = np.random.default_rng(2)
    grid = target_grid(level(height, width), downsample, downsample)
    y, x = rng.integers(-side // 2, grid.height, count), rng.integers(-side // 2, grid.width, count)
    return ordered(y, x, rng.random(count).astype(np.float32), side, grid)


def test_every_patch_shows_on_a_plan_and_nothing_else():
    plan, canvas = some_plan(), Canvas(pixels=np.full((100, 150, 3), 100, np.uint8), downsample=(4.0, 4.0))
    drawn = pictures.draw_plans(canvas, [plan])
    inside = np.zeros((100, 150), bool)
    for y, x in zip(plan.y * 1.5 / 4, plan.x * 1.5 / 4, strict=True):
        inside[max(0, int(np.floor(y))) : int(np.ceil(y + 15)), max(0, int(np.floor(x))) : int(np.ceil(x + 15))] = True
    np.testing.assert_array_equal((drawn == int(100 * 0.35 + 255 * 0.65)).all(axis=2), ~inside)
    np.testing.assert_array_equal(pictures.draw_plan(canvas.pixels, plan, level(400, 600)), drawn)


def test_patches_that_overlap_much_are_outlined_together():
    grid = target_grid(level(400, 600), 1, 1)
    plan = ordered(np.repeat(100, 50), np.arange(100, 200, 2), np.ones(50, np.float32), 100, grid)
    drawn = pictures.draw_plans(Canvas(pixels=np.full((400, 600, 3), 100, np.uint8), downsample=(1.0, 1.0)), [plan])
    outline = (drawn == pictures.FRAME).all(axis=2)
    assert outline.sum() == 2 * (100 + 198) - 4
    assert not outline[101:199, 101:297].any()


def test_tinted_patches_show_their_colour_and_the_rest_does_not():
    plan, canvas = some_plan(count=8), Canvas(pixels=np.zeros((100, 150, 3), np.uint8), downsample=(4.0, 4.0))
    drawn = pictures.tint_patches(canvas, plan, np.array([200, 100, 50], np.uint8), np.array([5])).pixels
    y, y_end, x, x_end = pictures.patch_spans(plan, canvas)[5]
    np.testing.assert_array_equal(np.unique(drawn[y:y_end, x:x_end].reshape(-1, 3), axis=0), [[100, 50, 25]])
    assert (drawn != 0).any(axis=2).sum() == (y_end - y) * (x_end - x)


def test_painted_patches_have_their_colors():
    plan, canvas = some_plan(count=8), Canvas(pixels=np.zeros((100, 150, 3), np.uint8), downsample=(4.0, 4.0))
    rows = np.array([1, 5])
    drawn = pictures.paint_patches(canvas, plan, np.array([[10, 20, 30], [40, 50, 60]], np.uint8), rows)
    y, x = (plan.centres[5] / 4).astype(int)
    np.testing.assert_array_equal(drawn[min(y, 99), min(x, 149)], [40, 50, 60])
    assert {tuple(color) for color in drawn.reshape(-1, 3)} == {(0, 0, 0), (10, 20, 30), (40, 50, 60)}


def test_rings_are_around_their_centres():
    canvas = Canvas(pixels=np.full((60, 80, 3), 200, np.uint8), downsample=(2.0, 2.0))
    drawn = pictures.draw_rings(canvas, np.array([[60.0, 80.0], [0.0, 0.0]]), np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    ys, xs = np.nonzero((drawn == [1, 2, 3]).all(axis=2))
    assert (ys.mean(), xs.mean()) == (30, 40)
    assert (np.hypot(ys - 30, xs - 40) > 6.5).all()
    np.testing.assert_array_equal(drawn[30, 40], 200)


def test_stretched_ends_at_the_percentiles():
    values = np.stack([np.linspace(-5, 5, 101), np.linspace(0, 1e6, 101)])[:, None].astype(np.float32)
    values[0, 0, 50] = np.nan
    shown = pictures.stretched(values)
    assert (shown[:, 0, :2] == 0).all()
    assert (shown[:, 0, -2:] == 255).all()
    assert shown[0, 0, 50] == 0


def test_an_enlarged_and_cropped_canvas_keeps_its_frame():
    canvas = Canvas(pixels=place(20, 30), downsample=(8.0, 8.0))
    bigger = pictures.enlarged(pictures.cropped(canvas, 156, 240), 100)
    assert bigger.pixels.shape == (20 * 3, 30 * 3, 3)
    assert bigger.downsample == (8 / 3, 8 / 3)
    assert pictures.cropped(canvas, 81, 90).pixels.shape == (10, 11, 3)


def test_feature_colors_follow_the_largest_variance_and_its_sign():
    rng = np.random.default_rng(3)
    line = np.linspace(-1, 1, 3000)
    table = np.stack([line, line * 2 + 5, -line, rng.normal(size=3000) * 1e-3], axis=1)
    table[7] = np.nan
    found = feature_colors([table[:2000], table[2000:]])
    assert 7 not in found.rows[0]
    assert sum(len(rows) for rows in found.rows) == 2999
    red = np.concatenate(found.colors)[:, 0].astype(int)
    assert abs(found.share[0] - 0.75) < 0.01
    assert abs(np.corrcoef(red, np.delete(line, 7))[0, 1]) > 0.99
    again = feature_colors([table[:2000], table[2000:]])
    np.testing.assert_array_equal(np.concatenate(again.colors), np.concatenate(found.colors))


def test_too_few_features_have_no_colors():
    assert feature_colors([np.full((5, 4), np.nan)]) is None
    assert feature_colors([np.zeros((0, 4))]) is None
    constant = feature_colors([np.ones((5, 4))])
    assert len(np.unique(constant.colors[0])) == 1


def test_the_best_rows_are_the_computed_ones_of_highest_score():
    rounds = []
    for seed in range(2):
        plan = some_plan(count=30)
        codes = np.random.default_rng(seed).choice(len(STATES), 30).astype(np.int8)
        rounds.append(ResultRound(plan=plan, codes=codes, reasons={}))
    best = best_rows(rounds, 7)
    done = [(-held.plan.score[row], at, row) for at, held in enumerate(rounds) for row in range(30) if STATES[held.codes[row]] == "done"]
    assert best == [(at, row) for _, at, row in sorted(done)[:7]]


def test_the_best_patches_are_pixels_of_the_source():
    image = MemoryImage([place(500, 500)])
    plan = ordered(
        np.array([0, 100, 470]), np.array([10, 200, 0]), np.array([0.1, 0.9, 0.5], np.float32), 64, target_grid(image.levels[0], 1, 1)
    )
    best = read_best(image, [ResultRound(plan=plan, codes=np.ones(3, np.int8), reasons={})], Means.spec, 2)
    np.testing.assert_array_equal(best[0].pixels, place(500, 500)[100:164, 200:264])
    np.testing.assert_array_equal(best[1].pixels[:30], place(500, 500)[470:, :64])
    assert (best[1].pixels[30:] == 255).all()


class Page(HTMLParser):
    """What a page holds, and whether its tags are closed."""

    def __init__(self, path):
        super().__init__()
        self.text, self.images, self.links, self.tags, self.open = "", [], [], set(), []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(facts)
        if "href" in facts:
            self.links.append(facts["href"])
        if tag not in {"img", "meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(path):
    """The promises of every page; returns it read."""
    page = Page(path)
    assert "script" not in page.tags
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    assert all((path.parent / link).is_file() for link in page.links)
    assert "http" not in path.read_text().split("<details>")[0]
    return page


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide on disk and the store of a run over it."""
    folder = tmp_path_factory.mktemp("slide")
    pixels = place(640, 512)
    tifffile.imwrite(folder / "slide.tif", pixels, tile=(128, 128), photometric="rgb", compression="zlib")
    image = open_image(folder / "slide.tif")
    run(image, Means(), folder / "slide-1.zarr", settings=SETTINGS)
    image.close()
    return SimpleNamespace(folder=folder, store=folder / "slide-1.zarr", pixels=pixels)


def test_a_page_of_features(slide, tmp_path):
    path = write_report(slide.store)
    assert path == slide.folder / "slide-1.report" / "index.html"
    page = check(path)
    for words in ("slide-1", "done", "640 x 512", "means", "80 done", "Features as colours", "rank 0"):
        assert words in page.text
    pictured = {file.stem for file in path.parent.glob("*.png")}
    assert pictured == {"thumbnail", "saliency", "plan", "features", *(f"patch_{index:02d}" for index in range(1, 25))}
    round_, row = best_rows(open_result(slide.store).rounds, 1)[0]
    plan = open_result(slide.store).rounds[round_].plan
    y, x = int(plan.y[row]), int(plan.x[row])
    np.testing.assert_array_equal(imread(path.parent / "patch_01.png"), slide.pixels[y : y + 64, x : x + 64])
    again = write_report(slide.store, tmp_path)
    assert again == tmp_path / "slide-1.report" / "index.html"
    assert again.read_bytes() == path.read_bytes()
    assert str(slide.folder) not in path.read_text()


@pytest.mark.parametrize(("change", "words"), [("gone", "is not where it was"), ("other", "no longer the image")])
def test_a_source_that_changed_is_said_and_not_shown(slide, tmp_path, change, words):
    for path in slide.folder.glob("slide-1.*"):
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copyfile(path, tmp_path / path.name)
    origin = tmp_path / "slide-1.patchdrive" / "source.json"
    origin.write_text(origin.read_text().replace(str(slide.folder), str(tmp_path)))
    if change == "other":
        tifffile.imwrite(tmp_path / "slide.tif", slide.pixels[::-1], tile=(128, 128), photometric="rgb")
    page = check(write_report(tmp_path / "slide-1.zarr"))
    assert words in page.text
    assert not [image for image in page.images if image["alt"].startswith("Patch:")]


def test_a_page_of_maps_names_its_classes(tmp_path):
    run(scene(), Thirds(), tmp_path / "b.zarr", settings=SETTINGS)
    page = check(write_report(tmp_path / "b.zarr"))
    labels = open_result(tmp_path / "b.zarr").maps["third"].values()
    share = float((labels == 0).sum() / labels.count())
    assert f"left {share:.1%}" in page.text
    assert "third_probability" in page.text


def test_a_page_of_a_drive_has_answers_and_things_found(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (256, 320, 3)).astype(np.uint8)
    config = PatchDriveNetConfig(threshold=0.02, answers=(AnswerSpec(name="class", classes=("clear", "<b>bad & worse</b>")),))
    run(MemoryImage([pixels], mpp=(0.5, 0.5)), patchdrivenet(config), tmp_path / "c.zarr", settings=RunSettings(max_patches=4))
    page = check(write_report(tmp_path / "c.zarr"))
    assert "Answer: class" in page.text
    assert "<b>bad & worse</b>" in page.text
    assert "b" not in page.tags
    assert f"{len(open_result(tmp_path / 'c.zarr').objects['objects'])} found" in page.text


def test_a_partial_page_says_so(tmp_path):
    run(MemoryImage([place(16 * 40, 16 * 30)]), Means(), tmp_path / "p.zarr", settings=SMALL, watcher=Impatient())
    page = check(write_report(tmp_path / "p.zarr"))
    assert "not finished" in page.text
    assert "1,024 of 1,200 planned patches done" in page.text
    assert "176 not yet computed" in page.text
    assert len(page.images) == 4


def test_a_store_moved_without_its_state_still_has_a_page(slide, tmp_path):
    shutil.copytree(slide.store, tmp_path / "slide-1.zarr")
    page = check(write_report(tmp_path / "slide-1.zarr"))
    assert "moved without slide-1.patchdrive" in page.text


def test_what_is_no_store_has_no_page(tmp_path):
    with pytest.raises(StoreError):
        write_report(tmp_path / "nothing.zarr")
    assert not list(tmp_path.iterdir())


def test_label_and_macro_are_never_read(real_file, tmp_path, monkeypatch):
    image = open_image(real_file("wsi/CMU-1-Small-Region.svs"))
    run(image, Means(), tmp_path / "d.zarr", settings=RunSettings(patch_size=256, batch_size=8))

    def refuse(_image):
        raise AssertionError("a report asked for label or macro")

    monkeypatch.setattr(TiffImage, "associated", property(refuse))
    page = check(write_report(tmp_path / "d.zarr"))
    assert sum(picture["alt"].startswith("Patch:") for picture in page.images) == 24
