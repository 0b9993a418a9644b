"""Cutting channels: what a smaller network must compute, and slow code that cuts one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import (
    NETWORKS,
    NORMS,
    Lambda,
    cat_zeros,
    example,
    flatten,
    network,
    pad_zeros,
    shared_compressor,
)
from torch import Tensor, nn

from automl_compress.compress import Compressor, Structure
from automl_compress.compress.attention import HeadProduct
from automl_compress.compress.channel_maps import ZERO, ChannelMap, replace_channel_maps
from automl_compress.compress.modules import find_part, own_copy
from automl_compress.compress.places import kept_places
from automl_compress.compress.slicing import cut_channels, cut_module
from automl_compress.space import Policy

MIXED = {
    **{name: {"patch"} for name in ("patch-mixer", "tokens", "root-mean-square", "transformer")},
    **{"attention": {"stem.0"}, "outputs": {"stem.1.0"}},
    **{"non-local": {"2.value"}, "position-attention": {"2.query"}},
}
"""Groups whose channels pass a norm, a mean or a product over channels: it changes with a cut."""


def random_kept(structure: Structure, rng: np.random.Generator, skip: set[str]) -> dict[str, Any]:
    return {
        group.name: np.sort(
            rng.permutation(group.channels)[: int(rng.integers(1, group.channels + 1))]
        )
        for group in structure.groups
        if not group.protected and group.name not in skip
    }


def blind(model: nn.Module, structure: Structure, kept: dict[str, Any]) -> nn.Module:
    """The uncut network in which no layer reads the channels that are not kept."""
    result = own_copy(model)
    for group in structure.groups:
        for member in group.members if group.name in kept else ():
            part: Any = find_part(result, member.module)
            if isinstance(part, HeadProduct):
                part.read = torch.from_numpy(kept[group.name])
            for place, channel in zip(member.positions, member.channels, strict=True):
                if channel in kept[group.name] or member.axis == "out":
                    continue
                if isinstance(part, ChannelMap):
                    part.sources[part.sources == int(place)] = ZERO
                elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                    part.weight[:, int(place)] = 0
                elif isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d):
                    part.weight[int(place)] = 0
    return result


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_cutting_all_groups_at_once_equals_not_reading_them(name: str, seed: int) -> None:
    compressor = shared_compressor(name)
    model, structure = compressor.model, compressor.structure
    kept = random_kept(structure, np.random.default_rng(seed), MIXED.get(name, set()))
    inputs = example(name, 4)
    with torch.no_grad():
        cut = cut_channels(model, kept_places(model, structure.groups, kept))
        expected = flatten(blind(model, structure, kept)(inputs))
        for one, other in zip(flatten(cut(inputs)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "vgg", "mobile", "dense", "squeeze-excite", "signal"])
def test_channels_that_are_zero_are_removed_first_and_without_loss(name: str) -> None:
    compressor = shared_compressor(name)
    model, structure = own_copy(compressor.model), compressor.structure
    dead = {}
    for group in structure.groups:
        if group.protected or any(
            isinstance(find_part(model, member.module), ChannelMap) for member in group.members
        ):
            continue
        dead[group.name] = np.arange(0, group.channels, 2)[: group.channels - 1]
        for member in group.members:
            silence(find_part(model, member.module), member, dead[group.name])
    assert dead
    policy = Policy(
        {f"channels:{n}": structure.group(n).channels - len(d) for n, d in dead.items()}
    )
    inputs = example(name, 4)
    built = Compressor(model, inputs[:1]).build(policy)
    with torch.no_grad():
        torch.testing.assert_close(built(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def silence(part: Any, member: Any, dead: Any) -> None:
    for place, channel in zip(member.positions, member.channels, strict=True):
        if channel not in dead or not isinstance(part, nn.Module) or not list(part.parameters()):
            continue
        if member.axis == "in" and not isinstance(part, NORMS):
            part.weight[:, place] = 0
        elif member.axis == "out":
            for parameter in part.parameters():
                parameter[place] = 0


def naive(weight: Tensor, out: list[int], inputs: list[int]) -> Tensor:
    rows = [torch.stack([weight[o, i] for i in inputs]) for o in out]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(5, 6, 3, padding=1), (2, 5, 7, 7)),
        (nn.Conv2d(5, 6, (1, 3), stride=2, bias=False), (2, 5, 7, 7)),
        (nn.Conv1d(5, 6, 3, dilation=2), (2, 5, 9)),
        (nn.Conv3d(5, 6, 2), (2, 5, 4, 4, 4)),
        (nn.ConvTranspose1d(5, 6, 4, 2, 1), (2, 5, 7)),
        (nn.ConvTranspose2d(5, 6, (2, 3), stride=2, bias=False), (2, 5, 4, 4)),
        (nn.Linear(5, 6), (2, 5)),
        (nn.Linear(5, 6, bias=False), (2, 4, 5)),
    ],
)  # fmt: skip
def test_cut_layers_equal_those_cut_one_by_one(module: Any, shape: tuple[int, ...]) -> None:
    out, inputs = [0, 2, 5], [1, 4]
    before = copy.deepcopy(module.state_dict())
    cut: Any = cut_module(module, torch.tensor(out), torch.tensor(inputs))
    swapped = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
    weights = naive(module.weight.transpose(0, 1) if swapped else module.weight, out, inputs)
    assert torch.equal(cut.weight, weights.transpose(0, 1) if swapped else weights)
    if module.bias is not None:
        assert cut.bias.tolist() == [module.bias[o].item() for o in out]
    axis = -1 if isinstance(module, nn.Linear) else 1
    x = torch.randn(shape)
    unread = x.clone()
    unread.movedim(axis, 0)[[0, 2, 3]] = 0
    got = cut(x.index_select(axis, torch.tensor(inputs)))
    torch.testing.assert_close(got, module(unread).index_select(axis, torch.tensor(out)))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert str(type(module).__name__) in repr(cut)
    assert ("2, 3" in repr(cut)) or ("in_features=2, out_features=3" in repr(cut))


def test_a_cut_depthwise_layer_keeps_its_channels_apart() -> None:
    module = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(1, 4, 5, 5)
    for kept in ([0, 3], [2]):
        stays = torch.tensor(kept)
        cut = cut_module(module, stays, stays)
        assert cut.groups == cut.in_channels == cut.out_channels == len(kept)
        torch.testing.assert_close(cut(x[:, kept]), module(x)[:, kept])


@pytest.mark.parametrize(
    "module", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.PReLU(4),
               nn.BatchNorm2d(4, track_running_stats=False)],
)  # fmt: skip
def test_cut_features_stand_alone(module: nn.Module) -> None:
    module.eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5
    x = torch.randn(3, 4, 5, 5)
    cut = cut_module(module, torch.tensor([1, 3]), None)
    torch.testing.assert_close(cut(x[:, [1, 3]]), module(x)[:, [1, 3]])


@pytest.mark.parametrize("function", [pad_zeros, cat_zeros])
def test_channel_shortcuts_are_recognised_and_compute_the_same(function: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Lambda(function), nn.ReLU())
    x = torch.randn(2, 3, 9, 9)
    before = model(x)
    replace_channel_maps(model, x)
    found = model[1]
    assert isinstance(found, ChannelMap)
    assert torch.equal(model(x), before)
    inner = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(found.as_convolution()(inner), found(inner))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 * pad_zeros(x),
        lambda x: pad_zeros(x) + 1,
        lambda x: torch.cat([x, x * x], 1),
        lambda x: torch.cat([x, x.relu()], 1),
        lambda x: torch.cat([x, x.clamp(-8, 8)], 1),
        lambda x: nn.functional.pixel_shuffle(x, 2),
        lambda x: pad_zeros(nn.functional.interpolate(x, scale_factor=4)),
        lambda x: pad_zeros(nn.functional.avg_pool2d(x, 3, 1, 1)),
        lambda x: pad_zeros(x.flip(3)),
    ],
)
def test_other_functions_are_no_channel_shortcuts(function: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Lambda(function))
    replace_channel_maps(model, torch.randn(1, 3, 9, 9))
    assert isinstance(model[1], Lambda)


def test_cut_channel_maps_follow_both_sides() -> None:
    whole = ChannelMap(torch.tensor([ZERO, 0, 1, 2, 2, ZERO]), 3, 2)
    x = torch.randn(2, 3, 5, 5)
    for kept_in in ([0, 2], [1], [0, 1, 2]):
        for kept_out in ([0, 1, 4], [2], [0, 5]):
            cut = whole.cut(torch.tensor(kept_out), torch.tensor(kept_in))
            unread = x.clone()
            unread[:, [c for c in range(3) if c not in kept_in]] = 0
            assert torch.equal(cut(x[:, kept_in]), whole(unread)[:, kept_out])


def test_layers_under_two_names_change_under_both() -> None:
    compressor = Compressor(network("aliased"), example("aliased"))
    policy = Policy({"channels:second": 3, "weight_bits:first": 2, "weight_bits:second": 3})
    built: Any = compressor.build(policy)
    assert built.same is built.second is built.order[2]
    assert built.order[0].weight_bits == 2
    assert built.second.out_channels == 3
    assert torch.isfinite(built(example("aliased"))).all()


def test_whole_groups_of_a_grouped_convolution_go() -> None:
    layer = nn.Conv2d(6, 12, 3, padding=1, groups=3)
    cut: Any = cut_module(layer, torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), None)
    assert (cut.groups, cut.in_channels, cut.out_channels) == (2, 4, 8)
    x = torch.randn(2, 6, 5, 5)
    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    torch.testing.assert_close(cut(x[:, [0, 1, 4, 5]]), layer(x)[:, kept])


def test_whole_groups_of_a_group_normalization_go() -> None:
    norm = nn.GroupNorm(3, 6)
    norm.weight.data = torch.rand(6)
    cut: Any = cut_module(norm, torch.tensor([0, 1, 4, 5]), None)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(cut(x[:, [0, 1, 4, 5]]), norm(x)[:, [0, 1, 4, 5]])
