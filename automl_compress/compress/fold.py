"""BatchNorm folded into the layers before it: the same outputs from fewer operations.

In evaluation mode a BatchNorm is a gain and an offset per channel, which the weights and the bias
of the layer that feeds it can carry. Rounded weights stay on their grid: the gain goes into each
channel's step, and a negative one turns the integers' signs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.kinds import BATCH_NORMS
from automl_compress.compress.modules import become, share_copy
from automl_compress.compress.quantize import scale_outputs

_FOLDABLE: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TOLERANCE: Final = 1e-4
"""Largest difference, over the largest output, that rounding explains."""


def foldable_norms(model: nn.Module, example_input: Tensor) -> dict[str, str]:
    """BatchNorms that can be folded, by name, with the layer each follows.

    A norm is foldable when it reads just what a layer gives, both run once, and the folded
    network's outputs prove to be the original's.

    Args:
        model: a network in evaluation mode; not changed.
        example_input: what it takes.
    """
    pairs = _followers(model, example_input)
    with torch.no_grad():
        expected = model(example_input)
        if _same(_folded(model, pairs)(example_input), expected):
            return pairs
        return {
            norm: layer
            for norm, layer in pairs.items()
            if _same(_folded(model, {norm: layer})(example_input), expected)
        }


def fold_norms(network: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold BatchNorms into layers, in place; changed tensors become the network's own.

    Args:
        network: the network of `foldable_norms`, or a compressed form of it.
        pairs: from `foldable_norms`.
    """
    for norm_name, layer_name in pairs.items():
        norm = network.get_submodule(norm_name)
        layer: Any = network.get_submodule(layer_name)
        gain, offset = gain_and_offset(norm, layer.bias)
        scale_outputs(layer, gain)
        layer._parameters["bias"] = nn.Parameter(offset, requires_grad=False)
        become(norm, nn.Identity().eval())


def gain_and_offset(norm: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation mode multiplies its input by, and adds to it.

    Args:
        norm: the BatchNorm.
        bias: (channels,) of the layer before it, which goes into the offset; or None.

    Returns:
        Both of shape (channels,).
    """
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    offset = -norm.running_mean * gain if bias is None else (bias - norm.running_mean) * gain
    return gain, offset if norm.bias is None else offset + norm.bias


def _followers(model: nn.Module, example_input: Tensor) -> dict[str, str]:
    """Norms that are called with the very tensor a layer returned; both called once."""
    calls: Counter[str] = Counter()
    outputs: dict[int, tuple[str, Tensor]] = {}  # tensors are held, so that no id is used twice
    pairs: dict[str, str] = {}

    def after_layer(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            calls[name] += 1
            outputs[id(output)] = (name, output)

        return hook

    def before_norm(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[name] += 1
            if inputs and id(inputs[0]) in outputs:
                pairs[name] = outputs[id(inputs[0])][0]

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _FOLDABLE) and "weight" in module._parameters:
            handles.append(module.register_forward_hook(after_layer(name)))
        elif isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        with torch.no_grad():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    used = Counter(pairs.values())
    return {n: x for n, x in pairs.items() if calls[n] == calls[x] == used[x] == 1}


def _folded(model: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    copy = share_copy(model)
    fold_norms(copy, pairs)
    return copy


def _same(actual: Any, expected: Any) -> bool:
    if not isinstance(actual, Tensor) or not isinstance(expected, Tensor):
        return False
    scale = max(float(expected.abs().max()), 1e-6)
    return float((actual - expected).abs().max()) <= _TOLERANCE * scale
