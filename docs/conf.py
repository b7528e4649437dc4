"""Sphinx: MyST pages, the furo theme, and the public names from their docstrings. `make docs` builds it without a warning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "patchdrive"
author = "the patchdrive authors"
copyright = author
version = release = version_of("patchdrive")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"patchdrive {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"

_SECTIONS = {"Args:": "param", "Raises:": "raises", "Returns:": "returns"}
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def fields(lines: Sequence[str]) -> Iterator[str]:
    """A docstring as we write it, as reStructuredText: sections become fields, `code` becomes ``code``.

    Napoleon would read "Pixels; None: all" under a field of a dataclass as a type and its description.
    """
    field = ""
    for line in (_CODE.sub(r"``\1``", line) for line in lines):
        if line in _SECTIONS:
            field = _SECTIONS[line]
            yield ""
            if field == "returns":
                yield ":returns:"
        elif not field or not line.startswith("    "):
            field = field if not line else ""
            yield line
        elif field != "returns" and not line.startswith("     ") and ": " in line:
            name, _, text = line.strip().partition(": ")
            yield f":{field} {name}: {text}"
        else:
            yield f"    {line.strip()}"


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", translate)


def translate(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Rewrite a docstring in place, as autodoc wants it."""
    lines[:] = list(fields(lines))
