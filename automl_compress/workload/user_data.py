"""Data sets of the user's own: made by a function, or given in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from automl_compress.errors import WorkloadError
from automl_compress.user_code import resolve, user_code
from automl_compress.workload.cache import Row
from automl_compress.workload.folder import Decoding
from automl_compress.workload.images import MOST_AXES, ImageSet, Pixels
from automl_compress.workload.sources import TrainTest

_READ_TWICE: Final = 8
_LARGEST_LABEL: Final = 2**31 - 1
_CLASS: Final = 4
"""Which number of a box is its class."""


@dataclass(frozen=True)
class FactorySource:
    """A function `package.module:function` that returns `(train, test)`.

    Each is a sequence of `(example, label)`, as torch's map-style data sets are, or an `ImageSet`.
    An example is a PIL image, or a tensor or array of 1 to 4 axes, of uint8 (0..255, the channels
    first) or floats (normalised): an image (c, h, w), features (f), a signal (c, t), a volume
    (c, d, h, w). Arrays (h, w, c) with 1 or 3 channels are images too, and so are examples (h, w)
    where the network takes (1, h, w). A `classes` attribute names the classes.

    Attributes:
        name: the function.
    """

    name: str

    def load(self, seed: int) -> TrainTest:
        """Both halves, in memory.

        Raises:
            WorkloadError: the function cannot be found, fails, or returns something else.
        """
        factory = resolve(self.name, WorkloadError)
        with (
            user_code(f"data factory '{self.name}'", WorkloadError),
            torch.random.fork_rng(devices=[]),
        ):
            torch.default_generator.manual_seed(seed)
            made = factory()
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise WorkloadError(
                f"data factory '{self.name}' must return (train, test), but returned "
                f"{_kind(made)}; return two data sets"
            )
        return read_halves(made, f"'{self.name}'")


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Two data sets that are at hand.

    Attributes:
        train: as `FactorySource` reads it, or an `ImageSet`.
        test: of the same kind of examples.
        classes: names of the classes; without, the data sets' or their numbers.
    """

    train: Any
    test: Any
    classes: tuple[str, ...] = ()

    def load(self, seed: int) -> TrainTest:  # noqa: ARG002 - nothing is left open
        """Both halves, in memory.

        Raises:
            WorkloadError: they are no such data sets.
        """
        return read_halves((self.train, self.test), "the given data", self.classes)


def read_halves(made: Sequence[Any], name: str, classes: tuple[str, ...] = ()) -> TrainTest:
    """Both halves of data.

    Args:
        made: the two data sets, each as `FactorySource` takes them or an `ImageSet`.
        name: of the data, for messages.
        classes: their names; without, those that the data sets name, or their numbers.

    Raises:
        WorkloadError: they are no such data sets, or do not fit each other.
    """
    train, test = (
        (_own if isinstance(dataset, ImageSet) else _read)(dataset, f"the {half} set of {name}")
        for dataset, half in zip(made, ("train", "test"), strict=True)
    )
    if train.shape != test.shape or train.images.dtype != test.images.dtype:
        raise WorkloadError(
            f"train and test examples of {name} must have one shape and type, but are "
            f"{train.images.dtype.name} {train.shape} and {test.images.dtype.name} "
            f"{test.shape}; transform both in the same way"
        )
    named = _classes(classes or _class_names(made), train, test, name)
    bare = len(train.shape) == 2 and not any(isinstance(one, ImageSet) for one in made)
    return TrainTest(train, test, named, bare=bare)


def _own(images: ImageSet, what: str) -> ImageSet:
    """Examples that no later change of the user's arrays changes."""
    _check_finite(images.images, what)
    if not images.images.flags.writeable:
        return images
    return ImageSet.of(images.images.copy(), images.labels.copy())


def _read(dataset: Any, what: str) -> ImageSet:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise WorkloadError(
            f"{what} must have a length and items, but is {_kind(dataset)}; give a map-style "
            f"data set of (example, label), such as the one a DataLoader reads"
        )
    with user_code(what, WorkloadError):
        count = len(dataset)
        if count == 0:
            raise WorkloadError(f"{what} must hold examples, but is empty; add some")
        rows, labels = zip(*(_item(dataset, i, what) for i in range(count)), strict=True)
        _check_repeatable(dataset, rows, what)
    return ImageSet.of(_stacked(rows, what), labels)


def _item(dataset: Any, position: int, what: str) -> tuple[Pixels, int]:
    item = dataset[position]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise WorkloadError(
            f"items of {what} must be (example, label), but item {position} is {_kind(item)}; "
            f"return pairs"
        )
    where = f"item {position} of {what}"
    return _pixels(item[0], where), _label(item[1], where)


def _check_repeatable(dataset: Any, rows: Sequence[Pixels], what: str) -> None:
    for position in range(min(_READ_TWICE, len(rows))):
        again, _ = _item(dataset, position, what)
        if not np.array_equal(again, rows[position], equal_nan=True):
            raise WorkloadError(
                f"{what} must give the same example each time, but item {position} changed "
                f"when it was read again; remove random augmentation from it"
            )


def _classes(named: tuple[str, ...], train: ImageSet, test: ImageSet, name: str) -> tuple[str, ...]:
    largest = max(_largest_class(train), _largest_class(test))
    classes = named or tuple(map(str, range(largest + 1)))
    if largest >= len(classes):
        raise WorkloadError(
            f"labels of {name} must be in 0..{len(classes) - 1}, but reach to "
            f"{largest}; number the classes from 0, or name all of them"
        )
    if len(classes) < 2 and not train.boxed:
        raise WorkloadError(
            f"data must have at least two classes, but all labels of {name} are 0; "
            f"return examples of several classes"
        )
    return classes


def _largest_class(images: ImageSet) -> int:
    labels = images.labels[..., _CLASS] if images.boxed else images.labels
    return int(labels.max(initial=0))


def _class_names(datasets: Sequence[Any]) -> tuple[str, ...]:
    for dataset in datasets:
        named = getattr(dataset, "classes", None)
        if isinstance(named, tuple | list) and named:
            return tuple(map(str, named))
    return ()


def _pixels(image: Any, where: str) -> Pixels:
    if isinstance(image, Image.Image):
        return Decoding(channels=1 if image.mode in ("1", "L", "LA") else 3).pixels(image)
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if not isinstance(values, np.ndarray) or not 1 <= values.ndim <= MOST_AXES:
        raise WorkloadError(
            f"an example must be a PIL image, or a tensor or array of 1 to {MOST_AXES} axes, "
            f"but {where} is {_kind(image)}; convert it"
        )
    if values.dtype == np.uint8 or np.issubdtype(values.dtype, np.floating):
        return _channels_first(values, isinstance(image, np.ndarray))
    raise WorkloadError(
        f"an example must be of uint8 (0..255) or floats, but {where} is of "
        f"{values.dtype.name}; convert it"
    )


def _channels_first(values: Row | Pixels, is_array: bool) -> Pixels:
    pixels = values if values.dtype == np.uint8 else values.astype(np.float32)
    if not is_array or pixels.ndim != 3 or pixels.shape[0] in (1, 3):
        return pixels
    return pixels.transpose(2, 0, 1) if pixels.shape[2] in (1, 3) else pixels


def _label(label: Any, where: str) -> int:
    if isinstance(label, torch.Tensor | np.ndarray) and tuple(label.shape) in ((), (1,)):
        label = label.item()
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        remedy = "give images and boxes (n, m, 6) as an ImageSet, see workload.boxes"
        raise WorkloadError(
            f"a label must be a whole number, but that of {where} is {_kind(label)}; "
            f"{remedy if _are_boxes(label) else 'convert it'}"
        )
    if not 0 <= label <= _LARGEST_LABEL:
        raise WorkloadError(
            f"a label must be from 0 to {_LARGEST_LABEL}, but {where} has {label}; number the "
            "classes from 0"
        )
    return int(label)


def _are_boxes(label: Any) -> bool:
    """Whether a label is rows of numbers, or a mapping, as torchvision's detectors are told."""
    return isinstance(label, Mapping) or getattr(label, "ndim", 0) == 2


def _stacked(rows: Sequence[Pixels], what: str) -> Pixels:
    for position, row in enumerate(rows):
        if row.shape != rows[0].shape or row.dtype != rows[0].dtype:
            raise WorkloadError(
                f"examples of {what} must have one shape and type, but item 0 is "
                f"{rows[0].dtype.name} {rows[0].shape} and item {position} is "
                f"{row.dtype.name} {row.shape}; bring them to one shape"
            )
    stacked: Pixels = np.stack(list(rows))
    _check_finite(stacked, what)
    return stacked


def _check_finite(images: Pixels, what: str) -> None:
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise WorkloadError(
            f"examples of {what} must be finite, but hold NaN or infinity; repair them"
        )


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
