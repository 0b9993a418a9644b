"""Networks as others write them: cut right, or protected with a reason, never a crash."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from compress_networks import counted_macs, lively, random_policy
from torch import nn

from automl_compress.compress import Compressor
from automl_compress.space import Policy

# Groups that can be cut, all groups, and what the protected ones say.
EXPECTED = {
    "resnet18": (12, 13, "output"),
    "mobilenet_v3_small": (27, 28, "output"),
    "squeezenet1_1": (25, 26, "output"),
    "shufflenet_v2_x1_0": (19, 22, "coupled to each other|output"),
    "small_densenet": (10, 11, "output"),
    "small_transformer": (7, 8, "output"),
}
SLOW = {
    "mobilenet_v2": (25, 26, "output"),
    "efficientnet_b0": (40, 41, "output"),
    "regnet_y_400mf": (37, 38, "output"),
    "googlenet": (57, 58, "output"),
    "resnet50": (37, 38, "output"),
    "convnext_tiny": (22, 23, "output"),
}
SMALL: dict[str, Any] = {
    "small_densenet": partial(torchvision.models.DenseNet, 8, (2, 2), 16),
    "small_transformer": partial(torchvision.models.VisionTransformer, 64, 8, 2, 2, 16, 32),
}


def load(name: str) -> nn.Module:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        make = SMALL.get(name) or partial(getattr(torchvision.models, name), weights=None)
        model: nn.Module = make()
    return lively(model).eval()


@pytest.mark.parametrize(
    "name", [*EXPECTED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_networks_of_torchvision(name: str) -> None:
    cuttable, total, reasons = {**EXPECTED, **SLOW}[name]
    model, inputs = load(name), torch.randn(1, 3, 64, 64)
    compressor = Compressor(model, inputs, repair="none")
    groups = compressor.structure.groups
    assert (sum(not group.protected for group in groups), len(groups)) == (cuttable, total)
    for group in groups:
        assert not group.protected or any(part in group.protected for part in reasons.split("|"))
    policy = random_policy(compressor.structure, np.random.default_rng(0), activations=False)
    built = compressor.build(policy)
    said = compressor.cost(policy)
    assert said["macs"] == counted_macs(built, inputs)
    assert said["params"] == sum(parameter.numel() for parameter in built.parameters())
    with torch.no_grad():
        expected = model(inputs)
        unchanged = compressor.build(Policy({}))(inputs)
    counted = compressor.model if name in SMALL else model  # fused ones hide products
    assert compressor.cost(Policy({}))["macs"] == counted_macs(counted, inputs)
    torch.testing.assert_close(unchanged, expected, rtol=1e-5, atol=1e-5)
