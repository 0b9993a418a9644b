"""What each gene decides about, as numbers a learner can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.compress.cost_model import CostModel
from automl_compress.compress.feature_ranks import LOW_RANK
from automl_compress.compress.structure import LayerShape, Structure
from automl_compress.space import Policy, SearchSpace

FEATURES: Final = (
    "channels", "weight_bits", "activation_bits", "kernel_sparsity", "depth",
    "inputs", "outputs", "kernel", "positions", "readers", "size_share", "macs_share",
)  # fmt: skip


def gene_features(space: SearchSpace, structure: Structure, cost: CostModel) -> NDArray[np.float64]:
    """Describe every gene: its kind, its layer's shape, its share of the costs.

    Args:
        space: of the network.
        structure: of the network, from `trace`.
        cost: of the network.

    Returns:
        (n_genes, len(FEATURES)): one-hot kind; depth in [0, 1]; the layer's inputs, outputs,
        kernel and output positions and the group's readers, each as a logarithm over the
        largest; the share of all bytes and multiply-accumulates the gene alone can save.
    """
    layers = {layer.name: (place, layer) for place, layer in enumerate(structure.layers)}
    readers = {g.name: len(g.members) for g in structure.groups}
    writers = {g.name: g.first_writer for g in structure.groups}
    kinds = FEATURES[:4]
    rows = []
    for gene in space:
        place, layer = layers[writers.get(gene.target, gene.target)]
        rows.append(
            [
                *(float(gene.kind == kind) for kind in kinds),
                place / max(1, len(layers) - 1),
                *_logarithms(layer),
                np.log1p(readers.get(gene.target, 0) if gene.kind == "channels" else 0),
                *_savings(space, gene.name, cost),
            ]
        )
    table = np.array(rows)
    shapes = slice(5, 10)
    table[:, shapes] /= np.maximum(table[:, shapes].max(axis=0), 1e-12)
    return table


def low_rank_shares(
    space: SearchSpace, ranks: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """How sensitive the layer of every gene is (Yang et al. 2023).

    Args:
        space: the search space.
        ranks: by layer name, expected ranks of its feature maps, from `layer_ranks`.

    Returns:
        (n_genes,) share of maps whose rank is below `LOW_RANK`, in [0, 1]; 0 where no rank is
        known.
    """
    known = {name: found[~np.isnan(found)] for name, found in ranks.items()}
    return np.array(
        [(known[gene.target] < LOW_RANK).mean() if gene.target in known else 0.0 for gene in space]
    )


def _logarithms(layer: LayerShape) -> list[float]:
    sizes = (layer.in_channels, layer.out_channels, layer.kernel, layer.positions)
    return [float(np.log1p(size)) for size in sizes]


def _savings(space: SearchSpace, gene: str, cost: CostModel) -> list[float]:
    """Shares of bytes and multiply-accumulates that this gene's smallest value saves."""
    full = dict(space.largest)
    small = dict(full)
    small[gene] = space.smallest[gene]
    before, after = cost(Policy(full)), cost(Policy(small))
    return [
        (before[name] - after[name]) / max(before[name], 1e-12) for name in ("size_bytes", "macs")
    ]
