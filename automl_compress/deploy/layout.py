"""What a compressed network is made of beside the values of its tensors, and the way back.

A network is rebuilt from its original architecture: shortcuts become channel maps, layers are cut
to the stored shapes, tensors are filled in, layers get their low-bit form. All of this is
`compress`' own code; nothing is read but plain data, so that a file cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.kinds import BATCH_NORMS
from automl_compress.compress.modules import become, keep_in_place, trainable, works_in_place
from automl_compress.compress.places import axis_size, can_cut, places_of_shapes
from automl_compress.compress.quantize import (
    SCALE,
    InputQuantizer,
    can_quantize,
    is_quantized,
    layer_of_grids,
    quantize_weight,
)
from automl_compress.compress.slicing import cut_channels
from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.errors import CompressError, DeployError
from automl_compress.settings import one_line
from automl_compress.space import Policy

FLOAT: Final = "float32"
"""The usual type of a tensor, left out of files."""
QUANTIZER: Final = "input_quantizer"
_MOST_BITS: Final = 8


@dataclass(frozen=True)
class StoredTensor:
    """One tensor.

    Args:
        shape: its shape.
        dtype: its type's name in torch.
        bits: 1..8 where it holds weights on a low-bit grid, otherwise None.
        kernels: how many 2-D kernels are stored where zero kernels are left out, otherwise None.
        strides: its strides where they are not those of a contiguous tensor; they may decide in
            which order a convolution sums.
    """

    shape: tuple[int, ...]
    dtype: str = FLOAT
    bits: int | None = None
    kernels: int | None = None
    strides: tuple[int, ...] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def to_json(self) -> Any:
        """The shape alone, or a mapping with what is not as usual."""
        usual = StoredTensor(self.shape)
        changed = {k: v for k, v in vars(self).items() if v != getattr(usual, k)}
        return {"shape": self.shape, **changed} if changed else self.shape

    @classmethod
    def from_json(cls, data: Any) -> StoredTensor:
        """What `to_json` gave, after JSON has turned tuples into lists.

        Raises:
            ValueError, TypeError: it is something else.
        """
        values = dict(data) if isinstance(data, Mapping) else {"shape": data}
        for name in ("shape", "strides"):
            if values.get(name) is not None:
                values[name] = tuple(map(_natural, values[name]))
        if values.get("bits") is not None and _natural(values["bits"]) not in range(1, 9):
            raise ValueError(f"{values['bits']} is no number of bits")
        if values.get("kernels") is not None:
            _natural(values["kernels"])
        stored = cls(**values)
        if not isinstance(getattr(torch, stored.dtype, None), torch.dtype):
            raise TypeError(f"'{stored.dtype}' is no type of tensors")
        return stored


@dataclass(frozen=True)
class Layout:
    """Everything about a compressed network but the values of its tensors.

    Args:
        tensors: by module name and by the tensor's name in it, in the network's order.
        inputs: bits and zero point of layers whose input is rounded, by layer name.
        maps: input channels and stride of every channel map, by module name.
        bare: channels of modules that are cut but hold no tensor, by module name.
        in_place: modules that must work in place, see `compress.tracing.alike`.
        policy: what the network was built by; None when not known.
        architecture: the original network's name for `build_model`; None when not known.
        arguments: keyword arguments of the architecture.
    """

    tensors: Mapping[str, Mapping[str, StoredTensor]]
    inputs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    bare: Mapping[str, int] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()
    policy: Policy | None = None
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def flat(self) -> Iterator[tuple[str, StoredTensor]]:
        """Full names and tensors, in order."""
        for module, tensors in self.tensors.items():
            for name, stored in tensors.items():
                yield f"{module}.{name}".lstrip("."), stored

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is empty is left out."""
        data = {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "tensors": {
                module: {name: stored.to_json() for name, stored in tensors.items()}
                for module, tensors in self.tensors.items()
            },
            "inputs": self.inputs,
            "maps": self.maps,
            "bare": self.bare,
            "in_place": list(self.in_place),
        }
        present: dict[str, Any] = {k: v for k, v in data.items() if v}
        if self.policy is not None:
            present["policy"] = dict(self.policy)
        return present

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """What `to_dict` gave, read back from JSON.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        return cls(
            tensors={
                module: {name: StoredTensor.from_json(stored) for name, stored in tensors.items()}
                for module, tensors in _pairs(data, "tensors")
            },
            inputs={n: input_grid(*grid) for n, grid in _pairs(data, "inputs")},
            maps={n: (_natural(i), _natural(stride)) for n, (i, stride) in _pairs(data, "maps")},
            bare={n: _natural(count) for n, count in _pairs(data, "bare")},
            in_place=tuple(str(name) for name in data.get("in_place", ())),
            policy=Policy(data["policy"]) if "policy" in data else None,
            architecture=network_name(data),
            arguments=dict(data.get("arguments", {})),
        )


def network_name(data: Mapping[str, Any]) -> str | None:
    """The original network's name in a layout's JSON form; None where it has none.

    Raises:
        TypeError: it is no text.
    """
    name = data.get("architecture")
    if not isinstance(name, str | None):
        raise TypeError(f"{name!r} is no name of a network")
    return name


def _pairs(data: Mapping[str, Any], key: str) -> Any:
    return data.get(key, {}).items()


def input_grid(bits: Any, zero_point: Any) -> tuple[int, int]:
    """Bits and zero point of an `InputQuantizer`, as a file has them.

    Raises:
        ValueError: there is no such grid.
    """
    if not 1 <= _natural(bits) <= _MOST_BITS or _natural(zero_point) >= 2**bits:
        raise ValueError(f"no grid of {bits} bits has the zero point {zero_point}")
    return bits, zero_point


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no natural number")
    return value


def describe(
    network: nn.Module,
    policy: Policy | None,
    architecture: str | None,
    arguments: Mapping[str, Any] | None,
) -> Layout:
    """The layout of a network.

    Args:
        network: compressed or not, a `working_copy`.
        policy: what it was built by.
        architecture: the original network's name for `build_model`.
        arguments: keyword arguments of the architecture, JSON.

    Raises:
        DeployError: the policy is not that of the network, or weights are off their grid.
    """
    modules = dict(network.named_modules())
    if policy is not None:
        _check_policy(modules, policy)
    tensors: dict[str, dict[str, StoredTensor]] = {}
    for name, module in modules.items():
        held = {last: _stored(name, module, last, t) for last, t in module_tensors(module).items()}
        if held:
            tensors[name] = held
    return Layout(
        tensors=tensors,
        inputs={
            name.removesuffix(f".{QUANTIZER}"): (module.bits, module.zero_point)
            for name, module in modules.items()
            if isinstance(module, InputQuantizer)
        },
        maps={
            name: (module.in_channels, module.stride)
            for name, module in modules.items()
            if isinstance(module, ChannelMap)
        },
        bare={
            name: axis_size(network, name, "out")
            for name, module in modules.items()
            if can_cut(module) and name not in tensors
        },
        in_place=tuple(name for name, module in modules.items() if works_in_place(module)),
        policy=policy,
        architecture=architecture,
        arguments=arguments or {},
    )


def tensors_of(network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """All tensors of a layout by full name, on the CPU."""
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    return {name: state[name].detach().cpu() for name, _ in layout.flat()}


def in_strides(tensor: Tensor, stored: StoredTensor) -> Tensor:
    """A tensor's values in the strides that they had when they were stored.

    Raises:
        ValueError: the strides do not fit the shape.
    """
    if stored.strides is None:
        return tensor
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, stored.strides, strict=True)) + 1
    if reach != tensor.numel():
        raise ValueError(f"strides {stored.strides} do not fit the shape {stored.shape}")
    return torch.empty_strided(tensor.shape, stored.strides, dtype=tensor.dtype).copy_(tensor)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors that a file must hold; step counters of BatchNorm are not.

    Nor are buffers that are not persistent; cutting makes them persistent.
    """
    tables = (*module._parameters.items(), *module._buffers.items())
    counters = {"num_batches_tracked"} if isinstance(module, BATCH_NORMS) else set()
    left_out = counters | module._non_persistent_buffers_set
    return {n: t.detach() for n, t in tables if t is not None and n not in left_out}


def _stored(name: str, module: Any, last: str, tensor: Tensor) -> StoredTensor:
    bits: int | None = None
    if last == "weight" and is_quantized(module):
        bits = module.weight_bits
        if bits is not None and not torch.equal(
            quantize_weight(tensor, module.weight_scale, bits), tensor
        ):
            raise DeployError(
                f"weights must be multiples of their scale, but those of '{name}' are not (they "
                f"were changed after quantization); round them to {bits} bits again"
            )
    return StoredTensor(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        bits=bits,
        strides=_strides(tensor),
    )


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a tensor that is dense in another order than usual."""
    dense = torch.empty_like(tensor, memory_format=torch.preserve_format)
    unusual = not tensor.is_contiguous() and dense.stride() == tensor.stride()
    return tensor.stride() if unusual else None


def _check_policy(modules: Mapping[str, nn.Module], policy: Policy) -> None:
    """Check that a network has the groups and bits its policy says."""
    for name in policy.of_kind("channels"):
        if name not in modules:
            raise DeployError(
                f"a policy must be that of its network, but there is no group '{name}'; give the "
                "policy the network was built by"
            )
    for name, bits in policy.of_kind("weight_bits").items():
        _check_bits("weight_bits", name, bits, getattr(modules.get(name), "weight_bits", None))
    for name, bits in policy.of_kind("activation_bits").items():
        quantizer = getattr(modules.get(name), QUANTIZER, None)
        _check_bits("activation_bits", name, bits, getattr(quantizer, "bits", None))


def _check_bits(kind: str, name: str, bits: float, actual: int | None) -> None:
    if bits != actual:
        raise DeployError(
            f"a policy must be that of its network, but '{kind}:{name}' is {bits} where the "
            f"network has {actual or 'none'}; give the policy the network was built by"
        )


def rebuild(layout: Layout, tensors: Mapping[str, Tensor], architecture: nn.Module) -> nn.Module:
    """The network that a layout describes.

    Args:
        layout: as `describe` gave it.
        tensors: by full name; weights are floats, also where they are on a low-bit grid.
        architecture: the original network with any values; not changed.

    Returns:
        A network in evaluation mode, with trainable parameters and tensors of its own.

    Raises:
        DeployError: the layout is that of another network.
        TraceError: the architecture cannot be copied.
    """
    network = working_copy(architecture, share=True)
    try:
        for name, (in_channels, stride) in layout.maps.items():
            sources = tensors[f"{name}.sources"]
            shortcut = ChannelMap(sources, in_channels, stride)
            become(network.get_submodule(name), shortcut.eval())
        for name in layout.in_place:
            keep_in_place(network.get_submodule(name))
        _drop_folded_norms(network, layout)
        network = cut_channels(network, places_of_shapes(network, _plain_shapes(layout)))
        filled = _fill(network, layout, tensors)
        _check_complete(network, filled)
        for name in dict.fromkeys((*_low_bit(layout), *layout.inputs)):
            _quantize(network, name, layout, tensors)
    except (CompressError, AttributeError, KeyError, IndexError) as reason:
        raise DeployError(
            f"a file must be read into the network it was made from, but this one differs: "
            f"{one_line(reason)}; give that network as 'model'"
        ) from reason
    return trainable(network)


def _plain_shapes(layout: Layout) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes before layers get their low-bit form, by module and tensor."""
    shapes = {
        module: {last: s.shape for last, s in held.items() if last != SCALE}
        for module, held in layout.tensors.items()
        if not module.endswith(f".{QUANTIZER}")
    }
    return shapes | {name: {"": (channels,)} for name, channels in layout.bare.items()}


def _drop_folded_norms(network: nn.Module, layout: Layout) -> None:
    """Put an identity in place of every BatchNorm the layout knows nothing of: it was folded."""
    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS) and name not in {*layout.tensors, *layout.bare}:
            become(module, nn.Identity().eval())


def _low_bit(layout: Layout) -> list[str]:
    """Layers whose weights are on a low-bit grid."""
    return [
        name
        for name, held in layout.tensors.items()
        if "weight" in held and held["weight"].bits is not None
    ]


def _fill(network: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> set[str]:
    """Put tensors into a cut network; the full names of those that were put."""
    filled = set()
    for module_name, shapes in _plain_shapes(layout).items():
        if module_name in layout.bare:
            continue
        module = network.get_submodule(module_name)
        for last in shapes:
            name = f"{module_name}.{last}".lstrip(".")
            held = module_tensors(module).get(last)
            if held is None and last == "bias" and "bias" in module._parameters:
                held = tensors[name]  # of a BatchNorm that was folded
            if held is None:
                raise DeployError(f"the network has no '{name}'")
            if held.shape != tensors[name].shape:
                raise DeployError(
                    f"'{name}' is {tuple(tensors[name].shape)} in the file, {tuple(held.shape)} "
                    "in the network"
                )
            if last in module._parameters:
                module._parameters[last] = nn.Parameter(tensors[name], requires_grad=False)
            else:
                module._buffers[last] = tensors[name]
            filled.add(name)
    return filled


def _check_complete(network: nn.Module, filled: set[str]) -> None:
    for module_name, module in network.named_modules():
        for last in module_tensors(module):
            name = f"{module_name}.{last}".lstrip(".")
            if name not in filled:
                raise DeployError(f"the file has no '{name}'")


def _quantize(network: nn.Module, name: str, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    layer = network.get_submodule(name)
    if not can_quantize(layer):
        raise DeployError(f"'{name}' is a {type(layer).__name__}, which has no low-bit form")
    quantizer = None
    if name in layout.inputs:
        scale = tensors[f"{name}.{QUANTIZER}.scale"]
        quantizer = InputQuantizer(float(scale), *layout.inputs[name])
        quantizer.scale = scale
    bits = layout.tensors[name]["weight"].bits
    scales = None if bits is None else tensors[f"{name}.{SCALE}"]
    become(layer, layer_of_grids(layer, bits, scales, quantizer))
