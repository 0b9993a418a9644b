"""Whether evaluators have room, and what is said where they have none."""

from __future__ import annotations

import re

import pytest

from automl_compress.engine.room import Pool, room_for, what_differs, what_left, what_waits


@pytest.mark.parametrize(
    ("processors", "threads", "room"),
    [((4.0,), 1, 4), ((3.0, 3.0, 3.0), 2, 3), ((-1.0, 2.0), 1, 2), ((1.0, 1.0), 2, 0), ((), 1, 0)],
)
def test_an_evaluator_has_room_on_one_machine(
    processors: tuple[float, ...], threads: int, room: int
) -> None:
    assert room_for(processors, threads) == room


@pytest.mark.parametrize(
    ("pool", "threads", "processors", "free", "said"),
    [
        (Pool(3, 3), 4, [2.0], 0.0, ""),
        (
            Pool(0, 3),
            1,
            [2.0, 2.0],
            0.0,
            "^no .* 3 .* takes 1 of .* 4 .* 0 are free.*waits",
        ),
        (Pool(0, 3), 1, [2.0], 2.0, "^no evaluator of the study's 3 is at work yet; they are star"),
        (
            Pool(2, 3),
            1,
            [2.0],
            0.5,
            "^2 of .* 3 .* cluster's 2 .* 0.5 are free.*goes on",
        ),
        (Pool(1, 3), 1, [2.0, 2.0], 1.0, "^1 of the study's 3 .* at work; the others are st"),
        (Pool(1, 3), 2, [4.0, 4.0], 2.0, "each takes 2 .* 8 processors, of which 2 are free"),
        (Pool(1, 3), 2, [4.0, 4.0], 3.0, "are starting"),
        (Pool(0, 1), 4, [2.0, 3.0], 5.0, "takes 4 processors of one .* more than 3; .* waits"),
        (Pool(0, 1), 1, [], 0.0, "more than 0; "),
    ],
)
def test_what_evaluators_wait_for_is_said(
    pool: Pool, threads: int, processors: list[float], free: float, said: str
) -> None:
    line = what_waits(pool, threads, processors, free)
    assert re.search(said, line) if said else not line


def test_machines_that_compute_otherwise_are_named() -> None:
    assert not what_differs(["AVX2", "AVX2"])
    assert not what_differs([])
    assert what_differs(["AVX512", "AVX2", "AVX512"]).startswith(
        "machines of the cluster compute with AVX2 and with AVX512, whose last digits differ"
    )


def test_machines_that_are_gone_are_named() -> None:
    before = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
    again = {"a": "10.0.0.1", "new": "10.0.0.3"}  # one was started anew
    said = what_left(before, again)
    assert [re.findall(r"^machine (\S+) has left the cluster", line) for line in said] == [
        ["10.0.0.2"],
        ["10.0.0.3"],
    ]
    assert what_left(before, {**before, "d": "10.0.0.4"}) == []
