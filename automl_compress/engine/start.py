"""Starting the engine that settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from automl_compress.engine.engine import Engine, EngineSettings, Race
from automl_compress.engine.serial import SerialEngine
from automl_compress.errors import InputError


def require_ray(wanted: str, otherwise: str) -> None:
    """Check that Ray is installed.

    Args:
        wanted: what needs it, at the head of the message.
        otherwise: what does without.

    Raises:
        InputError: it is not.
    """
    if find_spec("ray") is None:
        raise InputError(
            f"{wanted} needs Ray, but it is not installed; {otherwise}, or run: pip install "
            "'ray[tune]'"
        )


def check_engine(settings: EngineSettings) -> None:
    """Check that what an engine needs is installed.

    Raises:
        InputError: it is not.
    """
    if settings.kind == "cluster":
        require_ray("engine.kind 'cluster'", "set it to 'serial'")


@contextmanager
def connected(settings: EngineSettings) -> Iterator[None]:
    """Ray is started, or the cluster joined, for all engines inside; nothing for serial ones.

    Raises:
        InputError: Ray is not installed.
        EngineError: that does not work.
    """
    check_engine(settings)
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
