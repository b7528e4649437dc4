"""Which directories are levels, what the dialects say, and what is refused: on files that tifffile writes."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_codecs import ycbcr_to_rgb
from patchdrive.readers.tiff_index import walk
from patchdrive.readers.tiff_pyramid import read_pyramid
from patchdrive.readers.tiff_signs import sniff_tiff

TILE = (32, 32)


def place(height, width, level=0):
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = 40 level."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, np.full_like(x, 40 * level)], axis=2).astype(np.uint8)


def whole(image, level=0):
    return image.read(image.levels[level].window, level=level)


def write(path, pages, **first):
    """`pages` are (pixels, options of TiffWriter.write) pairs."""
    with tifffile.TiffWriter(path, **first) as writer:
        for pixels, options in pages:
            writer.write(pixels, metadata=None, **({"photometric": "rgb", "tile": TILE} | options))
    return path


SIZES = [(301, 403), (150, 201), (75, 100), (37, 50)]


@pytest.mark.parametrize("kind", ["directories", "subifds", "reversed"])
def test_levels_by_directories_and_by_subifds(tmp_path, kind):
    pages = [(place(*size, index), {"subfiletype": int(index > 0), "compression": "zlib"}) for index, size in enumerate(SIZES)]
    if kind == "subifds":
        pages[0][1]["subifds"] = 3
    if kind == "reversed":  # finest last, and nothing says which are reduced
        pages = [(pixels, {"compression": "zlib"}) for pixels, _ in reversed(pages)]
    image = TiffImage(write(tmp_path / "a.tif", pages))
    assert [(level.height, level.width) for level in image.levels] == SIZES
    assert [level.downsample_y for level in image.levels] == [301 / height for height, _ in SIZES]
    for index, size in enumerate(SIZES):
        np.testing.assert_array_equal(whole(image, index), place(*size, index))


def test_what_is_no_downscale_is_no_level(tmp_path):
    other = place(150, 150, 1)
    pages = [
        (place(300, 400), {}),
        (other, {}),  # another shape
        (place(300, 400, 2), {}),  # another plane of a stack
        (place(150, 200).astype(np.uint16), {}),  # another dtype
        (place(150, 200)[:, :, 0], {"photometric": "minisblack"}),  # fewer samples
        (place(150, 200), {"subfiletype": 1}),  # made a mask below
        (place(150, 200), {"tile": None}),  # strips
        (place(75, 100, 3), {"subfiletype": 1}),
    ]
    path = write(tmp_path / "a.tif", pages)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[5].tags["NewSubfileType"].overwrite(5)
    image = TiffImage(path)
    assert [(level.height, level.width) for level in image.levels] == [(300, 400), (75, 100)]
    np.testing.assert_array_equal(whole(image, 1), place(75, 100, 3))


def test_a_level_that_claims_to_be_one_and_is_damaged_is_an_error(tmp_path):
    path = write(tmp_path / "a.tif", [(place(96, 96), {}), (place(48, 48), {"subfiletype": 1})])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[1].tags["TileWidth"].overwrite(0)
    with pytest.raises(FormatError, match="hold nothing"):
        TiffImage(path)


STRIPS = {"tile": None, "rowsperstrip": 7}


def test_an_image_of_strips_takes_what_is_marked_as_reduced(tmp_path):
    pages = [
        (place(130, 90), STRIPS | {"compression": "lzw"}),
        (place(65, 45, 1), STRIPS | {"subfiletype": 1, "compression": "zlib"}),
        (place(32, 22, 2), {"subfiletype": 1}),  # tiled, as GDAL writes overviews
        (place(16, 11, 3), STRIPS),  # not marked: a picture of its own
    ]
    image = TiffImage(write(tmp_path / "a.tif", pages))
    assert [(level.tile_height, level.tile_width) for level in image.levels] == [(7, 90), (7, 45), (32, 22)]
    for index, (pixels, _) in enumerate(pages[:3]):
        np.testing.assert_array_equal(whole(image, index), pixels)
    np.testing.assert_array_equal(image.read(Window(y=5, x=3, height=20, width=11), level=1), place(65, 45, 1)[5:25, 3:14])


def masked(path, *, subifds=0, samples=1):
    """Levels of 96, 48 and 24 pixels, the last without a mask; masks of a byte a pixel, one of them of no level's size."""
    valid = np.full((96, 96, samples), 255, np.uint8)
    mask = {"photometric": "minisblack" if samples == 1 else "rgb", "subfiletype": 1}
    pages = [
        (place(96, 96), {"subifds": subifds}),
        (valid, mask),
        (place(48, 48, 1), {"subfiletype": 1}),
        (valid[::2, ::2], mask),
        (place(24, 24, 2), {"subfiletype": 1}),
        (valid[:80, :80], mask),
    ]
    write(path, [(np.ascontiguousarray(pixels.squeeze()), options) for pixels, options in pages])
    with tifffile.TiffFile(path, mode="r+b") as file:  # tifffile makes masks of one bit only
        nested = list(file.pages[0].pages)[:subifds] if subifds else []
        for index, page in enumerate([file.pages[0], *nested, *list(file.pages)[1:]]):
            if index in {1, 3, 5}:
                page.tags["NewSubfileType"].overwrite(4 + int(index > 1))
    return path


@pytest.mark.parametrize("subifds", [0, 3])
def test_masks_lie_beside_the_level_of_their_size(tmp_path, subifds):
    data = masked(tmp_path / "a.tif", subifds=subifds).read_bytes()
    pyramid = read_pyramid(tuple(walk(data)))
    found = [None if mask is None else (mask.height, mask.width, mask.samples) for mask in pyramid.masks]
    # Where there are SubIFDs, the rest of the chain holds no level.
    assert found == [(96, 96, 1), (48, 48, 1), None][: 2 if subifds else 3]
    assert [level.height for level in pyramid.levels] == [96, 48, 24][: len(found)]
    assert not pyramid.associated


def test_a_mask_for_each_channel_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"a mask of 3 samples.*raster"):
        TiffImage(masked(tmp_path / "a.tif", samples=3))


def aperio(path):
    head = "Aperio Image Library v12\r\n"
    pages = [
        (place(96, 128), {"description": head + "96x128|AppMag = 40|MPP = 0.2520", "compression": "zlib"}),
        (place(24, 32, 5), {"tile": None, "rowsperstrip": 7, "compression": "lzw", "predictor": 2, "description": head + "x -> y"}),
        (place(48, 64, 1), {"description": head + "levels", "compression": "zlib"}),
        (place(31, 33, 6), {"tile": None, "rowsperstrip": 8, "description": head + "label 33x31"}),
        (place(32, 64, 4), {"tile": None, "subfiletype": 9, "description": head + "macro 64x32"}),
    ]
    return write(path, pages)


def test_aperio(tmp_path):
    image = TiffImage(aperio(tmp_path / "a.svs"))
    assert image.mpp == (0.252, 0.252)
    assert image.properties["aperio.AppMag"] == "40"
    assert [(level.height, level.width) for level in image.levels] == [(96, 128), (48, 64)]
    assert list(image.associated) == ["thumbnail", "label", "macro"]
    np.testing.assert_array_equal(image.associated["thumbnail"], place(24, 32, 5))
    np.testing.assert_array_equal(image.associated["label"], place(31, 33, 6))
    np.testing.assert_array_equal(image.associated["macro"], place(32, 64, 4))


def test_a_damaged_label_harms_only_itself(tmp_path):
    path = aperio(tmp_path / "a.svs")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[3].tags["Compression"].overwrite(65000)
    image = TiffImage(path)
    np.testing.assert_array_equal(whole(image), place(96, 128))
    with pytest.raises(ReadError, match=r"label.*compression 65000"):
        _ = image.associated["label"]


@pytest.mark.parametrize(("kind", "fill"), [("generic", 0), ("aperio", 255), ("nodata", 7)])
def test_tiles_left_out_are_filled(tmp_path, kind, fill):
    pixels = place(64, 96)
    options = {"description": "Aperio Image Library v12\r\n64x96"} if kind == "aperio" else {}
    if kind == "nodata":
        options["extratags"] = [(42113, 2, 2, "7", True)]
    path = write(tmp_path / "a.tif", [(pixels, options)])
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = file.pages[0].tags["TileByteCounts"]
        counts.overwrite([0 if index == 4 else count for index, count in enumerate(counts.value)])
    image = TiffImage(path)
    expected = pixels.copy()
    expected[32:, 32:64] = fill
    np.testing.assert_array_equal(whole(image), expected)
    assert image.has_mask == (kind in {"nodata", "aperio"}), "what a scanner left out is no tissue; zeros of other files may be data"
    stored = np.ones((64, 96), np.bool_)
    stored[32:, 32:64] = kind != "aperio"
    wanted = (expected != 7).any(axis=2) if kind == "nodata" else stored
    np.testing.assert_array_equal(image.read_mask(image.levels[0].window), wanted)


def test_alpha_is_the_mask(tmp_path):
    pixels = np.dstack([place(64, 64), np.where(np.arange(64) < 20, 0, 255)[:, None].repeat(64, 1)]).astype(np.uint8)
    image = TiffImage(write(tmp_path / "a.tif", [(pixels, {"extrasamples": ["unassalpha"]})]))
    assert image.channels == ("red", "green", "blue", "alpha")
    np.testing.assert_array_equal(image.read_mask(image.levels[0].window), pixels[:, :, 3] > 0)


def test_nodata_that_no_pixel_can_hold_is_none(tmp_path):
    image = TiffImage(write(tmp_path / "a.tif", [(place(32, 32), {"extratags": [(42113, 2, 6, "-9999", True)]})]))
    assert image.nodata is None
    assert not image.has_mask


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((40000, 20000), "CENTIMETER", (0.5, 0.25)),
        ((101600, 101600), "INCH", (0.25, 0.25)),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((118.1102, 118.1102), "CENTIMETER", None),  # 300 dots per inch, converted
        ((1, 1), "CENTIMETER", None),
        ((2e7, 2e7), "CENTIMETER", None),
        ((40000, 40000), "NONE", None),
    ],
)
def test_mpp_from_the_resolution_tags(tmp_path, resolution, unit, mpp):
    path = write(tmp_path / "a.tif", [(place(32, 32), {"resolution": resolution, "resolutionunit": unit})])
    image = TiffImage(path)
    assert image.mpp == (None if mpp is None else pytest.approx(mpp))
    assert "tiff.XResolution" in image.properties


def ome(path, pixels, metadata, levels=()):
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(pixels, tile=TILE, compression="zlib", photometric="minisblack", metadata=metadata, subifds=len(levels))
        for level in levels:
            writer.write(level, tile=TILE, compression="zlib", photometric="minisblack", subfiletype=1)
    return path


def test_ome_channels_in_directories_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    planes, small = rng.integers(0, 2**16, (5, 90, 70), np.uint16), rng.integers(0, 2**16, (5, 45, 35), np.uint16)
    names = ["DAPI", "CD3", "CD8", "PanCK", "FoxP3"]
    metadata = {"axes": "CYX", "Channel": {"Name": names}, "PhysicalSizeX": 325.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.65}
    image = TiffImage(ome(tmp_path / "a.ome.tif", planes, metadata, [small]))
    assert image.channels == tuple(names)
    assert image.mpp == pytest.approx((0.65, 0.325))
    np.testing.assert_array_equal(whole(image), np.moveaxis(planes, 0, 2))
    np.testing.assert_array_equal(whole(image, 1), np.moveaxis(small, 0, 2))
    some = image.read(Window(y=3, x=5, height=60, width=60), channels=[4, 1])
    np.testing.assert_array_equal(some, np.moveaxis(planes[[4, 1], 3:63, 5:65], 0, 2))


def test_ome_names_that_repeat_are_numbered(tmp_path):
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "DAPI"]}}
    image = TiffImage(ome(tmp_path / "a.ome.tif", np.zeros((2, 64, 64), np.uint8), metadata))
    assert image.channels == ("channel_0", "channel_1")


def test_an_ome_stack_is_refused(tmp_path):
    path = ome(tmp_path / "a.ome.tif", np.zeros((3, 64, 64), np.uint8), {"axes": "ZYX"})
    with pytest.raises(FormatError, match="stack of 3 planes"):
        TiffImage(path)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ('<OME><Image><Pixels SizeC="3"/></Image></OME', ""),  # not closed: no OME-XML, so no claim to keep
        ("<OME>&nosuch;</OME>", "not OME-XML"),
        ("<OME></OME>", "no image"),
        ("<OME><Image/></OME>", "no Pixels"),
        ('<OME><Image><Pixels SizeC="many"/></Image></OME>', "SizeC"),
        ('<OME><Image><Pixels SizeC="7"/></Image></OME>', "7 channels"),
        ('<OME><Image><Pixels SizeC="3"><TiffData IFD="9"/></Pixels></Image></OME>', "directory 9"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><OME><Image><Pixels/></Image></OME>', "entities"),
        (
            '<OME><Image><Pixels SizeC="3"><TiffData><UUID FileName="a"/></TiffData><TiffData><UUID FileName="b"/></TiffData>'
            "</Pixels></Image></OME>",
            "2 files",
        ),
    ],
)
def test_ome_xml_that_lies(tmp_path, description, reason):
    path = write(tmp_path / "a.tif", [(place(64, 64), {"description": description})])
    if reason:
        with pytest.raises(FormatError, match=reason):
            TiffImage(path)
    else:
        assert TiffImage(path).channels == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("dialect", "options"),
    [
        ("leica", {"description": '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"/>'}),
        ("ventana", {"extratags": [(700, 1, 16, b"<iScan Mag='40'/>"[:16], True)]}),
        ("trestle", {"software": "MedScan"}),
        ("ndpi", {"extratags": [(65420, 3, 1, 1, True)]}),
    ],
)
def test_slides_off_the_grid_are_left_to_openslide(tmp_path, dialect, options):
    path = write(tmp_path / "a.tif", [(place(64, 64), options)])
    assert sniff_tiff(path).dialect == dialect
    with pytest.raises(FormatError, match='reader "slide"'):
        TiffImage(path)


def test_identity_follows_the_bytes_and_not_the_name(tmp_path):
    path = write(tmp_path / "a.tif", [(place(64, 64), {})])
    copy = tmp_path / "b.tif"
    copy.write_bytes(path.read_bytes())
    assert TiffImage(path).identity == TiffImage(copy).identity
    assert TiffImage(path).identity != TiffImage(write(tmp_path / "c.tif", [(place(64, 64, 1), {})])).identity


def test_ycbcr_is_jfifs():
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), axis=-1).reshape(18, -1, 3).astype(np.uint8)
    y, cb, cr = (grid[:, :, index].astype(float) - (0, 128, 128)[index] for index in range(3))
    exact = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2).clip(0, 255)
    ycbcr_to_rgb(grid)
    assert np.abs(grid - exact).max() <= 0.51
