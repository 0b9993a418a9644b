"""Kinds of modules, and which axes of their tensors carry channels."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from automl_compress.compress.structure import Axis

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: Final = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
"""Modules whose weights every output has of every input."""
BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
LAST_NORMS: Final = (nn.LayerNorm, nn.RMSNorm)
"""Normalizations over the last axis."""
NORMALIZATIONS: Final = (*BATCH_NORMS, *INSTANCE_NORMS, *LAST_NORMS, nn.GroupNorm)


def parameter_axis(parameter: Tensor) -> int:
    """Axis of a free parameter or buffer that carries channels: the last longer than one."""
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=0)


def weight_axis(layer: nn.Module, axis: Axis) -> int:
    """Axis of a layer's weight that runs over its outputs or inputs."""
    return int((axis == "in") != isinstance(layer, TRANSPOSED))


def channel_axis(layer: Any, x: Tensor) -> int:
    """Axis of a layer's input or output that runs over channels, also where images come alone."""
    places = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    return x.dim() - 1 - places
