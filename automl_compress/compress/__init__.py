"""Compression: from a network and a policy to a smaller network and what it costs.

Names are imported on first use, so that a process that needs no torch does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_compress.compress.compressor import Compressor, compress, cost
    from automl_compress.compress.cost import CostModel, LayerCost
    from automl_compress.compress.derive import (
        Coverage,
        DerivedSpace,
        derive_space,
        space_of_structure,
    )
    from automl_compress.compress.features import FEATURES, gene_features
    from automl_compress.compress.importance import CRITERIA
    from automl_compress.compress.repair import REPAIRS, Repair
    from automl_compress.compress.structure import Structure
    from automl_compress.compress.trace import trace

_PLACES = {
    "CRITERIA": "automl_compress.compress.importance",
    "Compressor": "automl_compress.compress.compressor",
    "CostModel": "automl_compress.compress.cost",
    "Coverage": "automl_compress.compress.derive",
    "DerivedSpace": "automl_compress.compress.derive",
    "FEATURES": "automl_compress.compress.features",
    "LayerCost": "automl_compress.compress.cost",
    "REPAIRS": "automl_compress.compress.repair",
    "Repair": "automl_compress.compress.repair",
    "Structure": "automl_compress.compress.structure",
    "compress": "automl_compress.compress.compressor",
    "cost": "automl_compress.compress.compressor",
    "derive_space": "automl_compress.compress.derive",
    "gene_features": "automl_compress.compress.features",
    "space_of_structure": "automl_compress.compress.derive",
    "trace": "automl_compress.compress.trace",
}

__all__ = [
    "CRITERIA",
    "FEATURES",
    "REPAIRS",
    "Compressor",
    "CostModel",
    "Coverage",
    "DerivedSpace",
    "LayerCost",
    "Repair",
    "Structure",
    "compress",
    "cost",
    "derive_space",
    "gene_features",
    "space_of_structure",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
