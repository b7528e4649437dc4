"""Every real image against every other program that opens it: levels, pixels, validity; and the reason of whatever differs.

    make bench NAME=oracle

Windows lie inside, at the borders and across tiles of every level that both have (matched by size); values are compared exactly. A
difference counts as explained only where a rule proves itself on the very pixels that differ: it foresees each of them, or another
program gives ours. Anything else is printed as UNEXPLAINED, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from oracle_programs import CANNOT, ORACLES, Oracle
from oracle_reasons import REASONS, Case, comparable, difference, why_levels, why_mask, why_not, why_pixels

from patchdrive.readers import Level, PatchdriveError, Window, open_image

_SIDE = 512
_SEED = 3
_SIDE_FILES = (".msk", ".ovr", ".xml")
_SAME = {("slide", "OpenSlide"), ("raster", "rasterio"), ("multiscale", "zarr")}  # our reader asks the same library


@dataclass(slots=True, kw_only=True)
class Row:
    """What one oracle says of one image."""

    file: str
    oracle: str
    reader: str
    codec: str
    independent: bool
    levels_compared: int = 0
    levels_ours: int = 0
    levels_theirs: int = 0
    windows: int = 0
    pixels: int = 0
    largest_difference: float = 0
    differing_pixels: int = 0
    mask_pixels: int = 0
    mask_differing: int = 0
    reasons: set[str] = field(default_factory=set)
    errors: set[str] = field(default_factory=set)
    unexplained: list[str] = field(default_factory=list)


def windows_of(level: Level) -> list[Window]:
    """At most 8, the same in every run: the four corners, two that straddle tiles, two anywhere."""
    rng = np.random.default_rng([_SEED, level.index])
    rows, columns = -(-level.height // level.tile_height), -(-level.width // level.tile_width)
    found = []
    for at in range(8):
        height, width = (int(side) for side in rng.integers(1 if at >= 6 else _SIDE // 2, _SIDE + 1, 2))
        if at < 4:
            y, x = (at // 2) * level.height, (at % 2) * level.width
        elif at < 6:
            y = int(rng.integers(0, rows + 1)) * level.tile_height - height // 2
            x = int(rng.integers(0, columns + 1)) * level.tile_width - width // 2
        else:
            y, x = int(rng.integers(0, level.height)), int(rng.integers(0, level.width))
        height, width = min(height, level.height), min(width, level.width)
        y, x = min(max(y, 0), level.height - height), min(max(x, 0), level.width - width)
        found.append(Window(y=y, x=x, height=height, width=width))
    return list(dict.fromkeys(found))


def compare_window(row: Row, case: Case, level: Level, at: int, window: Window) -> None:
    """Add one window to `row`; `at` is the oracle's level."""
    oracle, where = case.oracles[row.oracle], f"level {level.index}, {window}"
    stored = case.image.read(window, level=level.index)
    try:
        theirs, valid = oracle.read(at, window), oracle.valid(at, window)
    except CANNOT as error:
        said = str(error.__cause__ or error).replace(f"{case.path.parent}/", "")
        row.errors = row.errors or {said}  # one of each row: they differ in the place only
        row.reasons.add(why_not(case, row.oracle))
        if not any(case.as_ours(name, level, window) for name in case.oracles if name != row.oracle):
            row.unexplained.append(f"{where}: nobody else decodes it as we do: {error}")
        return
    row.windows += 1
    row.pixels += window.height * window.width
    ours = comparable(case, row.oracle, level, stored)
    if ours.shape != theirs.shape or (ours.dtype != theirs.dtype and row.oracle != "OpenSlide"):
        row.unexplained.append(f"{where}: {ours.shape} {ours.dtype} is {theirs.shape} {theirs.dtype} there")
        return
    gap = difference(ours, theirs)
    if gap.any() or ours.dtype != theirs.dtype:
        row.largest_difference = max(row.largest_difference, float(gap.max()))
        row.differing_pixels += int((gap > 0).sum())
        rules = why_pixels(case, row.oracle, level, window, (stored, theirs))
        row.reasons |= rules
        row.unexplained += [] if rules else [f"{where}: pixels differ by up to {gap.max()}, {(gap > 0).mean():.2%} of them"]
    if valid is not None:
        mask = case.image.read_mask(window, level=level.index)
        row.mask_pixels += mask.size
        row.mask_differing += int((mask != valid).sum())
        if (mask != valid).any():
            rules = why_mask(case, row.oracle, level, window, (mask, valid))
            row.reasons |= rules
            row.unexplained += [] if rules else [f"{where}: validity differs at {(mask != valid).mean():.2%}"]


def twin(row: Row, case: Case, level: Level) -> int | None:
    """The oracle's level of that size; of several the one most like ours."""
    oracle, window = case.oracles[row.oracle], windows_of(level)[0]
    same = [at for at, size in enumerate(oracle.sizes) if size == (level.height, level.width)]
    if len(same) < 2:
        return same[0] if same else None
    ours, gaps = comparable(case, row.oracle, level, case.image.read(window, level=level.index)), {}
    for at in same:
        try:
            gaps[at] = difference(ours, oracle.read(at, window)).mean()
        except CANNOT:
            continue  # a mask that it took for a level
    return min(gaps, key=lambda at: gaps[at], default=same[0])


def compare(case: Case, name: str, file: str) -> Row:
    """One image against one oracle."""
    image, oracle = case.image, case.oracles[name]
    row = Row(file=file, oracle=name, reader=image.reader, codec=image.codec, independent=(image.reader, name) not in _SAME)
    row.levels_ours, row.levels_theirs = len(image.levels), len(oracle.sizes)
    ours, theirs = Counter((level.height, level.width) for level in image.levels), Counter(oracle.sizes)
    rules, row.unexplained = why_levels(case, name, ours - theirs, theirs - ours)
    row.reasons |= rules
    for level in image.levels:
        at, before = twin(row, case, level), row.windows
        if at is not None:
            for window in windows_of(level):
                compare_window(row, case, level, at, window)
        row.levels_compared += row.windows > before
    return row


def candidates(root: Path) -> Iterator[Path]:
    """What somebody would give to `open_image`."""
    for folder in ("wsi", "rs"):
        yield from sorted(path for path in (root / folder).rglob("*") if path.is_file() and path.suffix not in _SIDE_FILES)
    said = (path for path in (root / "omezarr").rglob("*") if path.name in {".zattrs", "zarr.json"})
    yield from sorted({path.parent for path in said if b'"multiscales"' in path.read_bytes()})


def rows_of(path: Path, file: str) -> list[Row]:
    """Every oracle that opens `path`.

    Raises:
        PatchdriveError: we do not open it.
    """
    with ExitStack() as opened:
        image = open_image(path)
        opened.callback(image.close)
        oracles: dict[str, Oracle] = {}
        for name, opener in ORACLES.items():
            try:
                oracles[name] = opener(path)
            except CANNOT:
                continue  # it does not open the file: no row
            opened.callback(oracles[name].close)
        case = Case(path=path, image=image, oracles=oracles)
        return [compare(case, name, file) for name in oracles]


def show(row: Row) -> None:
    levels = f"{row.levels_compared}/{row.levels_ours}/{row.levels_theirs}"
    name = row.oracle + ("" if row.independent else "*")
    share = row.differing_pixels / max(row.pixels, 1)
    mask = f"{row.mask_differing / row.mask_pixels:.2%}" if row.mask_pixels else "-"
    why = ", ".join(sorted(row.reasons)) + (" UNEXPLAINED" if row.unexplained else "")
    file = row.file if len(row.file) <= 58 else f"...{row.file[-55:]}"
    print(f"{file:58} {name:10} {row.reader:10} {levels:>7} {row.windows:4} {row.largest_difference:8.6g} {share:8.3%} {mask:>7}  {why}")


def show_end(rows: Sequence[Row], refused: Mapping[str, str], seconds: float) -> None:
    """Reasons, errors, refusals, totals."""
    print("\n* the library that our reader asks too: shows where we put its pixels, not how they are decoded\n\nreasons")
    used = Counter(reason for row in rows for reason in row.reasons)
    for reason, text in REASONS.items():
        if used[reason]:
            print(f"  {reason} ({used[reason]} rows): {text}")
    print("\nwhat the others cannot decode")
    for row in rows:
        for error in sorted(row.errors):
            print(f"  {row.file}, {row.oracle}: {error}")
    print("\nwhat we refuse")
    for file, why in refused.items():
        print(f"  {file}: {why}")
    images = {row.file for row in rows}
    alone = sorted(images - {row.file for row in rows if row.independent and row.windows})
    print(f"\nno independent oracle ({len(alone)} of {len(images)} images): {', '.join(alone)}")
    differing = [row for row in rows if row.differing_pixels or row.mask_differing or row.levels_ours != row.levels_theirs or row.errors]
    for name in ORACLES:
        mine = [row for row in rows if row.oracle == name]
        counts = f"{len(mine)} images, {sum(row.levels_compared for row in mine)} levels, {sum(row.windows for row in mine)} windows"
        same = sum(not row.differing_pixels and not row.mask_differing for row in mine if row.windows)
        print(f"{name}: {counts}, {sum(row.pixels for row in mine) / 1e6:.0f} Mpx; {same} images equal to the bit, validity included")
    for row in rows:
        for line in row.unexplained:
            print(f"UNEXPLAINED {row.file}, {row.oracle} against {row.reader}: {line}")
    unexplained = sum(bool(row.unexplained) for row in rows)
    print(f"{len(rows)} rows, {len(rows) - len(differing)} without any difference, {len(differing) - unexplained} explained, "
          f"{unexplained} UNEXPLAINED; {seconds:.0f} s")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="images whose path holds one of these")
    given = parser.parse_args()
    root = Path(os.environ.get("PATCHDRIVE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not root.is_dir():
        print(f"no real files at {root}: set PATCHDRIVE_DATA to their folder", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")  # the others' remarks on files made to be odd
    logging.disable()
    begin, rows, refused = time.perf_counter(), [], {}
    print(f"{'image':58} {'oracle':10} {'reader':10} {'levels':>7} {'win.':>4} {'largest':>8} {'pixels':>8} {'mask':>7}  reasons")
    print(f"{'':58} {'':10} {'':10} {'c/o/t':>7} {'':4} {'diff.':>8} {'differ':>8} {'differs':>7}  levels: compared/ours/theirs")
    with rasterio.Env():
        for path in candidates(root):
            file = path.relative_to(root).as_posix()
            if not any(word in file for word in given.only):
                continue
            try:
                found = rows_of(path, file)
            except PatchdriveError as error:
                refused[file] = str(error).removeprefix(f"{path}: ")
                continue
            for row in found:
                show(row)
            rows += found
    show_end(rows, refused, time.perf_counter() - begin)
    out = Path(__file__).parent / "results" / "oracle.json"
    out.parent.mkdir(exist_ok=True)
    written = [asdict(row) | {"reasons": sorted(row.reasons), "errors": sorted(row.errors)} for row in rows]
    out.write_text(json.dumps({"reasons": REASONS, "rows": written, "refused": refused}, indent=1))
    return int(any(row.unexplained for row in rows))


if __name__ == "__main__":
    sys.exit(main())
