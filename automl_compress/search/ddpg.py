"""DDPG and TD3 over the walk through a network (Lillicrap et al. 2016, Fujimoto et al. 2018).

The agent walks through the genes (`layer_mdp`), as AMC (He et al. 2018) walks through layers: one
continuous action per gene, decoded to a choice. One agent covers the whole front: what actor and
critic see holds a preference, the costs the network shall have, and every episode is asked for
under a preference of its own. The reward is the accuracy kept. The learners are `actor_critic`'s.

With `together` the agent decides all genes of a layer in one step, so that the ratio of a layer
and its bits are one action, as in CoTrim (Ma et al. 2025, 10.3778/j.issn.1002-8331.2311-0002).
That paper publishes no code; all else of `cotrim` is what works here for `ddpg`.

Deviations from the papers:

1. Costs are computed, not learnt: when a walk is done, all its actions are shifted by one amount,
   as little as makes the network meet the preferred costs exactly as well as the choices allow.
   AMC's clamps leave the last layers to pay for all others.
2. In replay, the preference of an episode is the cost it really has (Andrychowicz et al. 2017,
   hindsight experience replay). So any evaluated policy is a lesson, whoever asked for it, and
   what an action does is judged among networks of equal cost.
3. The critic's target is half the episode's own return and half the bootstrapped value. With
   a reward at the end of some hundred steps, bootstrapping alone needs more episodes than a
   search can pay for.
4. The executed action is stored, not the wanted one: the centre of the chosen value's cell.
5. Exploration is truncated normal noise around the actor, as in AMC, whose spread decays
   slowly and not below a floor, nor below what can leave a choice's cell, so that it is alive at
   the end of a search. The actor is held away from the flat ends of its sigmoid.
6. The first episodes are drawn by `priors.scaled_indices`. Most later ones return to the policy
   that has done best under the episode's preference and decide only some of its genes anew
   (Ecoffet et al. 2021, first return, then explore): with a hundred genes, one noisy decision
   in each ruins every network.
7. Episodes that ended in a useful network are learnt from more often than ruined ones.
8. Of some walks the one of largest predicted gain is evaluated (`imagination`). What the critic
   predicts of a walk is the mean of its values along it: all of them expect the same reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.pareto import front_mask
from automl_compress.search.actor_critic import ActorCritic, Learning, Transitions
from automl_compress.search.actor_critic import twin as twin_of
from automl_compress.search.exploration import Noise, truncated_normal
from automl_compress.search.imagination import ImaginingAgent
from automl_compress.search.layer_mdp import LayerMDP
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.reward import attention, damped, rewards, scaled_costs
from automl_compress.search.strategy import Problem
from automl_compress.space import Indices, Policy

WARM_UP: Final = 30
LEARNING: Final = Learning(own_return=0.5)
UPDATES_PER_EPISODE: Final = 5
BATCH: Final = 256
NOISE: Final = Noise(first=0.30, decay=0.99, floor=0.08)
CELLS: Final = 0.6  # least spread, in cells of the gene
RETURNING: Final = 0.8  # share of episodes that return to an evaluated policy
DECIDED_ANEW: Final = (0.03, 0.3)  # bounds of the share of its genes that they decide anew
PREFERENCE_SPREAD: Final = 0.5  # of preferred costs around a front's, in doublings
OVERRUN: Final = 2.0  # useful losses of accuracy that doubling a preferred cost is worth
HALVINGS: Final = 7
Array = NDArray[np.float64]


class DDPG(ImaginingAgent[ActorCritic]):
    """Deep deterministic policy gradient over the walk through a network's genes.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        twin: learn by TD3.
        together: decide all genes of a layer in one step.
    """

    def __init__(
        self, problem: Problem, seed: int, twin: bool = False, together: bool = False
    ) -> None:
        super().__init__(problem, seed, WARM_UP, NOISE, UPDATES_PER_EPISODE)
        self._together = together
        self._mdp = LayerMDP(problem, together)
        self._replay = EpisodeReplay(self._mdp.steps, self._mdp.state_size)
        self._learner = ActorCritic(
            self._mdp.state_size + len(problem.objectives) - 1,
            self._mdp.action_size,
            int(self.rng.integers(2**31)),
            twin_of(LEARNING) if twin else LEARNING,
        )

    def plan(self) -> list[str]:
        """What one action decides."""
        layers = f"{self._mdp.steps} layers, which have " if self._together else ""
        return [
            *super().plan(),
            f"then one agent takes an action for each of {layers}{self.problem.choices}",
        ]

    # Acting.

    def _predicted(self, policies: Sequence[Policy]) -> Array:
        """(n,) reward of each policy: the mean of what the critic expects at its decisions."""
        space, steps = self.problem.space, self._mdp.steps
        points = space.to_unit([space.encode(policy) for policy in policies])
        costs = np.log2(np.maximum(self._record.shares(policies), 1e-6))
        states, actions = self._mdp.states(points), self._mdp.actions(points, self.rng)
        values = self._learner.values(
            np.hstack([states.reshape(-1, states.shape[-1]), np.repeat(costs, steps, axis=0)]),
            actions.reshape(-1, actions.shape[-1]),
        )
        expected: Array = values.reshape(len(policies), steps).mean(axis=1)
        return expected

    def _draw_preferences(self, count: int) -> Array:
        """(count, n_costs) costs near those of evaluated networks on the useful front."""
        values = self._replay.outcomes[:, :-1]
        tolerated = self.problem.ruinous_loss - self.problem.baseline[self.problem.loss]
        worst = damped(tolerated / self.problem.useful_loss)
        useful = values[:, self.problem.loss_place] <= worst
        among = values[useful] if useful.any() else values
        front = scaled_costs(self.problem, among[front_mask(among)])
        chosen = front[self.rng.integers(len(front), size=count)]
        preferred: Array = chosen + PREFERENCE_SPREAD * self.rng.standard_normal(chosen.shape)
        return preferred

    def _anchors(self, preferences: Array) -> tuple[Array, Array]:
        """Where episodes return to, and the share of it to decide anew: all in a free walk.

        Args:
            preferences: (n, n_costs).

        Returns:
            (n, n_genes) points and (n,) shares.
        """
        outcomes = self._replay.outcomes
        costs = scaled_costs(self.problem, outcomes)
        overrun = np.maximum(0.0, costs - preferences[:, None]).sum(axis=2)
        best = (rewards(self.problem, outcomes) - OVERRUN * overrun).argmax(axis=1)
        points = np.stack([self._mdp.point(self._replay.actions[episode]) for episode in best])
        low, high = DECIDED_ANEW
        shares = low * (high / low) ** self.rng.random(len(best))
        return points, np.where(self.rng.random(len(best)) < RETURNING, shares, 1.0)

    def _ends(self, spreads: Array) -> list[Indices]:
        """Episodes side by side, each shifted to the costs it prefers.

        Args:
            spreads: (n,) of each one's noise.
        """
        cells = 1.0 / self.problem.space.sizes
        preferences = self._draw_preferences(len(spreads))
        anchors, shares = self._anchors(preferences)
        returning = self.rng.random((self._mdp.steps, len(spreads))) >= shares
        near = anchors + cells * (self.rng.random(anchors.shape) - 0.5)
        wanted, executed = np.zeros(near.shape), np.zeros(near.shape)
        for step in range(self._mdp.steps):
            genes = self._mdp.genes(step)
            states = np.hstack([self._mdp.state(step, executed), preferences])
            means = self._mdp.wanted(step, self._learner.act(states))
            noise = np.maximum(spreads[:, None], CELLS * cells[genes])
            drawn = truncated_normal(self.rng, means, noise)
            wanted[:, genes] = np.where(returning[step][:, None], near[:, genes], drawn)
            executed[:, genes] = self._mdp.execute(step, wanted[:, genes])[1]
        pairs = zip(wanted, preferences, strict=True)
        return [self._shifted(point, preference) for point, preference in pairs]

    def _shifted(self, wanted: Array, preference: Array) -> Indices:
        """The least compressed choices, all actions moved alike, within the preferred costs."""
        space = self.problem.space
        names = self.problem.minimised_costs
        limits = [2.0**p * self.problem.baseline[n] for p, n in zip(preference, names, strict=True)]

        def fits(shift: float) -> bool:
            costs = self.problem.cost(space.decode(space.from_unit(wanted + shift)))
            return all(costs[name] <= limit for name, limit in zip(names, limits, strict=True))

        low, high = -1.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return space.from_unit(wanted + low)

    # Learning.

    def _episode(self, policy: Policy) -> tuple[Array, Array]:
        """(steps, state_size) states and (steps, n) actions of the walk that ends at a policy."""
        point = self.problem.space.to_unit(self.problem.space.encode(policy))
        return self._mdp.states(point), self._mdp.actions(point, self.rng)

    def _learn(self) -> None:
        """One update of actor and critic."""
        self._learner.update(self._lessons(), self.rng)

    def _lessons(self) -> Transitions:
        """Transitions drawn from replay, each under the costs that its episode really had."""
        weights = attention(self.problem, self._replay.outcomes)
        batch = self._replay.sample(self.rng, BATCH, weights)
        preferences = scaled_costs(self.problem, batch.outcomes)
        returns = rewards(self.problem, batch.outcomes)
        return Transitions(
            states=np.hstack([batch.states, preferences]),
            actions=batch.actions,
            rewards=np.where(batch.last, returns, 0.0),
            next_states=np.hstack([batch.next_states, preferences]),
            last=batch.last,
            returns=returns,
        )
