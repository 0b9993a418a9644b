"""Compression: from a network and a policy to a smaller network and what it costs.

Names are imported on first use, so that a process that needs no torch does not load it. The
package is callable, because `automl_compress.compress` is both this package and the function that
users call: `import automl_compress as ac; ac.compress(model, policy, x)`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from automl_compress.compress.compressor import Compressor, compress, cost
    from automl_compress.compress.cost_model import CostModel, LayerCost
    from automl_compress.compress.derive import (
        Coverage,
        DerivedSpace,
        derive_space,
        space_of_structure,
    )
    from automl_compress.compress.feature_ranks import layer_ranks
    from automl_compress.compress.features import FEATURES, gene_features, low_rank_shares
    from automl_compress.compress.importance import (
        CRITERIA,
        Criterion,
        check_criterion,
        is_own_criterion,
    )
    from automl_compress.compress.kernel_sparsity import KERNEL_CRITERIA, KernelCriterion
    from automl_compress.compress.repair import REPAIRS, Repair
    from automl_compress.compress.structure import Structure
    from automl_compress.compress.tracing.trace import trace
    from automl_compress.space import Policy

_PLACES = {
    "CRITERIA": "automl_compress.compress.importance",
    "Criterion": "automl_compress.compress.importance",
    "Compressor": "automl_compress.compress.compressor",
    "CostModel": "automl_compress.compress.cost_model",
    "Coverage": "automl_compress.compress.derive",
    "DerivedSpace": "automl_compress.compress.derive",
    "FEATURES": "automl_compress.compress.features",
    "KERNEL_CRITERIA": "automl_compress.compress.kernel_sparsity",
    "KernelCriterion": "automl_compress.compress.kernel_sparsity",
    "LayerCost": "automl_compress.compress.cost_model",
    "REPAIRS": "automl_compress.compress.repair",
    "Repair": "automl_compress.compress.repair",
    "Structure": "automl_compress.compress.structure",
    "check_criterion": "automl_compress.compress.importance",
    "compress": "automl_compress.compress.compressor",
    "cost": "automl_compress.compress.compressor",
    "derive_space": "automl_compress.compress.derive",
    "gene_features": "automl_compress.compress.features",
    "is_own_criterion": "automl_compress.compress.importance",
    "layer_ranks": "automl_compress.compress.feature_ranks",
    "low_rank_shares": "automl_compress.compress.features",
    "space_of_structure": "automl_compress.compress.derive",
    "trace": "automl_compress.compress.tracing.trace",
}

__all__ = [
    "CRITERIA",
    "FEATURES",
    "KERNEL_CRITERIA",
    "REPAIRS",
    "Compressor",
    "CostModel",
    "Coverage",
    "Criterion",
    "DerivedSpace",
    "KernelCriterion",
    "LayerCost",
    "Repair",
    "Structure",
    "check_criterion",
    "compress",
    "cost",
    "derive_space",
    "gene_features",
    "is_own_criterion",
    "layer_ranks",
    "low_rank_shares",
    "space_of_structure",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


class _CallablePackage(ModuleType):
    """This package, callable as the function `compressor.compress`."""

    def __call__(
        self,
        model: nn.Module,
        policy: Policy,
        example_input: Tensor,
        calibration: Tensor | None = None,
    ) -> nn.Module:
        """Build the smaller network a policy describes; see `compressor.compress`."""
        from automl_compress.compress.compressor import compress

        return compress(model, policy, example_input, calibration)


sys.modules[__name__].__class__ = _CallablePackage
