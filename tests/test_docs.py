"""The pages say what is so: their Python runs, their command lines parse, their tables name every key and option there is."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from affine import Affine

from patchdrive.models import load_model
from patchdrive.pipeline.cli import _parser, main
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.info import describe
from patchdrive.pipeline.outlook import outlook
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.train_config import AIMS, TERMS, Augment, Course, Labels, Pieces, Sources, TrainConfig, Validation, read_config
from patchdrive.readers import open_image

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELLS = {"sh", "bash", "console", "shell"}
SHELL_RUNS = {"add-a-model", "add-a-reader", "models", "saliency"}
"""Pages whose shell blocks run too; those of the others name files that only a user has, and are parsed."""
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->\s*\Z")
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"#\s*([\w/]+\.py)\s*\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fenced block of a page."""

    language: str
    """After the backticks."""
    text: str
    """Inside."""
    line: int
    """Of its first line of text, in the page."""
    skipped: bool
    """True where the page says that it is not run, and why."""

    @property
    def file(self) -> str | None:
        """The name of the file it shows, where its first line is a comment that is one."""
        named = _FILE.match(self.text)
        return named and named[1]


def fences(page: Path) -> list[Fence]:
    text = page.read_text()
    return [
        Fence(
            language=found[1],
            text=found[2],
            line=text.count("\n", 0, found.start(2)) + 1,
            skipped=_NOT_RUN.search(text, 0, found.start()) is not None,
        )
        for found in _FENCE.finditer(text)
    ]


def python_of(page: Path) -> list[Fence]:
    return [fence for fence in fences(page) if fence.language == "python"]


def commands_in(fence: Fence) -> Iterator[list[str]]:
    """Every command of a shell block: without prompt, variables before it, comment, pipe and redirection; a backslash continues a line."""
    if fence.language not in SHELLS:
        return
    for line in fence.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        words = list(takewhile(lambda word: word not in {"|", ">", "&&", ";"}, dropwhile(lambda word: "=" in word, words)))
        if words:
            yield words


def commands_of(page: Path) -> list[list[str]]:
    """The arguments of every `patchdrive ...` in a page's shell blocks."""
    return [words[1:] for fence in fences(page) for words in commands_in(fence) if Path(words[0]).name == "patchdrive"]


def write_slide(path: Path) -> None:
    """Three levels of an Aperio slide: dark noise in the middle of glass."""
    rng = np.random.default_rng(0)
    pixels = np.full((1024, 1280, 3), 243, np.uint8)
    pixels[256:768, 320:960] = rng.integers(0, 110, (512, 640, 3), np.uint8) + np.array([90, 40, 90], np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for level, step in enumerate((1, 4, 16)):
            tiff.write(
                pixels[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=min(level, 1),
                description="Aperio made for a test|MPP = 0.5|AppMag = 20" if level == 0 else None,
                metadata=None,
            )


def write_scene(path: Path) -> None:
    """Four bands of reflectance in UTM, with a corner without data."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(200, 4000, (4, 400, 500), np.uint16)
    pixels[:, :120, :150] = 0
    frame = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000), "nodata": 0}
    size = {"height": 400, "width": 500, "count": 4, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, compress="deflate", **frame, **size) as file:
        file.write(pixels)
        for band, name in enumerate(("blue", "green", "red", "nir"), 1):
            file.set_band_description(band, name)


INPUTS: Mapping[str, Callable[[Path], None]] = {"slide.svs": write_slide, "scene.tif": write_scene}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name, write in INPUTS.items():
        write(folder / name)
    return folder


@pytest.fixture
def desk(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the inputs, from which modules can be imported; what a page imported of its own is forgotten."""
    for name in INPUTS:
        (tmp_path / name).symlink_to(inputs / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    threads, interval, known = torch.get_num_threads(), sys.getswitchinterval(), set(sys.modules)
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    sys.setswitchinterval(interval)  # the command line shortens it
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


SLOW = {"add-a-reader"}
"""Pages that take their time: 10 s of a reader's whole contract."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW)) for page in PAGES if python_of(page)],
)
def test_a_page_runs(page, desk, monkeypatch):
    """Top to bottom in one namespace. A block whose first line is `# name.py` is that file: later blocks import it."""
    offer_plugins(desk, page, monkeypatch)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for fence in fences(page):
        if fence.skipped:
            continue
        if page.stem in SHELL_RUNS:
            for words in commands_in(fence):
                assert run_command(words) == 0, words
        if fence.language == "python" and fence.file is not None:
            (desk / fence.file).write_text(fence.text)
        elif fence.language == "python":
            exec(compile("\n" * (fence.line - 1) + fence.text, str(page), "exec"), namespace)


def run_command(words: Sequence[str]) -> int:
    """The exit code of `patchdrive ...`, run here, or of `pytest ...`, run beside a copy of the contract."""
    if words[0] == "patchdrive":
        return main(words[1:])
    assert words[0] == "pytest", f"{words[0]} is not run; say so in the line before the block"
    (Path.cwd() / "contract.py").write_text((ROOT / "tests" / "contract.py").read_text())
    return subprocess.run([sys.executable, "-m", *words, "-q", "-p", "no:cacheprovider"], check=False).returncode


def offer_plugins(desk: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install` of a page's pyproject.toml would register under "patchdrive.readers"."""
    found = [
        EntryPoint(name=name, value=value, group="patchdrive.readers")
        for fence in fences(page)
        if fence.language == "toml"
        for section in re.findall(r'^\[project\.entry-points\."patchdrive\.readers"\]\n((?:\w+ = .*\n)+)', fence.text, re.MULTILINE)
        for name, value in re.findall(r'^(\w+) = "(.*)"$', section, re.MULTILINE)
    ]
    if found:
        monkeypatch.setattr("patchdrive.readers.open.entry_points", lambda *, group: [entry for entry in found if entry.group == group])


def test_few_blocks_are_not_run():
    blocks = [fence for page in PAGES for fence in python_of(page)]
    assert sum(fence.skipped for fence in blocks) <= len(blocks) // 10


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return _parser()


def commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_command_lines_parse(page, parser):
    assert not [words for words in commands_of(page) if not parses(parser, words)]


def parses(parser: argparse.ArgumentParser, words: Sequence[str]) -> bool:
    try:
        parser.parse_args(words)
    except SystemExit as end:
        return end.code == 0
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist(page, parser):
    """Every `--option` in code of a page, but for those of other programs in lines that name them."""
    there = options_of(parser).union(*map(options_of, commands(parser).values()))
    ours = "\n".join(line for line in page.read_text().splitlines() if not re.search(r"\b(pip|pytest|sphinx-build|ruff|git)\b", line))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= there


def test_every_option_and_command_is_explained(parser):
    page = (ROOT / "docs" / "command-line.md").read_text()
    wanted = set().union(*map(options_of, commands(parser).values())) - {"--help"}
    assert not sorted(option for option in wanted if f"`{option}" not in page)
    assert not sorted(name for name in commands(parser) if f"## {name}" not in page)


def missing(page: str, keys: Sequence[str]) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return [key for key in keys if f"`{key}`" not in text]


def test_every_json_key_is_explained(inputs):
    facts = describe(str(inputs / "slide.svs"))
    assert not missing("command-line.md", [*facts, *facts["levels"][0]])
    assert not missing("command-line.md", [field.name for field in dataclasses.fields(RunReport)])
    image = open_image(inputs / "slide.svs")
    assert not missing("command-line.md", list(outlook(image, load_model("descriptor", traits_of(image)), RunSettings(), picture=None)))


def test_training_configs_parse(tmp_path):
    configs = [fence.text for fence in fences(ROOT / "docs" / "train.md") if fence.language == "toml"]
    for text in configs:
        (tmp_path / "train.toml").write_text(text)
        assert read_config(tmp_path / "train.toml").out
    assert {table["task"] for table in map(tomllib.loads, configs)} == set(AIMS)


def test_every_field_of_a_training_config_is_explained():
    tables = (TrainConfig, Sources, Labels, Pieces, Augment, Course, Validation)
    assert not missing("train.md", [field.name for table in tables for field in dataclasses.fields(table) if field.name not in TABLES])
    assert not missing("train.md", [*(name for aim in AIMS.values() for name in aim.metrics), *TERMS])


TABLES = {"path", "sources", "labels", "model", "pieces", "augment", "training", "validation"}
"""Fields that are tables, or no field of the file."""


def test_every_setting_is_explained():
    assert not missing("python.md", [field.name for field in dataclasses.fields(RunSettings)])


def test_every_module_named_is_there():
    """`readers/tiff.py`, `pipeline.store` and `patchdrive.models.load` in the text are files."""
    for page in PAGES:
        text = page.read_text()
        named = {f"{folder}/{name}" for folder, name in re.findall(r"`(readers|models|pipeline|tests)/(\w+)\.py`", text)}
        named |= {f"{folder}/{name}" for folder, name in re.findall(r"\bpatchdrive\.(readers|models|pipeline)\.([a-z]\w*)", text)}
        exported = {f"{folder}/{name}" for folder in ("readers", "models", "pipeline") for name in names_of(folder)}
        assert not sorted(name for name in named - exported if not (ROOT / f"{name}.py").is_file()), page


def names_of(folder: str) -> Sequence[str]:
    module = __import__(f"patchdrive.{folder}", fromlist=["__all__"])
    names: Sequence[str] = getattr(module, "__all__", ())
    return names
