"""Whether a cluster's machines have room for a study's evaluators, and what to say where not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """How many of a study's evaluators are at work.

    Args:
        started: that are ready to answer.
        asked: that are ready, starting or waiting for room.
        kinds: instruction sets that those which have loaded torch compute with.
        lost: why others are not started again, a line for each.
        late: evaluations that took longer than they should, a line for each.
    """

    started: int
    asked: int
    kinds: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()
    late: tuple[str, ...] = ()


def room_for(processors: Iterable[float], threads: int) -> int:
    """How many evaluators machines have processors for.

    Args:
        processors: of each machine.
        threads: of each evaluator, all on one machine.
    """
    return sum(int(max(0.0, number) // threads) for number in processors)


def what_waits(pool: Pool, threads: int, processors: Sequence[float], free: float) -> str:
    """What keeps evaluators from starting, in a line; empty when all have started.

    Args:
        pool: the evaluators.
        threads: of each.
        processors: of each machine, whoever holds them.
        free: processors that nobody holds.
    """
    if pool.started >= pool.asked:
        return ""
    most = max(processors, default=0)
    if most < threads:
        return (
            f"an evaluator takes {threads} processors of one machine (engine.threads), but no "
            f"machine of the cluster has more than {most:g}; the study waits for one that has"
        )
    at_work = f"{pool.started} of the study's {pool.asked} evaluators are at work"
    if not pool.started:
        at_work = f"no evaluator of the study's {pool.asked} is at work yet"
    if free >= len(processors) * (threads - 1) + 1:  # then some machine has room for one
        rest = "the others" if pool.started else "they"
        return f"{at_work}; {rest} are starting, which takes long"
    goes_on = "goes on with these" if pool.started else "waits"
    return (
        f"{at_work}: each takes {threads} of the cluster's {sum(processors):g} processors, of "
        f"which {free:g} are free (others may hold them, see 'ray status', or starting takes "
        f"long); the study {goes_on}"
    )


def what_left(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What to say of machines that are gone, a line for each.

    Args:
        before: addresses of the machines that were there, by a name that no other ever has.
        now: of those that are there.
    """
    return [
        f"machine {address} has left the cluster; evaluators that were there start again where "
        "there is room, and what they were asked is asked again"
        for name, address in before.items()
        if name not in now
    ]


def what_differs(kinds: Iterable[str]) -> str:
    """What different machines mean for a study, in a line; empty when they are alike.

    Args:
        kinds: instruction sets that they compute with.
    """
    found = sorted(set(kinds))
    if len(found) < 2:
        return ""
    return (
        f"machines of the cluster compute with {' and with '.join(found)}, whose last digits "
        "differ: where answers nearly tie, the study may give others when it is run again"
    )
