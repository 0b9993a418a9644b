"""Attention in shifted windows, as torchvision's Swin transformers have it, made of layers.

torchvision computes it in one function that takes the weights of the layers (Liu et al. 2021, and
2022 for the second version, whose scores are cosines).
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers, divided, in_heads, joined, rows
from automl_compress.compress.modules import runs_its_class

_MODULE: Final = "torchvision.models.swin_transformer"
_APART: Final = -100.0
"""Added to scores between positions that a shift brought together."""


class ShiftedWindows(HeadLayers):
    """What torchvision's `ShiftedWindowAttention` computes in evaluation mode, from layers.

    Args:
        original: see `is_window_attention`; tables and layers other than those of queries, keys
            and values are shared with it.
    """

    def __init__(self, original: Any) -> None:
        scales = original._parameters.get("logit_scale")
        layers = divided(original.qkv.weight, original.qkv.bias, 3)
        if scales is not None and layers[1].bias is not None:
            layers[1].bias.zero_()  # as the second version does before every product
        width = layers[0].out_features // original.num_heads
        cosine = scales is not None
        super().__init__(layers, original.num_heads, 1.0 if cosine else width**-0.5, cosine)
        self.window_size = original.window_size
        self.shift_size = original.shift_size
        self._bias = type(original).get_relative_position_bias
        self._modules.update({n: m for n, m in original._modules.items() if n != "qkv"})
        self._parameters.update(original._parameters)
        self._buffers.update(original._buffers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, height, width, channels) to the same shape."""
        _, height, width, _ = x.shape
        down, right = self.window_size
        x = F.pad(x, (0, 0, 0, -width % right, 0, -height % down))
        shifts = [
            0 if side >= whole else shift
            for side, whole, shift in zip(
                self.window_size, x.shape[1:3], self.shift_size, strict=True
            )
        ]
        x = torch.roll(x, [-shift for shift in shifts], (1, 2)) if any(shifts) else x
        windows = self._attend(in_windows(x, down, right), self._apart(x, shifts))
        y = of_windows(windows, down, x)
        y = torch.roll(y, shifts, (1, 2)) if any(shifts) else y
        return y[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, apart: Tensor | None) -> Tensor:
        query, key, value = (
            in_heads(layer, x, self.num_heads) for layer in (self.query, self.key, self.value)
        )
        scores = self.scores(query, key)
        scales = self._parameters.get("logit_scale")
        if scales is not None:
            scores = scores * scales.clamp(max=math.log(100.0)).exp()
        scores = scores + self._bias(self)
        if apart is not None:
            divided = scores.view(-1, len(apart), *scores.shape[1:])
            scores = (divided + apart[:, None]).view(scores.shape)
        mixed = joined(self.mix(scores.softmax(-1), value))
        return rows(self.get_submodule("proj"), mixed)

    def _apart(self, x: Tensor, shifts: list[int]) -> Tensor | None:
        """(windows, positions, positions) what keeps those apart that a shift brought together."""
        if not any(shifts):
            return None
        down, across = (
            _regions(torch.arange(whole, device=x.device), side, shift)
            for whole, side, shift in zip(x.shape[1:3], self.window_size, shifts, strict=True)
        )
        whole = (3 * down[:, None] + across)[None, :, :, None]
        region = in_windows(whole, *self.window_size)[..., 0]
        differ = region[:, None] != region[:, :, None]
        return x.new_zeros(differ.shape).masked_fill(differ, _APART)


def in_windows(x: Tensor, down: int, right: int) -> Tensor:
    """Map (n, height, width, channels) to (n * windows, positions, channels).

    Args:
        x: whole windows fit into it.
        down: height of a window.
        right: width of a window.
    """
    n, height, width, channels = x.shape
    x = x.view(n, height // down, down, width // right, right, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, down * right, channels)


def of_windows(y: Tensor, down: int, x: Tensor) -> Tensor:
    """Put windows of a height together to the size of `x` (n, height, width, any channels)."""
    n, height, width, _ = x.shape
    right = y.shape[1] // down
    y = y.view(n, height // down, width // right, down, right, y.shape[-1])
    return y.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, y.shape[-1])


def _regions(places: Tensor, side: int, shift: int) -> Tensor:
    """(whole,) which of three regions along one axis (whole,) ascending places come from."""
    if not shift:
        return torch.zeros_like(places)
    whole = len(places)
    return (places >= whole - side).long() + (places >= whole - shift).long()


def is_window_attention(module: nn.Module) -> bool:
    """Whether a module is one of torchvision's two."""
    kind = type(module)
    names = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    return kind.__module__ == _MODULE and kind.__name__ in names and runs_its_class(module)
