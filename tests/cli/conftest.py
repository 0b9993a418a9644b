"""One small study for all tests of commands that work on a study's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from automl_compress.engine import Study

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 2}}
estimate: {images: 100, calibration_images: 24}
final_repair: recalibrate
strategies: [scaled-random]
seeds: 1
budget: {evaluations: 10}
finalists: 3
engine: {kind: serial}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; must not be changed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "sweep.yaml").write_text(SWEEP)
    Study.from_file(folder / "sweep.yaml").run(folder / "out")
    return folder / "out"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def study(finished: Path, folder: Path) -> Path:
    """A copy of the study, in the current folder."""
    return Path(shutil.copytree(finished, folder / "out"))
