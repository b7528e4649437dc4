"""Files that belong to an image by its name, as other tools keep them: one for each slide in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchdrive.readers.errors import SettingsError


def name_of(source: str) -> str:
    """What other tools call an image: its file name without the suffix."""
    return Path(source.rstrip("/")).stem


def file_of(where: str, source: str, places: Sequence[str], *, option: str) -> Path:
    """The file that belongs to an image.

    Args:
        where: that file, or a folder with one for each image.
        source: the image.
        places: where in the folder it may lie, the first that is there; `{}` stands for the image's name.
        option: that named it, for the error.

    Raises:
        SettingsError: there is none.
    """
    path, name = Path(where), name_of(source)
    if path.is_file():
        return path
    names = [place.format(name) for place in places]
    found = next((path / one for one in names if (path / one).is_file()), None)
    if found is None:
        raise SettingsError(f"{option} {where} is no file, and has none for {name}: {', '.join(names)}")
    return found
