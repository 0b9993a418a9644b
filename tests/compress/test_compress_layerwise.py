"""Layers fitted alone: against the solution by hand, and what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import example, network
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress import calibration as calibration_module
from automl_compress.compress.batchnorm import recalibrate
from automl_compress.compress.calibration import read_inputs, sample_layers
from automl_compress.compress.layerwise import BITS, LayerwiseFits
from automl_compress.compress.reconstruct import RIDGE
from automl_compress.space import Policy


def layer(groups: int = 1, bias: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(6, 8, 3, groups=groups, bias=bias)).eval()


def images(count: int = 40) -> Tensor:
    """Images whose channels have much in common, so that some can stand for others."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(count, 2, 7, 7, generator=generator)
    mixture = torch.randn(6, 2, generator=generator)
    own = torch.randn(count, 6, 7, 7, generator=generator)
    return torch.einsum("cm,nmhw->nchw", mixture, common) + 0.3 * own + 0.5


def fits(model: nn.Module, normalized: bool = False) -> LayerwiseFits:
    samples = sample_layers(model, ["0"], images(), moments=True)
    return LayerwiseFits(model, samples, ["0"] if normalized else [])


def sampled_rows(model: Any) -> Tensor:
    """(n, fan_in) what the layer read at the spots of its sample."""
    spots = sample_layers(model, ["0"], images())["0"].spots
    return read_inputs(model[0], images(), spots)[0]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_solve_the_least_squares_problem(bias: bool, normalized: bool) -> None:
    model: Any = layer(bias=bias)
    kept = torch.tensor([0, 2, 5])
    fitted = fits(model, normalized).fit("0", kept, None)
    rows = sampled_rows(model).double()
    centre = bias or normalized
    rows_c = rows - rows.mean(0) if centre else rows
    columns = (kept[:, None] * 9 + torch.arange(9)).flatten()
    left, weight = rows_c[:, columns], model[0].weight.detach().flatten(1).double()
    ridge = RIDGE * left.pow(2).mean()
    # |left w - rows_c W|^2 / n + ridge |w - W[columns]|^2, as one stacked problem.
    n = len(rows)
    top, pull = left / n**0.5, ridge.sqrt() * torch.eye(len(columns), dtype=torch.float64)
    right = torch.cat([rows_c @ weight.T / n**0.5, pull @ weight[:, columns].T])
    expected = torch.linalg.lstsq(torch.cat([top, pull]), right).solution.T
    torch.testing.assert_close(fitted.weight.flatten(1).double(), expected, rtol=1e-3, atol=1e-4)
    shift = rows.mean(0) @ weight.T - rows[:, columns].mean(0) @ expected.T
    torch.testing.assert_close(fitted.shift.double(), shift, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8, None])
def test_nothing_is_fitted_where_no_input_is_lost(bits: int | None) -> None:
    model: Any = layer()
    fitted = fits(model).fit("0", None, bits)
    weight = model[0].weight.detach()
    if bits is None:
        assert torch.equal(fitted.weight, weight)
        return
    assert fitted.scales is not None
    assert fitted.weight.dtype == torch.int8
    assert int(fitted.weight.abs().max()) <= 2 ** (bits - 1) - 1
    rounded = fitted.weight * fitted.scales[:, None, None, None]
    rows = sampled_rows(model)
    rows = rows - rows.mean(0)
    error = (rows @ (rounded - weight).flatten(1).T).pow(2).mean()
    plain = weight.abs().amax((1, 2, 3)) / (2 ** (bits - 1) - 1)
    nearest = (weight / plain[:, None, None, None]).round() * plain[:, None, None, None]
    assert error < (rows @ (nearest - weight).flatten(1).T).pow(2).mean()


def test_all_bits_at_once_are_what_each_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.compress import layerwise

    kept = torch.tensor([1, 2, 4])
    together = fits(layer())
    found = [together.fit("0", kept, bits) for bits in BITS]
    monkeypatch.setattr(layerwise, "_ROWS_TOGETHER", 0)
    for bits, one in zip(BITS, found, strict=True):
        alone = fits(layer()).fit("0", kept, bits)
        assert torch.equal(one.weight, alone.weight)
        assert one.scales is not None
        assert alone.scales is not None
        torch.testing.assert_close(one.scales, alone.scales)


def test_a_fit_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.compress import layerwise

    made: list[int] = []
    solve = layerwise.solve
    monkeypatch.setattr(layerwise, "solve", lambda *a: made.append(1) or solve(*a))
    one = fits(layer())
    kept = torch.tensor([0, 1])
    first = one.fit("0", kept, 4)
    assert one.fit("0", kept.clone(), 4) is first
    one.fit("0", kept, 7)
    assert len(made) == 1
    one.fit("0", torch.tensor([0, 2]), 4)
    assert len(made) == 2


def test_the_least_recently_used_fits_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.compress import layerwise

    one = fits(layer())
    first = one.fit("0", torch.tensor([0, 1]), 4)
    monkeypatch.setattr(layerwise, "KEPT_BYTES", 8 * first.size)
    for place in range(1, 6):
        one.fit("0", torch.tensor([0, place]), 4)
    assert one._size <= layerwise.KEPT_BYTES
    assert one.fit("0", torch.tensor([0, 1]), 4) is not first


@pytest.mark.parametrize("wide", [False, True])
def test_removed_kernels_stay_zero_and_the_others_make_up(
    monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    if wide:  # such layers have no second moment
        monkeypatch.setattr(calibration_module, "MOMENT_FAN_IN", 10)
    model: Any = layer()
    free = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    free = free.repeat_interleave(9, dim=1)
    fitted = fits(model).fit_sparse("0", None, None, free)
    weight = model[0].weight.detach().flatten(1)
    assert not fitted.weight.flatten(1)[~free].any()
    rows = sampled_rows(model)
    rows = rows - rows.mean(0)
    error = (rows @ (fitted.weight.flatten(1) - weight).T).pow(2).mean()
    assert error < 0.7 * (rows @ (weight * ~free).T).pow(2).mean()


def test_a_cut_that_loses_nothing_is_made_good_at_once() -> None:
    """A layer whose second half of inputs repeats the first half."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    with torch.no_grad():
        first.weight[2:] = first.weight[:2]
        first.bias[2:] = first.bias[:2]  # type: ignore[index]
    model = nn.Sequential(first, second, nn.Flatten(), nn.Linear(5 * 16, 3)).eval()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    compressor = Compressor(model, x[:1], x, repair="layerwise")
    group = next(g.name for g in compressor.structure.groups if g.channels == 4)
    compressor._order[group] = np.arange(4)  # keeps the first two
    built = compressor.build(Policy({f"channels:{group}": 2}))
    with torch.no_grad():
        error = (built(x) - model(x)).pow(2).mean() / model(x).pow(2).mean()
    assert float(error) < 0.01


@pytest.mark.parametrize("name", ["resnet8", "mobile", "dense", "mlp"])
def test_layerwise_repair_helps(name: str) -> None:
    model, x = network(name), example(name, 48)
    recalibrate(model, x)  # as training would have
    layerwise = Compressor(model, x[:1], x, repair="layerwise")
    plain = Compressor(model, x[:1], x, repair="none")
    groups = [g for g in layerwise.structure.groups if not g.protected]
    channels = {f"channels:{g.name}": max(1, 3 * g.channels // 4) for g in groups}
    bits = {f"weight_bits:{s.name}": 4 for s in layerwise.structure.layers if s.quantizable}
    policy = Policy({**channels, **bits})
    with torch.no_grad():
        target = model(x)
        errors = [float((c.build(policy)(x) - target).pow(2).mean()) for c in (layerwise, plain)]
    assert errors[0] < errors[1]
