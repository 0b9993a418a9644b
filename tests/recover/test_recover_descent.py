"""Steps of trainings, checked against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from automl_compress.recover.descent import Descent

DECAY = 0.3
RATES = (0.1, 0.2, 0.05, 0.1, 0.02, 0.1)


class _Branching(nn.Module):
    """A second branch that the loss depends on in odd steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.first, self.second = nn.Linear(64, 3), nn.Linear(64, 3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor, step: int) -> Tensor:
        x = self.layers(x)
        return self.first(x) + self.second(x) if step % 2 else self.first(x)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return _Branching().to(memory_format=torch.channels_last)


def _reference(network: nn.Module, momentum: float) -> torch.optim.SGD:
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, 0.1, momentum, nesterov=momentum > 0)


def _slopes(network: nn.Module, step: int) -> None:
    inputs = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step))
    network(inputs, step).square().mean().backward()


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_are_pytorch_s_to_the_last_bit_and_vectors_are_not_decayed(momentum: float) -> None:
    ours, theirs = _network(), _network()
    descent, reference = Descent(ours, momentum, DECAY), _reference(theirs, momentum)
    for step, rate in enumerate(RATES):
        descent.forget_gradients()
        _slopes(ours, step)
        descent.step(rate)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.zero_grad()
        _slopes(theirs, step)
        reference.step()
        assert _equal(ours, theirs)
    assert not _equal(ours, _network())


@pytest.mark.parametrize("pytorch", [False, True])
def test_it_goes_on_from_a_state_also_from_pytorch_s(pytorch: bool) -> None:
    """Checkpoints of unfinished trainings once held PyTorch's."""
    whole = _network()
    descent, reference = Descent(whole, 0.9, DECAY), _reference(whole, 0.9)
    for step in range(3):
        reference.zero_grad()
        _slopes(whole, step)
        reference.step() if pytorch else descent.step(0.1)
    rest = copy.deepcopy(whole)
    resumed = Descent(rest, 0.9, DECAY)
    resumed.load_state_dict(copy.deepcopy((reference if pytorch else descent).state_dict()))
    for step in range(3, 6):
        reference.zero_grad()
        resumed.forget_gradients()
        _slopes(whole, step)
        _slopes(rest, step)
        reference.step() if pytorch else descent.step(0.1)
        resumed.step(0.1)
        assert _equal(rest, whole)
