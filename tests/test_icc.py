"""What is an ICC profile, and what it calls itself; the oracle is Little CMS, through Pillow."""

from __future__ import annotations

import base64

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from PIL import Image as PillowImage
from PIL import ImageCms

from patchdrive.readers.icc import is_profile, profile_of, profile_properties
from patchdrive.readers.memory import MemoryImage
from patchdrive.readers.raster import RasterImage
from patchdrive.readers.slide import SlideImage
from patchdrive.readers.tiff import TiffImage


@pytest.fixture(scope="module")
def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_profile_is_described_by_itself(srgb):
    wanted = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))).strip()
    assert wanted
    assert profile_properties(srgb) == {"patchdrive.color_profile": f"{wanted} (ICC, {len(srgb)} bytes)"}


def test_a_profile_of_version_2_is_described_by_itself():
    text = b"Scanner 7\0"
    value = b"desc\0\0\0\0" + len(text).to_bytes(4, "big") + text
    head = bytearray(128)
    head[36:40] = b"acsp"
    table = (1).to_bytes(4, "big") + b"desc" + (144).to_bytes(4, "big") + len(value).to_bytes(4, "big")
    assert profile_properties(bytes(head) + table + value) == {"patchdrive.color_profile": f"Scanner 7 (ICC, {144 + len(value)} bytes)"}


def test_what_is_damaged_is_described_by_its_size(srgb):
    rng = np.random.default_rng(0)
    for _ in range(300):
        noise = bytearray(srgb[: int(rng.integers(128, len(srgb)))])
        noise[128:] = rng.integers(0, 256, len(noise) - 128, np.uint8).tobytes()
        assert profile_properties(bytes(noise))["patchdrive.color_profile"].endswith(f"ICC, {len(noise)} bytes")
    assert profile_properties(None) == {}


def test_what_is_no_profile(srgb):
    assert is_profile(srgb)
    assert not is_profile(srgb[:100])
    assert not is_profile(bytes(len(srgb)))
    assert profile_of(base64.b64encode(srgb).decode()) == srgb
    for text in ("", "A", "no Base64 at all", base64.b64encode(bytes(200)).decode()):
        assert profile_of(text) is None


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_every_reader_gives_the_stored_bytes(tmp_path, srgb):
    pixels = np.zeros((64, 64, 3), np.uint8)
    tiff, png = tmp_path / "a.tif", tmp_path / "a.png"
    tifffile.imwrite(tiff, pixels, tile=(32, 32), photometric="rgb", iccprofile=srgb, metadata=None)
    PillowImage.fromarray(pixels).save(png, icc_profile=srgb)
    with rasterio.open(tiff) as file:
        assert base64.b64decode(file.tags(ns="COLOR_PROFILE")["SOURCE_ICC_PROFILE"]) == srgb
    for image in (TiffImage(tiff), SlideImage(tiff), RasterImage(tiff), RasterImage(png)):
        assert image.color_profile == srgb
        assert image.properties["patchdrive.color_profile"].startswith("sRGB")
    assert MemoryImage([pixels]).color_profile is None


def test_profiles_of_real_files(real_file):
    for name, size in (("wsi/boxes.tiff", 588), ("wsi/highdicom_sm_image.dcm", 3144), ("wsi/CMU-1-Small-Region.svs", 0)):
        path = real_file(name)
        found = SlideImage(path).color_profile
        assert len(found or b"") == size
        if path.suffix != ".dcm":
            assert TiffImage(path).color_profile == found
        with openslide.OpenSlide(path) as slide:
            assert (slide.color_profile is None) == (found is None)
