"""BatchNorms that were trained on several devices, for a single one."""

from __future__ import annotations

from torch import Tensor, nn


class LocalBatchNorm(nn.BatchNorm2d):
    """What a `SyncBatchNorm` is on one device: a BatchNorm of inputs with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes (n, c, ...), got {input.dim()}")


def make_local(model: nn.Module) -> None:
    """Turn every `SyncBatchNorm` of a network into a `LocalBatchNorm`, in place.

    Trained, it would want GPUs and a process group. Tensors, names and outputs stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            object.__setattr__(module, "__class__", LocalBatchNorm)  # all its names see it
