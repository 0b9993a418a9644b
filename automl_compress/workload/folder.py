"""Images as files: `{train,test}/<class>/*`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described
from automl_compress.workload.cache import ImageFiles, Row, cached_images
from automl_compress.workload.images import ImageSet
from automl_compress.workload.sources import TrainTest

SUFFIXES: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
)
_BATCH: Final = 256
_TASK: Final = 32
_MODES: Final = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Decoding:
    """How an image becomes pixels.

    Attributes:
        channels: 3 for colour, 1 for grey.
        image_size: (h, w) that images are brought to: scaled until they cover it, then cropped
            to their centre. None keeps their own size.
        stretched: whether images are scaled along each axis alone in place of cropping.
    """

    channels: int = 3
    image_size: tuple[int, int] | None = None
    stretched: bool = False

    def pixels(self, image: Image.Image) -> Row:
        """(c, h, w) uint8 of one image.

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        if image.mode.startswith(("I", "F")):
            # PIL would clip the values instead of scaling them.
            raise ValueError(f"mode '{image.mode}' has more than 8 bits a channel; convert it")
        colour = image.convert(_MODES[self.channels])
        if self.image_size is not None and self.stretched:
            height, width = self.image_size
            colour = colour.resize((width, height), Image.Resampling.BILINEAR)
        elif self.image_size is not None:
            colour = _covering(colour, *self.image_size)
        values = np.asarray(colour, dtype=np.uint8)
        return np.ascontiguousarray(np.atleast_3d(values).transpose(2, 0, 1))

    def files(self, paths: Sequence[Path]) -> Iterator[Row]:
        """Pixels of image files, in order.

        Raises:
            WorkloadError: a file cannot be decoded, or the sizes differ.
        """
        first: Row | None = None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), _BATCH):
                batch = paths[start : start + _BATCH]
                # One image a task would spend more on the threads than on a small image.
                tasks = [batch[at : at + _TASK] for at in range(0, len(batch), _TASK)]
                rows = chain.from_iterable(pool.map(self._task, tasks))
                for path, row in zip(batch, rows, strict=True):
                    first = row if first is None else first
                    _check_size(path, row, paths[0], first)
                    yield row

    def _task(self, paths: Sequence[Path]) -> list[Row]:
        return [self._file(path) for path in paths]

    def _file(self, path: Path) -> Row:
        try:
            with Image.open(path) as image:
                return self.pixels(image)
        except Exception as reason:
            raise WorkloadError(
                f"every image must be readable, but '{path}' is not "
                f"({described(reason)}); repair or remove it"
            ) from reason


@dataclass(frozen=True)
class FolderSource:
    """A folder with `train` and `test` (or `val`), each with one folder a class.

    Attributes:
        root: the folder.
        decoding: colour and size of the images.
    """

    root: Path
    decoding: Decoding = Decoding()

    def load(self, seed: int) -> TrainTest:  # noqa: ARG002 - a folder has nothing random
        """Both halves, decoded once and then read from the cache.

        Raises:
            WorkloadError: a folder is missing or empty, there are fewer than two classes, the
                classes of both halves differ, or an image is broken or of another size.
        """
        train, test = self._halves()
        classes = _classes(train)
        _check_same_classes(train, classes, test, _classes(test))
        sets = TrainTest(self._images(train, classes), self._images(test, classes), classes)
        if sets.train.shape != sets.test.shape:
            raise WorkloadError(
                f"images must have one size, but '{train}' has {_size(sets.train.shape)} and "
                f"'{test}' has {_size(sets.test.shape)}; set data.image_size: [height, width]"
            )
        return sets

    def _halves(self) -> tuple[Path, Path]:
        if not self.root.is_dir():
            raise WorkloadError(
                f"the data folder must exist, but '{self.root}' does not; correct data.root "
                f"(it may be relative to the sweep file's folder or to the current folder)"
            )
        train = self.root / "train"
        if not train.is_dir():
            raise WorkloadError(
                f"a data folder must hold train/<class>/*, but '{self.root}' has no folder "
                f"'train'; add it or correct data.root"
            )
        for name in ("test", "val"):
            if (self.root / name).is_dir():
                return train, self.root / name
        raise WorkloadError(
            f"a data folder must hold test/<class>/* or val/<class>/*, but '{self.root}' has "
            f"neither; add one of them"
        )

    def _images(self, half: Path, classes: Sequence[str]) -> ImageSet:
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = _image_names(half, name)
            if not found:
                raise WorkloadError(
                    f"every class folder must hold images, but '{half / name}' holds none with "
                    f"an ending among {', '.join(sorted(SUFFIXES))}; add images or remove it"
                )
            names += found
            labels += [label] * len(found)
        files = ImageFiles(half, tuple(names), np.array(labels, np.int64), repr(self.decoding))
        try:
            return cached_images(files, self.decoding.files)
        except OSError as reason:
            raise WorkloadError(
                f"every image must be readable, but reading '{half}' raised "
                f"{described(reason)}; repair or remove the file"
            ) from reason


def _classes(half: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in half.iterdir() if _is_class(entry)))
    if len(classes) < 2:
        found = f"only '{classes[0]}'" if classes else "none"
        raise WorkloadError(
            f"an image folder must have at least two classes, but '{half}' has {found}; "
            f"put the images of each class into a folder of their own"
        )
    return classes


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _check_same_classes(
    train: Path, in_train: Sequence[str], test: Path, in_test: Sequence[str]
) -> None:
    for present, absent, names in (
        (train, test, set(in_train) - set(in_test)),
        (test, train, set(in_test) - set(in_train)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WorkloadError(
                f"both halves must have the same classes, but '{min(names)}'{more} of "
                f"'{present}' is missing in '{absent}'; add it there or remove it here"
            )


def _image_names(half: Path, class_name: str) -> list[str]:
    """Paths below `half` of one class's images, sorted; hidden files are left out.

    A folder that links lead to again, as to one above them, is read once.
    """
    found = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(half / class_name, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        place = Path(folder).relative_to(half).as_posix()
        found += [
            f"{place}/{name}"
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
        ]
    return sorted(found)


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    scaled = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def _check_size(path: Path, row: Row, first_path: Path, first: Row) -> None:
    if row.shape != first.shape:
        raise WorkloadError(
            f"images must have one size, but '{first_path}' is {_size(first.shape)} and "
            f"'{path}' is {_size(row.shape)}; set data.image_size: [height, width]"
        )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
