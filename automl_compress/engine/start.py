"""Starting the engine that settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automl_compress.engine.engine import Engine, EngineSettings, Race
from automl_compress.engine.serial import SerialEngine


@contextmanager
def connected(settings: EngineSettings) -> Iterator[None]:
    """Ray is started, or the cluster joined, for all engines inside; nothing for serial ones.

    Raises:
        EngineError: that does not work.
    """
    if settings.kind == "serial":
        yield
        return
    from automl_compress.engine.cluster import ray_running  # needs ray, serial does not

    with ray_running(settings):
        yield


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
    with connected(settings):
        engine = _made(race, settings, folder)
        try:
            yield engine
        finally:
            engine.close()


def _made(race: Race, settings: EngineSettings, folder: Path) -> Engine:
    if settings.kind == "serial":
        return SerialEngine(race, settings.threads)
    from automl_compress.engine.cluster import ClusterEngine  # needs ray, serial does not

    return ClusterEngine(race, settings, folder)
