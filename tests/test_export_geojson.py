"""GeoJSON as QuPath reads it: level-0 pixels, one feature a line, the same bytes each time."""

from __future__ import annotations

import gzip
import json
import uuid

import numpy as np
import pytest
from examples import store_with_a_hole

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.readers import MemoryImage


@pytest.fixture
def store(tmp_path):
    """At two level-0 pixels per target pixel."""
    return store_with_a_hole(tmp_path, mpp=(0.25, 0.25), wanted=0.5, hole=(slice(256, 768), slice(256, 512)))


def features_of(path):
    """Line by line, as a reader of long files does; and as a whole, which is the same."""
    text = gzip.decompress(path.read_bytes()).decode()
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ('{"type":"FeatureCollection","features":[', "]}")
    by_line = [json.loads(line.removesuffix(",")) for line in lines[1:-1]]
    assert json.loads(text)["features"] == by_line
    return by_line


def test_patches_are_closed_boxes_in_level_0_pixels(store, tmp_path):
    (path,) = export(store, "geojson", tmp_path / "out")
    features, result = features_of(path), open_result(store)
    assert len(features) == len(result.patches)
    for feature, centre, score, rank, state in zip(
        features, result.patches.centres, result.patches.score, result.patches.rank, result.patches.state, strict=True
    ):
        (ring,) = feature["geometry"]["coordinates"]
        assert (len(ring), ring[0]) == (5, ring[-1])
        corners = np.array(ring[:4])
        np.testing.assert_allclose(corners.mean(axis=0), centre[::-1])
        assert (np.ptp(corners, axis=0) == 128).all()
        x, y = corners.T
        assert np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0  # one way round, the same for all
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["measurements"] == {"score": pytest.approx(score), "rank": rank, "round": 0}
        assert properties.get("classification", {"name": "done"})["name"] == state
        uuid.UUID(feature["id"])
    assert len({feature["id"] for feature in features}) == len(features)


def test_the_same_store_gives_the_same_bytes(store, tmp_path):
    (one,), (two,) = (export(store, "geojson", tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name or path.name.startswith(".draft-")]


def test_things_found_are_points_with_their_score(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 200, (2000, 2000, 3)).astype(np.uint8)
    image = MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    run(image, patchdrivenet(PatchDriveNetConfig(max_patches=20, threshold=0.0)), tmp_path / "s.zarr", settings=RunSettings())
    found = open_result(tmp_path / "s.zarr").objects
    written = export(tmp_path / "s.zarr", "geojson", tmp_path / "out")
    assert [path.name for path in written[1:]] == [f"{written[0].name.partition('_patches')[0]}_{name}.geojson.gz" for name in found]
    ((name, objects),) = found.items()
    features = features_of(written[1])
    assert len(features) == len(objects) > 0
    np.testing.assert_allclose([feature["geometry"]["coordinates"][::-1] for feature in features], objects.yx)
    np.testing.assert_allclose([feature["properties"]["measurements"]["score"] for feature in features], objects.score)
    assert {feature["properties"]["classification"]["name"] for feature in features} == {name}
    assert all(feature["geometry"]["type"] == "Point" for feature in features)
