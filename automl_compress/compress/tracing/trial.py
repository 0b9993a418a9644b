"""Trial cuts: whether groups of channels can really be cut.

All groups are cut at once. Every layer of the smaller network must compute what it computes in
the original when no layer reads the removed channels, and normalizations and reductions leave them
out. Where that fails, halves of the groups are tried, down to single ones; a group that fails alone
is protected and says why.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from automl_compress.compress.kinds import LAYERS, channel_axis
from automl_compress.compress.modules import find_part, module_at, own_copy, share_copy, tensors_in
from automl_compress.compress.places import Places, can_cut, kept_places
from automl_compress.compress.slicing import cut_channels
from automl_compress.compress.structure import Axis, ChannelGroup, GroupMember, WrittenProduct
from automl_compress.compress.tracing.blinded import blind_copy
from automl_compress.compress.tracing.reductions import PartialReductions, kept_operands
from automl_compress.compress.widths import followed_numbers, holder, kept_numbers, parts_of_width
from automl_compress.errors import TraceError
from automl_compress.settings import one_line

_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference over a layer's largest output that is put down to rounding."""
_CHAOS: Final = 1e-3
"""Larger differences in float64 are never put down to rounding."""
_SHIFT: Final = 1e-14
"""Relative change of an input, some fifty roundings of float64."""
_MARGIN: Final = 100.0
"""How many times as much as by such a change layers may differ by all their roundings."""
_NOT_SMALL: Final = 6
"""Groups of so many channels can be cut to three."""
_MISREAD: Final = "its channels are read in a way that is not understood"

Run = list[tuple[str, Tensor]]
"""What the layers computed, in the order they ran, and last the network's own outputs."""


def tried_groups(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]
) -> list[ChannelGroup]:
    """The groups again, those that cannot be cut protected with the reason.

    Args:
        model: a `working_copy`, in evaluation mode; not changed.
        example_input: (n, ...) what it takes.
        groups: from `coupled_groups`.

    Raises:
        TraceError: a layer computes in another precision than float32 or float64, or the time that
            following may take is over.
    """
    generator = torch.Generator().manual_seed(0)
    lively = _lively(model, generator)
    probe = _probe(lively, example_input, generator)
    _check_precision(lively, probe)
    known = [replace(g, protected=g.protected or _obstacle(model, g)) for g in groups]
    trial = _Trial(lively, probe)
    left = [group for group in known if not group.protected]
    reasons = dict(_failures(trial, left))
    left = [group for group in left if group.name not in reasons]
    trial.cut = _narrow_cut
    reasons.update(_failures(trial, left))
    left = [group for group in left if group.name not in reasons]
    if followed_numbers(lively, trial.places(left)):
        trial.cut = _unlike_cut
        failed = dict(_failures(trial, left))
        left = [group for group in left if group.name not in failed]
        for bound in _bound_together(lively, [g for g in known if g.name in failed]):
            one = _merged(bound)
            if not trial([one]) and not trial([*left, one]):
                left.append(one)
                known = [one if g.name == one.name else g for g in known]
                gone = {group.name for group in bound} - {one.name}
                known = [group for group in known if group.name not in gone]
                failed = {name: why for name, why in failed.items() if name != one.name}
        reasons.update(failed)
        for group in _following_together(lively, left):
            reasons.update(_failures(trial, [group]))
    reasons |= {g.name: g.doubt for g in known if g.doubt and g.name in reasons}
    return [replace(g, protected=g.protected or reasons.get(g.name, "")) for g in known]


def _probe(model: nn.Module, example: Tensor, generator: torch.Generator) -> Tensor:
    """A random input that a network gives numbers for, as far as there is one."""
    if not example.is_floating_point():
        return example
    of_both_signs = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    for probe in (of_both_signs, of_both_signs.abs()):
        with torch.no_grad():
            found = tensors_in(model(probe))
        if all(bool(t.isfinite().all()) for t in found):
            return probe
    return example


Cut = Callable[[list[ChannelGroup]], dict[str, NDArray[np.int64]]]
"""By group name, which channels stay in a trial."""


def _like_cut(groups: list[ChannelGroup]) -> dict[str, NDArray[np.int64]]:
    """Two thirds of the channels."""
    return {group.name: np.flatnonzero(np.arange(group.channels) % 3 != 1) for group in groups}


def _narrow_cut(groups: list[ChannelGroup]) -> dict[str, NDArray[np.int64]]:
    """An odd number of channels, the same for all groups that are not small.

    Code that asks whether a width is even, or whether two are the same, does something else.
    """
    sizes = [group.channels for group in groups if group.channels >= _NOT_SMALL]
    narrow = (min(sizes, default=0) // 2 - 1) | 1
    found = _like_cut(groups)
    return {name: kept[:narrow] if len(kept) > narrow > 0 else kept for name, kept in found.items()}


def _unlike_cut(groups: list[ChannelGroup]) -> dict[str, NDArray[np.int64]]:
    """Another number of channels for every group of so many, lest a number follow several."""
    found, seen = _like_cut(groups), defaultdict[int, int](int)
    for group in groups:
        kept = found[group.name]
        found[group.name] = kept[: len(kept) - seen[group.channels] % len(kept)]
        seen[group.channels] += 1
    return found


def _following_together(model: nn.Module, groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Groups beside a number that follows several even so: each must be cut alone, too."""
    places = kept_places(model, tuple(groups), _unlike_cut(groups))
    owners = {(m.module, m.axis): group.name for group in groups for m in group.members}
    parents = set()
    for parent, number in followed_numbers(model, places):
        value = kept_numbers(model.get_submodule(parent))[number]
        parts = parts_of_width(model, parent, places)
        for width in value if isinstance(value, tuple) else (value,):
            if len({owners[part] for part in parts.get(width, ()) if part in owners}) > 1:
                parents.add(parent)
    return [
        group
        for group in groups
        if any(holder(model, member.module) in parents for member in group.members)
    ]


def _bound_together(model: nn.Module, groups: list[ChannelGroup]) -> list[list[ChannelGroup]]:
    """Several groups of one width that a number of a module around them says: code uses it for all.

    Such a number follows when all of them keep as many channels.
    """
    found = defaultdict[tuple[str, int], list[ChannelGroup]](list)
    for group in groups:
        parent = _says_width(model, group)
        if parent is not None:
            found[parent, group.channels].append(group)
    return [bound for bound in found.values() if len(bound) > 1]


def _says_width(model: nn.Module, group: ChannelGroup) -> str | None:
    """Name of the nearest module around a group's first writer that keeps its width as a number."""
    parent = group.first_writer
    while parent:
        parent = parent.rpartition(".")[0]
        for value in kept_numbers(module_at(model, parent)).values():
            if group.channels in (value if isinstance(value, tuple) else (value,)):
                return parent
    return None


def _merged(groups: list[ChannelGroup]) -> ChannelGroup:
    """Groups as one, whose first channel is the first of each, and so on."""
    first = groups[0]
    members: dict[tuple[str, Axis], list[GroupMember]] = defaultdict(list)
    for member in (member for group in groups for member in group.members):
        members[member.module, member.axis].append(member)
    joined = [
        GroupMember(
            *key,
            np.concatenate([member.positions for member in found]),
            np.concatenate([member.channels for member in found]),
        )
        for key, found in members.items()
    ]
    reductions = tuple(reduction for group in groups for reduction in group.reductions)
    places: dict[tuple[int, int], int] = defaultdict(int)
    for product in (product for group in groups for product in group.products):
        places[product.call, product.size] += product.places
    products = tuple(WrittenProduct(*key, count) for key, count in places.items())
    return replace(first, members=tuple(joined), reductions=reductions, products=products)


def _obstacle(model: nn.Module, group: ChannelGroup) -> str:
    """Why a group cannot be cut at all, without trying; empty when nothing is known."""
    if group.channels < 2:
        alone = all(len(member.positions) == 1 for member in group.members)
        return "has a single channel" if alone else "all its channels are coupled to each other"
    for member in group.members:
        part = find_part(model, member.module)
        if not can_cut(part):
            return f"the {type(part).__name__} '{member.module}' cannot be cut"
        counts = np.bincount(member.channels, minlength=group.channels)
        if (counts != counts[0]).any() or counts[0] == 0:
            return f"'{member.module}' does not treat all channels alike"
    return ""


def _failures(trial: _Trial, groups: list[ChannelGroup]) -> Iterator[tuple[str, str]]:
    """Names of the groups that fail and why: alone, or with those that stay."""
    left = groups
    while left and (reason := trial(left)):
        if reason == _MISREAD and trial.refine():  # rounding may have turned a choice
            continue
        found = dict(_failures_alone(trial, left, reason))
        if not found and (reason := trial(left)):
            found = {left[_last_straw(trial, left)].name: f"with other groups, {reason}"}
        yield from found.items()
        left = [group for group in left if group.name not in found]


def _last_straw(trial: _Trial, groups: list[ChannelGroup]) -> int:
    """Place of a group with which those before it fail, found by halving."""
    passes, fails = 0, len(groups)
    while fails - passes > 1:
        middle = (passes + fails) // 2
        passes, fails = (passes, middle) if trial(groups[:middle]) else (middle, fails)
    return passes


def _failures_alone(
    trial: _Trial, groups: list[ChannelGroup], reason: str
) -> Iterator[tuple[str, str]]:
    """Names of the groups that fail alone and why, found by halving those that fail together."""
    if reason == _MISREAD and trial.refine():
        reason = trial(groups)
    if reason and len(groups) == 1:
        yield groups[0].name, reason
    elif reason:
        middle = len(groups) // 2
        for half in (groups[:middle], groups[middle:]):
            yield from _failures_alone(trial, half, trial(half))


class _Trial:
    """Cuts groups of one network and compares."""

    def __init__(self, model: nn.Module, probe: Tensor) -> None:
        self._model = model
        self._probe = probe
        self._exact = False
        self.cut: Cut = _like_cut

    def places(self, groups: list[ChannelGroup]) -> dict[str, Places]:
        """What stays of every module when groups are cut for a trial."""
        return kept_places(self._model, tuple(groups), self.cut(groups))

    def refine(self) -> bool:
        """Go on in float64, if that is a step; True when it was."""
        if self._exact:
            return False
        model: nn.Module = own_copy(self._model).double()
        probe = self._probe.double() if self._probe.is_floating_point() else self._probe
        try:
            with torch.no_grad():
                model(probe)
        except TraceError:
            raise
        except Exception:  # a network that insists on float32 is judged in it
            return False
        self._model, self._probe, self._exact = model, probe, True
        return True

    def __call__(self, groups: list[ChannelGroup]) -> str:
        """Why these groups cannot be cut together; empty when they can."""
        places = self.places(groups)
        operands = kept_operands(groups, self.cut(groups))

        def blinded(probe: Tensor) -> Run:
            model, partial = blind_copy(self._model, places)
            return _run(model, probe, partial, PartialReductions(operands))

        try:
            with torch.no_grad():
                smaller = cut_channels(self._model, places)
                actual = _run(smaller, self._probe)
                expected = blinded(self._probe)
        except TraceError:
            raise
        except Exception as reason:
            return _why_not_run(reason)
        if [name for name, _ in actual] != [name for name, _ in expected]:
            return _MISREAD
        rounding = _Rounding(self._probe, expected, blinded)
        for place, ((name, got), (_, whole)) in enumerate(zip(actual, expected, strict=True)):
            out = places[name].out if name in places else None
            wanted = whole
            if out is not None:
                wanted = whole.index_select(channel_axis(module_at(smaller, name), whole), out)
            if got.shape != wanted.shape or not rounding.explains(place, got, wanted):
                return _MISREAD
        return ""


def _why_not_run(reason: Exception) -> str:
    """Why a cut network fails; what code says that writes a width down can be written otherwise."""
    fixed = re.search(r"shape '(.*)' is invalid for input of size", str(reason))
    if fixed:
        return (
            f"a cut network does not run (its code reshapes to {fixed[1]}, a fixed width; one "
            "taken from the tensor, as by flatten(1), can be cut)"
        )
    return f"a cut network does not run ({type(reason).__name__}: {one_line(reason)[:80]})"


class _Rounding:
    """Whether differences are what rounding makes of them.

    A deep network with random weights may enlarge its first rounding a million times. In float64
    its answer to a slightly shifted input, computed at need, tells how much.

    Args:
        probe: the network's input.
        outputs: what its layers computed.
        run: computes the same for another input.
    """

    def __init__(self, probe: Tensor, outputs: Run, run: Callable[[Tensor], Run]) -> None:
        self._probe = probe
        self._outputs = outputs
        self._run = run
        self._shifted: Run = []

    def explains(self, place: int, actual: Tensor, expected: Tensor) -> bool:
        """Whether what a cut layer gives differs from what it must by no more than rounding."""
        if _close(actual, expected):
            return True
        if self._probe.dtype != torch.float64 or not _close(actual, expected, _CHAOS):
            return False
        if not self._shifted:
            with torch.no_grad():
                self._shifted = self._run(self._probe * (1 + _SHIFT))
        moved = (self._shifted[place][1] - self._outputs[place][1]).abs().max()
        return bool((actual - expected).abs().max() <= _MARGIN * moved)


def _check_precision(model: nn.Module, probe: Tensor) -> None:
    """Check that nothing is rounded so much that a wrong cut could not be told from it.

    Raises:
        TraceError: a layer or the network itself gives bfloat16, say.
    """
    with torch.no_grad():
        outputs = _run(model, probe)
    for name, output in outputs:
        if output.is_floating_point() and output.dtype not in _TOLERANCE:
            place = f"its layer '{name}'" if name else "it"
            raise TraceError(
                f"a network to compress must compute in float32, but {place} gives {output.dtype}; "
                "remove torch.autocast and casts from its code ('precision' sets that of training)"
            )


def _run(model: nn.Module, probe: Tensor, *modes: Any) -> Run:
    """Run a network and keep what every layer computes, but inside of `torch.vmap`."""
    found: Run = []

    def watch(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            for part in tensors_in(output):
                if not is_functorch_wrapped_tensor(part):  # which nobody may read outside
                    found.append((name, part.clone()))  # what follows may work in place

        return keep

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                stack.callback(module.register_forward_hook(watch(name)).remove)
        for mode in modes:
            stack.enter_context(mode)
        output = model(probe)
    return [*found, *(("", tensor) for tensor in tensors_in(output))]


def _lively(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The network with random values in place of tensors whose values are all alike.

    Initial values, a BatchNorm's ones or a layer scale of 1e-6, would hide a wrong cut. Variances
    stay positive, those of a dead layer's outputs too.
    """
    result = share_copy(model)
    for module in result.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None or not tensor.is_floating_point() or not _all_alike(tensor):
                    continue
                values = 0.5 + torch.rand(tensor.shape, generator=generator)
                centred = float(tensor.flatten()[0]) == 0 and name != "running_var"
                values = (values - 1.0 if centred else values).to(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                table[name] = nn.Parameter(values, False) if is_parameter else values
    return result


def _all_alike(tensor: Tensor) -> bool:
    first = tensor.reshape(-1)[:2]
    return len(first) > 1 and bool(first[0] == first[1]) and bool((tensor == first[0]).all())


def _close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether a cut layer gives what it must, but for rounding or a given share of the largest."""
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    if not expected.numel():
        return True
    scale = max(float(expected.abs().max()), 1e-6)
    return (
        float((actual - expected).abs().max()) <= (tolerance or _TOLERANCE[expected.dtype]) * scale
    )
