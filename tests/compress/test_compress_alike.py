"""The working copy of a network computes what the network does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compress_networks import NETWORKS, example, flatten, lively, network
from torch import Tensor, nn

from automl_compress.compress import Compressor, compress, modules
from automl_compress.compress.modules import own_copy, works_in_place
from automl_compress.compress.tracing.trace import trace
from automl_compress.deploy.packed import load_packed, save_packed
from automl_compress.deploy.state import load_state, save_state
from automl_compress.errors import TraceError
from automl_compress.space import Policy


@pytest.mark.parametrize("name", NETWORKS)
def test_an_uncut_network_gives_what_the_original_gives(name: str) -> None:
    original = network(name)
    uncut = Compressor(original, example(name), repair="none").build(Policy({}))
    with torch.no_grad():
        for found, expected in zip(
            flatten(uncut(example(name, 3))), flatten(original(example(name, 3))), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_only_what_must_works_in_place() -> None:
    working, _ = trace(network("rectified-skip"), example("rectified-skip"))
    assert {n for n, m in working.named_modules() if works_in_place(m)} == {"relu"}
    assert {n for n, m in working.named_modules() if getattr(m, "inplace", False)} == {"relu"}


@pytest.mark.parametrize(("save", "load"), [(save_packed, load_packed), (save_state, load_state)])
def test_files_know_what_works_in_place(
    save: Callable[..., int], load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    original = network("rectified-skip")
    images = example("rectified-skip", 16)
    policy = Policy({"channels:first": 4, "weight_bits:second": 5})
    built = compress(original, policy, images[:1], images)
    for options in ({}, {"original": original}) if save is save_packed else ({},):
        save(built, tmp_path / "net", policy, **options)
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "net", original)(images), built(images))


def test_hooks_of_copies_keep_what_copies_compute() -> None:
    original = network("captured")
    x, other = example("captured", 4), example("captured", 8)[4:]
    with torch.no_grad():
        expected = original(x)
        built = compress(original, Policy({}), x[:1])
        original(other)
        torch.testing.assert_close(built(x), expected, rtol=1e-4, atol=1e-5)
        built(other)
        torch.testing.assert_close(original(x), expected)


class Kept(nn.Module):
    """A ReLU in place whose input is read again.

    Args:
        how: what else is done.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Embedding(9, 6)
        self.first, self.relu = nn.Linear(6, 8), nn.ReLU(inplace=True)
        self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.table(x) if self.how == "words" else x)
        rectified = self.relu(h)
        if self.how == "noise":
            rectified = rectified + torch.randn_like(h)
        if self.how == "root":
            return self.last(self.second(h.sqrt()))
        result = self.last(h + self.second(rectified))
        return (
            result.masked_fill(torch.arange(5) == 2, -torch.inf) if self.how == "mask" else result
        )


@pytest.mark.parametrize("how", ["sum", "root", "mask", "words", "noise"])
def test_what_must_work_in_place_does_whatever_comes_out(how: str) -> None:
    model = lively(Kept(how)).eval()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=draw)
    x = torch.randint(0, 9, (4, 7), generator=draw) if how == "words" else x
    built = compress(model, Policy({}), x[:1])
    assert works_in_place(built.get_submodule("relu"))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        torch.testing.assert_close(built(x), expected)


class Hooked(nn.Module):
    """Reads what a hook keeps of its first layer.

    Args:
        how: where the hook has what it writes to from.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.kept: list[Tensor] = []
        kept = self.kept

        def put(value: Tensor) -> None:
            self.kept.append(value)

        def by_default(m: nn.Module, i: object, o: Tensor, kept: list[Tensor] = kept) -> None:
            kept.append(o)

        def by_keyword(m: nn.Module, i: object, o: Tensor, *, to: list[Tensor] = kept) -> None:
            to.append(o)

        hooks: dict[str, Callable[..., None]] = {
            "default": by_default,
            "keyword": by_keyword,
            "nested": lambda m, i, o: put(o),
            "closure": lambda m, i, o: kept.append(o),
        }
        self.first.register_forward_hook(hooks[how])

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.last(F.relu(self.kept.pop()))


@pytest.mark.parametrize("how", ["default", "keyword", "nested", "closure"])
def test_hooks_refer_to_their_copies_however_they_are_bound(how: str) -> None:
    model = lively(Hooked(how)).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    copied = own_copy(model)
    copied.first.weight.data.mul_(2.0)
    with torch.no_grad():
        expected = model.last(F.relu(F.linear(x, 2 * model.first.weight, model.first.bias)))
        torch.testing.assert_close(copied(x), expected)
    assert not model.kept
    torch.testing.assert_close(compress(model, Policy({}), x[:1])(x), model(x))


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (nn.Upsample(scale_factor=2), (1, 3, 4, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu), (1, 5, 8)),
        (nn.TransformerDecoderLayer(8, 2, 16, activation=F.gelu), None),
    ],
    ids=lambda part: type(part).__name__,
)
def test_pytorchs_modules_are_copied_quickly(
    part: nn.Module, shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those whose class fills in what states of years ago lack."""
    model = nn.Sequential(part).eval()
    monkeypatch.setattr(modules, "own_copy", None)
    copied = modules.share_copy(model)
    assert copied[0] is not part
    assert vars(copied[0]).keys() == vars(part).keys()
    assert repr(copied) == repr(model)
    assert all(map(operator.is_, copied.parameters(), model.parameters()))
    if shape is not None:
        assert torch.equal(copied(torch.ones(shape)), model(torch.ones(shape)))


def test_copies_of_networks_that_keep_what_they_computed() -> None:
    model = network("captured").requires_grad_(True)
    model(example("captured", 2))
    assert model.get_submodule("encode") is not own_copy(model).get_submodule("encode")


class Normalizes(nn.Module):
    """Normalizes its images in place."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.copies:
            x = x.clone()
        x -= 0.3
        x /= 2.0
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_a_network_that_changes_its_input_is_refused() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TraceError, match=r"in place; begin its forward with `x = x.clone\(\)`"):
        trace(lively(Normalizes(copies=False)), images)
    _, structure = trace(lively(Normalizes(copies=True)), images)
    assert not structure.group("conv").protected


class Draws(nn.Module):
    """Gives something else every time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x)).mean((2, 3))
        return self.fc(x + torch.randn_like(x))


def test_a_network_that_draws_is_taken_as_it_is() -> None:
    working, structure = trace(Draws(), torch.randn(1, 3, 8, 8))
    assert not any(works_in_place(module) for module in working.modules())
    assert len(structure.layers) == 2
