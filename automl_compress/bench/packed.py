"""Packed files: bytes on disk against the bytes that the cost model promises.

Weights are random and rounded by rule, so what a file takes depends on the policy alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.deploy import load_packed, save_packed
from automl_compress.errors import InputError, WorkloadError
from automl_compress.space import Policy, SearchSpace, SpaceRules
from automl_compress.workload import MODELS, build_model

DEFAULT_MODELS: Final = ("digits_cnn", "resnet20", "resnet56", "vgg16_bn", "mobilenet_v2")
LIMIT: Final = 0.02
"""Share of the promised bytes that a file may be off."""
SPACES: Final = {
    "channels, bits": SpaceRules(),
    "channels, bits, kernels": SpaceRules(kernel_sparsity=(0.0, 0.25, 0.5, 0.75)),
}
_CLASSES: Final = 10


@dataclass(frozen=True)
class PackedRow:
    """One file.

    Args:
        model: a shipped network.
        space: a key of `SPACES`, where the policy is from.
        policy: its key.
        smallest: whether it is the space's smallest policy; the others are random.
        promised: bytes by the cost model.
        disk: bytes of the file.
        equal: whether the loaded network gives the same outputs, bit for bit.
    """

    model: str
    space: str
    policy: str
    smallest: bool
    promised: int
    disk: int
    equal: bool

    @property
    def excess(self) -> float:
        """How much larger the file is, as a share of what was promised."""
        return self.disk / self.promised - 1


def measure_packed(models: Sequence[str], policies: int) -> Iterable[PackedRow]:
    """Write and read random policies of every model, and its smallest one.

    Args:
        models: names of shipped networks.
        policies: random ones per model and space.

    Raises:
        WorkloadError: a model is not shipped.
        InputError: there are no policies.
    """
    if policies < 1:
        raise InputError(f"--policies must be at least 1, but is {policies}; raise it")
    for name in models:
        if name not in MODELS:
            raise WorkloadError(
                f"--models must name shipped networks ({', '.join(MODELS)}), but '{name}' is "
                "none; correct it"
            )
    for name in models:
        model = build_model(name, {"num_classes": _CLASSES})
        example = torch.rand(1, *MODELS[name].input_shape, generator=_generator())
        compressor = Compressor(model, example, repair="none")
        for label, rules in SPACES.items():
            space = space_of_structure(compressor.model, compressor.structure, rules).space
            rng = np.random.default_rng(0)
            smallest = Policy({gene.name: gene.values[0] for gene in space})
            for policy in (smallest, *(_random_policy(space, rng) for _ in range(policies))):
                built = compressor.build(policy)
                disk, equal = _written(built, policy, name, example)
                promised = round(compressor.cost(policy)["size_bytes"])
                first = policy is smallest
                yield PackedRow(name, label, policy.key, first, promised, disk, equal)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _random_policy(space: SearchSpace, rng: np.random.Generator) -> Policy:
    return Policy({gene.name: gene.values[rng.integers(len(gene.values))] for gene in space})


def _written(
    built: nn.Module, policy: Policy, name: str, example: torch.Tensor
) -> tuple[int, bool]:
    """Bytes of the file, and whether it gives the same outputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.packed"
        disk = save_packed(
            built, path, policy, architecture=name, arguments={"num_classes": _CLASSES}
        )
        loaded = load_packed(path)
    with torch.no_grad():
        return disk, torch.equal(loaded(example), built(example))


def packed_page(rows: Sequence[PackedRow]) -> str:
    """Markdown: a line per model and space."""
    lines = [
        "# Packed files: bytes on disk against bytes promised",
        "",
        "Random policies of every network, and the smallest one its space holds; promised is the",
        "cost model's `size_bytes`. A file adds a safetensors header, a checksum and the layout;",
        "beside them it holds what was promised. *Equal*: the loaded network gives the same",
        "outputs, bit for bit.",
        "",
        "| network | genes | policies | promised bytes | added bytes | more than promised | "
        f"within {LIMIT:.0%} | equal | smallest policy |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, space in dict.fromkeys((row.model, row.space) for row in rows):
        own = [row for row in rows if (row.model, row.space) == (model, space)]
        drawn = [row for row in own if not row.smallest]
        lines.append(f"| {model} | {space} | " + " | ".join(_cells(own, drawn)) + " |")
    return "\n".join(lines) + "\n"


def _cells(own: Sequence[PackedRow], drawn: Sequence[PackedRow]) -> list[str]:
    promised = [row.promised for row in drawn]
    added = [row.disk - row.promised for row in drawn]
    excesses = [row.excess for row in drawn]
    good = sum(abs(excess) <= LIMIT for excess in excesses)
    smallest = ", ".join(
        f"{row.promised:,} {row.disk - row.promised:+,} ({row.excess:+.2%})"
        for row in own
        if row.smallest
    )
    return [
        str(len(drawn)),
        f"{min(promised):,} to {max(promised):,}",
        f"{min(added)} to {max(added)}",
        f"{min(excesses):.2%} to {max(excesses):.2%}",
        f"{good} of {len(drawn)}",
        f"{sum(row.equal for row in own)} of {len(own)}",
        smallest,
    ]
