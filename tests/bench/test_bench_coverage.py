"""The coverage table, on the smallest of torchvision's models."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from automl_compress.bench import coverage
from automl_compress.bench.coverage import RESPONSE, enliven, write_coverage
from automl_compress.errors import WorkloadError

pytestmark = pytest.mark.usefixtures("operators_read_once")


class Dead(nn.Module):
    """A head of zeros behind BatchNorms whose statistics make signals vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        nn.init.constant_(self.norm.running_var, 1e12)
        nn.init.zeros_(self.head.weight)
        nn.init.ones_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x)).relu().mean((2, 3)))


def test_dead_networks_are_enlivened_and_others_left_alone() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = Dead().eval()
    enliven(model, images[:1])
    one, other = model(images)
    assert (one - other).abs().max() > RESPONSE / 10 * one.abs().max()
    assert not model.norm.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    enliven(model, images[:1])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items() if "head" in n)


def _run_here(command: list[str], **_: object) -> SimpleNamespace:
    """In place of a process of its own, which would import for seconds what is imported here."""
    assert command[:3] == [sys.executable, "-m", coverage.__name__]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", command[2:])
        runpy.run_path(coverage.__file__, run_name="__main__")
    return SimpleNamespace(stdout=said.getvalue())


def test_a_model_that_takes_too_long_is_told(tmp_path: Path) -> None:
    (row,) = write_coverage(tmp_path, ["alexnet"], 0.05)
    error = "took longer than 0.05 s"
    assert row == {"model": "alexnet", "task": "classification", "error": error}


@pytest.mark.parametrize(
    ("model", "task", "here"),
    [
        ("squeezenet1_1", "classification", True),
        pytest.param("lraspp_mobilenet_v3_large", "segmentation", False, marks=pytest.mark.slow),
    ],
)
def test_rows_are_added_to_those_that_are_there(
    model: str,
    task: str,
    here: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if here:
        monkeypatch.setattr(coverage.subprocess, "run", _run_here)
    kept = {"model": "alexnet", "task": "classification", "error": "took longer than 1 s"}
    (tmp_path / "coverage.json").write_text(json.dumps([kept]))
    rows = {row["model"]: row for row in write_coverage(tmp_path, [model], 300)}
    assert list(rows) == ["alexnet", model]
    assert rows["alexnet"] == kept
    assert rows[model]["ran"] == rows[model]["policies"]
    assert rows[model]["reload_equal"] is True
    assert 0 < rows[model]["onnx_difference"] < 1e-4
    assert "1 of 2 models yield a space" in (tmp_path / "coverage.md").read_text()
    assert f"| {model} | {task} |" in capsys.readouterr().out


def test_models_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="'resnet51' is none"):
        write_coverage(tmp_path / "new", ["resnet51"], 10)
    assert not (tmp_path / "new").exists()
