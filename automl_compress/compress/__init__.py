"""Compression: from a network and a policy to a smaller network and what it costs."""

from automl_compress.compress.compressor import Compressor, compress, cost
from automl_compress.compress.cost import CostModel, LayerCost
from automl_compress.compress.derive import Coverage, DerivedSpace, derive_space, space_of_structure
from automl_compress.compress.features import FEATURES, gene_features
from automl_compress.compress.importance import CRITERIA
from automl_compress.compress.repair import REPAIRS, Repair
from automl_compress.compress.structure import Structure
from automl_compress.compress.trace import trace

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
