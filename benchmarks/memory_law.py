"""How the memory of a PatchDrive grows (MODELS 4.6): with the patches that are read, and with the image.

`train`: one step over one image, of K patches, by how they are kept for their gradient: all at once (`parallel`), or cut and encoded once
more in chunks of 16 (`constant`). `look`: forward, K patches at once or one after the other. `run`: the pipeline over an image that is
made as it is read, by each driver. Each case is a process of its own; peak is the kernel's high-water mark beyond what is resident once
everything is imported and the image is made. Slopes are bytes per patch, between the two largest K.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SIDE = 1024
_PATCH, _WIDTH, _CHUNK = 32, 64, 16
_COUNTS = (64, 256, 1024)
_GROWTH = 1.2  # of a run's whole peak, from the smallest image to the largest
_RESULTS = Path(__file__).parent / "results"


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def step(kind: str, count: int) -> dict[str, Any]:
    """A training step, or a forward pass."""
    import torch  # noqa: PLC0415 - the parent needs none of this

    from patchdrive.models.config import PatchDriveNetConfig  # noqa: PLC0415
    from patchdrive.models.model import patchdrivenet  # noqa: PLC0415
    from patchdrive.models.search import Sampling  # noqa: PLC0415
    from patchdrive.models.step import Wanted, step_losses  # noqa: PLC0415

    torch.set_num_threads(1)
    config = PatchDriveNetConfig(driver="grid", target="", patch_size=_PATCH, width=_WIDTH, max_patches=8, fill=0.0)
    model = patchdrivenet(config)
    image = torch.randint(0, 255, (1, 3, _SIDE, _SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def work(patches: int) -> None:
        asked = model.with_max_patches(patches)
        if kind in {"parallel", "constant"}:
            sampling = Sampling(generator=torch.Generator().manual_seed(0))
            wanted = Wanted(answers={"class": torch.tensor([1])})
            losses = step_losses(asked, image, wanted, sampling, constant_memory=kind == "constant", chunk=_CHUNK)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        else:
            with torch.inference_mode():
                asked(image, chunk=patches if kind == "at once" else 1)

    work(8)  # what the libraries make of their own, and the glance of the image
    before = peak_so_far()
    work(count)
    return {"extra": max(0, resident("VmHWM") - before)}


def peak_so_far() -> int:
    """The high-water mark, brought down to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def whole(driver: str, side: int) -> dict[str, Any]:
    """A run of the pipeline over `side` x `side` pixels."""
    import torch  # noqa: PLC0415
    from procedural import Procedural  # noqa: PLC0415

    from patchdrive.models.config import PatchDriveNetConfig  # noqa: PLC0415
    from patchdrive.models.model import patchdrivenet  # noqa: PLC0415
    from patchdrive.pipeline import RunSettings, run  # noqa: PLC0415

    torch.set_num_threads(1)
    config = PatchDriveNetConfig(
        driver=driver, channels=1, patch_size=_PATCH, width=16, max_patches=256, per_step=1024 if driver == "iterative" else 64
    )
    settings = RunSettings(saliency="valid", memory=2**29, device="cpu", workers=1)
    with tempfile.TemporaryDirectory() as folder:
        report = run(Procedural(side, side, coarsest=1024), patchdrivenet(config), Path(folder) / "s.zarr", settings=settings)
    return {"peak": resident("VmHWM"), "planned": report.planned, "seconds": report.seconds["total"]}


def apart(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--case", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, metavar=("KIND", "SIZE"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.case:
        kind, size = options.case[0], int(options.case[1])
        print(json.dumps(step(kind, size) if kind in {"parallel", "constant", "at once", "one by one"} else whole(kind, size)))
        return 0
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread"
    print(f"{machine}\nbeyond a step of 8 patches, MiB; patches of {_PATCH} x {_PATCH} x 3, tokens of {_WIDTH}, {_SIDE} x {_SIDE} image")
    counts = _COUNTS[:2] if options.quick else _COUNTS
    steps, slopes = {}, {}
    for kind in ("parallel", "constant", "at once", "one by one"):
        extra = [apart(kind, str(count))["extra"] for count in counts]
        steps[kind] = dict(zip(counts, extra, strict=True))
        slopes[kind] = (extra[-1] - extra[-2]) / (counts[-1] - counts[-2])
        told = "  ".join(f"K={count}: {peak / 2**20:7.1f}" for count, peak in steps[kind].items())
        print(f"  {kind:12} {told}   {slopes[kind]:9,.0f} bytes per patch (a token is {4 * _WIDTH})")
    sides = {
        "saliency": (4096, 16384, 65536),
        "recurrent": (4096, 16384, 65536),
        "drill-down": (4096, 16384, 65536),
        "iterative": (4096, 8192),
    }
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    print("a run of the pipeline, whole peak, MiB (--memory 512MiB, 256 patches kept)")
    for driver, every in sides.items():
        runs[driver] = {side: apart(driver, str(side)) for side in (every[:2] if options.quick else every)}
        told = "  ".join(f"{side}²: {one['peak'] / 2**20:6.0f} ({one['planned']:,} read)" for side, one in runs[driver].items())
        peaks = [one["peak"] for one in runs[driver].values()]
        print(f"  {driver:12} {told}   grows by {peaks[-1] / peaks[0]:.2f}")
    growth = {driver: list(one.values())[-1]["peak"] / next(iter(one.values()))["peak"] for driver, one in runs.items()}
    reaches = slopes["constant"] <= 4 * 4 * _WIDTH and slopes["one by one"] <= 4 * 4 * _WIDTH and max(growth.values()) <= _GROWTH
    _RESULTS.mkdir(exist_ok=True)
    held = {"machine": machine, "steps": steps, "slopes": slopes, "runs": runs, "growth": growth, "reaches_bar": reaches}
    (_RESULTS / f"memory-law{'-quick' if options.quick else ''}.json").write_text(json.dumps(held, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
