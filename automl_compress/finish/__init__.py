"""From points on a front to finished networks: recovery, promotion, export, the pipeline of all.

Each is one call that a command makes, or a notebook; who hears of it is an `Audience`.
Names are imported on first use, so that a process that needs no torch does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_compress.finish.audience import Audience
    from automl_compress.finish.export import export_network
    from automl_compress.finish.network import load_network
    from automl_compress.finish.pipeline import run_pipeline
    from automl_compress.finish.recovering import recover_networks

_PLACES = {
    "Audience": "automl_compress.finish.audience",
    "export_network": "automl_compress.finish.export",
    "load_network": "automl_compress.finish.network",
    "recover_networks": "automl_compress.finish.recovering",
    "run_pipeline": "automl_compress.finish.pipeline",
}

__all__ = ["Audience", "export_network", "load_network", "recover_networks", "run_pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
