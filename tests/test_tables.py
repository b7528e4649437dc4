"""Feature tables: made some rows at a time, and what anndata reads is the plan."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.pipeline import tables
from patchdrive.pipeline.journal import Journal
from patchdrive.pipeline.plan import feature_blocks, ordered, target_grid
from patchdrive.readers import Level


def some_plan(count):
    rng = np.random.default_rng(count)
    base = Level(index=0, height=9000, width=8000, downsample_y=1.0, downsample_x=1.0, tile_height=256, tile_width=256)
    y, x = rng.integers(-40, 5000, count), rng.integers(-40, 6000, count)
    return ordered(y, x, rng.random(count).astype(np.float32), 64, target_grid(base, 1.7, 1.3))


@pytest.fixture
def journal(tmp_path):
    held = Journal(tmp_path / "a.patchdrive")
    (tmp_path / "a.zarr").mkdir()
    yield held
    held.close()


@pytest.mark.parametrize(("count", "at_a_time"), [(1, 1 << 20), (50, 1 << 20), (50, 50), (50, 7), (2100, 1000), (2100, 1 << 20)])
def test_a_table_made_in_parts_holds_the_whole_plan(tmp_path, journal, monkeypatch, count, at_a_time):
    monkeypatch.setattr(tables, "_COLUMN_CHUNK", at_a_time)
    monkeypatch.setattr(tables, "_NAME_CHUNK", at_a_time)
    monkeypatch.setattr(tables, "_SPATIAL_CHUNK", min(at_a_time, 1024))
    plan, path = some_plan(count), tmp_path / "a.zarr" / "t"
    tables.create_table(path, plan, ["a", "b"], "float16", journal)
    rows = range(0, count, 3)
    records = {block.index: {"dropped": [[row, "skipped", "a reason"] for row in rows]} for block in feature_blocks(plan)}
    tables.write_states(path, tables.states_of(count, feature_blocks(plan), records), journal)
    held = anndata.read_zarr(path)
    assert held.obs_names.tolist() == [str(row) for row in range(count)]
    assert held.var_names.tolist() == ["a", "b"]
    for name in ("y", "x", "score", "rank"):
        column, wanted = held.obs[name].to_numpy(), getattr(plan, name)
        assert column.dtype == wanted.dtype
        np.testing.assert_array_equal(column, wanted)
    np.testing.assert_array_equal(held.obsm["spatial"], plan.centres[:, ::-1])
    assert held.obs["state"].tolist() == ["skipped" if row in rows else "done" for row in range(count)]
    assert zarr.open_array(path / "obs" / "_index").chunks == (min(count, at_a_time),)


def test_no_more_rows_are_made_at_a_time_than_a_chunk_has(tmp_path, journal, monkeypatch):
    monkeypatch.setattr(tables, "_COLUMN_CHUNK", 100)
    monkeypatch.setattr(tables, "_NAME_CHUNK", 100)
    made, names = [], tables._names
    monkeypatch.setattr(tables, "_names", lambda rows: made.append(rows) or names(rows))
    tables.create_table(tmp_path / "a.zarr" / "t", some_plan(950), ["a"], "float32", journal)
    assert [rows.start for rows in made] == list(range(0, 950, 100))
    assert all(rows.stop - rows.start <= 100 for rows in made)


@given(rows=st.integers(1, 10**9))
def test_centres_lie_in_few_files(rows):
    chunk = tables._spatial_chunk(rows)
    assert chunk == rows or chunk >= 1024
    assert -(-rows // chunk) <= 1024
    assert chunk <= 1024 or -(-rows // chunk) > 512


def test_a_table_says_what_spatialdata_asks(tmp_path, journal):
    """Of a table without a version it reads nothing; one without a region annotates no shapes. `make interop` opens them for real."""
    tables.create_table(tmp_path / "a.zarr" / "t", some_plan(3), ["a"], "float32", journal)
    nothing = tables.FoundObjects(yx=np.zeros((0, 2)), score=np.zeros(0, np.float32))
    tables.create_objects(tmp_path / "a.zarr" / "o", nothing, journal)
    for name in ("t", "o"):
        held = zarr.open_group(tmp_path / "a.zarr" / name, mode="r").attrs
        assert (held["version"], held["spatialdata-encoding-type"]) == ("0.2", "ngff:regions_table")
        assert [held[key] for key in ("region", "region_key", "instance_key")] == [None, None, None]
