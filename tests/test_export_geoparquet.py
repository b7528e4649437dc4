"""GeoParquet, read back by pyarrow and by geopandas: geometry, frame, columns, and what lets readers skip row groups."""

from __future__ import annotations

import json
from contextlib import closing

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from examples import Means, store_with_a_hole

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.geoparquet import write_geoparquet
from patchdrive.readers import MemoryImage, open_image

PLACE = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
ROTATED = Affine.translation(500000.0, 5000000.0) * Affine.rotation(30) * Affine.scale(10.0, -10.0)


@pytest.fixture
def store(tmp_path):
    """Of oblong pixels, 2 x 3 level-0 pixels per target pixel."""
    return store_with_a_hole(tmp_path, mpp=(0.3, 0.2), wanted=0.6, hole=(slice(256, 768), slice(192, 576)))


def geo_of(path):
    """The file's `geo` metadata, and what the format asks of every file."""
    file = pq.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"], geo["columns"].keys()) == ("1.1.0", "geometry", {"geometry"})
    column = geo["columns"]["geometry"]
    assert (column["encoding"], file.schema_arrow.field("geometry").type) == ("WKB", pa.binary())
    for edge, where in column["covering"]["bbox"].items():
        assert where == ["bbox", edge]
        assert file.schema_arrow.field("bbox").type.field(edge).type == pa.float64()
    assert {file.metadata.row_group(0).column(index).compression for index in range(5)} == {"ZSTD"} if file.num_row_groups else True
    return column


def test_patches_are_boxes_in_level_0_pixels(store, tmp_path):
    (path,) = export(store, "geoparquet", tmp_path / "out")
    assert path.name == f"{slide_name(open_result(store))}_patches.parquet"
    patches, column = open_result(store).patches, geo_of(path)
    assert (column["crs"], column["geometry_types"]) == (None, ["Polygon"])
    table = pq.read_table(path)
    assert len(table) == len(patches) > 20
    boxes = shapely.from_wkb(table["geometry"].to_numpy())
    edges = shapely.bounds(boxes)
    np.testing.assert_allclose((edges[:, [1, 0]] + edges[:, [3, 2]]) / 2, patches.centres)
    np.testing.assert_allclose(edges[:, 2:] - edges[:, :2], np.tile([64 * 3, 64 * 2], (len(edges), 1)))
    assert shapely.is_ccw(shapely.get_exterior_ring(boxes)).all()
    np.testing.assert_array_equal(np.stack([table["x"], table["y"]], axis=1), edges[:, :2])
    np.testing.assert_allclose(table["side"], 64 * 2.5)
    for name in ("round", "score", "rank", "state"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(patches, name))
    assert set(table["state"].to_pylist()) == {"done", "skipped"}
    np.testing.assert_array_equal(np.stack([table["bbox"].combine_chunks().field(index) for index in range(4)], axis=1), edges)
    assert column["bbox"] == shapely.total_bounds(boxes).tolist()


@pytest.mark.parametrize(("transform", "crs"), [(ROTATED, "EPSG:32633"), (PLACE, None)])
def test_patches_of_a_scene_lie_in_the_world(tmp_path, transform, crs):
    path = tmp_path / "scene.tif"
    about = {
        "driver": "GTiff",
        "height": 300,
        "width": 500,
        "count": 3,
        "dtype": "uint16",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    with rasterio.open(path, "w", **about, crs=crs, transform=transform) as dataset:
        dataset.write(np.random.default_rng(0).integers(1, 4000, (3, 300, 500)).astype(np.uint16))
    with closing(open_image(str(path))) as image:
        run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(gsd=20.0))
    (written,) = export(tmp_path / "s.zarr", "geoparquet", tmp_path / "out")
    frame, plan = geopandas.read_parquet(written), open_result(tmp_path / "s.zarr").rounds[0].plan
    assert frame.crs == crs
    assert (geo_of(written)["crs"] is None) == (crs is None)
    assert len(frame) == len(plan) > 3
    for polygon, y, x in zip(frame.geometry, plan.y.tolist(), plan.x.tolist(), strict=True):
        wanted = [transform * (2 * (x + right), 2 * (y + down)) for right, down in ((0, 0), (64, 0), (64, 64), (0, 64))]
        assert polygon.normalize().equals_exact(shapely.Polygon(wanted).normalize(), 1e-6)
        assert polygon.exterior.is_ccw
    east = frame.geometry.bounds.minx.median()
    part = geopandas.read_parquet(written, bbox=(east + 1, -1e9, 1e9, 1e9))
    assert 0 < len(part) < len(frame)


def test_things_found_are_points_with_their_score(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 200, (1000, 1000, 3)).astype(np.uint8)
    image = MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    run(image, patchdrivenet(PatchDriveNetConfig(max_patches=4, threshold=0.0)), tmp_path / "s.zarr", settings=RunSettings())
    result = open_result(tmp_path / "s.zarr")
    ((name, objects),), slide = result.objects.items(), slide_name(result)
    written = export(tmp_path / "s.zarr", "geoparquet", tmp_path / "out")
    assert [path.name for path in written] == [f"{slide}_patches.parquet", f"{slide}_{name}.parquet"]
    frame = geopandas.read_parquet(written[1])
    assert len(frame) == len(objects) > 0
    np.testing.assert_array_equal(np.stack([frame.geometry.y, frame.geometry.x], axis=1), objects.yx)
    np.testing.assert_array_equal(frame.score, objects.score)


def test_nothing_found_is_a_file_that_opens(tmp_path):
    image = MemoryImage([np.full((600, 600, 3), 244, np.uint8)], mpp=(0.5, 0.5))
    assert run(image, Means(), tmp_path / "s.zarr", settings=RunSettings()).planned == 0
    (path,) = export(tmp_path / "s.zarr", "geoparquet", tmp_path / "out")
    assert "bbox" not in geo_of(path)
    frame = geopandas.read_parquet(path)
    assert (len(frame), frame.crs) == (0, None)


def test_each_batch_is_a_row_group_with_its_own_box(tmp_path):
    batches = [(shapely.box(left, 0, left + np.arange(1, 4), 5), {"name": np.array(["a", "b", "c"])}) for left in (0, 100, 200)]
    batches.insert(1, (np.empty(0, object), {"name": np.empty(0, "U1")}))
    write_geoparquet(tmp_path / "x.parquet", iter(batches), columns={"name": pa.string()}, crs=None)
    held = pq.ParquetFile(tmp_path / "x.parquet")
    assert [held.metadata.row_group(group).num_rows for group in range(held.num_row_groups)] == [3, 3, 3]
    paths = [held.metadata.row_group(0).column(index).path_in_schema for index in range(held.metadata.num_columns)]
    lows = [held.metadata.row_group(group).column(paths.index("bbox.xmin")).statistics.min for group in range(3)]
    assert lows == [0, 100, 200]
    assert len(geopandas.read_parquet(tmp_path / "x.parquet", bbox=(150, 0, 300, 5))) == 3


def test_an_error_on_the_way_leaves_what_was_there(tmp_path):
    def batches():
        yield shapely.points([[1.0, 2.0]]), {}
        raise OSError("gone")

    (tmp_path / "x.parquet").write_text("before")
    with pytest.raises(OSError, match="gone"):
        write_geoparquet(tmp_path / "x.parquet", batches(), columns={}, crs=None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.parquet", "before")]
