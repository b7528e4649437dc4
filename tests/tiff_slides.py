"""TIFF slides in the layout of their vendors, made by script."""

from __future__ import annotations

import base64

import numpy as np
import openslide
import simplejpeg
import tifffile

SIDE = 64
TILE = (SIDE, SIDE)


def smooth(height, width, level=0):
    """(height, width, 3) uint8 that JPEG keeps recognisable: slow waves, different in each level."""
    y, x = np.mgrid[:height, :width] * 2.0**level
    waves = [128 + 100 * np.sin(x / 37 + level), 128 + 100 * np.cos(y / 29), 128 + 60 * np.sin((x + y) / 53)]
    return np.stack(waves, axis=2).astype(np.uint8)


def whole(image, level=0):
    return image.read(image.levels[level].window, level=level)


def pad(pixels):
    """Whole tiles, as these writers store every level: the rest is anything but the image."""
    height, width = (-(-side // SIDE) * SIDE for side in pixels.shape[:2])
    out = np.full((height, width, 3), 17, np.uint8)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def shrunk(base, factor):
    """The size of a level, rounded down."""
    return tuple(side // factor for side in base)


def openslides(path, level, size):
    """(RGB, opacity) of the top-left `size` of a level, by OpenSlide."""
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((0, 0), level, size[::-1]))
    return rgba[:, :, :3], rgba[:, :, 3]


def attribute(name, text):
    return f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="IString">{text}</Attribute>'


def quoted(millimetres):
    return " ".join(f"&quot;{side:.9f}&quot;" for side in millimetres)


def scanned(kind, inside):
    return f'<DataObject ObjectType="DPScannedImage">{attribute("PIM_DP_IMAGE_TYPE", kind)}{inside}</DataObject>'


def picture(height, width):
    return simplejpeg.encode_jpeg(np.ascontiguousarray(smooth(height, width, 1)), quality=90)


def philips_xml(spacings, *, derivation="tiff-levels=40,10002-processing=0-sourceFilename=&quot;a-b&quot;", slides=1, label=None):
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{attribute("DICOM_PIXEL_SPACING", quoted(spacing))}'
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', index)}</DataObject>"
        for index, spacing in enumerate(spacings)
    )
    slide = (
        attribute("DICOM_PIXEL_SPACING", quoted(spacings[0]))
        + attribute("DICOM_DERIVATION_DESCRIPTION", derivation)
        + f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
    )
    images = scanned("WSI", slide) * slides
    for kind, jpeg in (("LABELIMAGE", label or picture(60, 50)), ("MACROIMAGE", picture(90, 200))):
        text = base64.encodebytes(jpeg).decode()  # in lines, as Philips writes it
        images += scanned(kind, attribute("PIM_DP_IMAGE_DATA", text))
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "Hamamatsu")
        + f'<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>{images}</Array></Attribute></DataObject>'
    )


PHILIPS_BASE, PHILIPS_FACTORS = (5 * SIDE, 7 * SIDE), (1, 2, 4, 8)
SPACINGS = tuple((0.00025 * factor, 0.000251 * factor) for factor in PHILIPS_FACTORS)


def philips(path, *, xml=None, gaps=((0, 8), (1, 3)), extra=(), bigtiff=True):
    """A Philips TIFF of four levels, each of whole tiles; `gaps` are (level, tile) pairs that are left out."""
    description = philips_xml(SPACINGS) if xml is None else xml
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for level, factor in enumerate(PHILIPS_FACTORS):
            writer.write(
                pad(smooth(*shrunk(PHILIPS_BASE, factor), level)),
                photometric="rgb",
                tile=TILE,
                compression="jpeg",
                compressionargs={"level": 85},
                subsampling=(2, 2),
                software="Philips DP v1.0",
                subfiletype=int(level > 0),
                description=description if level == 0 else f"level={level}",
                metadata=None,
            )
        for name, pixels in extra:
            writer.write(pixels, photometric="rgb", description=name, metadata=None, compression="jpeg")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for level, tile in gaps:
            for name in ("TileOffsets", "TileByteCounts"):
                tag = file.pages[level].tags[name]
                tag.overwrite([0 if index == tile else value for index, value in enumerate(tag.value)])
    return path


def padded(path, base, factors, *, marked=True, label=None):
    """A generic BigTIFF in the manner of Camelyon16's masks: every level of whole tiles."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, factor in enumerate(factors):
            size = tuple(-(-side // factor) for side in base)
            options = {"subfiletype": int(marked and level > 0), "compression": "jpeg", "compressionargs": {"level": 85}}
            writer.write(pad(smooth(*size, level)), photometric="rgb", tile=TILE, metadata=None, **options)
        if label is not None:
            writer.write(label, photometric="rgb", tile=TILE, metadata=None, subfiletype=1)
    return path


HEAD = "Aperio Image Library v12\r\n"


def aperio(path, said="AppMag = 40|MPP = 0.25", pictures=(), resolution=None):
    """An Aperio slide of two levels; `pictures` are (description, NewSubfileType) pairs in strips, the first of them the thumbnail."""
    first = {} if resolution is None else {"resolution": (resolution, resolution), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        common = {"photometric": "rgb", "metadata": None}
        writer.write(smooth(256, 320), tile=TILE, compression="jpeg", description=f"{HEAD}320x256|{said}", **first, **common)
        for index, (description, kind) in enumerate(pictures):
            how = {"compression": "lzw", "predictor": 2} if index == 1 else {"compression": "jpeg"}
            small = np.ascontiguousarray(smooth(40 + index, 50, index))
            writer.write(small, rowsperstrip=16, subfiletype=kind, description=description, **how, **common)
        writer.write(smooth(128, 160, 1), tile=TILE, compression="jpeg", description=f"{HEAD}level", **common)
    return path
