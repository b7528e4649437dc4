"""rasterio with GDAL 3.12: scenes, by the folder of a level, which QGIS opens in one click. Slides have shards, which GDAL 3.13 reads."""

from __future__ import annotations

import json

import numpy as np
import rasterio
from expected import Check, Level, arguments


def main() -> None:
    check = Check(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}", arguments())
    for image, path, held in check.maps(scenes=True):
        datasets = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
        for index, dataset in enumerate(datasets):
            group, name = dataset["path"].split("/")
            with rasterio.open(path / group) as whole, rasterio.open(f'ZARR:"{path}":/{group}/{name}') as found:
                check.equal("subdatasets", path, [*whole.shape, whole.count], [*found.shape, found.count])
                a, b, c, d, e, f = image["transform"]
                down_x, down_y = found.transform.a / a, found.transform.e / e
                check.equal("CRS", path, found.crs.to_epsg(), image["epsg"])
                check.equal("transform", path, list(found.transform)[:6], [a * down_x, b, c, d, e * down_y, f])
                check.equal("scale", path, list(found.scales), [held["scale_factor"] or 1.0] * found.count)
                # An image map reserves no value: GDAL takes the array's fill value, 0, which it cannot do without.
                check.equal("nodata", path, found.nodata, 0.0 if held["fill"] is None else float(held["fill"]))
                values = found.read()
                rows, columns = np.arange(found.height), np.arange(found.width)
                y, x = (found.transform @ (0.5, rows + 0.5))[1], (found.transform @ (columns + 0.5, 0.5))[0]
                none = found.read_masks(1) == 0 if held["gaps"] else None
                check.level(image, path, held, Level(index=index, values=values, y=y, x=x, frame="world", none=none))
    check.end()


main()
