"""ngff-zarr: the JSON schemas of OME-NGFF 0.5, the strict ones, and its reader."""

from __future__ import annotations

import json
from importlib.metadata import version

import ngff_zarr
import numpy as np
from expected import Check, Level, arguments, placed


def main() -> None:
    check = Check(f"ngff-zarr {version('ngff-zarr')}", arguments())
    for image, path, held in check.maps():
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        ngff_zarr.validate(attributes, version="0.5", model="image", strict=True)
        if path.parent.name == "labels":
            ngff_zarr.validate(attributes, version="0.5", model="label", strict=True)
        for index, level in enumerate(ngff_zarr.from_ngff_zarr(str(path), validate=True).images):
            values = np.asarray(level.data)
            y, x = (
                placed(extent, level.scale[axis], level.translation[axis]) for axis, extent in zip("yx", values.shape[-2:], strict=True)
            )
            check.equal("unit", path, level.axes_units["y"], "micrometer" if image["mpp"] else None)
            check.level(image, path, held, Level(index=index, values=values, y=y, x=x, frame="ngff"))
    check.end()


main()
