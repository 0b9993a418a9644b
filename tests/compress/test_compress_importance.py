"""Importance criteria against slow counts, finite differences and networks made for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compress_networks import NETWORKS, example, network, shared_compressor
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress import (
    CRITERIA,
    Compressor,
    derive_space,
    gene_features,
    layer_ranks,
    low_rank_shares,
)
from automl_compress.compress.feature_ranks import IMAGES, LOW_RANK
from automl_compress.compress.structure import ChannelGroup
from automl_compress.compress.taylor import BATCH, taylor_importance
from automl_compress.errors import InputError
from automl_compress.space import Policy
from automl_compress.workload import Detection, build_model
from automl_compress.workload.detection_loss import detector_loss

NEED_IMAGES = ("taylor", "hrank")
Array = NDArray[np.float64]


def scores(name: str, compressor: Compressor, images: Tensor | None, seed: int = 0) -> Any:
    groups = [group for group in compressor.structure.groups if not group.protected]
    with torch.no_grad():
        return CRITERIA[name](compressor.model, groups, images, seed)


def weights_of(model: nn.Module, group: ChannelGroup, axis: str) -> list[tuple[Array, Array]]:
    """By layer of a group, its weights with the cut axis in front, and each place's channel."""
    found = []
    for member in group.members:
        part: Any = model.get_submodule(member.module)
        if member.axis == axis and isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight.detach().numpy()
            moved = weight if axis == "out" else np.moveaxis(weight, 1, 0)
            owner = np.full(len(moved), -1)
            owner[member.positions] = member.channels
            found.append((moved, owner))
    return found


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("kind", ["resnet8", "vgg", "mobile", "dense", "twice"])
def test_norms_are_those_of_a_loop(name: str, power: int, kind: str) -> None:
    compressor = shared_compressor(kind)
    found = scores(name, compressor, None)
    for group in compressor.structure.groups:
        if group.protected:
            continue
        rows = []
        for axis in ("out", "in"):
            for weight, owner in weights_of(compressor.model, group, axis):
                sums = [
                    sum((np.abs(weight[p]) ** power).sum() for p in np.flatnonzero(owner == c))
                    for c in range(group.channels)
                ]
                rows.append(np.array(sums) / np.mean(sums))
        expected = np.mean(rows, axis=0) ** (1 / power)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["resnet8", "vgg", "dense", "twice"])
def test_the_geometric_median_is_that_of_a_loop(kind: str) -> None:
    compressor = shared_compressor(kind)
    found = scores("fpgm", compressor, None)
    for group in compressor.structure.groups:
        if group.protected:
            continue
        rows = []
        for weight, owner in weights_of(compressor.model, group, "out"):
            filters = [weight[owner == c].ravel() for c in range(group.channels)]
            sums = [sum(float(np.linalg.norm(a - b)) for b in filters) for a in filters]
            rows.append(np.array(sums) / np.mean(sums))
        np.testing.assert_allclose(found[group.name], np.mean(rows, axis=0), rtol=1e-5)


def test_scales_are_averaged_over_a_residual_stream() -> None:
    compressor = Compressor(network("resnet8"), example("resnet8"))
    model: Any = compressor.model
    found = scores("bn_scale", compressor, None)
    expected = (model.bn1.weight.abs() + model.layer1[0].bn2.weight.abs()) / 2
    np.testing.assert_allclose(found["conv1"], expected.numpy(), rtol=1e-6)


def test_groups_without_a_scale_fall_back_to_their_weights() -> None:
    compressor = Compressor(network("mlp"), example("mlp"))
    found, fallback = (scores(name, compressor, None) for name in ("bn_scale", "l1"))
    assert all((found[name] == fallback[name]).all() for name in found)


def squared_loss_slopes(model: nn.Module, group: ChannelGroup, images: Tensor) -> Array:
    """(channels,) mean squared slope of the loss in the weights that read a channel, scaled."""
    step = 1e-5
    model = copy.deepcopy(model).double()
    slopes = np.zeros((len(images) // BATCH, group.channels))
    readers = [m for m in group.members if m.axis == "in"]
    for number, batch in enumerate(images.double().split(BATCH)):
        labels = model(batch).argmax(1)
        for channel in range(group.channels):
            losses = []
            for sign in (1, -1):
                scaled: Any = copy.deepcopy(model)
                for member in readers:
                    places = torch.from_numpy(member.positions[member.channels == channel])
                    weight = scaled.get_submodule(member.module).weight
                    weight[:, places] *= 1 + sign * step
                losses.append(float(F.cross_entropy(scaled(batch), labels)))
            slopes[number, channel] = (losses[0] - losses[1]) / (2 * step)
    return np.mean(slopes**2, axis=0)


@pytest.mark.parametrize("kind", ["mobile", "vgg", "twice", "shared"])
def test_taylor_is_the_slope_of_the_loss_when_a_channel_fades(kind: str) -> None:
    images = example(kind, 2 * BATCH)
    compressor = Compressor(network(kind), images[:1])
    found = scores("taylor", compressor, images)
    group = next(g for g in compressor.structure.groups if not g.protected)
    with torch.no_grad():
        expected = squared_loss_slopes(compressor.model, group, images)
    np.testing.assert_allclose(found[group.name], expected, rtol=1e-3, atol=1e-3 * expected.max())
    assert expected.max() > 0


def test_taylor_sees_what_passes_a_parameter_free_shortcut() -> None:
    images = example("pad-module", BATCH)
    compressor = Compressor(network("pad-module"), images[:1])
    model: Any = compressor.model
    model.conv1._parameters["weight"] = nn.Parameter(torch.zeros_like(model.conv1.weight), False)
    assert scores("taylor", compressor, images)["stem.0"].min() > 0


def test_taylor_works_while_gradients_are_off_and_leaves_none() -> None:
    images = example("vgg", BATCH)
    compressor = Compressor(network("vgg"), images[:1])
    with torch.inference_mode():
        found = scores("taylor", compressor, images)
    assert found["fc1"].max() > 0
    assert all(p.grad is None and not p.requires_grad for p in compressor.model.parameters())
    assert not any(module._forward_pre_hooks for module in compressor.model.modules())


def test_ranks_are_those_of_the_maps_that_are_read() -> None:
    images = example("vgg", IMAGES + 4)
    compressor = Compressor(network("vgg"), images[:1])
    model: Any = compressor.model
    found = scores("hrank", compressor, images)
    with torch.no_grad():
        first = model.features[:2](images[:IMAGES])
        second = model.features(images[:IMAGES])
        hidden = F.relu(model.fc1(second.flatten(1)))
    for name, maps in (("features.0.0", first), ("features.2.0", second)):
        ranks = [[np.linalg.matrix_rank(m.numpy()) for m in image] for image in maps]
        expected = np.mean(ranks, axis=0) / maps.shape[-1]
        np.testing.assert_allclose(found[name], expected)
        assert len(set(expected)) > 1
    np.testing.assert_allclose(found["fc1"], (hidden != 0).double().mean(0).numpy())


def test_ranks_of_layers_and_genes() -> None:
    images = example("resnet8", IMAGES)
    compressor = Compressor(network("resnet8"), images[:1])
    ranks = layer_ranks(compressor.model, compressor.structure, images)
    scored = scores("hrank", compressor, images)
    assert (ranks["layer1.0.conv2"] == ranks["conv1"]).all()
    assert (ranks["layer1.0.conv1"] == scored["layer1.0.conv1"]).all()
    assert "linear" not in ranks
    space = derive_space(network("resnet8"), images[:1]).space
    shares = low_rank_shares(space, ranks)
    for gene, share in zip(space, shares, strict=True):
        known = ranks.get(gene.target)
        assert share == (0 if known is None else (known < LOW_RANK).mean())
    assert len(shares) == len(gene_features(space, compressor.structure, compressor.cost))


def test_layers_that_write_several_groups_have_all_their_ranks() -> None:
    images = example("dense", 8)
    compressor = Compressor(network("dense"), images[:1])
    for name, found in layer_ranks(compressor.model, compressor.structure, images).items():
        assert found.shape == (compressor.structure.layer(name).out_channels,)  # type: ignore[union-attr]
        assert not np.isnan(found).any()


def made_with_a_useless_channel(criterion: str) -> nn.Module:
    """A network whose fifth channel is the one a criterion must find."""
    model: Any = network("vgg")
    layer, norm, reader = model.features[0][0], model.features[0][1], model.features[2][0]
    with torch.no_grad():
        if criterion in ("l1", "l2"):
            layer.weight[5] *= 0.01
            reader.weight[:, 5] *= 0.01
        elif criterion == "bn_scale":
            norm.weight[5] *= 0.01
        elif criterion == "fpgm":
            others = [0, 1, 2, 3, 4, 6, 7]
            layer.weight[5] = layer.weight[others].mean(0)
        elif criterion == "taylor":
            reader.weight[:, 5] = 0
        else:  # a constant map
            layer.weight[5] = 0
            norm.bias[5], norm.running_mean[5] = 1, 0
    return model


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_the_useless_channel_goes_first(criterion: str) -> None:
    images = example("vgg", 32)
    model = made_with_a_useless_channel(criterion)
    compressor = Compressor(model, images[:1], images, criterion, "none")
    built: Any = compressor.build(Policy({"channels:features.0.0": 7}))
    kept: Any = compressor.model.get_submodule("features.0.0")
    assert torch.equal(built.features[0][0].weight, kept.weight[[0, 1, 2, 3, 4, 6, 7]])


def test_chance_depends_on_seed_and_group_only() -> None:
    compressor = Compressor(network("resnet8"), example("resnet8"))
    one, same, other = (scores("random", compressor, None, seed) for seed in (0, 0, 1))
    for name, found in one.items():
        assert (found == same[name]).all()
        assert (found != other[name]).any()
    assert (one["conv1"][:8] != one["layer1.0.conv1"][:8]).any()
    groups = [g for g in compressor.structure.groups if g.name == "conv1"]
    alone = CRITERIA["random"](compressor.model, groups, None, 0)
    assert (alone["conv1"] == one["conv1"]).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_criterion_scores_every_network(kind: str) -> None:
    images, compressor = example(kind, 8), shared_compressor(kind)
    cuttable = [group for group in compressor.structure.groups if not group.protected]
    for name in CRITERIA if cuttable else ():
        if name == "taylor" and kind == "outputs":
            with pytest.raises(InputError, match="classes along axis 1, but it is a dict"):
                scores(name, compressor, images)
            continue
        found = scores(name, compressor, images)
        for group in cuttable:
            assert found[group.name].shape == (group.channels,), name
            assert (found[group.name] >= 0).all(), name
    for group in cuttable:
        assert sorted(compressor._order[group.name]) == list(range(group.channels))


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_orders_the_channels_of_a_network(name: str) -> None:
    images = example("dense", 8)
    compressor = Compressor(network("dense"), images[:1], images, name)
    for group in compressor.structure.groups:
        if not group.protected:
            assert sorted(compressor._order[group.name]) == list(range(group.channels))


@pytest.mark.parametrize("name", NEED_IMAGES)
def test_criteria_that_need_images_say_so(name: str) -> None:
    for images in (None, example("vgg", 4)[:0]):
        with pytest.raises(InputError, match=r"need.* calibration examples.*l1") as caught:
            Compressor(network("vgg"), example("vgg"), images, name)
        assert "\n" not in str(caught.value)


def test_users_bring_criteria_of_their_own() -> None:
    def last_first(
        model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor | None, seed: int
    ) -> dict[str, Array]:
        return {group.name: np.arange(group.channels, dtype=float) for group in groups}

    compressor = Compressor(network("vgg"), example("vgg"), criterion=last_first)
    built: Any = compressor.build(Policy({"channels:fc1": 3}))
    model: Any = compressor.model
    assert torch.equal(built.fc1.weight, model.fc1.weight[7:])


@pytest.mark.parametrize(
    "wrong", [{}, {"features.0.0": np.zeros(3)}, {"features.0.0": np.full(8, np.nan)}]
)
def test_criteria_must_score_every_channel(wrong: dict[str, Array]) -> None:
    with pytest.raises(InputError, match=r"8 finite scores for group 'features\.0\.0'") as caught:
        Compressor(network("vgg"), example("vgg"), criterion=lambda *_: wrong)
    assert "\n" not in str(caught.value)


def detector(seed: int = 0) -> tuple[nn.Module, Detection, Tensor]:
    """A small detector whose outputs are sure of some boxes, its task, and images."""
    small = {"num_classes": 2, "widths": [8] * 5, "blocks": [1] * 4, "neck": 8}
    model = build_model("fcos_resnet", small, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.4, generator=generator)
        for name in ("head8", "head16", "head32"):
            predict: Any = model.get_submodule(f"{name}.2")
            predict.weight.normal_(0, 0.3, generator=generator)
            predict.bias[:2] = -1.0
    images = torch.rand(2 * BATCH, 3, 64, 96, generator=generator)
    return model, Detection(2, (64, 96), (8, 16, 32)), images


def test_taylor_of_a_detector_is_the_slope_of_the_loss_of_its_own_boxes() -> None:
    """A gate's slope is that of scaling the weights behind it: weights times their slopes."""
    model, task, images = detector()
    compressor = Compressor(model, images[:1], task=task)
    group = next(g for g in compressor.structure.groups if g.name == "stage8.0.conv1")
    found = taylor_importance(compressor.model, [group], images, 0, task)[group.name]
    (reader,) = [member.module for member in group.members if member.axis == "in"]
    weight = compressor.model.get_submodule(reader).get_parameter("weight").requires_grad_(True)
    expected = np.zeros(group.channels)
    for batch in images.split(BATCH):
        raw = compressor.model(batch)
        own = own_boxes(task, raw)
        assert (own[..., 4] >= 0).sum() > BATCH
        (slope,) = torch.autograd.grad(detector_loss(task, raw, own), [weight])
        expected += (slope * weight).sum((0, 2, 3)).detach().numpy() ** 2 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.max())
    assert len(set(expected)) == group.channels


def own_boxes(task: Detection, raw: Tensor) -> Tensor:
    """(n, 100, 6) boxes of the detections that are sure, one by one."""
    boxes = torch.zeros(len(raw), 100, 6)
    boxes[..., 4] = -1
    for image, rows in enumerate(task.answers(raw).tolist()):
        for place, (*edges, score, kind) in enumerate(rows):
            if kind >= 0 and score >= 0.3:
                boxes[image, place] = torch.tensor([*edges, kind, 0])
    return boxes
