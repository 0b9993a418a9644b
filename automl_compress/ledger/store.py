"""The ledger: every evaluation ever made, and what each contestant was charged for it.

SQLite in write-ahead mode with full synchronisation: a commit survives `kill -9` and a power
cut. One process writes (the engine's dispatcher); any number may read, also where nothing can be
written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from automl_compress.errors import EngineError, StudyError
from automl_compress.evaluate import Evaluation, Status
from automl_compress.space import Policy

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    policy_key TEXT NOT NULL,
    estimator TEXT NOT NULL,
    policy TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    metrics TEXT NOT NULL,
    images INTEGER NOT NULL,
    seconds REAL NOT NULL,
    contestant TEXT NOT NULL,
    position INTEGER NOT NULL,
    finished REAL NOT NULL,
    PRIMARY KEY (policy_key, estimator)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (
    contestant TEXT NOT NULL,
    position INTEGER NOT NULL,
    round INTEGER NOT NULL,
    policy_key TEXT NOT NULL,
    estimator TEXT NOT NULL,
    hit INTEGER NOT NULL,
    PRIMARY KEY (contestant, position)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Place:
    """Where in a study an evaluation is asked for.

    Args:
        contestant: the contestant's name.
        position: how many evaluations it asked for before, from 0.
        round: the round of asking, from 0.
    """

    contestant: str
    position: int
    round: int


@dataclass(frozen=True)
class Charge:
    """One evaluation a contestant was told, in the order it asked.

    Args:
        place: who asked, and when.
        evaluation: the answer.
        hit: whether it was already made, or being made, for someone else. Depends on timing.
        finished: when the evaluation was made, seconds since 1970.
    """

    place: Place
    evaluation: Evaluation
    hit: bool
    finished: float


class Ledger:
    """Durable store of evaluations and charges.

    Args:
        path: the SQLite file; made when missing. ":memory:" keeps it in memory.
        reading: whether it is only read; then it must exist, and nothing is written.

    Raises:
        StudyError: the file is no ledger, or of a newer version.
    """

    def __init__(self, path: str | Path, *, reading: bool = False) -> None:
        self._path = str(path)
        self._reading = reading
        place = _reading_place(Path(path)) if reading else self._path
        try:
            self._db = sqlite3.connect(place, isolation_level=None, timeout=30, uri=reading)
        except sqlite3.Error as reason:
            raise self._unusable(reason) from reason
        try:
            self._open()
        except sqlite3.Error as reason:
            self._db.close()
            raise self._unusable(reason) from reason
        except StudyError:
            self._db.close()
            raise

    def _open(self) -> None:
        """Check the file before anything is written to it."""
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StudyError(
                f"the ledger's version must be at most {SCHEMA_VERSION}, but '{self._path}' has "
                f"{version}; use a newer automl-compress"
            )
        tables = {name for (name,) in self._db.execute("SELECT tbl_name FROM sqlite_master")}
        if tables - {"evaluations", "charges"}:
            raise StudyError(
                f"a ledger must hold evaluations and charges, but '{self._path}' is another "
                "program's database; choose another file"
            )
        if self._reading:
            if not tables:
                raise StudyError(
                    f"a ledger must hold evaluations and charges to be read, but '{self._path}' "
                    "holds none; restore it from a copy or resume its study"
                )
            self._db.execute("PRAGMA query_only=1")
            return
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if version < SCHEMA_VERSION:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT"
            )

    def _unusable(self, reason: sqlite3.Error) -> StudyError:
        if self._reading:
            return StudyError(
                f"a ledger must be an SQLite file that can be read, but '{self._path}' is not: "
                f"{reason}; free space where the disk is full, correct its permissions or restore "
                "it from a copy"
            )
        return StudyError(
            f"a ledger must be an SQLite file that can be written, but '{self._path}' is not: "
            f"{reason}; move it away or choose another folder"
        )

    def find(self, keys: Iterable[str], estimator: str) -> dict[str, Evaluation]:
        """Evaluations of one estimator by policy key; keys without one are left out."""
        found = {}
        for key in keys:
            for row in self._read(
                "SELECT policy, status, reason, metrics, images, seconds FROM evaluations"
                " WHERE policy_key = ? AND estimator = ?",
                (key, estimator),
            ):
                found[key] = _evaluation(estimator, *row)
        return found

    def add(self, evaluation: Evaluation, place: Place) -> None:
        """Commit one evaluation. An evaluation that is already there stays as it is.

        Args:
            evaluation: the answer of an estimator.
            place: who asked first.

        Raises:
            EngineError: it cannot be written.
        """
        row = (
            evaluation.policy.key,
            evaluation.estimator,
            evaluation.policy.to_json(),
            evaluation.status,
            evaluation.reason,
            json.dumps(dict(evaluation.metrics)),
            evaluation.images,
            evaluation.seconds,
            place.contestant,
            place.position,
            time.time(),
        )
        self._write(
            "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [row]
        )

    def replace(self, estimator: str, evaluations: Sequence[tuple[Evaluation, Place]]) -> None:
        """Commit evaluations in place of all of their estimator, at once or not at all.

        For what can be compared within one measurement only; nobody may have been charged for it.

        Args:
            estimator: whose evaluations go.
            evaluations: its new ones, each with who asked.

        Raises:
            EngineError: it cannot be written.
        """
        with self.together():
            self._write("DELETE FROM evaluations WHERE estimator = ?", [(estimator,)])
            for evaluation, place in evaluations:
                self.add(evaluation, place)

    def charge(self, places: Sequence[Place], evaluations: Sequence[Evaluation]) -> None:
        """Commit what a contestant is charged, before it is told.

        A place that was charged before, in a run that was killed, stays as it is. An evaluation
        counts as a hit unless it was made for this very place.

        Args:
            places: n places.
            evaluations: n evaluations, already added.

        Raises:
            EngineError: it cannot be written.
        """
        rows = []
        for place, evaluation in zip(places, evaluations, strict=True):
            made_for = self._read(
                "SELECT contestant, position FROM evaluations"
                " WHERE policy_key = ? AND estimator = ?",
                (evaluation.policy.key, evaluation.estimator),
            )
            hit = made_for != [(place.contestant, place.position)]
            rows.append((*astuple(place), evaluation.policy.key, evaluation.estimator, int(hit)))
        self._write("INSERT OR IGNORE INTO charges VALUES (?, ?, ?, ?, ?, ?)", rows)

    def check_asked_again(self, places: Sequence[Place], policies: Sequence[Policy]) -> None:
        """Check that who walks again through what it was charged asks for the same.

        Args:
            places: n places; those that nobody was charged for are free.
            policies: n policies that are asked for there.

        Raises:
            StudyError: a strategy asks for another policy than before it was interrupted: its code
                has changed, as that of shipped ones does from version to version.
        """
        for place, policy in zip(places, policies, strict=True):
            before = self._read(
                "SELECT policy_key FROM charges WHERE contestant = ? AND position = ?",
                (place.contestant, place.position),
            )
            if before not in ([], [(policy.key,)]):
                raise StudyError(
                    f"a strategy must ask again for what it asked before it was interrupted, but "
                    f"'{place.contestant}' asks otherwise at evaluation {place.position}; restore "
                    "its code (of a shipped one, the version that run.json states), or start "
                    "another study"
                )

    def forget_charges(self, *, failures: bool = False) -> None:
        """Charge nobody for anything; every evaluation stays.

        Args:
            failures: whether those that failed go, too.

        Raises:
            EngineError: it cannot be written.
        """
        with self.together():
            self._write("DELETE FROM charges WHERE position >= ?", [(0,)])
            if failures:
                self._write("DELETE FROM evaluations WHERE status = ?", [("failed",)])

    def charges(self, contestant: str) -> list[Charge]:
        """What a contestant was told, in the order it asked."""
        rows = self._read(
            "SELECT c.position, c.round, c.hit, e.finished, e.estimator,"
            " e.policy, e.status, e.reason, e.metrics, e.images, e.seconds"
            " FROM charges c JOIN evaluations e USING (policy_key, estimator)"
            " WHERE c.contestant = ? ORDER BY c.position",
            (contestant,),
        )
        return [
            Charge(Place(contestant, position, round_), _evaluation(*rest), bool(hit), finished)
            for position, round_, hit, finished, *rest in rows
        ]

    def evaluations(self, estimator: str) -> Iterator[Evaluation]:
        """All evaluations of one estimator, in the order of their policy keys."""
        rows = self._read(
            "SELECT policy, status, reason, metrics, images, seconds FROM evaluations"
            " WHERE estimator = ? ORDER BY policy_key",
            (estimator,),
        )
        for row in rows:
            yield _evaluation(estimator, *row)

    def slowest(self, estimator: str) -> float | None:
        """Seconds that the slowest evaluation of an estimator took, of those that did not fail."""
        query = "SELECT MAX(seconds) FROM evaluations WHERE estimator = ? AND status = 'ok'"
        found: float | None = self._read(query, (estimator,))[0][0]
        return found

    def __len__(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM evaluations")[0][0])

    def copy_to(self, path: Path) -> None:
        """Write a complete copy to another file, also while the ledger is in use."""
        target = sqlite3.connect(path)
        try:
            self._db.backup(target)
        finally:
            target.close()

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as reason:
            raise EngineError(
                f"the ledger '{self._path}' must be readable, but is not: {reason}; "
                "restore it from a copy"
            ) from reason

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit all that is written inside at once, or nothing of it: one wait for the disk.

        Raises:
            EngineError: it cannot be written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as reason:
            raise EngineError(
                f"the ledger '{self._path}' must take every evaluation, but did not: {reason}; "
                "free disk space or check its folder, then resume"
            ) from reason
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if self._db.in_transaction:
            self._db.executemany(statement, rows)
            return
        with self.together():
            self._db.executemany(statement, rows)


def _reading_place(path: Path) -> str:
    """The URI by which SQLite reads a ledger and leaves its folder as it was.

    Where it can, SQLite makes files beside the ledger while it reads, for the sake of whoever
    writes, and removes them; without the right to write it would leave them. Where it cannot make
    them, it must be told that nobody writes: nobody does, unless what was written ahead is there.
    """
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        mode = "mode=rw"
    elif path.with_name(path.name + "-wal").exists():
        mode = "mode=ro"
    else:
        mode = "mode=ro&immutable=1"
    return f"{path.absolute().as_uri()}?{mode}"


def _evaluation(
    estimator: str, policy: str, status: str, reason: str, metrics: str, images: int, seconds: float
) -> Evaluation:
    outcome: Status = "ok" if status == "ok" else "failed"
    return Evaluation(
        Policy.from_json(policy), estimator, json.loads(metrics), outcome, reason, images, seconds
    )
