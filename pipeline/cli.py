"""The command line. Results go to stdout, everything else to stderr; exit codes: 0 done, 1 internal, 2 usage, 3 failures, 75 again."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from threading import Event

from tqdm import tqdm

from patchdrive.models.hub import origin_of
from patchdrive.pipeline.archive import Archive, Ended, Models
from patchdrive.pipeline.budget import cores, parse_bytes
from patchdrive.pipeline.demo import demo
from patchdrive.pipeline.export import FORMS, export
from patchdrive.pipeline.export_model import export_model
from patchdrive.pipeline.export_options import add_tracing, tracing_of
from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.info import describe, info_lines
from patchdrive.pipeline.journal import StoreInUseError, StoreWriteError
from patchdrive.pipeline.mend import mend
from patchdrive.pipeline.outlook import outlook, outlook_lines
from patchdrive.pipeline.report_many import index_path, stores_in, write_reports
from patchdrive.pipeline.result import open_result
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shard import WHOLE, Shard
from patchdrive.pipeline.signals import TRY_AGAIN, Signals
from patchdrive.pipeline.train_config import read_config
from patchdrive.pipeline.train_job import train_from
from patchdrive.pipeline.verify import Means, verify
from patchdrive.readers import open_image
from patchdrive.readers.errors import (
    BudgetError,
    ModelError,
    PatchdriveError,
    ResolutionError,
    SettingsError,
    SourceChangedError,
    StalledError,
    StoreError,
)

DONE, INTERNAL, USAGE, FAILURES = 0, 1, 2, 3
_TRY_AGAIN_ERRORS = (StoreInUseError, StoreWriteError, StalledError, SourceChangedError)
_USAGE_ERRORS = (SettingsError, BudgetError, ModelError, ResolutionError, StoreError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    sys.setswitchinterval(1e-4)  # decode threads take the interpreter back within 0.1 ms of each tile, not 5
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        _say("patchdrive: stopped")
        return TRY_AGAIN
    except BrokenPipeError:
        _say("patchdrive: stopped, for nobody reads its output any more; the same command goes on from the last block committed")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more as it ends
        return TRY_AGAIN
    except _USAGE_ERRORS as error:
        _say(f"patchdrive: {error}")
        return USAGE
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"patchdrive: {error.filename} ({error.strerror}): see that it can be read, or written, or choose another folder")
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
    runs.add_argument(
        "--in-flight", type=int, choices=range(1, 9), default=2, metavar="N", help="images run at a time, which share the memory"
    )
    runs.add_argument("--shard", metavar="I/N", help="this is process I of N, counted from 0: it runs every N-th source")
    runs.add_argument("--within-image", action="store_true", help="the shards share the blocks of each image, and write one store")
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

    reports = commands.add_parser("report", help="pictures and a page for each store, and an index of several")
    reports.add_argument("store", nargs="+", type=Path, help="<id>.zarr folders, or folders with such in them")
    reports.add_argument("-o", "--out", type=Path, help="folder for the pages and their index; beside each store where left out")
    reports.set_defaults(command=_report)

    exports = commands.add_parser("export", help="write what stores hold in the forms of other tools")
    exports.add_argument("store", nargs="+", type=Path, help="<id>.zarr folders")
    exports.add_argument("--to", required=True, choices=tuple(FORMS), help="the form")
    exports.add_argument("-o", "--out", type=Path, required=True, help="folder; the form says what lies where in it")
    add_tracing(exports)
    exports.set_defaults(command=_export)

    models = commands.add_parser("export-model", help="write a model to one file that runs without its code, or without patchdrive")
    models.add_argument("model", help="as run takes it; of a model that drives, its patch encoder is written")
    models.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="FILE.pt2, or FILE.onnx for any runtime of ONNX")
    models.set_defaults(command=_export_model)

    verifies = commands.add_parser("verify", help="check a store's every record, and compute a sample again", formatter_class=_Defaults)
    verifies.add_argument("store", type=Path, help="<id>.zarr folder")
    _add_verify(verifies)
    verifies.set_defaults(command=_verify)

    trains = commands.add_parser("train", help="train a model from images and labels, as a config file says", formatter_class=_Defaults)
    trains.add_argument("config", type=Path, help="TOML file: task, sources, labels, and what is not to be as usual")
    trains.add_argument("--overwrite", action="store_true", help="start anew where `out` holds another training, or a finished one")
    trains.add_argument("--json", action="store_true", help="one JSON object on stdout")
    trains.set_defaults(command=_train)

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
    model = "built-in name, NAME:weights, .pt2, .onnx, .safetensors, timm:NAME, hf-hub:ORG/NAME@REVISION or module:function"
    add("--model", action="append", help=f"{model}; repeat it for several in one pass (default: descriptor)")
    add("--reader", help="open with this reader instead of the one that fits")
    add("--mpp", type=float, help="target pixel size of slides, µm (default: the model's, else level 0)")
    add("--gsd", type=float, help="target pixel size of scenes, units of the CRS (default: the model's, else level 0)")
    add("--mpp-override", type=float, help="µm per level-0 pixel, where a slide does not say")
    add("--upsample", action="store_true", help="allow a pixel size finer than the image holds")
    add("--patch-size", type=int, help="footprint of a patch, target pixels (default: the model's)")
    add("--overlap", type=int, help="patch side minus stride, target pixels (default: what the model needs)")
    add("--saliency", help="tissue, valid, complexity or module:function (default: tissue for slides, valid for scenes)")
    add("--regions", help="look inside these polygons, or this mask, only: a GeoJSON or raster file, or a folder with one for each image")
    add("--select", choices=("grid", "topk"), default="grid", help="every patch worth reading, or the best --max-patches")
    add("--coords", help="take these patches instead: an .h5 of TRIDENT or CLAM, or a folder with one for each slide")
    add("--max-patches", type=int, help="most patches topk or a driving model may ask for")
    add("--audit", type=int, metavar="N", help="of a driving model: read N patches it did not choose, to say what it missed")
    add("--spacing", type=int, help="topk: least distance between patches, target pixels (default: one patch)")
    add("--halo", type=int, help="context around a map patch that is seen and not written, pixels (default: the model's)")
    add("--blend", choices=("box", "hann", "gaussian", "pyramid"), help="weights where map patches overlap")
    add("--all-classes", action="store_true", help="keep every class probability of a segmenter")
    add(
        "--on-error",
        choices=("fail", "mask", "skip"),
        default="fail",
        help="patches that cannot be decoded fail, have holes, or are skipped",
    )
    add("--memory", help="host memory to stay under, 8GiB (default: half of what this process may have)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, or several: cuda:0,1")
    add("--device-memory", default="0.9", help="of each CUDA device: a share of what is free, or a size, 20GiB")
    add("--batch-size", type=int, help="patches per batch (default: 32, on CUDA 128, or what fits)")
    add("--patience", type=float, default=300.0, help="seconds without a tile after which a source is given up")
    add("--workers", type=int, help=f"decode threads (default: {cores()}, the cores this process may use)")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", help="where the image lies now (default: where the run found it)")
    add("--model", action="append", help="as the run was given it (default: what it recorded)")
    add("--sample", type=int, default=32, help="how many patches to compute again")
    add("--seed", type=int, default=0, help="which ones: the same seed draws the same")
    add("--no-recompute", action="store_true", help="check the records alone; needs neither image nor model")
    add("--mend", action="store_true", help="take damaged blocks back, so that the next run computes them again")
    add("--memory", help="host memory to stay under, 8GiB (default: half of what this process may have)")
    add("--device", default="auto", help="auto (the kind the run had), cpu, cuda or cuda:1")
    add("--workers", type=int, help=f"threads that read (default: {cores()}, the cores this process may use)")
    add("--json", action="store_true", help="one JSON object on stdout")


def _settings(options: argparse.Namespace) -> RunSettings:
    fields = {name: getattr(options, name) for name in RunSettings.__slots__ if name != "shard"}
    memory = None if options.memory is None else parse_bytes(options.memory)
    return RunSettings(**{**fields, "memory": memory, "device_memory": _device_memory(options.device_memory)})


def _models(options: argparse.Namespace, settings: RunSettings) -> Models:
    """The models asked for. Those of the hub are told with their licence, and named by their commit from here on, also in records."""
    names = options.model or ["descriptor"]
    return Models([_pinned(name) for name in names], settings)


def _pinned(name: str) -> str:
    origin = origin_of(name)
    if origin is None:
        return name
    _say(f"patchdrive: {origin}")
    return origin.name


def _device_memory(text: str) -> float:
    """A share up to 1, or bytes."""
    return float(text) if re.fullmatch(r"0?\.\d+|1|1\.0", text) else parse_bytes(text)


class _Bar:
    """The Watcher of the command line: a bar on a terminal, and the wish to stop."""

    def __init__(self, name: str, stop: Event, *, unit: str = "patch") -> None:
        self._bar = tqdm(desc=name, unit=unit, disable=None, file=sys.stderr)
        self._stop = stop

    def began(self, rows: int, left: int) -> None:
        self._bar.reset(total=rows)
        self._bar.update(rows - left)

    def committed(self, rows: int) -> None:
        self._bar.update(rows)

    def wants_stop(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        self._bar.close()


def _run(options: argparse.Namespace) -> int:
    shard = WHOLE if options.shard is None else Shard.parse(options.shard)
    if options.within_image and options.shard is None:
        raise SettingsError("--within-image shares the blocks of each image among processes; say which part this one is with --shard i/n")
    settings = replace(_settings(options), shard=shard if options.within_image else WHOLE)
    sources = options.source if options.within_image else options.source[shard.index :: shard.count]
    worst = DONE
    with closing(Signals(_say)) as stop:
        archive = Archive(
            out=options.out,
            models=_models(options, settings),
            settings=settings,
            watch=lambda source: closing(_Bar(Path(source).name, stop.asked)),
            say=_say,
            reader=options.reader,
            overwrite=options.overwrite,
        )
        left = len(sources)
        for ended in archive.run_all(sources, in_flight=options.in_flight, stop=stop.asked):
            left -= 1
            report, code = ended.report, _code(ended)
            if code == USAGE and len(sources) == 1 and not options.json:
                return USAGE  # its error is all there is to say; a script is told in its own form too
            try:
                print(json.dumps(report.to_dict()) if options.json else _line(report), flush=True)
            except BrokenPipeError:
                stop.asked.set()  # the images in flight end with their block in hand
                raise
            for note in report.notes:
                _say(f"patchdrive: {report.source}: {note}")
            if code == DONE and not report.planned:
                why = f"{settings.coords} has no patch of it" if settings.coords else "nothing in it is worth reading to its saliency"
                _say(f"patchdrive: {report.source}: {why}: no patch was planned{'' if settings.coords else '; try --saliency valid'}")
            worst = max(worst, TRY_AGAIN if report.status == "partial" and stop.asked.is_set() else code)
    return TRY_AGAIN if left else worst


def _code(ended: Ended) -> int:
    if isinstance(ended.error, _TRY_AGAIN_ERRORS):
        return TRY_AGAIN
    if isinstance(ended.error, _USAGE_ERRORS):
        return USAGE
    return FAILURES if ended.report.status == "failed" else DONE


def _line(report: RunReport) -> str:
    counted = f"{report.done} of {report.planned} patches done, {report.skipped} skipped, {report.failed} failed"
    reasons = "".join(f"\n  {count} x {reason}" for reason, count in report.reasons.items())
    reasons += "".join(f"\n  {count} x done with a hole: {reason}" for reason, count in report.masked.items())
    total = report.seconds.get("total", 0.0)
    where = report.store or "no store"
    return f"{report.source}: {report.status}; {counted}; {report.coverage:.1%} covered; {total:.1f} s -> {where}{reasons}"


def _plan(options: argparse.Namespace) -> int:
    settings = _settings(options)
    models = _models(options, settings)

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
    stores, index = stores_in(options.store), index_path(options.store, options.out)
    if len(stores) > 1 and index is None:
        _say("patchdrive: no index page, for these stores lie in several folders; -o names one for all pages")
    worst = DONE
    for ended in write_reports(stores, options.out, index):
        if not isinstance(ended, PatchdriveError):
            print(ended, flush=True)
        elif len(stores) == 1:
            raise ended
        else:
            _say(f"patchdrive: {ended}")
            worst = FAILURES
    return worst


def _export(options: argparse.Namespace) -> int:
    tracing = tracing_of(options)
    slides = [slide_name(open_result(store)) for store in options.store]
    twice = sorted(slide for slide, count in Counter(slides).items() if count > 1)
    if twice:
        raise SettingsError(f"several of these stores are of a slide called {twice[0]}, and would overwrite each other; use different -o")

    def one(store: str) -> str:
        if open_result(store).report is None:
            _say(f"patchdrive: {store} is not finished; what is there is exported")
        return "\n".join(map(str, export(store, options.to, options.out, tracing=tracing)))

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TRY_AGAIN))  # so that drafts are taken away
    try:
        return _each([str(store) for store in options.store], one)
    finally:
        signal.signal(signal.SIGTERM, before)


def _export_model(options: argparse.Namespace) -> int:
    print(export_model(_pinned(options.model), options.out), flush=True)
    return DONE


def _train(options: argparse.Namespace) -> int:
    config = read_config(options.config)

    def say(text: str) -> None:
        tqdm.write(text, file=sys.stderr)  # above the bar

    with closing(Signals(say, hand="the step in hand")) as stop, closing(_Bar(options.config.stem, stop.asked, unit="step")) as bar:
        try:
            outcome = train_from(config, say=say, watcher=bar, overwrite=options.overwrite)
        except StoreInUseError as error:
            say(f"patchdrive: {error}")
            return TRY_AGAIN
    print(json.dumps(outcome.to_dict()) if options.json else outcome, flush=True)
    return DONE if outcome.status == "done" else TRY_AGAIN


def _verify(options: argparse.Namespace) -> int:
    memory = None if options.memory is None else parse_bytes(options.memory)
    means = Means(memory=memory, device=options.device, workers=options.workers)
    sample = 0 if options.no_recompute else options.sample
    verdict = verify(options.store, options.source, options.model, sample=sample, seed=options.seed, means=means)
    for problem in verdict.problems:
        _say(f"patchdrive: {problem}")
    print(json.dumps(verdict.to_dict()) if options.json else verdict, flush=True)
    if options.mend and not verdict.good:
        blocks = mend(verdict)
        _say(f"patchdrive: taken back; the same run again computes {blocks} block{'' if blocks == 1 else 's'} and finishes the store")
    return DONE if verdict.good else FAILURES


if __name__ == "__main__":
    sys.exit(main())
