"""Where the tests find real files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """`real_file("wsi/boxes.tiff")`: skips when there is no data folder, fails when there is one without the file."""
    named = os.environ.get("PATCHDRIVE_DATA")
    root = Path(named) if named is not None else _DEFAULT

    def find(name: str) -> Path:
        if not root.is_dir():
            if named is not None:
                pytest.fail(f"PATCHDRIVE_DATA names {root}, which is not there")
            pytest.skip("no real files: set PATCHDRIVE_DATA to their folder")
        path = root / name
        if not path.exists():
            pytest.fail(f"{root} has no {name}")
        return path

    return find
