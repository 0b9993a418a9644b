"""Optuna's samplers (Akiba et al. 2019) behind ask and tell.

`optuna-tpe` is the tree-structured Parzen estimator for several objectives (Ozaki et al. 2022),
`optuna-nsga2` Optuna's NSGA-II, `optuna-gp` its Gaussian processes with expected hypervolume
improvement. All run with Optuna's defaults; genes are integer parameters, and constraints are
given as Optuna 5 takes them.

What the adapter adds:

1. A study is made afresh for every ask, from what was told and what is out, and its sampler from
   a seed of its own. So nothing hides in a sampler, and a saved search goes on exactly.
2. A proposal that was tried before, or that is known to cost too much, is marked as failed and
   made again; after some tries `priors.draw_new` cuts it to fit or draws from the prior. The
   tree-structured Parzen estimator makes all proposals in place of one from the same densities.
3. What others evaluated joins as a complete trial, for NSGA-II in the generation being filled.
4. Costs are told as shares of the baseline's. The samplers model them like the error: Optuna
   has no place for objectives that can be computed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from automl_compress.evaluate import LOSSES, Evaluation, beyond
from automl_compress.search.optuna_tpe import SharingTPE
from automl_compress.search.priors import draw_new, mildest, scaled_indices
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

SamplerName = Literal["tpe", "nsga2", "gp"]
_SAMPLERS: Final[dict[SamplerName, type[BaseSampler]]] = {
    "tpe": SharingTPE,
    "nsga2": NSGAIISampler,
    "gp": GPSampler,
}
_PROPOSALS: Final[dict[SamplerName, int]] = {"tpe": 12, "nsga2": 12, "gp": 2}
"""How often a sampler is asked for one policy; a Gaussian process is slow and repeats itself."""
_GENERATION: Final = "NSGAIISampler:generation"


class OptunaSearch(Strategy):
    """One of Optuna's samplers.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        sampler: which.
        batch: policies proposed from one state of knowledge.
        settings: further arguments of the sampler; Optuna's defaults where not given.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        sampler: SamplerName = "tpe",
        batch: int = 5,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(problem, seed)
        self.batch = batch
        self._sampler = sampler
        self._settings = dict(settings or {})
        self._seen = Seen()
        self._mildest = mildest(problem)
        self._distributions: dict[str, BaseDistribution] = {
            gene.name: IntDistribution(0, len(gene) - 1) for gene in problem.space
        }
        self._told: list[FrozenTrial] = []
        self._out: dict[str, FrozenTrial] = {}

    def ask(self, count: int) -> list[Policy]:
        """Proposals of the sampler; fewer when the space is exhausted."""
        asked: list[Policy] = []
        with _quiet():
            study = self._study()
            for _ in range(count):
                policy = self._proposed(study)
                if policy is None:
                    break
                asked.append(policy)
        return asked

    def _study(self) -> optuna.Study:
        """A study of all trials told and out, with a sampler of its own seed."""
        sampler: Any = _SAMPLERS[self._sampler]
        study = optuna.create_study(
            directions=["minimize"] * len(self.problem.objectives),
            sampler=sampler(seed=int(self.rng.integers(2**31)), **self._settings),
        )
        study.add_trials([*self._told, *self._out.values()])
        return study

    def _proposed(self, study: optuna.Study) -> Policy | None:
        """A new policy, which stays in the study as a running trial."""
        generation = self._generation()
        proposals = self._proposals(study, generation)

        def draw() -> Indices:
            nonlocal generation
            proposal = next(proposals, None)
            if proposal is None:
                mildness = self._mildest * float(self.rng.random())
                return scaled_indices(self.problem.space, self.rng, mildness)
            generation, indices = proposal
            return indices

        policy = draw_new(self.problem, self._seen, draw, self.rng)
        if policy is not None:
            trial = self._trial(policy, None, generation)
            self._out[policy.key] = trial
            study.add_trial(trial)
        return policy

    def _proposals(self, study: optuna.Study, filled: int) -> Iterator[tuple[int, Indices]]:
        """What the sampler proposes in place of one policy, and for which generation.

        Args:
            study: where each trial is asked for, and marked as failed.
            filled: the generation of those that do not say it.
        """
        left = _PROPOSALS[self._sampler]
        while left > 0:
            trial = study.ask(self._distributions)
            failed = study.tell(trial, state=TrialState.FAIL)
            generation = failed.system_attrs.get(_GENERATION, filled)
            params = trial.params  # a copy every time
            yield generation, self._indices(params)
            left -= 1
            if left and isinstance(study.sampler, SharingTPE):
                further = study.sampler.again(left)
                left -= len(further)
                for others in further:
                    yield generation, self._indices({**params, **others})

    def _indices(self, params: Mapping[str, int]) -> Indices:
        return np.array([params[name] for name in self._distributions])

    def _generation(self) -> int:
        """The generation NSGA-II is filling."""
        return max((trial.system_attrs[_GENERATION] for trial in self._told), default=0)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Complete trials, or add those that were never asked for."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            running = self._out.pop(evaluation.policy.key, None)
            generation = self._generation()
            if running is not None:
                generation = running.system_attrs[_GENERATION]
            self._told.append(self._trial(evaluation.policy, evaluation, generation))

    def _trial(self, policy: Policy, evaluation: Evaluation | None, generation: int) -> FrozenTrial:
        """A complete trial, or a running one where there is no evaluation yet."""
        indices = self.problem.space.encode(policy)
        return _Kept(
            create_trial(
                state=TrialState.RUNNING if evaluation is None else TrialState.COMPLETE,
                values=None if evaluation is None else self._values(evaluation),
                params=dict(zip(self._distributions, map(int, indices), strict=True)),
                distributions=self._distributions,
                system_attrs={_GENERATION: generation},
                constraints={} if evaluation is None else self._excess(evaluation),
            )
        )

    def _values(self, evaluation: Evaluation) -> list[float]:
        """Minimised values: the error as it is, costs as shares of the baseline's."""
        return [
            float(value if name in LOSSES else value / self.problem.baseline[name])
            for name, value in zip(
                self.problem.objectives, self.problem.values(evaluation), strict=True
            )
        ]

    def _excess(self, evaluation: Evaluation) -> dict[str, float]:
        """By constraint, how far its limit is exceeded as a share of it; negative below it."""
        known = (
            {name: evaluation.minimised(name) for name in ("error", *evaluation.metrics)}
            if evaluation.ok
            else {**dict.fromkeys(LOSSES, 1.0), **self.problem.cost(evaluation.policy)}
        )
        return {
            f"{place} {limit.text}": beyond(limit.metric, known[limit.metric], limit.limit)
            / max(limit.limit, 1e-12)
            for place, limit in enumerate(self.problem.constraints)
        }

    def state_dict(self) -> State:
        """Generator, trials, and what was seen."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "told": [_plain(trial) for trial in self._told],
            "out": {key: _plain(trial) for key, trial in self._out.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._told = [self._restored(plain) for plain in state["told"]]
        self._out = {key: self._restored(plain) for key, plain in state["out"].items()}

    def _restored(self, plain: State) -> FrozenTrial:
        complete = plain["values"] is not None
        return _Kept(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.RUNNING,
                values=plain["values"],
                params=dict(zip(self._distributions, plain["indices"], strict=True)),
                distributions=self._distributions,
                system_attrs={_GENERATION: plain["generation"]},
                constraints=plain["constraints"],
            )
        )


class _Kept(FrozenTrial):  # type: ignore[misc]
    """A trial whose parts are never changed, so that a study shares them.

    Optuna's storage copies a trial deeply when it is added, and gives the copy a number; what it
    changes later it copies first. With a hundred genes, copying all trials for every ask took
    longer than all else.
    """

    def __init__(self, trial: FrozenTrial) -> None:
        self.__dict__.update(trial.__dict__)

    def __deepcopy__(self, _: dict[int, Any]) -> FrozenTrial:
        return copy.copy(self)


def _plain(trial: FrozenTrial) -> State:
    """A trial as plain data."""
    return {
        "indices": list(trial.params.values()),
        "values": list(trial.values) if trial.state == TrialState.COMPLETE else None,
        "generation": trial.system_attrs[_GENERATION],
        "constraints": dict(trial.constraints),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of every study it makes; here a study is made for every ask."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
