"""export(): what a run left, in the forms that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from patchdrive.pipeline.export_anndata import to_anndata
from patchdrive.pipeline.export_cog import to_cog
from patchdrive.pipeline.export_geojson import to_geojson
from patchdrive.pipeline.export_geoparquet import to_geoparquet
from patchdrive.pipeline.export_ome_tiff import to_ome_tiff
from patchdrive.pipeline.export_slides import to_clam, to_stamp, to_trident
from patchdrive.pipeline.export_spatialdata import to_spatialdata
from patchdrive.pipeline.objects import Tracing
from patchdrive.pipeline.result import Result, open_result
from patchdrive.readers.errors import SettingsError, StoreError

Exporter = Callable[[Result, Path], list[Path]]
"""Writes one form of a result into a folder, and says which files."""

FORMS: Mapping[str, Exporter] = {
    "trident": to_trident,
    "clam": to_clam,
    "stamp": to_stamp,
    "anndata": to_anndata,
    "cog": to_cog,
    "ome-tiff": to_ome_tiff,
    "geojson": to_geojson,
    "geoparquet": to_geoparquet,
    "spatialdata": to_spatialdata,
}
"""By the names that `export --to` takes."""
OBJECT_FORMS: Mapping[str, Callable[[Result, Path, Tracing], list[Path]]] = {"geojson": to_geojson, "geoparquet": to_geoparquet}
"""Those of them that hold objects of maps too."""


def export(store: Path | str, form: str, out: Path | str, *, tracing: Tracing | None = None) -> Sequence[Path]:
    """Write what a store holds in another form.

    Args:
        store: `<id>.zarr`.
        form: one of `FORMS`.
        out: folder; the form says what lies where in it.
        tracing: which objects of maps are wanted too, of `OBJECT_FORMS`.

    Returns:
        The files written.

    Raises:
        SettingsError: there is no such form, it holds no objects, or `tracing` names what is not there.
        StoreError: it is no store, or this form cannot hold what is in it.
    """
    if form not in FORMS:
        raise SettingsError(f"there is no form {form!r} to export to; there are {', '.join(FORMS)}")
    if tracing is not None and form not in OBJECT_FORMS:
        raise SettingsError(f"--objects does not go with the form {form!r}; it does with {', '.join(OBJECT_FORMS)}")
    try:
        if tracing is None:
            return FORMS[form](open_result(store), Path(out))
        return OBJECT_FORMS[form](open_result(store), Path(out), tracing)
    except RuntimeError as error:  # of a chunk's checksum
        raise StoreError(f"{store} cannot be read ({error}); `patchdrive verify` says what is wrong with it") from error
