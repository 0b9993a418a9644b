"""Quantization-aware training with learned step sizes (LSQ; Esser et al. 2020).

`make_learnable` turns the quantized layers of a compressed network into a form whose forward
computes the very same, but from weights that are not rounded yet and from steps that are
parameters; `freeze` turns it back into plain quantized layers, integers times scale, with the same
outputs bit for bit, and `unquantize` into layers without grids, of what was learned. Rounding
passes gradients straight through inside the grid and stops them outside. Weights have a step per
output channel, inputs one per layer (the paper has one per layer for both); zero points stay.

Training starts from weights as they were before rounding, with the steps the search used.
Measured on ResNet-20 (CIFAR-10, 2,000 test images) at 39 % of the MACs and 3-bit weights, after
200 steps of 64 images with distillation: 72.4 % from 64.5 %; 69.1 % with steps that stay as they
are; 66.4 % from rounded weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.kinds import CONVOLUTIONS
from automl_compress.compress.modules import become
from automl_compress.compress.quantize import (
    InputQuantizer,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedLinear,
    levels,
    quantize_weight,
)

SMALLEST: Final = 0.01
"""A step stays above this share of its first value: at zero it would not come back."""
READY: Final = "_rounded_weight"
"""Attribute of a layer whose weights were rounded for it, see `rounding`."""
_PIECE: Final = 2**17
"""Values that a thread rounds before it goes on to others."""
_FEWEST_PIECES: Final = 5
"""Fewer are rounded all at once."""


class RoundToGrid(torch.autograd.Function):
    """Rounds to integers times a step; both the values and the step have gradients.

    With v/s inside the grid, dy/dv = 1 and dy/ds = round(v/s) - v/s; outside, dy/dv = 0 and dy/ds
    is the grid's end (Esser et al. 2020, eqs. 3 and 5), times `gain`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, gain: float) -> Tensor:
        """Round `x` to `low..high` times `step`, which broadcasts; in float32."""
        ctx.save_for_backward(x, step)
        ctx.grid = (low, high, gain)
        images = _images_a_piece(x, step)
        if images == len(x):
            return _rounded(x, step, low, high)
        result = torch.empty_like(x, dtype=torch.float32)
        for piece in range(0, len(x), images):
            part = slice(piece, piece + images)
            result[part] = _rounded(x[part], step, low, high)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of `x` and `step`."""
        x, step = ctx.saved_tensors
        low, high, gain = ctx.grid
        images = _images_a_piece(x, step)
        if images == len(x):
            of_x, of_step = _gradients(x, step, gradient, low, high)
        else:
            of_x, of_step = torch.empty_like(x), torch.zeros_like(step)
            for piece in range(0, len(x), images):
                part = slice(piece, piece + images)
                of_x[part], add = _gradients(x[part], step, gradient[part], low, high)
                of_step += add
        return of_x, of_step * gain, None, None, None


def _images_a_piece(x: Tensor, step: Tensor) -> int:
    """How many of (n, ...) values with one step to round at a time; all where they are few.

    What is done to a piece one pass after another stays in a processor's caches: rounding 2^20
    values and their gradients took 0.6 times as long (one thread), 2^19 values as long.
    """
    piece = _PIECE * torch.get_num_threads()
    whole = x.device.type != "cpu" or step.numel() > 1 or x.numel() < _FEWEST_PIECES * piece
    return len(x) if whole else max(1, piece * len(x) // x.numel())


def _rounded(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    return (x.float() / step).round_().clamp_(low, high).mul_(step)


def _gradients(
    x: Tensor, step: Tensor, gradient: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """Of the values, and of the step before its gain."""
    scaled = x.float() / step
    slope = scaled.clamp(low, high).round_().sub_(inside_grid(scaled, scaled, low, high))
    of_step = slope.mul_(gradient).sum_to_size(step.shape)
    return inside_grid(gradient, scaled, low, high).to(x.dtype), of_step


def inside_grid(values: Tensor, scaled: Tensor, low: int, high: int) -> Tensor:
    """Values where `scaled` is in `low..high`, and zero elsewhere.

    The gradient of a clipped line is that, in one vectorised pass: with masks, forward and backward
    of 2^20 values took 1.4 to 1.8 times as long (one thread). The line ends before its bounds, so
    they lie one float beyond.
    """
    bounds = np.array([low, high], dtype=np.float32)
    least, most = np.nextafter(bounds, np.array([-np.inf, np.inf], dtype=np.float32)).tolist()
    inside: Tensor = torch.ops.aten.hardtanh_backward(values, scaled, least, most)
    return inside


def step_gain(values: int, highest: int) -> float:
    """Scale of a step's gradient that makes its relative change like the weights'.

    Args:
        values: how many values the step rounds (of one image, for inputs).
        highest: largest integer of the grid by its absolute value.
    """
    return 1.0 / math.sqrt(values * highest)  # Esser et al. 2020, section 2.2


class LearnedInputQuantizer(InputQuantizer):
    """An input quantizer whose step is a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        """Round (n, ...) to the nearest level."""
        gain = step_gain(x[0].numel(), max(self.high, -self.low))
        rounded: Tensor = RoundToGrid.apply(x, self.scale, self.low, self.high, gain)
        return rounded


def _rounded_weight(layer: Any) -> Tensor:
    """A layer's weights as its forward uses them."""
    ready: Tensor | None = vars(layer).get(READY)
    if ready is not None:
        return ready
    weight: Tensor = layer.weight
    if layer.weight_bits is None:
        return weight
    bound = levels(layer.weight_bits)
    step = layer.weight_scale.view(-1, *[1] * (weight.dim() - 1))
    gain = step_gain(weight[0].numel(), bound)
    rounded: Tensor = RoundToGrid.apply(weight, step, -bound, bound, gain)
    return rounded


def learned_layers(network: nn.Module) -> list[Any]:
    """Layers of a network whose weights training rounds."""
    layers: list[Any] = [m for m in network.modules() if type(m) in _PLAIN]
    return [layer for layer in layers if layer.weight_bits is not None]


class _LearnedConvolution(nn.Module):
    """A quantized convolution in training: `weight` is not rounded yet, steps are parameters."""

    def forward(self: Any, input: Tensor) -> Tensor:  # torch's own name for it
        """What the convolution computes with rounded weights of its input, rounded or not."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        output: Tensor = self._conv_forward(input, _rounded_weight(self), self.bias)
        return output


class LearnedConv1d(_LearnedConvolution, QuantizedConv1d):
    """A quantized convolution of (n, channels, length) in training."""


class LearnedConv2d(_LearnedConvolution, QuantizedConv2d):
    """A quantized convolution of (n, channels, height, width) in training."""


class LearnedConv3d(_LearnedConvolution, QuantizedConv3d):
    """A quantized convolution of (n, channels, depth, height, width) in training."""


class LearnedLinear(QuantizedLinear):
    """A quantized linear layer in training: weights as of `_LearnedConvolution`."""

    def forward(self, input: Tensor) -> Tensor:  # torch's own name for it
        """Map (..., in) to (..., out)."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return F.linear(input, _rounded_weight(self), self.bias)


_LEARNED: Final[dict[type[nn.Module], type[nn.Module]]] = {
    QuantizedConv1d: LearnedConv1d,
    QuantizedConv2d: LearnedConv2d,
    QuantizedConv3d: LearnedConv3d,
    QuantizedLinear: LearnedLinear,
    InputQuantizer: LearnedInputQuantizer,
}
_PLAIN: Final[dict[type[nn.Module], type[nn.Module]]] = {
    LearnedConv1d: nn.Conv1d,
    LearnedConv2d: nn.Conv2d,
    LearnedConv3d: nn.Conv3d,
    LearnedLinear: nn.Linear,
}
_FROZEN: Final = {learned: frozen for frozen, learned in _LEARNED.items()}


def make_learnable(
    network: nn.Module, weights: Mapping[str, Tensor], learned_steps: bool = True
) -> None:
    """Make the quantized layers of a network trainable, in place.

    Args:
        network: a compressed network with tensors of its own.
        weights: weights before rounding by layer name, from which training starts; layers that
            are missing start from their rounded weights.
        learned_steps: whether steps change.
    """
    for name, module in list(network.named_modules()):
        if type(module) not in _LEARNED:
            continue
        if name in weights and not isinstance(module, InputQuantizer):
            with torch.no_grad():
                module.get_parameter("weight").copy_(weights[name])
        become(module, _with_class(module, _LEARNED[type(module)]))
        for buffer in ("scale", "weight_scale"):
            if buffer in module._buffers:
                step = module._buffers.pop(buffer)
                assert step is not None
                module._parameters[buffer] = nn.Parameter(step, learned_steps)


def freeze(network: nn.Module) -> None:
    """Turn layers that `make_learnable` made into plain quantized ones, in place."""
    for module in list(network.modules()):
        if type(module) not in _FROZEN:
            continue
        for parameter in ("scale", "weight_scale"):
            if parameter in module._parameters:
                step = module._parameters.pop(parameter)
                assert step is not None
                module._buffers[parameter] = step.detach()
        become(module, _with_class(module, _FROZEN[type(module)]))
        bits = getattr(module, "weight_bits", None)
        if bits is not None:
            with torch.no_grad():
                weight = module.get_parameter("weight")
                weight.copy_(quantize_weight(weight, module.get_buffer("weight_scale"), bits))


def unquantize(network: nn.Module) -> None:
    """Turn layers that `make_learnable` made into plain ones, in place.

    Their weights are those before rounding, and nothing rounds their inputs.
    """
    for module in list(network.modules()):
        if type(module) not in _PLAIN:
            continue
        plain = _with_class(module, _PLAIN[type(module)])
        del vars(plain)["weight_bits"]
        plain._parameters = {n: p for n, p in module._parameters.items() if n != "weight_scale"}
        plain._modules = {n: m for n, m in module._modules.items() if n != "input_quantizer"}
        become(module, plain)


def _with_class(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    result = object.__new__(kind)
    result.__dict__.update(vars(module))
    return result


class Limits:
    """What no step of the training may break: kernels that are zero stay zero, steps positive.

    Args:
        network: as training starts, its kernels (the 2-D filters between two channels) that are
            zero and its steps taken as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._kernels: list[tuple[Tensor, Tensor]] = []
        self._steps: list[Tensor] = []
        self._least: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, CONVOLUTIONS):
                weight = module.weight.detach()
                alive = (
                    weight.ne(0)
                    .flatten(2)
                    .any(2)
                    .reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
                )
                if not bool(alive.all()):
                    self._kernels.append((module.weight, alive))
            for name in ("scale", "weight_scale"):
                step = module._parameters.get(name)
                if step is not None:
                    self._steps.append(step)
                    self._least.append(SMALLEST * step.detach())

    @torch.no_grad()
    def __call__(self) -> None:
        """Put back, in place, what an optimizer's step broke."""
        for weight, alive in self._kernels:
            weight.mul_(alive)
        if self._steps:
            torch._foreach_maximum_(self._steps, self._least)
