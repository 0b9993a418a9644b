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
from torch.utils._pytree import tree_map_only

from automl_compress.compress.attention import HeadLayers, HeadProduct, HeadScores
from automl_compress.compress.calibration import layer_input
from automl_compress.compress.channel_maps import ChannelMap, replace_channel_maps
from automl_compress.compress.cost_model import FLOAT_BYTES
from automl_compress.compress.kinds import (
    CONVOLUTIONS,
    LAYERS,
    NORMALIZATIONS,
    TRANSPOSED,
    channel_axis,
    parameter_axis,
)
from automl_compress.compress.modules import tensors_in
from automl_compress.compress.quantize import SCALE, can_quantize
from automl_compress.compress.structure import (
    ChannelGroup,
    LayerShape,
    ProductShape,
    StoredPart,
    Structure,
    product_name,
)
from automl_compress.compress.tracing.alike import make_alike
from automl_compress.compress.tracing.coupling import coupled_groups
from automl_compress.compress.tracing.dispatch import Mode, Operation, ProductCounter
from automl_compress.compress.tracing.reductions import ProductSizes
from automl_compress.compress.tracing.trial import tried_groups
from automl_compress.compress.tracing.working_copy import comparable_copy, working_copy
from automl_compress.errors import TraceError
from automl_compress.settings import one_line
from automl_compress.workload.torch_modes import usual_modes

_MAP_BYTES: Final = 2
"""Of an output channel of a channel map: its source."""
_UNLIKE: Final = 1e-3
"""Larger differences, over the largest output of an attention, are not put down to rounding."""
TIME_LIMIT: Final = 120.0
"""Seconds a trace may take by default."""


@usual_modes()  # in inference mode, views do not know what they view
def trace(
    model: nn.Module, example_input: Tensor, time_limit: float = TIME_LIMIT
) -> tuple[nn.Module, Structure]:
    """Follow a network once.

    Args:
        model: any network; not changed.
        example_input: (1, channels, height, width), or whatever the network takes.
        time_limit: seconds after which to give up; checked before every basic operation.

    Returns:
        A frozen copy in evaluation mode, on the processor, whose parameter-free channel shortcuts
        are replaced by `ChannelMap` modules, and its structure.

    Raises:
        TraceError: the network cannot be copied, run or followed, or not within the time limit; it
            is of another type than float32, or takes more than one tensor.
    """
    _check_input(example_input)
    return _trace(model, example_input.detach().cpu().clone(), time_limit)


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
            make_alike(comparable_copy(model), working, example)
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
        products += _written_products(working, one, tried)
    stored = tuple(_stored_parts(working, layers))
    inside = sum(part.channels * part.macs_per_channel for part in products)
    return working, Structure(tried, layers, stored, other_macs - inside, products)


def _check_attention(model: nn.Module, working: nn.Module, example: Tensor) -> None:
    """Check that attention made of layers gives what it gave before, on what it really reads."""
    made = [name for name, part in working.named_modules() if isinstance(part, HeadLayers)]
    if not made:
        return
    plain = comparable_copy(model)
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
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> None:
            if not isinstance(output, Tensor):
                return  # code of its own computes something else with the weights
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


def _written_products(
    model: nn.Module, example_input: Tensor, groups: tuple[ChannelGroup, ...]
) -> tuple[ProductShape, ...]:
    """Products of activations in the network's own code that groups can make smaller."""
    shares: dict[tuple[int, int], int] = defaultdict(int)
    for group in groups:
        for product in group.products if not group.protected else ():
            shares[product.call, product.size] += product.places * group.channels
    sizes = ProductSizes()
    if shares:
        with torch.no_grad(), sizes:
            model(example_input)
    count = len(example_input)
    return tuple(
        ProductShape(product_name(call), width, sizes.macs.get(call, 0) // count // size)
        for (call, size), width in shares.items()
    )


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
