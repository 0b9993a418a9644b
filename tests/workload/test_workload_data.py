from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl_compress.errors import WorkloadError
from automl_compress.settings import Section
from automl_compress.workload import DataConfig, ImageSet, Splits, load_splits
from automl_compress.workload.digits import DigitsSource
from automl_compress.workload.folder import Decoding, FolderSource
from automl_compress.workload.sources import TorchvisionSource, TrainTest
from automl_compress.workload.splits import load_normalization
from automl_compress.workload.user_data import FactorySource

MakeTree = Callable[..., Path]
Refused = Callable[..., None]


def _config(base: Path, **values: object) -> DataConfig:
    return DataConfig.from_section(Section(values, {}, ("data",), WorkloadError), base)


def _rows(images: ImageSet) -> set[bytes]:
    return {one.tobytes() for one in images.images}


def _assert_disjoint(splits: Splits, every: set[bytes]) -> None:
    parts = [_rows(one) for one in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(every)
    assert set.union(*parts) == every


class Plain:
    """Numbered images of one pixel; no two are alike."""

    def __init__(self, train: int, test: int) -> None:
        numbers = np.arange(train + test, dtype=np.float32).reshape(-1, 1, 1, 1)
        labels = np.arange(train + test) % 2
        self.halves = TrainTest(
            ImageSet.of(numbers[:train], labels[:train]),
            ImageSet.of(numbers[train:], labels[train:]),
            ("even", "odd"),
        )

    def load(self, seed: int) -> TrainTest:
        return self.halves


@given(
    train=st.integers(2, 30),
    test=st.integers(2, 30),
    half=st.sampled_from(["test", "train"]),
    seed=st.integers(0, 1000),
)
def test_splits_are_disjoint_and_complete(train: int, test: int, half: str, seed: int) -> None:
    source = Plain(train, test)
    splits = load_splits(DataConfig(source, validation_from=half, seed=seed))
    _assert_disjoint(splits, _rows(source.halves.train) | _rows(source.halves.test))
    kept, whole = (
        (splits.train, source.halves.train) if half == "test" else (splits.test, source.halves.test)
    )
    assert kept is whole
    for one in (splits.train, splits.validation, splits.test):
        assert (one.labels == one.images[:, 0, 0, 0] % 2).all()


def test_default_numbers() -> None:
    splits = load_splits(DataConfig(Plain(40, 31)))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [40, 15, 16]
    splits = load_splits(DataConfig(Plain(40, 12_000)))
    assert [len(splits.validation), len(splits.test)] == [5000, 7000]
    splits = load_splits(DataConfig(Plain(40, 31), validation_from="train"))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [36, 4, 31]


def test_number_and_seed_of_validation_images(refused: Refused) -> None:
    first, second = (
        load_splits(DataConfig(Plain(4, 30), validation_images=7, seed=seed)) for seed in (0, 1)
    )
    assert len(first.validation) == 7
    assert first.validation.content_hash != second.validation.content_hash
    config = DataConfig(Plain(4, 30), validation_images=30)
    refused(lambda: load_splits(config), "leave some of the test half", "30 of 30")


def test_splits_of_an_image_folder(make_tree: MakeTree) -> None:
    root = make_tree()
    splits = load_splits(_config(root.parent, root="data"))
    halves = FolderSource(root).load(0)
    _assert_disjoint(splits, _rows(halves.train) | _rows(halves.test))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [12, 4, 4]
    assert splits.classes == ("cat", "dog")


@pytest.mark.parametrize("file_known", [True, False])
def test_digits_are_those_of_scikit_learn(
    file_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.datasets import load_digits

    if not file_known:
        monkeypatch.setattr("automl_compress.workload.digits.find_spec", lambda _: None)
    halves, want = DigitsSource().load(0), load_digits()
    pixels = np.round(want.images * 255 / 16).astype(np.uint8)
    found = [
        (image.tobytes(), int(label))
        for half in (halves.train, halves.test)
        for image, label in zip(half.images, half.labels, strict=True)
    ]
    expected = [(p.tobytes(), int(t)) for p, t in zip(pixels, want.target, strict=True)]
    assert sorted(found) == sorted(expected)


def test_splits_of_the_digits() -> None:
    splits = load_splits(DataConfig.from_name("digits"))
    halves = DigitsSource().load(0)
    _assert_disjoint(splits, _rows(halves.train) | _rows(halves.test))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [898, 449, 450]
    assert splits.train.shape == (1, 8, 8)
    assert splits.train.images.max() == 255


def test_images_in_two_splits_are_reported(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree()
    shutil.copy(root / "train/cat/0.png", root / "test/cat/copy.png")
    with caplog.at_level(logging.INFO):
        load_splits(DataConfig(FolderSource(root), validation_images=1))
    assert "examples also occur in an earlier split" in caplog.text


def test_sources_by_key(tmp_path: Path) -> None:
    config = _config(tmp_path, root="x", channels=1, image_size=[4, 5], mean=[0.5], std=[0.25])
    assert config.source == FolderSource(tmp_path / "x", Decoding(1, (4, 5)))
    assert (config.mean, config.std) == ((0.5,), (0.25,))
    config = _config(tmp_path, torchvision="CIFAR100", root="x", download=False)
    assert config.source == TorchvisionSource("CIFAR100", tmp_path / "x", False)
    config = _config(tmp_path, torchvision="CIFAR10")
    assert config.source == TorchvisionSource("CIFAR10", tmp_path / "cache/downloads")
    assert _config(tmp_path, factory="a.b:c").source == FactorySource("a.b:c")
    config = _config(tmp_path, digits=True, seed=3, search_validation={"from": "train"})
    assert config == DataConfig(DigitsSource(), validation_from="train", seed=3)
    assert DataConfig.from_name("a.b:c").source == FactorySource("a.b:c")


def test_relative_paths_start_at_the_base_then_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/x").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    roots = []
    for _ in range(2):
        source = _config(tmp_path / "base", root="x").source
        assert isinstance(source, FolderSource)
        roots.append(source.root)
        (tmp_path / "base/x").mkdir(exist_ok=True)
    assert roots == [tmp_path / "here/x", tmp_path / "base/x"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({}, ("one of torchvision, voc, coco, factory, digits, root", "nothing")),
        ({"rot": "x"}, ("holds rot",)),
        ({"root": "x", "maen": [0]}, ("unknown key 'data.maen'", "did you mean 'mean'?")),
        ({"root": "x", "factory": "a:b"}, ("unknown key 'data.root'",)),
        ({"root": "x", "image_size": [32]}, ("[height, width]", "[32]")),
        ({"root": "x", "image_size": 32}, ("is 32", "write [32, 32]")),
        ({"root": "x", "image_size": [32, "8"]}, ("[32, '8']",)),
        ({"root": "x", "image_size": [32, 0]}, ("at least 1", "[32, 0]")),
        ({"root": "x", "channels": 4}, ("3 (colour) or 1 (grey)", "is 4")),
        ({"root": "x", "mean": []}, ("one number a channel",)),
        ({"root": "x", "mean": [0.5], "std": [0]}, ("std must be above 0",)),
        ({"root": "x", "mean": [0.5, 0.5], "std": [1]}, ("2 and 1",)),
        ({"torchvision": "MNIST"}, ("one of CIFAR10, CIFAR100", "MNIST")),
        ({"digits": False}, ("must be true",)),
        ({"root": "x", "search_validation": {"from": "val"}}, ("one of test, train",)),
        ({"root": "x", "search_validation": {"images": 0}}, ("at least 1",)),
    ],
)
def test_wrong_values_are_refused(
    values: dict[str, object], texts: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    refused(lambda: _config(tmp_path, **values), *texts)


def test_a_word_that_names_no_data_is_refused(refused: Refused) -> None:
    refused(lambda: DataConfig.from_name("data/cifar10"), "{root: data/cifar10}")


def test_normalization_must_fit_the_images(refused: Refused) -> None:
    pixels = ImageSet.of(np.zeros((2, 1, 4, 4), np.uint8), [0, 1])
    config = DataConfig(Plain(2, 2), mean=(0.5, 0.5, 0.5))
    refused(lambda: load_normalization(config, pixels), "data.mean", "3 for 1 channel;")
    floats = ImageSet.of(np.zeros((2, 3, 4, 4), np.float32), [0, 1])
    refused(lambda: load_normalization(config, floats), "data.mean", "gives floats")
    assert load_normalization(DataConfig(Plain(2, 2)), pixels).std == (1.0,)


def test_torchvision_reads_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    batches = [
        write(name, {"data": pixels[i].reshape(4, -1), "labels": [0, 1, 0, 1]})
        for i, name in enumerate(("data_batch_1", "test_batch"))
    ]
    meta = write("batches.meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:1])
    monkeypatch.setattr(CIFAR10, "test_list", batches[1:])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    sets = TorchvisionSource("CIFAR10", tmp_path).load(0)
    assert np.array_equal(sets.train.images, pixels[0])
    assert np.array_equal(sets.test.images, pixels[1])
    assert sets.classes == ("cat", "dog")


def test_torchvision_without_files_or_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    source = TorchvisionSource("CIFAR10", tmp_path)
    refused(lambda: source.load(0), str(tmp_path), "URLError", "connect to the network once")
    source = TorchvisionSource("CIFAR10", tmp_path, download=False)
    refused(lambda: source.load(0), "RuntimeError", "set data.download: true")
