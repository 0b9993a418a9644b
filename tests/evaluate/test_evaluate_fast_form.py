"""The fast form answers as the network does, and goes on from what it kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.compress.fold import foldable_norms
from automl_compress.compress.quantize import InputQuantizer
from automl_compress.compress.structure import Structure
from automl_compress.compress.tracing.trace import trace
from automl_compress.errors import EstimateError
from automl_compress.evaluate import fast_form as fast_form_module
from automl_compress.evaluate.fast_form import FastForm
from automl_compress.evaluate.program import follow
from automl_compress.space import Policy, SpaceRules
from automl_compress.workload.arithmetic import runs_bfloat16

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))
from compress_networks import NETWORKS, example, lively, random_policy, shared_compressor

RULES = SpaceRules(activation_bits=(4, 8))


def compressed(name: str, seed: int) -> tuple[Compressor, list[Policy]]:
    compressor = shared_compressor(name, 24, "layerwise")
    space = space_of_structure(compressor.model, compressor.structure, RULES).space
    rng = np.random.default_rng(seed)
    return compressor, [space.decode(space.sample(rng)) for _ in range(3)]


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"outputs"}))
def test_outputs_are_those_of_the_network(name: str) -> None:
    compressor, policies = compressed(name, 0)
    form = FastForm(compressor.model, example(name), "float32", compressor.structure)
    batches = example(name, 12).split(5)
    for policy in (*policies, Policy({})):
        built = compressor.build(policy)
        with torch.inference_mode():
            found = torch.cat(list(form.outputs(built, policy, batches)))
            expected = built(torch.cat(batches))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.skipif(not runs_bfloat16(), reason="the processor has no bfloat16")
@pytest.mark.parametrize("name", ["resnet8", "mobile", "dense", "vgg"])
def test_bfloat16_gives_nearly_the_same(name: str) -> None:
    compressor, policies = compressed(name, 1)
    form = FastForm(compressor.model, example(name), "bfloat16", compressor.structure)
    x = example(name, 16)
    for policy in policies:
        built = compressor.build(policy)
        with torch.inference_mode():
            found = next(form.outputs(built, policy, [x]))
            expected = built(x)
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.05
        assert not torch.equal(found, expected)
        exact = form.exact(built, x)
        scale = float(expected.abs().max())
        alike = torch.isclose(exact, expected, rtol=1e-3, atol=1e-4 * scale).all(1)
        assert int((~alike).sum()) <= 1
        assert bool((alike | (edges(built, x) < 1e-4)).all())


def edges(network: nn.Module, x: Tensor) -> Tensor:
    """(n,) how near, in steps, any rounded input of an image comes to the middle of two levels.

    Nearer ones than rounding moves them may become either.
    """
    nearest = torch.ones(len(x))

    def note(grid: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        levels = (inputs[0] / grid.scale).flatten(1)
        away = ((levels - levels.floor()) - 0.5).abs()
        away[(levels <= grid.low) | (levels >= grid.high)] = 1.0
        torch.minimum(nearest, away.amin(1), out=nearest)

    grids = [m for m in network.modules() if isinstance(m, InputQuantizer)]
    handles = [grid.register_forward_hook(note) for grid in grids]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return nearest


class Traps(nn.Module):
    """In-place ReLUs, sums in both orders, a value that is read twice, a norm behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.e = nn.Conv2d(4, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        kept = first + 0.0
        second = self.relu(first)  # `first` changes too
        third = F.relu(self.b(second) + first)
        fourth = self.c(third)
        fourth += third * 0.5
        fifth = self.norm(fourth + self.d(third)).relu_()
        sixth = torch.relu(third + self.e(fifth))
        seventh = F.relu(self.c(sixth)) + kept
        return (seventh - self.b(sixth).relu()).mean((2, 3))


def test_traps_of_fusing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Traps().eval()
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    program = follow(model, foldable_norms(model, x[:1]), x[:1])
    assert program is not None
    assert any(step.other is not None for step in program.steps)
    form = FastForm(model, x[:1], "float32", trace(model, x[:1])[1])
    with torch.inference_mode():
        torch.testing.assert_close(next(form.outputs(model, Policy({}), [x])), model(x))


def projecting() -> nn.Module:
    """Shortcuts that are convolutions: sums of two that could both take the sum."""
    return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def normalizing() -> nn.Module:
    """Layers without parts, not torch's own, whose forward holds sizes."""
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return torchvision.models.ConvNeXt(blocks, num_classes=5)


@pytest.mark.parametrize(("make", "sums"), [(projecting, 4), (normalizing, 0)])
def test_networks_of_torchvision_run_fused(make: Any, sums: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(make()).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(model, x[:1], repair="none")
    form = FastForm(compressor.model, x[:1], "float32", compressor.structure)
    assert form._program is not None
    assert sum(step.other is not None for step in form._program.steps) == sums
    groups = compressor.structure.groups
    narrow = Policy({f"channels:{group.name}": 1 for group in groups if not group.protected})
    some = random_policy(compressor.structure, np.random.default_rng(0), activations=False)
    for policy in (some, narrow):
        built = compressor.build(policy)
        with torch.inference_mode():
            torch.testing.assert_close(
                next(form.outputs(built, policy, [x])), built(x), rtol=1e-3, atol=1e-4
            )


class Viewing(nn.Module):
    """It flattens by a view, which fails on channels-last values; bits are seen as others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().view(-1, 4 * 36).view(torch.int32).view(torch.float32)
        return self.fc(y)  # type: ignore[no-any-return]


def test_networks_that_flatten_by_a_view_run_fused() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Viewing().eval()
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    form = FastForm(model, x[:1], "float32", Structure((), (), (), 0))
    assert form._program is not None
    for order in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            found = next(form.outputs(model, Policy({}), [x.contiguous(memory_format=order)]))
            torch.testing.assert_close(found, model(x))


class Turns(nn.Module):
    """Its way depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if float(y.mean()) > 100:
            y = y * 2
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


class CountsImages(nn.Module):
    """Its graph would hold for batches of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) * len(x.numpy())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Turns, CountsImages])
@pytest.mark.parametrize("precision", ["float32", *["bfloat16"] * runs_bfloat16()])
def test_networks_that_cannot_be_followed_run_as_they_are(kind: Any, precision: Any) -> None:
    model = kind().eval()
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert follow(model, {}, x[:1]) is None
    form = FastForm(model, x[:1], precision, Structure((), (), (), 0))
    with torch.no_grad():
        found = torch.cat(list(form.outputs(model, Policy({}), x.split(4))))
        expected = torch.cat([model(batch) for batch in x.split(4)])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_program_keeps_no_code_that_fx_generates() -> None:
    """torch 2.11 cannot pickle what is generated for networks whose annotations are texts."""
    model, x = NETWORKS["vgg"]().eval(), example("vgg")
    program = follow(model, foldable_norms(model, x), x)
    assert program is not None
    assert all(step.node.graph.owning_module is None for step in program.steps)


def test_weights_that_are_not_finite_are_not_hidden_by_a_fused_relu() -> None:
    compressor, _ = compressed("resnet8", 0)
    form = FastForm(compressor.model, example("resnet8"), "float32", compressor.structure)
    broken = compressor.build(Policy({}))
    name = next(n for n, m in broken.named_modules() if isinstance(m, nn.Conv2d))
    weight = broken.get_submodule(name).get_parameter("weight").clone()
    weight[0, 0, 0, 0] = torch.nan
    broken.get_submodule(name)._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(EstimateError, match=f"'{name}' are not finite"):
        next(form.outputs(broken, Policy({}), [example("resnet8", 2)]))


def neighbours(compressor: Compressor | None = None) -> tuple[Compressor, list[Policy]]:
    """Policies of one network that differ ever later."""
    compressor = compressor or shared_compressor("resnet8", 24, "layerwise")
    layers = [s.name for s in compressor.structure.layers]
    base = {f"weight_bits:{name}": 4 for name in layers}
    changed = [Policy({**base, f"weight_bits:{name}": 2}) for name in layers]
    return compressor, [Policy(base), Policy(base), *changed, *reversed(changed)]


@pytest.mark.parametrize("kept_bytes", [2**26, 20_000])
def test_prefixes_change_no_output(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    monkeypatch.setattr(fast_form_module, "KEPT_BYTES", kept_bytes)
    compressor, policies = neighbours()
    x = example("resnet8", 10)
    precision = fast_form_module.fast_precision()
    kept = FastForm(compressor.model, x[:1], precision, compressor.structure)
    fresh = FastForm(compressor.model, x[:1], precision, compressor.structure, keeps=False)
    with torch.inference_mode():
        for policy in policies:
            built = compressor.build(policy)
            one = torch.cat(list(kept.outputs(built, policy, x.split(4))))
            two = torch.cat(list(fresh.outputs(built, policy, x.split(4))))
            assert torch.equal(one, two)


class InPlace(nn.Module):
    """Values that are kept at the ends of layers are changed behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.c, self.fc = nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).mul_(1.5).add_(0.2))
        x += 0.3
        return self.fc(F.relu(self.c(x), inplace=True).mean((2, 3)).clamp_(0, 1))


class Halves(nn.Module):
    """Values at the ends of layers are pairs of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        left, right = self.b(left * right).split(4, 1)
        return self.fc(torch.cat([left, right.relu()], 1).mean((2, 3)))


@pytest.mark.parametrize("kind", [InPlace, Halves, None])
def test_kept_values_are_whole_and_stay_as_they_were(kind: type[nn.Module] | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.shufflenet_v2_x0_5() if kind is None else kind()
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    compressor, policies = neighbours(Compressor(lively(model).eval(), x[:1], repair="none"))
    form = FastForm(compressor.model, x[:1], "float32", compressor.structure)
    assert form._prefixes is not None
    before = x.clone()
    with torch.inference_mode():
        for policy in [*policies[:40:4], *policies[:40:4]]:
            built = compressor.build(policy)
            started = form._prefixes.longest(policy, x.split(4))[0]
            found = torch.cat(list(form.outputs(built, policy, x.split(4))))
            torch.testing.assert_close(found, built(x.clone()), rtol=1e-3, atol=1e-3)
    assert started > 0
    assert torch.equal(x, before)


def test_an_unchanged_prefix_is_not_run_again() -> None:
    compressor, policies = neighbours()
    x = example("resnet8", 8)
    form = FastForm(compressor.model, x[:1], "float32", compressor.structure)
    prefixes = form._prefixes
    assert prefixes is not None
    starts = []
    for policy in policies:
        starts.append(prefixes.longest(policy, x.split(4))[0])
        list(form.outputs(compressor.build(policy), policy, x.split(4)))
    layers = len(compressor.structure.layers)
    assert starts[:2] == [0, 0]  # what is seen once leaves nothing
    first = starts[2 : 2 + layers]
    assert first[0] == 0  # its first layer differs
    assert first == sorted(first)
    assert first[-1] == max(starts) > 0


def test_estimates_that_stop_early_leave_no_half_prefix() -> None:
    compressor, policies = neighbours()
    x = example("resnet8", 8)
    form = FastForm(compressor.model, x[:1], "float32", compressor.structure)
    assert form._prefixes is not None
    for _ in range(3):
        next(form.outputs(compressor.build(policies[0]), policies[0], x.split(4)))
    assert form._prefixes.longest(policies[0], x.split(4))[0] == 0


def test_what_is_forgotten_is_run_again() -> None:
    compressor, policies = neighbours()
    x = example("resnet8", 8)
    form = FastForm(compressor.model, x[:1], "float32", compressor.structure)
    assert form._prefixes is not None
    for _ in range(3):
        list(form.outputs(compressor.build(policies[0]), policies[0], x.split(4)))
    assert form._prefixes.longest(policies[0], x.split(4))[0] > 0
    form.forget()
    assert form._prefixes.longest(policies[0], x.split(4))[0] == 0
