"""Search for the best smaller networks: pruning and quantization, evolution and RL side by side.

Give it a trained PyTorch network, some data and a budget; it finds a front of smaller networks,
measures them on images the search never saw, and leaves a report.

Names are imported on first use, so that a process that needs no torch does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_compress.compress import Compressor, compress, cost
    from automl_compress.deploy import load_packed, save_packed
    from automl_compress.deploy.latency import latency
    from automl_compress.deploy.onnx import export_onnx
    from automl_compress.engine import Study
    from automl_compress.errors import CompressError, InputError
    from automl_compress.finish import (
        Audience,
        export_network,
        load_network,
        recover_networks,
        run_pipeline,
    )
    from automl_compress.ledger import StudyResult
    from automl_compress.recover.recovery import recover
    from automl_compress.report import write_report
    from automl_compress.space import Gene, Policy, SearchSpace, SpaceRules, load_rules
    from automl_compress.workload import (
        ImageSet,
        Normalization,
        Workload,
        WorkloadConfig,
        load_workload,
    )

_PLACES = {
    "Audience": "automl_compress.finish",
    "CompressError": "automl_compress.errors",
    "Compressor": "automl_compress.compress",
    "Gene": "automl_compress.space",
    "InputError": "automl_compress.errors",
    "Policy": "automl_compress.space",
    "SearchSpace": "automl_compress.space",
    "SpaceRules": "automl_compress.space",
    "Study": "automl_compress.engine",
    "StudyResult": "automl_compress.ledger",
    "Workload": "automl_compress.workload",
    "WorkloadConfig": "automl_compress.workload",
    "ImageSet": "automl_compress.workload",
    "Normalization": "automl_compress.workload",
    "cost": "automl_compress.compress",
    "export_network": "automl_compress.finish",
    "export_onnx": "automl_compress.deploy.onnx",
    "latency": "automl_compress.deploy.latency",
    "load_network": "automl_compress.finish",
    "load_packed": "automl_compress.deploy",
    "load_rules": "automl_compress.space",
    "load_workload": "automl_compress.workload",
    "recover_networks": "automl_compress.finish",
    "run_pipeline": "automl_compress.finish",
    "save_packed": "automl_compress.deploy",
    "write_report": "automl_compress.report",
}

_CALLABLE_PACKAGES = {
    "compress": "automl_compress.compress",
    "recover": "automl_compress.recover",
}

__all__ = [
    "Audience",
    "CompressError",
    "Compressor",
    "Gene",
    "ImageSet",
    "InputError",
    "Normalization",
    "Policy",
    "SearchSpace",
    "SpaceRules",
    "Study",
    "StudyResult",
    "Workload",
    "WorkloadConfig",
    "compress",
    "cost",
    "export_network",
    "export_onnx",
    "latency",
    "load_network",
    "load_packed",
    "load_rules",
    "load_workload",
    "recover",
    "recover_networks",
    "run_pipeline",
    "save_packed",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return importlib.import_module(_CALLABLE_PACKAGES[name])
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
