"""Layers whose weights a network's own code computes, made layers of those weights.

Weight standardisation (Qiao et al. 2019), also scaled (Brock et al. 2021), an equalised learning
rate, a mask, a convolution of a parameter that is in no layer: in evaluation mode such a module
does what a layer of fixed weights does. It is found by what it calls, proven on random inputs, and
replaced, as PyTorch's own weight normalization is. So a cut leaves the weights that stay as they
were, in place of computing them anew from fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automl_compress.compress.kinds import LAYERS, TRANSPOSED
from automl_compress.compress.modules import become, own_copy, runs_its_class
from automl_compress.compress.quantize import COMPUTE, is_quantized

_CONVOLUTION: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED: Final = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_KINDS: Final[dict[Any, tuple[type[nn.Module], tuple[str, ...]]]] = {
    F.linear: (nn.Linear, _CONVOLUTION[:3]),
    torch.conv1d: (nn.Conv1d, _CONVOLUTION),
    torch.conv2d: (nn.Conv2d, _CONVOLUTION),
    torch.conv3d: (nn.Conv3d, _CONVOLUTION),
    torch.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    torch.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    torch.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
}
"""By function, the layer that calls it, and its arguments in their order."""
_MOST_AXES: Final = 5
"""Of a weight: two of channels and three of positions."""
_WIDEST_STEP: Final = 8
"""Greater numbers of a module are not taken for its dilation."""


@dataclass(frozen=True)
class _Call:
    """One call of a layer's function."""

    kind: type[nn.Module]
    arguments: Mapping[str, Any]
    output: Tensor


def replace_computed_layers(model: nn.Module) -> None:
    """Put a plain layer in place of every module that proves to be one.

    Args:
        model: changed in place; in evaluation mode.
    """
    for name, module in list(model.named_modules()):
        if name and _may_be_layer(module):
            layer = _proven_layer(module)
            if layer is not None:
                vars(layer).update({n: v for n, v in vars(module).items() if n not in vars(layer)})
                become(module, layer)


def _may_be_layer(module: nn.Module) -> bool:
    """Whether a module may compute what a layer does, by code of its own."""
    kind = type(module)
    known = kind.__module__.startswith("torch.nn.") or is_quantized(module)
    if known or not runs_its_class(module):
        return False
    if isinstance(module, LAYERS):
        base = next(kind for kind in LAYERS if isinstance(module, kind))
        return any(getattr(kind, m, None) is not getattr(base, m, None) for m in COMPUTE)
    alone = not any(True for child in module.children() for _ in child.parameters())
    return alone and any(True for _ in _weights(module))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """What may be the weight of a layer, or what it is computed from."""
    for parameter in module._parameters.values():
        if parameter is not None and 2 <= parameter.dim() <= _MOST_AXES:
            yield parameter


def _proven_layer(module: nn.Module) -> nn.Module | None:
    """The layer that computes what a module does on two random inputs; None when it is none."""
    generator = torch.Generator().manual_seed(0)
    probed = own_copy(module)  # it may keep something of what it reads
    for channels, places in (
        _layer_inputs(module) if isinstance(module, LAYERS) else _inputs(module)
    ):
        shapes = [(2, channels, *(n + more for n in places)) for more in (0, 1)]
        if not places:
            shapes = [(2, channels), (2, 3, channels)]
        one, other = (_only_call(probed, torch.randn(s, generator=generator)) for s in shapes)
        if one is not None and other is not None and _same_layer(one, other):
            return _layer(one)
    return None


def _layer_inputs(layer: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Channels that a layer says it reads, and the fewest positions."""
    if isinstance(layer, nn.Linear):
        yield layer.in_features, ()
    else:
        reach = zip(layer.kernel_size, layer.dilation, strict=True)
        yield layer.in_channels, tuple(step * (size - 1) + 1 for size, step in reach)


def _inputs(module: nn.Module) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Channels and positions that a module may read, by its parameters and numbers."""
    own = {n for n in vars(module).values() if type(n) is int and n > 0}
    step = max((n for n in own if n <= _WIDEST_STEP), default=1)
    for weight in _weights(module):
        places = tuple(step * (size - 1) + 1 for size in weight.shape[2:])
        inputs = weight.shape[1]
        groups = sorted(n for n in own if n <= len(weight))
        for channels in dict.fromkeys((inputs, len(weight), *(inputs * n for n in groups))):
            yield channels, places


def _only_call(module: nn.Module, probe: Tensor) -> _Call | None:
    """The call of a layer's function that is all a module does with its input, if there is one."""
    mode = _Calls()
    try:
        with torch.no_grad(), mode:
            output = module(probe.clone())
    except Exception:  # it takes no such input
        return None
    if len(mode.found) != 1 or not isinstance(output, Tensor):
        return None
    call = mode.found[0]
    same = torch.equal(call.arguments["input"], probe) and output.shape == call.output.shape
    return call if same and torch.equal(output, call.output) else None


def _same_layer(one: _Call, other: _Call) -> bool:
    """Whether two calls for different inputs are of one layer."""
    if one.kind is not other.kind or one.arguments.keys() != other.arguments.keys():
        return False
    pairs = [(one.arguments[n], other.arguments[n]) for n in one.arguments if n != "input"]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in pairs
    )


def _layer(call: _Call) -> nn.Module:
    """A frozen layer that makes a call, in evaluation mode."""
    settings = dict(call.arguments)
    weight, bias = settings.pop("weight"), settings.pop("bias", None)
    del settings["input"]
    groups = settings.get("groups", 1)
    widths = len(weight), weight.shape[1] * groups
    if call.kind in TRANSPOSED:
        widths = weight.shape[1] * groups, len(weight)
    if call.kind is not nn.Linear:
        settings["kernel_size"] = tuple(weight.shape[2:])
    outputs, inputs = widths
    layer = call.kind(inputs, outputs, bias=bias is not None, device="meta", **settings)
    tensors = {"weight": weight, "bias": bias}
    for name, tensor in tensors.items():
        if tensor is not None:
            layer._parameters[name] = nn.Parameter(tensor.detach().clone(), requires_grad=False)
    return layer.eval()


class _Calls(TorchFunctionMode):
    """Keeps the calls of layers' functions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _KINDS:
            kind, names = _KINDS[func]
            arguments = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            self.found.append(_Call(kind, arguments, output.clone()))
        return output
