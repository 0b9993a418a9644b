"""Scores of strategies: those of their contestants together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl_compress.pareto import Values
from automl_compress.report.scores import ContestantScores
from automl_compress.report.statistics import Spread


@dataclass(frozen=True, eq=False)
class StrategyScores:
    """The contestants of one strategy.

    Args:
        strategy: registered name.
        in_race: False for the line that is drawn for reference only.
        members: one per seed.
    """

    strategy: str
    in_race: bool
    members: tuple[ContestantScores, ...]

    @property
    def label(self) -> str:
        """Name for tables and legends."""
        return self.strategy if self.in_race else f"{self.strategy} (reference)"

    @property
    def names(self) -> list[str]:
        """Names of the contestants."""
        return [member.record.name for member in self.members]

    @property
    def evaluations(self) -> list[int]:
        """Evaluations of each member."""
        return [len(member) for member in self.members]

    @property
    def values(self) -> Values:
        """(n, n_objectives) minimised values of all members; inf where unusable."""
        return np.concatenate([member.values for member in self.members])

    @property
    def qualities(self) -> NDArray[np.float64]:
        """(n,) qualities of all members, as shares; NaN where unusable."""
        return np.concatenate([member.qualities for member in self.members])

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """(n,) standard errors of the qualities of all members; NaN where not known."""
        return np.concatenate([member.standard_errors for member in self.members])

    def curves(self, kind: str) -> NDArray[np.float64]:
        """(n_seeds, n) hypervolume after 1..n evaluations, n being what all started members made.

        Args:
            kind: `useful` or `plain`.
        """
        started = [getattr(member, kind) for member in self.members if len(member)]
        length = min(map(len, started), default=0)
        return np.array([curve[:length] for curve in started]).reshape(len(started), length)

    def at(self, kind: str, evaluations: int) -> Spread | None:
        """Hypervolume after so many evaluations; None unless all members made them."""
        if min(self.evaluations) < evaluations:
            return None
        return Spread.of([float(getattr(m, kind)[evaluations - 1]) for m in self.members])

    def last(self, kind: str) -> Spread | None:
        """Hypervolume after the last evaluation of each member that made any."""
        ends = [float(getattr(member, kind)[-1]) for member in self.members if len(member)]
        return Spread.of(ends) if ends else None


def strategy_scores(scores: Iterable[ContestantScores]) -> tuple[StrategyScores, ...]:
    """Contestants grouped by strategy, those in the race first, else in the given order."""
    groups: dict[tuple[str, bool], list[ContestantScores]] = {}
    for member in scores:
        groups.setdefault((member.record.strategy, member.record.in_race), []).append(member)
    made = [StrategyScores(*key, tuple(members)) for key, members in groups.items()]
    return tuple(sorted(made, key=lambda group: not group.in_race))
