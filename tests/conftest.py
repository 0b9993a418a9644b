"""One cache and one thread for every process of the test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tests run in parallel, one Ray at a time (the group "ray"); threads of their own would only fight
# for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray gives its workers 15 steps less priority than tests have, which then wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("AUTOML_COMPRESS_CACHE")
    os.environ["AUTOML_COMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["AUTOML_COMPRESS_CACHE"]
    else:
        os.environ["AUTOML_COMPRESS_CACHE"] = before
