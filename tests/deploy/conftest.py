from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))


@pytest.fixture(autouse=True)
def _operators(operators_read_once: None) -> None:
    """Most files here export."""
