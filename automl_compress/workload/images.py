"""Labelled images in memory or on disk, and how they become network input."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from automl_compress.errors import WorkloadError
from automl_compress.settings import shown

Pixels: TypeAlias = NDArray[np.uint8 | np.float32]
"""Images as (n, c, h, w): uint8 in 0..255, or float32 that is already normalised."""

Labels: TypeAlias = NDArray[np.int64 | np.float32]
"""Class indices (n,) int64, each in 0..classes-1; or boxes (n, m, 6) float32, see `boxes`."""

BOX_VALUES: Final = 6
"""Numbers of a box: left, top, right, bottom, class, and 1 for a crowd."""

_HASH_BYTES: Final = 1 << 24
_PIXELS: Final = 1 << 24
"""Values that statistics are taken of at a time."""


def content_hash(images: Pixels, labels: Labels) -> str:
    """SHA-256 (hex) of pixel type, shape, pixels and labels.

    Args:
        images: (n, c, h, w) uint8 or float32; a memory map is read in pieces.
        labels: (n,) int64 or (n, m, 6) float32.
    """
    header = {"dtype": images.dtype.name, "shape": list(images.shape)}
    digest = hashlib.sha256(json.dumps(header).encode())
    rows = max(1, _HASH_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        digest.update(np.ascontiguousarray(images[start : start + rows]).data)
    digest.update(label_bytes(labels))
    return digest.hexdigest()


def label_bytes(labels: Labels) -> bytes:
    """What labels hold, the same on every machine."""
    return labels.astype("<i8" if labels.ndim == 1 else "<f4").tobytes()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images whose content has a name.

    Attributes:
        images: (n, c, h, w) uint8 in 0..255, or float32 that is already normalised; may be a
            read-only memory map.
        labels: (n,) int64 class indices, or (n, m, 6) float32 boxes, see `boxes`.
        content_hash: SHA-256 (hex) of the content. A subset's hash is made from its parent's
            hash and the indices, so pixels are hashed once.

    Raises:
        WorkloadError: the arrays have other shapes or types, or hold no image.
    """

    images: Pixels
    labels: Labels
    content_hash: str

    def __repr__(self) -> str:
        return f"ImageSet({'x'.join(map(str, self.images.shape))}, {self.content_hash[:8]})"

    def __post_init__(self) -> None:
        shape, kind = self.images.shape, self.images.dtype.name
        if len(shape) != 4 or 0 in shape or kind not in ("uint8", "float32"):
            raise WorkloadError(
                f"images must be (n, c, h, w) of uint8 or float32 without an empty axis, but are "
                f"{kind} of shape {tuple(shape)}; correct the data set"
            )
        labels = self.labels
        boxes = labels.ndim == 3 and labels.shape[2] == BOX_VALUES and labels.dtype == np.float32
        classes = labels.ndim == 1 and labels.dtype == np.int64
        if len(labels) != shape[0] or not (boxes or classes):
            raise WorkloadError(
                f"labels must be ({shape[0]},) of int64, but are {labels.dtype.name} of "
                f"shape {tuple(labels.shape)}; give one label an image"
            )
        if classes and labels.min() < 0:
            raise WorkloadError(
                f"labels must be at least 0, but reach down to {labels.min()}; number the classes "
                "from 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, images: Pixels | torch.Tensor, labels: ArrayLike | torch.Tensor) -> ImageSet:
        """Wrap arrays or tensors and hash their content.

        Args:
            images: (n, c, h, w) uint8 in 0..255, or float32 that is already normalised.
            labels: (n,) whole numbers from 0, or (n, m, 6) boxes.

        Raises:
            WorkloadError: they have other shapes, types or values, or hold no image.
        """
        pixels, given = _array(images), _array(labels)
        if not (pixels.ndim and given.ndim):
            raise WorkloadError(
                f"images and labels must be arrays, but are {shown(images)} and {shown(labels)}; "
                "give pixels (n, c, h, w) and labels (n,)"
            )
        boxes = given.ndim == 3
        if not boxes and given.size and not np.issubdtype(given.dtype, np.integer):
            raise WorkloadError(
                f"labels must be whole numbers, the classes from 0, but are {given.dtype.name}; "
                "convert them"
            )
        found: Labels = np.asarray(given, np.float32 if boxes else np.int64)
        return cls(pixels, found, content_hash(pixels, found))

    @property
    def boxed(self) -> bool:
        """Whether the labels are boxes."""
        return self.labels.ndim == 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: ArrayLike) -> ImageSet:
        """Copy of the images at `indices`, in that order, in memory.

        Args:
            indices: (m,) integers, each in 0..n-1, m >= 1.

        Raises:
            WorkloadError: an index lies outside.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise WorkloadError(
                f"indices must be in 0..{len(self) - 1}, but reach from {rows.min()} to "
                f"{rows.max()}; ask for images the set holds"
            )
        digest = hashlib.sha256(self.content_hash.encode() + rows.astype("<i8").tobytes())
        images = np.ascontiguousarray(np.asarray(self.images)[rows])
        return ImageSet(images, self.labels[rows], digest.hexdigest())

    def draw(self, count: int, seed: int) -> ImageSet:
        """Copy of `count` different images: the first ones of a seeded permutation.

        A larger draw with the same seed therefore contains the smaller one.

        Raises:
            WorkloadError: `count` is below 1 or above the number of images.
        """
        if not 1 <= count <= len(self):
            raise WorkloadError(
                f"a draw must be of 1..{len(self)} images, but {count} were asked for; "
                f"ask for fewer images or give a larger data set"
            )
        return self.take(np.random.default_rng(seed).permutation(len(self))[:count])

    def tensor(
        self, normalization: Normalization, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Images `start` to `stop` (excluded) as network input, (m, c, h, w) float32."""
        return normalization.apply(self.images[start:stop])


def _array(values: ArrayLike | torch.Tensor) -> NDArray[Any]:
    """What arrays, tensors and lists hold."""
    given = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asanyarray(given)  # a memory map stays one


@dataclass(frozen=True)
class Normalization:
    """What turns 8-bit pixels into network input: `(x / 255 - mean) / std` a channel.

    Attributes:
        mean: one number a channel, on the 0..1 scale.
        std: one number a channel, above 0, on the 0..1 scale.

    Raises:
        WorkloadError: the lengths differ, a number is not finite, or a std is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise WorkloadError(
                    f"{name} must hold one number a channel, but is {shown(value)}; give a tuple"
                )
        if not self.mean or len(self.mean) != len(self.std):
            raise WorkloadError(
                f"mean and std must hold one number a channel each, but hold {len(self.mean)} "
                f"and {len(self.std)}; make them equally long"
            )
        _check_numbers("mean", self.mean)
        _check_numbers("std", self.std)
        if min(self.std) <= 0:
            raise WorkloadError(
                f"std must be above 0 in every channel, but is {_listed(self.std)}; "
                f"give the standard deviation of the training images on the 0..1 scale"
            )

    @classmethod
    def unit(cls, channels: int) -> Normalization:
        """Scaling of 0..255 to 0..1 and nothing else."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def apply(self, images: Pixels) -> torch.Tensor:
        """Network input from images.

        Args:
            images: (n, c, h, w); float32 images pass through as they are.

        Returns:
            (n, c, h, w) float32, a copy on the CPU.

        Raises:
            WorkloadError: 8-bit images have another number of channels.
        """
        values = torch.from_numpy(np.array(images, dtype=np.float32, order="C", subok=False))
        if images.dtype != np.uint8:
            return values
        if values.shape[1] != len(self.mean):
            raise WorkloadError(
                f"mean and std must hold one number a channel, but hold {len(self.mean)} for "
                f"{values.shape[1]}; correct them"
            )
        mean = torch.tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(1, -1, 1, 1)
        return values.div_(255).sub_(mean).div_(std)


def _check_numbers(name: str, values: Sequence[float]) -> None:
    if not all(isinstance(value, Real) and math.isfinite(value) for value in values):
        raise WorkloadError(
            f"{name} must hold finite numbers, but is {shown(list(values))}; correct it"
        )


def _listed(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel on the 0..1 scale, to four digits.

    Args:
        images: 8-bit images, a memory map is read in pieces.
    """
    channels = images.shape[0]
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    rows = max(1, _PIXELS // images.images[0].size)
    for start in range(0, len(images), rows):
        values = np.asarray(images.images[start : start + rows], dtype=np.float64) / 255
        total += values.sum((0, 2, 3))
        squares += np.square(values).sum((0, 2, 3))
        count += values[:, 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return tuple(map(float, mean.round(4))), tuple(map(float, std.round(4)))
