"""From a network and rules to genes, and what a space leaves out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from compress_networks import NETWORKS, example, network, shared_compressor
from torch import nn

from automl_compress.compress import Compressor, derive_space, gene_features
from automl_compress.compress.features import FEATURES
from automl_compress.errors import SpaceError, TraceError
from automl_compress.space import ChannelRule, Override, SpaceRules


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_and_layer_has_a_gene_or_a_reason(name: str) -> None:
    structure = shared_compressor(name).structure
    derived = derive_space(network(name), example(name))
    genes = {gene.name for gene in derived.space}
    skipped = dict(derived.coverage.skipped)
    assert len(skipped) == len(derived.coverage.skipped)
    for group in structure.groups:
        assert (f"channels:{group.name}" in genes) != (f"channels:{group.name}" in skipped)
    for layer in structure.layers:
        assert (f"weight_bits:{layer.name}" in genes) != (f"weight_bits:{layer.name}" in skipped)
    assert all(skipped.values())
    assert derived.coverage.groups == sum(gene.kind == "channels" for gene in derived.space)
    assert derived.coverage.layers == sum(gene.kind == "weight_bits" for gene in derived.space)


def test_genes_come_in_the_network_s_order() -> None:
    rules = SpaceRules(activation_bits=(4, 8))
    space = derive_space(network("vgg"), example("vgg"), rules).space
    assert [gene.name for gene in space] == [
        "channels:features.0.0", "weight_bits:features.0.0", "activation_bits:features.0.0",
        "channels:features.2.0", "weight_bits:features.2.0", "activation_bits:features.2.0",
        "channels:fc1", "weight_bits:fc1", "activation_bits:fc1",
        "weight_bits:fc2", "activation_bits:fc2",
    ]  # fmt: skip


def test_protected_layers_get_no_gene() -> None:
    rules = SpaceRules(protect=("features.*",))
    derived = derive_space(network("vgg"), example("vgg"), rules)
    assert [gene.name for gene in derived.space] == [
        "channels:fc1",
        "weight_bits:fc1",
        "weight_bits:fc2",
    ]
    skipped = dict(derived.coverage.skipped)
    assert skipped["channels:features.0.0"] == "protected by the rules"
    assert skipped["weight_bits:features.2.0"] == "protected by the rules"


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # PyTorch 2.11
def test_a_network_whose_layers_are_no_modules_is_refused() -> None:
    rewritten = torch.export.export(network("vgg"), (example("vgg"),)).module()
    with pytest.raises(TraceError, match="as it was before it was exported"):
        derive_space(rewritten, example("vgg"))


def test_one_protected_writer_protects_the_whole_group() -> None:
    rules = SpaceRules(protect=("layer1.0.conv2",))
    derived = derive_space(network("resnet8"), example("resnet8"), rules)
    assert "channels:conv1" not in {gene.name for gene in derived.space}
    assert "channels:layer1.0.conv1" in {gene.name for gene in derived.space}


def test_overrides_replace_what_they_name() -> None:
    rules = SpaceRules(
        overrides=(
            Override("fc*", weight_bits=(8,), activation_bits=(6,)),
            Override("features.2.0", channels=ChannelRule((0.5, 1.0), 4)),
            Override("fc2", weight_bits=()),
        )
    )
    derived = derive_space(network("vgg"), example("vgg"), rules)
    genes = {gene.name: gene.values for gene in derived.space}
    assert genes["weight_bits:fc1"] == (8,)
    assert genes["activation_bits:fc1"] == (6,)
    assert genes["channels:features.2.0"] == (8, 12)
    assert genes["channels:features.0.0"] == (2, 3, 4, 5, 6, 7, 8)
    assert "weight_bits:fc2" not in genes
    assert "activation_bits:features.0.0" not in genes


@pytest.mark.parametrize("round_to", [1, 2, 4, 8])
def test_counts_are_multiples_and_end_with_all_channels(round_to: int) -> None:
    rules = SpaceRules(ChannelRule(round_to=round_to))
    derived = derive_space(network("mobile"), example("mobile"), rules)
    structure = shared_compressor("mobile").structure
    seen = 0
    for gene in derived.space:
        if gene.kind == "channels":
            whole = structure.group(gene.target).channels  # type: ignore[union-attr]
            assert gene.values[-1] == whole
            assert all(value % round_to == 0 for value in gene.values[:-1])
            seen += 1
    assert seen + sum(n.startswith("channels:") for n, _ in derived.coverage.skipped) == 5


def test_groups_with_no_other_count_are_skipped() -> None:
    derived = derive_space(network("vgg"), example("vgg"), SpaceRules(ChannelRule(round_to=16)))
    assert (
        dict(derived.coverage.skipped)["channels:fc1"] == "the rules offer no other channel count"
    )


def test_patterns_must_match() -> None:
    with pytest.raises(SpaceError, match=re.escape("'conv9'")):
        derive_space(network("vgg"), example("vgg"), SpaceRules(protect=("conv9",)))


def test_nothing_to_compress_is_an_error() -> None:
    with pytest.raises(TraceError, match="something to compress") as caught:
        derive_space(network("vgg"), example("vgg"), SpaceRules(protect=("*",)))
    assert "\n" not in str(caught.value)
    with pytest.raises(TraceError, match="something to compress"):
        derive_space(nn.Sequential(nn.ReLU()), torch.zeros(1, 3))


def test_coverage_counts_every_parameter() -> None:
    model = network("vgg")
    rules = SpaceRules(ChannelRule(()), overrides=(Override("fc*", weight_bits=()),))
    coverage = derive_space(model, example("vgg"), rules).coverage
    total = sum(parameter.numel() for parameter in model.parameters())
    inside = 3 * 8 * 9 + 8 * 12 * 9
    assert coverage.parameters_share == pytest.approx(inside / total)
    macs = {"one": 3 * 8 * 9 * 256, "two": 8 * 12 * 9 * 64, "fc1": 192 * 10, "fc2": 50}
    assert coverage.macs_share == pytest.approx(
        (macs["one"] + macs["two"]) / sum(macs.values())
    )  # fmt: skip
    assert (coverage.groups, coverage.layers) == (0, 2)
    everything = derive_space(model, example("vgg")).coverage
    assert everything.parameters_share == everything.macs_share == 1.0


def test_coverage_admits_what_no_gene_can_change() -> None:
    coverage = derive_space(network("windows"), example("windows")).coverage
    reasons = dict(coverage.skipped)
    assert reasons["channels:qkv"]
    assert reasons["bias"] == "neither a layer that runs nor a normalization"
    assert 0.4 < coverage.parameters_share < 1
    assert coverage.macs_share < 1
    decoder = derive_space(network("decoder"), example("decoder")).coverage
    assert ("weight_bits:2", "a ConvTranspose2d cannot be quantized") in decoder.skipped
    plain = coverage.to_dict()
    assert plain["skipped"][0] == {
        "name": coverage.skipped[0][0],
        "reason": coverage.skipped[0][1],
    }


def test_features_describe_every_gene() -> None:
    compressor = Compressor(network("resnet8"), example("resnet8"))
    space = derive_space(network("resnet8"), example("resnet8")).space
    table = gene_features(space, compressor.structure, compressor.cost)
    assert table.shape == (len(space), len(FEATURES))
    assert np.isfinite(table).all()
    assert (table >= 0).all()
    assert (table <= 1).all()
    kinds = [FEATURES[int(row[:4].argmax())] for row in table]
    assert kinds == [gene.kind for gene in space]
    size = FEATURES.index("size_share")
    largest = max(zip(table[:, size], space, strict=True), key=lambda pair: pair[0])[1]
    assert largest.target.startswith("layer3")
