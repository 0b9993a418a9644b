"""The learning rate over the steps of a training."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear rise to the peak, then half a cosine towards zero (Loshchilov & Hutter 2017).

    Args:
        step: 0..steps-1.
        steps: of the whole training.
        peak: highest rate; reached at the last step of the rise.
        warmup: share of the steps that rise, in [0, 1].
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
