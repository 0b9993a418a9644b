from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from automl_compress.errors import WorkloadError
from automl_compress.settings import Section
from automl_compress.workload import WorkloadConfig

_modules = itertools.count()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(folder))
    return folder


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes `{train,test}/<class>/*.png` of random pixels; no two images are alike."""

    def make(
        name: str = "data",
        classes: Iterable[str] = ("cat", "dog"),
        halves: Mapping[str, int] | None = None,
        size: tuple[int, int] = (8, 6),
    ) -> Path:
        rng = np.random.default_rng(1)
        for half, count in (halves or {"train": 6, "test": 4}).items():
            for class_name in classes:
                folder = tmp_path / name / half / class_name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path / name

    return make


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"user_module_{next(_modules)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def read_config(tmp_path: Path) -> Callable[..., WorkloadConfig]:
    """Reads a `workload` mapping as a sweep file in `tmp_path` would state it."""

    def read(**values: Any) -> WorkloadConfig:
        return WorkloadConfig.from_section(
            Section(values, {}, ("workload",), WorkloadError), tmp_path
        )

    return read


@pytest.fixture
def refused() -> Callable[..., None]:
    """Checks that a call raises one line that holds every given text."""

    def check(call: Callable[[], object], *texts: str) -> None:
        with pytest.raises(WorkloadError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for text in texts:
            assert text in message

    return check
