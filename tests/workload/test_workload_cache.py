from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from automl_compress.workload import ImageSet, cache_folder
from automl_compress.workload.cache import ImageFiles, Row, cached_images, replacing
from automl_compress.workload.folder import Decoding

MakeTree = Callable[..., Path]


class Reader:
    """Decodes for real and counts what it is asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, paths: Sequence[Path]) -> Iterator[Row]:
        self.count += len(paths)
        return Decoding().files(paths)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def _load(root: Path, reader: Reader, settings: str = "") -> ImageSet:
    names = tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.p*")))
    files = ImageFiles(root, names, np.arange(len(names)), settings)
    return cached_images(files, reader)


def _entries(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def test_an_unchanged_folder_is_decoded_once(make_tree: MakeTree, reader: Reader) -> None:
    root = make_tree()
    first, second = _load(root, reader), _load(root, reader)
    assert reader.count == len(first) == 20
    assert np.array_equal(first.images, second.images)
    assert first.content_hash == second.content_hash
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable


def test_pixels_are_those_of_the_files(make_tree: MakeTree, reader: Reader) -> None:
    root = make_tree()
    images = _load(root, reader)
    for position, path in enumerate(sorted(root.rglob("*.png"))):
        with Image.open(path) as image:
            assert np.array_equal(images.images[position], np.asarray(image).transpose(2, 0, 1))
    assert ImageSet.of(np.array(images.images), images.labels).content_hash == images.content_hash


def test_a_touched_or_copied_folder_is_not_decoded_again(
    make_tree: MakeTree, reader: Reader, tmp_path: Path
) -> None:
    root = make_tree()
    first = _load(root, reader)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert _load(root, reader).content_hash == first.content_hash
    copy = shutil.copytree(root, tmp_path / "copy")
    assert _load(copy, reader).content_hash == first.content_hash
    assert reader.count == 20


def test_one_changed_file_makes_another_entry(make_tree: MakeTree, reader: Reader) -> None:
    root = make_tree()
    first = _load(root, reader)
    Image.new("RGB", (6, 8)).save(root / "train/cat/0.png")
    second = _load(root, reader)
    assert second.content_hash != first.content_hash
    assert reader.count == 40


def test_a_change_of_equal_size_and_time_is_seen(make_tree: MakeTree, reader: Reader) -> None:
    root = make_tree()
    path = root / "train/cat/x.ppm"
    Image.new("RGB", (6, 8), "red").save(path)
    first, stat = _load(root, reader), path.stat()
    Image.new("RGB", (6, 8), "blue").save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert _load(root, reader).content_hash != first.content_hash


def test_settings_are_part_of_the_key(make_tree: MakeTree, reader: Reader) -> None:
    root = make_tree()
    _load(root, reader, "a")
    _load(root, reader, "b")
    assert reader.count == 40


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", _truncate),
        (".npy", _flip),
        (".npy", lambda path: path.write_bytes(b"")),
        (".npy", lambda path: path.write_bytes(b"not an array")),
        (".npy", Path.unlink),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("[]")),
        (".json", Path.unlink),
        (".key", lambda path: path.write_bytes(b"\xff\n")),
        (".key", lambda path: path.write_text("0" * 64)),
    ],
)
def test_a_damaged_entry_is_made_again(
    suffix: str,
    damage: Callable[[Path], object],
    make_tree: MakeTree,
    reader: Reader,
    cache: Path,
) -> None:
    root = make_tree()
    first = _load(root, reader)
    pixels = np.array(first.images)
    for path in _entries(cache, suffix):
        damage(path)
    for _ in range(2):
        again = _load(root, reader)
        assert again.content_hash == first.content_hash
        assert np.array_equal(again.images, pixels)
    assert reader.count == (20 if suffix == ".key" else 40)


def test_a_cache_that_cannot_be_written_costs_only_time(
    make_tree: MakeTree,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = make_tree()
    normal = _load(root, reader)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        images = _load(root, reader)
    assert images.content_hash == normal.content_hash
    assert not isinstance(images.images, np.memmap)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set AUTOML_COMPRESS_CACHE" in caplog.text


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "place" / "file"

    def fail_half_way() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(target.parent.iterdir()) == []


def test_two_processes_at_once_agree_and_import_little(make_tree: MakeTree, cache: Path) -> None:
    root = make_tree(halves={"train": 60, "test": 2})
    heavy = "{'torchvision', 'sklearn', 'pandas', 'ray', 'pymoo', 'optuna', 'matplotlib'}"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from automl_compress.workload.folder import FolderSource\n"
        "child = os.fork()\n"
        "found = FolderSource(Path(sys.argv[1])).load(0).train.content_hash\n"
        f"found += ' ' + str({heavy} & set(sys.modules)) + chr(10)\n"
        "print(found, end='', flush=True)  # whole lines do not mix\n"
        "assert not child or os.waitpid(child, 0)[1] == 0"
    )
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    one, other = done.stdout.splitlines()
    assert one == other
    content_hash, imported = one.split(" ", 1)
    assert len(content_hash) == 64
    assert imported == "set()"
    assert not _entries(cache, ".tmp")


def test_who_may_read_a_file_is_as_of_any_new_one(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "new" / "weights") as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "weights").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["weights"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("AUTOML_COMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "automl_compress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "automl_compress"
