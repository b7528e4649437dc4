"""OME-Zarr against zarr and Dask read on their own, on real stores and on stores whose pixels encode their place."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from fractions import Fraction

import dask.array as da
import numpy as np
import pytest
import zarr
from contract import ImageContract, some_windows
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.multiscale import MultiscaleImage
from patchdrive.readers.ngff import downsample_of, inner_paths, parse_multiscale

V04 = "omezarr/fractal_cardio_v04_levels1-3.ome.zarr"
V05 = "omezarr/fractal_cardio_v05_sharded_levels1-3.ome.zarr"


def place(height, width, level=0):
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = level."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, np.full_like(x, level)], axis=2).astype(np.uint8)


def write(path, levels, axes="cyx", *, zarr_format=3, unit="micrometer", scales=None, chunks=(48, 64), shards=None, dtype=None, ome=None):
    """An OME-Zarr image from (y, x, c) arrays; every axis but y, x, c has length 1."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    datasets = []
    for index, pixels in enumerate(levels):
        planes = [name for name in axes if name not in "yxc"]
        stored = pixels[(np.newaxis,) * len(planes)].transpose([[*planes, "y", "x", "c"].index(name) for name in axes])
        sizes = dict(zip("yx", chunks, strict=True))
        grid = tuple(min(sizes.get(name, 1), size) for name, size in zip(axes, stored.shape, strict=True))
        array = group.create_array(
            str(index),
            shape=stored.shape,
            dtype=dtype or stored.dtype,
            chunks=grid,
            shards=None
            if shards is None
            else tuple(size * shards if name in "yx" else size for name, size in zip(axes, grid, strict=True)),
        )
        array[...] = stored
        scale = [0.25 * 2**index if name in "yx" else 1 for name in axes] if scales is None else scales[index]
        datasets.append({"path": str(index), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    types = {"t": "time", "c": "channel"}
    said = [{"name": name, "type": types.get(name, "space"), **({"unit": unit} if unit and name in "zyx" else {})} for name in axes]
    describe(path, {"multiscales": [{"axes": said, "datasets": datasets}], **(ome or {})}, zarr_format)
    return path


def describe(path, ome, zarr_format):
    """Replace a group's OME attributes."""
    group = zarr.open_group(path, zarr_format=zarr_format, mode="r+")
    if zarr_format == 3:
        group.attrs.put({"ome": {"version": "0.5", **ome}})
    else:
        group.attrs.put({**ome, "multiscales": [{"version": "0.4", **image} for image in ome["multiscales"]]})


def whole(image, level=0):
    return image.read(image.levels[level].window, level=level)


class TestSharded(ImageContract):
    """Fractal's cardiomyocytes as 0.5: czyx, uint16, chunks of 256 in shards of 512."""

    name = V05

    @pytest.fixture
    def image(self, real_file):
        return MultiscaleImage(real_file(self.name))

    @pytest.fixture
    def expected(self, real_file):
        arrays = [da.from_zarr(str(real_file(self.name)), component=level) for level in ("1", "2", "3")]
        return [np.moveaxis(array[:, 0].compute(scheduler="synchronous"), 0, 2) for array in arrays]

    def test_says_what_the_file_says(self, image):
        assert image.channels == ("DAPI", "nanog", "Lamin B1")
        assert image.mpp == (0.65, 0.65)
        assert [(level.downsample_y, level.downsample_x) for level in image.levels] == [(1, 1), (2, 2), (4, 4)]
        assert {(level.tile_height, level.tile_width) for level in image.levels} == {(256, 256)}
        assert (image.codec, image.properties["ome.version"]) == ("zstd", "0.5")


class TestVersion04(TestSharded):
    """The same pixels as Fractal wrote them: 0.4, one chunk per channel."""

    name = V04

    def test_says_what_the_file_says(self, image):
        assert image.channels == ("DAPI", "nanog", "Lamin B1")
        assert image.mpp == (0.65, 0.65)
        assert [(level.tile_height, level.tile_width) for level in image.levels] == [(1080, 1280), (540, 640), (270, 320)]
        assert (image.codec, image.properties["ome.version"]) == ("blosc-lz4", "0.4")


class TestFloats(ImageContract):
    """SpatialData's blobs: float64 and a version of its own."""

    @pytest.fixture(params=["0.4", "0.5"])
    def version(self, request):
        return request.param

    @pytest.fixture
    def image(self, real_file, version):
        return MultiscaleImage(real_file(f"omezarr/blobs_image_v{version.replace('.', '')}.ome.zarr"))

    @pytest.fixture
    def expected(self, real_file, version):
        path = real_file(f"omezarr/blobs_image_v{version.replace('.', '')}.ome.zarr")
        return [np.moveaxis(zarr.open_array(path / "0", mode="r")[...], 0, 2)]

    def test_says_what_the_file_says(self, image, version):
        assert image.properties["ome.version"] == f"{version}-dev-spatialdata"
        assert image.channels == ("0", "1", "2")
        assert image.mpp is None
        assert image.has_mask


@pytest.mark.parametrize(
    ("axes", "zarr_format", "shards"), [("acyx", 2, None), ("tczyx", 2, None), ("yxc", 3, None), ("czyx", 3, 2), ("xyc", 3, 2)]
)
class TestAnyOrderOfAxes(ImageContract):
    @pytest.fixture
    def expected(self):
        return [place(231, 307), place(115, 153, 1)]

    @pytest.fixture
    def image(self, tmp_path, expected, axes, zarr_format, shards):
        return MultiscaleImage(write(tmp_path / "image.zarr", expected, axes, zarr_format=zarr_format, shards=shards))

    def test_frames(self, image):
        assert image.mpp == (0.25, 0.25)
        assert (image.levels[1].downsample_y, image.levels[1].downsample_x) == (2, 2)
        assert (image.levels[0].tile_height, image.levels[0].tile_width) == (48, 64)


# Real stores: pairs, planes, labels, plates


def test_both_versions_hold_the_same_pixels(real_file):
    old, new = MultiscaleImage(real_file(V04)), MultiscaleImage(real_file(V05))
    for level in old.levels:
        for window in some_windows(level.height, level.width, seed=9):
            np.testing.assert_array_equal(old.read(window, level=level.index), new.read(window, level=level.index))


@pytest.mark.parametrize("name", ["2d_testing/2d_dataset", "xyc/3d_dataset"])
def test_pairs_of_another_implementation(real_file, name):
    old, new = (MultiscaleImage(real_file(f"omezarr/fiji-java/{name}_{version}.ome.zarr")) for version in ("v4", "v5"))
    assert old.levels == new.levels
    assert whole(old).any()
    for level in old.levels:
        stored = zarr.open_array(old.source, path=str(level.index), mode="r", zarr_format=2)[...]
        np.testing.assert_array_equal(whole(old, level.index), stored[..., np.newaxis] if stored.ndim == 2 else np.moveaxis(stored, 0, 2))
        np.testing.assert_array_equal(whole(old, level.index), whole(new, level.index))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_anisotropic_pixels_too_small_to_believe(real_file, version):
    image = MultiscaleImage(real_file(f"omezarr/simple_{version}"))
    assert image.mpp is None
    assert image.properties["ome.scale"] == "4.0,30.0"
    assert [(level.height, level.downsample_y, level.downsample_x) for level in image.levels] == [(10, 1, 1), (5, 2, 2), (2, 4, 4)]


def test_labels_open_as_images(real_file):
    image = MultiscaleImage(real_file(f"{V05}/labels/nuclei"))
    assert image.dtype == np.uint32
    assert [(level.height, level.width) for level in image.levels] == [(1080, 1280), (540, 640), (270, 320)]
    np.testing.assert_array_equal(whole(image)[..., 0], zarr.open_array(real_file(f"{V05}/labels/nuclei/1"), mode="r")[0])


def test_a_field_of_a_plate_opens_and_the_plate_names_it(real_file):
    field = MultiscaleImage(real_file("omezarr/examples/valid/plate-01.zarr/A/1/0"))
    assert field.levels[0].height == 1000
    with pytest.raises(FormatError, match=r"a plate holds images.*plate-01.zarr/A/1/0, .*/B/2/0$"):
        MultiscaleImage(real_file("omezarr/examples/valid/plate-01.zarr"))
    with pytest.raises(FormatError, match=r"a well holds images.*plate-01.zarr/A/2/0$"):
        MultiscaleImage(real_file("omezarr/examples/valid/plate-01.zarr/A/2"))
    with pytest.raises(FormatError, match=r"v0.5_hcs/A/1/0$"):
        MultiscaleImage(real_file("omezarr/zarr-java/v0.5_hcs"))


def test_a_series_and_a_labels_group_name_their_images(real_file):
    with pytest.raises(FormatError, match=r"bioformats2raw series.*bf2raw_dataset_v5.ome.zarr/0, .*/1$"):
        MultiscaleImage(real_file("omezarr/fiji-java/bioformats2raw_testing/bf2raw_dataset_v5.ome.zarr"))
    with pytest.raises(FormatError, match=r"a labels group.*labels/nuclei$"):
        MultiscaleImage(real_file(f"{V04}/labels"))
    with pytest.raises(FormatError, match="none is there"):
        MultiscaleImage(real_file("omezarr/examples/valid/image-01.zarr/labels"))


def test_a_stack_asks_for_a_plane(real_file):
    path = real_file("omezarr/examples/valid/image-04.zarr")
    with pytest.raises(FormatError, match=r"stack along z of length 2; choose with .*plane=\{'z': 0\}"):
        MultiscaleImage(path)
    planes = [MultiscaleImage(path, plane={"z": index}) for index in (0, 1)]
    assert len({image.identity for image in planes}) == 2
    for index, image in enumerate(planes):
        stored = zarr.open_array(path / "1", mode="r")[index][..., np.newaxis]
        np.testing.assert_array_equal(whole(image, 1), stored)
        np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(image)), 1), stored)
    for plane in ({"z": 2}, {"z": -1}, {"t": 0}):
        with pytest.raises(FormatError, match="plane"):
            MultiscaleImage(path, plane=plane)


@pytest.mark.parametrize("name", ["zarr-java/v0.4", "zarr-java/v0.5", "fiji-java/pyramid_testing/pyramid_v5.zarr"])
def test_a_stack_that_shrinks_has_no_plane(real_file, name):
    with pytest.raises(FormatError, match=r"z has lengths \["):
        MultiscaleImage(real_file(f"omezarr/{name}"), plane={"z": 0})


def test_every_real_store_opens_right_or_is_refused_with_its_name(real_file):
    root = real_file("omezarr")
    opened = []
    for folder, _, files in os.walk(root):
        if not {".zgroup", ".zattrs", ".zarray", "zarr.json"} & set(files):
            continue
        try:
            image = MultiscaleImage(folder)
        except FormatError as error:
            assert folder in str(error)  # noqa: PT017 - some raise, some do not
            continue
        opened.append(folder)
        document = json.loads((root / folder / ("zarr.json" if "zarr.json" in files else ".zattrs")).read_text())
        ome = document.get("attributes", document).get("ome", document)
        for level, dataset in zip(image.levels, ome["multiscales"][0]["datasets"], strict=True):
            stored = zarr.open_array(folder, path=dataset["path"], mode="r")[...]
            squeezed = np.squeeze(stored, tuple(axis for axis in range(stored.ndim - 2) if stored.shape[axis] == 1))
            np.testing.assert_array_equal(
                whole(image, level.index), np.moveaxis(squeezed, 0, 2) if squeezed.ndim == 3 else squeezed[..., np.newaxis]
            )
    assert len(opened) == 20


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("invalid/image-01.zarr", "list of multiscales, here it is missing"),
        ("invalid/image-02.zarr", "multiscales lists no image"),
        ("invalid/image-03.zarr", "level '0' cannot be opened"),
        ("invalid/image-04.zarr", r"level '1' has shape \(32, 32\), the image has axes z, y, x"),
        ("warning/image-01.zarr", "one dtype, got 0: int64, 1: float64"),
    ],
)
def test_broken_stores_are_refused(real_file, name, reason):
    with pytest.raises(FormatError, match=reason):
        MultiscaleImage(real_file(f"broken/omezarr/examples/{name}"))


# Frames: downsample, pixel size, names


def test_scales_that_were_never_filled_in_give_way_to_sizes(tmp_path):
    image = MultiscaleImage(write(tmp_path / "i.zarr", [place(100, 90), place(50, 30)], scales=[[1, 1, 1], [1, 1, 1]]))
    assert (image.levels[1].downsample_y, image.levels[1].downsample_x) == (2, 3)


@given(size=st.integers(1, 10**6), factor=st.integers(1, 64), fine=st.decimals(min_value="0.01", max_value=100, places=4), up=st.booleans())
def test_scales_are_believed_however_sizes_were_rounded(size, factor, fine, up):
    coarse = -(-size // factor) if up else max(1, size // factor)
    assert downsample_of(float(fine), float(Fraction(fine) * factor), coarse, size) == factor


def test_scales_written_rounded_give_way_to_sizes():
    assert downsample_of(0.2282, 0.457, 50_000, 100_000) == 2
    assert downsample_of(0.1, 0.3, 33, 100) == 3


@pytest.mark.parametrize(
    ("unit", "mpp"),
    [
        ("micrometer", 0.5),
        ("micrometre", 0.5),
        ("µm", 0.5),
        ("nanometer", None),
        ("millimeter", None),
        ("centimeter", None),
        ("pixel", None),
        (None, None),
    ],
)
def test_pixel_size_is_converted_where_it_is_believable(tmp_path, unit, mpp):
    image = MultiscaleImage(write(tmp_path / "i.zarr", [place(9, 9)], unit=unit, scales=[[1, 0.5, 0.5]]))
    assert image.mpp == (None if mpp is None else (mpp, mpp))
    assert image.properties["ome.scale"] == "1.0,0.5,0.5"


def test_pixel_size_may_differ_along_the_axes_and_be_scaled_as_a_whole(tmp_path):
    path = write(tmp_path / "i.zarr", [place(9, 9)], unit="nanometer", scales=[[1, 250, 500]])
    assert MultiscaleImage(path).mpp == (0.25, 0.5)
    ome = dict(zarr.open_group(path, mode="r").attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 2, 4]}]
    describe(path, ome, 3)
    assert MultiscaleImage(path).mpp == (0.5, 2.0)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        (["a", "a", "c"], ("channel_0", "channel_1", "channel_2")),
        (["a", "b"], ("channel_0", "channel_1", "channel_2")),
        (["a", "b", ""], ("channel_0", "channel_1", "channel_2")),
        (["a", "b", None], ("channel_0", "channel_1", "channel_2")),
    ],
)
def test_channels_are_named_where_every_name_is_another(tmp_path, labels, names):
    ome = {"omero": {"channels": [{"label": label} for label in labels]}}
    assert MultiscaleImage(write(tmp_path / "i.zarr", [place(9, 9)], ome=ome)).channels == names


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.3"}, "version 0.3 is not supported"),
        ({"version": "0.6"}, "version 0.6 is not supported"),
        ({"axes": [{"name": "yx"}, {"name": "y"}, {"name": "x"}]}, "stack along yx of length 3"),
        ({"axes": ["c", "y", "x"]}, "axes must have a name"),
        ({"axes": [{"name": "c"}, {"name": "y"}, {"name": "y"}]}, "axes must hold y and x"),
        ({"axes": [{"name": "a"}, {"name": "b"}, {"name": "x"}]}, "axes must hold y and x"),
        ({"datasets": []}, "at least one level"),
        ({"datasets": [{"path": "0"}]}, "must have one scale"),
        ({"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0, 1]}]}]}, "must have one scale"),
        ({"datasets": [{"path": "../0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]}, "cannot be opened"),
        ({"datasets": [{"path": ".", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]}, "level '.'"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(tmp_path, change, reason):
    path = write(tmp_path / "i.zarr", [place(9, 9)])
    image = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]
    describe(path, {"multiscales": [{**image, **change}]}, 3)
    with pytest.raises(FormatError, match=reason):
        MultiscaleImage(path)


def mutations(document):
    """Every copy of a JSON document with one of its values replaced by junk."""
    if not isinstance(document, dict | list):
        return
    for key in document if isinstance(document, dict) else range(len(document)):
        for junk in (None, 5, -1.5, "junk", [], {}, [None], {"path": 3}, float("nan")):
            changed = copy.deepcopy(document)
            changed[key] = junk
            yield changed
        for inner in mutations(document[key]):
            changed = copy.deepcopy(document)
            changed[key] = inner
            yield changed


@pytest.mark.parametrize(
    "name", [f"{V05}/zarr.json", "omezarr/zarr-java/v0.5_hcs/zarr.json", "omezarr/examples/valid/plate-01.zarr/A/1/.zattrs"]
)
def test_junk_in_any_field_is_understood_or_refused(real_file, name):
    document = json.loads(real_file(name).read_text())
    refused = 0
    for attributes in mutations(document.get("attributes", document)):
        assert all(isinstance(path, str) for path in inner_paths(attributes))
        try:
            image = parse_multiscale(attributes, "junk.zarr")
        except FormatError as error:
            refused += 1
            assert "junk.zarr" in str(error)  # noqa: PT017 - some raise, some do not
        else:
            assert image.channel_names(3)
            assert image.mpp is None or all(0.01 <= size <= 100 for size in image.mpp)
    assert refused


def test_levels_from_coarse_to_fine_are_refused(tmp_path):
    path = write(tmp_path / "i.zarr", [place(50, 50), place(100, 100)], scales=[[1, 2, 2], [1, 1, 1]])
    with pytest.raises(FormatError, match="finest level to the coarsest"):
        MultiscaleImage(path)


@pytest.mark.parametrize("levels", [[place(9, 9), place(9, 9)[:, :, :2]], [place(9, 9).astype(np.complex64)]])
def test_levels_that_do_not_fit_are_refused(tmp_path, levels):
    with pytest.raises(FormatError, match=r"same channels|integers, floats"):
        MultiscaleImage(write(tmp_path / "i.zarr", levels))


@pytest.mark.parametrize("name", ["nothing", "file", "folder"])
def test_what_is_no_group_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("no zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="not a Zarr group"):
        MultiscaleImage(tmp_path / name)


# Pixels: byte order, fill, damage


def test_big_endian_pixels_are_read_as_native(tmp_path):
    pixels = place(60, 70).astype(np.uint16) * 257
    image = MultiscaleImage(write(tmp_path / "i.zarr", [pixels], zarr_format=2, dtype=">u2"))
    assert whole(image).dtype.isnative
    np.testing.assert_array_equal(whole(image), pixels)


def test_channels_repeat_and_are_refused_beyond_the_last(tmp_path):
    image = MultiscaleImage(write(tmp_path / "i.zarr", [place(60, 70)]))
    flat = MultiscaleImage(write(tmp_path / "f.zarr", [place(60, 70)[:, :, :1]]))
    window = Window(y=5, x=7, height=50, width=60)
    np.testing.assert_array_equal(image.read(window, channels=[2, 0, 0, -1]), image.read(window)[:, :, [2, 0, 0, -1]])
    np.testing.assert_array_equal(flat.read(window, channels=[0, 0]), flat.read(window)[:, :, [0, 0]])
    assert image.read(window, channels=[]).shape == (50, 60, 0)
    for source in (image, flat):
        with pytest.raises(IndexError):
            source.read(window, channels=[3])


def test_consolidated_metadata_is_not_believed(tmp_path):
    path = write(tmp_path / "i.zarr", [place(60, 70)], zarr_format=2)
    zarr.consolidate_metadata(path, zarr_format=2)
    shutil.rmtree(path / "0")
    with pytest.raises(FormatError, match="level '0' cannot be opened"):
        MultiscaleImage(path)


@pytest.mark.parametrize(("zarr_format", "shards", "chunk"), [(2, None, "0/0.0.0"), (3, None, "0/c/0/0/0"), (3, 2, "0/c/0/0/0")])
def test_a_missing_chunk_is_fill_and_a_damaged_one_an_error(tmp_path, zarr_format, shards, chunk):
    pixels = place(200, 300) | 1
    path = write(tmp_path / "i.zarr", [pixels], zarr_format=zarr_format, shards=shards)
    image = MultiscaleImage(path)
    stored = (path / chunk).read_bytes()
    away = Window(y=100, x=150, height=100, width=150)
    for damaged in (b"", stored[: len(stored) // 2], b"\x00" * len(stored)):
        (path / chunk).write_bytes(damaged)
        with pytest.raises(ReadError, match=r"level 0 \(0\), rows 0\.\.200, columns 0\.\.300: a chunk cannot be read"):
            whole(image)
        np.testing.assert_array_equal(image.read(away), pixels[away.within(image.levels[0].window)])
    (path / chunk).unlink()
    read = whole(image)
    assert not read[:48, :64, 0].any()
    np.testing.assert_array_equal(read[:, :, 1:], pixels[:, :, 1:])


def test_a_store_that_goes_away_is_an_error_and_not_fill(tmp_path):
    image = MultiscaleImage(write(tmp_path / "i.zarr", [place(60, 70)]))
    shutil.rmtree(tmp_path / "i.zarr")
    with pytest.raises(ReadError, match="no longer there"):
        whole(image)


def test_nan_is_invalid(tmp_path):
    pixels = place(60, 70).astype(np.float32)
    pixels[10:20, 30:40] = np.nan
    image = MultiscaleImage(write(tmp_path / "i.zarr", [pixels]))
    mask = image.read_mask(image.levels[0].window)
    assert not mask[10:20, 30:40].any()
    assert mask.sum() == 60 * 70 - 100


# Identity


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "a.zarr", [place(200, 300), place(100, 150, 1)], shards=2)


def test_identity_survives_moving_and_labels_beside_the_image(store, tmp_path):
    before = MultiscaleImage(store).identity
    shutil.copytree(store, tmp_path / "elsewhere" / "b.zarr")
    again = tmp_path / "elsewhere" / "b.zarr"
    write(again / "labels" / "nuclei", [place(200, 300)[:, :, :1]])
    assert MultiscaleImage(again).identity == before


def test_identity_sees_pixels_sizes_and_missing_shards(store, tmp_path):
    found = {MultiscaleImage(store).identity}
    found.add(MultiscaleImage(write(tmp_path / "b.zarr", [place(200, 300)[::-1], place(100, 150, 1)], shards=2)).identity)
    found.add(MultiscaleImage(write(tmp_path / "c.zarr", [place(200, 300)], shards=2)).identity)
    scales = [[1, 0.5, 0.5], [1, 1, 1]]
    found.add(MultiscaleImage(write(tmp_path / "d.zarr", [place(200, 300), place(100, 150, 1)], shards=2, scales=scales)).identity)
    shard = store / "1/c/2/0/0"
    shard.unlink()
    found.add(MultiscaleImage(store).identity)
    assert len(found) == 5


def test_identity_looks_at_a_bounded_number_of_files(tmp_path, monkeypatch):
    group = zarr.create_group(tmp_path / "vast.zarr")
    group.create_array("0", shape=(1 << 20, 1 << 20), chunks=(256, 256), dtype="u1")
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}]
    describe(tmp_path / "vast.zarr", {"multiscales": [{"axes": axes, "datasets": datasets}]}, 3)
    looked = []
    sampled = "patchdrive.readers.multiscale.sampled_identity"
    monkeypatch.setattr(sampled, lambda root, names, *, index: looked.extend(names) or "seen")
    assert MultiscaleImage(tmp_path / "vast.zarr").identity == "seen"
    assert len(looked) == len(set(looked)) == 256
    assert (looked[0], looked[-1]) == ("0/c/0/0", "0/c/4095/4095")
