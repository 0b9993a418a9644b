"""The contract of every search strategy, and the problem it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import (
    LOSSES,
    USEFUL_LOSS,
    Constraint,
    Evaluation,
    beyond,
    violations,
)
from automl_compress.space import Policy, SearchSpace

TOLERATED: float = 1.25
"""Losses of accuracy up to this many times `useful_loss` are worth a learner's attention: the
nearly useful are one step from the useful."""

State = dict[str, Any]
"""Nested dicts and lists of numbers, texts, None and numpy arrays."""


@dataclass(frozen=True)
class RungOffer:
    """A rung of the study's fidelity ladder that strategies may ask for while they race.

    Args:
        estimator: identity that evaluations of the rung bear when they are told.
        cost: evaluations of the budget that one of them is charged, in proportion to the images
            that are passed through networks, rounded up.
    """

    estimator: str
    cost: int


@dataclass(frozen=True)
class OnRung:
    """A policy that is to be measured on a rung, and not by the search's estimator."""

    policy: Policy
    rung: str


@dataclass(frozen=True)
class Problem:
    """What a strategy may know: the space, the aims, and what costs can be computed.

    Costs are exact and free; only how well a network answers has to be asked for.

    Args:
        space: the search space.
        objectives: names of minimised metrics, one of `LOSSES` among them.
        baseline: minimised value of every objective for the uncompressed network.
        cost: exact costs of a policy by metric name.
        constraints: absolute constraints.
        features: (n_genes, n_features) what each gene decides about, in [0, 1]; the last two
            columns are the shares of bytes and multiply-accumulates it can save.
        sensitivity: (n_genes,) how sensitive the layer of each gene is, in [0, 1]: the share of
            its feature maps whose rank is low; empty when nobody measured it.
        budget: evaluations that the strategy is charged in all; None when nobody knows.
        rungs: rungs that may be asked for, by name; empty where a study has no ladder.
        useful_loss: how much more loss than the baseline a network may have to be of use.
        sparsity_loss: error that sparsity training added before the search. What a race shows of
            contestants counts from before it (`evaluate.useful_baseline`); strategies go by the
            network that they compress.
        counted_error: error at which the only hypervolume that counts ends; None where the plain
            and the useful one count, as in a study (`evaluate.references`).
    """

    space: SearchSpace
    objectives: tuple[str, ...]
    baseline: Mapping[str, float]
    cost: Callable[[Policy], Mapping[str, float]]
    constraints: tuple[Constraint, ...] = ()
    features: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    sensitivity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    budget: int | None = None
    rungs: Mapping[str, RungOffer] = field(default_factory=dict)
    useful_loss: float = USEFUL_LOSS
    sparsity_loss: float = 0.0
    counted_error: float | None = None

    @property
    def loss(self) -> str:
        """The objective that has to be measured."""
        return self.objectives[self.loss_place]

    @property
    def loss_place(self) -> int:
        """Where it stands among the objectives."""
        return next(place for place, name in enumerate(self.objectives) if name in LOSSES)

    @property
    def ruinous_loss(self) -> float:
        """Loss beyond which a network is ruined: of no use, nor one step from it.

        Where one hypervolume counts, as far as it reaches nothing is ruined.
        """
        if self.counted_error is not None:
            return self.counted_error
        return self.baseline[self.loss] + TOLERATED * self.useful_loss

    @property
    def choices(self) -> str:
        """How many genes have a choice, of which kinds, in words."""
        chosen = [gene.kind for gene in self.space if len(gene) > 1]
        return f"{len(chosen)} genes ({' and '.join(dict.fromkeys(chosen))})"

    @property
    def minimised_costs(self) -> tuple[str, ...]:
        """The other objectives."""
        return tuple(name for name in self.objectives if name not in LOSSES)

    def values(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """(n_objectives,) minimised values, always finite.

        A failed evaluation counts as a network that is always wrong, at its exact cost.
        """
        if evaluation.ok:
            found = [evaluation.minimised(name) for name in self.objectives]
        else:
            costs = self.cost(evaluation.policy)
            found = [1.0 if name in LOSSES else costs[name] for name in self.objectives]
        return np.nan_to_num(np.array(found, dtype=np.float64), nan=1.0, posinf=1.0)

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., n_objectives) in units that compare: a useful loss of accuracy, a doubled cost.

        The loss counts from the baseline's in steps of `useful_loss`; a cost is the binary
        logarithm of its share of the baseline's, so that halving it is worth as much at every
        size.
        """
        columns = [
            (values[..., i] - self.baseline[name]) / self.useful_loss
            if name in LOSSES
            else np.log2(np.maximum(values[..., i] / self.baseline[name], 1e-6))
            for i, name in enumerate(self.objectives)
        ]
        return np.stack(columns, axis=-1)

    def violation(self, evaluation: Evaluation) -> float:
        """How far an evaluation breaks the constraints, summed as shares; 0 when it meets all."""
        if not self.constraints:
            return 0.0
        return float(violations([evaluation], self.constraints).sum())

    def cost_violation(self, policy: Policy) -> float:
        """How far a policy breaks the constraints on costs, before it is evaluated."""
        bounded = [c for c in self.constraints if c.metric not in LOSSES]
        if not bounded:
            return 0.0
        costs = self.cost(policy)
        excess = [max(0.0, beyond(c.metric, costs[c.metric], c.limit)) for c in bounded]
        return sum(e / max(c.limit, 1e-12) for e, c in zip(excess, bounded, strict=True))


class Strategy(ABC):
    """Decides what to try next. Never sees a model, a data set or Ray.

    Every random choice comes from a generator made of the seed, so that equal tells give equal
    asks, in any process. Ask may be called again before earlier policies are told; tell takes
    any evaluations in any order: failures, a part of what was asked, and what was never asked.

    Args:
        problem: what is searched.
        seed: decides every random choice.
    """

    batch: int = 8
    """How many policies it likes to be asked for at once."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def ask(self, count: int) -> list[Policy]:
        """At most `count` policies to evaluate; fewer, or none, when the space is exhausted."""

    def ask_rungs(self, budget: int) -> list[OnRung]:  # noqa: ARG002 - most ask for none
        """Policies to measure on rungs of `problem.rungs` this round, before `ask` is called.

        Each is charged its rung's cost; what exceeds the budget is left out. They are told with
        the round's other evaluations, before them, and bear the estimator of their rung. They
        count for nothing but what the strategy makes of them: the front holds what the search's
        estimator measured.

        Args:
            budget: evaluations that are left.
        """
        return []

    def plan(self) -> list[str]:
        """What it sets out to do on this problem, one sentence each, for the study's report."""
        return []

    @abstractmethod
    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn from evaluations."""

    def skip_start(self) -> None:  # noqa: B027 - most have no start
        """Leave out what it would try before it learns: others have tried enough."""

    @abstractmethod
    def state_dict(self) -> State:
        """Everything needed to go on exactly where this strategy is."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Go on where another instance of the same problem was."""


class Seen:
    """Policies that were asked or told, so that nothing is tried twice."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self.listed: Iterator[Policy] | None = None
        """What `priors.draw_new` has not listed yet; begun again where a state is loaded."""

    def __contains__(self, policy: Policy) -> bool:
        return policy.key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, policy: Policy) -> None:
        """Remember a policy."""
        self._keys[policy.key] = None

    def state_dict(self) -> list[str]:
        """Keys in the order they came."""
        return list(self._keys)

    def load_state_dict(self, keys: list[str]) -> None:
        """Remember just these keys."""
        self._keys = dict.fromkeys(keys)
        self.listed = None
