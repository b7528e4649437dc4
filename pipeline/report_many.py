"""write_reports(): the page of each of many stores, and an index page of them. One bad store costs only itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from patchdrive.pipeline.journal import write_whole
from patchdrive.pipeline.report import PAGE, read_page, report_folder, write_page
from patchdrive.pipeline.report_index import IndexCard, card_of, render_index
from patchdrive.pipeline.report_parts import MARK
from patchdrive.readers.errors import PatchdriveError, SettingsError, StoreError

INDEX = "index.html"
"""The index page, beside the folders of the pages."""


def stores_in(named: Sequence[Path]) -> list[Path]:
    """Each store once: those that are named, and those in the folders that are named.

    Raises:
        StoreError: a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in named:
        inside = sorted(path.glob("*.zarr")) if _holds_stores(path) else [path]
        if not inside:
            raise StoreError(f"{path} holds no <id>.zarr; name stores, or the OUT that `patchdrive run -o OUT` left them in")
        found.update(dict.fromkeys(inside))
    return list(found)


def index_path(named: Sequence[Path], out: Path | None) -> Path | None:
    """Where the index page of what was named goes; None where one store was, or where no folder holds all pages.

    Raises:
        SettingsError: a file that is not ours lies there.
    """
    stores = stores_in(named)
    folders = {store.parent for store in stores} if out is None else {out}
    if len(folders) > 1 or (len(stores) == 1 and not _holds_stores(named[0])):
        return None
    path = folders.pop() / INDEX
    if path.exists() and MARK.encode() not in path.read_bytes()[:1000]:
        raise SettingsError(f"{path} is not of `patchdrive report` and would be overwritten; move it, or name another folder with -o")
    return path


def write_reports(stores: Sequence[Path], out: Path | None, index: Path | None) -> Iterator[Path | PatchdriveError]:
    """Write the page of each store, one after the other, then the index of them.

    Args:
        stores: of `stores_in`.
        out: folder for the pages; None: beside each store.
        index: of `index_path`; None writes none.

    Yields:
        The path of each page, or why there is none; last that of the index.

    Raises:
        SettingsError: two of the stores have one name, and `out` would hold one page for both.
    """
    twice = sorted(name for name, count in Counter(store.name for store in stores).items() if count > 1)
    if out is not None and twice:
        raise SettingsError(f"several of these stores are called {twice[0]}, and their pages would overwrite each other; use different -o")
    cards = []
    for store in stores:
        folder = report_folder(store, out)
        try:
            page = read_page(store)
        except PatchdriveError as error:
            cards.append(IndexCard(name=store.stem, status="unreadable", problem=str(error).replace(f"{store.parent}/", "")))
            yield error
            continue
        write_page(page, folder)
        cards.append(card_of(page, f"{quote(folder.name)}/{PAGE}"))
        del page  # its pictures, before the next ones are read
        yield folder / PAGE
    if index is not None:
        write_whole(index, render_index(cards))
        yield index


def _holds_stores(path: Path) -> bool:
    return path.is_dir() and path.suffix != ".zarr" and not (path / "zarr.json").exists()
