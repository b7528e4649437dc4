"""yaozarrs: its validator over every map, its models of the metadata, tensors by zarr."""

from __future__ import annotations

from importlib.metadata import version

import yaozarrs
import zarr
from expected import Check, Level, arguments, placed


def main() -> None:
    check = Check(f"yaozarrs {version('yaozarrs')}", arguments())
    for image, path, held in check.maps():
        found = yaozarrs.validate_zarr_store(str(path)).ome_metadata()
        (multiscale,) = found.multiscales
        for index, dataset in enumerate(multiscale.datasets):
            values = zarr.open_array(path / dataset.path, mode="r")[:]
            scale, shift = dataset.scale_transform.scale[-2:], dataset.translation_transform.translation[-2:]
            y, x = (placed(extent, scale[axis], shift[axis]) for axis, extent in enumerate(values.shape[-2:]))
            check.level(image, path, held, Level(index=index, values=values, y=y, x=x, frame="ngff"))
    check.end()


main()
