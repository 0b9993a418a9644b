"""An agent that leaves sensitive layers alone (Yang et al. 2023, Sensitive layers and RL).

Layers many of whose feature maps have a low rank are sensitive: their channels are not cut. The
agent, `ddpg`, decides all other genes, bits of sensitive layers among them, which the paper does
not treat. The shares of low ranks are `Problem.sensitivity`.

Where the problem does not state them, or no map has a low rank, as in small networks, sensitivity
is measured: starting from the least compressed network that meets the constraints on costs, each
channel gene alone is cut to its smallest value, and what the network then loses is how sensitive
the gene is. These evaluations are charged like any other.

The paper publishes no code. A quarter of the channel genes is protected, the most sensitive, and
one at least where there are several; genes without sensitivity (0) never are. Protected channels
stay whole as long as all other genes at `HARDEST` meet the constraints on costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.ddpg import DDPG
from automl_compress.search.restricted import Restricted, least_compressed
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy

PROTECTED: Final = 0.25
"""Share of the channel genes that is protected."""
HARDEST: Final = 0.25
"""Mildness of all other genes at which protected channels begin to give way to constraints."""


class Sensitive(Strategy):
    """Protects the channels of sensitive layers; `ddpg` decides the rest.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        protected: share of the channel genes that is protected, in [0, 1].
    """

    batch = 5

    def __init__(self, problem: Problem, seed: int, protected: float = PROTECTED) -> None:
        super().__init__(problem, seed)
        genes = problem.space.genes
        self._channels = [
            place for place, gene in enumerate(genes) if gene.kind == "channels" and len(gene) > 1
        ]
        several = protected > 0 and len(self._channels) > 1
        self._count = max(int(several), int(protected * len(self._channels)))
        self._agent_seed = int(self.rng.integers(2**31))
        self._seen = Seen()
        known = len(problem.sensitivity) == len(genes)
        stated = known and bool(np.any(problem.sensitivity[self._channels]))
        self._sensitivity = np.array(problem.sensitivity) if stated else np.zeros(len(genes))
        self._probes = {} if stated or not self._count else self._cut_one_by_one()
        self._waiting = list(self._probes)  # keys of probes to ask for
        self._agent = None if self._waiting else self._build()

    def _cut_one_by_one(self) -> dict[str, tuple[int, Policy]]:
        """Gene and policy by the policy's key, for every channel gene."""
        space = self.problem.space
        base = least_compressed(self.problem, ())
        probes = {}
        for gene in self._channels:
            cut = base.copy()
            cut[gene] = 0
            policy = space.decode(cut)
            probes[policy.key] = (gene, policy)
        return probes

    def protected(self) -> list[int]:
        """Positions of the protected genes."""
        found = np.array([self._sensitivity[gene] for gene in self._channels])
        order = np.argsort(-found, kind="stable")[: self._count]
        return [self._channels[place] for place in order if found[place] > 0]

    def _free(self) -> list[int]:
        """Positions of the genes that the agent decides."""
        kept = set(self.protected())
        free = [place for place in range(len(self.problem.space)) if place not in kept]
        return free or list(range(len(self.problem.space)))

    def _build(self) -> Restricted:
        free = self._free()
        fixed = least_compressed(self.problem, free, HARDEST)
        return Restricted(self.problem, self._agent_seed, DDPG, free, fixed)

    def plan(self) -> list[str]:
        """Which channels are protected and why, or how that is found."""
        if self._probes:
            return [
                f"cuts each of {len(self._probes)} channel groups alone, for no low rank of a "
                f"feature map is known, and protects the {self._count} that the network needs "
                "most; then an agent decides the rest"
            ]
        genes = self.problem.space.genes
        fixed = self.problem.space.decode(least_compressed(self.problem, self._free(), HARDEST))
        protected = [
            f"protects {genes[place].target}, {fixed[genes[place].name]} channels: "
            f"{100 * self._sensitivity[place]:.0f} % of its feature maps have a low rank"
            for place in self.protected()
        ]
        return [*protected, *self._build().plan()]

    def ask(self, count: int) -> list[Policy]:
        """Probes, where sensitivity must be measured; then what the agent asks for.

        The agent waits until all probes are told, and the last of them come alone. Asked again
        before, it begins with what is known by then.
        """
        asked: list[Policy] = []
        while self._waiting and len(asked) < count:
            asked += self._fresh([self._probes[self._waiting.pop(0)][1]])
        if self._agent is None and not self._waiting and not asked:
            self._agent = self._build()
        while self._agent is not None and len(asked) < count:
            found = self._agent.ask(count - len(asked))
            asked += self._fresh(found)
            if not found:
                break
        return asked

    def _fresh(self, policies: Sequence[Policy]) -> list[Policy]:
        """Those that were not asked or told before."""
        fresh = [policy for policy in policies if policy not in self._seen]
        for policy in fresh:
            self._seen.add(policy)
        return fresh

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Measure sensitivity by probes; teach the agent."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            if self._agent is None and evaluation.policy.key in self._probes:
                gene, _ = self._probes[evaluation.policy.key]
                self._sensitivity[gene] = self._lost(evaluation)
        if self._agent is not None:
            self._agent.tell(evaluations)

    def _lost(self, evaluation: Evaluation) -> float:
        """Accuracy lost against the baseline, at least a little above 0."""
        values: NDArray[np.float64] = self.problem.values(evaluation)
        loss = values[self.problem.loss_place]
        return max(1e-9, float(loss - self.problem.baseline[self.problem.loss]))

    def skip_start(self) -> None:
        """As the agent does, once there is one."""
        if self._agent is not None:
            self._agent.skip_start()

    def state_dict(self) -> State:
        """What is known of sensitivity, probes to come, and the agent."""
        return {
            "seen": self._seen.state_dict(),
            "agent_seed": self._agent_seed,
            "sensitivity": self._sensitivity.copy(),
            "waiting": list(self._waiting),
            "agent": None if self._agent is None else self._agent.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self._seen.load_state_dict(state["seen"])
        self._agent_seed = state["agent_seed"]
        self._sensitivity = state["sensitivity"].copy()
        self._waiting = list(state["waiting"])
        self._agent = None if state["agent"] is None else self._build()
        if self._agent is not None:
            self._agent.load_state_dict(state["agent"])
