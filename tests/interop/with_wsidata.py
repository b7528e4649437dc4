"""wsidata: a slide, with the table of a store, and with what `patchdrive export --to spatialdata` makes of that.

What wsidata reads from the slide at the marked patches' places must be the mark.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

import numpy as np
from expected import Check, arguments
from spatialdata import read_zarr
from wsidata import open_wsi


def main() -> None:
    check = Check(f"wsidata {version('wsidata')}", arguments())
    warnings.filterwarnings("ignore", message="SpatialData is not stored in the most current format")
    for image, path, held in check.tables():
        if image["transform"] is None and held["column"] is not None:
            exported = check.folder / image["stores"]["tables"]["spatialdata"]
            with_table = open_wsi(check.folder / image["source"], store=None)
            with_table.tables[path.name] = read_zarr(path.parents[1], selection=("tables",)).tables[path.name]
            for slide in (with_table, open_wsi(check.folder / image["source"], store=str(exported))):
                (table,) = slide.tables.values()
                centres = table.obsm["spatial"][np.isclose(np.asarray(table[:, held["column"]].X).ravel(), held["value"], rtol=1e-3)]
                check.equal("size", path, list(slide.properties.shape), [image["height"], image["width"]])
                check.equal("marked patches", path, len(centres), 2)
                for x, y in centres.astype(int).tolist():
                    read = slide.read_region(x - 32, y - 32, 64, 64, level=0)
                    check.equal("regions", path, np.unique(read.reshape(-1, 3), axis=0).tolist(), [image["mark_values"]])
    check.end()


main()
