"""Folded columns: the same convolutions, of maps in another layout, and the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compress_networks import conv_bn, example, head, lively, shared_compressor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from automl_compress.compress import Compressor
from automl_compress.deploy import onnx
from automl_compress.deploy.onnx_graph import columns
from automl_compress.deploy.onnx_graph.folds import (
    MapLayer,
    Reading,
    chosen_folds,
    folded,
    widest_fold,
)
from automl_compress.deploy.runtime import LEAST_OUTPUTS, Runner
from automl_compress.space import Policy


def fold(maps: Tensor, columns: int) -> Tensor:
    """(n, columns * c, h, w / columns) of (n, c, h, w), columns x % columns one after another."""
    parts = [maps[..., place::columns] for place in range(columns)]
    return torch.cat(parts, dim=1)


@given(
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    columns_in=st.sampled_from([8, 12, 16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_folded_convolutions_are_convolutions_of_folded_maps(
    before: int,
    after: int,
    kernel: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    columns_in: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-9, 10, (2, 3, 4, columns_in), generator=generator).double()
    weight = torch.randint(-9, 10, (5, 3, 2, kernel), generator=generator).double()
    padded = functional.pad(maps, (*pads, 0, 0))
    if padded.shape[3] < dilation * (kernel - 1) + 1:
        return
    expected = functional.conv2d(padded, weight, stride=(1, stride), dilation=(1, dilation))
    columns_out = expected.shape[3]
    if columns_out % after:
        return
    reading = Reading((columns_in, columns_out), kernel, stride, dilation, pads[0])
    found = folded(reading, before, after)
    if found is None:
        return
    array = columns._kernel(weight.numpy(), found, (before, after))
    moved = functional.pad(fold(maps, before), (*found.pads, 0, 0))
    actual = functional.conv2d(moved, torch.from_numpy(array), stride=(1, found.stride))
    assert torch.equal(actual, fold(expected, after))


def test_convolutions_that_cannot_read_whole_folds_are_refused() -> None:
    same = Reading((16, 16), kernel=3, stride=1, dilation=1, pad=1)
    half = Reading((16, 8), kernel=3, stride=2, dilation=1, pad=1)
    assert folded(same, 2, 1) is None
    assert folded(half, 2, 1) is not None
    assert folded(half, 4, 1) is None
    assert folded(half, 4, 2) is not None
    assert folded(Reading((16, 8), kernel=1, stride=2, dilation=1, pad=0), 1, 2) is None  # 3 / 2


def test_maps_fold_as_far_as_all_their_convolutions_can() -> None:
    same = Reading((16, 16), kernel=3, stride=1, dilation=1, pad=1)
    half = Reading((16, 8), kernel=3, stride=2, dilation=1, pad=1)
    layers = [
        MapLayer("stem", None, 0, same),
        MapLayer("inner", 0, 0, same),
        MapLayer("next", 0, 1, half),
        MapLayer("last", 1, None, Reading((8, 8), 3, 1, 1, 1)),
    ]
    assert chosen_folds(layers, {0: 8, 1: 8}) == {0: 2, 1: 1}  # the last one writes no folds
    assert chosen_folds(layers, {0: 2, 1: 16}) == {0: 2, 1: 1}  # as many as one step of `next`
    assert chosen_folds(layers, {0: 9, 1: 8}) == {0: 1, 1: 1}
    assert chosen_folds(layers, {1: 8}) == {1: 1}
    spread = MapLayer("spread", 0, 1, Reading((16, 16), kernel=2, stride=1, dilation=6, pad=3))
    assert chosen_folds([spread], {0: 9, 1: 9}) == {0: 1, 1: 1}
    assert chosen_folds([spread], {0: 8, 1: 8}) == {0: 1, 1: 1}  # 5 / 2 > 2
    assert (widest_fold(4, 16), widest_fold(4, 6), widest_fold(1, 64)) == (4, 2, LEAST_OUTPUTS)


class Pooled(nn.Module):
    """Narrow maps that a pooling, a sum with one row's mean and an output read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_bn(3, 4), conv_bn(4, 4), conv_bn(4, 4)
        self.wide, self.head = nn.Conv2d(4, 20, 3, 2, 1), head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        x = x + x.mean(3, keepdim=True)
        x = functional.max_pool2d(x, 2)
        x = self.two(self.two(x)) + x
        return self.head(self.wide(x).relu())


def _narrow(name: str, kept: int) -> tuple[nn.Module, Tensor]:
    images, compressor = example(name, 24), shared_compressor(name, 24)
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    groups = [group for group in compressor.structure.groups if not group.protected]
    genes = {f"channels:{group.name}": min(kept, group.channels) for group in groups}
    model = compressor.build(Policy({**genes, **{f"weight_bits:{layer}": 5 for layer in layers}}))
    return model, images


def _pooled() -> tuple[nn.Module, Tensor]:
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    compressor = Compressor(lively(Pooled()), images[:1], repair="none")
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    return compressor.build(Policy({f"weight_bits:{layer}": 8 for layer in layers})), images


@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize(
    ("name", "kept", "folds"), [("resnet8", 6, True), ("resnet8", 3, True), ("pooled", 4, False)]
)
def test_files_compute_the_same_when_columns_are_folded(
    name: str, kept: int, folds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    model, images = _pooled() if name == "pooled" else _narrow(name, kept)
    one = onnx.onnx_content(model, images[:1], images)
    monkeypatch.setattr(columns, "chosen_folds", lambda *_: {})
    other = onnx.onnx_content(model, images[:1], images)
    assert (one != other) == folds
    first, second = (Runner(content)(images.numpy())[0] for content in (one, other))
    assert np.unique(first).size > 20
    np.testing.assert_array_equal(first, second)
