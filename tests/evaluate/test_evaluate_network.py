"""The estimator that builds networks and counts their right answers."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.errors import InputError, WorkloadError
from automl_compress.evaluate.draw import DRAWS, Draw, Drawn, draw_images
from automl_compress.evaluate.fast_form import FastForm
from automl_compress.evaluate.network import (
    COLLAPSE_IMAGES,
    EstimateSettings,
    NetworkEstimator,
)
from automl_compress.space import Policy, SearchSpace, SpaceRules
from automl_compress.workload import Workload, WorkloadConfig, load_workload
from automl_compress.workload.arithmetic import has_bfloat16, runs_bfloat16
from automl_compress.workload.data import DataConfig
from automl_compress.workload.models import MODELS

NAME = next(name for name, spec in MODELS.items() if spec.trained_here)
SETTINGS = EstimateSettings(images=200, calibration_images=64)


def config() -> WorkloadConfig:
    return WorkloadConfig(NAME, DataConfig.from_name(MODELS[NAME].data), epochs=4)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload(config())


@pytest.fixture(scope="module")
def estimator(workload: Workload) -> NetworkEstimator:
    return NetworkEstimator(workload, SETTINGS)


@pytest.fixture(scope="module")
def space(estimator: NetworkEstimator) -> SearchSpace:
    compressor = estimator.compressor
    rules = SpaceRules(activation_bits=(4, 6, 8))
    return space_of_structure(compressor.model, compressor.structure, rules).space


def policies(space: SearchSpace, count: int, seed: int = 0) -> list[Policy]:
    rng = np.random.default_rng(seed)
    return [space.decode(space.sample(rng)) for _ in range(count)]


def slow_accuracy(network: nn.Module, estimator: NetworkEstimator, first: int = 10**6) -> float:
    """One image at a time, each by its weight."""
    images, labels = (part[:first] for part in estimator.images_and_labels())
    with torch.no_grad():
        right = [
            int(network(x[None])[0].argmax()) == int(y) for x, y in zip(images, labels, strict=True)
        ]
    return float(np.average(right, weights=slow_weights(estimator, first)))


def slow_weights(estimator: NetworkEstimator, first: int = 10**6) -> list[float] | None:
    return None if estimator.weights is None else estimator.weights[:first].tolist()


def test_the_baseline_is_the_plain_accuracy(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    for split in ("validation", "test"):
        settings = replace(SETTINGS, images=None, split=split, precision="float32")
        whole = NetworkEstimator(workload, settings, estimator.compressor)
        evaluation = whole.estimate(Policy({}))
        images = getattr(workload.splits, split)
        assert evaluation.ok
        assert evaluation.images == len(images)
        expected = slow_accuracy(workload.model, whole)
        assert evaluation.metrics["accuracy"] == pytest.approx(expected, abs=1e-12)
        assert "accuracy_se" not in evaluation.metrics  # it was counted
        assert expected > 0.5


@pytest.mark.parametrize("draw", DRAWS)
def test_a_candidate_is_measured_on_the_drawn_images(
    workload: Workload, estimator: NetworkEstimator, space: SearchSpace, draw: Draw
) -> None:
    settings = replace(SETTINGS, precision="float32", floor=0.0, draw=draw)
    estimator = NetworkEstimator(workload, settings, estimator.compressor)
    images, labels = estimator.images_and_labels()
    names = ["accuracy", "divergence"]
    if draw == "uniform":
        alike = workload.splits.validation.draw(SETTINGS.images or 0, SETTINGS.seed)
        assert (labels.numpy() == alike.labels).all()
        assert estimator.weights is None
    else:
        assert estimator.weights is not None
        assert float(estimator.weights.mean()) == pytest.approx(1.0)
        names.append("accuracy_se")
    for policy in policies(space, 3):
        evaluation = estimator.estimate(policy)
        built = estimator.compressor.build(policy)
        expected = slow_accuracy(built, estimator)
        # Batches are summed in another order; a tie may fall the other way.
        assert evaluation.metrics["accuracy"] == pytest.approx(expected, abs=1.5 / len(images))
        assert evaluation.images == len(images) == 200
        assert evaluation.policy == policy
        assert evaluation.estimator == estimator.identity
        assert evaluation.seconds > 0
        costs = estimator.compressor.cost(policy)
        measured = {name: evaluation.metrics[name] for name in names}
        assert evaluation.metrics == {**measured, **costs}


def slow_divergence(network: nn.Module, estimator: NetworkEstimator, first: int = 10**6) -> float:
    """One image at a time, by SciPy."""
    networks = (network, estimator.compressor.model)
    found = []
    for x in estimator.images_and_labels()[0][:first]:
        with torch.no_grad():
            got, wanted = (n(x[None])[0].double().softmax(0).numpy() for n in networks)
        found.append(entropy(wanted, got))
    return 1 - math.exp(-np.average(found, weights=slow_weights(estimator, first)))


def test_the_divergence_is_that_from_the_uncompressed_network(
    workload: Workload, estimator: NetworkEstimator, space: SearchSpace
) -> None:
    settings = replace(SETTINGS, precision="float32", floor=0.0)
    exact = NetworkEstimator(workload, settings, estimator.compressor)
    assert exact.estimate(Policy({})).metrics["divergence"] == pytest.approx(0.0, abs=1e-9)
    for policy in policies(space, 3):
        found = exact.estimate(policy).metrics["divergence"]
        built = estimator.compressor.build(policy)
        assert found == pytest.approx(slow_divergence(built, exact), abs=1e-4)
        assert found > 0.001
        quick = estimator.estimate(policy)
        if quick.images == SETTINGS.images:
            assert quick.metrics["divergence"] == pytest.approx(found, rel=0.05)


def test_on_test_images_nothing_is_compared(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    settings = replace(SETTINGS, images=50, split="test", floor=0.0)
    final = NetworkEstimator(workload, settings, estimator.compressor)
    assert "divergence" not in final.estimate(Policy({})).metrics


def test_estimates_do_not_depend_on_what_was_measured_before(
    workload: Workload, space: SearchSpace
) -> None:
    chosen = [*policies(space, 2), Policy({}), *policies(space, 2, seed=1)]
    first = NetworkEstimator(workload, SETTINGS)
    weights = {
        name: (tensor.stride(), tensor.data_ptr(), tensor.clone())
        for name, tensor in first.compressor.model.state_dict().items()
    }
    forward = [first.estimate(policy).metrics for policy in chosen]
    for name, tensor in first.compressor.model.state_dict().items():
        stride, pointer, value = weights[name]
        assert (tensor.stride(), tensor.data_ptr()) == (stride, pointer), name
        assert torch.equal(tensor, value), name
    second = NetworkEstimator(workload, SETTINGS)
    backward = [second.estimate(policy).metrics for policy in reversed(chosen)]
    assert forward == backward[::-1]
    assert [first.estimate(policy).metrics for policy in chosen] == forward
    outputs = [one.compressor.build(chosen[0])(workload.example_input()) for one in (first, second)]
    assert torch.equal(*outputs)


SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
sys.path[:0] = json.loads(sys.argv[1])
from test_evaluate_network import SETTINGS, config
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.space import Policy
from automl_compress.workload import load_workload
estimator = NetworkEstimator(load_workload(config()), SETTINGS)
policies = [Policy.from_dict(one) for one in json.loads(sys.argv[2])]
found = [dict(estimator.estimate(policy).metrics) for policy in policies]
print(json.dumps([estimator.identity, found]))
"""


def test_another_process_gives_the_same_answers(
    estimator: NetworkEstimator, space: SearchSpace
) -> None:
    chosen = policies(space, 3, seed=5)
    here = Path(__file__)
    paths = json.dumps([str(here.parents[2]), str(here.parent)])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, paths, json.dumps([p.to_dict() for p in chosen])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    identity, found = json.loads(result.stdout.splitlines()[-1])
    assert identity == estimator.identity
    assert found == [dict(estimator.estimate(policy).metrics) for policy in chosen]


def test_the_identity_names_everything_that_changes_an_answer(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    def identity(one: Workload = workload, **changes: Any) -> str:
        settings = replace(SETTINGS, **changes)
        return NetworkEstimator(one, settings, estimator.compressor).identity

    assert identity() == estimator.identity
    assert identity(replace(workload, name="other")) == estimator.identity
    different = [
        identity(images=100),
        identity(images=None),
        identity(calibration_images=32),
        identity(repair="none"),
        identity(repair="recalibrate"),
        identity(criterion="other"),
        identity(batch=32),
        identity(floor=0.1),
        identity(split="test"),
        identity(seed=1),
        identity(replace(workload, identity="other weights")),
    ]
    assert len({estimator.identity, *different}) == len(different) + 1


def test_networks_are_told_apart_from_how_they_are_measured(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    def networks(one: Workload = workload, **changes: Any) -> str:
        settings = replace(SETTINGS, **changes)
        return NetworkEstimator(one, settings, estimator.compressor).networks

    measuring: list[dict[str, Any]] = [
        {"images": 100}, {"images": None}, {"batch": 32}, {"floor": 0.1}, {"split": "test"}
    ]  # fmt: skip
    assert {networks(**changes) for changes in measuring} == {estimator.networks}
    different = [
        networks(calibration_images=32),
        networks(repair="none"),
        networks(criterion="other"),
        networks(kernel_criterion="variational"),
        networks(seed=1),
        networks(replace(workload, identity="other weights")),
    ]
    assert len({estimator.networks, *different}) == len(different) + 1


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="the processor has no bfloat16")
def test_the_precision_changes_networks_and_answers(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    plain = replace(SETTINGS, precision="float32")
    other = NetworkEstimator(workload, plain, estimator.compressor)
    assert other.networks != estimator.networks
    assert other.identity != estimator.identity


@pytest.mark.skipif(not runs_bfloat16(), reason="the processor has no bfloat16")
def test_answers_nearest_to_others_are_settled_in_float32(
    workload: Workload,
    estimator: NetworkEstimator,
    space: SearchSpace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(SETTINGS, precision="bfloat16", floor=0.0)
    own = NetworkEstimator(workload, settings, estimator.compressor)
    images, labels = own.images_and_labels()
    (policy,) = policies(space, 1)
    network = own.compressor.build(policy)
    with torch.inference_mode():
        own._form.forget()
        low = torch.cat([*own._form.outputs(network, policy, images.split(settings.batch))])
        exact = own._form.exact(network, images)
    largest = low.sort(dim=1, descending=True).values
    nearest = (largest[:, 0] - largest[:, 1]).argsort(stable=True)[: len(images) // 32]
    assert len(nearest) == 6
    assert own.weights is not None
    asked: list[int] = []

    def exactly(_: FastForm, network: nn.Module, part: torch.Tensor) -> torch.Tensor:
        places = [int((images == x).flatten(1).all(1).nonzero()[0, 0]) for x in part]
        asked.extend(places)
        return 1 - nn.functional.one_hot(labels[places], 10).float()  # all wrong

    for answers in ("true", "wrong"):
        with monkeypatch.context() as patched:
            if answers == "wrong":
                patched.setattr(FastForm, "exact", exactly)
            found = own.estimate(policy)
            assert own.fast_quality(network, policy) == found.metrics["accuracy"]
        right = low.argmax(1) == labels
        right[nearest] = exact[nearest].argmax(1) == labels[nearest]
        if answers == "wrong":
            right[nearest] = False
        share = np.average(right.numpy(), weights=own.weights.numpy())
        assert found.metrics["accuracy"] == pytest.approx(share)
    assert sorted(asked) == sorted(2 * nearest.tolist())  # `estimate` and `fast_quality`


@pytest.mark.skipif(runs_bfloat16(), reason="the processor has bfloat16")
def test_a_precision_that_the_processor_lacks_is_refused(workload: Workload) -> None:
    with pytest.raises(InputError, match="use 'auto' or 'float32'"):
        NetworkEstimator(workload, replace(SETTINGS, precision="bfloat16"))


def test_a_network_that_gives_no_finite_answers_is_a_failed_evaluation(
    workload: Workload,
) -> None:
    own = NetworkEstimator(workload, SETTINGS)
    weight = next(own.compressor.model.parameters())
    weight[0] = float("nan")
    evaluation = own.estimate(Policy({}))
    assert not evaluation.ok
    assert evaluation.reason == "EstimateError: the weights of 'conv1' are not finite"
    assert evaluation.metrics == {}
    assert evaluation.minimised("error") == float("inf")


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError, KeyError])
def test_a_network_that_raises_is_a_failed_evaluation(
    workload: Workload,
    estimator: NetworkEstimator,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def fail(policy: Policy) -> nn.Module:
        raise error("no room\nfor it")

    monkeypatch.setattr(estimator.compressor, "build", fail)
    evaluation = estimator.estimate(Policy({}))
    assert evaluation.status == "failed"
    assert evaluation.reason.startswith(error.__name__)
    assert "\n" not in evaluation.reason
    assert evaluation.seconds >= 0


def test_an_interrupt_is_no_failed_evaluation(
    estimator: NetworkEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(policy: Policy) -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimator.compressor, "build", stop)
    with pytest.raises(KeyboardInterrupt):
        estimator.estimate(Policy({}))


def test_a_policy_of_another_network_is_a_failed_evaluation(estimator: NetworkEstimator) -> None:
    evaluation = estimator.estimate(Policy({"channels:layer7": 3}))
    assert evaluation.reason.startswith("SpaceError: a policy must name channel groups")


@pytest.mark.parametrize(
    "changes", [{"images": 10**6}, {"images": 0}, {"calibration_images": 10**6}]
)
def test_more_images_than_there_are_cannot_be_asked_for(
    workload: Workload, changes: dict[str, int]
) -> None:
    with pytest.raises(WorkloadError, match="split must hold the examples") as caught:
        NetworkEstimator(workload, replace(SETTINGS, **changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_search_never_sees_the_test_images(workload: Workload) -> None:
    """Images of the test split cannot change what a search reads."""
    before = NetworkEstimator(workload, SETTINGS)
    blank = workload.splits.test
    splits = replace(workload.splits, test=blank.take(np.arange(1)))
    after = NetworkEstimator(replace(workload, splits=splits), SETTINGS)
    assert before.identity == after.identity
    assert before.estimate(Policy({})).metrics == after.estimate(Policy({})).metrics


def test_a_compressor_made_elsewhere_is_used(
    workload: Workload, estimator: NetworkEstimator
) -> None:
    shared = NetworkEstimator(workload, SETTINGS, estimator.compressor)
    assert isinstance(shared.compressor, Compressor)
    assert shared.compressor is estimator.compressor
    assert shared.estimate(Policy({})).metrics == estimator.estimate(Policy({})).metrics


def test_a_collapsed_network_is_left_after_the_first_images(
    workload: Workload, estimator: NetworkEstimator, space: SearchSpace
) -> None:
    """Where the floor is high, many are; each is judged as on its first images alone."""
    settings = replace(SETTINGS, floor=1.0, batch=32, precision="float32")
    own = NetworkEstimator(workload, settings, estimator.compressor)
    patient = NetworkEstimator(workload, replace(settings, floor=0.0), estimator.compressor)
    found = [(own.estimate(p), patient.estimate(p)) for p in policies(space, 6, seed=3)]
    stopped = [pair for pair in found if pair[0].images < 200]
    assert 0 < len(stopped) < len(found)
    base = patient.estimate(Policy({})).metrics["accuracy"]
    for short, whole in found:
        assert whole.images == 200
        if short.images == 200:
            assert short.metrics == whole.metrics
            continue
        assert short.images == COLLAPSE_IMAGES
        assert short.metrics["accuracy"] + 3 * short.quality_se < base
        built = estimator.compressor.build(short.policy)
        right = slow_accuracy(built, own, COLLAPSE_IMAGES)
        assert short.metrics["accuracy"] == pytest.approx(right, abs=2.5 / 128)
        expected = slow_divergence(built, own, COLLAPSE_IMAGES)
        assert short.metrics["divergence"] == pytest.approx(expected, abs=1e-3)


def test_images_are_pickled_once(workload: Workload, estimator: NetworkEstimator) -> None:
    """However many batches they make."""
    whole = replace(SETTINGS, batch=4)
    small = len(pickle.dumps(NetworkEstimator(workload, whole, estimator.compressor)))
    large = len(pickle.dumps(NetworkEstimator(workload, SETTINGS, estimator.compressor)))
    assert abs(small - large) < 2_000


def test_who_builds_only_draws_nothing_and_a_pickle_holds_what_was_drawn(
    workload: Workload, estimator: NetworkEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(*arguments: Any) -> Drawn:
        drawn.append(1)
        return draw_images(*arguments)

    monkeypatch.setattr("automl_compress.evaluate.network.draw_images", draw)
    own = NetworkEstimator(workload, replace(SETTINGS, floor=0.0), estimator.compressor)
    own.compressor.build(Policy({}))
    assert own.identity != own.networks
    assert not drawn
    text = pickle.dumps(own)
    assert drawn == [1]
    copy = pickle.loads(text)
    found, expected = copy.estimate(Policy({})), own.estimate(Policy({}))
    assert found.metrics == expected.metrics
    assert drawn == [1]
    assert not hasattr(copy, "_split")  # nor the images it was drawn from


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        (
            "automl_compress.evaluate.network.VERSION",
            1,
            r"made with, .*\(estimates 1, .* here are .* on all machines",
        ),
        ("torch.__version__", "2.0.1+cpu", r"made with, .* torch 2\.0\.1, but here"),
    ],
)
def test_a_pickle_is_refused_where_it_would_answer_otherwise(
    name: str, there: object, said: str, estimator: NetworkEstimator
) -> None:
    """As on another machine of a cluster, whose answers would come under the same identity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, there)
        made = pickle.dumps(estimator)
    with pytest.raises(InputError, match=said):
        pickle.loads(made)


def test_a_pickle_is_refused_where_the_processor_fails_in_its_precision(
    estimator: NetworkEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its answers would be a failed evaluation."""
    monkeypatch.setattr(estimator, "settings", replace(SETTINGS, precision="bfloat16"))
    made = pickle.dumps(estimator)
    monkeypatch.setattr("automl_compress.workload.arithmetic.runs_bfloat16", lambda: False)
    with pytest.raises(InputError, match="precision must be one that the processor computes in"):
        pickle.loads(made)


class _Viewing(nn.Module):
    """Flattens as PyTorch's tutorial does, which takes no channels-last values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.fc(x.view(len(x), -1))


def viewing_data() -> tuple[Any, Any]:
    pixels = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = list(zip(pixels, (torch.arange(48) % 3).tolist(), strict=True))
    return whole[:24], whole[24:]


def test_a_network_that_takes_no_channels_last_is_measured_as_it_is() -> None:
    here = f"{__name__}:"
    workload = load_workload(
        WorkloadConfig.of(model=f"{here}_Viewing", data={"factory": f"{here}viewing_data"})
    )
    settings = EstimateSettings(images=12, calibration_images=8, draw="uniform")
    found = NetworkEstimator(workload, settings).estimate(Policy({}))
    assert (found.reason, found.images) == ("", 12)


class Signals(nn.Module):
    """Of (n, 2, 32): a residual sum and a depthwise separable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8))
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.pointwise = nn.Conv1d(8, 12, 1)
        self.linear = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pointwise(self.depthwise(torch.relu(self.branch(x) + x)))
        return self.linear(nn.functional.adaptive_avg_pool1d(x.relu(), 1).flatten(1))


def _features() -> nn.Module:
    first = (nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def _volumes() -> nn.Module:
    layers = (nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("make", "shape", "groups"),
    [(Signals, (2, 32), 2), (_features, (32,), 2), (_volumes, (1, 6, 6, 6), 1)],
)
def test_examples_that_are_no_images_are_estimated_as_a_plain_loop_does(
    make: Any, shape: tuple[int, ...], groups: int
) -> None:
    torch.manual_seed(0)
    values, labels = torch.randn(60, *shape), torch.arange(60) % 3
    data = TensorDataset(values, labels)
    workload = Workload.of(make(), data, data)
    estimator = NetworkEstimator(
        workload, EstimateSettings(images=30, calibration_images=32, floor=0.0, draw="uniform")
    )
    model, structure = estimator.compressor.model, estimator.compressor.structure
    assert len([group for group in structure.groups if not group.protected]) == groups
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        workload.model(workload.example_input())
    assert estimator.compressor.cost(Policy({}))["macs"] == counter.get_total_flops() / 2
    rules = SpaceRules(activation_bits=(6, 8), kernel_sparsity=(0, 0.5))
    space = space_of_structure(model, structure, rules).space
    for place in (0, -1):
        policy = Policy({gene.name: gene.values[place] for gene in space.genes})
        evaluation = estimator.estimate(policy)
        assert evaluation.status == "ok", evaluation.reason
        images, expected = estimator.images_and_labels()
        with torch.inference_mode():
            answers = estimator.compressor.build(policy)(images).argmax(1)
        assert evaluation.metrics["accuracy"] == (answers == expected).float().mean()
