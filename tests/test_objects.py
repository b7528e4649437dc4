"""Objects of maps: however a map is cut, the polygons are those of GDAL's polygonizer over the whole of it, to the vertex."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyproj import CRS
from scipy import ndimage

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.export import export
from patchdrive.pipeline.objects import Tracing, object_maps
from patchdrive.pipeline.pieces import ClassPart, whole_objects
from patchdrive.pipeline.rings import Lattice, batches, polygons
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import SettingsError

PIXELS = Lattice(downsample_y=1.0, downsample_x=1.0)


def cut(classes, height, width, weights=None):
    """The map in parts of `height` x `width`, row by row."""
    for y in range(0, classes.shape[0], height):
        for x in range(0, classes.shape[1], width):
            part = (slice(y, y + height), slice(x, x + width))
            yield ClassPart(y=y, x=x, classes=classes[part], weights=None if weights is None else weights[part])


def traced(classes, height=10**6, width=10**6, *, weights=None, least=1, at_once=10**6):
    """[(polygon, class, pixels, weight)], in order."""
    return [
        row
        for found in whole_objects(cut(classes, height, width, weights), width=classes.shape[1], least=least)
        for some in batches(found, at_once)
        for row in zip(polygons(some, PIXELS).tolist(), some.kind.tolist(), some.pixels.tolist(), some.weight.tolist(), strict=True)
    ]


def twin(classes):
    """GDAL's polygons of the whole map, as a set."""
    return {
        (shapely.normalize(shapely.geometry.shape(shape)).wkt, int(value))
        for shape, value in rasterio.features.shapes(classes, mask=classes > 0, connectivity=4)
    }


maps = hnp.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3))
sides = st.integers(1, 9)


@settings(max_examples=50, deadline=None)
@given(classes=maps, height=sides, width=sides)
def test_however_it_is_cut_it_is_what_gdal_makes_of_the_whole(classes, height, width):
    whole, parts = traced(classes), traced(classes, height, width, at_once=3)
    assert [(shape.wkt, *facts) for shape, *facts in parts] == [(shape.wkt, *facts) for shape, *facts in whole]
    assert {(shapely.normalize(shape).wkt, kind) for shape, kind, *_ in whole} == twin(classes)
    assert all(shape.is_valid and shape.area == pixels for shape, _, pixels, _ in whole)
    painted = np.zeros_like(classes)
    for shape, kind, *_ in whole:
        rasterio.features.rasterize([(shape, kind)], out=painted)
    np.testing.assert_array_equal(painted, classes)


@settings(max_examples=50, deadline=None)
@given(classes=maps, height=sides, width=sides, least=st.integers(1, 6))
def test_facts_of_each_object_are_those_of_its_pixels(classes, height, width, least):
    weights = np.random.default_rng(0).integers(0, 255, classes.shape).astype(np.uint8)
    expected = []
    for kind in (1, 2, 3):
        ids, count = ndimage.label(classes == kind)
        for number in range(1, count + 1):
            inside = ids == number
            if inside.sum() >= least:
                expected.append((np.flatnonzero(inside)[-1], kind, inside.sum(), weights[inside].sum()))
    found = traced(classes, height, width, weights=weights, least=least)
    assert [tuple(facts) for _, *facts in found] == [tuple(facts) for _, *facts in sorted(expected)]  # in the order of their last pixels


def spiral(side):
    """One object, one pixel wide, that turns inwards."""
    pixels, y, x, step = np.zeros((side, side), np.uint8), 0, 0, (0, 1)
    pixels[0, 0] = 1
    for length in [side - 1, *(n for n in range(side - 1, 1, -2) for _ in (0, 1))]:
        for _ in range(length):
            y, x = y + step[0], x + step[1]
            pixels[y, x] = 1
        step = (step[1], -step[0])
    return pixels


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (7, 50), (1, 64), (5, 1)])
@pytest.mark.parametrize("classes", [spiral(64), np.indices((64, 64)).sum(axis=0).astype(np.uint8) % 2, np.ones((64, 64), np.uint8)])
def test_what_winds_through_all_parts_is_one_object(classes, height, width):
    found = traced(classes, height, width)
    assert {(shapely.normalize(shape).wkt, kind) for shape, kind, *_ in found} == twin(classes)


def test_islands_in_holes_are_objects_of_their_own():
    rings = np.zeros((40, 40), np.uint8)
    for edge in range(0, 20, 4):
        rings[edge : 40 - edge, edge : 40 - edge] = 1
        rings[edge + 2 : 38 - edge, edge + 2 : 38 - edge] = 0
    found = traced(rings, 9, 9)
    assert [len(shape.interiors) for shape, *_ in found] == [1] * 5
    for shape, *_ in found:
        assert shape.exterior.coords[0] == shape.bounds[:2]
        assert shape.exterior.is_ccw  # in GeoJSON's sense
        assert not shape.interiors[0].is_ccw


def test_a_hole_that_touches_the_outline_at_a_corner_keeps_the_polygon_valid():
    classes = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], np.uint8)
    ((shape, _, pixels, _),) = traced(classes, 2, 2)
    assert shape.is_valid
    assert (shape.geom_type, len(shape.interiors), pixels) == ("Polygon", 1, 7)


def test_pixels_that_touch_at_a_corner_alone_are_two_objects():
    assert [shape.bounds for shape, *_ in traced(np.eye(2, dtype=np.uint8))] == [(0, 0, 1, 1), (1, 1, 2, 2)]


def test_an_empty_map_has_no_object():
    assert traced(np.zeros((5, 5), np.uint8), 2, 2) == []


def test_what_is_held_does_not_grow_with_the_rows_of_the_map():
    dots = np.zeros((32, 256), np.uint8)
    dots[1:31:3, 1::3] = 1
    dots[28:32, 5] = dots[:3, 5] = 1  # one object in each row of parts reaches into the next

    def peak(rows):
        tracemalloc.start()
        count = sum(len(found) for found in whole_objects((ClassPart(y=y * 32, x=0, classes=dots) for y in range(rows)), width=256))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, held

    peak(2)
    (few, held_few), (many, held_many) = peak(4), peak(40)
    assert many > 9 * few
    assert held_many < 1.1 * held_few


class Painted:
    """A segmenter that gives back what was painted: red is 10 per class, green how sure it is, in steps of 1/254."""

    digest = "painted"
    spec = ModelSpec(
        name="painted",
        channels=3,
        size=256,
        any_size=True,
        scale=1.0,
        outputs=(
            OutputSpec(name="cells", kind="classes", channels=("none", "lymph", "tumour"), colors=("000000", "1020FF", "FF0000")),
            OutputSpec(name="chance", kind="probability", channels=("a", "b")),
        ),
    )

    def __call__(self, pixels):
        kinds = torch.stack([(pixels[:, 0] == 10 * kind) * pixels[:, 1] / 254 for kind in range(3)], dim=1)
        return {"cells": kinds, "chance": pixels[:, 1:] / 254}

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def painted():
    """(pixels, classes) of an image whose every 2 x 2 pixels are alike."""
    rng = np.random.default_rng(3)
    blot = np.ones((10, 12), np.int64)  # map pixels
    classes, chance = np.kron(rng.integers(0, 3, (40, 35)), blot), np.kron(rng.integers(0, 255, (40, 35)), blot)
    classes[rng.random(classes.shape) < 0.02] = 0
    pixels = np.stack([classes * 10, rng.integers(130, 254, classes.shape), chance], axis=2).astype(np.uint8)
    return pixels, classes


@pytest.fixture(scope="module")
def store(painted, tmp_path_factory):
    level0 = np.repeat(np.repeat(painted[0], 2, axis=0), 2, axis=1)
    path = tmp_path_factory.mktemp("objects") / "slide-abcdef.zarr"
    image = MemoryImage([level0, painted[0]], mpp=(0.25, 0.25))
    run(image, Painted(), path, settings=RunSettings(mpp=0.5, saliency="valid", overlap=0))
    return path


def one_map(store, name, **wanted):
    (found,) = object_maps(open_result(store), Tracing(maps=(name,), **wanted))
    return found


def test_objects_of_a_label_map_lie_on_level_0(store, painted):
    found = one_map(store, "cells", background=("none",))
    np.testing.assert_array_equal(found.view.array[:], painted[1])
    batches_of = [list(found.objects(most=most)) for most in (1 << 22, 1 << 12)]
    whole, parts = ([row for batch in some for row in zip(batch.geometry, batch.kind, batch.area, strict=True)] for some in batches_of)
    assert [(shape.wkt, *facts) for shape, *facts in parts] == [(shape.wkt, *facts) for shape, *facts in whole]
    expected = traced(painted[1].astype(np.uint8))
    scaled = [(shapely.transform(shape, lambda xy: xy * 2).wkt, kind, pixels * 4.0) for shape, kind, pixels, _ in expected]
    assert [(shape.wkt, int(kind), area) for shape, kind, area in whole] == scaled
    for batch in batches_of[0]:
        np.testing.assert_allclose(batch.area_um2, batch.area * 0.0625)
        for shape, probability in zip(batch.geometry[:50], batch.probability, strict=False):
            inside = rasterio.features.rasterize([shapely.transform(shape, lambda xy: xy / 2)], out_shape=painted[1].shape) == 1
            assert probability == pytest.approx(painted[0][..., 1][inside].mean() / 254)


def test_objects_of_a_channel_of_a_probability_map(store, painted):
    found = one_map(store, "chance:b", threshold=0.25)
    objects = list(found.objects())
    wanted = painted[0][..., 2]
    inside = ((wanted / np.float32(254) >= 0.25) & (wanted < 255)).astype(np.uint8)
    assert sum(map(len, objects)) == len(traced(inside))
    assert sum(batch.area.sum() for batch in objects) == 4 * inside.sum()
    assert {found.classes[kind] for batch in objects for kind in batch.kind.tolist()} == {"b"}
    assert all((batch.probability >= 0.25).all() for batch in objects)


def test_small_ones_are_left_out_and_outlines_made_simple_on_request(store):
    every = [row for batch in one_map(store, "cells").objects() for row in zip(batch.geometry, batch.area, strict=True)]
    large = [
        row
        for batch in one_map(store, "cells", least_area=1000).objects(most=1 << 12)
        for row in zip(batch.geometry, batch.area, strict=True)
    ]
    assert [(shape.wkt, area) for shape, area in large] == [(shape.wkt, area) for shape, area in every if area >= 1000]
    simple = [
        row
        for batch in one_map(store, "cells", least_area=1000, simplify=3.0).objects()
        for row in zip(batch.geometry, batch.area, strict=True)
    ]
    assert [area for _, area in simple] == [area for _, area in large]
    assert all(shape.is_valid for shape, _ in simple)
    vertices = [sum(shapely.get_num_coordinates(shape) for shape, _ in some) for some in (simple, large)]
    assert vertices[0] < 0.8 * vertices[1]


def test_exported_polygons_are_features_of_qupath(store, tmp_path):
    wanted = Tracing(maps=("cells",), background=("none",))
    *_, path = export(store, "geojson", tmp_path / "out", tracing=wanted)
    assert path.name.endswith("_cells.geojson.gz")
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    rows = [
        row
        for batch in one_map(store, "cells", background=("none",)).objects()
        for row in zip(batch.geometry, batch.kind, batch.area, batch.probability, strict=True)
    ]
    assert len({feature["id"] for feature in features}) == len(features) > 100
    for feature, (shape, kind, area, probability) in zip(features, rows, strict=True):
        assert shapely.equals_exact(shapely.geometry.shape(feature["geometry"]), shape)
        held = feature["properties"]
        assert held["objectType"] == "detection"
        assert held["classification"] == [None, {"name": "lymph", "color": [16, 32, 255]}, {"name": "tumour", "color": [255, 0, 0]}][kind]
        assert held["measurements"] == {"area_px": area, "area_um2": area / 16, "probability": pytest.approx(probability, abs=1e-4)}
    again = export(store, "geojson", tmp_path / "again", tracing=wanted)[-1]
    assert again.read_bytes() == path.read_bytes()


PLACES = {"north up": Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0), "slide": None}


@pytest.mark.parametrize("place", list(PLACES))
def test_a_gis_reads_polygons_in_the_world(painted, tmp_path, place):
    """The sum of the areas by class is that of the map, and a polygon of the world covers the pixels of its object."""
    transform, scene = PLACES[place], PLACES[place] is not None
    image = MemoryImage([painted[0]], transform=transform, crs=CRS.from_epsg(32633) if scene else None, mpp=None if scene else (0.5, 0.5))
    run(image, Painted(), tmp_path / "s-abcdef.zarr", settings=RunSettings(saliency="valid", overlap=0))
    *_, path = export(tmp_path / "s-abcdef.zarr", "geoparquet", tmp_path / "out", tracing=Tracing(maps=("cells",), background=("none",)))
    table = geopandas.read_parquet(path)
    assert (table.crs is not None) == scene
    assert list(table.columns[:-1]) == ["class", "area_px", *([] if scene else ["area_um2"]), "probability"]
    assert table["area_px"].groupby(table["class"]).sum().to_dict() == {
        name: (painted[1] == kind).sum() for kind, name in ((1, "lymph"), (2, "tumour"))
    }
    np.testing.assert_allclose(table.geometry.area, table["area_px"] * (100 if scene else 1))
    assert table.geometry.is_valid.all()
    assert table.geometry.exterior.is_ccw.all()
    shapes = zip(table.geometry, table["class"].map({"lymph": 1, "tumour": 2}), strict=True)
    drawn = rasterio.features.rasterize(shapes, out_shape=painted[1].shape, transform=transform or Affine.identity())
    np.testing.assert_array_equal(drawn, painted[1])


def test_the_command_line_asks_for_them(store, tmp_path, capsys):
    asked = ["export", str(store), "--to", "geojson", "-o", str(tmp_path)]
    assert (
        main([*asked, "--objects", "cells", "--background", "none", "--objects", "chance:a", "--annotations", "--least-area", "400"]) == 0
    )
    written = capsys.readouterr().out.split()
    assert [line.partition("_")[2] for line in (path.rpartition("/")[2] for path in written)] == [
        "patches.geojson.gz",
        "cells.geojson.gz",
        "chance_a.geojson.gz",
    ]
    features = json.loads(gzip.decompress(Path(written[1]).read_bytes()))["features"]
    assert {(feature["properties"]["objectType"], feature["properties"]["isLocked"]) for feature in features} == {("annotation", False)}
    assert min(feature["properties"]["measurements"]["area_px"] for feature in features) >= 400


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--background", "none"], "name their map with --objects"),
        (["--objects", "cell"], "no label or probability map 'cell' to trace; it has cells, cells_probability, chance"),
        (["--objects", "chance"], "ask for one of chance:a, chance:b"),
        (["--objects", "chance:c"], "ask for one of chance:a, chance:b"),
        (["--objects", "cells", "--background", "glass"], "no class 'glass' to be the background; the label maps have none, lymph, tumour"),
        (["--objects", "cells", "--threshold", "50"], "above 0 and at most 1, got 50"),
        (["--objects", "cells", "--simplify", "-1"], "at least 0, and finite, got 0 and -1"),
        (["--objects", "cells", "--to", "ome-tiff"], "does not go with the form 'ome-tiff'; it does with geojson, geoparquet"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(store, tmp_path, capsys, options, said):
    assert main(["export", str(store), "--to", "geojson", "-o", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tracing_from_python_is_checked_too():
    with pytest.raises(SettingsError, match="above 0"):
        Tracing(maps=("cells",), threshold=0.0)
