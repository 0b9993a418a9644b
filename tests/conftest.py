"""One cache for the whole test run, so that the digits network is trained once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("AUTOML_COMPRESS_CACHE")
    os.environ["AUTOML_COMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["AUTOML_COMPRESS_CACHE"]
    else:
        os.environ["AUTOML_COMPRESS_CACHE"] = before
