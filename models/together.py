"""Several models that eat the same patches in one pass: a model made of models.

What each gives is what it gives alone at the same patches, to the bit on one device at one batch size: each standardises for itself, and
computes in its own precision. How names and sizes come together:

| of the members | together |
|---|---|
| names `a`, `b` | `a+b`; a later member whose name is taken is `a_2` |
| vectors | in the tables they have alone: the member's name; of a member with several vectors, theirs |
| maps | by their own names; one that is taken gets its member's before it: `b_tissue` |
| one fixed size | theirs; members of any size eat it too |
| any size | any; the largest of their sizes, rounded up to the largest stride, unless told |
| pixel size | the one they were made for; a member made for none takes it |

Channels, fill, resampling, halo, and the kind (vectors or maps) must be the same; strides of maps are powers of two times the smallest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from patchdrive.models.answer import answer
from patchdrive.models.types import DriveModel, ModelSpec, OutputSpec, PatchModel
from patchdrive.readers.errors import ModelError

_APART = "run them one by one, each with its own -o OUT"


class Together:
    """A PatchModel of PatchModels; `together` makes one."""

    def __init__(self, members: Sequence[PatchModel], *, pixel_size: float | None = None) -> None:
        self.members = tuple(members)
        self._names = _output_names([member.spec for member in self.members])
        self.spec = _union([member.spec for member in self.members], self._names, pixel_size)

    @cached_property
    def digest(self) -> str:
        """Sha256 in hex of the members' digests, in order."""
        return hashlib.sha256("\n".join(member.digest for member in self.members).encode()).hexdigest()

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S] stored values as float32 to every output of every member.

        Raises:
            ModelError: a member leaves out what its spec promises.
        """
        outputs: dict[str, Tensor] = {}
        for member, names in zip(self.members, self._names, strict=True):
            spec = member.spec
            # A member may write into what it is handed, as it may alone: the next one must not see that.
            own = pixels if spec.scale != 1.0 or spec.mean or spec.std else pixels.clone()
            given = answer(member, own)
            missing = sorted(names.keys() - given.keys())
            if missing:
                raise ModelError(f"{spec.name} gave {sorted(given)} but its spec promises {missing} too")
            outputs |= {ours: given[theirs] for theirs, ours in names.items()}
        return outputs

    def to(self, device: torch.device, /) -> Self:
        """Move every member."""
        for member in self.members:
            member.to(device)
        return self


def together(models: Sequence[PatchModel | DriveModel], *, pixel_size: float | None = None) -> PatchModel:
    """One model that does what all of `models` do, each patch read once; a single model is given back as it is.

    Args:
        models: in the order their outputs shall have; none twice.
        pixel_size: what the run will ask for (`--mpp`, `--gsd`), which settles it where members were made for different ones.

    Raises:
        ModelError: they cannot eat the same patches, or one drives; says what differs and the way out.
    """
    members = [_patch_model(model) for model in models]
    if not members:
        raise ModelError("no model is given; name at least one, such as descriptor")
    for index, one in enumerate(members):
        if any(one.digest == other.digest and one.spec == other.spec for other in members[:index]):
            raise ModelError(f"{one.spec.name} is given twice, with the same weights; name it once")
    return members[0] if len(members) == 1 else Together(members, pixel_size=pixel_size)


def _patch_model(model: PatchModel | DriveModel) -> PatchModel:
    if isinstance(model, DriveModel):
        name = model.encoder.spec.name
        raise ModelError(f"{name} chooses its patches itself, so no other model can eat the same ones; {_APART}")
    return model


def _output_names(specs: Sequence[ModelSpec]) -> tuple[Mapping[str, str], ...]:
    """Per member, each output's name to its name in the union."""
    taken: set[str] = set()
    return tuple(_names_of(spec, label, taken) for spec, label in zip(specs, _labels(specs), strict=True))


def _labels(specs: Sequence[ModelSpec]) -> list[str]:
    """Each member's name, or the first of `name_2`, `name_3`... that is free."""
    labels: list[str] = []
    for spec in specs:
        tries = [spec.name, *(f"{spec.name}_{number}" for number in range(2, len(labels) + 2))]
        labels.append(next(one for one in tries if one not in labels))
    return labels


def _names_of(spec: ModelSpec, label: str, taken: set[str]) -> Mapping[str, str]:
    """What the outputs of one member are called; adds them to `taken`."""
    names: dict[str, str] = {}
    for output in spec.outputs:
        wanted = label if len(spec.vectors) == 1 else output.name
        name = f"{label}_{output.name}" if wanted in taken else wanted
        if name in taken:
            raise ModelError(f"{label}: {output.name!r} would be called {name!r} together with the others, as one of them is; rename it")
        taken.add(name)
        names[output.name] = name
    return names


def _union(specs: Sequence[ModelSpec], names: Sequence[Mapping[str, str]], pixel_size: float | None) -> ModelSpec:
    """The spec of all members: what every one of them can eat, and all that they give.

    Raises:
        ModelError: there is no patch that all of them eat.
    """
    _agree(specs, "give vectors, or all give maps", ["vectors" if spec.vectors else "maps" for spec in specs])
    _agree(specs, "eat as many channels", [f"{spec.channels} channels" for spec in specs])
    _agree(specs, "share one fill (the stored value of what is not there)", [f"fill {spec.fill}" for spec in specs])
    _agree(specs, "share one resampling", [f"resampling {spec.resampling}" for spec in specs])
    _agree(specs, "share one halo", [f"halo {spec.halo}" for spec in specs])
    outputs = [replace(output, name=held[output.name]) for spec, held in zip(specs, names, strict=True) for output in spec.outputs]
    _check_strides(specs, outputs)
    size, any_size = _size(specs)
    wanted, unit = _pixel_size(specs, pixel_size)
    return ModelSpec(
        name="+".join(_labels(specs)),
        channels=specs[0].channels,
        size=size,
        any_size=any_size,
        pixel_size=wanted,
        unit=unit,
        fill=specs[0].fill,
        resampling=specs[0].resampling,
        outputs=tuple(outputs),
    )


def _agree(specs: Sequence[ModelSpec], rule: str, values: Sequence[str]) -> None:
    if len(set(values)) > 1:
        raise ModelError(f"models given together all {rule}, got {_each(specs, values)}; {_APART}")


def _each(specs: Sequence[ModelSpec], values: Iterable[str]) -> str:
    return ", ".join(f"{spec.name}: {value}" for spec, value in zip(specs, values, strict=True))


def _check_strides(specs: Sequence[ModelSpec], outputs: Sequence[OutputSpec]) -> None:
    least = min(output.stride for output in outputs)
    if any(output.stride % least or (output.stride // least).bit_count() != 1 for output in outputs):
        found = _each(specs, (f"stride {'/'.join(str(output.stride) for output in spec.outputs)}" for spec in specs))
        raise ModelError(f"map strides of models given together are powers of two times the smallest, got {found}; {_APART}")


def _size(specs: Sequence[ModelSpec]) -> tuple[int, bool]:
    """The side of the patches that all eat, and whether any other will do."""
    stride = max(output.stride for spec in specs for output in spec.outputs)
    fixed = {spec.size for spec in specs if not spec.any_size}
    if not fixed:
        return -(-max(spec.size for spec in specs) // stride) * stride, True
    size = next(iter(fixed))
    if len(fixed) > 1 or size % stride or 2 * specs[0].halo >= size:
        found = _each(specs, (f"{'any' if spec.any_size else spec.size}, stride {max(o.stride for o in spec.outputs)}" for spec in specs))
        raise ModelError(
            f"models given together eat patches of one side, a multiple of every stride and more than twice the halo ({specs[0].halo}), "
            f"got {found}; {_APART}"
        )
    return size, False


def _pixel_size(specs: Sequence[ModelSpec], asked: float | None) -> tuple[float | None, Literal["um", "ground"] | None]:
    made = {(spec.pixel_size, spec.unit) for spec in specs if spec.pixel_size is not None}
    if len(made) <= 1:
        return next(iter(made), (None, None))
    units = {unit for _, unit in made}
    found = _each(specs, ("any" if spec.pixel_size is None else f"{spec.pixel_size:g} {spec.unit}" for spec in specs))
    if len(units) > 1:
        raise ModelError(f"models given together are all for slides (um) or all for scenes (ground), got {found}; {_APART}")
    unit = next(iter(units))
    if asked is None:
        option = "--mpp" if unit == "um" else "--gsd"
        raise ModelError(
            f"models given together see one pixel size, got {found}; say which with {option} (Python: pixel_size=), or {_APART}"
        )
    return asked, unit
