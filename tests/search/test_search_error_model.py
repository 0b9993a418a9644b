from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automl_compress.search.error_model import LINKS, ErrorModel, Known, coordinates
from automl_compress.search.record import Record
from automl_compress.space import Gene, SearchSpace
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=3)


def _known(count: int, seed: int = 0) -> Known:
    space, rng = NETWORK.space, np.random.default_rng(seed)
    policies = dict.fromkeys(space.decode(space.sample(rng)) for _ in range(count))
    record = Record(NETWORK.problem())
    record.add(ToyEstimator(NETWORK).estimate(policy) for policy in policies)
    return record.known()


def test_halving_channels_or_bits_is_one_way_and_kernels_count_linearly() -> None:
    space = SearchSpace(
        [
            Gene("channels:a", "channels", (8, 16, 32, 64)),
            Gene("weight_bits:a", "weight_bits", (2, 4, 8)),
            Gene("kernel_sparsity:a", "kernel_sparsity", (0.5, 0.25, 0.0)),
            Gene("channels:b", "channels", (8,)),
        ]
    )
    table = coordinates(space)
    assert table[0] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert table[1, :3] == pytest.approx([0, 0.5, 1])
    assert table[2, :3] == pytest.approx([0, 0.5, 1])
    assert table[3, 0] == 1


def test_what_is_learnt_of_an_error_can_be_undone() -> None:
    errors = np.linspace(0.0, 0.95, 20)
    for link in LINKS:
        assert link.inverse(link.forward(errors)) == pytest.approx(errors)
        slopes = (link.forward(errors + 1e-6) - link.forward(errors - 1e-6)) / 2e-6
        assert np.log(slopes) == pytest.approx(link.slope(errors), rel=1e-3, abs=1e-6)


def test_the_likelier_link_is_learnt() -> None:
    """The toy's harms add up by construction; errors that multiply do so as logarithms."""
    known = _known(60)
    assert known.likeliest()[0] is LINKS[1]
    errors = 0.5 * np.exp(-4 * known.space.to_unit(known.indices).mean(axis=1))
    assert replace(known, errors=errors).likeliest()[0] is LINKS[0]


def test_errors_are_predicted_and_scatter_as_told() -> None:
    known, new = _known(120), _known(60, seed=1)
    expected, measured = ErrorModel(known, *known.likeliest()).predict(
        new.indices, new.costs, np.array([-2.0, 0.0, 2.0])
    )
    assert np.abs(expected - new.errors).mean() < 0.3 * new.errors.std()
    assert (np.diff(measured, axis=1) > 0).all()
    assert measured[:, 1] == pytest.approx(expected)
    inside = (measured[:, 0] < new.errors) & (new.errors < measured[:, 2])
    assert 0.8 < inside.mean() <= 1.0
