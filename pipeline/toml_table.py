"""A table of a TOML file as a dataclass: every field that is unknown, missing, of another type or out of its bounds is refused by name."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchdrive.readers.errors import SettingsError

T = TypeVar("T")
_WORDS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a number may be."""

    least: float = -math.inf
    """At least this."""
    most: float = math.inf
    """At most this."""
    above: float = -math.inf
    """More than this."""

    def hold(self, value: float) -> bool:
        """Whether `value` lies within; NaN never does."""
        return self.least <= value <= self.most and value > self.above and math.isfinite(value)

    def __str__(self) -> str:
        above, least, most = math.isfinite(self.above), math.isfinite(self.least), math.isfinite(self.most)
        low = f"above {self.above:g}" if above else f"at least {self.least:g}" if least else ""
        return " and ".join(part for part in (low, f"at most {self.most:g}" if most else "") if part)


def bounded(default: Any = MISSING, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Any:
    """A field of a dataclass whose number, where there is one, lies within bounds; `check_bounds` looks."""
    return dataclasses.field(default=default, metadata={"bounds": Bounds(least=least, most=most, above=above)})


def check_bounds(table: Any) -> None:
    """Look at every `bounded` field of a dataclass.

    Raises:
        SettingsError: one is out of its bounds.
    """
    for field in dataclasses.fields(table):
        bounds, value = field.metadata.get("bounds"), getattr(table, field.name)
        if bounds is not None and value is not None and not bounds.hold(value):
            raise SettingsError(f"{field.name} is {bounds}, got {value}")


def read_table(kind: type[T], table: Mapping[str, Any], where: str, *, given: Mapping[str, Any] | None = None) -> T:
    """A dataclass out of a table of a TOML file, its own tables included.

    Args:
        kind: the dataclass; its fields are bool, int, float, str, Literal, tuples of one of those, dicts of them by text, dataclasses,
            or any of these or None.
        table: as `tomllib` reads it.
        where: the file's name and the table's: what errors begin with.
        given: fields that the file does not say.

    Raises:
        SettingsError: a field is unknown, missing, of another type, or what it holds makes no sense; says which are allowed.
    """
    hints = get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in (given or {})]  # type: ignore[arg-type]
    refuse_unknown(table, [field.name for field in fields], where)
    values: dict[str, Any] = dict(given or {})
    for field in fields:
        if field.name in table:
            values[field.name] = _read(hints[field.name], table[field.name], f"{where}{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SettingsError(f"{where}{field.name} is missing; it is {_words(hints[field.name])}")
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{where}{error}") from error


def refuse_unknown(table: Mapping[str, Any], known: list[str], where: str) -> None:
    """
    Raises:
        SettingsError: `table` has a field that is not among the `known`.
    """
    for name in table:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{where}{name} is no field there{meant} There are {', '.join(known)}")


def _read(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` has it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _read(next(one for one in arguments if one is not type(None)), value, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return read_table(hint, value, f"{name}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], one, f"{name}[{index}]") for index, one in enumerate(value))
    if origin in {dict, Mapping} and isinstance(value, dict):
        return {key: _read(arguments[1], one, f"{name}.{key}") for key, one in value.items()}
    if _fits(hint, value):
        return float(value) if hint is float else value
    raise SettingsError(f"{name} is {_words(hint)}, got {value!r}")


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in get_args(hint) and isinstance(value, str)
    if isinstance(value, bool):  # which is an int to Python, and not to people
        return hint is bool
    return isinstance(value, int | float) if hint is float else hint in {int, str} and isinstance(value, hint)


def _words(hint: Any) -> str:
    """What is allowed, for people."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _words(next(one for one in arguments if one is not type(None)))
    if origin is Literal:
        return " or ".join(f'"{one}"' for one in arguments)
    if origin is tuple:
        return f"a list, each of it {_words(arguments[0])}"
    if origin in {dict, Mapping} or dataclasses.is_dataclass(hint):
        return "a table"
    return _WORDS[hint]
