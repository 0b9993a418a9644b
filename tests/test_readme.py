"""The README says what is true: its example runs, and nothing that exists goes unnamed."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from automl_compress.cli.main import _parser
from automl_compress.engine import Study, read_config, restore_study
from automl_compress.evaluate.network import EstimateSettings
from automl_compress.recover import (
    Augmentation,
    RecoverySettings,
    SparsitySettings,
    TrainingSettings,
)
from automl_compress.report import write_report
from automl_compress.search import strategy_names
from automl_compress.space import SearchSpace, load_rules
from automl_compress.testing import STRATEGY_CHECKS, strategy_builder
from automl_compress.workload import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.usefixtures("blank_figures")
def test_the_example_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = _blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "genes" in printed
    assert "tensor(" in printed
    assert "report.html" in printed


def test_the_example_of_own_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its strategy keeps to what it says, and its criterion decides which channels stay."""
    (example,) = _blocks("py")
    (tmp_path / "plug.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "plug", raising=False)
    for check in STRATEGY_CHECKS:
        check(strategy_builder("plug:Milder"))
    study = Study(
        study="own",
        workload={"model": "digits_cnn", "train": {"epochs": 1}},
        estimate={"images": 50, "calibration_images": 16, "criterion": "plug:later"},
        strategies=["plug:Milder"],
        seeds=1,
        budget={"evaluations": 6},
        finalists=2,
        engine={"kind": "serial"},
    )
    result = study.run(tmp_path / "out")
    told = result.charges("plug:Milder-0")
    assert len(told) == 6
    space = SearchSpace.from_dict(result.manifest.space)
    for charge in told:
        assert (space.encode(charge.evaluation.policy) >= space.sizes // 2).all()
    order = restore_study(tmp_path / "out").compressor.order
    assert all((channels == np.arange(len(channels))[::-1]).all() for channels in order.values())
    assert "plug:Milder" in write_report(tmp_path / "out").read_text()
    del sys.modules["plug"]


def test_the_example_of_a_sweep_file_is_complete(tmp_path: Path) -> None:
    (example,) = _blocks("yaml")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(example)
    config = read_config(sweep)
    assert config.name == "mine"
    assert config.constraints[0].metric == "size_bytes"


def test_every_command_is_named() -> None:
    commands = next(a.choices for a in _parser()._actions if a.dest == "command")
    assert commands is not None
    for command in commands:
        assert f"automl-compress {command}" in README


@pytest.mark.parametrize(
    ("settings", "prefix", "others"),
    [
        (TrainingSettings, "", {"augment"}),
        (Augmentation, "augment.", set()),
        (RecoverySettings, "", {"training"}),
        (SparsitySettings, "", set()),
        (EstimateSettings, "", {"split"}),
    ],
)
def test_every_setting_is_named(settings: type, prefix: str, others: set[str]) -> None:
    """Those of trainings by their names, those of estimates also in the example of a sweep."""
    (example,) = _blocks("yaml")
    for name in {field.name for field in fields(settings)} - others:
        stated = settings is EstimateSettings and f"{name}: " in example
        assert stated or f"`{prefix}{name}`" in README, name


@pytest.mark.parametrize("name", [*strategy_names(), *MODELS])
def test_every_strategy_and_network_is_named(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("path", sorted(ROOT.glob("sweeps/*.yaml")), ids=lambda p: p.name)
def test_every_sweep_is_named_and_loads(path: Path) -> None:
    assert f"`sweeps/{path.name}`" in README
    config = read_config(path)
    named = yaml.safe_load(path.read_text())["space"]
    assert config.space == load_rules(path.parent / named)
    assert config.plain["space"] == config.space.to_dict()
    assert config.name == path.stem


@pytest.mark.parametrize("path", sorted(ROOT.glob("search_spaces/*.yaml")), ids=lambda p: p.name)
def test_every_space_is_named_and_loads(path: Path) -> None:
    assert f"`search_spaces/{path.name}`" in README
    assert load_rules(path).weight_bits


def test_the_continuous_integration_runs_the_test_command() -> None:
    marked = README.partition("<!-- the continuous integration runs exactly this -->")[2]
    assert "pytest" in marked.partition("```sh")[2].partition("```")[0]
