"""spatialdata: the tables of a store as it is, and the whole of what `patchdrive export --to spatialdata` makes of it.

The images of a store are strict OME-Zarr, which viewers read; spatialdata's own dialect, and shapes, are for the export.
"""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version

import numpy as np
import xarray
from expected import Check, Level, arguments
from spatialdata import read_zarr
from spatialdata.transformations import get_transformation


def main() -> None:
    check = Check(f"spatialdata {version('spatialdata')}", arguments())
    warnings.filterwarnings("ignore", message="SpatialData is not stored in the most current format")
    logging.disable(logging.WARNING)
    for image, path, held in check.tables():
        table = read_zarr(path.parents[1], selection=("tables",)).tables[path.name]
        state = table.obs["state"].tolist() if "state" in table.obs else []
        column = lambda name, table=table: np.asarray(table[:, name].X).ravel()  # noqa: E731
        check.table(image, path, held, column=column, xy=np.asarray(table.obsm["spatial"]), state=state)
    wholes = {store["path"]: read_zarr(check.folder / store["spatialdata"]) for image in check.images for store in image["stores"].values()}
    for image, path, held in check.maps():
        if path.name.endswith("_colors_valid"):
            continue  # the export leaves it with the store: colours are for looking
        found = wholes[str(path.parents[1].relative_to(check.folder))][path.name]
        matrix = get_transformation(found, "global").to_affine_matrix(("x", "y"), ("x", "y"))
        # spatialdata lays coarser levels by the ratio of sizes, whatever the file says: with odd sizes up to a pixel of theirs off.
        finest = found if isinstance(found, xarray.DataArray) else found["scale0"]["image"]
        x, y = (matrix[axis, axis] * finest[name].values + matrix[axis, 2] for axis, name in enumerate("xy"))
        check.level(image, path, held, Level(index=0, values=finest.values, y=y, x=x, frame="level 0"))
    for image in check.images:
        store = image["stores"]["tables"]
        tiles, (table,) = wholes[store["path"]].shapes["tiles"], wholes[store["path"]].tables.values()
        marked = np.isclose(np.asarray(table[:, store["tables"][0]["column"]].X).ravel(), store["tables"][0]["value"], rtol=1e-3)
        mark = image["mark"]
        box = [mark["x"], mark["y"], mark["x"] + mark["width"], mark["y"] + mark["height"]]
        check.equal("marked tiles", store["path"], tiles[marked].total_bounds.tolist(), box)
    check.end()


main()
