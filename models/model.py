"""PatchDrive: the whole image seen small, some places read at full resolution, both joined. Systems A and D are presets of it.

A global stream with its saliency head (`saliency.GlanceNet`), a patch drive controller (`drivers`, `recurrent`, `iterative`,
`drilldown`), a shared high-resolution extractor (`encoders` or any module of your own), a mixer by which patches that were read tell
each other (`mixers`), cross-attention fusion (`fuse`), heads (`heads`). The model asks for patches through a generator, so the same
mathematics runs over a tensor (`forward`) and over a slide (the pipeline), one patch after another or all at once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.crop import coarsen, crop
from patchdrive.models.digest import module_digest
from patchdrive.models.drilldown import DrillDownDriver
from patchdrive.models.drivers import GridDriver, SaliencyDriver
from patchdrive.models.encoders import SmallCNN
from patchdrive.models.explain import audits, influence, sampled
from patchdrive.models.fuse import CrossAttentionFuse, Frame
from patchdrive.models.heads import Centre, Classify, Embed, Fused, Head, Said, Segment
from patchdrive.models.inverted import InvertedEncoder
from patchdrive.models.iterative import IterativeDriver
from patchdrive.models.mixers import NeighbourMixer
from patchdrive.models.recurrent import RecurrentDriver
from patchdrive.models.saliency import HALO, STRIDE, GlanceNet
from patchdrive.models.search import Driver, Gathered, Sampling, Search
from patchdrive.models.types import Attended, Audit, Drive, Glance, ModelSpec, Output, OutputSpec, Selection, Tokens
from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level

T = TypeVar("T")

SELDOM_VOUCHES = -5.0
"""Bias of a patch's logit for a class of the image: about -log of the patches of an image."""


class Encoder(Protocol):
    """What PatchDrive needs of a patch encoder, beyond being a module."""

    spec: ModelSpec

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        ...

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """One vector [n, D] per patch."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """Move it, in place."""
        ...


class Mixer(Protocol):
    """Tokens to tokens of the same patches."""

    def __call__(self, tokens: Tokens, /) -> Tokens:
        """Each having seen some others."""
        ...


class PatchDrive(nn.Module):
    """A DriveModel out of parts. `patchdrivenet` puts the usual ones together."""

    def __init__(
        self,
        config: PatchDriveNetConfig,
        *,
        glance: GlanceNet,
        driver: Driver,
        encoder: Encoder,
        mixer: Mixer,
        fuse: CrossAttentionFuse,
        heads: Mapping[str, Head],
    ) -> None:
        super().__init__()
        self.config = config
        self.glance = glance
        self.driver = driver
        self.encoder = encoder
        self.mixer = mixer
        self.fuse = fuse
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if isinstance(head, nn.Module)})
        self.evidence = nn.Linear(config.width, 1)  # of one patch: that a target is centred in it
        self.signs = nn.ModuleDict(  # of one patch: that it alone vouches for a class of an answer of many
            {answer.name: _vouching(config.width, len(answer.classes)) for answer in config.answers if answer.many}
        )

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`; `max_patches` counts."""
        return module_digest(self, self.config.to_dict())

    @property
    def glance_downsample(self) -> int:
        """Patch pixels per glance pixel: what the glance's pixel size is where its spec leaves it to the image."""
        return self.config.glance_downsample

    @property
    def maps(self) -> tuple[OutputSpec, ...]:
        """Of all heads, on the glance's pixels."""
        return tuple(output for head in self._heads().values() for output in head.maps)

    @property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of each answer about the whole image."""
        return {answer.name: answer.classes for answer in self.config.answers}

    def with_max_patches(self, count: int) -> Self:
        """The same model, weights shared, that asks for up to `count` patches; its digest differs.

        Raises:
            ModelError: `count` is not positive.
        """
        view = copy.copy(self)
        view.config = dataclasses.replace(self.config, max_patches=count)
        return view

    def with_audit(self, count: int) -> Self:
        """The same model, weights shared, that reads `count` patches more at the end to estimate what it missed; its digest differs.

        Raises:
            ModelError: `count` is negative, or the model has no target.
        """
        view = copy.copy(self)
        view.config = dataclasses.replace(self.config, audit=count)
        return view

    def drive(self, glance: Glance, cells: Level, grid: Level) -> Drive:
        """Ask as the driver does; then let the patches tell each other, fuse and answer; say which patches decided, and what was missed."""
        search = self.search(glance, cells, grid)
        gathered = (yield from self.driver.ask(search)).tokens
        missed: list[Audit] = []
        if self.config.audit:
            sample, outside = yield from sampled(search, gathered.selection, self.config.audit, self.config.seed)
            missed = audits(gathered, sample, outside, lambda x: torch.sigmoid(self.evidence(x))[..., 0])
        tokens = self.mixer(gathered)
        said = self.answer(glance, tokens, cells)
        parts = [head.output(said, cells) for head in self._heads().values()]
        attention = self.attention(glance, tokens, cells)
        brought = influence(gathered, attention, lambda some: self._probabilities(glance, self.mixer(some), cells))
        return Output(
            maps={name: values for part in parts for name, values in part.maps.items()},
            values={name: values for part in parts for name, values in part.values.items()},
            objects=[one for part in parts for one in part.objects],
            embedding=next((part.embedding for part in parts if part.embedding is not None), None),
            attended=Attended(selection=tokens.selection, attention=attention, influence=brought),
            audits=missed,
        )

    def forward(self, image: Tensor, *, chunk: int = 256) -> Output:
        """The whole model over images in memory: the twin of a run over a slide.

        Args:
            image: [B, C, H, W] stored values of any dtype, at the encoder's pixel size; all of it valid.
            chunk: patches encoded at once; changes rounding only.
        """
        grid, cells = self.frames(image)
        drive = self.drive(self.look(image), cells, grid)
        return converse(drive, lambda selection: self.read(image, selection, grid, chunk=chunk))

    def frames(self, image: Tensor) -> tuple[Level, Level]:
        """The grids of an image [B, C, H, W] in memory: its own pixels, which are level 0, and the glance's cells."""
        height, width = image.shape[2:]
        step = self.config.glance_downsample * STRIDE
        return _level(height, width, 1.0), _level(-(-height // step), -(-width // step), float(step))

    def look(self, image: Tensor) -> Glance:
        """The glance of images [B, C, H, W] in memory: area means, beyond the border the fill, as the pipeline reads a slide."""
        return self.look_small(coarsen(image, self.config.glance_downsample))

    def look_small(self, small: Tensor) -> Glance:
        """The glance of images [B, C, h, w] of stored values that have its pixel size already."""
        spec = self.glance.spec
        below, beside = (-side % STRIDE + HALO for side in small.shape[2:])
        padded = functional.pad(small, (HALO, beside, HALO, below), value=spec.fill)
        maps = self.glance(spec.normalise(padded.permute(0, 2, 3, 1)))
        edge = HALO // STRIDE
        features, score = (maps[name][:, :, edge:-edge, edge:-edge] for name in ("features", "score"))
        return Glance(features=features, score=score[:, 0], valid=torch.ones_like(score[:, 0], dtype=torch.bool))

    def search(self, glance: Glance, cells: Level, grid: Level, *, sampling: Sampling | None = None) -> Search:
        """What the driver is given; `sampling` for a training step."""
        return Search(
            glance=glance,
            cells=cells,
            grid=grid,
            size=self.encoder.spec.size,
            max_patches=self.config.max_patches,
            rank=lambda tokens: self.attention(glance, tokens, cells).masked_fill(~tokens.selection.valid, -torch.inf),
            sampling=sampling,
        )

    def gather(
        self,
        image: Tensor,
        glance: Glance,
        cells: Level,
        grid: Level,
        *,
        sampling: Sampling,
        chunk: int = 256,
        constant_memory: bool = False,
    ) -> Gathered:
        """What the driver gathers of images [B, C, H, W] in a training step, tokens before they are mixed; other arguments as `read`."""
        asking = self.driver.ask(self.search(glance, cells, grid, sampling=sampling))
        return converse(asking, lambda one: self.read(image, one, grid, chunk=chunk, constant_memory=constant_memory))

    def read(self, image: Tensor, selection: Selection, grid: Level, *, chunk: int = 256, constant_memory: bool = False) -> Tokens:
        """Cut the patches of a Selection out of images and encode them; empty slots are zeros and cost nothing.

        Args:
            image: [B, C, H, W] stored values.
            selection: which patches.
            grid: the image's frame.
            chunk: patches cut and encoded at once; changes rounding only.
            constant_memory: keep nothing of a chunk for its gradient but where its patches are: it is cut and encoded once more for it
                (Chen et al. 2016). The same gradient, one chunk's memory, one forward pass more.
        """
        spec = self.encoder.spec
        return self.tokens(selection, lambda slots: crop(image, selection, slots, grid, spec), chunk=chunk, constant_memory=constant_memory)

    def tokens(self, selection: Selection, cut: Callable[[Tensor], Tensor], *, chunk: int = 256, constant_memory: bool = False) -> Tokens:
        """Encode the patches of a Selection; empty slots are zeros and cost nothing.

        Args:
            selection: which patches.
            cut: stored values [n, C, p, p] of the slots [n, 2], image and place, that it is given.
            chunk: as in `read`.
            constant_memory: as in `read`.
        """
        x = selection.side.new_zeros(*selection.valid.shape, self.config.width)

        def encoded(slots: Tensor) -> Tensor:
            return self.encode(cut(slots))

        with torch.set_grad_enabled(torch.is_grad_enabled() and selection.grad):
            keep = not (constant_memory and torch.is_grad_enabled())
            slots = torch.split(selection.valid.nonzero(), chunk)
            vectors = [encoded(some) if keep else checkpoint(encoded, some, use_reentrant=False) for some in slots if len(some)]
        if vectors:
            x = x.masked_scatter(selection.valid[..., None], torch.cat(vectors))
        return Tokens(x=x, selection=selection)

    def encode(self, patches: Tensor) -> Tensor:
        """[n, C, p, p] stored values to [n, D]."""
        spec = self.encoder.spec
        given = self.encoder(spec.normalise(patches.permute(0, 2, 3, 1)))
        return given[spec.outputs[0].name]

    def answer(self, glance: Glance, tokens: Tokens, cells: Level, *, frame: Frame | None = None) -> Said:
        """Fuse and ask the heads, those of maps a strip at a time; `frame` is the image's own borders unless given."""
        frame, asked = frame or _borders(cells), [head for head in self._heads().values() if not head.maps]
        queries = self.fuse.ask(glance, tokens, cells, frame).tokens
        said = _said(asked, Fused(map=glance.features, queries=queries))
        if not self.maps:
            return said
        drawn = [head for head in self._heads().values() if head.maps]
        fused = self.fuse.strips(glance, tokens, cells, frame)
        strips = ((rows, _said(drawn, Fused(map=strip, queries=queries))) for rows, strip in fused)
        return {**said, **_stacked(strips, cells.height)}

    def attention(self, glance: Glance, tokens: Tokens, cells: Level) -> Tensor:
        """[B, K] of the task queries on each patch, mean over heads and queries; with the share of the pooled stream they sum to one."""
        return self.fuse.ask(glance, tokens, cells, _borders(cells)).attention.mean(dim=1)

    def _probabilities(self, glance: Glance, tokens: Tokens, cells: Level) -> dict[str, Tensor]:
        """[B, C] of each answer about the whole image; no map is made."""
        given = Fused(map=glance.features, queries=self.fuse.ask(glance, tokens, cells, _borders(cells)).tokens)
        asked = [head for head in self.heads.values() if isinstance(head, Classify)]
        return {name: p for head in asked for name, p in head.output(head(given), cells).values.items()}

    def _heads(self) -> Mapping[str, Head]:
        return dict(self.heads.items())  # type: ignore[arg-type]


def patchdrivenet(config: PatchDriveNetConfig, *, encoder: Encoder | None = None) -> PatchDrive:
    """System A or D as its config says, untrained: saliency is the Laplacian-of-Gaussian prior, weights are drawn from `config.seed`.

    Args:
        config: which parts, how large.
        encoder: instead of the config's: any module that is a PatchModel of one vector of `config.width`, `models.wrapped.wrap` makes one.

    Raises:
        ModelError: the encoder's vectors are of another length.
    """
    if encoder is not None and (encoder.spec.size, [len(o.channels) for o in encoder.spec.outputs]) != (config.patch_size, [config.width]):
        raise ModelError(
            f"an encoder of patches of {config.patch_size} pixels to one vector of {config.width} is wanted, got "
            f"{encoder.spec.size} pixels to {[len(o.channels) for o in encoder.spec.outputs]}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads: dict[str, Head] = {}
        if config.target:
            heads["detection"] = Centre(config.width, config.target, boxes=config.boxes, threshold=config.threshold)
        heads |= {f"answer_{i}": Classify(config.width, answer, i) for i, answer in enumerate(config.answers)}
        if config.segments:
            heads["segmentation"] = Segment(config.width, config.segments)
        if config.embedding:
            heads["embedding"] = Embed(config.width, len(config.answers))
        return PatchDrive(
            config,
            glance=GlanceNet(config.glance_spec, config.width),
            driver=_driver(config),
            encoder=encoder or _ENCODERS[config.encoder](config.encoder_spec, config.width),
            mixer=nn.Identity() if config.mixer == "none" else NeighbourMixer(config.width, config.heads),
            fuse=CrossAttentionFuse(config.width, config.heads, max(1, len(config.answers) + config.embedding)),
            heads=heads,
        )


_ENCODERS: Mapping[str, Callable[[ModelSpec, int], Encoder]] = {"small": SmallCNN, "inverted": InvertedEncoder}


def _driver(config: PatchDriveNetConfig) -> Driver:
    drivers: Mapping[str, Callable[[], Driver]] = {
        "saliency": lambda: SaliencyDriver(config.width),
        "grid": GridDriver,
        "recurrent": lambda: RecurrentDriver(config.width, config.per_step),
        "iterative": lambda: IterativeDriver(config.per_step),
        "drill-down": lambda: DrillDownDriver(config.width, zoom=config.zoom, share=config.share),
    }
    return drivers[config.driver]()


def converse(talk: Generator[Selection, Tokens, T], read: Callable[[Selection], Tokens]) -> T:
    """Let a drive ask, and `read` answer, to its end."""
    selection = next(talk)
    while True:
        try:
            selection = talk.send(read(selection))
        except StopIteration as end:
            result: T = end.value
            return result


def _vouching(width: int, classes: int) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.constant_(layer.bias, SELDOM_VOUCHES)
    return layer


def _said(heads: Iterable[Head], fused: Fused) -> dict[str, Tensor]:
    return {name: tensor for head in heads for name, tensor in head(fused).items()}


def _stacked(strips: Iterable[tuple[slice, Mapping[str, Tensor]]], height: int) -> dict[str, Tensor]:
    """Maps of strips, each with its rows of `height`, as maps of the whole.

    Their room is made at once: many small pieces kept among large passing ones would leave memory full of gaps.
    """
    whole: dict[str, Tensor] = {}
    for rows, strip in strips:
        if rows == slice(0, height):
            return dict(strip)
        for name, part in strip.items():
            finer = part.shape[2] // (rows.stop - rows.start)
            if name not in whole:
                whole[name] = part.new_empty(*part.shape[:2], height * finer, part.shape[3])
            whole[name][:, :, rows.start * finer : rows.stop * finer] = part
    return whole


def _borders(cells: Level) -> Frame:
    return Frame(origin=(0.0, 0.0), extent=(cells.height * cells.downsample_y, cells.width * cells.downsample_x))


def _level(height: int, width: int, downsample: float) -> Level:
    if height < 1 or width < 1:
        raise ModelError(f"an image holds at least one pixel, got {height} x {width}")
    return Level(
        index=0, height=height, width=width, downsample_y=downsample, downsample_x=downsample, tile_height=height, tile_width=width
    )
