"""How much memory reading takes: a fresh process reads 200 random 512-px patches, another watches its anonymous pages.

What the process holds after its imports and the opening of the file is not counted; the map of the file is not anonymous.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE, PATCHES, POOL_BYTES = 512, 200, 16 * 2**20


def peak_extra_bytes(path: Path) -> int:
    """Most anonymous bytes the process held while it read, beyond those it began with."""
    with subprocess.Popen([sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != b"open\n":
            raise RuntimeError(f"the process that reads {path} ended before it had opened it")
        before = peak = _anonymous(process.pid)
        process.stdin.write(b"read\n")
        process.stdin.flush()
        while process.poll() is None:
            try:
                peak = max(peak, _anonymous(process.pid))
            except (ProcessLookupError, StopIteration, FileNotFoundError):  # it has just ended
                break
            time.sleep(0.002)
    if process.returncode:
        raise RuntimeError(f"the process that reads {path} ended with {process.returncode}")
    return peak - before


def _anonymous(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main(path: str) -> None:
    from bench_readers import feed_settings, plan_of  # noqa: PLC0415 - the parent needs none of this

    from patchdrive.pipeline.feed import feed  # noqa: PLC0415
    from patchdrive.pipeline.plan import feature_blocks  # noqa: PLC0415
    from patchdrive.pipeline.timings import Timings  # noqa: PLC0415
    from patchdrive.readers import open_image  # noqa: PLC0415

    image = open_image(path)
    base, rng = image.levels[0], np.random.default_rng(11)
    corners = np.stack([rng.integers(0, base.height - SIDE, PATCHES), rng.integers(0, base.width - SIDE, PATCHES)], axis=1)
    plan = plan_of(image, corners, SIDE)
    print("open", flush=True)
    sys.stdin.readline()
    for _ in feed(image, plan, feature_blocks(plan), feed_settings(image, plan, workers=2, pool_bytes=POOL_BYTES), Timings()):
        pass


if __name__ == "__main__":
    main(sys.argv[1])
