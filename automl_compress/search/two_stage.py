"""Two agents, one after the other (Zhan et al. 2019, Deep model compression via deep RL).

Stage one: an agent prunes the network, channels and where there are such genes kernels, at its
least compressed bits. Stage two: a second agent gives the bits of the best pruned network. Both
are `ddpg` on their part of the genes.

The paper publishes no code. What it leaves open, and where this deviates:

1. One agent cuts channels and kernels together; the paper's cuts channels, and a threshold then
   removes kernels. Which kernels go is the study's `kernel_criterion`.
2. The best network is the one that alone dominates the largest useful hypervolume, or the largest
   plain one as long as none is useful. So the search covers the bits' front of one pruned network.
3. The stages take turns by a count of evaluations: `PRUNED`, or a share of a small budget.
4. Where the genes of one stage have no choice, there is one stage, on all genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from automl_compress.evaluate import Evaluation, references
from automl_compress.search.ddpg import DDPG
from automl_compress.search.restricted import Restricted, genes_of, least_compressed
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

PRUNED: Final = 60
"""Evaluations of the first stage."""
SHARE: Final = 0.6
"""Share of the budget that they take at most."""


class TwoStage(Strategy):
    """A pruning agent, then on its winner a bit-width agent.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        pruned: evaluations of the first stage that are told before the second begins; `PRUNED`, or
            `SHARE` of a smaller budget, when not given.
    """

    batch = 5

    def __init__(self, problem: Problem, seed: int, pruned: int | None = None) -> None:
        super().__init__(problem, seed)
        if pruned is None:
            pruned = PRUNED if problem.budget is None else min(PRUNED, int(SHARE * problem.budget))
        self._pruned = pruned
        self._pruning = genes_of(problem, ("channels", "kernel_sparsity"))
        self._quantizing = genes_of(problem, ("weight_bits", "activation_bits"))
        self._single = not set(self._pruning).isdisjoint(self._quantizing)  # one of them is all
        if self._single:
            self._pruning = list(range(len(problem.space)))
        self._left = 0 if self._single else pruned
        self._winner: Indices = least_compressed(problem, self._pruning)
        self._score = (-1.0, -1.0)
        self._seeds = [int(seed) for seed in self.rng.integers(2**31, size=2)]
        self._seen = Seen()
        self._stage = 1
        self._agent = self._build()

    def _build(self) -> Restricted:
        """The agent of this stage."""
        free = self._pruning if self._stage == 1 else self._quantizing
        problem = replace(self.problem, budget=self._budget())
        return Restricted(problem, self._seeds[self._stage - 1], DDPG, free, self._winner)

    def _budget(self) -> int | None:
        """Evaluations of this stage."""
        if self._single or self.problem.budget is None:
            return self.problem.budget
        return self._pruned if self._stage == 1 else self.problem.budget - self._pruned

    def plan(self) -> list[str]:
        """How long the stages are, and what each decides."""
        if self._single:
            return ["has one stage, for either pruning or bits have no choices"]
        kinds = sorted({self.problem.space.genes[place].kind for place in self._pruning})
        return [
            f"decides {' and '.join(kinds)} in the first {self._pruned} evaluations, at the least "
            "compressed bits, then bits of the best network found, whose channels stay"
        ]

    def ask(self, count: int) -> list[Policy]:
        """What the agent of this stage asks for; fewer when its part is exhausted."""
        if self._stage == 1 and self._left <= 0 and not self._single:
            self._begin_second()
        asked = self._new(count)
        if not asked and self._stage == 1 and not self._single and self._score[0] >= 0:
            self._begin_second()
            asked = self._new(count)
        return asked

    def _new(self, count: int) -> list[Policy]:
        """What was not asked or told before: the winner itself begins the second stage, too."""
        asked: list[Policy] = []
        while len(asked) < count:
            found = self._agent.ask(count - len(asked))
            asked += [policy for policy in found if policy not in self._seen]
            for policy in found:
                self._seen.add(policy)
            if not found:
                break
        return asked

    def _begin_second(self) -> None:
        self._stage = 2
        self._agent = self._build()

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Teach this stage's agent, and in the first stage look for the winner."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            if self._stage == 1 and not self._single and self._agent.fits(evaluation):
                self._left -= 1
                self._judge(evaluation)
        self._agent.tell(evaluations)

    def _judge(self, evaluation: Evaluation) -> None:
        """Keep the pruned network if it is the best so far."""
        if not evaluation.ok or self.problem.violation(evaluation) > 0:
            return
        values = self.problem.values(evaluation)[None]
        plain, useful = references(self.problem.objectives, self.problem.baseline)
        score = (useful.share(values), plain.share(values))
        if score > self._score:
            self._score = score
            self._winner = self.problem.space.encode(evaluation.policy)

    def state_dict(self) -> State:
        """The stage, its agent, and the winner."""
        return {
            "seen": self._seen.state_dict(),
            "seeds": list(self._seeds),
            "left": self._left,
            "stage": self._stage,
            "winner": self._winner,
            "score": list(self._score),
            "agent": self._agent.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self._seen.load_state_dict(state["seen"])
        self._seeds = list(state["seeds"])
        self._left, self._stage = state["left"], state["stage"]
        self._winner = np.array(state["winner"])
        useful, plain = state["score"]
        self._score = (useful, plain)
        self._agent = self._build()
        self._agent.load_state_dict(state["agent"])
