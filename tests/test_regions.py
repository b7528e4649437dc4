"""Regions that somebody drew: only patches that touch them are read, in the frame they were drawn in."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.warp import transform as to_crs

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.glance import check
from patchdrive.pipeline.region_mask import RegionMask
from patchdrive.pipeline.regions import read_regions
from patchdrive.readers import MemoryImage, open_image
from patchdrive.readers.errors import SettingsError, StoreError


class Means:
    """The mean of each channel."""

    digest = "means"
    spec = ModelSpec(
        name="means", channels=3, size=50, any_size=True, outputs=(OutputSpec(name="m", kind="vector", channels=("r", "g", "b")),)
    )

    def __call__(self, pixels):
        return {"m": pixels.mean(dim=(2, 3))}

    def to(self, device):
        return self


def box(left, top, right, bottom):
    return {"type": "Polygon", "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]}


def slide():
    pixels = np.random.default_rng(0).integers(40, 200, (1000, 1200, 3)).astype(np.uint8)
    return MemoryImage([pixels, np.ascontiguousarray(pixels[::10, ::10])], mpp=(0.5, 0.5))


def written(path, held):
    data = json.dumps(held).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def corners(store):
    patches = open_result(store).patches
    return set(zip(patches.y.tolist(), patches.x.tolist(), strict=True))


FORMS = {
    "collection": lambda shape: {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": shape}]},
    "feature": lambda shape: {"type": "Feature", "geometry": shape, "properties": None},
    "geometry": lambda shape: shape,
    "list": lambda shape: [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}},
        {"type": "Feature", "geometry": shape},
    ],
    "many": lambda shape: {"type": "GeometryCollection", "geometries": [{"type": "MultiPolygon", "coordinates": [shape["coordinates"]]}]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["r.geojson", "r.geojson.gz"])
def test_patches_that_touch_a_polygon_are_taken_and_no_others(tmp_path, form, name):
    regions = written(tmp_path / name, FORMS[form](box(310, 220, 495, 330)))
    run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", regions=regions))
    assert corners(tmp_path / "s.zarr") == {(y, x) for y in (200, 250, 300) for x in (300, 350, 400, 450)}


def test_a_hole_stays_a_hole_and_the_saliency_still_counts(tmp_path):
    shape = box(0, 0, 1200, 1000)
    shape["coordinates"].append(box(195, 195, 605, 605)["coordinates"][0])
    regions = written(tmp_path / "r.geojson", shape)
    run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="test_regions:lower", regions=regions))
    taken = corners(tmp_path / "s.zarr")
    assert taken == {(y, x) for y in range(500, 1000, 50) for x in range(0, 1200, 50) if not (y < 600 and 200 <= x < 600)}


def lower(pixels, mask):
    found = np.zeros(mask.shape, np.float32)
    found[len(found) // 2 :] = 1
    return found


@pytest.mark.parametrize("named", [None, "EPSG:32633", "urn:ogc:def:crs:EPSG::32633"])
def test_of_a_scene_they_are_longitudes_or_what_the_file_names(tmp_path, named):
    path = tmp_path / "scene.tif"
    about = {"driver": "GTiff", "height": 1000, "width": 1200, "count": 3, "dtype": "uint8", "tiled": True}
    place = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    with rasterio.open(path, "w", **about, crs="EPSG:32633", transform=place) as dataset:
        dataset.write(np.random.default_rng(0).integers(1, 200, (3, 1000, 1200)).astype(np.uint8))
    (left, top), (right, bottom) = place * (312, 222), place * (488, 328)
    shape = box(left, top, right, bottom)
    if named is None:
        x, y = zip(*shape["coordinates"][0], strict=True)
        shape["coordinates"] = [list(map(list, zip(*to_crs("EPSG:32633", "OGC:CRS84", x, y), strict=True)))]
    else:
        shape = {"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": named}}, "features": [FORMS["feature"](shape)]}
    regions = written(tmp_path / "r.geojson", shape)
    with closing(open_image(str(path))) as image:
        run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(regions=regions))
    assert corners(tmp_path / "s.zarr") == {(y, x) for y in (200, 250, 300) for x in (300, 350, 400, 450)}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (box(5000, 5000, 6000, 6000), r"none of its polygons lies on .*level-0 pixels"),
        ({"type": "Point", "coordinates": [3, 3]}, "holds no polygon"),
        ({"type": "FeatureCollection"}, "cannot be read as GeoJSON"),
        ("words", "cannot be read as GeoJSON"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, "x"]]]}, "does not fit"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, held, said):
    regions = written(tmp_path / "r.geojson", held)
    with pytest.raises(SettingsError, match=said):
        run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=regions))
    assert [path.name for path in tmp_path.iterdir()] == ["r.geojson"]


@pytest.mark.parametrize(
    ("corner", "said"), [((3.0, 100.0), r"lies beyond what the image's CRS"), ((12.0, 45.0), None), ((900.0, 900.0), "OGC:CRS84")]
)
def test_corners_that_no_crs_can_hold_are_told(tmp_path, corner, said):
    path = tmp_path / "scene.tif"
    place = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    about = {"driver": "GTiff", "height": 300, "width": 300, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(path, "w", **about) as dataset:
        dataset.write(np.full((3, 300, 300), 9, np.uint8))
    ring = [[15.0, 45.14], [15.1, 45.14], [15.1, 45.2], list(corner), [15.0, 45.14]]
    regions = read_regions(written(tmp_path / "r.geojson", {"type": "Polygon", "coordinates": [ring]}), "x")
    with closing(open_image(str(path))) as image:
        if said is None:
            assert regions.over(image, image.levels[0]).any()
        else:
            with pytest.raises(SettingsError, match=said):
                regions.over(image, image.levels[0])


def test_files_that_are_torn_or_too_deep_are_refused_and_empty_shapes_left_out(tmp_path):
    torn = tmp_path / "torn.geojson.gz"
    torn.write_bytes(gzip.compress(json.dumps(box(0, 0, 5, 5)).encode() * 50)[:40] + b"junk" * 10)
    deep = tmp_path / "deep.geojson"
    deep.write_text('{"type":"Feature","geometry":' * 5000 + "null" + "}" * 5000)
    for path in (torn, deep):
        with pytest.raises(SettingsError, match="cannot be read as GeoJSON"):
            read_regions(str(path), "x")
    shapes = [{"type": "Polygon", "coordinates": []}, {"type": "MultiPolygon", "coordinates": []}, box(0, 0, 5, 5)]
    held = read_regions(written(tmp_path / "e.geojson", [FORMS["feature"](shape) for shape in shapes]), "x")
    assert held.polygons == (box(0, 0, 5, 5),)


def test_a_level_without_a_pyramid_is_not_drawn_whole_to_check(tmp_path):
    regions = written(tmp_path / "r.geojson", box(10, 10, 40, 40))
    image = MemoryImage([np.ones((4000, 4000, 3), np.uint8)], mpp=(0.5, 0.5))
    tracemalloc.start()
    check(image, Means.spec, RunSettings(regions=regions), drives=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_other_refusals(tmp_path):
    regions = written(tmp_path / "r.geojson", box(0, 0, 900, 900))
    with pytest.raises(SettingsError, match=r"no file, and has none for .*\.geojson\.gz"):
        run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=str(tmp_path)))
    with pytest.raises(SettingsError, match="leave --regions out"):
        run(slide(), patchdrivenet(PatchDriveNetConfig()), tmp_path / "s.zarr", settings=RunSettings(regions=regions))
    with pytest.raises(SettingsError, match="leave regions out"):
        RunSettings(regions=regions, coords="x.h5")
    run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=regions))
    moved = written(tmp_path / "moved.geojson", box(0, 0, 900, 900))
    assert run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=moved)).status == "done"
    other = written(tmp_path / "r.geojson", box(0, 0, 800, 900))
    with pytest.raises(StoreError, match=r"settings\.regions was"):
        run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=other))


def test_each_image_of_a_folder_has_its_own(tmp_path):
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(json.dumps(box(0, 0, 5, 5)).encode()))
    written(tmp_path / "b.json", box(0, 0, 7, 7))
    assert read_regions(str(tmp_path), "/x/a.svs").polygons == (box(0, 0, 5, 5),)
    assert read_regions(str(tmp_path), "/x/b.svs").polygons == (box(0, 0, 7, 7),)


def test_what_was_exported_for_qupath_is_taken_as_regions(tmp_path):
    run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", select="topk", max_patches=5))
    assert main(["export", str(tmp_path / "s.zarr"), "--to", "geojson", "-o", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*_patches.geojson.gz")
    inside = read_regions(str(path), "x").over(slide(), slide().levels[0])
    assert inside.sum() == 5 * 50 * 50


def mask(path, shape, part, **place):
    """A raster that is 7 in `part`, 0 elsewhere."""
    pixels = np.zeros(shape, np.uint8)
    pixels[part] = 7
    profile = {"driver": "PNG" if path.suffix == ".png" else "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(pixels, 1)
    return str(path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("fine", [1, 5, 20], ids=str)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_of_any_size_says_where_to_look(tmp_path, fine, suffix):
    """(200, 300) to (400, 650), a hundred of whose rows and columns are five pixels of the coarsest mask."""
    path = mask(tmp_path / f"m.{suffix}", (1000 // fine, 1200 // fine), (slice(200 // fine, 400 // fine), slice(300 // fine, 640 // fine)))
    run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", regions=path))
    wanted = {(y, x) for y in range(0, 1000, 50) for x in range(0, 1200, 50) if y < 400 and y + 50 > 200 and x < 640 and x + 50 > 300}
    assert corners(tmp_path / "s.zarr") == wanted


def test_a_thing_of_one_pixel_of_a_fine_mask_is_not_lost():
    image = slide()
    with rasterio.MemoryFile() as held:
        with held.open(driver="GTiff", height=1000, width=1200, count=1, dtype="uint8", transform=Affine.scale(2)) as file:
            pixels = np.zeros((1000, 1200), np.uint8)
            pixels[333, 777] = 1
            file.write(pixels, 1)
        inside = RegionMask(path=held.name).over(image, image.levels[1])
    assert np.argwhere(inside).tolist() == [[33, 77]]


def test_a_placed_mask_lies_where_its_crs_says(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 200, (400, 600, 3)).astype(np.uint8)
    image = MemoryImage([pixels], transform=Affine(10, 0, 5e5, 0, -10, 5e6), crs=CRS.from_epsg(32633))
    place = {"transform": Affine(20, 0, 5e5 + 1000, 0, -20, 5e6 - 500), "crs": "EPSG:32633"}
    path = mask(tmp_path / "m.tif", (50, 60), (slice(10, 20), slice(30, 35)), **place)  # rows 70 to 90, columns 160 to 170
    inside = read_regions(path, "x").over(image, image.levels[0])
    assert np.argwhere(inside).min(axis=0).tolist() == [70, 160]
    assert np.argwhere(inside).max(axis=0).tolist() == [89, 169]


def test_nan_is_outside_of_a_mask(tmp_path):
    pixels = np.full((100, 120), np.nan, np.float32)
    pixels[20:30, 40:50] = 0.5
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", height=100, width=120, count=1, dtype="float32", transform=Affine.scale(10)
    ) as file:
        file.write(pixels, 1)
    image = slide()
    assert read_regions(str(tmp_path / "m.tif"), "x").over(image, image.levels[1]).sum() == 100


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_mask_of_another_shape_or_of_nothing_is_refused(tmp_path):
    everything = (slice(None), slice(None))
    for shape, part, said in [((100, 100), everything, "covers the whole image"), ((100, 120), (slice(0), slice(0)), "none of it lies on")]:
        path = mask(tmp_path / "m.png", shape, part)
        with pytest.raises(SettingsError, match=said):
            run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=path))
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(SettingsError, match="cannot be read as an image"):
        run(slide(), Means(), tmp_path / "s.zarr", settings=RunSettings(regions=str(tmp_path / "torn.png")))
    assert not (tmp_path / "s.zarr").exists()
