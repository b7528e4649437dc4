"""A detection head through the whole pipeline: each thing once, with its place, size, class and score, however patches overlap."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from scipy.ndimage import find_objects, label

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, detections, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.verify import verify
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import ModelError, StoreError

MOST = 40


class Detector:
    """Boxes around what hangs together, its value its class; scores fall with the distance from the patch's middle."""

    digest = "detector"
    spec = ModelSpec(
        name="yard",
        channels=1,
        size=128,
        any_size=True,
        outputs=(OutputSpec(name="things", kind="boxes", channels=("barrel", "crate"), most=MOST, iou=0.4),),
    )

    def __call__(self, pixels):
        given = torch.zeros(len(pixels), MOST, 6)
        for patch, held in zip(given, pixels[:, 0].numpy(), strict=True):
            found = find_objects(label(held > 1)[0])
            for slot, (rows, columns) in zip(patch, found, strict=False):
                kind = int(held[rows, columns].max() > 150)
                middle = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
                away = max(abs(place - held.shape[0] / 2) for place in middle) / held.shape[0]
                box = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
                slot[:] = torch.tensor([*box, 0.9 - away, kind])
        return {"things": given}

    def to(self, device):
        return self


def yard(count=150):
    """(1000, 1300) pixels of 1, and boxes of up to 40 pixels set into them, a pixel apart at least: (y, x, height, width, class)."""
    generator, pixels, boxes = np.random.default_rng(0), np.ones((1000, 1300, 1), np.uint8), []
    while len(boxes) < count:
        height, width = generator.integers(5, 41, 2)
        y, x = generator.integers(0, 1000 - height + 1), generator.integers(0, 1300 - width + 1)
        if (pixels[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] == 1).all():
            kind = int(generator.integers(2))
            pixels[y : y + height, x : x + width] = 100 + 100 * kind
            boxes.append((y, x, height, width, kind))
    return MemoryImage([pixels], mpp=(0.5, 0.5)), sorted(boxes)


def run_yard(folder, **settings):
    image, boxes = yard()
    run(image, Detector(), folder / "s.zarr", settings=RunSettings(saliency="valid", **settings))
    return open_result(folder / "s.zarr"), boxes


def rows_of(found):
    edges, kind = found.corners, found.boxes.kind
    columns = (edges[:, 0], edges[:, 1], *(found.boxes.size.T), kind)
    return sorted(tuple(int(value) for value in row) for row in zip(*columns, strict=True))


@pytest.mark.parametrize("settings", [{"overlap": 48}, {"overlap": 96}, {"patch_size": 256, "overlap": 64}], ids=str)
@pytest.mark.parametrize("rows", [7, 1024])
def test_each_thing_is_found_once_with_its_extent(tmp_path, monkeypatch, settings, rows):
    monkeypatch.setattr(detections, "_ROWS", rows)
    result, boxes = run_yard(tmp_path, **settings)
    found = result.objects["things"]
    assert rows_of(found) == boxes
    assert found.boxes.classes == ("barrel", "crate")
    assert ((found.score > 0) & (found.score <= 0.9)).all()
    np.testing.assert_allclose(found.yx, found.corners.reshape(-1, 2, 2).mean(axis=1))


def test_what_is_cut_everywhere_is_still_told(tmp_path):
    result, boxes = run_yard(tmp_path, overlap=0)
    found = result.objects["things"]
    union = shapely.union_all(shapely.box(*found.corners.T))
    drawn = shapely.union_all([shapely.box(y, x, y + height, x + width) for y, x, height, width, _ in boxes])
    assert len(found) > len(boxes)
    assert union.equals(drawn)


def test_without_being_told_patches_overlap_by_a_quarter(tmp_path):
    result, _ = run_yard(tmp_path)
    assert np.unique(np.diff(np.unique(result.patches.y))).tolist() == [96]


def test_the_store_is_whole_and_its_features_are_none(tmp_path):
    result, _ = run_yard(tmp_path)
    assert (dict(result.tables), result.features) == ({}, None)
    assert set(result.painted) == {"scores"}
    image, _ = yard()
    assert verify(result.path, image, Detector(), sample=10).good
    with pytest.raises(StoreError, match="no features"):
        export(result.path, "anndata", tmp_path / "out")


def test_qupath_and_gis_get_boxes_with_their_class(tmp_path):
    result, boxes = run_yard(tmp_path, overlap=48)
    (path,) = (path for path in export(result.path, "geojson", tmp_path / "out") if "things" in path.name)
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    assert len(features) == len(boxes)
    seen = {
        (ring[0][1], ring[0][0], ring[2][1] - ring[0][1], ring[2][0] - ring[0][0], feature["properties"]["classification"]["name"])
        for feature in features
        for ring in feature["geometry"]["coordinates"]
    }
    names = ("barrel", "crate")
    assert seen == {(*box, names[kind]) for *box, kind in boxes}
    (path,) = (path for path in export(result.path, "geoparquet", tmp_path / "out") if "things" in path.name)
    table = pq.read_table(path)
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    bounds = shapely.bounds(shapes)
    kinds = table["class"].to_pylist()
    held = {(y, x, bottom - y, right - x, kind) for (x, y, right, bottom), kind in zip(bounds.tolist(), kinds, strict=True)}
    assert held == seen


def test_another_pixel_size_gives_level_0_pixels(tmp_path):
    pixels = np.ones((800, 800, 1), np.uint8)
    pixels[200:240, 400:460] = 200
    run(MemoryImage([pixels], mpp=(0.5, 0.5)), Detector(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", mpp=1.0, overlap=48))
    found = open_result(tmp_path / "s.zarr").objects["things"]
    assert rows_of(found) == [(200, 400, 40, 60, 1)]


class Wrong(Detector):
    def __init__(self, change):
        self._change = change

    def __call__(self, pixels):
        given = super().__call__(pixels)["things"]
        self._change(given)
        return {"things": given}


@pytest.mark.parametrize(
    "change",
    [lambda given: given[:, 0, 4].fill_(1.5), lambda given: given[:, 0, 5].fill_(2), lambda given: given[:, 0, 2].fill_(-1)],
    ids=["score", "class", "extent"],
)
def test_a_box_that_cannot_be_is_an_error_that_names_the_patch(tmp_path, change):
    image, _ = yard()
    with pytest.raises(ModelError, match=r"'things' has a box without extent.*for patch"):
        run(image, Wrong(change), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))


def test_what_is_not_there_may_be_anything(tmp_path):
    def pad(given):
        absent = given[..., 4] == 0
        given[..., 5][absent], given[..., 2][absent] = -1, float("nan")

    image, boxes = yard()
    run(image, Wrong(pad), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=48))
    assert rows_of(open_result(tmp_path / "s.zarr").objects["things"]) == boxes


def test_boxes_alone_say_how_many_there_are():
    with pytest.raises(ModelError, match="most"):
        OutputSpec(name="a", kind="boxes", channels=("a",))
    with pytest.raises(ModelError, match="most"):
        OutputSpec(name="a", kind="vector", channels=("a",), most=3)
    with pytest.raises(ModelError, match="at most 127 classes"):
        OutputSpec(name="a", kind="boxes", channels=tuple(map(str, range(128))), most=3)
    assert ModelSpec.from_dict(json.loads(json.dumps(Detector.spec.to_dict()))) == Detector.spec


def test_of_an_empty_image_there_are_no_things_but_a_table(tmp_path):
    empty = MemoryImage([np.zeros((300, 300, 1), np.uint8)], nodata=0.0, mpp=(0.5, 0.5))
    run(empty, Detector(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
    found = open_result(tmp_path / "s.zarr").objects["things"]
    assert (len(found), found.boxes.classes, found.corners.shape) == (0, ("barrel", "crate"), (0, 4))
