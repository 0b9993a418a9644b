"""How the test run is shared out: one cache, one thread a process, one Ray at a time."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Tests run in parallel; threads of their own would only fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray gives its workers 15 steps less priority than tests have, which then wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")
# A shell that starts tests in the background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What modules hold while they are imported is no garbage; looking for it takes a second.
gc.disable()
# How fast examples are says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all processes of a run: each network is trained once."""
    before = os.environ.get("AUTOML_COMPRESS_CACHE")
    own = tmp_path_factory.getbasetemp()
    run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    os.environ["AUTOML_COMPRESS_CACHE"] = str(run / "cache")
    yield run / "cache"
    if before is None:
        del os.environ["AUTOML_COMPRESS_CACHE"]
    else:
        os.environ["AUTOML_COMPRESS_CACHE"] = before


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests of a process that need none of their own; engines leave it running."""
    import ray

    from automl_compress.engine.cluster import start_ray
    from automl_compress.engine.engine import EngineSettings

    doubles = str(Path(__file__).parent / "engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", doubles, prepend=os.pathsep)
        patch.delenv("RAY_ADDRESS", raising=False)
        with contextlib.suppress(ImportError, AttributeError):  # another version keeps it elsewhere
            from ray.tune.execution import class_cache

            # With variables of its own each trial starts Python twice.
            patch.setattr(class_cache, "DEFAULT_ENV_VARS", {})
        start_ray(EngineSettings(workers=2))
        yield
        ray.shutdown()


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without what takes longest; other tests look at the figures."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: stream.write("<svg ></svg>"))


@pytest.fixture(scope="session")
def undrawn() -> Callable[[], AbstractContextManager[None]]:
    """Begins a part whose reports have no figures: other tests draw those of the same study."""

    @contextlib.contextmanager
    def begin() -> Iterator[None]:
        from automl_compress.report import report
        from automl_compress.report.drawing import Drawing

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "draw_all", lambda _: {})
            for name in ("recovered", "audit"):
                drawing = Drawing(name, "<svg ></svg>", "", "")
                patch.setattr(report, f"draw_{name}", lambda _, drawing=drawing: drawing)
            yield

    return begin


@pytest.fixture
def no_figures(undrawn: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture(scope="session")
def operators_read_once() -> Iterator[None]:
    """For tests that export: PyTorch looks for its operators anew for every file, for a second."""
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        names = utils._collect_all_valid_cia_ops_for_namespace
        translations = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):  # another version keeps them elsewhere
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(translations)))
        patch.setattr(utils, names.__name__, functools.cache(names))
        yield


STARTS_RAY = {
    *("test_bench_engine.py", "test_cli_audit.py", "test_cli_promoting.py"),
    *("test_cli_runs.py", "test_engine_asha.py", "test_engine_cluster.py"),
}


class SharedFiles(LoadScopeScheduling):
    """A file's tests run in one process, which makes its fixtures once; so do all that start Ray.

    The marker `xdist_group` does nothing with pytest 9.2 and xdist 3.8.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if Path(file).name in STARTS_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFiles:
    return SharedFiles(config, log)


def pytest_collection_finish() -> None:
    """What the modules hold stays; the collector would walk through all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cluster") and item.path.name not in STARTS_RAY:
            raise pytest.UsageError(f"{item.path.name} must be among STARTS_RAY of conftest.py")
