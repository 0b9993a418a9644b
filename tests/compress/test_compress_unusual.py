"""Networks in unusual code: counted, cut and repaired like others, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_networks import Lambda, counted_bytes, counted_macs, lively
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import automl_compress as ac
from automl_compress.compress import Compressor, space_of_structure
from automl_compress.compress.features import gene_features
from automl_compress.space import Policy, SpaceRules

X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two convolutions and a layer; others change what happens between them."""

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(F.relu(self.first(x))))

    def close(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(F.relu(x).mean((2, 3)))
        return found


class Gain(nn.Conv2d):
    """A convolution with a factor of every output."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Masked(nn.Conv2d):
    """A convolution with a mask of its inputs."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, padding=1)
        self.register_buffer("mask", torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x * self.mask, self.weight, self.bias)


class Singly(Two):
    """Images come to the first convolution one by one, without an axis for them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(torch.stack([F.relu(self.first(image)) for image in x])))


class Mapped(Two):
    """The same by `torch.vmap`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(torch.vmap(lambda image: F.relu(self.first(image)))(x)))


class Table(Two):
    """Layers make a table of places, once for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        self.register_buffer("grid", torch.rand(8, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.places(self.grid).mean()


class Placed(Two):
    """With a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(F.relu(self.norm(self.first(x)))))


class Named(Placed):
    """Modules are called by the names of their arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(F.relu(self.norm(input=self.first(input=x)))))


class WhenAlike(Two):
    """A sum that is left out where widths differ, as a shortcut may be."""

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        second = self.second(first)
        return self.close(second + first if first.shape == second.shape else second)


class WhenEven(Two):
    """Even widths are treated in another way."""

    def forward(self, x: Tensor) -> Tensor:
        second = self.second(F.relu(self.first(x)))
        return self.close(second if second.shape[1] % 2 else second * 2)


class Halves(Two):
    """One half of the channels passes by; where it begins is computed, or stands in the code."""

    def __init__(self, place: int | None = None) -> None:
        super().__init__()
        self.place = [place]

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        place = self.place[0] or first.shape[1] // 2
        return self.close(self.second(torch.cat([first[:, place:] * 2, first[:, :place]], 1)))


class Joined(Two):
    """Two layers' outputs are joined and added to another's, as reductions of NASNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 3, padding=1)
        self.right = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        return self.close(self.second(F.relu(self.first(x) + joined)))


class TwoScales(nn.Conv2d):
    """A convolution of two maps in one, as octave convolutions are written."""

    def forward(self, x: Tensor) -> Any:
        fine = F.conv2d(x, self.weight[:5], padding=1)
        return fine, F.conv2d(F.avg_pool2d(x, 2), self.weight[5:], padding=1)


class Octaves(Two):
    """With such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = TwoScales(16, 8, 3, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.scales(self.second(F.relu(self.first(x))))
        return self.close(torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1))


class Order(Two):
    """Places of a map come in an order that is a parameter of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(8).flip(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.second(F.relu(self.first(x))[..., self.order]))


class Tempered(Two):
    """A parameter of a single number, beside a number that may be a width."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x)) * self.temperature
        return self.close(self.second(first.reshape(len(x), self.width, *x.shape[2:])))


class Remembering(Two):
    """What it computed is kept, a number at first and then a tensor."""

    def keep(self, what: Any) -> None:
        self.kept: Any = what

    def forward(self, x: Tensor) -> Tensor:
        self.keep(0.0)
        first = F.relu(self.first(x))
        self.keep(self.kept + first.detach())
        return self.close(self.second(first))


class Dead(Placed):
    """A branch that gives nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(8, 8, 1, bias=False)
        nn.init.zeros_(self.branch.weight)
        self.branch_norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.branch_norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.first(x)))
        return self.close(self.second(first + self.branch_norm(self.branch(first))))


def protected(model: nn.Module) -> dict[str, str]:
    groups = Compressor(lively(model).eval(), X).structure.groups
    return {group.name: group.protected for group in groups if group.name != "last"}


@pytest.mark.parametrize("kind", [Gain, Masked])
def test_tensors_that_layers_hold_beside_weights_are_counted(kind: type[nn.Module]) -> None:
    model = Two(kind())
    whole = ac.cost(model, Policy({}), X)
    assert whole["params"] == sum(p.numel() for p in model.parameters())
    assert whole["size_bytes"] == 4 * sum(t.numel() for t in model.state_dict().values())
    policy = Policy({"channels:second": 9, "weight_bits:second": 4})
    cut = ac.compress(model, policy, X)
    assert ac.cost(model, policy, X)["params"] == sum(p.numel() for p in cut.parameters())
    assert ac.cost(model, policy, X)["size_bytes"] == counted_bytes(cut)


def _offsets(x: Tensor, weight: Tensor) -> Tensor:
    return deform_conv2d(x, torch.zeros(len(x), 18, 8, 8), weight, padding=1)


PRODUCTS: dict[str, tuple[Any, int]] = {
    "mv": (lambda m, x: x.flatten(1) @ m.vector, 192),
    "dot": (lambda m, x: x[0].flatten().dot(m.vector).reshape(1), 192),
    "bilinear": (lambda m, x: m.pair(x[:, 0], x[:, 1]), 8 * 8 * 8 * 4),
    "recurrent": (lambda m, x: m.steps(x[:, 0])[0], 2 * 8 * 4 * 5 * (8 + 5)),
    "deformed": (lambda m, x: _offsets(x, m.kernels), 64 * 27 * 6),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_pytorch_does_not_register_are_counted(name: str) -> None:
    """Beside a layer, without which a network is none."""
    run, macs = PRODUCTS[name]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Parameter(torch.randn(192))
            self.pair = nn.Bilinear(8, 8, 4)
            self.steps = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
            self.kernels = nn.Parameter(torch.randn(6, 3, 3, 3))
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x), run(self, x)

    assert ac.cost(Model(), Policy({}), X)["macs"] == macs + 3 * 4 * 64


@pytest.mark.parametrize("kind", [Singly, Mapped])
def test_convolutions_of_single_images(kind: type[nn.Module]) -> None:
    model, cut = kind().eval(), "first" if kind is Singly else "second"
    policy = Policy({f"channels:{cut}": 3, "weight_bits:first": 8})
    plain = Two().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert ac.cost(model, policy, X) == ac.cost(plain, policy, X)
    found, expected = (
        Compressor(network, X, x, repair="recalibrate").build(policy) for network in (model, plain)
    )
    torch.testing.assert_close(found(x), expected(x))
    Compressor(model, X, x, repair="layerwise").build(policy)


def test_what_runs_once_counts_once_whatever_the_batch() -> None:
    model = Table()
    macs = [ac.cost(model, Policy({}), X.expand(n, -1, -1, -1))["macs"] for n in (1, 5)]
    assert macs[0] == macs[1] == counted_macs(Two(), X) + 64 * (2 * 8 + 8)


@pytest.mark.parametrize("repair", ["auto", "layerwise"])
def test_norms_called_by_name_are_renewed(repair: Any) -> None:
    placed, named = lively(Placed()).eval(), Named().eval()
    named.load_state_dict(placed.state_dict())
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    policy = Policy({"channels:first": 5, "weight_bits:second": 2})
    expected, found = (
        Compressor(model, X, x, repair=repair).build(policy) for model in (placed, named)
    )
    assert torch.equal(found(x), expected(x))
    assert not torch.equal(found.norm.running_mean, named.norm.running_mean[:5])  # type: ignore[union-attr, index]


@pytest.mark.parametrize("kind", [WhenAlike, WhenEven])
def test_code_that_asks_for_widths_protects_them(kind: type[nn.Module]) -> None:
    assert protected(Two()) == {"first": "", "second": ""}
    found = protected(kind())
    assert found["first"] == ""
    assert "read in a way that is not understood" in found["second"]


def test_parameters_may_be_single_numbers() -> None:
    assert protected(Tempered()) == {"first": "", "second": ""}


def test_what_a_network_kept_may_be_a_number_again() -> None:
    model = Remembering()
    model(X)
    assert protected(model) == {"first": "", "second": ""}


def test_statistics_of_dead_layers_hide_no_cut() -> None:
    """Their variance fell to 0, as sparsity training and weight decay make it."""
    groups = Compressor(Dead().eval(), X).structure.groups
    assert [group.name for group in groups if group.protected] == ["last"]


def test_halves_of_channels_are_cut_alike() -> None:
    model = lively(Halves()).eval().requires_grad_(False)
    compressor = Compressor(model, X)
    assert {g.name: g.channels for g in compressor.structure.groups if not g.protected} == {
        "first": 4,
        "second": 16,
    }
    kept = compressor.order["first"][:3]
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for gone in set(range(4)) - set(kept.tolist()):
        model.second.weight[:, [gone, gone + 4]] = 0
    torch.testing.assert_close(compressor.build(Policy({"channels:first": 3}))(x), model(x))


def test_layers_may_give_several_maps() -> None:
    model = lively(Octaves()).eval()
    compressor = Compressor(model, X)
    assert {g.name for g in compressor.structure.groups if not g.protected} == {"first"}
    policy = Policy({"channels:first": 3, "weight_bits:second": 4})
    built = compressor.build(policy)
    for network, genes in ((model, Policy({})), (built, policy)):
        costs = compressor.cost(genes)
        assert costs["params"] == sum(p.numel() for p in network.parameters())
        assert costs["macs"] == counted_macs(network, X)


def test_parts_of_a_layer_are_cut_apart() -> None:
    model = lively(Joined()).eval().requires_grad_(False)
    compressor = Compressor(model, X)
    derived = space_of_structure(compressor.model, compressor.structure, SpaceRules())
    assert {"channels:first", "channels:first#2"} <= {gene.name for gene in derived.space}
    features = gene_features(derived.space, compressor.structure, compressor.cost)
    assert features.shape[0] == len(derived.space)
    policy = Policy({"channels:first": 3, "channels:first#2": 2})
    kept = compressor.kept_channels(policy)
    gone = [*set(range(5)) - {*kept["first"]}, *(5 + n for n in {0, 1, 2} - {*kept["first#2"]})]
    model.second.weight[:, gone] = 0
    cut = compressor.build(policy)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cut(x), model(x))
    assert compressor.cost(policy)["macs"] == counted_macs(cut, X)


def test_a_width_that_code_writes_down_is_named() -> None:
    """As `x.view(-1, 16 * 5 * 5)` in older tutorials."""
    layers = (nn.Conv2d(3, 4, 3), Lambda(lambda x: x.view(-1, 4 * 36)), nn.Linear(144, 5))
    found = {g.name: g.protected for g in Compressor(nn.Sequential(*layers), X).structure.groups}
    assert "reshapes to [-1, 144], a fixed width; " in found["0"]


@pytest.mark.parametrize("place", [4, 2, 3])
def test_parts_of_channels_at_fixed_places_stay(place: int) -> None:
    assert protected(Halves(place))["first"]


def test_inputs_may_have_to_be_positive() -> None:
    model = nn.Sequential(Lambda(lambda x: x.pow(1 / 2.2)), Two())
    assert {**protected(model), "1.last": ""} == {"1.first": "", "1.second": "", "1.last": ""}


def test_parameters_may_be_integers() -> None:
    cut = ac.compress(Order(), Policy({"channels:first": 4}), X)
    wanting = {name for name, p in cut.named_parameters() if p.requires_grad}
    assert wanting == {name for name, _ in Two().named_parameters()}


def test_the_usual_type_of_numbers_may_be_another() -> None:
    model = lively(Named()).eval()
    policy = Policy({"channels:first": 4, "weight_bits:second": 3})
    calibration = torch.rand(32, 3, 8, 8)
    expected = ac.compress(model, policy, X, calibration)(X)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = ac.compress(model, policy, X, calibration)(X)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "kind",
    [
        *(nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid),
        *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Tanh, nn.Softplus, nn.Softsign),
        *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Dropout, nn.Dropout2d, nn.PReLU),
        *(nn.LogSigmoid, nn.RReLU, lambda: nn.RReLU(inplace=True)),
    ],
)
def test_activations_let_channels_pass(kind: Callable[[], nn.Module]) -> None:
    """Which operations PyTorch tags as elementwise differs between its versions."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), kind(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    structure = Compressor(model, X).structure
    assert [group.name for group in structure.groups if group.protected] == ["4"]
