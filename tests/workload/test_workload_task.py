"""What classifiers are compared by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from automl_compress.workload import CLASSIFICATION


def test_divergences_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50, 7, generator=generator) * 4 for _ in range(2))
    found = CLASSIFICATION.divergences(one, other)
    pairs = zip(one.double().softmax(1).numpy(), other.double().softmax(1).numpy(), strict=True)
    expected = [entropy(wanted, got) for got, wanted in pairs]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_divergences_of_certain_answers_are_finite() -> None:
    sure = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    assert CLASSIFICATION.divergences(sure, sure + 3.0).tolist() == pytest.approx([0, 0])
    assert CLASSIFICATION.divergences(sure, sure.flip(1)).tolist() == pytest.approx([2e4, 0])


def test_margins_are_between_the_largest_and_the_second() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, 2.0, -7.0], [-1.0, -3.0, -2.0]])
    assert CLASSIFICATION.margins(logits).tolist() == [0.5, 0.0, 1.0]
    assert CLASSIFICATION.margins(logits[:, :1]).tolist() == [0.0, 0.0, 0.0]
