"""Optuna's tree-structured Parzen estimator, whose work for one state of knowledge is shared.

It proposes what Optuna's does, to the last bit. Optuna sorts all trials by constraints, dominance
and hypervolume anew for every parameter, and makes a parameter's densities anew for every proposal.
Here one sorting serves all parameters of a trial, and what is proposed `again` is drawn from the
densities there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma_multiobjective
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

Parameters = dict[str, Any]


class SharingTPE(TPESampler):  # type: ignore[misc]
    """`TPESampler` for several objectives; takes its arguments."""

    _parts: tuple[list[FrozenTrial], list[FrozenTrial]] | None = None
    _densities: tuple[tuple[dict[str, BaseDistribution], Any, Any], ...] = ()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forget what was made for the trial before."""
        super().before_trial(study, trial)
        self._parts, self._densities = None, ()

    def again(self, count: int) -> list[Parameters]:
        """What the last trial might have been proposed as well.

        Args:
            count: proposals.

        Returns:
            Values of the parameters that were not drawn uniformly: none among the first trials.
        """
        if not self._densities:
            return []
        drawn = [self._likeliest(*densities, count) for densities in self._densities]
        return [
            {name: value for parts in proposal for name, value in parts.items()}
            for proposal in zip(*drawn, strict=True)
        ]

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Parameters:
        """Values of the parameters of a space, as `TPESampler` calls it."""
        if self._parts is None:
            self._parts = self._split(study, trial)
        below, above = self._parts
        good = self._build_parzen_estimator(study, search_space, below, handle_below=True)
        bad = self._build_parzen_estimator(study, search_space, above, handle_below=False)
        self._densities = (*self._densities, (search_space, good, bad))
        return self._likeliest(search_space, good, bad, 1)[0]

    def _split(
        self, study: Study, trial: FrozenTrial
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """The best of the other trials, and the rest."""
        states = (TrialState.COMPLETE, *[TrialState.RUNNING] * self._constant_liar)
        trials = study.get_trials(deepcopy=False, states=states)
        others = [other for other in trials if other.number != trial.number]
        complete = sum(other.state == TrialState.COMPLETE for other in others)
        gamma = self._gamma or default_gamma_multiobjective
        parts: tuple[list[FrozenTrial], list[FrozenTrial]]
        parts = _split_trials(study, others, gamma(complete))
        return parts

    def _likeliest(
        self, space: dict[str, BaseDistribution], good: Any, bad: Any, count: int
    ) -> list[Parameters]:
        """The likeliest to be good of each of so many times `n_ei_candidates` draws."""
        samples: dict[str, NDArray[np.float64]]
        samples = good.sample(self._rng.rng, count * self._n_ei_candidates)
        likely = (good.log_pdf(samples) - bad.log_pdf(samples)).reshape(count, -1)
        rows = likely.argmax(axis=1) + np.arange(count) * self._n_ei_candidates
        return [
            {name: space[name].to_external_repr(samples[name][row].item()) for name in space}
            for row in rows
        ]
