"""What of a network no training changes is told before one begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from automl_compress.recover.fixed import untrained_parts


class Headed(nn.Linear):
    """Further heads run in training mode alone."""

    def __init__(self, heads: int) -> None:
        super().__init__(2, 2)
        self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(heads))

    def forward(self, x: Tensor) -> Any:
        answer = super().forward(x)
        return (answer, *(head(x) for head in self.heads)) if self.training else answer


def test_what_is_not_trained_is_told() -> None:
    workload: Any = SimpleNamespace(example_input=lambda: torch.ones(1, 2))
    workload.model, workload.fixed = Headed(0), frozenset()
    assert not untrained_parts(workload)
    workload.model, workload.fixed = Headed(2), frozenset({"b.weight", "a.weight"})
    assert untrained_parts(workload) == (
        "parameters that are not trained, as the factory froze them: 2, such as 'a.weight'",
        "parts that are not trained, as they run in training mode alone: 2, such as 'heads.0'",
    )
