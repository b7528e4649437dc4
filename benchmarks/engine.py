"""The engine: does the device ever wait, and is the whole process ahead of the field's own?

    make bench NAME=engine                        all of it, about three quarters of an hour
    make bench NAME=engine ARGS=--quick           an eighth and a fiftieth of the slide, three rounds
    python benchmarks/engine.py --only overlap    or tiny, or resnet18
    python benchmarks/engine.py --peers PYTHON    the interpreter the other engines are installed for

Part one is run() with a device of fixed cost (engine_overlap). Part two is `patchdrive run` beside a DataLoader over OpenSlide,
TIAToolbox's DeepFeatureExtractor and LazySlide's feature_extraction (engine_race, engine_peers): the same networks with the same
weights, the same 256-px patches of level 0 over tissue, batches of 32, two decode threads or two workers. patchdrive looks for the
tissue itself; the others are told where their patches lie. What each leaves on disk is read back and compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bench_files import SLIDES, bench_file
from engine_models import SIDE
from engine_networks import network
from engine_overlap import measure_overlap
from engine_race import BATCH, OURS, Race, ahead_of, measure_race, median_of
from read import machine
from read_bar import Bar

_PEERS = ("dataloader", "tiatoolbox", "lazyslide")
_ENOUGH = 3000.0  # patches a second that the small network must reach by itself, so that reading decides
_LEVEL = 0.97  # where computing decides nobody can be ahead: no more than this behind
_EIGHTH, _FIFTIETH = "engine_models:tissue_of_an_eighth", "engine_models:tissue_of_a_fiftieth"
_SHARES: Mapping[str, tuple[str | None, str]] = {"overlap": (None, _EIGHTH), "tiny": (None, _EIGHTH), "resnet18": (_EIGHTH, _FIFTIETH)}
"""Saliency of each part: in full, and for --quick."""


def alone(name: str) -> float:
    """Patches a second of a network that is fed nothing: one normalised batch again and again."""
    net, pixels = network(name), torch.rand(BATCH, 3, SIDE, SIDE)
    found: list[float] = []
    with torch.inference_mode():
        net(pixels)
        end = time.perf_counter() + 5
        while time.perf_counter() < end or len(found) < 3:
            begin = time.perf_counter()
            net(pixels)
            found.append(BATCH / (time.perf_counter() - begin))
    return statistics.median(found)


def show(result: Mapping[str, Any], speed: float) -> list[Bar]:
    """One network's table, and its bars."""
    name, engines = result["network"], result["engines"]
    patches = engines[OURS]["patches"]
    print(f"\n## {name}: {patches} patches, {speed:.0f} patches/s when fed nothing, {len(result['rounds'])} rounds")
    print("| engine | whole process, s | patches/s | patchdrive / it | without imports, s | patches/s | patchdrive / it | peak GB |")
    print("|" + "---|" * 8)
    for engine, about in engines.items():
        cells = []
        for key in ("wall", "seconds"):
            seconds = median_of(result, engine, key)
            cells += [f"{seconds:.2f}", f"{patches / seconds:.0f}", f"{ahead_of(result, engine, key):.2f}"]
        print(f"| {engine} ({about['about']}) | {' | '.join(cells)} | {about['memory'] / 1e9:.2f} |")
    for engine, reason in result["failed"].items():
        print(f"  not measured: {engine}: {reason}")
    for engine, found in result["compared"].items():
        print(
            f"  {engine}: {found['shared']} of {found['ours']} patches the same, {found['theirs']} computed; features of the "
            f"{found['compared']} inside the slide: cosine ≥ {found['cosine_least']:.7f}, largest difference "
            f"{found['gap_largest']:.2g}, largest value {found['value_largest']:.3g}"
        )
    _show_report(result)
    asked = 1.0 if name == "tiny" else _LEVEL
    bars = [
        Bar(name=f"{name}, patchdrive / {engine}, {words}", asked=asked, reached=ahead_of(result, engine, key), least=True)
        for engine in engines
        if engine != OURS
        for key, words in (("wall", "whole process"), ("seconds", "without imports"))
    ]
    for bar in bars:
        print(bar)
    return bars


def _show_report(result: Mapping[str, Any]) -> None:
    """What patchdrive's own report says."""
    told = [one[OURS]["told"] for one in result["rounds"]]
    stages = [f"{stage} {statistics.median(one['seconds'].get(stage, 0.0) for one in told):.2f}" for stage in told[-1]["seconds"]]
    decoded = statistics.median(one["bytes_decoded"] / one["bytes_needed"] for one in told)
    peak = max(one["peak_host_bytes"] for one in told)
    print(f"  patchdrive, seconds by stage (they overlap): {', '.join(stages)}; the glance looks for tissue, which the others are spared")
    print(f"  patchdrive, bytes decoded / needed {decoded:.3f}; peak_host_bytes {peak / 1e9:.2f} GB, pages of the mapped slide included")


def race_of(name: str, given: argparse.Namespace) -> Race:
    """One network, and who takes part."""
    peers = {peer: given.peers for peer in _PEERS if given.peers.exists() and any(word in peer for word in given.engines)}
    return Race(network=name, slide=bench_file(SLIDES[0].name), saliency=_SHARES[name][given.quick], peers=peers)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick, where left out")
    parser.add_argument("--quick", action="store_true", help="a small share of the slide")
    parser.add_argument("--only", nargs="*", default=list(_SHARES), choices=list(_SHARES), help="parts to measure")
    parser.add_argument("--engines", nargs="*", default=[""], help="other engines whose name holds one of these")
    # Not sys.executable's own folder resolved: a venv's python is a link.
    parser.add_argument("--peers", type=Path, default=Path(sys.prefix) / "peers-engine" / "bin" / "python", help="their interpreter")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    sys.setswitchinterval(1e-4)  # as the command line does
    rounds = given.rounds or (3 if given.quick else 5)
    about = machine()
    print(f"{about['cores']} cores, {about['cpu']}, Python {about['python']}, {rounds} interleaved rounds, torch {torch.__version__}")
    if not given.peers.exists():
        print(f"no other engine is measured: {given.peers} is not there; `make bench NAME=engine` makes it, --peers names another")
    overlap = measure_overlap(rounds, _SHARES["overlap"][given.quick]) if "overlap" in given.only else None
    results, bars = [], []
    for name in [part for part in given.only if part != "overlap"]:
        speed = alone(name)
        if name == "tiny" and speed < _ENOUGH:
            print(f"  {name} computes {speed:.0f} patches/s when fed nothing, less than {_ENOUGH:g}: reading alone does not decide here")
        result = {**measure_race(race_of(name, given), rounds), "alone": speed}
        results.append(result)
        bars += show(result, speed)
    whole = not given.quick and given.only == list(_SHARES) and given.engines == [""]
    out = Path(__file__).parent / "results" / ("engine.json" if whole else "engine-part.json")
    out.parent.mkdir(exist_ok=True)
    reached = [{"name": bar.name, "asked": bar.asked, "reached": bar.reached, "ok": bar.ok} for bar in bars]
    out.write_text(json.dumps({"machine": about, "overlap": overlap, "networks": results, "bars": reached}, indent=1))


if __name__ == "__main__":
    main()
