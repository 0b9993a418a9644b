from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))


@pytest.fixture(scope="session", autouse=True)
def _operators_read_once() -> Iterator[None]:
    """PyTorch's exporter parses the source of all its operators anew for every file."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry
        except ImportError:  # another version keeps it elsewhere
            yield
            return
        once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", once)
        yield
