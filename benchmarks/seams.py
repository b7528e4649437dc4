"""Seams: how far a result joined from patches is from what the network gives of the whole image at once.

A small convolutional network (three layers of 3 x 3, ReLU, seeded) over a slide, an RGB scene and a 16-bit scene, in patches of 256: for
each window function at overlaps 0, 64 and 128, and by `halo`, its receptive field, which must differ by nothing at all. The whole image
is what the pipeline sees: invalid pixels, and all that surrounds it, hold the spec's fill. Every pixel of a planned patch outside its
halo must have a value where the source is valid.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.settings import Blend
from patchdrive.readers import Image, open_image

DATA = Path(os.environ.get("PATCHDRIVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SIDE, REACH, WIDTH = 256, 3, 16
"""Of a patch, pixels; of the network's receptive field beyond a pixel; feature channels."""

Answer = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One real image, and what the network is told of it."""

    name: str
    path: str
    scale: float
    fill: float


SOURCES = (
    Source(name="slide, 8 bit", path="wsi/CMU-1-Small-Region.svs", scale=1 / 255, fill=255.0),
    Source(name="Sentinel-2 scene, RGB", path="rs/misc/TCI.tif", scale=1 / 255, fill=0.0),
    Source(name="Landsat 8 band, 16 bit", path="rs/landsat8/LC81070352015122LGN00_B4.tif", scale=1 / 20000, fill=0.0),
)


class SmallNetwork(nn.Module):
    """A PatchModel: three convolutions of 3 x 3 and ReLU between them; one value a pixel."""

    def __init__(self, channels: int, source: Source) -> None:
        super().__init__()
        output = OutputSpec(name="answer", kind="image", channels=("answer",), dtype="float32")
        self.spec = ModelSpec(name="small", channels=channels, size=SIDE, scale=source.scale, fill=source.fill, outputs=(output,))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(channels, WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(WIDTH, 1, 3, padding=1),
            )

    @property
    def digest(self) -> str:
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        return {"answer": self.layers(pixels)}


def whole(image: Image, network: SmallNetwork) -> Answer:
    """The network's answer to the whole image at once, (height, width), and where the image is valid."""
    window = image.levels[0].window
    pixels, valid = image.read(window), image.read_mask(window)
    pixels[~valid] = network.spec.fill
    edge = 2 * REACH  # the zeros that a convolution pads with are further away than it reaches
    around = np.pad(pixels, ((edge, edge), (edge, edge), (0, 0)), constant_values=network.spec.fill)
    with torch.inference_mode():
        answer: NDArray[np.float32] = network(network.spec.normalise(torch.from_numpy(around)[None]))["answer"][0, 0].numpy()
    return answer[edge:-edge, edge:-edge], valid


def planned_cores(plan: Plan, halo: int) -> NDArray[np.bool_]:
    """(height, width) True where a planned patch writes, counted patch by patch."""
    inside = np.zeros((plan.grid.height, plan.grid.width), np.bool_)
    for y, x in zip(plan.y.tolist(), plan.x.tolist(), strict=True):
        inside[max(0, y + halo) : y + plan.side - halo, max(0, x + halo) : x + plan.side - halo] = True
    return inside


def measure(image: Image, source: Source, answer: Answer, way: tuple[Blend, int, int]) -> dict[str, Any]:
    """One run, joined in one way (blend, overlap, halo), compared with whole-image inference."""
    (blend, overlap, halo), (wanted, valid) = way, answer
    network = SmallNetwork(len(image.channels), source)
    settings = RunSettings(saliency="valid", overlap=overlap, halo=halo, blend=blend, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "run.zarr"
        report = run(image, network, store, settings=settings)
        result = open_result(store)
        got, plan = result.maps["answer"].values(), result.rounds[0].plan
    known = ~np.ma.getmaskarray(got)[0]
    gaps = np.where(known, np.abs(got.data[0].astype(np.float64) - wanted), 0.0)
    gap = gaps[known]
    return {
        "image": source.name,
        "blend": blend,
        "overlap": overlap,
        "halo": halo,
        "status": report.status,
        "patches": report.planned,
        "largest": float(gap.max()),
        "largest_within": float(gaps[REACH:-REACH, REACH:-REACH].max()),
        "differing": float(np.mean(gap > 0)),
        "range": float(wanted[valid].max() - wanted[valid].min()),
        "without_value": int(np.count_nonzero(planned_cores(plan, halo) & valid & ~known)),
        "beyond": int(np.count_nonzero(known & ~(planned_cores(plan, halo) & valid))),
    }


def show(found: list[dict[str, Any]]) -> None:
    """A table: the largest difference for each way of joining."""
    names = list(dict.fromkeys(one["image"] for one in found))
    print("\nlargest difference from whole-image inference / without the pixels at the image's own edge (share of pixels that differ)\n")
    print("| joined by | " + " | ".join(f"{name}, answers span {one_of(found, name)['range']:.3g}" for name in names) + " |")
    print("|---|" + "---|" * len(names))
    for way in dict.fromkeys((one["blend"], one["overlap"], one["halo"]) for one in found):
        blend, overlap, halo = way
        cells = [one for name in names for one in found if one["image"] == name and (one["blend"], one["overlap"], one["halo"]) == way]
        label = f"halo {halo}" if halo else f"{blend}, overlap {overlap}"
        told = [f"{one['largest']:.3g} / {one['largest_within']:.3g} ({one['differing']:.2%})" for one in cells]
        print(f"| {label} | " + " | ".join(told) + " |")
    print(f"\npixels of planned patches without a value: {sum(one['without_value'] for one in found)}")
    print(f"pixels with a value outside planned patches or the valid area: {sum(one['beyond'] for one in found)}")


def one_of(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Any of an image's results."""
    return next(one for one in found if one["image"] == name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest image only")
    given = parser.parse_args()
    found = []
    for source in SOURCES[1:2] if given.quick else SOURCES:
        image = open_image(str(DATA / source.path))
        answer = whole(image, SmallNetwork(len(image.channels), source))
        ways: list[tuple[Blend, int, int]] = [(blend, overlap, 0) for overlap in (0, 64, 128) for blend in get_args(Blend)]
        found += [measure(image, source, answer, way) for way in (*ways, ("box", 2 * REACH, REACH))]
        image.close()
        print(f"  {source.name}", file=sys.stderr, flush=True)
    show(found)
    out = Path(__file__).parent / "results" / ("seams-quick.json" if given.quick else "seams.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"side": SIDE, "torch": torch.__version__, "results": found}, indent=1))
    broken = [one for one in found if one["without_value"] or one["beyond"] or one["status"] != "done" or (one["halo"] and one["largest"])]
    for one in broken:
        print(f"NOT KEPT: {one}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
