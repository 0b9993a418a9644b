from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from automl_compress.workload.folder import Decoding, FolderSource
from automl_compress.workload.sources import TrainTest

MakeTree = Callable[..., Path]
Refused = Callable[..., None]


def _load(root: Path, **settings: object) -> TrainTest:
    return FolderSource(root, Decoding(**settings)).load(0)  # type: ignore[arg-type]


def test_classes_and_labels_follow_names(make_tree: MakeTree) -> None:
    sets = _load(make_tree(classes=("b", "a", "10", "9")))
    assert sets.classes == ("10", "9", "a", "b")
    assert sets.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert sets.train.images.shape == (24, 3, 8, 6)
    assert len(sets.test) == 16


def test_val_stands_in_for_test(make_tree: MakeTree) -> None:
    assert len(_load(make_tree(halves={"train": 3, "val": 2})).test) == 4


def test_other_files_and_hidden_ones_are_left_out(make_tree: MakeTree) -> None:
    root = make_tree()
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/._0.png").write_bytes(b"of a file manager")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/cat/deeper").mkdir()
    shutil.copy(root / "train/cat/0.png", root / "train/cat/deeper/x.PNG")
    assert len(_load(root).train) == 13


def test_links_that_lead_back_are_not_followed(make_tree: MakeTree) -> None:
    root = make_tree()
    before = len(_load(root).train)
    (root / "train/cat/again").symlink_to(root / "train/cat")
    (root / "train/dog/deeper").mkdir()
    (root / "train/dog/deeper/up").symlink_to(root / "train/dog")
    assert len(_load(root).train) == before


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "gif", "tif", "ppm"])
def test_other_formats_are_read(suffix: str, make_tree: MakeTree) -> None:
    root = make_tree()
    Image.new("RGB", (6, 8), (200, 100, 50)).save(root / f"train/cat/-.{suffix}")
    pixels = _load(root).train.images[0].astype(int)
    assert np.abs(pixels.mean(axis=(1, 2)) - (200, 100, 50)).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_colour_or_grey(mode: str) -> None:
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    assert Decoding().pixels(image).shape == (3, 3, 4)
    assert Decoding(channels=1).pixels(image).shape == (1, 3, 4)
    assert Decoding().pixels(image).min() > 250


@given(
    have=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    want=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_image_size_covers_and_crops(have: tuple[int, int], want: tuple[int, int]) -> None:
    image = Image.new("L", (have[1], have[0]), 255)
    pixels = Decoding(1, want).pixels(image)
    assert pixels.shape == (1, *want)
    assert pixels.min() == 255


def test_image_size_crops_the_centre() -> None:
    values = np.tile(np.arange(8, dtype=np.uint8), (4, 1))
    pixels = Decoding(1, (4, 4)).pixels(Image.fromarray(values))
    assert pixels[0, 0].tolist() == [2, 3, 4, 5]


def test_missing_folders_are_named(make_tree: MakeTree, tmp_path: Path, refused: Refused) -> None:
    refused(lambda: _load(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "correct data.root")
    root = make_tree()
    shutil.rmtree(root / "test")
    refused(lambda: _load(root), "neither", str(root))
    shutil.rmtree(root / "train")
    refused(lambda: _load(root), "no folder 'train'")


def test_fewer_than_two_classes_are_refused(make_tree: MakeTree, refused: Refused) -> None:
    refused(lambda: _load(make_tree(classes=["cat"])), "at least two classes", "only 'cat'")
    root = make_tree("flat")
    for name in ("cat", "dog"):
        shutil.rmtree(root / "train" / name)
    refused(lambda: _load(root), "at least two classes", "has none")


def test_an_empty_class_is_refused(make_tree: MakeTree, refused: Refused) -> None:
    root = make_tree()
    shutil.rmtree(root / "test/dog")
    (root / "test/dog").mkdir()
    refused(lambda: _load(root), "every class folder must hold images", str(root / "test/dog"))


@pytest.mark.parametrize("half", ["train", "test"])
def test_both_halves_need_the_same_classes(
    half: str, make_tree: MakeTree, refused: Refused
) -> None:
    root = make_tree(classes=("cat", "dog", "eel"))
    shutil.rmtree(root / half / "eel")
    refused(lambda: _load(root), "the same classes", "'eel'", f"missing in '{root / half}'")


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_broken_image_is_named(
    content: bytes | str, make_tree: MakeTree, refused: Refused
) -> None:
    root = make_tree()
    path = root / "test/dog/3.png"
    path.write_bytes(path.read_bytes()[:60] if isinstance(content, str) else content)
    refused(lambda: _load(root), "must be readable", str(path), "repair or remove it")


def test_an_image_with_16_bits_is_refused(make_tree: MakeTree, refused: Refused) -> None:
    root = make_tree()
    Image.fromarray(np.full((8, 6), 40000, np.uint16)).save(root / "train/cat/deep.png")
    refused(lambda: _load(root), "deep.png", "more than 8 bits")


def test_differing_sizes_are_refused_and_can_be_brought_together(
    make_tree: MakeTree, refused: Refused
) -> None:
    root = make_tree()
    Image.new("RGB", (9, 9)).save(root / "train/dog/9.png")
    refused(lambda: _load(root), "one size", "8x6", "9x9", "dog/9.png", "image_size")
    assert _load(root, image_size=(8, 8)).train.shape == (3, 8, 8)


def test_halves_of_differing_sizes_are_refused(make_tree: MakeTree, refused: Refused) -> None:
    root = make_tree()
    other = make_tree("other", size=(5, 5))
    shutil.rmtree(root / "test")
    (other / "test").rename(root / "test")
    refused(lambda: _load(root), "one size", "8x6", "5x5", "image_size")
