"""RunReport: what a run tells when it ends, and the line that scripts read."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch

from patchdrive.pipeline.store import ResultStore
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One image's run; `to_dict` is the JSON line of `patchdrive run --json`."""

    source: str
    """What was read."""
    store: str
    """Where the results are; empty when the run failed before there was a store."""
    status: Literal["done", "partial", "failed"]
    """Every planned row done or skipped; stopped before the end; or some row, or the whole image, could not be computed."""
    planned: int = 0
    """Rows of all plans."""
    done: int = 0
    """Rows committed."""
    skipped: int = 0
    """Rows dropped by a rule."""
    failed: int = 0
    """Rows that could not be computed."""
    coverage: float = 0.0
    """Share of the valid area inside planned patches."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`total`, and the time spent in each stage; stages overlap."""
    bytes_decoded: int = 0
    """Pixels decoded."""
    bytes_needed: int = 0
    """Pixels of the distinct tiles the patches touch."""
    peak_host_bytes: int = 0
    """Largest resident size of this process so far."""
    peak_device_bytes: int = 0
    """Largest allocation on the device."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why rows were skipped or failed, with how often; or why the image failed."""
    masked: Mapping[str, int] = field(default_factory=dict)
    """Why patches were computed with holes (`on_error` mask), with how often."""
    notes: Sequence[str] = ()
    """What else the user should know."""
    waited: Mapping[str, float] = field(default_factory=dict)
    """Seconds that one stage waited for another, `who_for_whom`: `infer_for_read` computing for pixels, `read_for_room` the readers
    until computing had taken a batch, `infer_for_write` and `write_for_infer` likewise."""
    device_busy: float = 0.0
    """Share of the time from the first block to the last in which the devices computed."""
    batch_size: int = 0
    """Patches per batch at the end."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**fields)


def measure(
    result: ResultStore, image: Image, timings: Timings, *, coverage: float, lanes: int, notes: Sequence[str], partial: bool
) -> RunReport:
    """The report of a run that ends now.

    Args:
        result: where its blocks are.
        image: what was read.
        timings: where time went.
        coverage: of all plans.
        lanes: devices at work.
        notes: what else the user should know.
        partial: it is not at its end.
    """
    counts, seconds, sizes = result.counts(), timings.seconds(), result.sizes()
    status: Literal["done", "partial", "failed"] = "partial" if partial else "failed" if counts["failed"] else "done"
    return RunReport(
        source=image.source,
        store=str(result.path),
        status=status,
        **counts,
        coverage=round(coverage, 6),
        seconds=seconds,
        bytes_decoded=timings.bytes_of("decoded"),
        bytes_needed=timings.bytes_of("needed"),
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=max((torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())), default=0),
        reasons=dict(sorted(result.reasons().items())),
        masked=dict(sorted(result.masked().items())),
        notes=notes,
        waited={**timings.waits(), "infer_for_read": seconds.get("read", 0.0)},
        device_busy=round(seconds.get("infer", 0.0) / (lanes * seconds["compute"]), 4) if seconds.get("compute") else 0.0,
        batch_size=sizes.batch_size if sizes is not None else 0,
    )


def peak_host_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
