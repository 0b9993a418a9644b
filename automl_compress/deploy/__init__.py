"""Compressed networks as files: packed at their bits, as plain tensors or as ONNX; their latency.

Names are imported on first use, so that a process that needs no torch does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_compress.deploy.packed import load_packed, read_layout, save_packed

_PLACES = {
    "load_packed": "automl_compress.deploy.packed",
    "read_layout": "automl_compress.deploy.packed",
    "save_packed": "automl_compress.deploy.packed",
}

__all__ = ["load_packed", "read_layout", "save_packed"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
