"""A toy problem in closed form: a chain of layers whose costs and accuracy are formulas.

Every layer keeps some of its channels and stores its weights in some bits. Layers differ in how
much they cost and in how much they matter, so that compressing all of them alike is beaten by
whoever learns which ones to spare. An evaluation takes microseconds and needs no torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.evaluate.estimator import Estimator
from automl_compress.search.strategy import Problem
from automl_compress.space import Gene, Policy, SearchSpace, Value

BASELINE_ACCURACY = 0.94
_FLOAT_BITS = 32


@dataclass(frozen=True)
class ToyNetwork:
    """A chain of layers, as a search space, its costs and its accuracy.

    Args:
        layers: layers of the chain; the space has two genes a layer, or one without `channels`.
        channels: channel counts a layer may keep, ascending; the last is the original count.
            Empty means that channels are not cut, and that each layer has 16.
        weight_bits: bit-widths of a layer's weights, ascending.
        harm: error exponent of the most compressed network, shared among the layers; accuracy is
            the baseline's times exp(-harm).
    """

    layers: int = 6
    channels: tuple[int, ...] = (4, 8, 12, 16)
    weight_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    harm: float = 3.0

    @property
    def space(self) -> SearchSpace:
        """The genes, layer by layer: channels, then bits."""
        genes = []
        for layer in range(self.layers):
            if self.channels:
                genes.append(Gene(f"channels:layer{layer}", "channels", self.channels))
            genes.append(Gene(f"weight_bits:layer{layer}", "weight_bits", self.weight_bits))
        return SearchSpace(genes)

    @property
    def baseline(self) -> dict[str, float]:
        """Minimised value of every metric for the network with all channels, in float32."""
        widths = [self._full] * self.layers
        costs = self._costs(widths, [_FLOAT_BITS] * self.layers)
        return {"error": 1.0 - BASELINE_ACCURACY, **costs}

    def costs(self, policy: Policy) -> dict[str, float]:
        """Exact costs; they never rise when a gene shrinks."""
        return self._costs(*self._choices(policy))

    def accuracy(self, policy: Policy) -> float:
        """Accuracy in (0, 1); it never rises when a gene shrinks."""
        weights = [self._importance(layer) for layer in range(self.layers)]
        harm = 0.0
        for weight, width, bits in zip(weights, *self._choices(policy), strict=True):
            cut = 1.0 - width / self._full
            harm += weight * (0.5 * cut**2 + 0.5 * 4.0 ** (self.weight_bits[0] - bits))
        return BASELINE_ACCURACY * math.exp(-self.harm * harm / sum(weights))

    def problem(
        self,
        objectives: tuple[str, ...] = ("error", "size_bytes", "macs"),
        constraints: Iterable[str] = (),
    ) -> Problem:
        """What a strategy is given.

        Args:
            objectives: names of minimised metrics.
            constraints: texts such as `size_bytes <= 0.1x`.
        """
        baseline = self.baseline
        return Problem(
            space=self.space,
            objectives=objectives,
            baseline={name: baseline[name] for name in objectives},
            cost=self.costs,
            constraints=tuple(Constraint.parse(text).absolute(baseline) for text in constraints),
        )

    @property
    def _full(self) -> int:
        return self.channels[-1] if self.channels else 16

    def _importance(self, layer: int) -> float:
        """How much a layer matters: some layers forty times as much as others."""
        return 0.05 + (layer * 7 % 5) / 2.0

    def _choices(self, policy: Mapping[str, Value]) -> tuple[list[int], list[int]]:
        """Channels and bits of every layer."""
        full = self._full
        widths = [int(policy.get(width, full)) for width, _ in self._names]
        return widths, [int(policy[bits]) for _, bits in self._names]

    @cached_property
    def _names(self) -> list[tuple[str, str]]:
        """Names of each layer's genes: channels, bits."""
        names = [f"layer{layer}" for layer in range(self.layers)]
        return [(f"channels:{name}", f"weight_bits:{name}") for name in names]

    def _costs(self, widths: list[int], bits: list[int]) -> dict[str, float]:
        inputs = [3, *widths[:-1]]
        weights = [a * b * 9 for a, b in zip(inputs, widths, strict=True)]
        half = self.layers / 2
        macs = [n * (64 if i < half else 16) for i, n in enumerate(weights)]
        return {
            "size_bytes": sum(n * b for n, b in zip(weights, bits, strict=True)) / 8,
            "macs": float(sum(macs)),
            "params": float(sum(weights)),
            "bitops": float(sum(n * b * _FLOAT_BITS for n, b in zip(macs, bits, strict=True))),
        }


class ToyEstimator(Estimator):
    """Evaluates the policies of a toy network. Pure: the policy alone decides the answer.

    Args:
        network: the toy network.
        failing: share of policies that fail, in [0, 1].
        nan: share of policies whose accuracy is NaN although they do not fail, in [0, 1].
    """

    def __init__(self, network: ToyNetwork, failing: float = 0.0, nan: float = 0.0) -> None:
        self.network = network
        self._failing = failing
        self._nan = nan
        parts = repr((sorted(asdict(network).items()), failing, nan))
        self._identity = "toy-" + hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """Hash of the network and the shares."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Look up the formulas."""
        chance = int(policy.key[:8], 16) / 16**8
        if chance < self._failing:
            return Evaluation.failed(policy, self._identity, "the toy was told to fail")
        broken = chance < self._failing + self._nan
        accuracy = math.nan if broken else self.network.accuracy(policy)
        metrics = {"accuracy": accuracy, **self.network.costs(policy)}
        return Evaluation(policy, self._identity, metrics, images=100)
