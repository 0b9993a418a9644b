from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from automl_compress.engine.config import config_of_mapping
from automl_compress.engine.statement import _data_name
from automl_compress.errors import InputError
from automl_compress.workload import (
    ImageSet,
    Normalization,
    WorkloadConfig,
    load_splits,
    trained_normalization,
)
from automl_compress.workload.splits import load_normalization

TRAINED = {
    "root": "pictures",
    "seed": 3,
    "search_validation": {"from": "train", "images": 2},
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of pictures, weights, and the card of their training."""
    monkeypatch.chdir(tmp_path)
    for root in ("pictures", "others"):
        for half in ("train", "test"):
            for kind in ("a", "b"):
                folder = tmp_path / root / half / kind
                folder.mkdir(parents=True)
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
    Path("w.pt").write_bytes(b"weights")
    _card()


def _card(**changes: Any) -> None:
    card = {
        "version": 1,
        "training": {"epochs": 2},
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "workload": {"model": "resnet20", "data": TRAINED},
    }
    Path("w.json").write_text(json.dumps({**card, **changes}))


def _config(**changes: Any) -> WorkloadConfig:
    return WorkloadConfig.of(model="resnet20", weights="w.pt", **changes)


def _normalization(config: WorkloadConfig) -> Normalization:
    return load_normalization(config.data, load_splits(config.data).train)


def test_data_that_are_not_named_are_the_card_s() -> None:
    data = _config().data
    assert data.source == _config(data={"root": "pictures"}).data.source
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.validation_from, data.validation_images, data.seed) == ("train", 2, 3)


def test_a_study_says_which_data_the_card_named() -> None:
    workload = {"model": "resnet20", "weights": "w.pt"}
    settings = {"study": "s", "workload": workload, "budget": {"evaluations": 1}}
    assert _data_name(config_of_mapping(settings)) == "pictures"
    workload["data"] = "package.module:sets"
    assert _data_name(config_of_mapping(settings)) == "package.module:sets"


def test_data_that_are_named_are_normalised_as_the_network_was_trained() -> None:
    config = _config(data={"root": "others"})
    assert _normalization(config) == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data = config.data
    assert (data.validation_from, data.validation_images, data.seed) == ("test", None, 0)


def test_what_is_stated_stands() -> None:
    stated = _config(data={"root": "others", "mean": [0.5, 0.5, 0.5]})
    assert _normalization(stated) == Normalization((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    own = WorkloadConfig.of(model="resnet20", data={"root": "others"})
    assert _normalization(own) == Normalization.unit(3)


def test_images_of_other_channels_and_floats_are_not_normalised_so() -> None:
    data = _config(data={"root": "others"}).data
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    labels = np.zeros(2, np.int64)
    assert trained_normalization(data, ImageSet.of(pixels, labels)) is not None
    assert trained_normalization(data, ImageSet.of(pixels[:, :1], labels)) is None
    assert trained_normalization(data, ImageSet.of(pixels.astype(np.float32), labels)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"sha256": None},
        {"workload": {}},
        {"workload": {"data": {"root": "others"}}},
    ],
)
def test_cards_of_other_weights_and_without_numbers_say_nothing(changes: dict[str, Any]) -> None:
    _card(**changes)
    assert _normalization(_config(data={"root": "pictures"})) == Normalization.unit(3)


def test_other_files_of_that_name_are_left_alone() -> None:
    Path("w.json").write_text(json.dumps({"image_mean": [0.5]}))
    assert _config(data={"root": "pictures"}).data.trained is None
    with pytest.raises(InputError, match="'data' must be given, but is missing"):
        _config()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "must be the card of 'w.pt', but is broken; remove it"),
        ('{"version": 9, "training": {}}', "must be at most 1, but is 9"),
        ('{"version": "x", "training": {}}', "must be at most 1, but is x"),
    ],
)
def test_broken_cards_and_newer_ones_are_refused(content: str, said: str) -> None:
    Path("w.json").write_text(content)
    with pytest.raises(InputError, match=said):
        _config(data={"root": "pictures"})


def test_numbers_of_a_card_are_checked() -> None:
    _card(workload={"data": {**TRAINED, "mean": ["grey"]}})
    with pytest.raises(InputError, match="weights' card"):
        _config(data={"root": "others"})
