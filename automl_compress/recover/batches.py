"""Training batches: which examples, how they are changed, and how they become network input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from automl_compress.errors import WorkloadError
from automl_compress.recover.augment import augment
from automl_compress.recover.settings import Augmentation
from automl_compress.workload import ImageSet, Normalization
from automl_compress.workload.placement import sent

RESIDENT_BYTES: Final = 4 * 2**30
"""Images up to so many bytes are kept on the device; larger sets are read batch by batch."""

_ORDER, _CHANGES = 0, 1


class Batches:
    """Batches of an endless training; every step's batch depends on seed and step alone.

    Args:
        images: uint8 or normalised float32 examples; may be a memory map.
        normalization: turns 8-bit values into input.
        size: examples a batch, or all of them where there are fewer.
        augmentation: how images are changed; all others stay as they are.
        seed: decides order and changes.
        device: where the batches lie.
        blank: (c,) pixel on the 0..1 scale that comes in where images with boxes are moved, or
            something is blotted out; the normalization's mean when not given.

    Raises:
        WorkloadError: there are fewer than two examples, or see `check_augmentation`.
    """

    def __init__(
        self,
        images: ImageSet,
        normalization: Normalization,
        size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        blank: Sequence[float] | None = None,
    ) -> None:
        if len(images) < 2:
            raise WorkloadError(
                f"training needs 2 examples or more, but has {len(images)}; add some"
            )
        check_augmentation(images, augmentation)
        self.size = min(size, len(images))
        self.steps = len(images) // self.size
        self._images = images
        self._augmentation = augmentation
        self._seed = seed
        self._device = device
        self._resident: Tensor | None = None
        if images.images.nbytes <= RESIDENT_BYTES:
            self._resident = torch.from_numpy(np.array(images.images)).to(device)
        self._labels = torch.from_numpy(images.labels.copy()).to(device)
        self._boxed = images.boxed
        self._raw = images.images.dtype == np.uint8
        mean, std = (x.to(device) for x in normalization.tensors(images.images.ndim))
        self._mean, self._std = mean, std
        if blank is None:
            blank = normalization.mean if self._raw else (0.0,) * images.shape[0]
        fill = torch.tensor(blank).to(device)
        self._fill = (fill * 255).round().clamp(0, 255).to(torch.uint8) if self._raw else fill
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Input (size, ...) float32 and labels (size, ...) of a step, counted from 0."""
        epoch, place = divmod(step, self.steps)
        if self._order[0] != epoch:
            generator = _generator(self._seed, _ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self._images), generator=generator))
        rows = self._order[1][place * self.size : (place + 1) * self.size]
        there = sent(rows, self._device)
        changed, labels = self._pixels(rows, there), self._labels[there]
        if self._images.are_images:
            generator = _generator(self._seed, _CHANGES, step)
            changed, move = augment(changed, self._augmentation, self._fill, generator, self._boxed)
            if self._boxed:
                labels = move.boxes(labels, *changed.shape[2:])
        if not self._raw:
            return changed, labels
        return changed.float().div_(255).sub_(self._mean).div_(self._std), labels

    def _pixels(self, rows: Tensor, there: Tensor) -> Tensor:
        """Images of some rows, which the device knows too."""
        if self._resident is not None:
            return self._resident[there]
        ordered = rows.sort().values.numpy()  # a file is read forward
        back = torch.from_numpy(np.argsort(np.argsort(rows.numpy())))
        return sent(torch.from_numpy(np.array(self._images.images[ordered]))[back], self._device)


def check_augmentation(images: ImageSet, augmentation: Augmentation) -> None:
    """Check that examples can be changed so.

    Raises:
        WorkloadError: they are no images, but are to be changed, or would be moved out of sight.
    """
    if not images.are_images:
        asked = [name for name in ("crop", "flip", "cutout") if getattr(augmentation, name)]
        if asked:
            raise WorkloadError(
                f"'augment.{asked[0]}' changes images (c, h, w) alone, but examples are of shape "
                f"{images.shape}; remove it"
            )
        return
    crop, least = augmentation.crop, min(images.shape[1:])
    if crop is not None and crop >= least:
        raise WorkloadError(
            f"'augment.crop' must be less than the {least} pixels of an image's shorter side, "
            f"but is {crop}; lower it"
        )


def _generator(seed: int, purpose: int, place: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, purpose, place]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
