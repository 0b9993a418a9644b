"""Labelled examples, images above all, in memory or on disk, and how they become input."""

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
"""Examples as (n, ...): uint8 in 0..255 with the channels along axis 1, or float32 that is already
normalised. Images are (n, c, h, w)."""

Labels: TypeAlias = NDArray[np.int64 | np.float32]
"""Class indices (n,) int64, each in 0..classes-1; or boxes (n, m, 6) float32, see `boxes`."""

BOX_VALUES: Final = 6
"""Numbers of a box: left, top, right, bottom, class, and 1 for a crowd."""

MOST_AXES: Final = 4
"""Axes that an example may have beside that of the examples: a volume's (c, d, h, w)."""

_HASH_BYTES: Final = 1 << 24
_PIXELS: Final = 1 << 24
"""Values that statistics are taken of at a time."""


def content_hash(images: Pixels, labels: Labels) -> str:
    """SHA-256 (hex) of pixel type, shape, pixels and labels.

    Args:
        images: (n, ...) uint8 or float32; a memory map is read in pieces.
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
    """Labelled examples whose content has a name.

    Images are (c, h, w); feature vectors, signals and volumes have 1 to 4 axes.

    Attributes:
        images: (n, ...) uint8 in 0..255 with the channels along axis 1, or float32 that is already
            normalised; may be a read-only memory map.
        labels: (n,) int64 class indices, or (n, m, 6) float32 boxes, see `boxes`.
        content_hash: SHA-256 (hex) of the content. A subset's hash is made from its parent's
            hash and the indices, so pixels are hashed once.

    Raises:
        WorkloadError: the arrays have other shapes or types, or hold no example.
    """

    images: Pixels
    labels: Labels
    content_hash: str

    def __repr__(self) -> str:
        return f"ImageSet({'x'.join(map(str, self.images.shape))}, {self.content_hash[:8]})"

    def __post_init__(self) -> None:
        shape, kind = self.images.shape, self.images.dtype.name
        if not 1 < len(shape) <= 1 + MOST_AXES or 0 in shape or kind not in ("uint8", "float32"):
            raise WorkloadError(
                f"examples must be (n, ...) of uint8 or float32, of 1 to {MOST_AXES} axes each as "
                f"images (n, c, h, w) are, without an empty axis, but are {kind} of shape "
                f"{tuple(shape)}; correct the data set"
            )
        labels = self.labels
        boxes = labels.ndim == 3 and labels.shape[2] == BOX_VALUES and labels.dtype == np.float32
        classes = labels.ndim == 1 and labels.dtype == np.int64
        if len(labels) != shape[0] or not (boxes or classes):
            raise WorkloadError(
                f"labels must be ({shape[0]},) of int64, but are {labels.dtype.name} of "
                f"shape {tuple(labels.shape)}; give one label an example"
            )
        if boxes and not self.are_images:
            raise WorkloadError(
                f"examples with boxes must be images (n, c, h, w), but are of shape "
                f"{tuple(shape)}; correct the data set"
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
            images: (n, ...) uint8 in 0..255 with the channels along axis 1, or float32 that is
                already normalised.
            labels: (n,) whole numbers from 0, or (n, m, 6) boxes, see `workload.boxes`.

        Raises:
            WorkloadError: they have other shapes, types or values, or hold no example.
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
    def shape(self) -> tuple[int, ...]:
        """Of every example; (c, h, w) of images."""
        return self.images.shape[1:]

    @property
    def are_images(self) -> bool:
        """Whether the examples have the three axes of images, (c, h, w)."""
        return len(self.shape) == 3

    def take(self, indices: ArrayLike) -> ImageSet:
        """Copy of the examples at `indices`, in that order, in memory.

        Args:
            indices: (m,) integers, each in 0..n-1, m >= 1.

        Raises:
            WorkloadError: an index lies outside.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise WorkloadError(
                f"indices must be in 0..{len(self) - 1}, but reach from {rows.min()} to "
                f"{rows.max()}; ask for examples the set holds"
            )
        digest = hashlib.sha256(self.content_hash.encode() + rows.astype("<i8").tobytes())
        images = np.ascontiguousarray(np.asarray(self.images)[rows])
        return ImageSet(images, self.labels[rows], digest.hexdigest())

    def draw(self, count: int, seed: int) -> ImageSet:
        """Copy of `count` different examples: the first ones of a seeded permutation.

        A larger draw with the same seed therefore contains the smaller one.

        Raises:
            WorkloadError: `count` is below 1 or above the number of examples.
        """
        if not 1 <= count <= len(self):
            raise WorkloadError(
                f"a draw must be of 1..{len(self)} examples, but {count} were asked for; "
                f"ask for fewer or give a larger data set"
            )
        return self.take(np.random.default_rng(seed).permutation(len(self))[:count])

    def tensor(
        self, normalization: Normalization, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Examples `start` to `stop` (excluded) as network input, (m, ...) float32."""
        return normalization.apply(self.images[start:stop])


def _array(values: ArrayLike | torch.Tensor) -> NDArray[Any]:
    """What arrays, tensors and lists hold."""
    given = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asanyarray(given)  # a memory map stays one


@dataclass(frozen=True)
class Normalization:
    """What turns 8-bit examples into network input: `(x / 255 - mean) / std` a channel.

    Channels lie along the first axis of an example.

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
                f"give the standard deviation of the training examples on the 0..1 scale"
            )

    @classmethod
    def unit(cls, channels: int) -> Normalization:
        """Scaling of 0..255 to 0..1 and nothing else."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def apply(self, images: Pixels) -> torch.Tensor:
        """Network input from examples.

        Args:
            images: (n, ...); float32 examples pass through as they are.

        Returns:
            (n, ...) float32, a copy on the CPU.

        Raises:
            WorkloadError: 8-bit examples have another number of channels.
        """
        values = torch.from_numpy(np.array(images, dtype=np.float32, order="C", subok=False))
        if images.dtype != np.uint8:
            return values
        if values.shape[1] != len(self.mean):
            raise WorkloadError(
                f"mean and std must hold one number a channel, but hold {len(self.mean)} for "
                f"{values.shape[1]}; correct them"
            )
        mean, std = self.tensors(values.dim())
        return values.div_(255).sub_(mean).div_(std)

    def tensors(self, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std, (1, channels, 1, ...) float32, for tensors of so many axes."""
        shape = (1, -1, *[1] * (axes - 2))
        mean, std = (
            torch.tensor(x, dtype=torch.float32).view(shape) for x in (self.mean, self.std)
        )
        return mean, std


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
        images: 8-bit examples, a memory map is read in pieces.
    """
    channels = images.shape[0]
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    rows = max(1, _PIXELS // images.images[0].size)
    for start in range(0, len(images), rows):
        values = np.asarray(images.images[start : start + rows], dtype=np.float64) / 255
        others = (0, *range(2, values.ndim))
        total += values.sum(others)
        squares += np.square(values).sum(others)
        count += values[:, 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return tuple(map(float, mean.round(4))), tuple(map(float, std.round(4)))
