"""Progress of a training: on a terminal one line drawn again, elsewhere a line now and then."""

from __future__ import annotations

import math
import sys
import time
from typing import Final, TextIO

from automl_compress.cli.progress import BLOCK_SECONDS, REDRAW_SECONDS, duration
from automl_compress.evaluate import QUALITIES
from automl_compress.recover import Standing

_ERASE: Final = "\r\x1b[K"


class TrainingProgress:
    """Hears a training's standings and shows them.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._shown = -math.inf

    def __call__(self, standing: Standing) -> None:
        """Show a standing when it is time; always the last one."""
        now = time.monotonic()
        wait = REDRAW_SECONDS if self._terminal else BLOCK_SECONDS
        last = standing.step == standing.steps
        if now - self._shown < wait and not last:
            return
        self._shown = now
        end = "" if self._terminal and not last else "\n"
        start = _ERASE if self._terminal else ""
        self._stream.write(start + _line(standing) + end)
        self._stream.flush()


def _line(standing: Standing) -> str:
    quality = ""
    if standing.quality is not None:
        quality = f"  held-out {QUALITIES[standing.judged_by]} {standing.quality:.2%}"
    return (
        f"  epoch {standing.epoch:.1f}/{standing.epochs}  loss {standing.loss:.4f}{quality}  "
        f"{standing.images_per_second:,.0f} examples/s, "
        f"about {duration(standing.seconds_left)} left"
    )
