"""Following a network: what its layers and other tensors cost, and which channels can be cut."""

from __future__ import annotations

import inspect
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_map_only

from automl_compress.compress.alike import make_alike
from automl_compress.compress.attention import (
    HeadLayers,
    HeadProduct,
    HeadScores,
    MultiheadAttention,
    can_be_layers,
)
from automl_compress.compress.calibration import layer_input
from automl_compress.compress.channel_maps import ChannelMap, replace_channel_maps
from automl_compress.compress.cost_model import FLOAT_BYTES
from automl_compress.compress.coupling import coupled_groups
from automl_compress.compress.dispatch import Mode, Operation, ProductCounter
from automl_compress.compress.label_rules import tensors_in
from automl_compress.compress.modules import (
    become,
    own_copy,
    shared_parameters,
    unwrapped,
    works_in_place,
)
from automl_compress.compress.quantize import SCALE, can_quantize
from automl_compress.compress.slicing import (
    CONVOLUTIONS,
    LAYERS,
    NORMALIZATIONS,
    TRANSPOSED,
    channel_axis,
    parameter_axis,
)
from automl_compress.compress.structure import LayerShape, ProductShape, StoredPart, Structure
from automl_compress.compress.trial import tried_groups
from automl_compress.compress.window_attention import ShiftedWindows, is_window_attention
from automl_compress.compress.written_attention import replace_written_attention
from automl_compress.errors import TraceError
from automl_compress.settings import one_line
from automl_compress.workload.synchronized import make_local

_MAP_BYTES: Final = 2
"""Of an output channel of a channel map: its source."""
_UNLIKE: Final = 1e-3
"""Larger differences, over the largest output of an attention, are not put down to rounding."""
TIME_LIMIT: Final = 120.0
"""Seconds a trace may take by default."""


def trace(
    model: nn.Module, example_input: Tensor, time_limit: float = TIME_LIMIT
) -> tuple[nn.Module, Structure]:
    """Follow a network once.

    Args:
        model: any network; not changed.
        example_input: (1, channels, height, width), or whatever the network takes.
        time_limit: seconds after which to give up; checked before every basic operation.

    Returns:
        A frozen copy in evaluation mode, whose parameter-free channel shortcuts are replaced by
        `ChannelMap` modules, and its structure.

    Raises:
        TraceError: the network cannot be copied, run or followed, or not within the time limit; it
            is of another type than float32, or takes more than one tensor.
    """
    _check_input(example_input)
    with torch.inference_mode(False):  # inside it, views do not know what they view
        return _trace(model, example_input.detach().clone(), time_limit)


def _check_input(example_input: object) -> None:
    """Check that a network is called with one tensor of at least one input."""
    if not isinstance(example_input, Tensor):
        raise TraceError(
            "an example input must be one tensor, but is a "
            f"{type(example_input).__name__}; put a network of several inputs into a module that "
            "takes one"
        )
    if not example_input.dim() or not len(example_input):
        raise TraceError(
            f"an example input must hold an input, but has the shape {tuple(example_input.shape)}; "
            "give one with a batch axis"
        )


def _check_call(model: nn.Module) -> None:
    """Check that a network can be called with one tensor alone."""
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError:
        needed = [
            name
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.default is parameter.empty
        ]
        raise TraceError(
            f"a network must take one tensor, but {type(model).__name__}.forward takes "
            f"{', '.join(needed) or 'none'}; put it into a module that takes one and divides it"
        ) from None


def _check_types(model: nn.Module) -> None:
    """Check that parameters are float32, which sizes are counted in and repairs compute in."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise TraceError(
                f"a network to compress must be float32, but '{name}' is {parameter.dtype}; "
                "convert it and its inputs with .float()"
            )


def _trace(model: nn.Module, example: Tensor, time_limit: float) -> tuple[nn.Module, Structure]:
    working = working_copy(model)
    _check_types(working)
    _check_call(working)
    with _Deadline(time_limit), _quiet(), _layer_by_layer():
        try:
            _check_attention(model, working, example)
            make_alike(_comparable(model), working, example)
            replace_channel_maps(working, example)
            one = _one_input(working, example)
            layers, other_macs = _measure_layers(working, one)
            products = _measure_products(working, one)
        except TraceError:
            raise
        except Exception as reason:
            raise TraceError(
                f"the network must run on its example input of shape {tuple(example.shape)}, but "
                f"failed with {type(reason).__name__}: {one_line(reason)}; check the model and "
                "the input's shape"
            ) from reason
        groups = coupled_groups(working, example, layers)
        tried = tuple(tried_groups(working, example, groups))
    stored = tuple(_stored_parts(working, layers))
    inside = sum(part.channels * part.macs_per_channel for part in products)
    return working, Structure(tried, layers, stored, other_macs - inside, products)


def _check_attention(model: nn.Module, working: nn.Module, example: Tensor) -> None:
    """Check that attention made of layers gives what it gave before, on what it really reads."""
    made = [name for name, part in working.named_modules() if isinstance(part, HeadLayers)]
    if not made:
        return
    plain = _comparable(model)
    inputs = [example]
    if example.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        inputs.append(torch.randn(example.shape, generator=generator))

    def check(name: str) -> Any:
        def hook(_: nn.Module, read: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            read, named = tree_map_only(Tensor, Tensor.clone, (read, named))
            expected = plain.get_submodule(name)(*read, **named)
            for one, other in zip(tensors_in(output), tensors_in(expected), strict=True):
                if not (other.is_floating_point() and other.numel()):
                    continue
                share = float((one - other).abs().max() / other.abs().max())
                if share > _UNLIKE:
                    raise TraceError(
                        f"attention in a network's own code must compute on its example input what "
                        f"it computes on random tokens, but '{name}' differs by {share:.1%} of its "
                        "largest output; register a forward hook on it, and it stays as it is"
                    )

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in made:
            part = working.get_submodule(name)
            handle = part.register_forward_hook(check(name), with_kwargs=True)
            stack.callback(handle.remove)
        for one in inputs:
            working(one)


class _Deadline(Mode):
    """Stops whatever runs inside when its time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation while there is time."""
        if time.monotonic() > self._end:
            raise TraceError(
                f"a network must be followed within {self._seconds:g} seconds, but is not; give a "
                "smaller example input or a longer time_limit"
            )
        return func(*args, **named)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of other libraries inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def working_copy(model: nn.Module, share: bool = False) -> nn.Module:
    """A frozen copy in evaluation mode, as every compressed network is made from.

    Nothing works in place, computed weights are plain parameters, and wrappers of compilation and
    parallel training are left out. A copy of such a copy, or of a compressed network, is like the
    first.

    Args:
        model: not changed.
        share: whether the values of parameters are shared, by copies that are only read or soon
            get other values; the largest networks take gigabytes.

    Raises:
        TraceError: the network is none, cannot be copied, is a single layer, or shares parameters.
    """
    working = _plain_copy(model, share)
    _check_modules(working)
    working.eval().requires_grad_(False)
    make_local(working)
    for module in list(working.modules()):
        _simplify(module)
    replace_written_attention(working)
    return working


def _comparable(model: nn.Module) -> nn.Module:
    """A copy to run, in which nothing is replaced."""
    plain = _plain_copy(model, share=True).eval()
    make_local(plain)
    return plain


def _plain_copy(model: nn.Module, share: bool) -> nn.Module:
    """A copy of what is inside a network's wrappers, in which nothing is replaced."""
    _check_network(model)
    model = unwrapped(model)
    try:
        return own_copy(model, shared_parameters(model) if share else None)
    except Exception as reason:
        raise TraceError(
            f"a network must be copyable, but copying failed with {type(reason).__name__}: "
            f"{one_line(reason)}; remove handles, locks and hooks that compute weights from it"
        ) from reason


def _check_network(model: object) -> None:
    """Check that a network is made of modules with values."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        kind = model.__name__ if isinstance(model, type) else f"a {type(model).__name__}"
        raise TraceError(
            f"a network must be an nn.Module that runs its own Python code, but is {kind}; "
            "give the module itself"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"modules must run their own Python code, but '{name}' is a "
                f"{type(module).__name__}; give the module that was scripted"
            )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise TraceError(
                f"parameters must have their sizes, but '{name}' has none yet; call the network "
                "on an input first"
            )
        if parameter.is_meta:
            raise TraceError(
                f"parameters must have values, but '{name}' is on the meta device; load the weights"
            )


def _check_modules(model: nn.Module) -> None:
    """Check that layers have names, and tensors of their own.

    Raises:
        TraceError: the network is a single layer, or two modules share a parameter.
    """
    if isinstance(model, LAYERS):
        raise TraceError(
            f"a network must hold its layers as submodules, but is itself a "
            f"{type(model).__name__}; put it into an nn.Sequential"
        )
    owners: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for last, parameter in module._parameters.items():
            name = f"{module_name}.{last}".lstrip(".")
            if parameter is not None and owners.setdefault(id(parameter), name) != name:
                raise TraceError(
                    f"parameters must belong to one module, but '{name}' is also "
                    f"'{owners[id(parameter)]}'; give each module a copy"
                )


def _simplify(module: nn.Module) -> None:
    """Undo, in place, what hides a module's work from those who follow it."""
    if getattr(module, "inplace", None) is True and not works_in_place(module):
        module.inplace = False  # type: ignore[assignment]  # hides the graph
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # its fused path bypasses the layers' own forward
    if isinstance(module, nn.MultiheadAttention) and can_be_layers(module):
        become(module, MultiheadAttention(module).eval())
    if is_window_attention(module):
        become(module, ShiftedWindows(module).eval())
    _fix_hooked(module)
    if parametrize.is_parametrized(module):
        _fix_parametrized(module)


def _fix_hooked(module: nn.Module) -> None:
    """Turn tensors that PyTorch's older normalizations and masks compute into parameters."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _fix_parametrized(module: nn.Module) -> None:
    """Turn computed tensors into plain parameters.

    `remove_parametrizations` would change the module's class, which the original shares.
    """
    assert isinstance(module.parametrizations, nn.ModuleDict)
    tensors = {name: getattr(module, name).detach() for name in module.parametrizations}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    module._parameters.update({n: nn.Parameter(t, False) for n, t in tensors.items()})


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Attention in single products, which can be counted, in place of a fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _one_input(model: nn.Module, example: Tensor) -> Tensor:
    """The first input alone, or all where a network does not run on one.

    What runs once for any number of inputs, such as a layer that makes a table, counts in full.
    """
    if len(example) == 1:
        return example
    try:
        with torch.no_grad():
            model(example[:1])
    except TraceError:
        raise
    except Exception:
        return example
    return example[:1]


def _measure_layers(model: nn.Module, example_input: Tensor) -> tuple[tuple[LayerShape, ...], int]:
    """Shapes of all layers that run, and the multiply-accumulates of everything else."""
    positions: dict[str, int] = defaultdict(int)
    handles = []

    def watch(name: str) -> Any:
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> None:
            counted = layer_input(inputs, named) if isinstance(module, TRANSPOSED) else output
            channels = counted.shape[channel_axis(module, counted)]
            positions[name] += counted.numel() // channels

        return hook

    named = {n: m for n, m in model.named_modules() if _is_layer(m)}
    for name, module in named.items():
        handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
    counter = ProductCounter()
    try:
        with torch.no_grad(), counter:
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    count = len(example_input)
    layers = tuple(
        _layer_shape(n, m, positions[n] // count) for n, m in named.items() if n in positions
    )
    inside = sum(
        s.positions * s.kernel * s.out_channels * (s.in_channels // s.groups) for s in layers
    )
    total = counter.macs // count
    return layers, max(0, total - inside)


def _measure_products(model: nn.Module, example_input: Tensor) -> tuple[ProductShape, ...]:
    """Products of activations that run as modules."""
    counts: dict[str, int] = defaultdict(int)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weights = output if isinstance(module, HeadScores) else inputs[0]
            counts[name] += weights.numel() // len(example_input)

        return hook

    named = {n: m for n, m in model.named_modules() if isinstance(m, HeadProduct)}
    handles = [module.register_forward_hook(watch(name)) for name, module in named.items()]
    try:
        if named:
            with torch.no_grad():
                model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(ProductShape(n, m.width, counts[n]) for n, m in named.items() if n in counts)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that holds its weights itself."""
    return isinstance(module, LAYERS) and "weight" in module._parameters


def _layer_shape(name: str, module: Any, positions: int) -> LayerShape:
    linear = isinstance(module, nn.Linear)
    return LayerShape(
        name=name,
        kind=type(module).__name__,
        out_channels=module.out_features if linear else module.out_channels,
        in_channels=module.in_features if linear else module.in_channels,
        groups=1 if linear else module.groups,
        kernel=1 if linear else int(np.prod(module.kernel_size)),
        positions=positions,
        bias=module.bias is not None,
        quantizable=can_quantize(module),
        convolution=isinstance(module, CONVOLUTIONS),
    )


def _stored_parts(model: nn.Module, layers: tuple[LayerShape, ...]) -> Iterator[StoredPart]:
    """Everything but layers' weights that a file must hold; step counters of BatchNorm are not."""
    layer_names = {layer.name for layer in layers}
    for name, module in model.named_modules():
        counted = ("weight", "bias", SCALE) if name in layer_names else ()
        if isinstance(module, ChannelMap):
            yield StoredPart(name, module.out_channels, 0, _MAP_BYTES)
            continue
        normalizes = isinstance(module, (*NORMALIZATIONS, nn.PReLU))
        for last, tensor in (*module._parameters.items(), *module._buffers.items()):
            counter = tensor is None or (tensor.dim() == 0 and not tensor.is_floating_point())
            remade = last in module._non_persistent_buffers_set
            if counter or last in counted or (remade and normalizes):
                continue
            assert tensor is not None
            own = name if normalizes else f"{name}.{last}".lstrip(".")
            channels = max(1, tensor.shape[parameter_axis(tensor)] if tensor.dim() else 1)
            values = tensor.numel() // channels
            params = values * (last in module._parameters)
            yield StoredPart(own, channels, params, values * _bytes(tensor), only_cut=remade)


def _bytes(tensor: Tensor) -> int:
    return FLOAT_BYTES if tensor.is_floating_point() else tensor.element_size()
