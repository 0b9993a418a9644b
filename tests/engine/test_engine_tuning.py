"""Batch and threads that are found on the machine, remembered and stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automl_compress import Study
from automl_compress.engine import tuning
from automl_compress.engine.config import BATCH, THREADS, config_of_mapping
from automl_compress.engine.tuning import Tuning, fastest, tuned
from automl_compress.errors import InputError
from automl_compress.evaluate import fast_form
from automl_compress.evaluate.network import NetworkEstimator

SETTINGS: dict[str, Any] = {
    "study": "tiny",
    "workload": {"model": "digits_cnn", "train": {"epochs": 1}},
    "estimate": {"images": 40, "calibration_images": 32, "batch": "auto"},
    "strategies": ["random"],
    "seeds": 1,
    "budget": {"evaluations": 2},
    "engine": {"kind": "serial", "threads": "auto"},
    "finalists": 1,
}


@pytest.fixture(scope="module")
def search() -> NetworkEstimator:
    return tuning.load_estimators(config_of_mapping(SETTINGS))[1]


def test_the_fastest_choice_is_taken() -> None:
    def rate(batch: int, threads: int) -> float:
        return 100 - abs(batch - 128) / 10 - 20 * abs(threads - 2)

    assert fastest(Tuning(64, 1), {BATCH, THREADS}, rate, 4) == Tuning(128, 2)
    assert fastest(Tuning(64, 1), {BATCH}, rate, 4) == Tuning(128, 1)
    assert fastest(Tuning(64, 1), {THREADS}, rate, 1) == Tuning(64, 1)  # one core


def test_noise_changes_nothing() -> None:
    assert fastest(Tuning(64, 1), {BATCH}, lambda b, _: 100 + b / 128, 2) == Tuning(64, 1)
    assert fastest(Tuning(48, 1), {BATCH}, lambda b, _: 100.0, 2) == Tuning(48, 1)


def test_it_is_found_once_and_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[int, int]] = []

    def rate(_: Any, batch: int, threads: int) -> float:
        asked.append((batch, threads))
        return float(batch)

    monkeypatch.setattr(tuning._Timer, "rate", rate)
    result = Study(**SETTINGS).run(tmp_path / "out")
    assert asked
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert config["estimate"]["batch"] == 256
    assert config["engine"]["threads"] == 1
    asked.clear()
    again = Study(**SETTINGS).run(tmp_path / "again")
    assert not asked
    assert again.manifest.fingerprint == result.manifest.fingerprint


def test_a_cache_that_cannot_be_used_costs_time_alone(
    search: NetworkEstimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a file system that can only be read, or one that holds half a file."""
    monkeypatch.setattr(tuning._Timer, "rate", lambda _, batch, threads: float(batch))
    config = config_of_mapping(SETTINGS)
    monkeypatch.setattr(tuning, "load_estimators", lambda _: (None, search, None))
    cache = tmp_path / "cache"
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(cache))
    cache.write_text("no folder")
    assert tuned(config).estimate.batch == 256
    cache.unlink()
    assert tuned(config).estimate.batch == 256
    (file,) = cache.iterdir()
    file.write_text(file.read_text()[:9])
    assert tuned(config).estimate.batch == 256


def test_rates_are_timed(search: NetworkEstimator) -> None:
    assert tuning._Timer(search).rate(16, 1) > 0


def test_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "load_estimators", None)
    numbers = {"estimate": {"batch": 8}, "engine": {"threads": 2}}
    config = config_of_mapping({**SETTINGS, **numbers})
    assert tuned(config) is config
    assert (config.estimate.batch, config.engine.threads) == (8, 2)


@pytest.mark.parametrize(("section", "key"), [("estimate", "batch"), ("engine", "threads")])
@pytest.mark.parametrize("value", ["all", 0])
def test_other_words_are_refused(section: str, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"'{section}.{key}' must be 'auto' or at least 1"):
        config_of_mapping({**SETTINGS, section: {key: value}})


@pytest.mark.parametrize(("has", "found"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_is_what_the_processor_has_and_stated(
    has: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_form, "has_bfloat16", lambda _: has)
    without = {key: value for key, value in SETTINGS.items() if key != "estimate"}
    for given in (SETTINGS, without, {**SETTINGS, "estimate": {"precision": "auto"}}):
        config = config_of_mapping(given)
        assert config.estimate.precision == found
        assert config.plain["estimate"]["precision"] == found
        monkeypatch.setattr(fast_form, "has_bfloat16", lambda _: not has)
        assert config_of_mapping(config.plain).estimate.precision == found  # on another machine
        monkeypatch.setattr(fast_form, "has_bfloat16", lambda _: has)


def test_a_stated_precision_stays() -> None:
    for name in ("float32", "bfloat16"):
        config = config_of_mapping({**SETTINGS, "estimate": {"precision": name}})
        assert config.estimate.precision == config.plain["estimate"]["precision"] == name
    with pytest.raises(InputError, match="must be one of auto, float32, bfloat16"):
        config_of_mapping({**SETTINGS, "estimate": {"precision": "half"}})
