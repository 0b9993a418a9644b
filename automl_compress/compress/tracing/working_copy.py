"""The copy of a network that is followed and cut: nothing in it hides what it computes."""

from __future__ import annotations

import dis
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from automl_compress.compress.attention import MultiheadAttention, can_be_layers
from automl_compress.compress.kinds import LAYERS
from automl_compress.compress.modules import (
    become,
    own_copy,
    shared_parameters,
    works_in_place,
)
from automl_compress.compress.tracing.computed_layers import replace_computed_layers
from automl_compress.compress.tracing.window_attention import ShiftedWindows, is_window_attention
from automl_compress.compress.tracing.written_attention import replace_written_attention
from automl_compress.errors import TraceError
from automl_compress.settings import one_line
from automl_compress.workload.placement import CPU, move
from automl_compress.workload.synchronized import make_local
from automl_compress.workload.wrappers import unwrapped


def working_copy(model: nn.Module, share: bool = False) -> nn.Module:
    """A frozen copy on the processor in evaluation mode, as compressed networks are made from.

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
    replace_computed_layers(working)
    replace_written_attention(working)
    return working


def comparable_copy(model: nn.Module) -> nn.Module:
    """A copy to run, in which nothing is replaced."""
    plain = _plain_copy(model, share=True).eval()
    make_local(plain)
    return plain


def _plain_copy(model: nn.Module, share: bool) -> nn.Module:
    """A copy of what is inside a network's wrappers, in which nothing is replaced."""
    _check_network(model)
    model = unwrapped(model)
    try:
        return move(own_copy(model, shared_parameters(model) if share else None), CPU)
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
    if not isinstance(module, LAYERS):
        _hold_tensors(module)


def _hold_tensors(module: nn.Module) -> None:
    """Turn tensors that a module keeps as plain attributes into buffers, so that they can be cut.

    Like what else its own code makes, a file holds them only where they are cut.
    """
    own = vars(module)
    kept = [n for n, v in own.items() if type(v) is Tensor and v.is_floating_point() and v.dim()]
    for name in kept:
        if name not in _assigned_names(type(module)):
            module.register_buffer(name, own.pop(name), persistent=False)


def _assigned_names(kind: type[nn.Module]) -> set[str]:
    """Attributes that methods set, maybe to a tensor at one time and to a number at another."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = [m for c in classes for name, m in vars(c).items() if name != "__init__"]
    codes = [m.__code__ for m in methods if isinstance(m, FunctionType)]
    steps = (step for code in codes for step in dis.get_instructions(code))
    return {step.argval for step in steps if step.opname == "STORE_ATTR"}


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
