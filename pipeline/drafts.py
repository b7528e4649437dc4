"""Drafts: a file or a folder is there once it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: put there when the block ends, over what was there; taken away when it is ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".draft-") as folder:
        draft = Path(folder) / path.name
        yield draft
        if path.is_dir():  # a folder cannot be put over another
            path.rename(Path(folder) / "before")
        draft.replace(path)
