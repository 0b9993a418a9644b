from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from automl_compress.compress import trace
from automl_compress.errors import InputError, WorkloadError
from automl_compress.recover import SparsitySettings, TrainingSettings, train_network
from automl_compress.recover.sparsity import GroupLasso, ScalePenalty
from automl_compress.workload import ImageSet, Workload, build_model


def _zero_gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)


def test_scale_penalty_adds_the_sign() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    _zero_gradients(network)
    penalty = ScalePenalty(network, 0.1)
    penalty()
    assert torch.allclose(network[1].weight.grad, torch.tensor([0.1, -0.1, 0.0]))
    assert not network[0].weight.grad.any()
    assert not network[1].bias.grad.any()
    assert penalty.value() == pytest.approx(2.5)


def test_group_lasso_s_gradient_is_that_of_its_value() -> None:
    """The value is written down by hand for two convolutions, a depthwise one and a linear."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    structure = trace(network, torch.randn(1, 3, 8, 8))[1]
    _zero_gradients(network)
    penalty = GroupLasso(network, structure, 0.5)
    penalty()
    got = {name: p.grad.clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = None
    linear = network[7].weight.view(5, 4, 4)  # (out, channel, pixel)
    squares = (
        network[0].weight.pow(2).sum((1, 2, 3))
        + network[1].weight.pow(2)
        + network[3].weight.pow(2).sum((1, 2, 3))
        + linear.pow(2).sum((0, 2))
    )
    value = squares.sqrt().sum()
    assert penalty.value() == pytest.approx(value.item(), rel=1e-5)
    (0.5 * value).backward()
    for name, parameter in network.named_parameters():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(got[name], want, atol=1e-6), name


def test_group_lasso_joins_what_a_sum_couples(digits: Workload) -> None:
    structure = trace(digits.model, digits.example_input())[1]
    network = build_model("digits_cnn", {}).requires_grad_(True)
    with torch.no_grad():  # channel 3 of the first stage owns nothing any more
        for name in ("conv1", "block1.conv2"):
            network.get_submodule(name).weight[3] = 0.0
        for name in ("bn1", "block1.bn2"):
            network.get_submodule(name).weight[3] = 0.0
        for name in ("block1.conv1", "conv2"):
            network.get_submodule(name).weight[:, 3] = 0.0
    _zero_gradients(network)
    GroupLasso(network, structure, 1.0)()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
    assert not network.conv1.weight.grad[3].any()
    assert network.conv1.weight.grad[2].any()


def test_networks_without_batchnorm_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"'method' to group-lasso .--set method=group-lasso.$"):
        ScalePenalty(nn.Sequential(nn.Conv2d(1, 2, 1)), 0.1)


def test_scales_that_are_not_trained_are_no_part_of_the_penalty() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3))
    network[0].requires_grad_(False)
    assert ScalePenalty(network, 0.1).value() == 3.0
    with pytest.raises(WorkloadError, match="that are trained"):
        ScalePenalty(network.requires_grad_(False), 0.1)


@pytest.mark.parametrize("sparsity", [None, SparsitySettings()])
def test_what_a_factory_froze_is_not_trained(
    digits: Workload, few: ImageSet, sparsity: SparsitySettings | None
) -> None:
    splits = replace(digits.splits, train=few)
    workload = replace(digits, splits=splits, fixed=frozenset({"conv1.weight", "bn1.weight"}))
    settings = TrainingSettings(epochs=1, batch=64, device="cpu")
    trained = train_network(workload, settings, sparsity).network.state_dict()
    before = digits.model.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, trained[name])}
    assert same == workload.fixed


def test_optimizers_that_rescale_the_penalty_are_refused(digits: Workload) -> None:
    settings = TrainingSettings(epochs=1, optimizer="adamw")
    with pytest.raises(InputError, match=r"must be sgd .* is 'adamw'; remove it"):
        train_network(digits, settings, SparsitySettings())
