"""Progress a person can read: on a terminal redrawn in place, elsewhere a block now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from automl_compress.engine import RungStanding, Standing
from automl_compress.evaluate import DIVERGENCE

BLOCK_SECONDS: Final = 15.0
"""Seconds between two blocks when the output is not a terminal."""
REDRAW_SECONDS: Final = 0.5
_PACKAGE: Final = __name__.partition(".")[0]


@contextmanager
def search_progress(budget: int, racing: int) -> Iterator[Progress]:
    """Show a search while it runs, and its last standings however it ends."""
    progress = Progress(budget, racing)
    try:
        yield progress
    finally:
        progress.close()


class Progress:
    """Hears contestants' standings and shows them all, and then how far rungs have come.

    Args:
        budget: evaluations of each contestant.
        racing: how many contestants race; the uniform reference line is shown, not counted.
        stream: where to write.
    """

    def __init__(self, budget: int, racing: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._budget = budget
        self._total = budget * racing
        self._standings: dict[str, Standing] = {}
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._shown = self._start
        self._lines = 0
        self._terminal = self._stream.isatty()
        self._rungs = RungProgress(self._stream)
        self._remarks = _Remarks(self)
        if self._terminal:
            logging.getLogger(_PACKAGE).addHandler(self._remarks)

    def __call__(self, standing: Standing | RungStanding) -> None:
        """Take a standing in, and show all when it is time."""
        if isinstance(standing, RungStanding):
            self._rungs(standing)
        else:
            self._hear(standing)

    def _hear(self, standing: Standing) -> None:
        was_over = self._over
        self._standings[standing.contestant] = standing
        now = time.monotonic()
        if self._first is None:
            self._first = (now, self._done)
        wait = REDRAW_SECONDS if self._terminal else BLOCK_SECONDS
        if self._over != was_over or now - self._shown >= wait:
            self._show(now)

    def stand_still(self) -> None:
        """Leave what is shown where it is; the next standings come below."""
        self._lines = 0

    def close(self) -> None:
        """Show the last standings."""
        logging.getLogger(_PACKAGE).removeHandler(self._remarks)
        if self._standings and not self._over:
            self._show(time.monotonic())

    @property
    def _over(self) -> bool:
        return self._done >= self._total

    @property
    def _done(self) -> int:
        return sum(standing.done for standing in self._standings.values() if standing.in_race)

    def _show(self, now: float) -> None:
        width = max(18, *map(len, self._standings))  # those of the user's own may be long
        lines = [self._summary(now), *(self._line(n, width) for n in sorted(self._standings))]
        if self._over:
            lines.append("the race is over: the best networks are measured again ...")
        if self._terminal and self._lines:
            self._stream.write(f"\x1b[{self._lines}F\x1b[J")
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._lines = len(lines)
        self._shown = now

    def _summary(self, now: float) -> str:
        elapsed = now - self._start
        text = f"[{duration(elapsed)}] {self._done} of about {self._total} evaluations"
        if self._first is None or self._done <= self._first[1]:
            return text
        rate = (self._done - self._first[1]) / max(1e-9, now - self._first[0])
        left = "" if self._over else f", about {duration((self._total - self._done) / rate)} left"
        return f"{text}, {rate:.1f} per second{left}"

    def _line(self, name: str, width: int) -> str:
        s = self._standings[name]
        failed = f", {s.failed} failed" if s.failed else ""
        useful = "" if s.useful is None else f"useful hypervolume {s.useful:.3f}  "
        return (
            f"  {name:<{width}} {s.done:>5}/{self._budget}  {s.hits:>4} hits  "
            f"{useful}{_best(s)}{failed}"
        )


class _Remarks(logging.Handler):
    """Warnings of this package, which a terminal's progress would be drawn over."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning as it is printed where nothing handles it."""
        print(self.format(record), file=sys.stderr, flush=True)
        self._progress.stand_still()


class RungProgress:
    """A line when a rung begins and ends, and now and then between.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._rung = ""
        self._start = self._shown = 0.0

    def __call__(self, standing: RungStanding) -> None:
        """Take a standing in, and write a line when it is time."""
        now = time.monotonic()
        if begins := standing.rung != self._rung:
            self._rung, self._start = standing.rung, now
        last = standing.done == standing.total
        if not begins and not last and now - self._shown < BLOCK_SECONDS:
            return
        left = (now - self._start) / max(1, standing.done - 1) * (standing.total - standing.done)
        rest = "" if last or begins else f", about {duration(left)} left"
        self._stream.write(
            f"  {standing.rung}: {standing.done} of {standing.total} networks{rest}\n"
        )
        self._stream.flush()
        self._shown = now


def _best(standing: Standing) -> str:
    """The smallest network that is nearly as good as the original, or how near the others come."""
    if standing.smallest_share is not None:
        return f"smallest within 1 point {standing.smallest_share:.1%}"
    if standing.least_loss is None:
        return "nothing usable yet"
    if standing.loss == DIVERGENCE:
        return f"least divergence {standing.least_loss:.3f}"
    return f"least {standing.loss} {standing.least_loss:.1%}"


def duration(seconds: float) -> str:
    """A time as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
