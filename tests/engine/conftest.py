"""A Ray for tests of what runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from automl_compress.engine.engine import EngineSettings


@pytest.fixture(scope="package")
def ray_here() -> Iterator[None]:
    """One Ray for all tests of this folder; engines use it and leave it running."""
    import ray

    from automl_compress.engine.cluster import start_ray

    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, before)))
    start_ray(EngineSettings(workers=2))
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
