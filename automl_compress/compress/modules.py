"""Copies of networks that share tensors, and modules that change under all their names."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any, Final, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def share_copy(model: M) -> M:
    """A copy with modules of its own that shares all parameters and buffers.

    What `copy.deepcopy` gives with those tensors in its memo, in a tenth of the time: modules are
    known by their dictionaries, most of whose entries are numbers and empty tables.
    """
    modules = list(model.modules())
    memo: dict[int, Any] = {
        id(tensor): tensor
        for module in modules
        for table in (module._parameters, module._buffers)
        for tensor in table.values()
        if tensor is not None
    }
    if any(map(_copies_itself, {type(module) for module in modules})):
        return own_copy(model, memo)
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        state = vars(memo[id(module)])
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _FIXED:
                state[name] = value
            elif kind in _TABLES and not value:
                state[name] = memo[id(value)] = kind()
            else:
                state[name] = _shared(value, memo)
    result = memo[id(model)]
    assert isinstance(result, type(model))
    _rebind_hooks(result, memo)
    return result


def keep_in_place(module: nn.Module) -> None:
    """Let a module and its copies work in place, because what a network gives depends on it."""
    module.inplace = True  # type: ignore[assignment]
    vars(module)[_IN_PLACE] = True


def works_in_place(module: nn.Module) -> bool:
    """Whether `keep_in_place` was said of it."""
    return _IN_PLACE in vars(module)


_IN_PLACE: Final = "_stays_in_place"


def own_copy(model: M, memo: Mapping[int, Any] | None = None) -> M:
    """What `copy.deepcopy` gives, with hooks that refer to the copy where they did to the original.

    A function that is copied keeps what it was defined in: a hook `lambda m, x, y:
    self.kept.append(y)` would write to the original, and the copy read what is there from before.
    Tensors that a network computed and keeps, which `copy.deepcopy` refuses, are detached.

    Args:
        model: not changed.
        memo: what stands for the original's parts, by their identity.
    """
    known = {id(tensor): tensor.detach() for tensor in _computed_tensors(model)} | dict(memo or {})
    copied = copy.deepcopy(model, known)
    _rebind_hooks(copied, known)
    return copied


def _computed_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors computed from parameters, by hooks or kept for later."""
    for module in model.modules():
        yield from (tensor for tensor in tensors_in(vars(module)) if tensor.grad_fn is not None)


def _rebind_hooks(model: nn.Module, memo: dict[int, Any]) -> None:
    for module in model.modules():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in table.items():
                if _refers(hook, memo, set()):
                    table[key] = _rebound(hook, memo)


def _refers(value: object, memo: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether a value was copied, or is a function that refers to what was."""
    if id(value) in memo:
        return True
    if not isinstance(value, FunctionType) or id(value) in seen:
        return False
    seen.add(id(value))
    held = [*_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return any(_refers(one, memo, seen) for one in held)


def _contents(function: FunctionType) -> list[object]:
    """What a function's closure holds by now."""
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is in it yet
            found.append(cell.cell_contents)
    return found


def _rebound(function: Any, memo: dict[int, Any]) -> Any:
    """The same function, which refers to copies wherever it did to what was copied."""

    def stand_in(value: Any) -> Any:
        if id(value) in memo:
            return memo[id(value)]
        return _rebound(value, memo) if _refers(value, memo, set()) else value

    code, name = function.__code__, function.__name__
    cells = tuple(CellType() for _ in function.__closure__ or ())
    bound = FunctionType(code, function.__globals__, name, None, cells or None)
    memo[id(function)] = bound  # it may refer to itself
    for cell, before in zip(cells, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            cell.cell_contents = stand_in(before.cell_contents)
    bound.__defaults__ = tuple(map(stand_in, function.__defaults__ or ())) or None
    named = function.__kwdefaults__ or {}
    bound.__kwdefaults__ = {key: stand_in(value) for key, value in named.items()} or None
    return bound


_FIXED: Final = frozenset({type(None), bool, int, float, str})
_TABLES: Final = frozenset({dict, OrderedDict, set})
_PLAIN_STATE: Final = {
    f"torch.nn.modules.{name}"
    for name in ("module", "conv", "activation", "transformer", "upsampling")
}
"""Where states are restored by updating a dictionary, and defaults are added for old files."""


def _copies_itself(kind: type[nn.Module]) -> bool:
    """Whether modules of a class may need more than their dictionaries to be copied."""
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return True
    states = (getattr(kind, name, None) for name in ("__getstate__", "__setstate__"))
    known = all(s is None or getattr(s, "__module__", "") in ("", *_PLAIN_STATE) for s in states)
    return hasattr(kind, "__deepcopy__") or not known


def _shared(value: object, memo: dict[int, object]) -> object:
    """A value of a module's dictionary in the copy."""
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        assert isinstance(value, dict)
        members = value.values()
        if all(member is None or id(member) in memo for member in members):
            copies = (None if member is None else memo[id(member)] for member in members)
            return kind(zip(value, copies, strict=True))
    elif kind is tuple or kind is set:
        assert isinstance(value, (tuple, set))
        if all(type(part) in _FIXED for part in value):
            return kind(value)
    return copy.deepcopy(value, memo)


def shared_parameters(model: nn.Module) -> dict[int, nn.Parameter]:
    """What `copy.deepcopy` must know so that a copy's parameters share the values of a model's.

    They are frozen, and the model's own are not touched.
    """
    return {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}


def trainable(model: M) -> M:
    """Let all parameters of a network want gradients, but integers, which have none; returns it."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return model


def runs_its_class(module: nn.Module) -> bool:
    """Whether a module does what the code of its class says, and hooks nothing else."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def become(module: nn.Module, other: nn.Module) -> None:
    """Give a module the class and contents of another.

    Unlike a replacement, every reference sees it: a second name, a plain list of layers.
    """
    # nn.Module's own way of setting them takes several times as long.
    object.__setattr__(module, "__class__", type(other))
    object.__setattr__(module, "__dict__", vars(other))


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of a name that `named_modules` gives, in a fifth of `get_submodule`'s time.

    Raises:
        KeyError: there is none.
    """
    for part in name.split(".") if name else ():
        child = model._modules[part]
        assert child is not None
        model = child
    return model


def find_part(model: nn.Module, name: str) -> nn.Module | Tensor:
    """The module, free parameter or buffer of a name."""
    parent, _, last = name.rpartition(".")
    part: nn.Module | Tensor = getattr(module_at(model, parent), last)
    return part


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in the arguments or the output of an operation or network."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
