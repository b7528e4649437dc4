"""The images that training is told to learn from, and which of them a line of a label file speaks of."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from patchdrive.pipeline.belonging import name_of
from patchdrive.readers import choose
from patchdrive.readers.errors import FormatError, SettingsError

_BESIDE = frozenset(
    f".{suffix}"
    for suffix in (
        *("aux", "cpg", "csv", "dbf", "geojson", "gz", "h5", "idx", "ini", "jgw", "json", "log", "md", "msk", "npy", "ovr", "parquet"),
        *("pgw", "prj", "py", "safetensors", "shp", "shx", "tfw", "toml", "tsv", "txt", "wld", "xlsx", "xml", "yaml", "yml", "zip"),
    )
)
"""Suffixes of what lies beside images and is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Images by name."""

    paths: tuple[Path, ...]
    """Of the images, sorted, each once."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files of folders and patterns that no reader opens, and why."""


def find_sources(names: Sequence[str], folder: Path, *, reader: str | None = None) -> Found:
    """Files, folders of images, and patterns.

    Args:
        names: as a config says them.
        folder: where they are meant from.
        reader: that opens them all; then every file is taken for an image.

    Raises:
        SettingsError: a name has no image.
    """
    paths: dict[Path, None] = {}
    left_out: dict[str, str] = {}
    for name in names:
        before = len(paths)
        for path, certain in _candidates(folder, name):
            try:
                paths[path if reader is not None else choose(path).path] = None
            except FormatError as error:
                if certain:
                    raise SettingsError(f"sources: {error}") from error
                if not path.is_dir():
                    left_out[str(path)] = str(error)
        if len(paths) == before:
            raise SettingsError(
                f"sources: {folder / name} has no image that is not named already; it is a file, a folder of images or a pattern"
            )
    return Found(paths=tuple(sorted(paths)), left_out=left_out)


def _candidates(folder: Path, name: str) -> Iterator[tuple[Path, bool]]:
    """What may be an image, and whether it was named as one."""
    if any(sign in name for sign in "*?["):
        for found in sorted(glob.glob(str(folder / name), recursive=True)):  # noqa: PTH207  pathlib's takes no absolute pattern
            yield from _unless_beside(Path(found))
        return
    path = folder / name
    if not path.is_dir() or _is_image(path):
        yield path, True
        return
    for entry in sorted(path.iterdir()):
        yield from _unless_beside(entry)


def _unless_beside(path: Path) -> Iterator[tuple[Path, bool]]:
    if not path.name.startswith(".") and path.suffix.lower() not in _BESIDE:
        yield path, False


def _is_image(folder: Path) -> bool:
    try:
        choose(folder)
    except FormatError:
        return False
    return True


class Names:
    """Which image a name in a label file means: its path, seen from the file; else its file name; else that without the suffix."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._by_path = {path.resolve(): path for path in paths}
        self._by_name: dict[str, list[Path]] = {}
        for path in paths:
            for name in {path.name, name_of(str(path))}:
                self._by_name.setdefault(name, []).append(path)

    def meant(self, text: str, file: Path) -> Path | None:
        """The image; None where it is none of ours.

        Raises:
            SettingsError: several images are called so.
        """
        whole = self._by_path.get((file.parent / text).resolve())
        if whole is not None:
            return whole
        name = PurePosixPath(text.replace("\\", "/"))
        for one in (name.name, name.stem):
            found = self._by_name.get(one, [])
            if len(found) > 1:
                raise SettingsError(f"{file}: {text!r} may mean {found[0]} or {found[1]}; write its path, seen from the file's folder")
            if found:
                return found[0]
        return None
