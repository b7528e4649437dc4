"""The SpatialData store, read back by zarr, anndata and geopandas: spatialdata itself cannot be had in one environment with the project."""

from __future__ import annotations

import json

import anndata
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from test_export import Means

from patchdrive.models import load_model
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.glance import traits_of
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import StoreError

AXES = {
    "x": {"name": "x", "type": "space", "unit": "unit"},
    "y": {"name": "y", "type": "space", "unit": "unit"},
    "c": {"name": "c", "type": "channel"},
}


def everywhere(pixels, mask):
    return np.linspace(0.1, 1, mask.size, dtype=np.float32).reshape(mask.shape)


def exported(store, folder):
    (path,) = export(store, "spatialdata", folder)
    return path, zarr.open_group(path, mode="r")


def to_global(axes):
    described = [AXES[axis] for axis in axes]
    return {"input": {"name": axes, "axes": described}, "output": {"name": "global", "axes": described}}


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """Rounds, features, a map and things found, at 0.5 µm."""
    path = tmp_path_factory.mktemp("drive") / "s.zarr"
    pixels = np.random.default_rng(0).integers(40, 200, (1000, 900, 3)).astype(np.uint8)
    image = MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    run(image, patchdrivenet(PatchDriveNetConfig(max_patches=4, threshold=0.0)), path, settings=RunSettings())
    return path


@pytest.fixture(scope="module")
def driven(drive, tmp_path_factory):
    return exported(drive, tmp_path_factory.mktemp("out"))


def test_a_table_annotates_the_tiles(drive, driven):
    result, (path, root) = open_result(drive), driven
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    table = anndata.read_zarr(path / "tables" / "patchdrivenet")
    done = result.patches.state == "done"
    np.testing.assert_array_equal(table.X, result.features[done])
    assert table.X.dtype == result.features.dtype
    np.testing.assert_allclose(table.obsm["spatial"], result.patches.centres[done][:, ::-1])
    assert dict(table.uns["spatialdata_attrs"]) == {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
    assert set(table.obs["library_id"]) == {"tiles"}
    assert list(table.obs_names) == list(map(str, range(done.sum())))
    assert list(table.obs["tile_id"]) == list(range(done.sum()))
    for name in ("round", "score", "rank"):
        np.testing.assert_array_equal(table.obs[name], getattr(result.patches, name)[done])
    about = root["tables/patchdrivenet"].attrs
    assert {key: about[key] for key in ("spatialdata-encoding-type", "region", "region_key", "instance_key", "version")} == {
        "spatialdata-encoding-type": "ngff:regions_table", "region": "tiles", "region_key": "library_id", "instance_key": "tile_id",
        "version": "0.2",
    }  # fmt: skip


def test_tiles_are_boxes_row_for_row(drive, driven):
    result, (path, root) = open_result(drive), driven
    frame, done = geopandas.read_parquet(path / "shapes" / "tiles" / "shapes.parquet"), result.patches.state == "done"
    assert frame.crs is None
    assert list(frame["tile_id"]) == list(frame.index) == list(range(done.sum()))  # SpatialData joins by the index
    centres = np.stack([frame.geometry.centroid.y, frame.geometry.centroid.x], axis=1)
    np.testing.assert_allclose(centres, result.patches.centres[done])
    np.testing.assert_array_equal(frame[["x", "y"]], frame.geometry.bounds[["minx", "miny"]])
    about = root["shapes/tiles"].attrs
    assert (about["encoding-type"], about["axes"], about["spatialdata_attrs"]) == ("ngff:shapes", ["x", "y"], {"version": "0.3"})
    assert about["coordinateTransformations"] == [{"type": "identity", **to_global("xy")}]
    spec = root.attrs["tile_spec"]["tiles"]
    assert spec["height"] * spec["base_downsample"] == frame.geometry[0].bounds[3] - frame.geometry[0].bounds[1]
    assert root.attrs["slide_properties"]["shape"] == [1000, 900]
    assert (spec["mpp"], root.attrs["slide_properties"]["mpp"]) == (0.5 * spec["base_downsample"], 0.5)


def test_things_found_are_points(drive, driven):
    ((name, found),), (path, root) = open_result(drive).objects.items(), driven
    table = pq.read_table(path / "points" / name / "points.parquet")
    assert len(table) == len(found) > 0
    np.testing.assert_array_equal(np.stack([table["y"], table["x"], table["score"]], axis=1), np.column_stack([found.yx, found.score]))
    about = root["points"][name].attrs
    assert (about["encoding-type"], about["spatialdata_attrs"]) == ("ngff:points", {"version": "0.2"})
    assert about["coordinateTransformations"] == [{"type": "identity", **to_global("xy")}]


def check_levels(group, view):
    """Every level as the store has it; on the finest one by pixel centres, and with it on level 0 by edges. Returns how many."""
    held = json.loads((view.path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert (group.attrs["ome"]["version"], group.attrs["spatialdata_attrs"]) == ("0.5-dev-spatialdata", {"version": "0.3"})
    axes = "".join(axis["name"] for axis in multiscale["axes"])
    lead = [1.0] * (len(axes) - 2)
    (place,) = multiscale["coordinateTransformations"]
    assert (place["type"], {key: place[key] for key in ("input", "output")}) == ("sequence", to_global(axes))
    scale, shift = place["transformations"]
    assert scale == {"type": "scale", "scale": [*lead, *view.downsample], **to_global(axes)}
    first = np.array(shift["translation"][-2:]) + np.array(view.downsample) / 2  # centre of its first pixel; those of level 0 are at 0.5
    np.testing.assert_allclose(first, np.array(view.translation) + 0.5)
    datasets = multiscale["datasets"]
    assert [dataset["path"] for dataset in datasets] == [dataset["path"] for dataset in held["datasets"]]
    for level, dataset in enumerate(datasets):
        np.testing.assert_array_equal(group[dataset["path"]][:], zarr.open_array(store=view.path / dataset["path"], mode="r")[:])
        scale, shift = dataset["coordinateTransformations"]
        assert scale["scale"] == [*lead, 2.0**level, 2.0**level]
        assert shift["translation"] == [*(0.0 for _ in lead), *[(2**level - 1) / 2] * 2]
    return len(datasets)


def test_every_map_lies_on_level_0(drive, driven):
    result, (_, root) = open_result(drive), driven
    views = {"saliency": result.saliency, "thumbnail": result.thumbnail_map, **result.painted, **result.maps}
    assert {*root["images"], *root["labels"]} == views.keys()
    for name, view in views.items():
        group = root[f"images/{name}"]
        check_levels(group, view)
        assert [channel["label"] for channel in group.attrs["ome"]["omero"]["channels"]] == list(view.channels)


def test_labels_and_coarser_levels_come_too(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 180, (700, 600, 3)).astype(np.uint8)
    image = MemoryImage([pixels])
    run(image, load_model("identity", traits_of(image)), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
    _, root = exported(tmp_path / "s.zarr", tmp_path / "out")
    result = open_result(tmp_path / "s.zarr")
    np.testing.assert_array_equal(root["images/image/0/map"][:], pixels.transpose(2, 0, 1))
    assert (
        check_levels(root["images/image"], result.maps["image"])
        == check_levels(root["labels/image_valid"], result.maps["image_valid"])
        == 2
    )
    assert (list(root["tables"]), list(root["shapes"])) == ([], ["tiles"])
    assert root.attrs["slide_properties"]["mpp"] is None
    (tmp_path / "s.done.json").unlink()  # as before it is finished: coarser levels may not be there yet
    _, root = exported(tmp_path / "s.zarr", tmp_path / "out")
    assert [dataset["path"] for dataset in root["images/image"].attrs["ome"]["multiscales"][0]["datasets"]] == ["0/map"]
    assert list(root["images/image"]) == ["0"]


def test_rows_that_are_not_done_are_left_out(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 180, (600, 600, 3)).astype(np.uint8)
    pixels[128:320, 128:320] = 0
    image = MemoryImage([pixels, np.full((75, 75, 3), 100, np.uint8)], nodata=0.0, mpp=(0.5, 0.5))
    report = run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="test_export_spatialdata:everywhere", overlap=16))
    assert report.skipped > 0
    path, root = exported(tmp_path / "s.zarr", tmp_path / "out")
    table, tiles = anndata.read_zarr(path / "tables" / "means"), pq.read_table(path / "shapes" / "tiles" / "shapes.parquet")
    assert len(table) == len(tiles) == report.done
    assert np.isfinite(table.X).all()
    centres = np.stack([tiles["x"], tiles["y"]], axis=1) + 32.0
    np.testing.assert_array_equal(table.obsm["spatial"], centres)
    (place,) = root["images/scores"].attrs["ome"]["multiscales"][0]["coordinateTransformations"]
    scale, shift = (np.array(place["transformations"][part][kind][1:]) for part, kind in ((0, "scale"), (1, "translation")))
    rows, columns = np.floor((centres[:, ::-1] - shift) / scale).astype(int).T
    np.testing.assert_array_equal(root["images/scores/0/map"][0, rows, columns], np.rint(table.obs["score"] * 254))


def test_nothing_found_leaves_out_what_spatialdata_refuses_empty(tmp_path):
    image = MemoryImage([np.full((600, 600, 3), 244, np.uint8)], mpp=(0.5, 0.5))
    run(image, Means(), tmp_path / "s.zarr", settings=RunSettings())
    _, root = exported(tmp_path / "s.zarr", tmp_path / "out")
    assert {folder: sorted(root[folder]) for folder in root} == {
        "images": ["saliency", "thumbnail"], "labels": [], "points": [], "shapes": [], "tables": [],
    }  # fmt: skip


def test_an_export_is_written_anew_and_nothing_else_is(drive, tmp_path):
    path, _ = exported(drive, tmp_path)
    (path / "stray").write_text("of the first")
    exported(drive, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert not (path / "stray").exists()
    for theirs in ({"attributes": {"ome": {}}, "zarr_format": 3, "node_type": "group"}, None):
        (path / "zarr.json").unlink()
        if theirs is not None:
            (path / "zarr.json").write_text(json.dumps(theirs))
        with pytest.raises(StoreError, match=r"was not written by this export.*another -o"):
            export(drive, "spatialdata", tmp_path)
        assert (path / "tables").is_dir()
