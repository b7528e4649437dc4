"""The options of `patchdrive export` that ask for objects of maps."""

from __future__ import annotations

import argparse

from patchdrive.pipeline.objects import Tracing
from patchdrive.readers.errors import SettingsError


def add_tracing(parser: argparse.ArgumentParser) -> None:
    """Options that say which objects of maps are wanted."""
    add = parser.add_argument
    add(
        "--objects",
        action="append",
        metavar="MAP",
        help="geojson, geoparquet: also the polygons of a map (MAP:CHANNEL); repeat it for several",
    )
    add("--background", action="append", metavar="CLASS", help="class of label maps that is no object; repeat it for several")
    add("--threshold", type=float, help="least probability inside an object of a probability map (default: 0.5)")
    add("--least-area", type=float, help="leave smaller objects out, level-0 pixels squared")
    add("--simplify", type=float, help="farthest an outline may move for fewer vertices, level-0 pixels")
    add("--annotations", action="store_true", default=None, help="objects as QuPath's annotations, to be edited (default: detections)")


def tracing_of(options: argparse.Namespace) -> Tracing | None:
    """What they ask for; None: no objects.

    Raises:
        SettingsError: they contradict each other, or a value cannot be.
    """
    names = ("background", "threshold", "least_area", "simplify", "annotations")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.objects is None:
        if given:
            raise SettingsError(f"--{next(iter(given)).replace('_', '-')} says which objects are wanted; name their map with --objects")
        return None
    given["background"] = tuple(given.get("background", ()))
    return Tracing(maps=tuple(options.objects), **given)
