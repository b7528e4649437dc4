"""Slides whose levels are padded to whole tiles, Philips and Camelyon16, against OpenSlide to the bit."""

from __future__ import annotations

import math

import numpy as np
import openslide
import pytest
import tifffile
from contract import some_windows
from tiff_slides import PHILIPS_BASE, SIDE, SPACINGS, TILE, openslides, pad, padded, philips, philips_xml, shrunk, smooth, whole

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.slide import SlideImage
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_padding import unpadded, whole_tiles
from patchdrive.readers.tiff_philips import level_factors
from patchdrive.readers.tiff_signs import sniff_tiff


def test_philips_is_openslides_to_the_bit(tmp_path):
    path = philips(tmp_path / "a.tiff")
    assert sniff_tiff(path).dialect == "philips"
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "philips"
        sizes = [size[::-1] for size in slide.level_dimensions]
        factors = slide.level_downsamples
    image, reference = TiffImage(path), SlideImage(path)
    assert [(level.height, level.width) for level in image.levels] == sizes == [shrunk(PHILIPS_BASE, factor) for factor in factors]
    assert [(level.downsample_y, level.downsample_x) for level in image.levels] == [
        (level.downsample_y, level.downsample_x) for level in reference.levels
    ]
    for level, size in enumerate(sizes):
        pixels, opacity = openslides(path, level, size)
        stored = opacity == 255
        assert set(np.unique(opacity)) <= {0, 255}
        assert stored.all() == (level > 1)  # tiles were left out of the two finest levels
        np.testing.assert_array_equal(whole(image, level)[stored], pixels[stored])
        np.testing.assert_array_equal(whole(image, level)[~stored], 255)
        np.testing.assert_array_equal(whole(image, level), whole(reference, level))


def test_gaps_are_where_openslide_is_transparent(tmp_path):
    path = philips(tmp_path / "a.tiff")
    image, reference = TiffImage(path), SlideImage(path)
    assert image.has_mask
    for level in image.levels:
        assert image.read_mask(level.window, level=level.index).all() == (level.index > 1)
        for window in some_windows(level.height, level.width, seed=level.index):
            wanted = reference.read_mask(window, level=level.index)
            np.testing.assert_array_equal(image.read_mask(window, level=level.index), wanted)


def test_philips_says_what_openslide_says(tmp_path):
    path = philips(tmp_path / "a.tiff")
    image = TiffImage(path)
    with openslide.OpenSlide(path) as slide:
        said = {key: value for key, value in slide.properties.items() if key.startswith("philips.")}
        assert len(said) > 8
        assert {key: value for key, value in image.properties.items() if key.startswith("philips.")} == said
        assert slide.properties["openslide.objective-power"] == "40"
        assert image.mpp == (float(slide.properties["openslide.mpp-y"]), float(slide.properties["openslide.mpp-x"]))
        assert sorted(image.associated) == sorted(slide.associated_images) == ["label", "macro"]
        for name, wanted in slide.associated_images.items():
            np.testing.assert_array_equal(image.associated[name], np.asarray(wanted)[:, :, :3])
    assert not any("<" in value for value in image.properties.values())  # the XML holds the label


def test_philips_pictures_in_directories_come_first(tmp_path):
    label = np.ascontiguousarray(smooth(40, 48, 2))
    path = philips(tmp_path / "a.tiff", extra=[("Label", label), ("Macro", np.ascontiguousarray(smooth(48, 96, 2)))])
    image = TiffImage(path)
    with openslide.OpenSlide(path) as slide:
        assert slide.associated_images["label"].size == (48, 40)
        for name, wanted in slide.associated_images.items():
            np.testing.assert_array_equal(image.associated[name], np.asarray(wanted)[:, :, :3])
    assert image.associated["label"].shape == label.shape


def test_a_damaged_philips_label_harms_only_itself(tmp_path):
    image = TiffImage(philips(tmp_path / "a.tiff", xml=philips_xml(SPACINGS, label=b"no JPEG")))
    assert image.associated["macro"].shape == (90, 200, 3)
    with pytest.raises(ReadError, match=r"label.*cannot be decoded"):
        _ = image.associated["label"]


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (philips_xml(SPACINGS, slides=2), "describes 2 slides"),
        (philips_xml(SPACINGS[:3]), "4 tiled directories, its XML describes 3 levels"),
        (philips_xml((SPACINGS[0], *reversed(SPACINGS[1:]))), "out of order"),
        (philips_xml(SPACINGS).replace("&quot;0.000250000&quot;", "wide"), "not two lengths"),
        (philips_xml(((0.0, 0.0), *SPACINGS[1:])), "damaged"),
        (philips_xml((*SPACINGS[:3], (9.0, 9.0))), "nothing is left"),
        (philips_xml((*SPACINGS[:3], SPACINGS[2])), "1 x 1 tiles truly has 80 x 112 pixels, which are 2 x 2"),
        ("<a>DPUfsImport</a>", "begins with a DataObject"),
        ("<DataObject>DPUfsImport", "not XML"),
        ('<!DOCTYPE a [<!ENTITY b "DPUfsImport">]><DataObject/>', "entities"),
    ],
)
def test_philips_xml_that_lies(tmp_path, xml, reason):
    with pytest.raises(FormatError, match=reason):
        TiffImage(philips(tmp_path / "a.tiff", xml=xml, gaps=()))


def test_software_of_philips_without_its_xml_is_generic(tmp_path):
    path = philips(tmp_path / "a.tiff", xml="anything", gaps=())
    assert sniff_tiff(path).dialect == "generic"
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"


def test_philips_factors_are_whole_numbers():
    assert level_factors(((0.25, 0.25), (0.5001, 0.4999), (0.9999, 1.0))) == (1, 2, 4)
    for spacings in [((math.nan, 0.25),), ((1e-300, 1e-300), (1e300, 1e300)), ((0.25, 0.25), (math.inf, 0.5)), ((-1.0, -1.0),)]:
        with pytest.raises(FormatError, match="damaged"):
            level_factors(spacings)


@pytest.mark.parametrize(
    ("scale", "power", "doubt"), [(1, "40", ""), (8, "40", "contradicts an objective of 40x"), (8, "10003", ""), (1000, "", "not within")]
)
def test_mpp_of_philips_against_its_objective(tmp_path, scale, power, doubt):
    spacings = tuple((y * scale, x * scale) for y, x in SPACINGS)
    path = philips(tmp_path / "a.tiff", xml=philips_xml(spacings, derivation=f"levels={power},1-sourceFilename=&quot;levels=5&quot;"))
    for image in (TiffImage(path), SlideImage(path)):
        assert image.mpp == (None if doubt else pytest.approx((0.25 * scale, 0.251 * scale)))
        assert doubt in image.properties.get("patchdrive.mpp", "")


@pytest.mark.parametrize("base", [(13 * SIDE, 5 * SIDE), (13 * SIDE, 5 * SIDE + 1), (3 * SIDE - 7, 13 * SIDE - 30)])
def test_padding_is_cut_off(tmp_path, base):
    factors = (1, 2, 4, 8, 16)
    path = padded(tmp_path / "a.tif", base, factors)
    full = pad(np.zeros((*base, 3), np.uint8)).shape[:2]
    image = TiffImage(path)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert len(image.levels) == slide.level_count == len(factors)
        theirs = slide.level_downsamples
    # OpenSlide divides the stored sizes: at the coarsest level it is off by as much as the padding.
    assert theirs[-1] < 0.9 * factors[-1]
    for level, factor in zip(image.levels, factors, strict=True):
        assert (level.height, level.width) == shrunk(full, factor)
        assert abs(level.downsample_y - factor) <= factor / level.height
        assert abs(level.downsample_x - factor) <= factor / level.width
        pixels, opacity = openslides(path, level.index, (level.height, level.width))
        np.testing.assert_array_equal(whole(image, level.index), pixels)
        assert (opacity == 255).all()


def test_what_padding_does_not_explain_is_no_level(tmp_path):
    base = (13 * SIDE, 5 * SIDE)
    unmarked = TiffImage(padded(tmp_path / "a.tif", base, (1, 2, 4), marked=False))
    assert [level.height for level in unmarked.levels] == [13 * SIDE]
    other = TiffImage(padded(tmp_path / "b.tif", base, (1, 2, 4), label=smooth(SIDE, 5 * SIDE)))
    assert len(other.levels) == 1
    # A pyramid of true sizes beside a picture of whole tiles: the picture is none of its levels.
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
        for index, size in enumerate([(830, 310), (415, 155), (2 * SIDE, SIDE)]):
            writer.write(smooth(*size), photometric="rgb", tile=TILE, metadata=None, subfiletype=int(index > 0))
    assert [level.height for level in TiffImage(tmp_path / "c.tif").levels] == [830, 415]


def test_the_factor_of_a_padded_level():
    # Camelyon16: 97792 x 221184 pixels in tiles of 512.
    tiles = [(216, 96), (108, 48), (54, 24), (27, 12), (14, 6), (7, 3), (4, 2), (2, 1), (1, 1)]
    factor, found = 1.0, []
    for rows, columns in tiles:
        answer = unpadded((512 * rows, 512 * columns), (221184, 97792), (512, 512), factor)
        assert answer is not None
        factor, true = answer
        found.append((factor, true))
    assert found == [(2**n, (221184 // 2**n, 97792 // 2**n)) for n in range(1, 10)]
    assert unpadded((512, 512), (1024, 5120), (512, 512), 1) == (16, (64, 320))
    assert unpadded((512, 1024), (5120, 512), (512, 512), 1) is None
    assert unpadded((512, 512), (1024, 1024), (0, 0), 1) is None
    assert whole_tiles((128, 64), (64, 64))
    assert not whole_tiles((128, 65), (64, 64))
    assert not whole_tiles((128, 64), (0, 0))
