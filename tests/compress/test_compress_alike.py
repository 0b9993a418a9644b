"""The working copy of a network computes what the network does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compress_networks import NETWORKS, example, flatten, lively, network
from torch import Tensor, nn

from automl_compress.compress import Compressor, compress
from automl_compress.compress.modules import works_in_place
from automl_compress.compress.tracing import trace
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
