"""Random changes of whole batches of 8-bit images, without a loop over images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from automl_compress.recover.settings import Augmentation


def augment(
    images: Tensor, settings: Augmentation, fill: Tensor, generator: torch.Generator
) -> Tensor:
    """Move, mirror and blot out, each image by chances of its own.

    Args:
        images: (n, c, h, w) of any type and on any device; not changed.
        settings: what is done.
        fill: (c,) pixel of a blotted square, of the same type and on the same device.
        generator: of the processor, so that chance is the same on every device.

    Returns:
        (n, c, h, w), channels last in memory.
    """
    count, _, height, width = images.shape
    most = height // 8 if settings.crop is None else settings.crop
    rows = torch.arange(height)[None] + _draw(2 * most + 1, count, generator)
    columns = torch.arange(width)[None] + torch.zeros(count, 1, dtype=torch.long)
    if settings.flip:
        mirrored = _draw(2, count, generator)
        columns = torch.where(mirrored == 1, width - 1 - columns, columns)
    columns = columns + _draw(2 * most + 1, count, generator)
    padded = F.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)
    every = torch.arange(count)[:, None, None]
    places = [index.to(images.device) for index in (every, rows[:, :, None], columns[:, None, :])]
    changed = padded[places[0], places[1], places[2]]
    if settings.cutout:
        blotted = _squares(count, height, width, settings.cutout, generator).to(images.device)
        changed = torch.where(blotted[..., None], fill, changed)
    return changed.permute(0, 3, 1, 2)


def _draw(choices: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, 1) integers below `choices`."""
    return torch.randint(choices, (count, 1), generator=generator)


def _squares(count: int, height: int, width: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, h, w) True inside one square an image; its centre is anywhere, its rest is lost."""
    top = _draw(height, count, generator) - side // 2
    left = _draw(width, count, generator) - side // 2
    row, column = torch.arange(height)[None], torch.arange(width)[None]
    inside_rows = (row >= top) & (row < top + side)
    inside_columns = (column >= left) & (column < left + side)
    return inside_rows[:, :, None] & inside_columns[:, None, :]
