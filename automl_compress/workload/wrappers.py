"""What PyTorch wraps networks in, taken off."""

from __future__ import annotations

from typing import Final

from torch import nn

_PARALLEL: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and of parallel training.

    They would be compiled again for every candidate, or cannot be copied.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _PARALLEL):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and inner is not None:
            model = inner
        else:
            return model
