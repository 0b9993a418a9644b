from __future__ import annotations

import torch
from torch import nn

from automl_compress.compress.strided import reading_first


def test_reading_first_changes_neither_outputs_nor_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 1, 2), nn.Conv2d(6, 4, 1, (1, 2), groups=2)
    )
    images = torch.randn(3, 3, 21, 18)
    expected = network(images)
    gradients = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
    with reading_first(network):
        assert [("_conv_forward" in vars(layer)) for layer in network] == [False, True, True]
        found = network(images)
        again = torch.autograd.grad(found.square().sum(), list(network.parameters()))
    torch.testing.assert_close(found, expected)
    for one, other in zip(again, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not any("_conv_forward" in vars(layer) for layer in network)


def test_wide_and_padded_layers_are_left_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(16, 8, 1, 2), nn.Conv2d(8, 8, 1, 1), nn.Conv2d(8, 8, 1, 2, padding=1)
    )
    with reading_first(network):
        assert not any("_conv_forward" in vars(layer) for layer in network)


def test_many_images_of_few_channels_lying_last_have_right_gradients() -> None:
    """Without it this crashes, see `compress.strided`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 8, 96, 96, generator=generator)
    layer = nn.Conv2d(8, 16, 1, 2, bias=False)
    layer.to(memory_format=torch.channels_last)
    with reading_first(layer):
        output = layer(images.contiguous(memory_format=torch.channels_last))
    slope = torch.randn(output.shape, generator=generator)
    output.backward(slope)
    read = images[:, :, ::2, ::2].permute(1, 0, 2, 3).flatten(1)
    expected = slope.permute(1, 0, 2, 3).flatten(1) @ read.T
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[:, :, 0, 0], expected, rtol=1e-3, atol=1e-2)
