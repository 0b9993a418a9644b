"""Compressed networks in the form that answers soonest, with nearly the same answers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.compress.fold import foldable_norms
from automl_compress.compress.places import kept_places
from automl_compress.compress.slicing import cut_channels
from automl_compress.compress.structure import Structure
from automl_compress.evaluate.program import Program, bind, follow
from automl_compress.space import LAYER_KINDS, Policy
from automl_compress.workload.arithmetic import has_bfloat16, require_bfloat16

Precision = Literal["float32", "bfloat16"]
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16")


def fast_precision() -> Precision:
    """What this machine's processor is fastest with."""
    return "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"


KEPT_BYTES: Final = 2**26
"""Values of unchanged prefixes that are kept, in bytes; the least recently used go first."""
_KEPT_PLACES: Final = 8
"""Frontiers of a network whose values may be kept: enough to lose little by starting early."""
_SEEN: Final = 4096
"""Prefixes that are remembered, without values, until they are seen again."""


class FastForm:
    """Runs compressed forms of one network on the same images again and again.

    Args:
        model: the original network, in evaluation mode; not changed.
        example_input: what it takes.
        precision: of convolutions and products; sums and normalizations stay in float32.
        structure: the network's.
        keeps: whether values of unchanged prefixes are kept. They must not depend on what
            follows.

    Raises:
        InputError: the processor does not compute in that precision.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        precision: Precision,
        structure: Structure,
        keeps: bool = True,
    ) -> None:
        if precision == "bfloat16":
            require_bfloat16()
        self._type = torch.bfloat16 if precision == "bfloat16" else torch.float32
        norms = foldable_norms(model, example_input)
        self._program = follow(model, norms, example_input, [_half(model, structure)])
        self._prefixes: Prefixes | None = None
        if self._program is not None and keeps:
            self._prefixes = Prefixes(self._program, structure)

    def forget(self) -> None:
        """Keep no values of networks run so far."""
        if self._prefixes is not None:
            self._prefixes.forget()

    def exact(self, network: nn.Module, images: Tensor) -> Tensor:
        """Outputs in float32.

        Args:
            network: as for `outputs`.
            images: (n, ...), any.
        """
        if self._program is None:
            result: Tensor = network(images)
        else:
            result = self._program.run(bind(self._program, network, torch.float32), images)
        return result

    def outputs(
        self, network: nn.Module, policy: Policy, batches: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Outputs for one batch after the other.

        Args:
            network: a compressed form of the model; not changed, its tensors are shared.
            policy: what it was built from.
            batches: (n, ...) each, the same ones at every call.
        """
        low = self._type != torch.float32
        if self._program is None:
            for images in batches:
                with torch.autocast("cpu", self._type, enabled=low):
                    outputs = network(images)
                yield outputs.float()
            return
        bound = bind(self._program, network, self._type)
        start, values = 0, batches
        found: dict[int, list[Tensor]] = {}
        if self._prefixes is not None:
            start, values = self._prefixes.longest(policy, batches)
            found = {place: [] for place in self._prefixes.wanted(policy, start)}

        def notice(place: int, value: Tensor) -> None:
            if place in found:
                found[place].append(value.clone())  # a later step may change it in place

        for value in values:
            with torch.autocast("cpu", self._type, enabled=low):  # steps may work in place
                outputs = self._program.run(bound, value.clone(), start, notice)
            yield outputs.float()
        if self._prefixes is not None:
            self._prefixes.keep(policy, found)


def _half(model: nn.Module, structure: Structure) -> nn.Module:
    """The network with the first half of every group's channels: a form of other sizes."""
    groups = structure.groups
    kept = {g.name: np.arange(max(1, g.channels // 2)) for g in groups if not g.protected}
    return cut_channels(model, kept_places(model, groups, kept))


_Key = tuple[int, tuple[object, ...]]


class Prefixes:
    """Values inside networks whose first steps were run before.

    What the first steps give depends on the genes that decide about their modules, and on no
    others. A prefix is kept when it is seen the second time: networks of their own leave nothing.

    Args:
        program: of the network.
        structure: tells which modules a gene touches.
    """

    def __init__(self, program: Program, structure: Structure) -> None:
        groups: dict[str, set[str]] = {}
        for group in structure.groups:
            for member in group.members:
                groups.setdefault(member.module, set()).add(f"channels:{group.name}")
        frontiers = sorted(program.frontiers)
        every = max(1, -(-len(frontiers) // _KEPT_PLACES))
        chosen = set(frontiers[every - 1 :: every])
        self._genes: dict[int, tuple[str, ...]] = {}
        touched: set[str] = set()
        for place, modules in enumerate(program.modules):
            for name in modules:
                touched |= groups.get(name, set())
                touched |= {f"{kind}:{name}" for kind in LAYER_KINDS}
            if place in chosen:
                self._genes[place] = tuple(sorted(touched))
        self._kept: OrderedDict[_Key, list[Tensor]] = OrderedDict()
        self._seen: deque[_Key] = deque(maxlen=_SEEN)

    def longest(self, policy: Policy, batches: Sequence[Tensor]) -> tuple[int, Sequence[Tensor]]:
        """The step to start at, and what each batch gives there; 0 and the batches for none."""
        for place in sorted(self._genes, reverse=True):
            key = self._key(place, policy)
            if key in self._kept and len(self._kept[key]) == len(batches):
                self._kept.move_to_end(key)
                return place + 1, self._kept[key]
        return 0, batches

    def wanted(self, policy: Policy, start: int) -> list[int]:
        """Places behind a start whose values are worth keeping."""
        keys = [self._key(place, policy) for place in sorted(self._genes) if place >= start]
        seen = [key[0] for key in keys if key in self._seen]
        self._seen.extend(key for key in keys if key not in self._seen)
        return seen

    def keep(self, policy: Policy, found: dict[int, list[Tensor]]) -> None:
        """Keep what all batches gave at some places."""
        for place, values in found.items():
            self._kept[self._key(place, policy)] = values
        while sum(map(_size, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)

    def forget(self) -> None:
        """Keep nothing, as if nothing had been seen."""
        self._kept.clear()
        self._seen.clear()

    def _key(self, place: int, policy: Policy) -> _Key:
        return place, tuple(policy.get(name) for name in self._genes[place])


def _size(values: Iterable[Tensor]) -> int:
    return sum(value.nbytes for value in values)
