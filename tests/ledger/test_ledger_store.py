from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from automl_compress.errors import EngineError, StudyError
from automl_compress.evaluate import Evaluation
from automl_compress.ledger import Ledger, Place
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=6)
POLICIES = [NETWORK.space.largest, *NETWORK.space.neighbours(NETWORK.space.largest)]


def _evaluations(failing: float = 0.0) -> list[Evaluation]:
    return [ToyEstimator(NETWORK, failing).estimate(policy) for policy in POLICIES]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_what_is_added_is_found_and_survives_closing(path: Path) -> None:
    evaluations = _evaluations(failing=0.5)
    assert {e.status for e in evaluations} == {"ok", "failed"}
    with Ledger(path) as ledger:
        for position, evaluation in enumerate(evaluations):
            ledger.add(evaluation, Place("a-0", position, 0))
        assert len(ledger) == len(evaluations)
    with Ledger(path) as ledger:
        estimator = evaluations[0].estimator
        keys = [e.policy.key for e in evaluations]
        assert ledger.find([*keys, "unknown"], estimator) == dict(
            zip(keys, evaluations, strict=True)
        )
        assert ledger.find(keys, "another estimator") == {}
        assert list(ledger.evaluations(estimator)) == sorted(
            evaluations, key=lambda e: e.policy.key
        )
        assert list(ledger.evaluations("another estimator")) == []


def test_the_first_answer_stays(path: Path) -> None:
    first = Evaluation(POLICIES[0], "e", {"accuracy": 0.1 + 0.2})
    with Ledger(path) as ledger:
        ledger.add(first, Place("a-0", 0, 0))
        ledger.add(Evaluation(POLICIES[0], "e", {"accuracy": 0.9}), Place("b-0", 0, 0))
        assert ledger.find([POLICIES[0].key], "e") == {POLICIES[0].key: first}
        assert len(ledger) == 1


def test_how_long_the_slowest_answer_took(path: Path) -> None:
    """That of failures says nothing: some come at once, some after hours."""
    took = [
        Evaluation(POLICIES[0], "e", {"accuracy": 0.9}, seconds=2.0),
        Evaluation(POLICIES[1], "e", {"accuracy": 0.9}, seconds=3.0),
        Evaluation.failed(POLICIES[2], "e", "its evaluator died", 9.0),
        Evaluation.failed(POLICIES[3], "f", "its evaluator died", 9.0),
    ]
    with Ledger(path) as ledger:
        for position, evaluation in enumerate(took):
            ledger.add(evaluation, Place("a-0", position, 0))
        assert ledger.slowest("e") == 3.0
        assert ledger.slowest("f") is None


def test_a_session_takes_the_place_of_the_one_before_or_changes_nothing(path: Path) -> None:
    def session(name: str, *policies: int) -> list[tuple[Evaluation, Place]]:
        place = Place(name, 0, 0)
        return [(Evaluation(POLICIES[p], "e", {"accuracy": 0.5}), place) for p in policies]

    with Ledger(path) as ledger:
        other = Evaluation(POLICIES[0], "f", {"accuracy": 0.5})
        ledger.add(other, Place("a-0", 0, 0))
        ledger.replace("e", session("first", 0, 1))
        ledger.replace("e", session("second", 1, 2))
        expected = {POLICIES[1].key, POLICIES[2].key}
        assert {e.policy.key for e in ledger.evaluations("e")} == expected
        broken: Any = [*session("third", 3), (None, Place("third", 1, 0))]
        with pytest.raises(AttributeError):
            ledger.replace("e", broken)
        assert {e.policy.key for e in ledger.evaluations("e")} == expected
        assert list(ledger.evaluations("f")) == [other]


def test_one_policy_has_an_answer_per_estimator(path: Path) -> None:
    with Ledger(path) as ledger:
        for name in ("e", "f"):
            ledger.add(Evaluation(POLICIES[0], name, {"accuracy": 0.5}), Place("a-0", 0, 0))
        assert len(ledger) == 2
        assert ledger.find([POLICIES[0].key], "f")[POLICIES[0].key].estimator == "f"


def test_charges_come_in_the_order_asked_and_say_who_made_them(path: Path) -> None:
    one, two, three = _evaluations()[:3]
    with Ledger(path) as ledger:
        ledger.add(one, Place("a-0", 0, 0))
        ledger.add(two, Place("b-0", 0, 0))
        ledger.add(three, Place("a-0", 2, 1))
        before = time.time()
        ledger.charge([Place("a-0", 2, 1)], [three])
        ledger.charge([Place("a-0", 0, 0), Place("a-0", 1, 0)], [one, two])
        ledger.charge([Place("b-0", 0, 0), Place("b-0", 1, 0)], [two, two])
        charges = ledger.charges("a-0")
        assert [c.evaluation for c in charges] == [one, two, three]
        assert [c.place for c in charges] == [
            Place("a-0", 0, 0), Place("a-0", 1, 0), Place("a-0", 2, 1),
        ]  # fmt: skip
        assert [c.hit for c in charges] == [False, True, False]
        assert [c.hit for c in ledger.charges("b-0")] == [False, True]
        assert all(abs(c.finished - before) < 60 for c in charges)
        assert ledger.charges("nobody") == []


def test_charging_again_after_a_kill_changes_nothing(path: Path) -> None:
    one, two = _evaluations()[:2]
    with Ledger(path) as ledger:
        for position, evaluation in enumerate((one, two)):
            ledger.add(evaluation, Place("a-0", position, 0))
        ledger.charge([Place("a-0", 0, 0)], [one])
    with Ledger(path) as ledger:
        before = ledger.charges("a-0")
        ledger.charge([Place("a-0", 0, 5)], [two])
        assert ledger.charges("a-0") == before
        ledger.charge([Place("a-0", 0, 0), Place("a-0", 1, 0)], [one, two])
        assert [c.evaluation for c in ledger.charges("a-0")] == [one, two]
        assert ledger.charges("a-0")[0] == before[0]
    with Ledger(path) as ledger, pytest.raises(ValueError, match="shorter"):
        ledger.charge([Place("a-0", 2, 0), Place("a-0", 3, 0)], [one])


def test_writing_ahead_with_full_synchronisation_is_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add(_evaluations()[0], Place("a-0", 0, 0))
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.close()
        assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert path.with_name(path.name + "-wal").exists()


WRITER = """
import sys
from automl_compress.ledger import Ledger, Place
from automl_compress.testing import ToyEstimator, ToyNetwork
import numpy as np
network = ToyNetwork(layers=6)
estimator, space, rng = ToyEstimator(network), network.space, np.random.default_rng(0)
with Ledger(sys.argv[1]) as ledger:
    for position in range(10**9):
        evaluation = estimator.estimate(space.decode(space.sample(rng)))
        place = Place("a-0", position, position)
        ledger.add(evaluation, place)
        ledger.charge([place], [evaluation])
        print(evaluation.policy.key, flush=True)
"""


def test_a_kill_in_mid_write_loses_nothing_committed(path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer, writer.stdout as lines:
        told = [lines.readline().strip() for _ in range(60)]
        os.kill(writer.pid, signal.SIGKILL)
        told += [line.strip() for line in lines if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    with Ledger(path) as ledger:
        charges = ledger.charges("a-0")
        keys = [c.evaluation.policy.key for c in charges]
        assert keys[: len(told)] == told
        assert len(charges) - len(told) <= 1
        assert [c.place.position for c in charges] == list(range(len(charges)))
        estimator = ToyEstimator(NETWORK)
        assert all(c.evaluation == estimator.estimate(c.evaluation.policy) for c in charges)
        assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_readers_while_writing(path: Path) -> None:
    evaluations = _evaluations()
    counts: list[list[int]] = [[], []]
    problems: list[BaseException] = []
    done = threading.Event()

    def read(found: list[int]) -> None:
        try:
            with Ledger(path) as reader:
                while not done.is_set():
                    found.append(len(reader.charges("a-0")))
        except BaseException as reason:
            problems.append(reason)

    with Ledger(path) as ledger:
        readers = [threading.Thread(target=read, args=(found,)) for found in counts]
        for reader in readers:
            reader.start()
        for position in range(60):
            evaluation = evaluations[position % len(evaluations)]
            ledger.add(evaluation, Place("a-0", position, 0))
            ledger.charge([Place("a-0", position, 0)], [evaluation])
        done.set()
        for reader in readers:
            reader.join()
        assert len(ledger.charges("a-0")) == 60
    assert not problems
    for found in counts:
        assert found == sorted(found)
        assert found


def _refused(path: Path, part: str) -> None:
    with pytest.raises(StudyError, match=part) as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("these are notes\n" * 100)
    _refused(path, "not a database")
    assert path.read_text().startswith("these are notes")


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    _refused(tmp_path, "unable to open")
    _refused(tmp_path / "missing" / "ledger.sqlite", "unable to open")


def test_another_programs_database_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE songs (title TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    _refused(path, "another program's database")
    assert path.read_bytes() == before


def test_a_newer_version_is_refused(path: Path) -> None:
    Ledger(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 2")
    other.close()
    _refused(path, "at most 1, but .* has 2")


def test_a_damaged_ledger_is_refused_or_says_so(path: Path) -> None:
    with Ledger(path) as ledger:
        for position, evaluation in enumerate(_evaluations()):
            ledger.add(evaluation, Place("a-0", position, 0))
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    path.write_bytes(data)
    with (
        pytest.raises((StudyError, EngineError), match="malformed") as caught,
        Ledger(path) as hurt,
    ):
        list(hurt.evaluations(ToyEstimator(NETWORK).identity))
    assert "\n" not in str(caught.value)


def test_failing_writes_say_which_ledger_and_what_to_do(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._db.execute("PRAGMA query_only = 1")
        with pytest.raises(EngineError, match=r"ledger\.sqlite.*readonly.*resume"):
            ledger.add(_evaluations()[0], Place("a-0", 0, 0))
        ledger._db.execute("PRAGMA query_only = 0")
        ledger.add(_evaluations()[0], Place("a-0", 0, 0))
        assert len(ledger) == 1


def test_a_full_disk_is_an_engine_error_and_leaves_the_ledger_usable(path: Path) -> None:
    with Ledger(path) as ledger:
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        reason = " ".join(["much to tell"] * 1_000)
        long = Evaluation.failed(POLICIES[0], "e", reason)
        with pytest.raises(EngineError, match="full"):
            ledger.add(long, Place("a-0", 0, 0))
        held = len(ledger)
        ledger._db.execute("PRAGMA max_page_count = 100000")
        for position, evaluation in enumerate(_evaluations()):
            ledger.add(evaluation, Place("a-0", position, 0))
        assert held < len(ledger) == len(POLICIES)


def test_opening_again_writes_nothing(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._db.execute("BEGIN IMMEDIATE")  # somebody is writing
        start = time.monotonic()
        Ledger(path).close()
        assert time.monotonic() - start < 5
        ledger._db.execute("ROLLBACK")


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be written, as the system says; it says so to nobody who may do everything."""
    monkeypatch.setattr(os, "access", lambda *_: False)


def _written(path: Path) -> Ledger:
    ledger = Ledger(path)
    for position, evaluation in enumerate(_evaluations()):
        ledger.add(evaluation, Place("a-0", position, 0))
    return ledger


def _read(path: Path) -> int:
    with Ledger(path, reading=True) as ledger:
        assert list(ledger.evaluations(ToyEstimator(NETWORK).identity)) == sorted(
            _evaluations(), key=lambda e: e.policy.key
        )
        with pytest.raises(EngineError, match="readonly"):
            ledger.add(Evaluation(POLICIES[0], "e", {}), Place("b-0", 0, 0))
        return len(ledger)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NAMES = ["plain", "a b", "what?mode=rw", "50%23", "#1", "größer"]


@pytest.mark.parametrize("name", NAMES)
def test_reading_leaves_a_ledger_and_its_folder_as_they_were(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = tmp_path / name / "ledger.sqlite"
    _written(path).close()
    before = _files(path.parent)
    assert before.keys() == {"ledger.sqlite"}
    assert _read(path) == len(POLICIES)
    assert _files(path.parent) == before


@pytest.mark.usefixtures("unwritable")
@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_can_be_written_no_file_is_made_to_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = tmp_path / name / "ledger.sqlite"
    _written(path).close()
    before = _files(path.parent)
    with Ledger(path, reading=True) as ledger:
        assert len(ledger) == len(POLICIES)
        assert _files(path.parent) == before
    assert _read(path) == len(POLICIES)
    assert _files(path.parent) == before


@pytest.mark.usefixtures("unwritable")
def test_what_another_has_written_ahead_is_read(path: Path) -> None:
    with _written(path):
        assert path.with_name(path.name + "-wal").exists()
        assert _read(path) == len(POLICIES)


def test_only_what_is_there_is_read(path: Path) -> None:
    with pytest.raises(StudyError, match=r"that can be read, but .* is not: unable to open"):
        Ledger(path, reading=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(StudyError, match="holds none; restore it from a copy or resume"):
        Ledger(path, reading=True)
    assert _files(path.parent) == {path.name: b""}


def test_copies_are_whole(path: Path, tmp_path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add(_evaluations()[0], Place("a-0", 0, 0))
        ledger.copy_to(tmp_path / "copy.sqlite")
    with Ledger(tmp_path / "copy.sqlite") as copy:
        assert len(copy) == 1


def test_a_ledger_in_memory() -> None:
    with Ledger(":memory:") as ledger:
        ledger.add(_evaluations()[0], Place("a-0", 0, 0))
        assert len(ledger) == 1
