"""Pruning in stages: policies and epochs on the way, and the networks they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from automl_compress.compress import Compressor
from automl_compress.errors import InputError, InterruptedStudy
from automl_compress.recover import RecoverySettings, Standing, recover_policy, section_of
from automl_compress.recover import training as training_module
from automl_compress.recover.gradual import epochs_of_stages, policies_towards
from automl_compress.recover.lsq import make_learnable, unquantize
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Workload

POLICY = Policy(
    {
        "channels:conv1": 8,
        "channels:block1.conv1": 12,
        "channels:block2.conv1": 10,
        "weight_bits:conv2": 3,
        "activation_bits:conv2": 4,
        "weight_bits:linear": 8,
        "kernel_sparsity:block2.conv2": 0.5,
    }
)
QUICK = {"batch": 64, "device": "cpu", "augment": {"crop": 1, "flip": False}}


def _settings(**changes: Any) -> RecoverySettings:
    return RecoverySettings.from_section(section_of(**{**QUICK, **changes}))


def _compressor(workload: Workload) -> Compressor:
    calibration = workload.splits.train.draw(64, 0).tensor(workload.normalization)
    return Compressor(workload.model, calibration[:1], calibration)


def test_every_gene_goes_its_way_in_equal_steps() -> None:
    policy = Policy(
        {
            "channels:a": 4,
            "weight_bits:b": 2,
            "activation_bits:b": 4,
            "kernel_sparsity:c": 0.6,
        }
    )
    first, second, last = policies_towards(policy, {"a": 16}, 3)
    assert dict(first) == {
        "activation_bits:b": 7,
        "channels:a": 12,
        "kernel_sparsity:c": pytest.approx(0.2),
        "weight_bits:b": 6,
    }
    assert dict(second) == {
        "activation_bits:b": 5,
        "channels:a": 8,
        "kernel_sparsity:c": pytest.approx(0.4),
        "weight_bits:b": 4,
    }
    assert last is policy
    assert policies_towards(policy, {"a": 16}, 1) == (policy,)


@pytest.mark.parametrize(
    ("epochs", "stages", "expected"),
    [(7, 1, (7,)), (8, 3, (2, 2, 4)), (9, 3, (2, 2, 5)), (3, 3, (1, 1, 1)), (4, 3, (1, 1, 2))],
)
def test_half_of_the_epochs_are_the_last_stage_s(
    epochs: int, stages: int, expected: tuple[int, ...]
) -> None:
    assert epochs_of_stages(epochs, stages) == expected


def test_more_stages_than_epochs_are_refused() -> None:
    with pytest.raises(InputError, match="at most the number of epochs, 2, but is 3"):
        _settings(epochs=2, stages=3)


def test_layers_without_grids_have_the_weights_before_rounding(digits: Workload) -> None:
    network = _compressor(digits).build(POLICY)
    before = dict(network.named_modules())
    weights = {"conv2": torch.randn_like(before["conv2"].get_parameter("weight"))}
    make_learnable(network, weights)
    unquantize(network)
    plain = network.get_submodule("conv2")
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain.weight, weights["conv2"])
    assert set(dict(network.named_parameters())) == set(dict(digits.model.named_parameters()))
    x = digits.example_input()
    inner = nn.functional.conv2d(x.repeat(1, 8, 1, 1), plain.weight, None, plain.stride, 1)
    assert torch.equal(plain(x.repeat(1, 8, 1, 1)), inner)


def test_stages_end_in_the_policy_s_network(digits: Workload, few: ImageSet) -> None:
    compressor = _compressor(digits)
    heard: list[Standing] = []
    got = recover_policy(
        compressor,
        POLICY,
        few,
        digits.normalization,
        _settings(epochs=4, stages=3),
        listener=heard.append,
    )
    expected = compressor.build(POLICY).state_dict()
    found = got.network.state_dict()
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}
    assert [s.epoch for s in heard if s.quality is not None] == [1, 2, 3, 4]
    assert (heard[-1].step, heard[-1].steps, heard[-1].seconds_left) == (got.steps, got.steps, 0)
    steps = [s.step for s in heard]
    assert steps == sorted(steps)
    removed = got.network.get_submodule("block2.conv2").get_parameter("weight").eq(0)
    assert removed.flatten(2).all(2).float().mean() >= 0.49


def test_stages_are_resumed_one_by_one(
    digits: Workload, few: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressor, settings = _compressor(digits), _settings(epochs=3, stages=3)
    arguments = (compressor, POLICY, few, digits.normalization, settings)
    whole = recover_policy(*arguments)
    run = training_module.Trainer.run

    def stop_in_the_second(trainer: Any, checkpoint: Path, *rest: Any) -> None:
        if checkpoint.name.endswith(".1"):
            raise InterruptedStudy("stopped")
        run(trainer, checkpoint, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(training_module.Trainer, "run", stop_in_the_second)
        with pytest.raises(InterruptedStudy):
            recover_policy(*arguments, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c.0"]
    heard: list[Standing] = []
    resumed = recover_policy(*arguments, tmp_path / "c", heard.append)
    assert [s.epoch for s in heard if s.quality is not None] == [2, 3]
    other = resumed.network.state_dict()
    assert all(torch.equal(v, other[n]) for n, v in whole.network.state_dict().items())


def test_another_teacher_teaches_otherwise(digits: Workload, few: ImageSet) -> None:
    teacher = _compressor(digits).build(Policy({"weight_bits:conv2": 2}))
    results = [
        recover_policy(
            _compressor(digits),
            POLICY,
            few,
            digits.normalization,
            _settings(epochs=1, distill=1.0),
            teacher=chosen,
        ).network.state_dict()
        for chosen in (None, teacher)
    ]
    assert any(not torch.equal(v, results[1][n]) for n, v in results[0].items())
