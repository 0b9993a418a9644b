"""Single kernels set to zero: which ones, how many, and what the rest costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import (
    bounds,
    counted_bitops,
    counted_bytes,
    counted_macs,
    example,
    network,
    random_policy,
    shared_compressor,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from automl_compress.compress import REPAIRS, Compressor, Repair, derive_space, gene_features
from automl_compress.compress.cost_model import kept_kernels, packed_weight_bytes
from automl_compress.compress.features import FEATURES
from automl_compress.compress.kernel_sparsity import (
    kernel_norms,
    removed_kernels,
    signal_to_noise,
    without_kernels,
)
from automl_compress.compress.quantize import levels, quantize_weight, round_compensated
from automl_compress.compress.reconstruct import RIDGE, least_squares
from automl_compress.errors import InputError, SpaceError
from automl_compress.space import ChannelRule, Override, Policy, SpaceRules

KINDS = ["resnet8", "vgg", "mobile", "dense", "squeeze-excite", "grouped", "signal", "shared"]


def zero_kernels(layer: nn.Module) -> int:
    """Kernels of a layer without a single weight, by a loop."""
    weight: Any = layer.weight.detach().numpy()
    return sum(not kernel.any() for filters in weight for kernel in filters)


def sparse_policy(compressor: Compressor, seed: int, bits: bool = True) -> Policy:
    """A random policy with a share of kernels for two convolutions of three, and the first."""
    rng = np.random.default_rng(seed)
    genes = dict(random_policy(compressor.structure, rng, activations=bits))
    if not bits:
        genes = {name: value for name, value in genes.items() if name.startswith("channels:")}
    for layer in compressor.structure.layers:
        if layer.convolution and rng.random() < 0.7:
            genes[f"kernel_sparsity:{layer.name}"] = float(rng.choice([0, 0.25, 0.5, 0.9, 0.999]))
    first = next(layer.name for layer in compressor.structure.layers if layer.convolution)
    return Policy({f"kernel_sparsity:{first}": 0.25} | genes)


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_share_is_met_within_half_a_kernel(kernels: int, share: float) -> None:
    kept = kept_kernels(kernels, share)
    assert 1 <= kept <= kernels
    assert kept == 1 or abs((kernels - kept) - share * kernels) <= 0.5 + 1e-9


@given(
    st.integers(1, 400), st.sampled_from([1, 9, 49]), st.sampled_from([2, 3, 8, 32]),
    st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_bytes_never_rise_when_kernels_go(
    kernels: int, kernel: int, bits: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    few, many = (kept_kernels(kernels, share) for share in (high, low))
    assert few <= many
    sizes = [packed_weight_bytes(kernels, kept, kernel, bits) for kept in (few, many)]
    assert sizes[0] <= sizes[1] <= math.ceil(kernels * kernel * bits / 8)
    assert kept_kernels(kernels + 1, low) >= many
    assert (
        packed_weight_bytes(kernels + 1, kept_kernels(kernels + 1, low), kernel, bits) >= sizes[1]
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_costs_are_those_of_the_kernels_that_stay(name: str, seed: int) -> None:
    inputs = example(name)
    compressor = shared_compressor(name, 8, "none")
    policy = sparse_policy(compressor, seed)
    built = compressor.build(policy)
    positions: dict[str, int] = {}

    def hook(layer_name: str) -> Any:
        def count(module: nn.Module, _: Any, output: Tensor) -> None:
            positions[layer_name] = positions.get(layer_name, 0) + output[0, 0].numel()

        return count

    expected = {
        "macs": counted_macs(built, inputs),
        "params": sum(parameter.numel() for parameter in built.parameters()),
        "size_bytes": counted_bytes(built),
        "bitops": counted_bitops(built, inputs),
    }
    shares = policy.of_kind("kernel_sparsity")
    for layer_name in shares:
        built.get_submodule(layer_name).register_forward_hook(hook(layer_name))
    built(inputs)
    for layer_name, share in shares.items():
        layer: Any = built.get_submodule(layer_name)
        outputs, reads, *sides = layer.weight.shape
        gone = min(round(outputs * reads * share), outputs * reads - 1)
        lost = gone * math.prod(sides)
        bits = getattr(layer, "weight_bits", None) or 32
        quantizer = getattr(layer, "input_quantizer", None)
        dense = math.ceil(layer.weight.numel() * bits / 8)
        sparse = math.ceil(outputs * reads / 8) + math.ceil(
            (layer.weight.numel() - lost) * bits / 8
        )
        expected["params"] -= lost
        expected["size_bytes"] -= dense - min(dense, sparse)
        expected["macs"] -= lost * positions[layer_name]
        expected["bitops"] -= (
            lost * positions[layer_name] * bits * (32 if quantizer is None else quantizer.bits)
        )
    assert compressor.cost(policy) == expected
    assert shares


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bits", [False, True])
def test_as_many_kernels_are_zero_as_the_gene_says(name: str, bits: bool) -> None:
    compressor = shared_compressor(name, 12)
    for seed in range(3):
        policy = sparse_policy(compressor, seed, bits)
        built = compressor.build(policy)
        for layer_name, share in policy.of_kind("kernel_sparsity").items():
            layer: Any = built.get_submodule(layer_name)
            kernels = layer.weight.shape[0] * layer.weight.shape[1]
            gone = kernels - kept_kernels(kernels, share)
            few_bits = policy.get(f"weight_bits:{layer_name}", 32) < 8
            # Rounding to few bits may make further kernels vanish.
            assert zero_kernels(layer) >= gone if few_bits else zero_kernels(layer) == gone


def test_the_smallest_kernels_go() -> None:
    compressor = Compressor(network("vgg"), example("vgg"))
    model: Any = compressor.model
    policy = Policy({"kernel_sparsity:features.2.0": 0.5, "channels:features.0.0": 6})
    layer: Any = compressor.build(policy).get_submodule("features.2.0")
    whole: Any = model.get_submodule("features.2.0").weight
    kept = torch.from_numpy(np.sort(compressor._order["features.0.0"][:6]))
    norms = whole[:, kept].pow(2).sum(dim=(2, 3)).sqrt()
    assert torch.equal(layer.weight.abs().sum(dim=(2, 3)) > 0, norms > norms.median())


def test_a_share_of_nothing_changes_nothing() -> None:
    images = example("vgg", 12)
    compressor = Compressor(network("vgg"), images[:1], images)
    genes = {"weight_bits:features.2.0": 3, "channels:features.0.0": 5}
    plain = compressor.build(Policy(genes))
    thinned = compressor.build(Policy({**genes, "kernel_sparsity:features.2.0": 0.0}))
    assert torch.equal(plain(images), thinned(images))


def system(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (2, 5, 12), their free places, correlated inputs (2, count, 12), and outputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, 12, generator=generator)
    free = torch.rand(2, 5, 12, generator=generator) < 0.6
    free[0, 0] = False
    mixed = torch.randn(2, 12, 12, generator=generator)
    inputs = torch.randn(2, count, 12, generator=generator) @ mixed
    return weight * free, free, inputs, torch.randn(2, count, 5, generator=generator)


@pytest.mark.parametrize("count", [200, 8])
def test_free_weights_are_the_least_squares_solution(count: int) -> None:
    weight, free, inputs, outputs = system(count)
    fitted, moment = least_squares(weight, inputs, outputs, free)
    assert (moment is None) == (count < 12)
    for group in range(2):
        ridge = RIDGE * float(inputs[group].pow(2).mean())
        for row in range(5):
            places = free[group, row].nonzero()[:, 0]
            read = inputs[group][:, places].double().numpy()
            start = weight[group, row, places].double().numpy()
            missing = outputs[group, :, row].double().numpy() - read @ start
            matrix = read.T @ read / count + ridge * np.eye(len(places))
            expected = np.zeros(12)
            expected[places] = start + np.linalg.solve(matrix, read.T @ missing / count)
            np.testing.assert_allclose(fitted[group, row].numpy(), expected, atol=1e-3)


def test_compensation_passes_on_what_removed_weights_would_take() -> None:
    weight, free, inputs, _ = system(200)
    moment = inputs.transpose(1, 2) @ inputs / 200
    scales = weight.abs().amax(dim=2).clamp(min=1e-12) / levels(4)
    rounded = round_compensated(weight, scales, bounds(scales, 4), moment, free)
    assert (rounded[~free] == 0).all()
    codes = rounded / scales[:, :, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    afterwards = torch.where(
        free, round_compensated(weight, scales, bounds(scales, 4), moment), 0.0
    )
    alone = quantize_weight(weight.flatten(0, 1), scales.flatten(), 4).reshape(weight.shape)

    def error(changed: Tensor) -> float:
        return float((inputs @ (changed - weight).transpose(1, 2)).pow(2).sum())

    assert error(rounded) < error(alone)
    assert error(rounded) < error(afterwards)
    everything = torch.ones_like(free)
    plain = round_compensated(weight, scales, bounds(scales, 4), moment)
    assert torch.equal(
        round_compensated(weight, scales, bounds(scales, 4), moment, everything), plain
    )


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("name", ["resnet8", "grouped"])
def test_removed_kernels_survive_every_repair(name: str, repair: Repair) -> None:
    images = example(name, 12)
    compressor = Compressor(network(name), images[:1], images, repair=repair)
    plain = shared_compressor(name, 12, "none")
    policy = sparse_policy(compressor, 1, bits=False)
    genes = {f"weight_bits:{layer}": 8 for layer in policy.of_kind("kernel_sparsity")}
    for used in (policy, Policy({**policy, **genes})):
        built, masked = compressor.build(used), plain.build(policy)
        for layer_name in policy.of_kind("kernel_sparsity"):
            layers: Any = [n.get_submodule(layer_name) for n in (built, masked)]
            present = [layer.weight.flatten(2).abs().sum(dim=2) > 0 for layer in layers]
            assert not (present[0] & ~present[1]).any()  # small kernels may round to zero


def test_reconstruction_helps_thinned_layers() -> None:
    images = example("resnet8", 60)
    policy = Policy({"kernel_sparsity:layer1.0.conv2": 0.5, "kernel_sparsity:layer2.0.conv1": 0.5})
    model = network("resnet8")
    distances = []
    for repair in ("none", "reconstruct"):
        built = Compressor(model, images[:1], images, repair=repair).build(policy)
        with torch.no_grad():
            distances.append(float((built(images) - model(images)).pow(2).mean()))
    assert distances[1] < 0.7 * distances[0]


def test_selection_by_hand() -> None:
    weight = torch.tensor([[3.0, 1.0], [1.0, 2.0]])[:, :, None, None].expand(2, 2, 3, 3)
    norms = kernel_norms(weight)
    torch.testing.assert_close(norms, 3 * torch.tensor([[3.0, 1.0], [1.0, 2.0]]))
    removed = removed_kernels(norms, 0.25)
    assert removed.tolist() == [[False, True], [False, False]]  # the first of equals
    assert removed_kernels(norms, 0.99).sum() == 3
    assert without_kernels(weight, removed)[0, 1].abs().max() == 0
    assert torch.equal(without_kernels(weight, removed)[1], weight[1])


def test_single_weights_are_kernels_of_one_by_one_layers() -> None:
    compressor = Compressor(network("mobile"), example("mobile"))
    built: Any = compressor.build(Policy({"kernel_sparsity:1.project": 0.5}))
    weight = built.get_submodule("1.project").weight
    assert int((weight == 0).sum()) == weight.numel() // 2


def learner() -> nn.Module:
    """Two classes told apart by channel 0; channel 1 is read strongly, and in vain."""
    layer, head = nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight[:, :, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        head.weight[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(layer, pool, head).eval().requires_grad_(False)


def test_noise_finds_what_the_decision_needs() -> None:
    images = 3 * example("vgg", 32)[:, :2]
    ratios = signal_to_noise(learner(), ["0"], images, 0)["0"]
    assert kernel_norms(learner()[0].weight).argmax() == 3  # type: ignore[index]
    assert ratios.argmax() == 0
    assert ratios[0, 0] > ratios[1, 1] + 0.5
    same, other = (signal_to_noise(learner(), ["0"], images, seed)["0"] for seed in (0, 1))
    assert torch.equal(ratios, same)
    assert not torch.equal(ratios, other)


def test_learnt_ratios_choose_among_the_kept_channels() -> None:
    images = example("vgg", 16)
    compressor = Compressor(network("vgg"), images[:1], images, kernel_criterion="variational")
    with torch.inference_mode():
        layer: Any = compressor.build(
            Policy({"kernel_sparsity:features.2.0": 0.75, "channels:features.0.0": 6})
        ).get_submodule("features.2.0")
    kept = np.sort(compressor._order["features.0.0"][:6])
    ratios = signal_to_noise(compressor.model, list(compressor._kernel_scores), images, 0)
    inside = ratios["features.2.0"][:, kept]
    smallest = inside.flatten().sort().values[-inside.numel() // 4]
    assert torch.equal(layer.weight.abs().sum(dim=(2, 3)) > 0, inside >= smallest)


def test_learnt_ratios_need_images_and_classes() -> None:
    with pytest.raises(InputError, match="needs calibration examples"):
        Compressor(network("vgg"), example("vgg"), kernel_criterion="variational")
    images = example("outputs", 4)
    with pytest.raises(InputError, match="classes along axis 1, but it is a dict"):
        Compressor(network("outputs"), images[:1], images, kernel_criterion="variational")


def test_spaces_get_a_gene_per_convolution() -> None:
    rules = SpaceRules(
        kernel_sparsity=(0, 0.5, 0.25),
        overrides=(Override("1.project", kernel_sparsity=(0.9,)),),
        protect=("2.expand.0",),
    )
    derived = derive_space(network("mobile"), example("mobile"), rules)
    genes = {g.target: g.values for g in derived.space if g.kind == "kernel_sparsity"}
    assert genes == {
        "0.0": (0.5, 0.25, 0),
        "1.expand.0": (0.5, 0.25, 0),
        "1.project": (0.9,),
        "2.project": (0.5, 0.25, 0),
        "3.0": (0.5, 0.25, 0),
    }
    skipped = dict(derived.coverage.skipped)
    assert skipped["kernel_sparsity:2.expand.0"] == "protected by the rules"
    assert skipped["kernel_sparsity:4.2"] == "a Linear has no kernels that can be removed"
    assert skipped["kernel_sparsity:1.depthwise.0"] == "each of its kernels is a whole channel"
    order = [gene.name for gene in derived.space]
    assert order.index("kernel_sparsity:1.project") == order.index("weight_bits:1.project") + 1


def test_coverage_counts_layers_that_are_only_thinned() -> None:
    rules = SpaceRules(ChannelRule(()), weight_bits=(), kernel_sparsity=(0.0, 0.5))
    coverage = derive_space(network("signal"), example("signal"), rules).coverage
    assert (coverage.groups, coverage.layers) == (0, 2)
    assert 0.5 < coverage.macs_share < 1


def test_features_know_what_thinning_saves() -> None:
    inputs = example("vgg")
    compressor = Compressor(network("vgg"), inputs)
    space = derive_space(
        network("vgg"), inputs, SpaceRules(weight_bits=(8,), kernel_sparsity=(0, 0.75))
    ).space
    table = gene_features(space, compressor.structure, compressor.cost)
    column = FEATURES.index("kernel_sparsity")
    rows = {g.name: row for g, row in zip(space, table, strict=True)}
    row = rows["kernel_sparsity:features.2.0"]
    assert row[column] == 1
    assert row[:4].sum() == 1
    whole = compressor.cost(space.largest)["macs"]
    saved = 0.75 * compressor.cost.layers(space.largest)["features.2.0"].macs
    assert row[FEATURES.index("macs_share")] == pytest.approx(saved / whole)


def test_policies_for_other_layers_are_refused() -> None:
    compressor = Compressor(network("vgg"), example("vgg"))
    with pytest.raises(SpaceError, match="'fc1' is a Linear"):
        compressor.cost(Policy({"kernel_sparsity:fc1": 0.5}))
