"""Starting the engine that settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automl_compress.engine.engine import Engine, EngineSettings, Race
from automl_compress.engine.serial import SerialEngine


@contextmanager
def started(race: Race, settings: EngineSettings, folder: Path) -> Iterator[Engine]:
    """An engine that is closed in the end.

    Args:
        race: what it runs.
        settings: which engine, and how.
        folder: where it keeps its files.

    Raises:
        EngineError: it cannot start.
    """
    engine: Engine
    if settings.kind == "serial":
        engine = SerialEngine(race, settings.threads)
    else:
        from automl_compress.engine.cluster import ClusterEngine  # needs ray, serial does not

        engine = ClusterEngine(race, settings, folder)
    try:
        yield engine
    finally:
        engine.close()
