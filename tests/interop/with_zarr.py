"""zarr-python and nothing else: attributes by hand."""

from __future__ import annotations

import zarr
from expected import Check, Level, arguments, placed


def main() -> None:
    check = Check(f"zarr {zarr.__version__}", arguments())
    for image, path, held in check.maps():
        group = zarr.open_group(path, mode="r")
        for index, dataset in enumerate(group.attrs["ome"]["multiscales"][0]["datasets"]):
            array = group[dataset["path"]]
            scale, shift = (dataset["coordinateTransformations"][at][name][-2:] for at, name in enumerate(("scale", "translation")))
            check.equal("nodata", path, array.attrs.get("_FillValue"), held["fill"])
            values = array[:]
            y, x = (placed(extent, scale[axis], shift[axis]) for axis, extent in enumerate(array.shape[-2:]))
            check.level(image, path, held, Level(index=index, values=values, y=y, x=x, frame="ngff"))
    for image, path, held in check.tables():
        group = zarr.open_group(path, mode="r")
        names = group["var/_index"][:].tolist()
        categories, codes = (group[f"obs/state/{name}"][:] for name in ("categories", "codes")) if held["done"] else ([], [])
        state = [categories[code] for code in codes]
        check.table(
            image,
            path,
            held,
            column=lambda name, group=group, names=names: group["X"][:, names.index(name)],
            xy=group["obsm/spatial"][:],
            state=state,
        )
    check.end()


main()
