"""Which labelled images networks are measured on, and how much each of them counts.

Compressing changes answers that the original gives by a narrow margin; where its margin is wide,
nearly all networks worth a look answer alike, and the image tells none of them apart. So images are
drawn the more often, the narrower the original's margin on them is, and count the less for it.
The weighted share of right answers is still that of all images, but for less noise.

Systematic sampling with unequal chances: Madow 1949, "On the theory of systematic sampling, II".
Weights of one over the chance, divided by their sum: Hajek 1971.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automl_compress.workload import STRATA, ImageSet, Sample

Draw = Literal["margin", "uniform"]
DRAWS: Final[tuple[Draw, ...]] = get_args(Draw)

POOL: Final = 5
"""Images whose margins are looked at, for each that is drawn."""
_PART: Final = 64
"""Images whose margins are asked for together."""
_LEAST: Final = 0.2
"""Chance of the widest margin, as a share of the narrowest one's.

Over 95 compressed ResNet-20 (CIFAR-10, errors below 35 %), the standard deviation of being right
falls nearly in a line with the rank of the original's margin: from .41 in its lowest tenth to .07
in its highest. A fifth rather than a sixth keeps single images from counting for too much.
"""

Margins = Callable[[ImageSet], Tensor | None]
"""(n,) margins of the original network on images, negative where it is wrong; None where no single
output decides."""


@dataclass(frozen=True)
class Drawn:
    """Images networks are measured on.

    Attributes:
        images: in random order, so that the first ones stand for all.
        sample: how they were drawn; None where all of them count alike.
    """

    images: ImageSet
    sample: Sample | None = None


def draw_images(
    split: ImageSet, count: int | None, seed: int, draw: Draw, margins: Margins
) -> Drawn:
    """Draw the images that networks are measured on.

    Args:
        split: what to draw from.
        count: how many, in 1..len(split); None for all of them, in their order.
        seed: of the draw.
        draw: `margin`, more often where the original's margin is narrow; `uniform`, all alike.
        margins: of the original; asked of some images at a time, of `POOL` times `count` at most.

    Raises:
        WorkloadError: the split does not hold so many.
    """
    if count is None or count == len(split):
        return Drawn(split)
    if draw == "uniform":
        return Drawn(split.draw(count, seed))
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(split))[: POOL * count]
    found = margins(split.take(pool[:1]))
    if found is None:
        return Drawn(split.draw(count, seed))
    signed = np.concatenate([np.asarray(margins(split.take(part))) for part in _parts(pool)])
    chances = chances_of(signed, count)
    chosen = systematic(chances, np.argsort(signed, kind="stable"), rng)
    mixed = rng.permutation(count)  # so that the first images stand for all
    weights = 1.0 / chances[chosen][mixed]
    strata = mixed * STRATA // count
    return Drawn(
        split.take(pool[chosen[mixed]]),
        Sample(torch.from_numpy(weights / weights.mean()), torch.from_numpy(strata), len(pool)),
    )


def chances_of(margins: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Chance of each image to be among those drawn.

    Args:
        margins: (n,) of the original, negative where it is wrong; only their order counts.
        count: how many are drawn, in 1..n.

    Returns:
        (n,) in (0, 1], `count` in all: falling in a line with the rank of the absolute margin, but
        for those that are certain.
    """
    n = len(margins)
    ranks = np.empty(n)
    ranks[np.argsort(np.abs(margins), kind="stable")] = np.arange(n)
    sizes = 1.0 - (1.0 - _LEAST) * ranks / max(1, n - 1)
    chances = np.zeros(n)
    certain = np.zeros(n, dtype=bool)
    while not certain.all():
        left = count - certain.sum()
        chances[~certain] = sizes[~certain] * (left / sizes[~certain].sum())
        above = ~certain & (chances >= 1.0)
        if not above.any():
            break
        chances[above] = 1.0
        certain |= above
    return chances


def systematic(
    chances: NDArray[np.float64], order: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw places by their chances, evenly along an order.

    Args:
        chances: (n,) in (0, 1], whose sum is a whole number.
        order: (n,) places, neighbours being alike.
        rng: says where to begin.

    Returns:
        (m,) different places in that order, m being the sum of the chances.
    """
    ends = np.cumsum(chances[order])
    steps = rng.random() + np.arange(round(ends[-1]))
    places = np.searchsorted(ends, steps, side="right").clip(max=len(order) - 1)
    chosen: NDArray[np.intp] = order[places]
    return chosen


def _parts(pool: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Images that are looked at together."""
    return np.array_split(pool, -(-len(pool) // _PART))
