"""OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3, sharded too), through zarr-python."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from zarr.abc.codec import BytesBytesCodec
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import BytesCodec

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.identity import sampled_identity
from patchdrive.readers.ngff import Multiscale, downsample_of, inner_paths, kind_of_collection, parse_multiscale
from patchdrive.readers.pixels import check_out, mask_of

_OPEN_ERRORS = (OSError, ValueError, KeyError, TypeError)
"""What zarr raises on metadata that is missing or makes no sense (its own errors are ValueErrors)."""

_DECODE_ERRORS = (OSError, ValueError, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
"""What Zarr's codecs raise on damaged bytes: they share no base class."""

_RESULT = ("y", "x", "c")
"""Axes of what `read` gives."""

_SAMPLED = 256
"""Stored objects per level that the identity looks at."""

_NAMED = 4
"""Inner images that an error names."""


class MultiscaleImage:
    """The first multiscale image of an OME-Zarr group, one plane of it, as an Image.

    Level 0 is the first dataset listed. Channels are the file's channel axis; every other axis but y and x must have length 1, or an
    index in `plane`. Consolidated metadata is not used: it goes stale silently. A chunk that was never written reads as the array's
    fill value, by Zarr's rule.
    """

    reader = "multiscale"
    cache_bytes = 0
    color_profile: bytes | None = None

    def __init__(self, path: str | Path, *, plane: Mapping[str, int] | None = None) -> None:
        """Open the group at `path`: an image, one field of a plate (`plate.zarr/A/1/0`), a label image (`image.zarr/labels/nuclei`).

        Args:
            path: folder of the group.
            plane: index along each axis longer than 1 that is not y, x or channel, such as {"z": 3}.

        Raises:
            FormatError: no image, several images, a version other than 0.4 and 0.5, or metadata that contradicts the arrays.
        """
        self.source = str(path)
        self._plane = dict(plane or {})
        group = _open_group(Path(path))
        self._multiscale = parse_multiscale(_attributes_of_image(Path(path), group), self.source)
        self._arrays = tuple(_open_array(group, name, self._multiscale, self.source) for name in self._multiscale.paths)
        _check_plane(self._arrays, self._multiscale, self._plane, self.source)
        self.dtype = _dtype_of(self._arrays, self._multiscale, self.source)
        self.channels = self._multiscale.channel_names(_count_channels(self._arrays, self._multiscale, self.source))
        self.levels = _levels(self._arrays, self._multiscale, self.source)
        self.codec = _codec_of(self._arrays[0])
        self.mpp = self._multiscale.mpp
        self.transform: Affine | None = None
        self.crs: CRS | None = None
        self.nodata: float | None = None
        self.associated: Mapping[str, NDArray[np.uint8]] = {}
        self.properties: Mapping[str, str] = _properties(self._multiscale, self._arrays[0], self._plane)

    @cached_property
    def identity(self) -> str:
        """Of the image's metadata and a spread of at most 256 stored chunks or shards of each level: cheap for any size of store."""
        said = [self._multiscale.version, self._multiscale.paths, self._multiscale.scales, sorted(self._plane.items())]
        index = [json.dumps(said).encode()]
        index += [(Path(self.source) / name).read_bytes() for name in map(_metadata_name, self._arrays)]
        names = (f"{array.path}/{key}" for array in self._arrays for key in _some_keys(array, _SAMPLED))
        return sampled_identity(Path(self.source), names, index=b"\n".join(index))

    @property
    def has_mask(self) -> bool:
        """True for floats, which may be NaN: OME-Zarr declares no nodata."""
        return self.dtype.kind == "f"

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Image.read`. Chunks are decoded straight into the result, whatever order of axes they are stored in."""
        self.levels[level].check(window, self.source)
        count = len(self.channels)
        chosen = None if channels is None else [range(count)[index] for index in channels]
        shape = (window.height, window.width, count if chosen is None else len(chosen))
        if out is None:
            out = np.empty(shape, self.dtype)
        check_out(out, shape, self.dtype)
        if out.size:
            self._fill(out, window, level, chosen)
        return out

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`."""
        if not self.has_mask:
            self.levels[level].check(window, self.source)
            return np.ones((window.height, window.width), dtype=np.bool_)
        return mask_of(self.read(window, level=level), self.nodata)

    def close(self) -> None:
        """Nothing to release: zarr opens a chunk's file only while it reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As its source: it reopens where it is unpickled."""
        return _reopen, (self.source, self._plane)

    def _fill(self, out: NDArray[Any], window: Window, level: int, channels: list[int] | None) -> None:
        """Read into `out`, whose transposed view has the axes in stored order."""
        array = self._arrays[level]
        taken: dict[str, Any] = {
            **{axis.name: self._plane.get(axis.name, 0) for axis in self._multiscale.axes},
            "y": slice(window.y, window.y_end),
            "x": slice(window.x, window.x_end),
        }
        if self._multiscale.axis("c") is not None:
            taken["c"] = slice(None) if channels is None else channels
        selection = tuple(taken[axis.name] for axis in self._multiscale.axes)
        kept = [_RESULT.index(axis.name) for axis in self._multiscale.axes if axis.name in _RESULT]
        view = out.transpose(kept) if len(kept) == 3 else out[:, :, 0].transpose(kept)
        select = array.get_basic_selection if channels is None else array.get_orthogonal_selection
        try:
            self._check_stored(array, selection)
            select(selection, out=NDBuffer.from_numpy_array(view))
        except _DECODE_ERRORS as error:
            raise ReadError(
                f"{self.source}: level {level} ({array.path}), rows {window.y}..{window.y_end}, columns {window.x}..{window.x_end}: "
                f"a chunk cannot be read ({type(error).__name__}: {error}); copy or write the store again"
            ) from error
        if len(kept) == 2:
            out[:, :, 1:] = out[:, :, :1]

    def _check_stored(self, array: zarr.Array[Any], selection: tuple[Any, ...]) -> None:
        """Refuse two losses that zarr would fill in silently: a level that has gone, and a shard cut to nothing."""
        root = Path(self.source)
        if not (root / _metadata_name(array)).is_file():
            raise FileNotFoundError(f"{_metadata_name(array)} is no longer there")
        if array.shards is None:
            return
        for key in _keys_of(array, selection):
            shard = root / array.path / key
            if shard.is_file() and shard.stat().st_size == 0:
                raise ValueError(f"shard {key} is empty")


def _reopen(source: str, plane: Mapping[str, int]) -> MultiscaleImage:
    return MultiscaleImage(source, plane=plane)


def _open_group(path: Path) -> zarr.Group:
    """The group itself, in the format whose metadata is there.

    Raises:
        FormatError: no Zarr group is there.
    """
    try:
        return zarr.open_group(path, mode="r", zarr_format=3 if (path / "zarr.json").is_file() else 2, use_consolidated=False)
    except _OPEN_ERRORS as error:
        raise FormatError(f"{path}: not a Zarr group ({error}); give the folder whose .zattrs or zarr.json lists multiscales") from error


def _attributes_of_image(path: Path, group: zarr.Group) -> Mapping[str, Any]:
    """The group's attributes, where they describe one image.

    Raises:
        FormatError: the group is a plate, a well, a bioformats2raw series or a list of labels; names the images inside.
    """
    attributes = group.attrs.asdict()
    kind = kind_of_collection(attributes)
    if kind is None:
        return attributes
    found = [str(path / inner) for inner in itertools.islice(_inner_images(group), _NAMED + 1)]
    listed = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    raise FormatError(f"{path}: a {kind} holds images and is none itself; " + (f"open one of {listed}" if found else "and none is there"))


def _inner_images(group: zarr.Group) -> Iterator[str]:
    """Paths of the images that a collection lists, relative to the store, those that are there."""
    for name in inner_paths(group.attrs.asdict()):
        child = group.get(name)
        if not isinstance(child, zarr.Group) or child.path == group.path:
            continue
        if kind_of_collection(child.attrs.asdict()) is None:
            yield child.path
        else:
            yield from _inner_images(child)


def _open_array(group: zarr.Group, name: str, multiscale: Multiscale, source: str) -> zarr.Array[Any]:
    """One level.

    Raises:
        FormatError: it is missing, unreadable, or has other axes than the image says.
    """
    try:
        array = group[name]
    except _OPEN_ERRORS as error:
        raise FormatError(f"{source}: level {name!r} cannot be opened ({error}); the store is incomplete or of a newer Zarr") from error
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{source}: level {name!r} is a group, it must be an array")
    axes = [axis.name for axis in multiscale.axes]
    if array.ndim != len(axes) or 0 in array.shape:
        raise FormatError(f"{source}: level {name!r} has shape {array.shape}, the image has axes {', '.join(axes)}, none of them empty")
    return array


def _check_plane(arrays: Sequence[zarr.Array[Any]], multiscale: Multiscale, plane: Mapping[str, int], source: str) -> None:
    """Refuse more than one plane.

    Raises:
        FormatError: an axis that is not y, x or channel is longer than 1 and `plane` does not choose from it, or chooses what is not there.
    """
    lengths = {
        axis.name: [array.shape[place] for array in arrays] for place, axis in enumerate(multiscale.axes) if axis.name not in _RESULT
    }
    if unknown := set(plane) - set(lengths):
        raise FormatError(f"{source}: plane chooses along {', '.join(sorted(unknown))}; it can along {', '.join(lengths) or 'no axis'}")
    stacked = {name: sizes for name, sizes in lengths.items() if max(sizes) > 1}
    for name, sizes in stacked.items():
        if len(set(sizes)) > 1:
            raise FormatError(
                f"{source}: an image is one plane; {name} has lengths {sizes} in its levels, so none runs through all; write one out"
            )
    if left := [f"{name} of length {sizes[0]}" for name, sizes in stacked.items() if name not in plane]:
        raise FormatError(
            f"{source}: an image is one plane, this one is a stack along {' and '.join(left)}; "
            f"choose with MultiscaleImage(path, plane={{{', '.join(f'{name!r}: 0' for name in stacked)}}}), or write one out"
        )
    for name, index in plane.items():
        if not 0 <= index < lengths[name][0]:
            raise FormatError(f"{source}: plane {name}={index} is not there, it has 0..{lengths[name][0] - 1}")


def _dtype_of(arrays: Sequence[zarr.Array[Any]], multiscale: Multiscale, source: str) -> np.dtype[Any]:
    """The dtype of every level, in native byte order.

    Raises:
        FormatError: levels differ, so that what is read would change with the level; or pixels are no numbers.
    """
    dtypes = [np.dtype(array.dtype).newbyteorder("=") for array in arrays]
    if len(set(dtypes)) > 1:
        found = ", ".join(f"{name}: {dtype}" for name, dtype in zip(multiscale.paths, dtypes, strict=True))
        raise FormatError(f"{source}: every level must have one dtype, got {found}; write the pyramid again")
    if dtypes[0].kind not in "biuf":
        raise FormatError(f"{source}: pixels must be integers, floats or booleans, got {dtypes[0]}")
    return dtypes[0]


def _count_channels(arrays: Sequence[zarr.Array[Any]], multiscale: Multiscale, source: str) -> int:
    """Length of the channel axis, 1 where there is none.

    Raises:
        FormatError: levels differ in it.
    """
    place = multiscale.axis("c")
    counts = {1 if place is None else array.shape[place] for array in arrays}
    if len(counts) > 1:
        raise FormatError(f"{source}: every level must have the same channels, got {sorted(counts)} of them; write the pyramid again")
    return counts.pop()


def _levels(arrays: Sequence[zarr.Array[Any]], multiscale: Multiscale, source: str) -> tuple[Level, ...]:
    """Shapes and chunks from the arrays, downsamples from scales where sizes agree with them (see `downsample_of`).

    Raises:
        FormatError: a level is finer than the one before it.
    """
    y, x = multiscale.axis("y"), multiscale.axis("x")
    assert y is not None
    assert x is not None
    levels = tuple(
        Level(
            index=index,
            height=array.shape[y],
            width=array.shape[x],
            downsample_y=downsample_of(multiscale.scales[0][y], scale[y], array.shape[y], arrays[0].shape[y]),
            downsample_x=downsample_of(multiscale.scales[0][x], scale[x], array.shape[x], arrays[0].shape[x]),
            tile_height=min(array.chunks[y], array.shape[y]),
            tile_width=min(array.chunks[x], array.shape[x]),
        )
        for index, (array, scale) in enumerate(zip(arrays, multiscale.scales, strict=True))
    )
    for finer, coarser in itertools.pairwise(levels):
        if coarser.downsample_y < finer.downsample_y or coarser.downsample_x < finer.downsample_x:
            raise FormatError(
                f"{source}: datasets must go from the finest level to the coarsest, but {multiscale.paths[coarser.index]!r} of "
                f"{coarser.height} x {coarser.width} follows {multiscale.paths[finer.index]!r} of {finer.height} x {finer.width}"
            )
    return levels


def _codec_of(array: zarr.Array[Any]) -> str:
    """Names of what compresses a chunk, blosc with its inner codec: blosc-lz4, zstd, none."""
    names = []
    if array.serializer is not None and not isinstance(array.serializer, BytesCodec):
        names.append(str(array.serializer.to_dict()["name"]))  # an image codec takes the place of plain bytes
    for codec in array.compressors:
        if isinstance(codec, BytesBytesCodec):
            said = codec.to_dict()
            names.append(_codec_name(said["name"], said.get("configuration")))
        else:
            config = codec.get_config()
            names.append(_codec_name(config["id"], config))
    return "+".join(names) or "none"


def _codec_name(name: object, configuration: object) -> str:
    return f"{name}-{configuration['cname']}" if isinstance(configuration, Mapping) and "cname" in configuration else str(name)


def _properties(multiscale: Multiscale, array: zarr.Array[Any], plane: Mapping[str, int]) -> dict[str, str]:
    """What the metadata says, in its own words, and which plane was taken."""
    said = {
        "ome.version": multiscale.version,
        "ome.name": multiscale.name,
        "ome.axes": ",".join(axis.name for axis in multiscale.axes),
        "ome.unit": ",".join(axis.unit or "" for axis in multiscale.axes),
        "ome.scale": ",".join(map(repr, multiscale.scales[0])),
        "zarr.format": str(array.metadata.zarr_format),
        "plane": ",".join(f"{name}={index}" for name, index in sorted(plane.items())),
    }
    return {key: value for key, value in said.items() if value.strip(",")}


def _metadata_name(array: zarr.Array[Any]) -> str:
    return f"{array.path}/{'zarr.json' if array.metadata.zarr_format == 3 else '.zarray'}"


def _stored_shape(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Elements of one stored file: a shard where there are shards, else a chunk."""
    return array.shards or array.chunks


def _some_keys(array: zarr.Array[Any], most: int) -> Iterator[str]:
    """At most `most` of the array's keys, spread evenly over its grid, the first and the last among them."""
    grid = [-(-size // stored) for size, stored in zip(array.shape, _stored_shape(array), strict=True)]
    last = math.prod(grid) - 1
    for place in sorted({index * last // (most - 1) for index in range(most)}):
        yield array.metadata.encode_chunk_key(tuple(int(index) for index in np.unravel_index(place, grid)))


def _keys_of(array: zarr.Array[Any], selection: tuple[Any, ...]) -> Iterator[str]:
    """Keys of the stored files that a selection (one integer, slice or list per axis) touches."""
    touched = [
        sorted({index // stored for index in _indices(taken, size)})
        for taken, size, stored in zip(selection, array.shape, _stored_shape(array), strict=True)
    ]
    return (array.metadata.encode_chunk_key(index) for index in itertools.product(*touched))


def _indices(taken: int | slice | list[int], size: int) -> Sequence[int]:
    if isinstance(taken, slice):
        return range(size)[taken]
    return taken if isinstance(taken, list) else [taken]
