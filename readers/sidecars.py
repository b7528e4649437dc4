"""Files beside a raster from which GDAL takes more of it: overviews, masks, frames, nodata."""

from __future__ import annotations

from pathlib import Path

_PAM_BYTES = 1 << 20
# What of GDAL's .aux.xml changes an image; statistics and histograms, which every viewer leaves behind, do not.
_PAM_CHANGES = {
    b"<SRS": "a CRS",
    b"<GeoTransform": "a frame",
    b"<GCPList": "control points",
    b"<NoDataValue": "a nodata value",
    b"<ColorInterp": "colours of channels",
    b"<Description": "names of channels",
    b'domain="RPC"': "RPCs",
    b"<MaskBand": "a mask",
}
_FRAMES = (".tfw", ".tifw", ".tiffw", ".wld", ".tab", "_rpc.txt", ".rpb")


def changed_by(path: Path, *, framed: bool, overviewed: bool) -> str:
    """The file beside `path` that would change what GDAL says of it, and how; empty where there is none.

    Args:
        path: the raster.
        framed: it holds an affine frame of its own, which wins over a world file.
        overviewed: it holds overviews of its own, which win over external ones.
    """
    if not overviewed and (found := _beside(path, path.name, ".ovr")):
        return f"{found.name} holds its overviews"
    if found := _beside(path, path.name, ".msk"):
        return f"{found.name} holds its mask"
    for name in (path.name, path.stem):
        if found := _beside(path, name, ".aux"):
            return f"{found.name} may hold overviews, a frame and more"
    if (found := _beside(path, path.name, ".aux.xml")) and (what := _pam(found)):
        return f"{found.name} holds {what}"
    if not framed:
        for suffix in _FRAMES:
            if found := _beside(path, path.stem, suffix):
                return f"{found.name} places it in the world"
    return ""


def _beside(path: Path, name: str, suffix: str) -> Path | None:
    """The file of that name, its suffix in small or capital letters. A folder of a million files is not listed."""
    found = (path.with_name(name + suffix), path.with_name(name + suffix.upper()))
    return next((file for file in found if file.is_file()), None)


def _pam(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(_PAM_BYTES + 1)
    if len(text) > _PAM_BYTES:
        return "more than is looked through here"
    return " and ".join(what for mark, what in _PAM_CHANGES.items() if mark in text)
