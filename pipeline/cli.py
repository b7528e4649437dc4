"""The command line. Results go to stdout, everything else to stderr; exit codes: 0 done, 1 internal, 2 usage, 3 failures, 75 again."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from patchdrive.models import load_model
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.budget import cores, parse_bytes
from patchdrive.pipeline.demo import demo
from patchdrive.pipeline.glance import kind_of, mpp_of, traits_of
from patchdrive.pipeline.info import describe, info_lines
from patchdrive.pipeline.journal import StoreInUseError
from patchdrive.pipeline.outlook import outlook, outlook_lines
from patchdrive.pipeline.report import write_report
from patchdrive.pipeline.run import run
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.store import store_name
from patchdrive.readers import Image, open_image
from patchdrive.readers.errors import BudgetError, ModelError, PatchdriveError, ResolutionError, SettingsError, StoreError

DONE, INTERNAL, USAGE, FAILURES, TRY_AGAIN = 0, 1, 2, 3, 75
_USAGE_ERRORS = (SettingsError, BudgetError, ModelError, ResolutionError, StoreError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    sys.setswitchinterval(1e-4)  # decode threads take the interpreter back within 0.1 ms of each tile, not 5
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        _say("patchdrive: stopped; the same command goes on from the last block committed")
        return TRY_AGAIN
    except _USAGE_ERRORS as error:
        _say(f"patchdrive: {error}")
        return USAGE
    except PatchdriveError as error:
        _say(f"patchdrive: {error}")
        return FAILURES


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="patchdrive", description="Run models over images too large to open.")
    parser.add_argument("--version", action="version", version=f"patchdrive {version('patchdrive')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    runs = commands.add_parser("run", help="run a model over images and leave a store for each", formatter_class=_Defaults)
    runs.add_argument("source", nargs="+", help="image files or OME-Zarr folders")
    runs.add_argument("-o", "--out", type=Path, required=True, help="folder for the stores")
    _add_settings(runs)
    runs.add_argument("--overwrite", action="store_true", help="start anew where a store holds another run")
    runs.add_argument("--json", action="store_true", help="one JSON line per image on stdout")
    runs.set_defaults(command=_run)

    plans = commands.add_parser("plan", help="what a run would read, and how much; reads no patch", formatter_class=_Defaults)
    plans.add_argument("source", nargs="+", help="image files or OME-Zarr folders")
    plans.add_argument("-o", "--out", type=Path, help="folder for a picture of each plan")
    _add_settings(plans)
    plans.add_argument("--json", action="store_true", help="one JSON line per image on stdout")
    plans.set_defaults(command=_plan)

    infos = commands.add_parser("info", help="levels, tiles, mpp or CRS, codec, which reader and why")
    infos.add_argument("source", nargs="+", help="image files or OME-Zarr folders")
    infos.add_argument("--reader", help="open with this reader instead of the one that fits")
    infos.add_argument("--json", action="store_true", help="one JSON object per image on stdout")
    infos.set_defaults(command=_info)

    reports = commands.add_parser("report", help="pictures and a page for each store")
    reports.add_argument("store", nargs="+", type=Path, help="<id>.zarr folders")
    reports.add_argument("-o", "--out", type=Path, help="folder for the pages; beside each store where left out")
    reports.set_defaults(command=_report)

    demos = commands.add_parser("demo", help="make a slide and a scene, train, run, and show what was found", formatter_class=_Defaults)
    demos.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for everything it makes")
    demos.set_defaults(command=lambda options: demo(options.out))
    return parser


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in {None, False} else super()._get_help_string(action)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="descriptor", help="built-in name, NAME:weights, .pt2, .safetensors, timm:NAME or module:function")
    add("--reader", help="open with this reader instead of the one that fits")
    add("--mpp", type=float, help="target pixel size of slides, µm (default: the model's, else level 0)")
    add("--gsd", type=float, help="target pixel size of scenes, units of the CRS (default: the model's, else level 0)")
    add("--mpp-override", type=float, help="µm per level-0 pixel, where a slide does not say")
    add("--upsample", action="store_true", help="allow a pixel size finer than the image holds")
    add("--patch-size", type=int, help="footprint of a patch, target pixels (default: the model's)")
    add("--overlap", type=int, help="patch side minus stride, target pixels (default: what the model needs)")
    add("--saliency", help="tissue, valid, complexity or module:function (default: tissue for slides, valid for scenes)")
    add("--select", choices=("grid", "topk"), default="grid", help="every patch worth reading, or the best --max-patches")
    add("--max-patches", type=int, help="most patches topk or a driving model may ask for")
    add("--spacing", type=int, help="topk: least distance between patches, target pixels (default: one patch)")
    add("--blend", choices=("box", "hann", "gaussian", "pyramid"), help="weights where map patches overlap")
    add("--all-classes", action="store_true", help="keep every class probability of a segmenter")
    add("--memory", help="host memory to stay under, 8GiB (default: half of what this process may have)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--batch-size", type=int, help="patches per batch (default: 32, or what fits)")
    add("--workers", type=int, help=f"decode threads (default: {cores()}, the cores this process may use)")


def _settings(options: argparse.Namespace) -> RunSettings:
    fields = {name: getattr(options, name) for name in RunSettings.__slots__}
    return RunSettings(**{**fields, "memory": None if options.memory is None else parse_bytes(options.memory)})


class _Models:
    """A model is loaded once per kind of image, not once per image."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: dict[Any, PatchModel | DriveModel] = {}

    def of(self, image: Image) -> PatchModel | DriveModel:
        traits = traits_of(image)
        if traits not in self._held:
            self._held[traits] = load_model(self._name, traits)
        return self._held[traits]


class _Stop:
    """Hears SIGTERM, SIGUSR1 and Ctrl-C for as long as a command runs: the block in hand is finished, then no more."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        _say("patchdrive: finishing the block in hand; the same command goes on from there (Ctrl-C again to stop at once)")

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Bar:
    """The Watcher of the command line: a bar on a terminal, and the wish to stop."""

    def __init__(self, name: str, stop: _Stop) -> None:
        self._bar = tqdm(desc=name, unit="patch", disable=None, file=sys.stderr)
        self._stop = stop

    def began(self, rows: int, left: int) -> None:
        self._bar.reset(total=rows)
        self._bar.update(rows - left)

    def committed(self, rows: int) -> None:
        self._bar.update(rows)

    def wants_stop(self) -> bool:
        return self._stop.asked

    def close(self) -> None:
        self._bar.close()


def _run(options: argparse.Namespace) -> int:
    settings, models = _settings(options), _Models(options.model)
    worst = DONE
    with closing(_Stop()) as stop:
        for left, source in zip(reversed(range(len(options.source))), options.source, strict=True):
            report, code = _run_one(source, models, settings, options, stop)
            if code == USAGE and len(options.source) == 1:
                return USAGE
            print(json.dumps(report.to_dict()) if options.json else _line(report), flush=True)
            if code == DONE and not report.planned:
                _say(f"patchdrive: nothing in {source} is worth reading to its saliency, so no patch was planned; try --saliency valid")
            worst = max(worst, code)
            if report.status == "partial" or (stop.asked and left):
                return TRY_AGAIN
    return worst


def _run_one(source: str, models: _Models, settings: RunSettings, options: argparse.Namespace, stop: _Stop) -> tuple[RunReport, int]:
    """One image's report and exit code: what is wrong with one image is told and does not stop the others."""
    try:
        with closing(open_image(source, reader=options.reader)) as image, closing(_Bar(Path(source).name, stop)) as bar:
            store, model = options.out / store_name(image), models.of(image)
            spec = model.encoder.spec if isinstance(model, DriveModel) else model.spec
            if spec.unit == "um" and kind_of(image) == "slide" and mpp_of(image, settings) is None:
                _say(
                    f"patchdrive: {source} does not say how many µm a pixel is: {spec.name}, made for {spec.pixel_size:g}, reads level-0 "
                    "pixels as they are; tell it with --mpp-override"
                )
            report = run(image, model, store, settings=settings, overwrite=options.overwrite, watcher=bar)
            return report, FAILURES if report.status == "failed" else DONE
    except PatchdriveError as error:
        _say(f"patchdrive: {error}")
        code = TRY_AGAIN if isinstance(error, StoreInUseError) else USAGE if isinstance(error, _USAGE_ERRORS) else FAILURES
        return RunReport(source=source, store="", status="failed", reasons={str(error): 1}), code


def _line(report: RunReport) -> str:
    counted = f"{report.done} of {report.planned} patches done, {report.skipped} skipped, {report.failed} failed"
    reasons = "".join(f"\n  {count} x {reason}" for reason, count in report.reasons.items())
    total = report.seconds.get("total", 0.0)
    where = report.store or "no store"
    return f"{report.source}: {report.status}; {counted}; {report.coverage:.1%} covered; {total:.1f} s -> {where}{reasons}"


def _plan(options: argparse.Namespace) -> int:
    settings, models = _settings(options), _Models(options.model)

    def one(source: str) -> str:
        with closing(open_image(source, reader=options.reader)) as image:
            facts = outlook(image, models.of(image), settings, picture=options.out)
        return json.dumps(facts) if options.json else "\n".join(outlook_lines(facts))

    return _each(options.source, one)


def _info(options: argparse.Namespace) -> int:
    def one(source: str) -> str:
        facts = describe(source, reader=options.reader)
        return json.dumps(facts) if options.json else "\n".join(info_lines(facts))

    return _each(options.source, one)


def _each(sources: Sequence[str], say: Callable[[str], str]) -> int:
    """Print what `say` says of each source; one that fails is told and does not stop the others."""
    worst = DONE
    for source in sources:
        try:
            print(say(source), flush=True)
        except PatchdriveError as error:
            _say(f"patchdrive: {error}")
            worst = max(worst, USAGE if isinstance(error, _USAGE_ERRORS) else FAILURES)
    return worst


def _report(options: argparse.Namespace) -> int:
    names = [store.name for store in options.store]
    if options.out is not None and len(set(names)) < len(names):
        raise SettingsError("two of these stores have one name, and their pages would overwrite each other; report them into different -o")
    for store in options.store:
        page = write_report(store, options.out)
        print(page, flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
