"""Steps of small networks, checked against PyTorch's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.search.networks import Adam, perceptron, restore, seeded, stored


def _network() -> nn.Module:
    with seeded(3):
        return perceptron(5, 8, 2)


def _loss(network: nn.Module, seed: int) -> Tensor:
    inputs = torch.from_numpy(np.random.default_rng(seed).normal(size=(16, 5)).astype("float32"))
    return network(inputs).square().sum()


def _weights(network: nn.Module) -> list[list[float]]:
    return [values.flatten().tolist() for values in network.parameters()]


def test_adam_goes_as_pytorch_s_to_the_last_bit() -> None:
    ours, theirs = _network(), _network()
    step = Adam(ours.parameters(), 0.01)
    reference = torch.optim.Adam(theirs.parameters(), 0.01, fused=True)
    for seed in range(8):
        step.descend(_loss(ours, seed))
        reference.zero_grad()
        _loss(theirs, seed).backward()
        reference.step()
        assert _weights(ours) == _weights(theirs)
    assert all(values.grad is None for values in ours.parameters())


def test_adam_goes_on_exactly_from_its_state() -> None:
    whole, other = _network(), _network()
    step, resumed = (Adam(network.parameters(), 0.01) for network in (whole, other))
    for seed in range(4):
        step.descend(_loss(whole, seed))
    restore({"network": other}, {"step": resumed}, stored({"network": whole}, {"step": step}))
    for seed in range(4, 8):
        step.descend(_loss(whole, seed))
        resumed.descend(_loss(other, seed))
        assert _weights(other) == _weights(whole)
