from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from automl_compress.deploy import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))


@pytest.fixture(autouse=True)
def _operators(operators_read_once: None) -> None:
    """Most files here export."""


@pytest.fixture
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that write one network in several ways: PyTorch exports it once."""
    programs: list[Any] = []
    plain = onnx._exported

    def exported(*given: Any) -> Any:
        if not programs:
            programs.append(plain(*given))
        return SimpleNamespace(model=programs[0].model.clone())

    monkeypatch.setattr(onnx, "_exported", exported)
