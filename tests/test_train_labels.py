"""Images by name, and what label files say of them: every form, and every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS
from skimage.io import imsave

from patchdrive.models.segmenter import IGNORED
from patchdrive.pipeline.plan import target_grid
from patchdrive.pipeline.train_labels import ObjectLabels, read_image_labels
from patchdrive.pipeline.train_masks import ClassNames, pixel_labels, spots, things_of_mask
from patchdrive.pipeline.train_read import Shelf
from patchdrive.pipeline.train_sources import Names, find_sources
from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import SettingsError


def picture(path: Path, shape=(40, 60, 3), value=9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.full(shape, value, np.uint8), check_contrast=False)
    return path


def blank(height=40, width=60, **more) -> MemoryImage:
    return MemoryImage([np.zeros((height, width, 3), np.uint8)], **more)


# Images by name.


def test_folders_files_and_patterns(tmp_path):
    for name in ("a/1.png", "a/2.tif", "a/deep/3.png", "b/4.png"):
        picture(tmp_path / name)
    (tmp_path / "a/notes.csv").write_text("x\n")
    (tmp_path / "a/broken.tif").write_bytes(b"nothing")
    (tmp_path / "a/.hidden.png").write_bytes(b"nothing")

    def names(*wanted: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_sources(wanted, tmp_path).paths]

    assert names("a") == ["a/1.png", "a/2.tif"]
    assert names("**/*.png") == ["a/1.png", "a/deep/3.png", "b/4.png"]
    assert names("b/4.png", "a/*.png") == ["a/1.png", "b/4.png"]
    assert names(str(tmp_path / "b")) == ["b/4.png"]
    (left_out,) = find_sources(["a"], tmp_path).left_out.items()
    assert left_out[0].endswith("broken.tif")
    assert "no reader knows it" in left_out[1]


def test_names_without_an_image_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tif").write_text("no image")
    for name in ("empty", "*.png", "none"):
        with pytest.raises(SettingsError, match=rf"sources: .*{name.strip('*')}"):
            find_sources([name], tmp_path)
    with pytest.raises(SettingsError, match=r"text.tif: no reader knows it"):
        find_sources(["text.tif"], tmp_path)


def test_a_name_in_a_file_means_an_image():
    paths = [Path("/data/a/1.svs"), Path("/data/b/1.svs"), Path("/data/b/two.x.tif")]
    names, file = Names(paths), Path("/data/labels.csv")
    assert names.meant("a/1.svs", file) == paths[0]
    assert names.meant("/data/b/1.svs", file) == paths[1]
    assert names.meant("two.x.tif", file) == names.meant("two.x", file) == names.meant("elsewhere\\two.x.png", file) == paths[2]
    assert names.meant("three", file) is None
    with pytest.raises(SettingsError, match=r"'1.svs' may mean /data/a/1.svs or /data/b/1.svs"):
        names.meant("1.svs", file)


# Labels of images.


def labels_of(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    names = Names([Path("a.png"), Path("b.png")])
    return {path.name: label for path, label in read_image_labels(file, names).items()}


def test_labels_of_images(tmp_path):
    assert labels_of(tmp_path, "source,label\na.png,cat\nb.png,dog\nc.png,cow\n") == {"a.png": "cat", "b.png": "dog"}
    assert labels_of(tmp_path, "\ufeffSlide;score;Class_Name\na; 1; cat \n\nb;2;dog\n") == {"a.png": "cat", "b.png": "dog"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("source,grade\na,1\n", "needs the columns source and label, got source, grade"),
        ("source,label\na,cat\na,dog\n", "line 3: a is called 'cat' before and 'dog' here"),
        ("source,label\na\n", "line 2: 2 columns, got 1"),
    ],
)
def test_wrong_labels_of_images(tmp_path, text, words):
    with pytest.raises(SettingsError, match=words):
        labels_of(tmp_path, text)


def test_a_label_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"labels.images .*none.csv cannot be read"):
        read_image_labels(tmp_path / "none.csv", Names([]))


# Objects.


def test_points_and_boxes_of_one_csv(tmp_path):
    file, paths = tmp_path / "o.csv", [Path("a.png"), Path("b.png"), Path("c.png")]
    file.write_text("source,x,y,label\na.png,10,20.5,cell\na.png,1,2,\nb.png,,,\n")
    held = ObjectLabels(file, paths)
    things = held.of(paths[0], blank())
    assert things is not None
    assert things.yx.tolist() == [[20.5, 10], [2, 1]]
    assert things.labels == ("cell", "")
    assert not things.size.any()
    assert things.of(["cell"]).yx.tolist() == [[20.5, 10]]
    nothing = held.of(paths[1], blank())
    assert nothing is not None
    assert len(nothing) == 0
    assert held.of(paths[2], blank()) is None
    file.write_text("image_path,xmin,ymin,xmax,ymax\na,10,20,30,60\n")
    boxes = ObjectLabels(file, paths).of(paths[0], blank())
    file.write_text("source,x,y,width,height\na,10,20,20,40\n")
    same = ObjectLabels(file, paths).of(paths[0], blank())
    assert boxes is not None
    assert same is not None
    assert boxes.yx.tolist() == same.yx.tolist() == [[40, 20]]
    assert boxes.size.tolist() == same.size.tolist() == [[40, 20]]


def test_a_file_for_each_image(tmp_path):
    (tmp_path / "a.csv").write_text("x\ty\n3\t4\n")
    (tmp_path / "b.csv").write_text("x,y\n")
    paths = [Path("a.png"), Path("b.png"), Path("c.png")]
    held = ObjectLabels(tmp_path, paths)
    assert [things.yx.tolist() for path in paths[:2] if (things := held.of(path, blank())) is not None] == [[[4, 3]], []]
    with pytest.raises(SettingsError, match=r"labels.objects .* has none for c: c.csv, c.geojson"):
        held.of(paths[2], blank())
    (tmp_path / "c_points.csv").write_text("x,y\n7,8\n")
    named = ObjectLabels(tmp_path / "{}_points.csv", paths).of(paths[2], blank())
    assert named is not None
    assert named.yx.tolist() == [[8, 7]]
    with pytest.raises(SettingsError, match="does not say of which image its objects are, and there are 3"):
        ObjectLabels(tmp_path / "a.csv", paths)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source,a,b\na,1,2\n", "needs the columns x and y"),
        ("source,x,y\na,1,two\n", "line 2: y is a number, got 'two'"),
        ("source,x,y\na,nan,2\n", "line 2: x is a number, got 'nan'"),
        ("source,xmin,ymin,xmax,ymax\na,10,20,5,60\n", "line 2: a box is -5 wide"),
    ],
)
def test_wrong_objects(tmp_path, text, words):
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(SettingsError, match=words):
        ObjectLabels(tmp_path / "o.csv", [Path("a.png")])


def features(path: Path, *geometries, crs: str | None = None, **properties) -> None:
    held = [{"type": "Feature", "geometry": geometry, "properties": properties} for geometry in geometries]
    named = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": held, **named}))


def square(x, y, side=10):
    return {"type": "Polygon", "coordinates": [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]}


def test_objects_of_qupath(tmp_path):
    features(
        tmp_path / "a.geojson", square(10, 20), {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}, classification={"name": "Tumor"}
    )
    things = ObjectLabels(tmp_path, [Path("a.png")]).of(Path("a.png"), blank())
    assert things is not None
    assert things.yx.tolist() == [[25, 15], [2, 1], [4, 3]]
    assert things.size.tolist() == [[10, 10], [0, 0], [0, 0]]
    assert things.labels == ("Tumor",) * 3


def test_objects_of_a_scene(tmp_path):
    """In the CRS that the file names; boxes stay boxes where rows run north to south."""
    scene = blank(transform=Affine(10, 0, 500000, 0, -10, 5000000), crs=CRS.from_epsg(32633))
    features(tmp_path / "a.geojson", square(500100, 4999800, side=100), crs="EPSG:32633", label="tree")
    things = ObjectLabels(tmp_path, [Path("a.tif")]).of(Path("a.tif"), scene)
    assert things is not None
    assert things.yx == pytest.approx(np.array([[15.0, 15.0]]))
    assert things.size == pytest.approx(np.array([[10.0, 10.0]]))
    features(tmp_path / "a.geojson", square(10, 20))
    with pytest.raises(SettingsError, match=r"none of its objects lies on .*; they are taken to be in OGC:CRS84"):
        ObjectLabels(tmp_path, [Path("a.tif")]).of(Path("a.tif"), scene)


def test_lines_are_no_objects(tmp_path):
    features(tmp_path / "a.geojson", {"type": "LineString", "coordinates": [[1, 2], [3, 4]]})
    with pytest.raises(SettingsError, match="holds a LineString; objects are points and polygons"):
        ObjectLabels(tmp_path, [Path("a.png")]).of(Path("a.png"), blank())


# Pixels.

NAMES = ClassNames(classes=("rest", "cell", "gland"))


def test_a_mask_at_any_size(tmp_path):
    values = np.zeros((40, 60), np.uint8)
    values[10:20, 30:50], values[30:, :10] = 1, 2
    imsave(tmp_path / "a.png", values, check_contrast=False)
    half = values[::2, ::2]
    imsave(tmp_path / "b.png", half, check_contrast=False)
    image, shelf = blank(), Shelf()
    for name in ("a", "b"):
        labels = pixel_labels(tmp_path, Path(f"{name}.tif"), image, NAMES, shelf)
        whole = labels.read(target_grid(image.levels[0], 1.0, 1.0), Window(y=-5, x=-5, height=50, width=70))
        assert (whole[5:45, 5:65] == values).all()
        assert (whole[:5] == IGNORED).all()
        coarse = labels.read(target_grid(image.levels[0], 2.0, 2.0), Window(y=0, x=0, height=20, width=30))
        assert (coarse == half).all()
    naming = ClassNames(classes=("gland", "cell"), values=(2, 1))
    other = pixel_labels(tmp_path, Path("a.tif"), image, naming, shelf).read(image.levels[0], image.levels[0].window)
    assert (other[values == 2] == 0).all()
    assert (other[values == 1] == 1).all()
    assert (other[values == 0] == IGNORED).all()
    shelf.close()


def test_polygons_are_painted_in_their_order(tmp_path):
    cells = [{**square(5, 5, 20)}, {**square(15, 15, 10)}, {**square(40, 0, 5)}]
    held = [
        {"type": "Feature", "geometry": one, "properties": {"label": name}}
        for one, name in zip(cells, ("cell", "gland", "fat"), strict=True)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": held}))
    image = blank()
    expected = np.full((40, 60), IGNORED, np.uint8)
    expected[5:25, 5:25], expected[15:25, 15:25] = 1, 2
    base = image.levels[0]
    labels = pixel_labels(tmp_path, Path("a.png"), image, NAMES, Shelf())
    assert (labels.read(base, base.window) == expected).all()
    part = Window(y=10, x=12, height=9, width=30)
    assert (labels.read(base, part) == expected[part.within(base.window)]).all()
    with_rest = pixel_labels(tmp_path, Path("a.png"), image, ClassNames(classes=NAMES.classes, rest="rest"), Shelf())
    whole = with_rest.read(base, base.window)
    assert whole[30, 30] == 0
    assert whole[2, 42] == IGNORED  # fat is none of the classes
    places = spots(labels, image, 3, target_grid(base, 2.0, 2.0))
    assert [len(held) for held in places] == [0, 300, 100]
    assert places[2].mean(axis=0) == pytest.approx([10.0, 10.0])
    assert labels.digest != with_rest.digest


def test_objects_of_a_mask(tmp_path):
    """Of one value or of many: what hangs together is one."""
    values = np.zeros((20, 30), np.uint8)
    values[2:6, 4:8], values[6:10, 4:8], values[15, 20] = 1, 2, 1
    imsave(tmp_path / "a_mask.png", values, check_contrast=False)
    shelf = Shelf()
    things = things_of_mask(tmp_path, Path("a.tif"), blank(), shelf)
    assert sorted(things.yx.tolist()) == [[8, 12], [16, 12], [31, 41]]
    assert sorted(things.size.tolist()) == [[2, 2], [8, 8], [8, 8]]
    shelf.close()


def test_masks_that_are_none(tmp_path):
    shelf = Shelf()
    picture(tmp_path / "a.png", (40, 60, 3))
    with pytest.raises(SettingsError, match="has 3 channels of uint8: a mask has one"):
        pixel_labels(tmp_path, Path("a.tif"), blank(), NAMES, shelf)
    picture(tmp_path / "b.png", (40, 40))
    with pytest.raises(SettingsError, match=r"b.png is 40 x 40 pixels .*: a mask covers the whole image"):
        pixel_labels(tmp_path, Path("b.tif"), blank(), NAMES, shelf)
    with pytest.raises(SettingsError, match=r"labels.pixels .* has none for c: c_mask.png"):
        pixel_labels(tmp_path, Path("c.tif"), blank(), NAMES, shelf)
    features(tmp_path / "d.geojson", square(1, 1))
    with pytest.raises(SettingsError, match=r"name them as labels.objects"):
        things_of_mask(tmp_path, Path("d.tif"), blank(), shelf)
    shelf.close()
