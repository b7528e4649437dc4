"""xarray with rioxarray: scenes, by the coordinates x and y, values decoded and masked as xarray does."""

from __future__ import annotations

import json

import numpy as np
import rasterio
import rioxarray
import xarray
from expected import Check, Level, arguments


def main() -> None:
    versions = f"xarray {xarray.__version__}, rioxarray {rioxarray.__version__}, rasterio {rasterio.__version__}"
    check = Check(versions, arguments())
    for image, path, held in check.maps(scenes=True):
        datasets = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
        for index, dataset in enumerate(datasets):
            group, name = dataset["path"].split("/")
            found = xarray.open_zarr(path, group=group, consolidated=False, decode_coords="all")[name]
            a, b, c, d, e, f = image["transform"]
            down_y, down_x = (abs(float(step)) / abs(size) for step, size in zip(found.rio.resolution()[::-1], (e, a), strict=True))
            check.equal("CRS", path, found.rio.crs.to_epsg(), image["epsg"])
            check.equal("transform", path, list(found.rio.transform())[:6], [a * down_x, b, c, d, e * down_y, f])
            check.equal("transform by x and y", path, list(found.rio.transform(recalc=True))[:6], [a * down_x, b, c, d, e * down_y, f])
            check.equal("nodata", path, None if found.rio.encoded_nodata is None else float(found.rio.encoded_nodata), held["fill"])
            values = found.values
            none = np.isnan(values if values.ndim == 2 else values[0]) if held["fill"] is not None else None
            check.level(
                image,
                path,
                held,
                Level(index=index, values=values, y=found.y.values, x=found.x.values, frame="world", decoded=True, none=none),
            )
    check.end()


main()
