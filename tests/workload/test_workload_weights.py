from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from automl_compress.workload import load_weights

Refused = Callable[..., None]


def _net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, outputs))


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    """A state dict unlike that of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) if value.ndim else value + 7
        for name, value in _net().state_dict().items()
    }


def _assert_loaded(path: Path, trained: dict[str, torch.Tensor]) -> None:
    model = _net()
    load_weights(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name])


def test_safetensors(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    _assert_loaded(tmp_path / "w.safetensors", trained)


@pytest.mark.parametrize("suffix", ["pt", "pth", "th"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"module." + name: value for name, value in state.items()},
        lambda state: {"_orig_mod.module." + name: value for name, value in state.items()},
    ],
)
def test_pickled(
    suffix: str,
    wrap: Callable[[object], object],
    trained: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    torch.save(wrap(trained), tmp_path / f"w.{suffix}")
    _assert_loaded(tmp_path / f"w.{suffix}", trained)


def test_step_counters_may_be_missing(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del trained["1.num_batches_tracked"]
    save_file(trained, tmp_path / "w.safetensors")
    load_weights(_net(), tmp_path / "w.safetensors")


def test_misfits_are_counted_and_the_first_is_named(
    trained: dict[str, torch.Tensor], tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "w.pt"
    model = _net(outputs=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(trained, path)
    refused(
        lambda: load_weights(model, path),
        *("2 of another shape", "'2.weight'", "(3, 2) in the file", "(5, 2) in the model"),
    )
    del trained["1.weight"], trained["1.bias"]
    torch.save({**trained, "extra": torch.zeros(1)}, path)
    refused(
        lambda: load_weights(_net(), path),
        *("2 missing (first '1.weight')", "1 unexpected (first 'extra')", str(path)),
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(
    value: float, trained: dict[str, torch.Tensor], tmp_path: Path, refused: Refused
) -> None:
    trained["1.running_var"][1] = value
    save_file(trained, tmp_path / "w.safetensors")
    refused(lambda: load_weights(_net(), tmp_path / "w.safetensors"), "finite", "'1.running_var'")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"nonsense\n" * 20])
def test_an_unreadable_file(name: str, content: bytes, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / name).write_bytes(content)
    refused(lambda: load_weights(_net(), tmp_path / name), str(tmp_path / name))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file(
    name: str, trained: dict[str, torch.Tensor], tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / name
    if name == "w.pt":
        torch.save(trained, path)
    else:
        save_file(trained, path)
    path.write_bytes(path.read_bytes()[:-20])
    refused(lambda: load_weights(_net(), path), "must be readable", "give a complete file")


def test_an_empty_file_of_tensors(tmp_path: Path, refused: Refused) -> None:
    save_file({}, tmp_path / "w.safetensors")
    refused(lambda: load_weights(_net(), tmp_path / "w.safetensors"), "8 missing")


def test_pickled_code_is_not_run(tmp_path: Path, refused: Refused) -> None:
    torch.save(_net(), tmp_path / "w.pt")
    refused(lambda: load_weights(_net(), tmp_path / "w.pt"), "tensors only", "state_dict()")


@pytest.mark.parametrize(
    ("content", "text"),
    [([1, 2], "type list"), ({"epoch": 3}, "the keys epoch"), ({}, "(none)"), (3.5, "float")],
)
def test_a_file_of_something_else(
    content: object, text: str, tmp_path: Path, refused: Refused
) -> None:
    torch.save(content, tmp_path / "w.pt")
    refused(lambda: load_weights(_net(), tmp_path / "w.pt"), "must hold a state dict", text)


def test_missing_and_unknown_files(tmp_path: Path, refused: Refused) -> None:
    refused(lambda: load_weights(_net(), tmp_path / "w.pt"), "must exist", str(tmp_path))
    refused(lambda: load_weights(_net(), tmp_path), "must exist")
    (tmp_path / "w.onnx").touch()
    refused(lambda: load_weights(_net(), tmp_path / "w.onnx"), "must end in .safetensors")
