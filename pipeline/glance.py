"""Glance: look at the image small, once, and decide where it is worth reading and at what pixel size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import ImageTraits, ModelSpec
from patchdrive.pipeline.budget import host_limit, show_bytes
from patchdrive.pipeline.coarse import coarse_look, look_bytes
from patchdrive.pipeline.coords import plan_of, read_coords
from patchdrive.pipeline.metadata import Frame, frame_of
from patchdrive.pipeline.plan import Layout, Plan, Saliency, plan_grid, plan_topk, target_grid
from patchdrive.pipeline.regions import read_regions
from patchdrive.pipeline.saliency import load_scorer, score_look
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers import Image, Level
from patchdrive.readers.errors import BudgetError, ModelError, ResolutionError, SettingsError

MATCHES = 0.01
"""A level whose pixel size is within 1 % of the wanted one is read as it is; the plan records the level's own size."""
_THUMBNAIL = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """An image, seen small."""

    image: Image
    """What was looked at."""
    mpp: tuple[float, float] | None
    """Micrometres per level-0 pixel, as the image or the user says."""
    saliency: Saliency
    """Where it is worth looking closely."""
    thumbnail: NDArray[np.uint8]
    """(height, width, 3), at most 1024 a side, for people."""
    thumbnail_cell: int
    """Coarse pixels per thumbnail pixel."""
    torn: int = 0
    """Tiles of the level looked at that could not be decoded: what they hold is planned unseen."""
    reason: str = ""
    """Why, of the first."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return self.saliency.map.nbytes + self.saliency.mask.nbytes + self.thumbnail.nbytes

    def frame(self, grid: Level) -> Frame:
        """The frame of a map that lies on `grid`."""
        return frame_of(grid, self.mpp, self.image.transform, self.image.crs)


def kind_of(image: Image) -> Literal["slide", "scene"]:
    """A scene has a place on a map; everything else is a slide."""
    return "scene" if image.crs is not None or image.transform is not None else "slide"


def traits_of(image: Image) -> ImageTraits:
    """What a model is told of an image; alpha is validity, not a channel."""
    channels = tuple(name for name in image.channels if name != "alpha")
    return ImageTraits(channels=channels or image.channels, dtype=image.dtype.name, kind=kind_of(image))


def mpp_of(image: Image, settings: RunSettings) -> tuple[float, float] | None:
    """The image's micrometres per pixel, or what the user says they are."""
    return image.mpp if settings.mpp_override is None else (settings.mpp_override, settings.mpp_override)


def saliency_of(image: Image, settings: RunSettings) -> str:
    """The saliency asked for, or the one that fits the image."""
    placed = kind_of(image) == "scene" or {"gcps", "rpcs"} & image.properties.keys()  # control points make no frame, but no slide either
    return settings.saliency or ("valid" if placed else "tissue")


def check(image: Image, spec: ModelSpec, settings: RunSettings, *, drives: bool) -> None:
    """Refuse what can be refused before a pixel is read or a file written.

    Raises:
        PatchdriveError: image, model and settings do not fit together; says why, and the way out.
    """
    if settings.max_patches is not None and settings.select == "grid" and not drives:
        raise SettingsError(f"--max-patches {settings.max_patches} takes the best patches, so it needs --select topk")
    if settings.select == "topk" and drives:
        raise SettingsError(f"{spec.name} chooses its patches itself; leave --select out, --max-patches says how many")
    if spec.vectors and (settings.blend is not None or settings.all_classes):
        raise SettingsError(f"{spec.name} gives a vector per patch and no map; leave --blend and --all-classes out")
    if settings.coords is not None and (drives or not spec.vectors):
        raise SettingsError(
            f"{spec.name} {'chooses its patches itself' if drives else 'gives maps'}; --coords is for models that give vectors"
        )
    load_scorer(saliency_of(image, settings))
    pick_channels(image, spec)
    if np.isnan(spec.fill) and image.dtype.kind in "iub":
        raise ModelError(
            f"{spec.name} fills what is not there with NaN, which {image.dtype} pixels cannot hold; give its spec another fill"
        )
    if settings.regions is not None:
        if drives:
            raise SettingsError(f"{spec.name} chooses its patches itself; leave --regions out")
        base = image.levels[0]
        small = max(1.0, max(base.height, base.width) / _THUMBNAIL)
        read_regions(settings.regions, image.source).over(image, target_grid(base, small, small))
    grid, layout = patch_grid(image, spec, settings), layout_of(spec, settings)
    if settings.coords is not None:
        coords = read_coords(settings.coords, image.source)
        coords.require_slide(image.levels[0], image.source)
        plan_of(coords, grid, layout.side)


def glance(image: Image, settings: RunSettings) -> View:
    """Read a coarse level, score it, and keep a thumbnail.

    Raises:
        BudgetError: the memory cannot hold the look; says how much would.
        SettingsError: the saliency is unknown, or gives something that is no saliency.
        ReadError: the coarse level cannot be read.
    """
    name = saliency_of(image, settings)
    scorer = load_scorer(name)
    mpp = mpp_of(image, settings)
    memory, needed = settings.memory or host_limit() // 2, look_bytes(image, mpp=mpp, workers=settings.workers) + image.cache_bytes
    if needed > memory:
        raise BudgetError(
            f"a memory budget of {show_bytes(memory)} cannot hold the first look at {image.source}; "
            f"give --memory {-(-needed // 2**20)}MiB or more"
        )
    coarse = coarse_look(image, mpp=mpp, workers=settings.workers, patience=settings.patience)
    scores = score_look(coarse, scorer, name)
    if settings.regions is not None:
        scores = np.where(read_regions(settings.regions, image.source).over(image, coarse.level), scores, np.float32(0.0))
    cell = max(1, -(-max(coarse.level.height, coarse.level.width) // _THUMBNAIL))
    return View(
        image=image,
        mpp=mpp,
        saliency=Saliency(map=scores, mask=coarse.possible, level=coarse.level),
        thumbnail=thumbnail_of(coarse.pixels, coarse.mask, image.channels, cell),
        thumbnail_cell=cell,
        torn=coarse.torn,
        reason=coarse.reason,
    )


def thumbnail_of(pixels: NDArray[Any], mask: NDArray[np.bool_], channels: tuple[str, ...], cell: int) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 for people: red, green, blue where named, else the first channel as grey.

    Other dtypes than uint8 are stretched between the 2nd and 98th percentile of what is valid.
    """
    names = {name.lower(): index for index, name in enumerate(channels)}
    picked = [names[color] for color in ("red", "green", "blue")] if {"red", "green", "blue"} <= names.keys() else [0, 0, 0]
    rows, columns = (np.minimum(np.arange(-(-side // cell)) * cell + cell // 2, side - 1) for side in mask.shape)
    known = mask[np.ix_(rows, columns)]
    shown = np.full((*known.shape, 3), 255, np.uint8)
    for channel, index in enumerate(picked):
        values = pixels[:, :, index][np.ix_(rows, columns)]
        if pixels.dtype != np.uint8:
            values = values.astype(np.float32)
            seen = values[known & np.isfinite(values)]
            low, high = np.percentile(seen, (2, 98)).tolist() if seen.size else (0.0, 255.0)
            values = np.clip(np.nan_to_num((values - low) * (255.0 / max(high - low, 1e-6)), copy=False), 0, 255)
        np.copyto(shown[:, :, channel], values, where=known, casting="unsafe")
    return shown


def patch_grid(image: Image, spec: ModelSpec, settings: RunSettings) -> Level:
    """The target grid for a model: its pixel size, or the user's, as a downsample of level 0.

    Raises:
        ResolutionError: the pixel size cannot be known, or is finer than the image holds and upsampling was not asked for.
        SettingsError: mpp was given for a scene, or gsd for a slide.
    """
    wanted, size, option = _wanted_pixel_size(image, spec, settings)
    footprint = settings.patch_size or spec.size
    resized = 1.0 if spec.any_size else footprint / spec.size
    if wanted is None:
        if resized < 1 and not settings.upsample:
            raise ResolutionError(
                f"{spec.name} eats {spec.size} px and a patch of {footprint} px would be enlarged to that; "
                f"give --patch-size {spec.size} or more, or allow it with --upsample"
            )
        return target_grid(image.levels[0], resized, resized)
    assert size is not None
    downsample_y, downsample_x = wanted / size[0] * resized, wanted / size[1] * resized
    if downsample_y > image.levels[0].height and downsample_x > image.levels[0].width:
        raise ResolutionError(
            f"{image.source}: one pixel of {wanted * resized:.4g} would hold all of the image; ask for a finer --{option}"
        )
    for level in image.levels:
        if abs(downsample_y / level.downsample_y - 1) <= MATCHES and abs(downsample_x / level.downsample_x - 1) <= MATCHES:
            return target_grid(image.levels[0], level.downsample_y, level.downsample_x)
    if min(downsample_y, downsample_x) < 1 and not settings.upsample:
        found = max(size)
        raise ResolutionError(
            f"{image.source} has {found:.4g} {'µm' if option == 'mpp' else 'ground units'} per pixel at its finest level; "
            f"{wanted * resized:.4g} would invent detail. Ask for --{option} {found:.4g} or coarser, or allow it with --upsample."
        )
    return target_grid(image.levels[0], downsample_y, downsample_x)


def _wanted_pixel_size(image: Image, spec: ModelSpec, settings: RunSettings) -> tuple[float | None, tuple[float, float] | None, str]:
    """(wanted pixel size or None for level 0's, level 0's own, the option's name)."""
    if kind_of(image) == "scene":
        if settings.mpp is not None or settings.mpp_override is not None:
            raise SettingsError(f"{image.source} is a scene; say --gsd (units of its CRS per pixel) instead of --mpp or --mpp-override")
        if image.transform is None:
            return None, None, "gsd"
        a, b, _, d, e, _ = list(image.transform)[:6]
        size = (float(np.hypot(b, e)), float(np.hypot(a, d)))
        wanted = settings.gsd if settings.gsd is not None else spec.pixel_size if spec.unit == "ground" else None
        return wanted, size, "gsd"
    if settings.gsd is not None:
        raise SettingsError(f"{image.source} is a slide; say --mpp (µm per pixel) instead of --gsd")
    wanted = settings.mpp if settings.mpp is not None else spec.pixel_size if spec.unit == "um" else None
    mpp = mpp_of(image, settings)
    if mpp is None:
        if settings.mpp is not None:
            raise ResolutionError(
                f"{image.source} does not say how many µm a pixel is, so {settings.mpp:g} mpp cannot be known; "
                "tell it with --mpp-override, or leave --mpp out to read level-0 pixels as they are"
            )
        return None, None, "mpp"
    return wanted, mpp, "mpp"


def layout_of(spec: ModelSpec, settings: RunSettings) -> Layout:
    """Patch side, stride and halo in target pixels, from the model and the settings.

    Raises:
        SettingsError: patch size or overlap do not fit the model's strides and halo.
    """
    stride_of_maps = max(output.stride for output in spec.outputs)
    side = settings.patch_size if settings.patch_size is not None and spec.any_size else spec.size
    shrink = side / (settings.patch_size or side)
    blended = any(output.kind in {"probability", "classes", "boxes"} for output in spec.outputs)
    usual = 2 * spec.halo if spec.halo or not blended else side // 4 // stride_of_maps * stride_of_maps
    overlap = usual if settings.overlap is None else round(settings.overlap * shrink)
    if side % stride_of_maps or overlap % stride_of_maps:
        raise SettingsError(f"{spec.name}: patch size {side} and overlap {overlap} must be multiples of its map stride {stride_of_maps}")
    if not 2 * spec.halo <= overlap < side:
        raise SettingsError(f"{spec.name}: overlap {overlap} must be at least {2 * spec.halo} (twice its halo) and below {side}")
    return Layout(side=side, stride=side - overlap, halo=spec.halo)


def make_plan(view: View, spec: ModelSpec, settings: RunSettings) -> Plan:
    """The plan of a one-shot run: a grid over what is worth reading, the best patches of it, or those that somebody else chose."""
    grid, layout = patch_grid(view.image, spec, settings), layout_of(spec, settings)
    if settings.coords is not None:
        return plan_of(read_coords(settings.coords, view.image.source), grid, layout.side)
    if settings.select == "grid":
        return plan_grid(grid, view.saliency, layout)
    assert settings.max_patches is not None
    stride = max(output.stride for output in spec.outputs)
    return plan_topk(grid, view.saliency, layout, count=settings.max_patches, spacing=settings.spacing or layout.side, multiple=stride)


def pick_channels(image: Image, spec: ModelSpec) -> tuple[int, ...]:
    """Which image channels the model eats: all but alpha when the count fits, else red, green, blue by name.

    Raises:
        ModelError: neither fits.
    """
    visible = tuple(index for index, name in enumerate(image.channels) if name != "alpha") or (0,)
    if len(visible) == spec.channels:
        return visible
    names = {name.lower(): index for index, name in enumerate(image.channels)}
    if spec.channels == 3 and {"red", "green", "blue"} <= names.keys():
        return tuple(names[color] for color in ("red", "green", "blue"))
    raise ModelError(
        f"{spec.name} eats {spec.channels} channels, {image.source} has {len(visible)} ({', '.join(image.channels)}); "
        "choose a model made for them"
    )
