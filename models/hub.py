"""Repositories of the Hugging Face hub: `hf-hub:ORG/NAME`, `hf-hub:ORG/NAME@REVISION`, `hf-hub:ORG/NAME@REVISION:FILE`.

REVISION is a commit, a tag or a branch; without one it is what `main` is today, and may be another model tomorrow. FILE says which of
several files is meant. A repository may hold `.safetensors`, `.pt2` and `.onnx` of patchdrive, or a network of timm (`config.json` with
`architecture`, and `.safetensors`).

Files come through huggingface_hub, the extra `hub`, into its cache (HF_HOME). HF_HUB_OFFLINE=1 takes them from there and asks nobody. Who
you are, where a repository wants to know, is between you and huggingface_hub (`hf auth login`, HF_TOKEN).

Nothing of a repository is run. Its Python files are never looked at, and pickles (`pytorch_model.bin`) are refused: to open one is to run
what its author wrote.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from patchdrive.readers.errors import ModelError

PREFIX = "hf-hub:"
CONFIG = "config.json"
_CARD = "README.md"
_USUAL = "model.safetensors"
_READ = (".safetensors", ".pt2", ".onnx")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_NAME = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([^:@\s]+))?(?::(\S+))?")
_WHO = "say who you are with `hf auth login` or HF_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What there is of a repository at one commit."""

    id: str
    """ORG/NAME."""
    revision: str
    """What was asked for: a commit, a tag or a branch."""
    commit: str
    """What that is, 40 hex digits."""
    files: tuple[str, ...]
    """Paths of all its files; offline, of those in the cache."""
    file: str
    """The one that was asked for; empty where none was."""
    offline: bool
    """Whether nobody is asked but the cache."""

    @property
    def name(self) -> str:
        """By which `load_model` finds the same bytes for ever."""
        return f"{PREFIX}{self.id}@{self.commit}{f':{self.file}' if self.file else ''}"

    @property
    def title(self) -> str:
        """NAME."""
        return self.id.partition("/")[2]

    @property
    def page(self) -> str:
        """Where people read about it."""
        return f"https://huggingface.co/{self.id}"

    @property
    def held(self) -> str:
        """Its files, in words."""
        where = "the cache holds of it only" if self.offline else "it holds"
        return f"{where} {', '.join(self.files) or 'nothing'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model is from, for people and for records."""

    asked: str
    """The name that was given."""
    name: str
    """The same with its commit."""
    licence: str
    """What its model card says, in words."""
    page: str
    """Where that card is."""

    def __str__(self) -> str:
        which = "" if self.asked == self.name else f", today {self.name}"
        return f"{self.asked}{which}: {self.licence}; {self.page}"


def origin_of(name: str) -> Origin | None:
    """Where the model of that name is from, and its licence; None for a name that is not of the hub.

    Raises:
        ModelError: as `find_repository`.
    """
    if not name.startswith(PREFIX):
        return None
    repository = find_repository(name)
    return Origin(asked=name, name=repository.name, licence=_licence(repository), page=repository.page)


def find_repository(name: str) -> Repository:
    """What `hf-hub:ORG/NAME`, `...@REVISION` or `...:FILE` stands for.

    Raises:
        ModelError: huggingface_hub is not installed, or there is no such repository or revision, or not for you; says the way out.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ModelError(f"{name!r} is not hf-hub:ORG/NAME, hf-hub:ORG/NAME@REVISION or hf-hub:ORG/NAME@REVISION:FILE")
    identity, revision, file = found[1], found[2] or "main", found[3] or ""
    offline = bool(_hub("constants").HF_HUB_OFFLINE)
    with _said(name, identity, revision, offline=offline):
        if offline:
            folder = Path(_hub().snapshot_download(identity, revision=revision, local_files_only=True, allow_patterns=[]))
            commit, files = folder.name, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        else:
            info = _hub().HfApi().model_info(identity, revision=revision)
            commit, files = str(info.sha), sorted(sibling.rfilename for sibling in info.siblings or ())
    return Repository(id=identity, revision=revision, commit=commit, files=tuple(files), file=file, offline=offline)


def fetch(repository: Repository, file: str) -> Path:
    """The file of the cache that holds `file` of the repository, brought there where it is not.

    Raises:
        ModelError: it cannot be had.
    """
    if file not in repository.files:
        raise ModelError(f"{repository.name}: no {file} is there; {repository.held}{_way_in(repository, file)}")
    with _said(repository.name, repository.id, repository.revision, offline=repository.offline):
        # By the revision that was asked for: so the cache learns what it is, and finds it again offline.
        path = Path(_hub().hf_hub_download(repository.id, file, revision=repository.revision, local_files_only=repository.offline))
    if repository.commit not in path.parts:
        raise ModelError(f"{PREFIX}{repository.id} got a new commit just now; run the same command again, or pin one: {repository.name}")
    return path


def weights_of(repository: Repository) -> str:
    """Which of its files is the model.

    Raises:
        ModelError: none is, or several are, or it is one that runs code of its author; says the way out.
    """
    asked = repository.file
    if asked and PurePosixPath(asked).suffix in _READ:
        return asked
    held = [asked] if asked else [file for file in repository.files if PurePosixPath(file).suffix in _READ]
    if not asked and (len(held) == 1 or _USUAL in held):
        return _USUAL if _USUAL in held else held[0]
    if held and not asked:
        raise ModelError(f"{repository.name} holds several models, {', '.join(held)}; say which: {repository.name}:{held[0]}")
    pickles = [file for file in held or repository.files if PurePosixPath(file).suffix in _PICKLES]
    if pickles:
        raise ModelError(
            f"{repository.name} is refused, nothing of it was run: {pickles[0]} is a pickle, and to open one is to run what its author "
            "wrote. Ask its authors for .safetensors; or, where you trust them, load it in a function of your own (module:function), and "
            f"write it with save_program{_way_in(repository, _USUAL)}"
        )
    what = f"{asked} is none of" if asked else "there is no"
    raise ModelError(f"{repository.name}: {what} {', '.join(_READ)}; {repository.held}{_way_in(repository, _USUAL)}")


def config_of(repository: Repository) -> Mapping[str, Any]:
    """Its `config.json`; empty where there is none.

    Raises:
        ModelError: it cannot be had, or is not a JSON object.
    """
    if CONFIG not in repository.files:
        return {}
    path = fetch(repository, CONFIG)
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{repository.name}: {CONFIG} is not a JSON object ({error})") from error


def stranger(repository: Repository, config: Mapping[str, Any]) -> str:
    """Why its weights may be nobody's that we know, for the end of an error."""
    if repository.offline and CONFIG not in repository.files:
        return f"; nor is its {CONFIG} in the cache, which a network of timm needs{_way_in(repository, CONFIG)}"
    names = config.get("architectures") if "architecture" not in config else None
    if isinstance(names, list) and names:
        return (
            f"; its {CONFIG} names {_plain(names[0])} of transformers, which patchdrive does not read: "
            "load it in a function of your own (module:function)"
        )
    return ""


def _licence(repository: Repository) -> str:
    """What the model card says, in words; its header is YAML that anybody may have written."""
    if _CARD not in repository.files:
        return f"no licence is known, for its model card is not {'in the cache' if repository.offline else 'there'}"
    yaml = importlib.import_module("yaml")
    try:
        card = _hub("repocard").metadata_load(fetch(repository, _CARD)) or {}
    except (ValueError, yaml.YAMLError):
        card = {}
    found: Sequence[Any] = [card[key] for key in ("license", "license_name", "license_link") if card.get(key)]
    return f"licence {' '.join(map(_plain, found))}" if found else "its model card names no licence"


def _plain(text: Any) -> str:
    """A word of somebody else's, fit for a terminal."""
    return "".join(letter for letter in str(text) if letter.isprintable())[:120]


def _way_in(repository: Repository, file: str) -> str:
    if not repository.offline:
        return ""
    where = _download(repository.id, repository.commit, file)
    return f". HF_HUB_OFFLINE=1 keeps it off the network: bring it in where there is one, {where}"


def _download(identity: str, revision: str, file: str = "") -> str:
    return f"`hf download {identity}{f' {file}' if file else ''} --revision {revision}`, into the same HF_HOME"


@contextmanager
def _said(name: str, identity: str, revision: str, *, offline: bool) -> Iterator[None]:
    """What huggingface_hub raises, with the way out."""
    errors, constants = _hub("errors"), _hub("constants")
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} is gated: ask for access at https://huggingface.co/{identity}, and {_WHO}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"{name}: there is no {identity} on the hub, or it is private: mind the spelling, or {_WHO}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name}: {identity} has no revision {revision}; see https://huggingface.co/{identity}/commits/main") from error
    except (errors.HTTPError, OSError, ValueError) as error:  # HTTPError: of the client that huggingface_hub asks with, whichever it is
        if offline:
            raise ModelError(
                f"{name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE=1 keeps it off the network: bring it in where "
                f"there is one, {_download(identity, revision)}"
            ) from error
        way = "what the cache holds is used with HF_HUB_OFFLINE=1"
        raise ModelError(f"{name} cannot be had from {constants.ENDPOINT}: {error}; {way}") from error


def _hub(module: str = "") -> Any:
    """huggingface_hub, or a module of it."""
    try:
        return importlib.import_module(f"huggingface_hub{f'.{module}' if module else ''}")
    except ImportError as error:
        raise ModelError(f"hf-hub: models need huggingface_hub: pip install 'patchdrive[hub]' ({error})") from error
