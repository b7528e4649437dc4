"""What `patchdrive info` says of an image: levels, pixel size, place, codec, and which reader was chosen and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyproj import CRS

from patchdrive.readers import Image, open_image
from patchdrive.readers.open import choose


def describe(source: str, *, reader: str | None = None) -> dict[str, Any]:
    """The object that `info --json` prints; its keys are kept from version to version.

    Raises:
        FormatError: nothing opens the source; says what it is.
    """
    why = "asked for" if reader is not None else choose(source).why
    image = open_image(source, reader=reader)
    try:
        return {
            "source": image.source,
            "reader": image.reader,
            "why": why,
            "dtype": image.dtype.name,
            "channels": list(image.channels),
            "levels": [
                {
                    "height": level.height,
                    "width": level.width,
                    "downsample_y": level.downsample_y,
                    "downsample_x": level.downsample_x,
                    "tile_height": level.tile_height,
                    "tile_width": level.tile_width,
                }
                for level in image.levels
            ],
            "mpp": None if image.mpp is None else list(image.mpp),
            "crs": None if image.crs is None else crs_name(image.crs),
            "transform": None if image.transform is None else [float(value) for value in list(image.transform)[:6]],
            "nodata": nodata_json(image),
            "codec": image.codec,
        }
    finally:
        image.close()


def crs_name(crs: CRS) -> str:
    """`EPSG:n` where it is one, else WKT."""
    code = crs.to_epsg(min_confidence=100)
    return crs.to_wkt() if code is None else f"EPSG:{code}"


def nodata_json(image: Image) -> float | int | str | None:
    """JSON has no NaN: it is the string "nan"."""
    value = image.nodata
    if value is None:
        return None
    if math.isnan(value):
        return "nan"
    return int(value) if float(value).is_integer() and image.dtype.kind in "iu" else float(value)


def info_lines(facts: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    first = facts["levels"][0]
    size = first["height"] * first["width"]
    lines = [
        str(facts["source"]),
        f"  {first['height']} x {first['width']} = {size / 1e6:,.1f} Mpx, {len(facts['channels'])} x {facts['dtype']} "
        f"({', '.join(facts['channels'])}), {facts['codec']}",
        f"  reader {facts['reader']}: {facts['why']}",
    ]
    if facts["mpp"] is not None:
        lines.append(f"  {facts['mpp'][0]:.4g} x {facts['mpp'][1]:.4g} µm per pixel (y, x)")
    if facts["crs"] is not None:
        lines.append(f"  CRS {facts['crs'] if len(facts['crs']) < 80 else facts['crs'][:77] + '...'}")
    if facts["transform"] is not None:
        lines.append(f"  transform {facts['transform']}")
    if facts["mpp"] is None and facts["transform"] is None:
        lines.append("  pixel size unknown")
    if facts["nodata"] is not None:
        lines.append(f"  nodata {facts['nodata']}")
    lines += [
        f"  level {index}: {level['height']} x {level['width']}, downsample {level['downsample_y']:.6g} x {level['downsample_x']:.6g}, "
        f"tiles {level['tile_height']} x {level['tile_width']}"
        for index, level in enumerate(facts["levels"])
    ]
    return lines
