"""What every source of data gives, and the source that is torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described
from automl_compress.workload.images import ImageSet

TORCHVISION_SETS: Final = ("CIFAR10", "CIFAR100")


@dataclass(frozen=True, eq=False)
class TrainTest:
    """The parts of a data set as its makers split it.

    Attributes:
        train: what networks are trained on.
        test: what they are not trained on.
        classes: names of the classes, in the order of the labels.
        validation: a third part that is neither; None where there are two.
        bare: whether examples of two axes may be grey images (h, w) without their channel axis.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    validation: ImageSet | None = None
    bare: bool = False

    def as_images(self) -> TrainTest:
        """The same, examples that may be grey images with their channel axis: (1, h, w)."""
        if not self.bare:
            return self
        train, test = (ImageSet.of(x.images[:, None], x.labels) for x in (self.train, self.test))
        return replace(self, train=train, test=test, bare=False)


class Source(Protocol):
    """Where examples come from."""

    def load(self, seed: int) -> TrainTest:
        """The examples; `seed` decides whatever the source leaves open.

        Raises:
            WorkloadError: they cannot be had.
        """


@dataclass(frozen=True)
class TorchvisionSource:
    """CIFAR-10 or CIFAR-100 as torchvision downloads and reads them (Krizhevsky 2009).

    Attributes:
        name: one of `TORCHVISION_SETS`.
        root: folder the files are in or are downloaded to.
        download: whether files that are missing may be downloaded.
    """

    name: str
    root: Path
    download: bool = True

    def load(self, seed: int) -> TrainTest:  # noqa: ARG002 - the set comes split
        """Both halves, in memory.

        Raises:
            WorkloadError: the files are missing or damaged and cannot be downloaded.
        """
        from torchvision import datasets

        dataset = getattr(datasets, self.name)
        try:
            train = dataset(self.root, train=True, download=self.download)
            test = dataset(self.root, train=False, download=self.download)
        except Exception as reason:
            remedy = (
                "connect to the network once, or put the files there"
                if self.download
                else "put the files there or set data.download: true"
            )
            raise WorkloadError(
                f"{self.name} must be in '{self.root}' or be downloadable, but torchvision raised "
                f"{described(reason)}; {remedy}"
            ) from reason
        return TrainTest(_images(train), _images(test), _names(train.classes))


def _images(dataset: Any) -> ImageSet:
    pixels = np.ascontiguousarray(np.asarray(dataset.data, np.uint8).transpose(0, 3, 1, 2))
    return ImageSet.of(pixels, dataset.targets)


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(name) for name in classes)
