"""DDPG agents that are given a budget: AMC and HAQ.

- `amc`: He et al. 2018, AMC: AutoML for model compression and acceleration on mobile devices. The
  agent decides the channels of every layer. In its resource-constrained form, actions are clamped
  by what budget is left when all later layers are cut most (algorithm 1); in its
  accuracy-guaranteed form, `amc-accuracy`, nothing is clamped and the reward is
  -error * log(cost), so that it aims at one point.
- `haq`: Wang et al. 2019, HAQ: hardware-aware automated quantization. The agent decides the bits
  of every layer; when an episode is over, bits are lowered layer by layer, from the last one on
  and round again, until the budget is met.

Both are DDPG without discount, rewarded by R - b at every step of an episode, where b is the mean
reward so far, and explore by truncated normal noise.

Deviations from the papers:

1. The budget is the constraint on the agent's cost (AMC: multiply-accumulates, HAQ: bytes). Without
   one, episodes cycle through `BUDGETS` of them, spread evenly over the logarithm of what the space
   can reach, so that one agent covers a front; the states hold the budget.
2. In replay, the budget of an episode is the cost it really has (hindsight, as in `ddpg`), so that
   any evaluated policy is a lesson. Accuracy is the search-validation accuracy.
3. The clamp computes costs exactly, couplings included, where AMC adds up shares of layers.
4. The executed action is stored, not the wanted one; no transition is stored that was not taken.
5. Noise decays to a floor and does not die.
6. b is the mean of the replayed rewards in place of a moving average; losses of accuracy count in
   useful losses (HAQ's factor of 0.1 for percent is just that), ruinous ones damped.
7. Where no gene of the agent's kinds has a choice, it decides all genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import LOSSES, Evaluation, beyond
from automl_compress.search.actor_critic import ActorCritic, Learning, Transitions
from automl_compress.search.exploration import Noise, truncated_normal
from automl_compress.search.layer_mdp import LayerMDP
from automl_compress.search.networks import one_thread
from automl_compress.search.priors import draw_new, lowered, steps_to_fit
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.restricted import Restricted, genes_of, least_compressed
from automl_compress.search.reward import outcome, rewards
from automl_compress.search.start import affordable
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Kind, Policy

WARM_UP: Final = 30
UPDATES_PER_EPISODE: Final = 5
BATCH: Final = 128
NOISE: Final = Noise(first=0.5, decay=0.98, floor=0.1)
LEARNING: Final = Learning()
BUDGETS: Final = 5

Array = NDArray[np.float64]


class Budget:
    """A limit on one exact cost, which the walk keeps.

    Args:
        problem: space and costs.
        metric: the cost's name.
    """

    def __init__(self, problem: Problem, metric: str) -> None:
        self._problem = problem
        self.metric = metric
        self.full = self.cost(problem.space.sizes - 1)
        least = self.cost(np.zeros(len(problem.space), dtype=np.int64))
        self.least_share = max(1e-6, least / max(self.full, 1e-12))

    def cost(self, indices: Indices) -> float:
        """Cost of the policy of (n_genes,) indices."""
        return self._problem.cost(self._problem.space.decode(indices))[self.metric]

    def shares(self, count: int) -> list[float]:
        """The constraint as a share of the full cost; without one, `count` shares to cycle."""
        limits = [c.limit for c in self._problem.constraints if c.metric == self.metric]
        if limits:
            return [min(1.0, max(self.least_share, min(limits) / max(self.full, 1e-12)))]
        parts = (np.arange(count) + 0.5) / count
        return [float(self.least_share**part) for part in parts]

    def clamp(self, decided: Indices, gene: int, share: float) -> int:
        """The gene's largest index, at most its own, that the rest can still make up for.

        Args:
            decided: (n_genes,) indices; those of genes not decided yet are 0.
            gene: whose index is wanted.
            share: of the full cost, to be kept.
        """
        levels = decided.copy()
        while levels[gene] > 0 and not self._fits(levels, share):
            levels[gene] -= 1
        return int(levels[gene])

    def lower(self, indices: Indices, share: float) -> Indices:
        """Indices lowered one by one, from the last gene on and round again, until they fit."""
        order = _round_robin(indices)
        steps = steps_to_fit(indices, order, lambda levels: self._fits(levels, share))
        return lowered(indices, order[:steps])

    def _fits(self, indices: Indices, share: float) -> bool:
        return beyond(self.metric, self.cost(indices), share * self.full) <= 0


def _round_robin(indices: Indices) -> NDArray[np.int64]:
    """Genes in the order in which they are lowered, until all are 0."""
    rounds = [np.flatnonzero(indices > done)[::-1] for done in range(int(indices.max(initial=0)))]
    return np.concatenate(rounds) if rounds else np.zeros(0, dtype=np.int64)


class BudgetAgent(Strategy):
    """A DDPG agent that walks through the genes and meets a budget.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        metrics: names of costs, the preferred first; the first that the study constrains or
            minimises is the budget's.
        meet: how the budget is met: `clamp` (AMC), `lower` (HAQ), or `reward`, where nothing
            is enforced and the reward weighs the error by the logarithm of the cost.
    """

    batch = 5

    def __init__(
        self, problem: Problem, seed: int, metrics: Sequence[str], meet: str = "clamp"
    ) -> None:
        super().__init__(problem, seed)
        self._meet = meet
        self._budget = Budget(problem, _metric(problem, metrics))
        self._shares = [1.0] if meet == "reward" else self._budget.shares(BUDGETS)
        self._mdp = LayerMDP(problem)
        self._replay = EpisodeReplay(self._mdp.steps, self._mdp.state_size)
        self._seen = Seen()
        self._start = affordable(WARM_UP, problem)
        self._episodes = self._walks = 0
        self._learner = ActorCritic(
            self._mdp.state_size + 1, 1, int(self.rng.integers(2**31)), LEARNING
        )

    def plan(self) -> list[str]:
        """What it decides, and by which budget."""
        budget = f"rewarded for a small error weighed by the logarithm of {self._budget.metric}"
        if self._meet != "reward":
            shares = ", ".join(f"{100 * share:.1f} %" for share in self._shares)
            turn = ", in turn" if len(self._shares) > 1 else ""
            budget = f"within {shares} of the least compressed policy's {self._budget.metric}{turn}"
        return [
            f"draws its first {self._start} policies by chance",
            f"then one agent takes an action for each of {self.problem.choices}, {budget}",
        ]

    # Acting.

    def ask(self, count: int) -> list[Policy]:
        """Random episodes, then the actor's; fewer when the space is exhausted."""
        asked: list[Policy] = []
        with one_thread():
            while len(asked) < count:
                policy = draw_new(self.problem, self._seen, self._episode, self.rng)
                if policy is None:
                    break
                self._episodes += 1
                asked.append(policy)
        return asked

    def _episode(self) -> Indices:
        """One walk under the next budget, so that none is walked in vain again and again."""
        share = self._shares[self._walks % len(self._shares)]
        self._walks += 1
        random = self._episodes < self._start or not len(self._replay)
        spread = NOISE.spread(max(0, self._episodes - self._start))
        levels = np.zeros(len(self.problem.space), dtype=np.int64)
        executed = np.zeros(len(levels))
        for step in range(self._mdp.steps):
            if random:
                wanted = self.rng.random(1)
            else:
                state = np.append(self._mdp.state(step, executed), self._seen_share(share))
                wanted = truncated_normal(self.rng, self._learner.act(state), np.full(1, spread))
            levels[step] = self._mdp.execute(step, wanted)[0][0]
            if self._meet == "clamp":
                levels[step] = self._budget.clamp(levels, step, share)
            executed[step] = (levels[step] + 0.5) / self.problem.space.sizes[step]
        return self._budget.lower(levels, share) if self._meet == "lower" else levels

    def _seen_share(self, share: float) -> float:
        """A budget as the networks see it: 0 is the full cost, 1 the least."""
        if self._meet == "reward":
            return 0.0
        return float(np.log(max(share, 1e-6)) / min(np.log(self._budget.least_share), -1e-6))

    # Learning.

    def skip_start(self) -> None:
        """Go on from what is told in place of random episodes."""
        self._start = self._episodes

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Put episodes into replay, whoever asked for them, and train on it."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            indices = self.problem.space.encode(evaluation.policy)
            point = self.problem.space.to_unit(indices)
            share = self._budget.cost(indices) / max(self._budget.full, 1e-12)
            told = np.array([self._reward(evaluation, share), self._seen_share(share)])
            self._replay.add(self._mdp.states(point), self._mdp.actions(point, self.rng), told)
        if self._episodes < self._start or len(self._replay) < 2:
            return
        with one_thread():
            for _ in range(UPDATES_PER_EPISODE * len(evaluations)):
                self._learner.update(self._lessons(), self.rng)

    def _reward(self, evaluation: Evaluation, share: float) -> float:
        """R of He et al. 2018, section 3.3, or of Wang et al. 2019, section 3.4."""
        found = outcome(self.problem, evaluation)
        if self._meet != "reward":
            return float(rewards(self.problem, found[None])[0])
        error = self.problem.values(evaluation)[self.problem.loss_place]
        return float(-error * np.log(max(np.e, share * self._budget.full)) - found[-1])

    def _lessons(self) -> Transitions:
        """Transitions drawn from replay, each under the budget that its episode really met."""
        even = np.ones(len(self._replay))
        batch = self._replay.sample(self.rng, BATCH, even)
        baseline = float(self._replay.outcomes[:, 0].mean())
        earned, shares = batch.outcomes[:, 0] - baseline, batch.outcomes[:, 1:]
        return Transitions(
            states=np.hstack([batch.states, shares]),
            actions=batch.actions,
            rewards=earned,
            next_states=np.hstack([batch.next_states, shares]),
            last=batch.last,
            returns=earned,
        )

    # State.

    def state_dict(self) -> State:
        """Generator, replay, networks and optimizers."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": self._start,
            "episodes": self._episodes,
            "walks": self._walks,
            "replay": self._replay.state_dict(),
            "learner": self._learner.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start = state["start"]
        self._episodes, self._walks = state["episodes"], state["walks"]
        self._replay.load_state_dict(state["replay"])
        self._learner.load_state_dict(state["learner"])


def _metric(problem: Problem, metrics: Sequence[str]) -> str:
    """The first preferred cost that is constrained, else minimised, else any that is."""
    constrained = [c.metric for c in problem.constraints if c.metric not in LOSSES]
    minimised = problem.minimised_costs
    preferred = [m for m in metrics if m in constrained] + [m for m in metrics if m in minimised]
    return [*preferred, *constrained, *minimised][0]


_PRUNING: Final = ("macs", "params", "size_bytes")
_QUANTIZING: Final = ("size_bytes", "bitops")


def amc(problem: Problem, seed: int, meet: str = "clamp") -> Strategy:
    """AMC: channels, by a budget of multiply-accumulates, or by `meet="reward"`."""
    build = partial(BudgetAgent, metrics=_PRUNING, meet=meet)
    return _on(problem, seed, build, ("channels", "kernel_sparsity"))


def haq(problem: Problem, seed: int) -> Strategy:
    """HAQ: bits, by a budget of bytes."""
    build = partial(BudgetAgent, metrics=_QUANTIZING, meet="lower")
    return _on(problem, seed, build, ("weight_bits", "activation_bits"))


def _on(
    problem: Problem, seed: int, build: Callable[[Problem, int], Strategy], kinds: Sequence[Kind]
) -> Strategy:
    free = genes_of(problem, kinds)
    return Restricted(problem, seed, build, free, least_compressed(problem, free))
