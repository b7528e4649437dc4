"""The three rules that hold the house up, read off the syntax tree; typing-only imports count."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("readers", "models", "pipeline")
MODULES = {
    f"patchdrive.{folder}" + ("" if path.stem == "__init__" else f".{path.stem}"): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "core", "base", "manager"}


def imports_of(path: Path) -> set[str]:
    """Every module named in an import statement; `from package import name` counts as `package.name` where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in MODULES} or {node.module}
    return found


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("patchdrive.readers")])
def test_readers_import_neither_models_nor_pipeline_nor_torch(name):
    wrong = [other for other in IMPORTS[name] if other.startswith(("patchdrive.models", "patchdrive.pipeline", "torch"))]
    assert not wrong


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("patchdrive.models")])
def test_models_import_of_readers_only_geometry_and_errors(name):
    allowed = ("patchdrive.models", "patchdrive.readers.geometry", "patchdrive.readers.errors")
    assert not [other for other in IMPORTS[name] if other.startswith("patchdrive") and not other.startswith(allowed)]


def test_no_import_cycle():
    graph = {name: {other for other in found if other in MODULES and other != name} for name, found in IMPORTS.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_names_say_what_a_module_holds():
    assert not [name for name in MODULES if name.rsplit(".", 1)[-1] in FORBIDDEN_NAMES]


def test_no_other_code_folder():
    allowed = {*FOLDERS, "tests", "docs", "benchmarks"}
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert {folder for folder in folders if not folder.startswith((".", "build", "demo-out"))} <= allowed


def test_only_the_command_line_prints():
    printing = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert set(printing) <= {"patchdrive.pipeline.cli", "patchdrive.pipeline.demo"}
