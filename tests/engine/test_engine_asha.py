"""Trainings side by side on Ray, promoted by its ASHA scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from automl_compress.errors import EngineError

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
EPOCHS = 9
PATIENCE = 60.0


def _train(name: str, report: Callable[[int, float], None], *, folder: Path) -> None:
    """`good` improves and comes first; `bad` is worse and waits until `good` has finished."""
    if name == "broken":
        raise EngineError("loss must stay finite")
    waiting = time.monotonic()
    while name == "bad" and not (folder / "good").exists():
        assert time.monotonic() - waiting < PATIENCE
        time.sleep(0.05)
    for epoch in range(1, EPOCHS):
        report(epoch, 0.1 * epoch if name == "good" else 0.01 * epoch)
    (folder / name).touch()
    report(EPOCHS, 0.9 if name == "good" else 0.1)


def test_who_lags_behind_is_stopped(tmp_path: Path) -> None:
    from automl_compress.engine.asha import promote_trainings

    heard: list[tuple[str, int, float, bool]] = []
    train = partial(_train, folder=tmp_path)
    promote_trainings(("good", "bad"), train, EPOCHS, lambda *words: heard.append(words))
    told = {name: [words[1:] for words in heard if words[0] == name] for name in ("good", "bad")}
    assert [epoch for epoch, _, _ in told["good"]] == list(range(1, EPOCHS + 1))
    assert not any(stopped for _, _, stopped in told["good"])
    assert told["bad"] == [(1, pytest.approx(0.01), True)]
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_training_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    from automl_compress.engine.asha import promote_trainings

    train = partial(_train, folder=tmp_path)
    with pytest.raises(EngineError, match=r"^loss must stay finite$"):
        promote_trainings(("broken", "good"), train, EPOCHS, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
