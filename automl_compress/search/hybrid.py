"""A strategy composed of strategies that share every evaluation.

A genetic algorithm, a learner and others each have their time in a search. Here all members are
told all evaluations, so that the agents' episodes enter the population, an agent's replay is
filled from whatever was evaluated, and the front is refined by whoever is good at it. A bandit
(`bandit`: Garivier and Moulines 2011) gives the next batch to the member whose evaluations lately
gained most hypervolume, as adaptive operator selection does with operators (Fialho et al. 2010).

Costs are exact and free, so nobody needs to pay for a bad proposal: before every choice all
members propose candidates, the one in turn as many as the others together, and those of largest
expected hypervolume improvement (`screening`) are evaluated. The others wait for the next choice.
What members propose lies near what is known, so where genes are of several kinds, networks of the
front with whole kinds shifted (`priors.shifted`) are candidates too, until the surrogate knows the
space. Then, at once where genes are few, further candidates are bred from the most promising ones
instead, as Bayesian optimization climbs its acquisition function. Where constraints on costs leave
the uncompressed network out and genes are of one kind, which leaves nothing to shift, they are bred
at once as well. The common start is short: it trusts in harms that add up, and the surrogate learns
also what genes do to each other.

Every part has a switch: which members there are, whether they share, whether the bandit or the
round robin chooses, whether candidates are screened, shifted and bred, and what the search starts
with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation, references
from automl_compress.pareto import Reference, front_mask
from automl_compress.search.bandit import DiscountedUCB
from automl_compress.search.priors import draw_new, moved, shifted
from automl_compress.search.record import Record
from automl_compress.search.registry import build_strategy
from automl_compress.search.screening import Screen, Surrogate, best_first
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy

MEMBERS: Final = ("nsga2", "ddpg", "local", "knapsack")
START: Final = ("knapsack", 5)
"""Uniformly compressed networks, and one more: with 20, `hybrid` was behind `random` at first where
accuracy collapses when neighbours are both cut; where harms add up, 5 are as good."""
PROPOSALS: Final = 20
"""Candidates that members propose before a choice."""
OWN_TURN: Final = 0.5
"""Share of them that the member in turn proposes; the others have equal parts of the rest."""
SHIFTED: Final = 20
"""Candidates more, of the front's networks with whole kinds of genes shifted, until candidates are
bred: on a space of 5 genes, where breeding begins at once, they cost 0.002 of the hypervolume, as
on one of 40 genes of a single kind."""
WAITING: Final = 300
"""Candidates that wait for another choice, at most; the least promising are forgotten."""
PER_PAIR: Final = 0.2
"""Evaluations per pair of genes with a choice before candidates are bred: what is bred for a
surrogate that knows less is best where the surrogate is most wrong. Bred at once on ResNet-56's 85
genes of two kinds at 5 % of the bytes, the least error after 240 evaluations was 0.19 in place of
0.16 (3 seeds); on its 30 groups of channels at 39 % of the multiply-accumulates it was 0.19 after
120 evaluations in place of 0.24, and the same after 240 (4 seeds)."""
GENERATIONS: Final = 3
"""How often candidates are bred before a choice."""
PARENTS: Final = 20
"""The most promising candidates, of which others are bred."""
CHILDREN: Final = 60
"""Candidates bred at a time."""
_START: Final = -1
"""In a member's place: the common start asked."""
_NOBODY: Final = -2
"""In a member's place: no member proposed it, and no turn is to be credited."""


class Hybrid(Strategy):
    """Members by name, who share what is evaluated and compete for what is asked next.

    Args:
        problem: what is searched.
        seed: decides every random choice, the members' too.
        members: registered strategies.
        start: the strategy asked first and how often; members then leave their own start out.
            None: every member starts by itself.
        sharing: tell members every evaluation; otherwise only what they asked for.
        bandit: the next batch goes to whom the bandit says; otherwise members take turns.
        screening: members propose candidates, of which a surrogate chooses; otherwise what they
            ask for is evaluated.
        shifting: until much is known, networks of the front with whole kinds of genes shifted are
            candidates too, where there are several kinds.
        breeding: once much is known, the most promising candidates are mixed and moved into
            further ones.
    """

    batch = 5

    def __init__(
        self,
        problem: Problem,
        seed: int,
        members: Sequence[str] = MEMBERS,
        start: tuple[str, int] | None = START,
        sharing: bool = True,
        bandit: bool = True,
        screening: bool = True,
        shifting: bool = True,
        breeding: bool = True,
    ) -> None:
        super().__init__(problem, seed)
        self._sharing = sharing
        self._members = [self._build(name) for name in members]
        self._start = self._starter(None if start is None else start[0], members)
        self._left = 0 if start is None else start[1]  # of the start, to be told
        self._turns = DiscountedUCB(len(members)) if bandit else None
        self._turn = 0
        self._seen = Seen()
        self._screening = screening
        chosen = [gene.kind for gene in problem.space if len(gene) > 1]
        of_one_kind = len(set(chosen)) <= 1
        self._shifting = shifting and not of_one_kind
        self._breeding = breeding
        self._record = Record(problem)
        at_once = of_one_kind and self._record.bound
        self._enough = 0 if at_once else PER_PAIR * math.comb(len(chosen), 2)
        self._progress = _Progress(problem, self._record)
        self._screen = Screen(problem.space, self._record)
        self._waiting: dict[Policy, int] = {}  # candidates, and who proposed each: member, _NOBODY
        self._asked_by: dict[str, int] = {}  # key of what is out, and who: member, _START, _NOBODY

    def _build(self, name: str) -> Strategy:
        """A member; how much of the budget it will get, nobody knows."""
        problem = replace(self.problem, budget=None)
        return build_strategy(name, problem, int(self.rng.integers(2**31)))

    def _starter(self, name: str | None, members: Sequence[str]) -> Strategy | None:
        """Who is asked first: the member of that name when there is one."""
        if name is None:
            return None
        return self._members[members.index(name)] if name in members else self._build(name)

    @property
    def _separate_start(self) -> Strategy | None:
        """The start when it is none of the members."""
        return None if any(self._start is m for m in self._members) else self._start

    # Asking.

    def ask(self, count: int) -> list[Policy]:
        """What the start, then the members in their turns, ask for; fewer at the space's end."""
        asked: list[Policy] = []
        while len(asked) < count:
            new = self._next(min(self.batch, count - len(asked)))
            if not new:
                break
            asked += new
        return asked

    def _next(self, count: int) -> list[Policy]:
        if self._start is not None and (left := self._left - self._out(_START)) > 0:
            new = self._from(self._start, _START, min(count, left))
            if new:
                return new
        surrogate = self._screen.surrogate() if self._screening else None
        if new := self._unscreened(count) if surrogate is None else self._chosen(surrogate, count):
            return new
        space = self.problem.space
        drawn = draw_new(self.problem, self._seen, lambda: space.sample(self.rng), self.rng)
        return [] if drawn is None else [drawn]

    def _unscreened(self, count: int) -> list[Policy]:
        """What the first member that has something asks for."""
        for member in self._order():
            new = self._from(self._members[member], member, count)
            if new:
                return new
        return []

    def _chosen(self, surrogate: Surrogate, count: int) -> list[Policy]:
        """The most promising candidates: those that wait, and what members propose now."""
        for member, proposals in zip(self._order(), _parts(len(self._members)), strict=True):
            for policy in self._members[member].ask(proposals):
                self._offer(policy, member)
        much_is_known = len(self._record) >= self._enough
        if self._shifting and not much_is_known:
            self._shift()
        self._keep_best(surrogate)
        if self._breeding and much_is_known:
            for _ in range(GENERATIONS):
                self._breed(surrogate)
            self._keep_best(surrogate)
        pool = list(self._waiting)
        chosen = [pool[place] for place in surrogate.choose(pool, count)] if pool else []
        for policy in chosen:
            self._seen.add(policy)
            self._asked_by[policy.key] = self._waiting.pop(policy)
        return chosen

    def _keep_best(self, surrogate: Surrogate) -> None:
        """Let the most promising wait, the best first."""
        pool = [policy for policy in self._waiting if policy not in self._seen]
        order = best_first(surrogate.gains(pool))[:WAITING] if pool else []
        self._waiting = {pool[place]: self._waiting[pool[place]] for place in order}

    def _shift(self) -> None:
        """Let relatives of the front's networks wait."""
        space, known = self.problem.space, self._record.known()
        front = known.indices[front_mask(np.column_stack([known.errors, known.costs]))]
        for base in front[self.rng.integers(len(front), size=SHIFTED)]:
            self._offer(space.decode(shifted(space, self.rng, base)), _NOBODY)

    def _offer(self, policy: Policy, member: int) -> None:
        """Let a policy wait that is new and meets the constraints on costs."""
        if policy not in self._seen and not self.problem.cost_violation(policy):
            self._waiting.setdefault(policy, member)

    def _breed(self, surrogate: Surrogate) -> None:
        """Add children of the most promising; they count as proposed by whoever proposed these."""
        space, best = self.problem.space, list(self._waiting)
        if not best:
            return
        parents = [best[p] for p in best_first(surrogate.gains(best))[:PARENTS]]
        indices = [space.encode(policy) for policy in parents]
        for _ in range(CHILDREN):
            one, other = self.rng.integers(len(parents), size=2)
            mixed = np.where(self.rng.random(len(space)) < 0.5, indices[one], indices[other])
            child = space.decode(moved(space, self.rng, mixed))
            self._offer(child, self._waiting[parents[one]])

    def _from(self, strategy: Strategy, member: int, count: int) -> list[Policy]:
        """What a member asks for, less what is out or was told already."""
        new = [policy for policy in strategy.ask(count) if policy not in self._seen]
        for policy in new:
            self._seen.add(policy)
            self._asked_by[policy.key] = member
        return new

    def _order(self) -> list[int]:
        """Members, whoever's turn it is first."""
        count = len(self._members)
        if self._turns is None:
            self._turn += 1
            return [(self._turn - 1 + offset) % count for offset in range(count)]
        return self._turns.order(np.array([self._out(member) for member in range(count)]))

    def _out(self, member: int) -> int:
        """How much of what a member asked for is not told yet."""
        return sum(asked == member for asked in self._asked_by.values())

    # Telling.

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell the members, and the bandit what each evaluation gained."""
        askers = []
        self._record.add(evaluations)
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            asker = self._asked_by.pop(evaluation.policy.key, None)
            gain = self._progress.add(evaluation)
            if asker is not None and asker >= 0 and self._turns is not None:
                self._turns.tell(asker, gain)
            askers.append(asker)
        self._end_start(sum(asker == _START for asker in askers))
        for number, member in enumerate(self._members):
            concerned = [asker is None or asker < 0 or asker == number for asker in askers]
            own = list(itertools.compress(evaluations, concerned))
            member.tell(evaluations if self._sharing else own)
        if self._separate_start is not None and self._left > 0:
            self._separate_start.tell(evaluations)

    def _end_start(self, told: int) -> None:
        """When the start is told, members go on from it in place of a start of their own."""
        if self._left > 0 and self._left <= told:
            for member in self._members:
                member.skip_start()
        self._left = max(0, self._left - told)

    # State.

    def state_dict(self) -> State:
        """The members' states, the bandit's, the front, what waits and what is out."""
        space, start = self.problem.space, self._separate_start
        return {
            "rng": self.rng.bit_generator.state,
            "members": [member.state_dict() for member in self._members],
            "start": None if start is None else start.state_dict(),
            "left": self._left,
            "turns": None if self._turns is None else self._turns.state_dict(),
            "turn": self._turn,
            "front": self._progress.front,
            "seen": self._seen.state_dict(),
            "record": self._record.state_dict(),
            "waiting": [space.encode(policy) for policy in self._waiting],
            "proposers": list(self._waiting.values()),
            "asked_by": dict(self._asked_by),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        for member, saved in zip(self._members, state["members"], strict=True):
            member.load_state_dict(saved)
        if self._separate_start is not None:
            self._separate_start.load_state_dict(state["start"])
        self._left = state["left"]
        if self._turns is not None:
            self._turns.load_state_dict(state["turns"])
        self._turn = state["turn"]
        self._progress.front = state["front"]
        self._seen.load_state_dict(state["seen"])
        self._record.load_state_dict(state["record"])
        self._screen = Screen(self.problem.space, self._record)
        waiting = [self.problem.space.decode(indices) for indices in state["waiting"]]
        self._waiting = dict(zip(waiting, state["proposers"], strict=True))
        self._asked_by = dict(state["asked_by"])


def _parts(members: int) -> list[int]:
    """How many candidates each member proposes, whoever's turn it is first; one at least."""
    if members == 1:
        return [PROPOSALS]
    own = round(OWN_TURN * PROPOSALS)
    return [own] + [max(1, (PROPOSALS - own) // (members - 1))] * (members - 1)


class _Progress:
    """The front so far, and what each evaluation adds to its hypervolume.

    Plain and useful hypervolume count alike: the first tells even while nothing is useful. Where
    a problem counts only one, so does this.

    Args:
        problem: what is searched.
        record: what was told; it says which errors are useful.
    """

    def __init__(self, problem: Problem, record: Record) -> None:
        self._problem = problem
        self._record = record
        self.front = np.empty((0, len(problem.objectives)))

    def add(self, evaluation: Evaluation) -> float:
        """Gain of an evaluation, at least 0; nothing for failures and broken constraints."""
        if not evaluation.ok or self._problem.violation(evaluation) > 0:
            return 0.0
        values = self._problem.values(evaluation)
        joined = np.vstack([self.front, values[None]])
        kept = joined[front_mask(joined)]
        gain = self._share(kept) - self._share(self.front)
        self.front = kept
        return max(0.0, gain)

    def _share(self, values: NDArray[np.float64]) -> float:
        return float(np.mean([reference.share(values) for reference in self._counted()]))

    def _counted(self) -> tuple[Reference, ...]:
        """References of the hypervolumes that count."""
        problem, counted = self._problem, self._problem.counted_error
        limit = self._record.useful_error if counted is None else counted
        more = limit - problem.baseline[problem.loss]
        found = references(problem.objectives, problem.baseline, more)
        return found if counted is None else found[1:]
