"""BatchNorm repair: what it measures and how it chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_networks import conv_bn, example, head, network
from torch import Tensor, nn

from automl_compress.compress import Compressor, Repair
from automl_compress.compress.modules import share_copy
from automl_compress.compress.repair import HELD_OUT, SHARES, judge_targets, repair_batchnorm
from automl_compress.space import Policy


def shifted() -> nn.Module:
    """A network whose statistics are far from what it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(conv_bn(3, 6), conv_bn(6, 6), head(6)).eval()


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1


def test_new_statistics_are_those_of_the_images() -> None:
    model: Any = share_copy(shifted())
    with torch.no_grad():
        assert repair_batchnorm(model, images(), None, "recalibrate") == 1.0
        first = model[0][0](images())
        second = model[1][0](
            nn.functional.batch_norm(first, None, None, model[0][1].weight, model[0][1].bias, True)
            .relu()
        )  # fmt: skip
    for norm, seen in ((model[0][1], first), (model[1][1], second)):
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
        assert norm.momentum == 0.1
        assert not norm.training
        assert int(norm.num_batches_tracked) == 0


def test_many_images_are_averaged_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.compress import repair

    monkeypatch.setattr(repair, "_BATCH_VALUES", 0)
    model: Any = share_copy(shifted())
    batches: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    with torch.no_grad():
        repair_batchnorm(model, images(64), None, "recalibrate")
        assert batches == [32, 32]
        halves = [model[0][0](half).mean((0, 2, 3)) for half in images(64).split(32)]
    torch.testing.assert_close(model[0][1].running_mean, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("share", SHARES)
def test_auto_takes_the_share_nearest_to_the_original(share: float) -> None:
    """The targets are made with statistics that are a known share of the way."""
    start = shifted()
    with torch.no_grad():
        fresh: Any = share_copy(start)
        repair_batchnorm(fresh, images()[: 40 - 40 // HELD_OUT], None, "recalibrate")
        mixed: Any = share_copy(start)
        for norm, old, new in zip(mixed.modules(), start.modules(), fresh.modules(), strict=True):
            if isinstance(norm, nn.BatchNorm2d):
                for key in ("running_mean", "running_var"):
                    norm._buffers[key] = torch.lerp(getattr(old, key), getattr(new, key), share)
        targets = judge_targets(mixed, images())
        assert targets is not None
        assert len(targets) == 40 // HELD_OUT
        chosen: Any = share_copy(start)
        assert repair_batchnorm(chosen, images(), targets, "auto") == share
        torch.testing.assert_close(
            chosen(images()[40 - 40 // HELD_OUT :]), targets, rtol=1e-4, atol=1e-5
        )


def test_repair_none_changes_nothing() -> None:
    model: Any = share_copy(shifted())
    before = [(id(tensor), tensor.clone()) for tensor in model.buffers()]
    assert repair_batchnorm(model, images(), None, "none") == 0.0
    assert all(
        id(tensor) == name and torch.equal(tensor, value)
        for tensor, (name, value) in zip(model.buffers(), before, strict=True)
    )


def test_statistics_are_never_written_into_shared_tensors() -> None:
    original = shifted()
    before = [tensor.clone() for tensor in original.buffers()]
    copied = share_copy(original)
    with torch.no_grad():
        repair_batchnorm(copied, images(), judge_targets(original, images()), "auto")
        repair_batchnorm(copied, images(), None, "recalibrate")
    assert all(torch.equal(a, b) for a, b in zip(original.buffers(), before, strict=True))


def test_networks_without_batchnorm_need_no_repair() -> None:
    assert repair_batchnorm(network("mlp"), example("mlp", 8), None, "recalibrate") == 0.0


def test_frozen_batchnorm_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert repair_batchnorm(model.eval(), images(), None, "recalibrate") == 0.0


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_few_calibration_images_are_enough(count: int) -> None:
    compressor = Compressor(network("vgg"), example("vgg"), example("vgg", count))
    built = compressor.build(Policy({"channels:fc1": 4, "weight_bits:fc1": 4}))
    assert torch.isfinite(built(example("vgg", 2))).all()


@pytest.mark.parametrize("seed", range(4))
def test_auto_is_never_farther_from_the_original_than_no_repair(seed: int) -> None:
    model, x = network("resnet8", seed), example("resnet8", 64)
    policy = Policy({f"weight_bits:layer{n}.0.conv{m}": 2 for n in (1, 2, 3) for m in (1, 2)})
    judges = x[48:]
    repairs: tuple[Repair, ...] = ("none", "auto")
    distances = []
    with torch.no_grad():
        targets = model(judges).log_softmax(1)
        for repair in repairs:
            built = Compressor(model, x[:1], x, repair=repair).build(policy)
            answers = built(judges).log_softmax(1)
            distances.append(float((targets.exp() * (targets - answers)).sum(1).mean()))
    assert distances[1] <= distances[0] + 1e-9
