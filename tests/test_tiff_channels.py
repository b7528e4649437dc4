"""OME-TIFFs whose channels lie in directories of their own: in strips, in tiles of different shapes, and more than there are."""

from __future__ import annotations

import mmap
import tracemalloc

import numpy as np
import pytest
import tifffile

from patchdrive.readers import choose, open_image
from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_index import MAX_TEXT, Directory, Entry

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'DimensionOrder="XYCZT" ID="Pixels:0" SizeC="{channels}" SizeT="1" SizeX="512" SizeY="512" SizeZ="1" Type="uint16" PhysicalSizeX="0.5" '
    'PhysicalSizeY="0.5"><TiffData/></Pixels></Image></OME>'
)


def values(channel):
    y, x = np.mgrid[:512, :512]
    return ((x * 7 + y * 3 + channel * 1000) % 60000).astype(np.uint16)


def write(path, layouts, *, channels=None, compression=None):
    """One directory for each of `layouts`: a tile shape, or None for strips."""
    with tifffile.TiffWriter(path) as writer:
        for index, tile in enumerate(layouts):
            text = OME.format(channels=channels or len(layouts)) if index == 0 else None
            stored = {"tile": tile} if tile else {"rowsperstrip": 4}
            writer.write(values(index), photometric="minisblack", description=text, metadata=None, compression=compression, **stored)
    return path


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_strips_keep_every_channel_and_the_pixel_size(tmp_path, compression):
    path = write(tmp_path / "a.ome.tif", [None] * 3, compression=compression)
    assert choose(path).reader == "tiff", "GDAL would see the first channel, and no pixel size"
    image = open_image(path)
    assert (len(image.channels), image.mpp) == (3, (0.5, 0.5))
    np.testing.assert_array_equal(image.read(image.levels[0].window), np.stack([values(index) for index in range(3)], axis=2))


def test_strips_that_say_a_pixel_size_keep_it(tmp_path):
    path = tmp_path / "a.tif"
    rgb = np.repeat((values(0) % 251).astype(np.uint8)[:, :, None], 3, axis=2)
    with tifffile.TiffWriter(path) as writer:
        writer.write(rgb, photometric="rgb", compression="zlib", resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None)
    assert open_image(path).mpp == (0.5, 0.5)


@pytest.mark.parametrize("other", [(128, 256), (512, 256), (256, 128), (256, 512), None])
def test_tiles_of_another_shape_are_decoded_as_they_are_read(tmp_path, other):
    image = TiffImage(write(tmp_path / "a.ome.tif", [(256, 256), other]))
    out = np.zeros((4, 256, 256, 2), np.uint16)
    assert image.decode([(0, 0), (0, 1), (1, 0), (1, 1)], level=0, channels=[1, 0], out=out, valid=None) == ()
    whole = image.read(image.levels[0].window, channels=[1, 0])
    np.testing.assert_array_equal(whole, np.stack([values(1), values(0)], axis=2))
    np.testing.assert_array_equal(out.reshape(2, 2, 256, 256, 2).swapaxes(1, 2).reshape(512, 512, 2), whole)


def test_a_billion_channels_are_refused_for_nothing(tmp_path):
    path = write(tmp_path / "a.ome.tif", [(256, 256)], channels=999_999_999)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="cut short"):
            TiffImage(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_many_times_the_same_directory_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    pixels = np.zeros((64, 64), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, tile=(32, 32), subifds=3, metadata=None)
        for _ in range(3):
            writer.write(pixels[::2, ::2], tile=(32, 32), subfiletype=1, metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets = file.pages[0].tags["SubIFDs"]
        offsets.overwrite([offsets.value[0]] * 3)
    with pytest.raises(FormatError, match="some twice"):
        TiffImage(path)


def test_names_that_gdal_has_of_another_directory_are_not_ours(tmp_path):
    path = tmp_path / "a.tif"
    names = '<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">small</Item></GDALMetadata>'
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((64, 64), np.uint8), tile=(32, 32), metadata=None, extratags=[(42112, 2, len(names) + 1, names, True)])
        writer.write(np.zeros((128, 128, 3), np.uint8), tile=(32, 32), photometric="rgb", metadata=None)
    image = TiffImage(path)
    assert image.channels == ("red", "green", "blue")
    assert image.read(image.levels[0].window).shape == (128, 128, 3)


def test_a_text_as_long_as_the_file_is_refused_for_nothing():
    data = mmap.mmap(-1, MAX_TEXT + 64)
    directory = Directory(data=data, order="<", offset=8, entries={270: Entry(type=2, count=MAX_TEXT + 1, offset=8)})
    with pytest.raises(FormatError, match="more than the"):
        directory.text(270)
