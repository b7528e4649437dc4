"""DICOM slides tagged RGB whose JPEG frames hold YCbCr, made from a real one; what OpenSlide makes of them."""

from __future__ import annotations

import numpy as np
import openslide
import pytest

from patchdrive.readers.dicom_colours import frames_hold_ycbcr
from patchdrive.readers.errors import FormatError
from patchdrive.readers.slide import SlideImage
from patchdrive.readers.tiff_codecs import ycbcr_to_rgb

SLIDE = "wsi/multiframe_camelyon_challenge_image.dcm"
YBR, RGB = b"CS\x0c\x00YBR_FULL_422", b"CS\x04\x00RGB "


@pytest.fixture
def content(real_file):
    content = real_file(SLIDE).read_bytes()
    assert content.count(YBR) == 1
    return content


@pytest.fixture
def made(tmp_path):
    """A DICOM file of this content, alone in its folder, as OpenSlide wants it."""

    def write(content):
        path = tmp_path / "slide.dcm"
        path.write_bytes(content)
        return path

    return write


def corner(path):
    with openslide.OpenSlide(path) as slide:
        return np.array(slide.read_region((0, 0), 0, (256, 256)))[:, :, :3]


def test_openslide_believes_the_tag_and_the_frames_tell(real_file, content, made):
    mislabelled = made(content.replace(YBR, RGB))
    right, wrong = corner(real_file(SLIDE)), corner(mislabelled)
    assert np.abs(right.astype(int) - wrong).mean() > 20
    assert frames_hold_ycbcr(mislabelled)
    ycbcr_to_rgb(wrong)
    np.testing.assert_array_equal(wrong, right)
    image, twin = SlideImage(mislabelled), SlideImage(real_file(SLIDE))
    assert "patchdrive.colours" in image.properties
    assert "patchdrive.colours" not in twin.properties
    window = image.levels[0].window
    np.testing.assert_array_equal(image.read(window), twin.read(window))


def replaced(content, old, new):
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


JFIF = b"\xff\xe0\x00\x10JFIF\0"
NOTHING = b"\xff\xe0\x00\x10none\0"
ADOBE = b"\xff\xee\x00\x10Adobe\0\x64\0\0\0\0"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], True),  # JFIF
        ([(JFIF, NOTHING)], True),  # chroma at half size
        ([(JFIF, NOTHING), (b"\x03\x01\x22\x00\x02", b"\x03\x01\x11\x00\x02")], False),  # neither: the tag is believed
        ([(b"\xff\xd8" + JFIF, b"\xff\xd9" + JFIF)], False),  # no JPEG
    ],
)
def test_frames_are_believed_where_they_say_something(content, made, changes, says):
    for old, new in changes:
        content = replaced(content, old, new)
    assert frames_hold_ycbcr(made(content)) is says


@pytest.mark.parametrize(("transform", "says"), [(0, False), (1, True)])
def test_adobes_marker_wins_over_the_size_of_chroma(content, made, transform, says):
    start = content.index(JFIF)
    marker = (ADOBE + bytes([transform, 0, 0, 0, 0]))[: 2 + 16]
    assert frames_hold_ycbcr(made(content[:start] + marker + content[start + 18 :])) is says


@pytest.mark.parametrize("name", ["wsi/highdicom_sm_image.dcm", "wsi/multi_frame_jpeg2000_camelyon_challenge_image.dcm"])
def test_other_codecs_say_nothing(real_file, name):
    assert not frames_hold_ycbcr(real_file(name))


@pytest.mark.parametrize("keep", [0, 200, 0.5])
def test_files_cut_short(content, made, keep):
    cut = content[: int(keep if keep != 0.5 else content.index(b"\xe0\x7f\x10\x00OB") + 30)]
    if cut:
        assert not frames_hold_ycbcr(made(cut))
    else:
        with pytest.raises(FormatError):
            frames_hold_ycbcr(made(cut))
