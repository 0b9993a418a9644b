"""The terminal as the audience of work on networks."""

from __future__ import annotations

from typing import Final

from automl_compress.cli.progress import search_progress
from automl_compress.cli.training_progress import TrainingProgress
from automl_compress.finish import Audience


def _print(text: str) -> None:
    print(text, flush=True)


TERMINAL: Final = Audience(_print, TrainingProgress, search_progress)
