"""anndata, at once and lazily, and scanpy."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import anndata
import numpy as np
import scanpy
from expected import Check, arguments


def main() -> None:
    check = Check(f"anndata {version('anndata')}, scanpy {version('scanpy')}", arguments())
    warnings.filterwarnings("ignore", message="Did not read zarr as consolidated")
    for image, path, held in check.tables():
        whole, lazy = anndata.read_zarr(path), anndata.experimental.read_lazy(path)
        state = whole.obs["state"].tolist() if "state" in whole.obs else []
        spatial = np.asarray(whole.obsm["spatial"])
        check.table(image, path, held, column=lambda name, whole=whole: np.asarray(whole[:, name].X).ravel(), xy=spatial, state=state)
        check.equal("lazy X", path, np.asarray(lazy.X[:].compute()).tobytes(), np.asarray(whole.X).tobytes())
        check.equal("lazy places", path, np.asarray(lazy.obsm["spatial"][:]).tolist(), spatial.tolist())
        if held["column"] is not None:
            scanpy.pp.pca(whole, n_comps=3)
            check.equal("components", path, whole.obsm["X_pca"].shape, (held["rows"], 3))
    check.end()


main()
