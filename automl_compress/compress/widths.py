"""Numbers that modules keep of the widths of what they hold, and what becomes of them in a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers, HeadProduct
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.kinds import LAYERS, NORMALIZATIONS
from automl_compress.compress.modules import find_part, module_at
from automl_compress.compress.places import Places, axis_size, can_cut
from automl_compress.compress.structure import Axis

_LISTS: Final = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules whose parts are used by the module that holds them."""
_OWN_NUMBERS: Final = (
    *(*LAYERS, *NORMALIZATIONS),
    *(nn.PReLU, ChannelMap, HeadProduct, HeadLayers),
)
"""Modules whose numbers are changed where they are cut, or do not depend on widths."""

Part = tuple[str, Axis]
"""A module or parameter by its name, and one of its axes."""


def followed_numbers(
    model: nn.Module, places: Mapping[str, Places]
) -> dict[tuple[str, str], int | tuple[int, ...]]:
    """Numbers that modules keep of the widths of what they hold, after a cut.

    A ViT reshapes by its `hidden_dim`, a layer scale by its `shape`. A number follows where all
    parts that a module holds and that have this width get the same new one; numbers that are
    equal by chance follow too, and trial cuts tell whether that is right.

    Args:
        model: the original.
        places: what stays of the modules that are cut.

    Returns:
        By module and attribute, the new value of those that change.
    """
    cut = (name for name, stays in places.items() if stays.out is not None)
    found: dict[tuple[str, str], int | tuple[int, ...]] = {}
    for parent in dict.fromkeys(holder(model, name) for name in cut):
        numbers = kept_numbers(module_at(model, parent))
        widths = _new_widths(model, parent, places) if numbers else {}
        for name, value in numbers.items():
            new = (
                tuple(widths.get(n, n) for n in value)
                if isinstance(value, tuple)
                else widths.get(value, value)
            )
            if new != value:
                found[parent, name] = new
    return found


def _new_widths(model: nn.Module, parent: str, places: Mapping[str, Places]) -> dict[int, int]:
    """New widths of what a module holds, by old ones that all become the same."""
    found: dict[int, int] = {}
    for old, parts in parts_of_width(model, parent, places).items():
        new = _sizes_left(old, parts, places)
        if len(new) == 1:
            found[old] = new.pop()
    return found


def _sizes_left(old: int, parts: list[Part], places: Mapping[str, Places]) -> set[int]:
    """What becomes of the axes of some parts that have one size."""
    kept = [places.get(name, Places()).along(axis) for name, axis in parts]
    return {old if stays is None else len(stays) for stays in kept}


def kept_numbers(module: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """Integers and tuples of them that a module keeps, and that may be widths of what it holds."""
    if isinstance(module, _OWN_NUMBERS):
        return {}
    return {name: value for name, value in vars(module).items() if _is_number(value)}


def _is_number(value: object) -> bool:
    """Whether a value is an integer or a tuple of integers."""
    if isinstance(value, tuple):
        return all(type(part) is int for part in value)
    return type(value) is int


def parts_of_width(
    model: nn.Module, parent: str, places: Mapping[str, Places]
) -> dict[int, list[Part]]:
    """What a module holds whose widths its numbers may be, by width.

    Layers in its lists count only for widths that nothing it holds itself has: by what they read,
    as parts of a tensor that is split for them, or where these differ after a cut by what they
    write.
    """
    module = module_at(model, parent)
    lists = [last for last, part in module._modules.items() if isinstance(part, _LISTS)]
    listed = [name for last in lists for name in _held(model, f"{parent}.{last}".lstrip("."))]
    read = _by_width(model, [(name, "in") for name in listed if _reads_all(model, name)])
    alike = {old: parts for old, parts in read.items() if len(_sizes_left(old, parts, places)) == 1}
    written = _by_width(model, [(name, "out") for name in listed])
    return written | alike | _by_width(model, [(name, "out") for name in _held(model, parent)])


def _held(model: nn.Module, parent: str) -> list[str]:
    """Names of the modules and parameters a module holds itself."""
    module = module_at(model, parent)
    lasts = [
        last
        for last, part in (*module._modules.items(), *module._parameters.items())
        if part is not None and _has_width(part)
    ]
    return [f"{parent}.{last}".lstrip(".") for last in lasts]


def _has_width(part: nn.Module | Tensor) -> bool:
    """Whether a number may be the width of a part; a single number, a temperature say, has none."""
    if isinstance(part, Tensor):
        return part.dim() > 0
    return can_cut(part) and not isinstance(part, ChannelMap)


def _reads_all(model: nn.Module, name: str) -> bool:
    """Whether every output of a part reads all its inputs, so that these are cut by themselves."""
    part = find_part(model, name)
    return isinstance(part, LAYERS) and getattr(part, "groups", 1) == 1


def _by_width(model: nn.Module, parts: list[Part]) -> dict[int, list[Part]]:
    found: dict[int, list[Part]] = {}
    for name, axis in parts:
        found.setdefault(axis_size(model, name, axis), []).append((name, axis))
    return found


def holder(model: nn.Module, name: str) -> str:
    """Name of the module whose code uses a part: its parent, or that of the list it is in."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(module_at(model, parent), _LISTS):
        parent = parent.rpartition(".")[0]
    return parent
