"""What Aperio, OME and generic TIFF slides do in their own way, and every real TIFF that OpenSlide opens, against OpenSlide to the bit."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
import tifffile
from tiff_slides import HEAD, TILE, aperio, openslides, philips, smooth, whole

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError
from patchdrive.readers.slide import SlideImage
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_gaps import where_stored
from patchdrive.readers.tiff_index import walk
from patchdrive.readers.tiff_pyramid import read_pyramid


def test_gaps_of_philips_and_aperio_show_nothing(tmp_path):
    assert read_pyramid(tuple(walk(philips(tmp_path / "a.tiff").read_bytes()))).gaps
    for description, gaps in (("Aperio Image Library v12\r\n64x64", True), ("", False)):
        path = tmp_path / "b.tiff"
        tifffile.imwrite(path, smooth(64, 64), tile=TILE, photometric="rgb", metadata=None, description=description)
        assert read_pyramid(tuple(walk(path.read_bytes()))).gaps == gaps


def test_a_gap_in_one_plane_is_a_gap(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(smooth(96, 128), 2, 0), tile=TILE, photometric="rgb", planarconfig="separate", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = file.pages[0].tags["TileByteCounts"]
        counts.overwrite([0 if index == 4 + 3 else count for index, count in enumerate(counts.value)])  # green, last tile
    pyramid = read_pyramid(tuple(walk(path.read_bytes())))
    expected = np.ones((96, 128), bool)
    expected[64:, 64:] = False
    np.testing.assert_array_equal(where_stored(pyramid.layouts[0], pyramid.levels[0].window), expected)


@pytest.mark.parametrize(("label", "macro"), [(f"{HEAD}label 50x41", f"{HEAD}macro 50x42"), ("Aperio GT450 v1.0.1",) * 2, ("", "")])
def test_aperio_pictures_are_openslides(tmp_path, label, macro):
    path = aperio(tmp_path / "a.svs", pictures=[(f"{HEAD}x -> y", 0), (label, 1), (macro, 9)])
    image = TiffImage(path)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert [size[::-1] for size in slide.level_dimensions] == [(level.height, level.width) for level in image.levels]
        assert set(image.associated) == set(slide.associated_images) == {"label", "macro", "thumbnail"}
        for name, wanted in slide.associated_images.items():
            np.testing.assert_array_equal(image.associated[name], np.asarray(wanted)[:, :, :3])
        for level in image.levels:
            np.testing.assert_array_equal(whole(image, level.index), openslides(path, level.index, (level.height, level.width))[0])


def test_a_gap_of_an_aperio_slide_is_openslides(tmp_path):
    path = aperio(tmp_path / "a.svs")
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = file.pages[0].tags["TileByteCounts"]
        counts.overwrite([0 if index == 6 else count for index, count in enumerate(counts.value)])
    image, reference = TiffImage(path), SlideImage(path)
    np.testing.assert_array_equal(whole(image), whole(reference))
    stored = where_stored(read_pyramid(tuple(walk(path.read_bytes()))).layouts[0], image.levels[0].window)
    np.testing.assert_array_equal(stored, reference.read_mask(image.levels[0].window))
    assert not stored.all()


@pytest.mark.parametrize(
    ("said", "resolution", "mpp", "doubt"),
    [
        ("AppMag = 40|MPP = 0.2520", None, 0.252, ""),
        ("AppMag = 20|MPP = 0.2520", None, 0.252, ""),
        ("MPP = 3.9", None, 3.9, ""),
        ("AppMag = 40|MPP = 2.0", None, None, "contradicts an objective of 40x"),
        ("AppMag = 40|MPP = 2.0", 5000, 2.0, ""),  # exported at an eighth of the size: the tags confirm it
        ("AppMag = 40|MPP = 2.0", 39700, None, "contradicts"),
        ("AppMag = 40|MPP = 252", None, None, "not within"),  # in nanometres
        ("AppMag = 40|MPP = many", None, None, ""),
        ("AppMag = 40", 40000, None, ""),  # Aperio has a place for it, and says nothing there
    ],
)
def test_mpp_of_aperio_against_its_objective(tmp_path, said, resolution, mpp, doubt):
    path = aperio(tmp_path / "a.svs", said, resolution=resolution)
    for image in (TiffImage(path), SlideImage(path)):
        assert image.mpp == (None if mpp is None else pytest.approx((mpp, mpp)))
        assert doubt in image.properties.get("patchdrive.mpp", "")
        assert bool(doubt) == ("patchdrive.mpp" in image.properties)


@pytest.mark.parametrize(
    ("size", "mpp", "doubt"), [((0.5, 0.5), (0.5, 0.5), ""), ((0.5, 2.0), None, "factor 2"), ((500.0, 500.0), None, "not within")]
)
def test_mpp_of_ome(tmp_path, size, mpp, doubt):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeY": size[0], "PhysicalSizeX": size[1]}
    tifffile.imwrite(path, smooth(64, 64), ome=True, tile=TILE, photometric="rgb", metadata=metadata)
    image = TiffImage(path)
    assert image.mpp == mpp
    assert doubt in image.properties.get("patchdrive.mpp", "")


def test_print_resolution_of_a_generic_tiff_is_doubted(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth(64, 64), tile=TILE, photometric="rgb", resolution=(72, 72), resolutionunit="INCH", metadata=None)
    assert TiffImage(path).mpp is None
    assert "72 dots per inch" in TiffImage(path).properties["patchdrive.mpp"]


def test_further_images_of_ome_are_pictures(tmp_path):
    path, pictures = tmp_path / "a.ome.tif", {"label image": smooth(40, 30, 1), "Macro": smooth(30, 60, 1), "region 2": smooth(64, 64, 1)}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(smooth(128, 96), tile=TILE, photometric="rgb", metadata={"axes": "YXS", "Name": "slide"})
        for name, pixels in pictures.items():
            writer.write(np.ascontiguousarray(pixels), photometric="rgb", metadata={"axes": "YXS", "Name": name})
    image = TiffImage(path)
    assert [(level.height, level.width) for level in image.levels] == [(128, 96)]
    assert sorted(image.associated) == ["label", "macro"]
    np.testing.assert_array_equal(image.associated["label"], pictures["label image"])
    np.testing.assert_array_equal(image.associated["macro"], pictures["Macro"])


EQUAL = (
    "broken/panimg_invalid_resolutions_tiff.tif",
    "rs/gdal/cog_sparse_strile_arrays_zeroified_when_possible.tif",
    "rs/gdal/rgbsmall_JPEG_tiled_separate.tif",
    "rs/gdal/rgbsmall_ZSTD_tiled_separate.tif",
    "rs/gdal/ycbcr_with_mask.tif",
    "rs/misc/TCI.tif",
    "rs/misc/au-gcp.tif",
    "rs/rasterio/cogeo.tif",
    "rs/rasterio/goes.tif",
    "rs/rasterio/shade.tif",
    "rs/rasterio/world.byte.tif",
    "rs/rio-cogeo/cog_no_offest.tif",
    "rs/rio-cogeo/image_geos.tif",
    "rs/rio-cogeo/image_web_z5_z11.tif",
    "rs/rio-tiler/cog_hirise_mars.tif",
    "rs/rio-tiler/cog_rgb_mask.tif",
    "rs/rio-tiler/cog_world.tif",
    "wsi/CMU-1-Small-Region.svs",
    "wsi/boxes.tiff",
    "wsi/nightwatch_15354x13230.ome.tif",
    "wsi/panimg/dzi_tiff_valid_tiff.tif",
    "wsi/panimg/no_dzi.tif",
)
"""8-bit grey and RGB that OpenSlide opens as a TIFF and reads."""
OTHERWISE = {
    "rs/gdal/sparse_tiled_contig.tif": "tiles left out hold nodata, which OpenSlide does not know",
    "rs/gdal/sparse_tiled_separate.tif": "tiles left out hold nodata, which OpenSlide does not know",
}


def eight_bit_pictures(folder):
    """Files of `folder` that OpenSlide opens as a TIFF and reads, and that are 8-bit grey or RGB."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in {".tif", ".tiff", ".svs"} or openslide.OpenSlide.detect_format(path) is None:
            continue
        try:
            with openslide.OpenSlide(path) as slide:
                slide.read_region((0, 0), 0, (1, 1))
            image = TiffImage(path)
        except (openslide.OpenSlideError, FormatError):
            continue
        if image.dtype == np.uint8 and image.channels in {("gray",), ("red", "green", "blue")}:
            yield path.relative_to(folder).as_posix()


def test_every_real_file_that_openslide_reads_is_compared(real_file):
    folder = real_file("README.md").parent
    assert sorted(eight_bit_pictures(folder)) == sorted([*EQUAL, *OTHERWISE])


@pytest.mark.parametrize("name", EQUAL)
def test_real_files_are_openslides_to_the_bit(real_file, name):
    path = real_file(name)
    image, compared = TiffImage(path), 0
    with openslide.OpenSlide(path) as slide:
        for level in image.levels:
            if (level.width, level.height) not in slide.level_dimensions:
                assert name == "wsi/nightwatch_15354x13230.ome.tif"  # OpenSlide does not look into SubIFDs
                continue
            at = slide.level_dimensions.index((level.width, level.height))
            height, width = min(level.height, 1500), min(level.width, 1500)
            theirs = np.asarray(slide.read_region((0, 0), at, (width, height)))[:, :, :3]
            ours = image.read(Window(y=0, x=0, height=height, width=width), level=level.index)
            np.testing.assert_array_equal(np.broadcast_to(ours, theirs.shape), theirs)
            compared += 1
    assert compared == (1 if "nightwatch" in name else len(image.levels))
