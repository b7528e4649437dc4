"""Images too large to hold, trained on as they are run: seen small, and read where the driver asks for patches. Memory is that of the
glance and of some patches, however large the image is at the model's pixel size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from patchdrive.models.model import PatchDrive, converse
from patchdrive.models.search import Sampling
from patchdrive.models.step import LossWeights, Wanted, gathered_losses
from patchdrive.models.types import Output, Selection, Tokens
from patchdrive.pipeline.plan import target_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.train import TrainSettings
from patchdrive.pipeline.train_batches import Palette, wanted_of
from patchdrive.pipeline.train_examples import Example
from patchdrive.pipeline.train_pieces import Change, Piece, turned, unturned_places
from patchdrive.pipeline.train_read import Shelf, read_window
from patchdrive.readers import Level, Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slide:
    """One such image, changed as a step wants it."""

    small: Tensor
    """[1, C, h, w] float32 stored values, at the glance's pixel size."""
    height: int
    """Rows, pixels of the model."""
    width: int
    """Columns."""
    wanted: Wanted
    """What is known of it, a batch of one."""
    read: Callable[[NDArray[np.float64], float], NDArray[np.float32]]
    """Stored values (n, size, size, C) of patches around (n, 2) places, pixels of the model, at so many times its pixel size."""

    def frames(self, model: PatchDrive) -> tuple[Level, Level]:
        """As `PatchDrive.frames`."""
        return model.frames(torch.empty(1, 1, self.height, self.width, device="meta"))

    def tokens(self, model: PatchDrive, selection: Selection, *, constant_memory: bool = False) -> Tokens:
        """As `PatchDrive.read`; the pixels of all patches of the Selection are held."""
        size, valid = model.encoder.spec.size, selection.valid[0]
        sides = selection.side[0][valid].cpu().numpy()
        zoom = float(np.round(sides[0] / size, 3)) if len(sides) else 1.0
        places = selection.yx[0][valid].detach().cpu().double().numpy()
        patches = torch.from_numpy(self.read(places, zoom)).permute(0, 3, 1, 2)
        row = valid.cumsum(dim=0) - 1

        def cut(slots: Tensor) -> Tensor:
            return patches[row[slots[:, 1]].cpu()].to(valid.device)

        return model.tokens(selection, cut, constant_memory=constant_memory)

    def answered(self, model: PatchDrive) -> Output:
        """As `PatchDrive.forward`."""
        grid, cells = self.frames(model)
        device = next(model.parameters()).device
        return converse(model.drive(model.look_small(self.small.to(device)), cells, grid), lambda one: self.tokens(model, one))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideLoader:
    """Makes slides of pieces that are whole images."""

    examples: Sequence[Example]
    """The images."""
    palette: Palette
    """Of the pixels that the model eats."""
    glance_downsample: int
    """Pixels of the model per pixel of its glance."""
    shelf: Shelf
    """Where images are open."""
    pool: ThreadPoolExecutor
    """Threads that read patches."""

    def load(self, pieces: Sequence[Piece]) -> tuple[Slide, ...]:
        """The slides of those pieces.

        Raises:
            ReadError: one cannot be decoded.
        """
        return tuple(self._slide(piece) for piece in pieces)

    def _slide(self, piece: Piece) -> Slide:
        example, change, step = self.examples[piece.example], piece.change, self.glance_downsample
        with self.shelf.borrow(example.path) as image:
            grid = target_grid(image.levels[0], example.grid.downsample_y * step, example.grid.downsample_x * step)
            frame = read_frame(image.levels, grid, grid.width, "area")
            stored, valid = read_window(image, frame, grid.window, example.channels, self.palette.spec.fill)
        small = turned(self.palette.recolored(stored.astype(np.float32), valid, change), change.turn)
        # Turned, the glance's pixels still begin at the border: what they lack of the image is fill.
        whole = example.grid.window if not change.turn else Window(y=0, x=0, height=grid.height * step, width=grid.width * step)
        size = (whole.width, whole.height) if change.turn % 2 else (whole.height, whole.width)
        return Slide(
            small=torch.from_numpy(small).permute(2, 0, 1)[None],
            height=size[0],
            width=size[1],
            wanted=wanted_of(example, change, whole),
            read=lambda places, zoom: self._patches(example, change, unturned_places(places, whole.height, whole.width, change.turn), zoom),
        )

    def _patches(self, example: Example, change: Change, places: NDArray[np.float64], zoom: float) -> NDArray[np.float32]:
        spec = self.palette.spec
        with self.shelf.borrow(example.path) as image:
            grid = example.grid
            if zoom != 1.0:
                grid = target_grid(image.levels[0], grid.downsample_y * zoom, grid.downsample_x * zoom)
            frame = read_frame(image.levels, grid, spec.size, spec.resampling)

            def one(corner: list[int]) -> NDArray[Any]:
                window = Window(y=corner[0], x=corner[1], height=spec.size, width=spec.size)
                stored, valid = read_window(image, frame, window, example.channels, spec.fill)
                return turned(self.palette.recolored(stored.astype(np.float32), valid, change), change.turn)

            corners = np.rint(places / zoom - spec.size / 2).astype(np.int64)
            patches = list(self.pool.map(one, corners.tolist()))
        return np.stack(patches) if patches else np.zeros((0, spec.size, spec.size, spec.channels), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideLearner:
    """As `DriveLearner`, of slides."""

    model: PatchDrive
    """On the device it shall train on."""
    settings: TrainSettings
    """Of the training."""

    @property
    def module(self) -> nn.Module:
        """See `Learner.module`."""
        return self.model

    @property
    def weights(self) -> Mapping[str, float]:
        """See `Learner.weights`."""
        return {name: getattr(self.settings.losses, name) for name in LossWeights.__slots__}

    def terms(self, batch: Sequence[Slide], generator: Generator) -> Mapping[str, Tensor]:
        """See `Learner.terms`; means over the slides."""
        each = [self._terms(slide, Sampling(generator=generator)) for slide in batch]
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    def _terms(self, slide: Slide, sampling: Sampling) -> Mapping[str, Tensor]:
        student, device, constant = (
            self.model.with_max_patches(self.settings.max_patches),
            sampling.generator.device,
            self.settings.constant_memory,
        )
        grid, cells = slide.frames(student)
        glance = student.look_small(slide.small.to(device))
        asking = student.driver.ask(student.search(glance, cells, grid, sampling=sampling))
        gathered = converse(asking, lambda one: slide.tokens(student, one, constant_memory=constant))
        return gathered_losses(student, glance, gathered, cells, wanted=slide.wanted.to(device), sampling=sampling)
