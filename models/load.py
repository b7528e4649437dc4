"""load_model: from what a user types to a model.

Names are tried in this order:

| a name | is |
|---|---|
| `identity`, `descriptor`, `quality`, `patchdrivenet`, `patchdrivenet-modular` | built in, shaped to the image; the last two untrained |
| `patchdrivenet:FILE.safetensors`, `segmenter:FILE.safetensors` | built in, with the weights and the config of FILE |
| `FILE.safetensors` | the same; the file says which |
| `FILE.pt2` | an exported program with its spec inside: `patchdrive.models.program` |
| `FILE.onnx` | a graph of ONNX with its spec inside: `patchdrive.models.onnx_model` |
| `timm:NAME` | an image network of timm: `patchdrive.models.timm_encoder` |
| `hf-hub:ORG/NAME@REVISION` | a repository of the Hugging Face hub, with such a file or a network of timm: `patchdrive.models.hub` |
| `module:function` | what your own function returns, called with the image's traits if it takes an argument |

No file can run code: weights are safetensors, a `.pt2` is checked first (`patchdrive.models.program_safety`), an `.onnx` knows only the
operators of onnxruntime, and nothing else of a repository is opened. `module:function` is code you name yourself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.descriptor import Descriptor
from patchdrive.models.hub import PREFIX, config_of, fetch, find_repository, stranger, weights_of
from patchdrive.models.identity import Identity
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.onnx_model import load_onnx
from patchdrive.models.program import load_program
from patchdrive.models.quality import Quality
from patchdrive.models.segmenter import load_segmenter
from patchdrive.models.timm_encoder import load_published, load_timm
from patchdrive.models.together import together
from patchdrive.models.types import DriveModel, ImageTraits, PatchModel
from patchdrive.models.weights import load_patchdrivenet
from patchdrive.models.weights_file import read_description
from patchdrive.readers.errors import ModelError

Model = PatchModel | DriveModel


def _untrained(traits: ImageTraits) -> PatchDrive:
    return patchdrivenet(PatchDriveNetConfig.for_traits(traits))


def _untrained_modular(traits: ImageTraits) -> PatchDrive:
    return patchdrivenet(PatchDriveNetConfig.for_traits(traits).modular())


_SHAPED: Mapping[str, Callable[[ImageTraits], Model]] = {
    "descriptor": Descriptor,
    "identity": Identity,
    "patchdrivenet": _untrained,
    "patchdrivenet-modular": _untrained_modular,
    "quality": Quality,
}
_WEIGHTED: Mapping[str, Callable[[Path], Model]] = {"patchdrivenet": load_patchdrivenet, "segmenter": load_segmenter}
_FILES: Mapping[str, Callable[[Path], Model]] = {".onnx": load_onnx, ".pt2": load_program}
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KNOWN = (
    f"{', '.join(_SHAPED)}; {', '.join(f'{name}:FILE.safetensors' for name in _WEIGHTED)}; FILE.safetensors; FILE.pt2; FILE.onnx; "
    "timm:NAME; hf-hub:ORG/NAME@REVISION; module:function"
)


def load_model(name: str, traits: ImageTraits | None = None) -> Model:
    """The model that `name` stands for; this module's text says how names are read.

    Args:
        name: what the user typed.
        traits: the image it is for; None for an 8-bit RGB slide. Models that bring their own spec leave them aside.

    Raises:
        ModelError: nothing has that name, or what has it cannot be loaded or is not safe to load; says what works.
    """
    traits = traits or ImageTraits()
    head, _, rest = name.partition(":")
    if name in _SHAPED:
        return _SHAPED[name](traits)
    if head in _SHAPED.keys() | _WEIGHTED.keys():
        return _with_weights(head, rest)
    if head == "timm" and rest:
        return load_timm(rest, traits)
    if name.startswith(PREFIX):
        return _from_hub(name, traits)
    if Path(name).suffix in {*_FILES, ".safetensors"}:
        return _from_file(Path(name))
    if _FUNCTION.fullmatch(name):
        return _from_function(head, rest, traits)
    raise ModelError(f"no model is called {name!r}{_meant(head)}; there are {_KNOWN}")


def load_models(names: Sequence[str], traits: ImageTraits | None = None, *, pixel_size: float | None = None) -> Model:
    """The model that `names` stand for: several eat the same patches in one pass, see `patchdrive.models.together`.

    Args:
        names: as `load_model` takes them, one or more.
        traits: as there.
        pixel_size: the run's `--mpp` or `--gsd`, which settles it where the models were made for different ones.

    Raises:
        ModelError: as `load_model`; or they cannot eat the same patches.
    """
    if len(names) == 1:
        return load_model(names[0], traits)
    return together([load_model(name, traits) for name in names], pixel_size=pixel_size)


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), [*_SHAPED, *_WEIGHTED, "timm", "hf-hub"], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _with_weights(name: str, file: str) -> Model:
    """A built-in with the weights of `file`."""
    if name not in _WEIGHTED:
        raise ModelError(f"{name} takes no weights, got {file!r}: call it {name!r}")
    if not file:
        raise ModelError(f"{name} needs weights: {name}:FILE.safetensors; `patchdrive train` writes them")
    path = _existing(Path(file))
    kind, _ = read_description(path)
    if kind != name:
        raise ModelError(f"{path} holds the weights of {kind!r}, not of {name!r}")
    return _WEIGHTED[name](path)


def _from_file(path: Path) -> Model:
    """A `.pt2` or `.onnx`, or a `.safetensors` that says which built-in it is for."""
    if _existing(path).suffix in _FILES:
        return _FILES[path.suffix](path)
    kind, _ = read_description(path)
    if kind not in _WEIGHTED:
        raise ModelError(f"{path} holds the weights of {kind!r}, which is not built in; built in are {', '.join(_WEIGHTED)}")
    return _WEIGHTED[kind](path)


def _from_hub(name: str, traits: ImageTraits) -> Model:
    """What a repository holds: a network of timm, or a file that says itself what it is."""
    repository = find_repository(name)
    path = fetch(repository, weights_of(repository))
    config = config_of(repository) if path.suffix == ".safetensors" else {}
    try:
        return load_published(repository.title, config, path, traits) if "architecture" in config else _from_file(path)
    except ModelError as error:
        why = stranger(repository, config) if path.suffix == ".safetensors" else ""
        raise ModelError(f"{repository.name}: {error}{why}") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"{path} is not a file")
    return path


def _from_function(module: str, function: str, traits: ImageTraits) -> Model:
    """What `function` of `module` returns."""
    try:
        make = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        where = f"no module {module!r} to take {function!r} from{_meant(module)}: is its folder on PYTHONPATH?"
        raise ModelError(f"{where} Models are {_KNOWN}") from error
    except AttributeError as error:
        raise ModelError(f"module {module!r} has no {function!r}") from error
    if not callable(make):
        raise ModelError(f"{module}:{function} is {make!r}, not a function")
    model = _made(make, traits)
    if not isinstance(model, PatchModel | DriveModel):
        found = f"{module}:{function} returned a {type(model).__name__}"
        raise ModelError(f"{found}, which is neither a PatchModel (spec, digest, call, to) nor a DriveModel; see patchdrive.models.types")
    return model


def _made(make: Callable[..., object], traits: ImageTraits) -> object:
    """`make` called with the traits where it has an argument of that name or cannot be called without one."""
    parameters = inspect.signature(make).parameters
    if "traits" in parameters:
        return make(traits=traits)
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return make(traits) if needed else make()
