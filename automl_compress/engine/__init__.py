"""Engines: run contestants side by side over evaluators, and leave a study's folder.

Names are imported on first use, so that a process that needs no torch does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_compress.engine.config import StudyConfig, read_config
    from automl_compress.engine.contestant import Standing
    from automl_compress.engine.engine import EngineSettings, RungStanding
    from automl_compress.engine.restore import Restored, restore_study
    from automl_compress.engine.study import Study

_PLACES = {
    "EngineSettings": "automl_compress.engine.engine",
    "Restored": "automl_compress.engine.restore",
    "RungStanding": "automl_compress.engine.engine",
    "Standing": "automl_compress.engine.contestant",
    "Study": "automl_compress.engine.study",
    "StudyConfig": "automl_compress.engine.config",
    "read_config": "automl_compress.engine.config",
    "restore_study": "automl_compress.engine.restore",
}

__all__ = [
    "EngineSettings",
    "Restored",
    "RungStanding",
    "Standing",
    "Study",
    "StudyConfig",
    "read_config",
    "restore_study",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
