"""System A, PatchDriveNet: the whole image seen small, its most salient places read at full resolution, both joined.

Global stream and saliency head (`saliency.GlanceNet`), patch drive controller (`drivers.SaliencyDriver`), shared high-resolution
extractor (`encoders.SmallCNN`), cross-attention fusion (`fuse.CrossAttentionFuse`), heads (`heads`). The model asks for patches
through a generator, so the same mathematics runs over a tensor (`forward`) and over a slide (the pipeline), one patch after
another or all at once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.crop import coarsen, crop
from patchdrive.models.digest import module_digest
from patchdrive.models.drivers import SaliencyDriver, Sampling
from patchdrive.models.encoders import SmallCNN
from patchdrive.models.fuse import CrossAttentionFuse, Frame
from patchdrive.models.heads import Centre, Classify, find_objects
from patchdrive.models.saliency import HALO, STRIDE, GlanceNet
from patchdrive.models.types import Drive, Glance, Output, OutputSpec, Selection, Tokens
from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the heads say, before it becomes probabilities: what losses want."""

    detection: Tensor
    """[B, 1, gh, gw] logits."""
    offset: Tensor
    """[B, 2, gh, gw] cells, (y, x) from a cell's centre to its object's."""
    label: Tensor | None
    """[B, C] logits of the image's class, where the model has classes."""


class PatchDrive(nn.Module):
    """A DriveModel out of parts. `patchdrivenet` puts the usual ones together."""

    def __init__(self, config: PatchDriveNetConfig, *, glance: GlanceNet, driver: SaliencyDriver, encoder: SmallCNN) -> None:
        super().__init__()
        self.config = config
        self.glance = glance
        self.driver = driver
        self.encoder = encoder
        self.fuse = CrossAttentionFuse(config.width)
        self.centre = Centre(config.width)
        self.classify = Classify(config.width, len(config.classes)) if config.classes else None
        self.evidence = nn.Linear(config.width, 1)  # of one patch, for its own loss in training

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
        """The fused detection map, one cell per glance cell."""
        return (OutputSpec(name="detection", kind="probability", channels=(self.config.target,), stride=STRIDE, halo=HALO),)

    @property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of `class`, where the model has classes."""
        return {"class": self.config.classes} if self.config.classes else {}

    def with_max_patches(self, count: int) -> Self:
        """The same model, weights shared, that asks for up to `count` patches; its digest differs.

        Raises:
            ModelError: `count` is not positive.
        """
        view = copy.copy(self)
        view.config = dataclasses.replace(self.config, max_patches=count)
        return view

    def drive(self, glance: Glance, cells: Level, grid: Level) -> Drive:
        """Ask once, for the `max_patches` best; then fuse and answer."""
        selection = self.select(glance, cells, grid)
        tokens = yield selection
        answers = self.answer(glance, tokens, cells)
        probability = torch.sigmoid(answers.detection)
        threshold = self.config.threshold
        return Output(
            maps={"detection": probability},
            values={} if answers.label is None else {"class": torch.softmax(answers.label, dim=1)},
            objects=[find_objects(p[0], offset, cells, threshold) for p, offset in zip(probability, answers.offset, strict=True)],
        )

    def forward(self, image: Tensor, *, chunk: int = 256) -> Output:
        """The whole model over images in memory: the twin of a run over a slide.

        Args:
            image: [B, C, H, W] stored values of any dtype, at the encoder's pixel size; all of it valid.
            chunk: patches encoded at once; changes rounding only.
        """
        grid, cells = self.frames(image)
        drive = self.drive(self.look(image), cells, grid)
        selection = next(drive)
        while True:
            try:
                selection = drive.send(self.read(image, selection, grid, chunk=chunk))
            except StopIteration as end:
                output: Output = end.value
                return output

    def frames(self, image: Tensor) -> tuple[Level, Level]:
        """The grids of an image [B, C, H, W] in memory: its own pixels, which are level 0, and the glance's cells."""
        height, width = image.shape[2:]
        step = self.config.glance_downsample * STRIDE
        return _level(height, width, 1.0), _level(-(-height // step), -(-width // step), float(step))

    def look(self, image: Tensor) -> Glance:
        """The glance of images [B, C, H, W] in memory: area means, beyond the border the fill, as the pipeline reads a slide."""
        spec = self.glance.spec
        small = coarsen(image, self.config.glance_downsample)
        below, beside = (-side % STRIDE + HALO for side in small.shape[2:])
        padded = functional.pad(small, (HALO, beside, HALO, below), value=spec.fill)
        maps = self.glance(spec.normalise(padded.permute(0, 2, 3, 1)))
        edge = HALO // STRIDE
        features, score = (maps[name][:, :, edge:-edge, edge:-edge] for name in ("features", "score"))
        return Glance(features=features, score=score[:, 0], valid=torch.ones_like(score[:, 0], dtype=torch.bool))

    def select(self, glance: Glance, cells: Level, grid: Level, *, sampling: Sampling | None = None) -> Selection:
        """The driver's choice of patches; `sampling` for a training step."""
        size, count = self.encoder.spec.size, self.config.max_patches
        selection: Selection = self.driver(glance, cells, grid, size=size, max_patches=count, sampling=sampling)
        return selection

    def read(self, image: Tensor, selection: Selection, grid: Level, *, chunk: int = 256) -> Tokens:
        """Cut the patches of a Selection out of images [B, C, H, W] and encode them; empty slots are zeros and cost nothing."""
        patches = crop(image, selection, grid, self.encoder.spec)[selection.valid]
        vectors = [self.encode(part) for part in torch.split(patches, chunk)] if len(patches) else []
        x = selection.side.new_zeros(*selection.valid.shape, self.config.width)
        if vectors:
            x = x.masked_scatter(selection.valid[..., None], torch.cat(vectors))
        return Tokens(x=x, selection=selection)

    def encode(self, patches: Tensor) -> Tensor:
        """[n, C, p, p] stored values to [n, D]."""
        spec = self.encoder.spec
        vector: Tensor = self.encoder(spec.normalise(patches.permute(0, 2, 3, 1)))["features"]
        return vector

    def answer(self, glance: Glance, tokens: Tokens, cells: Level, *, frame: Frame | None = None) -> Answers:
        """Fuse and ask the heads; `frame` is the image's own borders unless given."""
        extent = (cells.height * cells.downsample_y, cells.width * cells.downsample_x)
        fused, queries = self.fuse(glance, tokens, cells, frame or Frame(origin=(0.0, 0.0), extent=extent))
        detection, offset = self.centre(fused)
        return Answers(detection=detection, offset=offset, label=self.classify(queries[:, 0]) if self.classify is not None else None)


def patchdrivenet(config: PatchDriveNetConfig) -> PatchDrive:
    """System A, untrained: its saliency is the Laplacian-of-Gaussian prior, its other weights are drawn from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PatchDrive(
            config,
            glance=GlanceNet(config.glance_spec, config.width),
            driver=SaliencyDriver(config.width),
            encoder=SmallCNN(config.encoder_spec, config.width),
        )


def _level(height: int, width: int, downsample: float) -> Level:
    if height < 1 or width < 1:
        raise ModelError(f"an image holds at least one pixel, got {height} x {width}")
    return Level(
        index=0, height=height, width=width, downsample_y=downsample, downsample_x=downsample, tile_height=height, tile_width=width
    )
