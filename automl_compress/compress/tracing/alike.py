"""Whether the working copy of a network computes what the network does."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import torch
from torch import Tensor, nn

from automl_compress.compress.modules import keep_in_place, tensors_in
from automl_compress.errors import TraceError

_UNLIKE: Final = 1e-3
"""Smaller differences, over the largest output, are put down to rounding."""
_SHIFT: Final = 1e-6
"""Relative change of an input, some ten roundings of float32."""
_MARGIN: Final = 100.0
"""How many times as much as by such a change outputs may differ by all their roundings."""


def make_alike(plain: nn.Module, working: nn.Module, example: Tensor) -> None:
    """Let a working copy do what the network does: in place, where its outputs depend on that.

    Args:
        plain: a copy of the network in evaluation mode, in which nothing is replaced.
        working: its working copy, in which nothing works in place; changed where that is wrong.
        example: (n, ...) what the network takes.

    Raises:
        TraceError: the network changes its input, or the working copy differs for other reasons.
    """
    comparison = _Comparison(plain, example)
    if comparison.difference(working) and comparison.repeats():
        _work_in_place(plain, working, comparison)
        if difference := comparison.difference(working):
            raise TraceError(
                "a copy of a network must compute what the network does, but differs by "
                f"{difference:.1%} of the largest output; keep modules and tensors in attributes "
                "of the modules that use them, not in hooks or lists outside"
            )
    for probe in comparison.probes:
        read = probe.clone()
        working(read)
        if not torch.equal(read.nan_to_num(), probe.nan_to_num()):
            raise TraceError(
                "a network must leave its input as it is, but this one changes it in place; begin "
                "its forward with `x = x.clone()`"
            )


def _work_in_place(plain: nn.Module, working: nn.Module, comparison: _Comparison) -> None:
    """Let those modules work in place without which outputs are others; all or none do as a start.

    `out = relu(x); return out + x` with such a ReLU adds what is rectified.
    """
    modules = dict(working.named_modules())
    places = [
        modules[name]
        for name, module in plain.named_modules()
        if getattr(module, "inplace", None) is True and hasattr(modules.get(name), "inplace")
    ]
    for module in places:
        module.inplace = True
    as_before = not comparison.difference(working)
    for module in places:
        module.inplace = False
        if as_before and comparison.difference(working):
            keep_in_place(module)


class _Comparison:
    """What a network gives on an example and on random inputs."""

    def __init__(self, plain: nn.Module, example: Tensor) -> None:
        self._plain = plain
        self.probes = [example]
        self._expected = [_outputs(plain, example)]
        if example.is_floating_point():
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(example.shape, generator=generator, dtype=example.dtype)
            with suppress(Exception):  # not every network takes any numbers
                self._expected.append(_outputs(plain, probe))
                self.probes.append(probe)

    def repeats(self) -> bool:
        """Whether the network gives the same for the same input, and draws nothing."""
        return not self.difference(self._plain)

    def difference(self, network: nn.Module) -> float:
        """The largest over the largest output; 0 where rounding explains it."""
        return max(
            self._on_probe(network, probe, expected)
            for probe, expected in zip(self.probes, self._expected, strict=True)
        )

    def _on_probe(self, network: nn.Module, probe: Tensor, expected: list[Tensor]) -> float:
        found = _outputs(network, probe)
        shares = list(map(_share, found, expected))
        largest = max(shares, default=0.0)
        if len(found) == len(expected) and largest <= _UNLIKE:
            return 0.0
        if len(found) != len(expected):
            return 1.0
        moved = 0.0
        if probe.is_floating_point():
            moved = max(map(_share, _outputs(self._plain, probe * (1 + _SHIFT)), expected))
        return largest if largest > _MARGIN * moved else 0.0


def _outputs(network: nn.Module, probe: Tensor) -> list[Tensor]:
    """All outputs of real numbers; what is drawn, is the same at every call."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return [t.clone() for t in tensors_in(network(probe.clone())) if t.is_floating_point()]


def _share(found: Tensor, expected: Tensor) -> float:
    """How far outputs differ, over the largest; the same must be infinite or no numbers."""
    finite = expected.isfinite()
    if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
        return 1.0
    if not bool(finite.any()):
        return 0.0
    difference = (found - expected)[finite].abs().max()
    return float(difference / expected[finite].abs().max().clamp(min=1e-12))
