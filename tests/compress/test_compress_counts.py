"""Costs said in advance against counts of the network that is then built."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from compress_networks import (
    NETWORKS,
    Positions,
    counted_bitops,
    counted_bytes,
    counted_macs,
    example,
    flatten,
    network,
    random_policy,
    shared_compressor,
)

from automl_compress.compress import Compressor
from automl_compress.deploy import load_packed, save_packed
from automl_compress.space import Policy

ARCHITECTURES = pytest.mark.parametrize("name", NETWORKS)

# Groups that can be cut, and those that must not be.
GROUPS = {
    "resnet8": (6, {"linear"}),
    "vgg": (3, {"fc2"}),
    "mobile": (4, {"4.2"}),
    "dense": (4, {"head.2"}),
    "squeeze-excite": (2, {"head.2"}),
    "grouped": (2, {"head.2"}),
    "shuffle": (3, {"head.2"}),
    "chunked": (2, {"head.2"}),
    "twice": (2, {"head.2"}),
    "mlp": (2, {"5"}),
    "pad-module": (3, {"head.2"}),
    "cat-module": (3, {"head.2"}),
    "pad-function": (2, {"conv2", "head.2"}),
    "cat-function": (2, {"conv2", "head.2"}),
    "pyramid": (5, {"head.2"}),
    "shared": (2, {"head.2"}),
    "aliased": (2, {"head.2"}),
    "layer-scale": (2, {"head.2"}),
    "fixed-offset": (2, {"head.2"}),
    "patch-mixer": (3, {"head"}),
    "root-mean-square": (2, {"head"}),
    "transformer": (4, {"head"}),
    "windows": (2, {"patch", "qkv", "head"}),
    "patches": (2, {"head.2"}),
    "tokens": (2, {"head"}),
    "flattened": (3, {"fc2"}),
    "mixer": (0, {"stem.0", "mix", "head.2"}),
    "token-mixer": (2, {"stem", "tokens.2", "channels.2", "head"}),
    "channel-convolution": (1, {"stem.0", "head.2"}),
    "frozen-norm": (1, {"head.2"}),
    "grouped-norm": (2, {"head.2"}),
    "outputs": (2, {"one.2", "two"}),
    "groupnorm": (2, {"head.2"}),
    "instancenorm": (2, {"head.2"}),
    "prelu": (2, {"head.2"}),
    "channel-prelu": (2, {"head.2"}),
    "plain-batchnorm": (2, {"head.2"}),
    "attention": (1, {"gate", "head.2"}),
    "spatial-gate": (1, {"gate", "head.2"}),
    "selective": (3, {"head.2"}),
    "non-local": (2, {"4.2"}),
    "position-attention": (3, {"4.2"}),
    "scales": (2, {"head.2"}),
    "gated": (2, {"3.2"}),
    "shuffled": (3, {"4.2"}),
    "subpixel": (4, {"7.2"}),
    "unused": (1, {"head.2"}),
    "words": (1, {"fc2"}),
    "signal": (2, {"7"}),
    "volume": (2, {"9"}),
    "decoder": (4, {"7"}),
    "unet": (7, {"last"}),
    "upsampled": (2, {"3", "5"}),
    "weight-norm": (2, {"3.2"}),
    "hooked": (4, {"6.2"}),
    "standardised": (2, {"8.2"}),
    "bare": (2, {"7"}),
    "rectified-skip": (2, {"head"}),
    "captured": (3, {"head"}),
}

COMPUTED = {"weight-norm", "hooked", "standardised"}
"""Networks that compute weights from more values than these have."""


@ARCHITECTURES
def test_groups_are_cut_or_protected_with_a_reason(name: str) -> None:
    structure = shared_compressor(name).structure
    protected = {group.name for group in structure.groups if group.protected}
    assert (len(structure.groups) - len(protected), protected) == GROUPS[name]
    names = [group.name for group in structure.groups]
    assert len(set(names)) == len(names)
    assert all("\n" not in group.protected for group in structure.groups)


@pytest.mark.parametrize("name", ["pad-function", "cat-function"])
def test_zeros_of_a_fixed_number_are_named(name: str) -> None:
    group = next(g for g in shared_compressor(name).structure.groups if g.name == "conv2")
    assert group.protected == (
        "its channels are combined with a fixed number of zeros that the network's code pads"
    )


@pytest.mark.parametrize(
    ("name", "writer", "reader"),
    [("token-mixer", "stem", "tokens.0"), ("channel-convolution", "stem.0", "neighbours")],
)
def test_who_takes_channels_for_positions_is_named(name: str, writer: str, reader: str) -> None:
    group = shared_compressor(name).structure.group(writer)
    assert group is not None
    assert group.protected == f"its channels are positions to '{reader}', which mixes them"


@ARCHITECTURES
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_costs_are_those_of_the_built_network(name: str, seed: int) -> None:
    inputs = example(name)
    compressor = shared_compressor(name, 8, "none")
    policy = random_policy(
        compressor.structure, np.random.default_rng(seed), activations=name != "words"
    )
    built = compressor.build(policy)
    assert compressor.cost(policy) == {
        "macs": counted_macs(built, inputs),
        "params": sum(parameter.numel() for parameter in built.parameters()),
        "size_bytes": counted_bytes(built),
        "bitops": counted_bitops(built, inputs),
    }


@ARCHITECTURES
def test_an_empty_policy_is_the_original_network(name: str) -> None:
    original, inputs = network(name), example(name, 4)
    compressor = Compressor(original, inputs[:1], inputs)
    with torch.no_grad():
        expected = flatten(original(inputs))
        actual = flatten(compressor.build(Policy({}))(inputs))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if name == "transformer" else 0)
    cost = compressor.cost(Policy({}))
    if name not in COMPUTED:
        assert cost["params"] == sum(parameter.numel() for parameter in original.parameters())
    # PyTorch does not count the products of fused attention.
    counted = compressor.model if name == "transformer" else original
    assert cost["macs"] == counted_macs(counted, inputs)


@ARCHITECTURES
def test_no_cost_rises_when_a_gene_shrinks(name: str) -> None:
    compressor = shared_compressor(name)
    rng = np.random.default_rng(0)
    shrunk = 0
    for _ in range(20):
        policy = random_policy(compressor.structure, rng, activations=False)
        before = compressor.cost(policy)
        for gene, value in policy.items():
            lowest = 1 if gene.startswith("channels:") else 2
            if value > lowest:
                smaller = Policy({**policy, gene: int(rng.integers(lowest, value))})
                after = compressor.cost(smaller)
                assert all(after[metric] <= before[metric] for metric in before), gene
                if gene.startswith("channels:"):
                    assert after["size_bytes"] < before["size_bytes"], gene
                shrunk += 1
    assert shrunk >= 10


def test_attention_is_counted() -> None:
    compressor = Compressor(network("transformer"), example("transformer"))
    places, width = 16, 12
    counted = {
        part.name: part.channels * part.macs_per_channel for part in compressor.structure.products
    }
    assert counted == dict.fromkeys(
        ("encoder.self_attn.scores", "encoder.self_attn.mix"), places * places * width
    )
    assert compressor.structure.other_macs == 0
    windows = Compressor(network("windows"), example("windows")).structure
    assert windows.other_macs > 0
    assert not windows.products


def test_counts_do_not_depend_on_the_batch() -> None:
    one = Compressor(network("decoder"), example("decoder"))
    many = Compressor(network("decoder"), example("decoder", 3))
    assert one.cost(Policy({})) == many.cost(Policy({}))


def test_layer_costs_add_up() -> None:
    compressor = Compressor(network("resnet8"), example("resnet8"))
    policy = random_policy(compressor.structure, np.random.default_rng(1), activations=False)
    layers = compressor.cost.layers(policy)
    total = compressor.cost(policy)
    assert sum(layer.macs for layer in layers.values()) == total["macs"]
    assert sum(layer.bitops for layer in layers.values()) == total["bitops"]
    assert list(layers) == [layer.name for layer in compressor.structure.layers]


def test_a_file_holds_no_recomputed_buffers() -> None:
    model = network("mlp")
    before = Compressor(model, example("mlp")).cost(Policy({}))
    model.register_buffer("table", torch.ones(7), persistent=False)
    assert Compressor(model, example("mlp")).cost(Policy({})) == before
    model.register_buffer("index", torch.ones(7, dtype=torch.int16))
    after = Compressor(model, example("mlp")).cost(Policy({}))
    assert after["size_bytes"] - before["size_bytes"] == 14
    assert after["params"] == before["params"]


def test_a_file_holds_what_is_left_of_recomputed_buffers() -> None:
    model = Positions()
    compressor = Compressor(model, example("tokens"))
    table = model.get_buffer("table")
    whole, less, least = (
        compressor.cost(Policy({"channels:patch": n}))["size_bytes"] for n in (12, 11, 10)
    )
    built = compressor.build(Policy({"channels:patch": 11}))
    assert whole == 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert less == 4 * sum(tensor.numel() for tensor in built.state_dict().values())
    assert built.get_buffer("table").shape == (1, 17, 11)
    assert whole - less == less - least - 4 * table.numel()
    assert "table" not in model.state_dict()


def test_tensors_that_are_no_buffers_are_cut_like_recomputed_ones(tmp_path: Path) -> None:
    """A table of positions as a plain attribute, as a SimpleViT has it."""
    model, x = Positions(), example("tokens")
    plain = copy.deepcopy(model)
    del plain.table
    plain.table = model.get_buffer("table").clone()
    policy = Policy({"channels:patch": 9, "weight_bits:patch": 8})
    found, expected = Compressor(plain, x), Compressor(model, x)
    assert found.cost(policy) == expected.cost(policy)
    built = found.build(policy)
    assert torch.equal(built(x), expected.build(policy)(x))
    save_packed(built, tmp_path / "network.packed", original=plain)
    assert torch.equal(load_packed(tmp_path / "network.packed", model=plain)(x), built(x))
    assert plain.table.shape == (1, 17, 12)
    assert "table" not in plain._buffers
