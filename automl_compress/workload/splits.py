"""The three disjoint splits of a workload's examples, and what normalizes them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Final

import numpy as np

from automl_compress.errors import WorkloadError
from automl_compress.workload.data import DataConfig
from automl_compress.workload.images import ImageSet, Normalization
from automl_compress.workload.sources import TrainTest

_logger = logging.getLogger(__name__)

MOST_VALIDATION_IMAGES: Final = 5000
"""Search-validation images taken when their number is not given: at most so many."""

_OVERLAP_BYTES: Final = 1 << 31
_COMMON_OVERLAP: Final = 0.01


@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint sets of examples.

    Attributes:
        train: calibration and training examples are drawn from it.
        validation: what a search measures candidates on.
        test: what headline numbers are measured on; no search sees it.
        classes: names of the classes, in the order of the labels.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


def load_splits(config: DataConfig) -> Splits:
    """Load the examples and split them; those of two axes may be grey images, and then are.

    Raises:
        WorkloadError: the examples cannot be had or are too few for the split.
    """
    return splits_of(config.source.load(config.seed).as_images(), config)


def splits_of(halves: TrainTest, config: DataConfig) -> Splits:
    """Split the examples of a source.

    Raises:
        WorkloadError: they are too few for the split.
    """
    splits = _split(halves, config)
    _report_overlap(splits)
    return splits


def load_normalization(config: DataConfig, images: ImageSet) -> Normalization:
    """The normalization for these examples: as stated, as the network was trained, or 0..1.

    Raises:
        WorkloadError: mean or std do not fit the channels, or the examples are floats, which
            count as normalised already.
    """
    channels = images.shape[0]
    given = [(name, value) for name in ("mean", "std") if (value := getattr(config, name))]
    if given and images.images.dtype != np.uint8:
        raise WorkloadError(
            f"data.{given[0][0]} applies to 8-bit examples, but the data set gives floats; "
            f"normalise there and remove the key, or give uint8"
        )
    for name, values in given:
        if len(values) != channels:
            raise WorkloadError(
                f"data.{name} must hold one number a channel, but holds {len(values)} for "
                f"{channels} channel{'s' * (channels != 1)}; correct it"
            )
    unit = trained_normalization(config, images) or Normalization.unit(channels)
    return Normalization(config.mean or unit.mean, config.std or unit.std)


def trained_normalization(config: DataConfig, images: ImageSet) -> Normalization | None:
    """What the network was trained with, where it is known, fits, and nothing else is stated."""
    if config.trained is None or config.mean or config.std or images.images.dtype != np.uint8:
        return None
    return Normalization(*config.trained) if len(config.trained[0]) == images.shape[0] else None


def _split(halves: TrainTest, config: DataConfig) -> Splits:
    if halves.validation is not None:
        return _as_given(halves, halves.validation, config)
    from_test = config.validation_from == "test"
    source = halves.test if from_test else halves.train
    default = min(MOST_VALIDATION_IMAGES, max(1, len(source) // (2 if from_test else 10)))
    count = config.validation_images or default
    if count >= len(source):
        raise WorkloadError(
            f"search-validation examples must leave some of the {config.validation_from} half, but "
            f"{count} of {len(source)} were asked for; lower data.search_validation.images or "
            f"add examples"
        )
    order = np.random.default_rng(config.seed).permutation(len(source))
    validation = source.take(np.sort(order[:count]))
    rest = source.take(np.sort(order[count:]))
    train, test = (halves.train, rest) if from_test else (rest, halves.test)
    return Splits(train, validation, test, halves.classes)


def _as_given(halves: TrainTest, validation: ImageSet, config: DataConfig) -> Splits:
    """The splits of a data set that comes in three parts."""
    if config.validation_images not in (None, len(validation)):
        raise WorkloadError(
            f"search-validation examples must be the {len(validation)} of the data set's own "
            f"validation part, but {config.validation_images} were asked for; remove "
            f"data.search_validation.images"
        )
    return Splits(halves.train, validation, halves.test, halves.classes)


def _report_overlap(splits: Splits) -> None:
    """Log how many search-validation and test examples stand in an earlier split too."""
    named = (("validation", splits.validation), ("test", splits.test))
    if sum(images.images.nbytes for _, images in (("", splits.train), *named)) > _OVERLAP_BYTES:
        return
    seen = set(_image_hashes(splits.train))
    for name, images in named:
        hashes = _image_hashes(images)
        repeated = sum(one in seen for one in hashes)
        if repeated:
            level = logging.WARNING if repeated > _COMMON_OVERLAP * len(images) else logging.INFO
            _logger.log(
                level,
                "%d of %d %s examples also occur in an earlier split",
                *(repeated, len(images), name),
            )
        seen.update(hashes)


def _image_hashes(images: ImageSet) -> list[bytes]:
    return [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        for image in images.images
    ]
