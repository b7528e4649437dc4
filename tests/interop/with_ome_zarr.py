"""ome-zarr-py: the reader behind napari-ome-zarr."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from expected import Check, Level, arguments, placed
from ome_zarr.io import parse_url
from ome_zarr.reader import Label, Reader


def main() -> None:
    check = Check(f"ome-zarr {version('ome-zarr')}", arguments())
    for image, path, held in check.maps():
        (node,) = Reader(parse_url(path))()
        label = path.parent.name == "labels"
        check.that(label == any(isinstance(spec, Label) for spec in node.specs), path, "labels are labels, and images are none")
        transformations = node.metadata["coordinateTransformations"]
        for index, (data, transformation) in enumerate(zip(node.data, transformations, strict=True)):
            values = np.asarray(data)
            scale, shift = transformation[0]["scale"][-2:], transformation[1]["translation"][-2:]
            y, x = (placed(extent, scale[axis], shift[axis]) for axis, extent in enumerate(values.shape[-2:]))
            check.level(image, path, held, Level(index=index, values=values, y=y, x=x, frame="ngff"))
    check.end()


main()
