"""Boxes that images are labelled with: checked, scaled with their images and kept in one array.

An array of boxes is (n, m, 6) float32: for each of n images at most m boxes of left, top, right and
bottom edge in pixels of the scaled image, index of the class, and 1 for a region that holds a crowd
of objects nobody told apart. Rows that are left over have class -1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import ExifTags, Image

from automl_compress.errors import WorkloadError
from automl_compress.settings import suggestion
from automl_compress.user_code import described
from automl_compress.workload.cache import ImageFiles, Row, cached_images
from automl_compress.workload.folder import Decoding
from automl_compress.workload.images import BOX_VALUES, ImageSet, Labels

_logger = logging.getLogger(__name__)

BadBoxes = Literal["refuse", "drop"]
BAD_BOXES: Final = ("refuse", "drop")
_SLACK: Final = 1.0
"""Pixels a box may reach outside its image by; annotations in fractions are rounded."""


@dataclass(frozen=True)
class Box:
    """One box of an image.

    Attributes:
        kind: name of its class.
        edges: left, top, right and bottom in pixels of the image file.
        crowd: whether it is a region of objects nobody told apart.
    """

    kind: str
    edges: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class BoxedImage:
    """One image file and its boxes.

    Attributes:
        name: path below the data set's folder, with forward slashes.
        width: of the file, in pixels, as the annotation says.
        height: of the file, in pixels, as the annotation says.
        boxes: its boxes; an image may have none.
        where: names the annotation, for messages.
    """

    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    where: str


@dataclass(frozen=True)
class BoxedFiles:
    """How files of images and their boxes become arrays.

    Attributes:
        root: the data set's folder.
        image_size: (h, w) that images are scaled to, along each axis alone. The overlap (IoU) of
            boxes does not depend on that.
        channels: 3 for colour, 1 for grey.
        bad_boxes: what is done with boxes outside their image or without an area.
    """

    root: Path
    image_size: tuple[int, int]
    channels: int = 3
    bad_boxes: BadBoxes = "refuse"

    def existing_root(self) -> Path:
        """The folder.

        Raises:
            WorkloadError: it does not exist.
        """
        if not self.root.is_dir():
            raise WorkloadError(
                f"the data folder must exist, but '{self.root}' does not; correct data.voc or "
                "data.coco (it may be relative to the sweep file's folder or the current one)"
            )
        return self.root

    def load(self, images: Sequence[BoxedImage], classes: Sequence[str], what: str) -> ImageSet:
        """Images, decoded once and then read from the cache, with their boxes.

        Args:
            images: of one part of the data set.
            classes: names of the classes, in the order of their indices.
            what: names the part, for messages.

        Raises:
            WorkloadError: a box is bad, its class unknown or named twice, there is no box at all,
                or a file cannot be decoded or has another size than its annotation says.
        """
        labels = self._boxes(images, classes, what)
        decoding = Decoding(self.channels, self.image_size, stretched=True)
        sizes = {self.root / i.name: (i.width, i.height, i.where) for i in images}
        files = ImageFiles(self.root, tuple(i.name for i in images), labels, repr(decoding))

        def decode(paths: Sequence[Path]) -> Iterator[Row]:
            for path, row in zip(paths, decoding.files(paths), strict=True):
                _check_file_size(path, *sizes[path])
                yield row

        try:
            return cached_images(files, decode)
        except OSError as reason:
            raise WorkloadError(
                f"every image must be readable, but reading '{self.root}' raised "
                f"{described(reason)}; repair or remove the file"
            ) from reason

    def _boxes(self, images: Sequence[BoxedImage], classes: Sequence[str], what: str) -> Labels:
        indices = {name: index for index, name in enumerate(classes)}
        rows: list[list[tuple[float, ...]]] = []
        dropped = 0
        for image in images:
            kept = []
            for box in image.boxes:
                if box.kind not in indices:
                    raise WorkloadError(
                        f"the class of a box must be one of {', '.join(classes)}, but "
                        f"{image.where} has '{box.kind}'{suggestion(box.kind, classes)}; correct "
                        f"it or data.classes"
                    )
                if classes.count(box.kind) > 1:
                    raise WorkloadError(
                        f"names of classes must differ, but {image.where} has a box of "
                        f"'{box.kind}', which {classes.count(box.kind)} classes are named; rename "
                        f"all but one"
                    )
                problem = _problem(box, image)
                if problem:  # maybe because its image has another size
                    _check_file_size(self.root / image.name, image.width, image.height, image.where)
                if problem and self.bad_boxes == "refuse":
                    raise WorkloadError(
                        f"a box must have an area inside its image of {image.width}x"
                        f"{image.height}, but {image.where} has one that {problem}; correct it, "
                        f"or set data.bad_boxes: drop"
                    )
                dropped += bool(problem)
                if not problem:
                    kept.append((*self._scaled(box, image), indices[box.kind], float(box.crowd)))
            rows.append(kept)
        if dropped:
            boxes = "bad box" if dropped == 1 else "bad boxes"
            _logger.warning("%d %s of %s left out", dropped, boxes, what)
        if not any(rows):
            raise WorkloadError(
                f"every part of a data set must hold boxes, but {what} has none; add annotations"
            )
        labels: Labels = np.zeros((len(rows), max(map(len, rows)), BOX_VALUES), np.float32)
        labels[:, :, 4] = -1.0
        for place, kept in enumerate(rows):
            if kept:
                labels[place, : len(kept)] = kept
        return labels

    def _scaled(self, box: Box, image: BoxedImage) -> list[float]:
        """Edges in pixels of the scaled image, inside it."""
        height, width = self.image_size
        by = (width / image.width, height / image.height) * 2
        limits = (width, height) * 2
        return [
            min(max(edge * scale, 0.0), limit)
            for edge, scale, limit in zip(box.edges, by, limits, strict=True)
        ]


def _problem(box: Box, image: BoxedImage) -> str:
    """What is wrong with a box; empty when nothing."""
    left, top, right, bottom = box.edges
    shown = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not all(map(math.isfinite, box.edges)):
        return f"is {shown}"
    if right <= left or bottom <= top:
        return f"is {shown}, without an area"
    outside = max(-left, -top, right - image.width, bottom - image.height)
    return f"is {shown}, outside of it" if outside > _SLACK else ""


def file_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file in pixels, as they are stored.

    Raises:
        WorkloadError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as reason:
        raise WorkloadError(
            f"every image must be readable, but '{path}' is not ({described(reason)}); repair or "
            "remove it"
        ) from reason


def _check_file_size(path: Path, width: int, height: int, where: str) -> None:
    size = file_size(path)
    if size == (width, height):
        return
    remedy = "correct it"
    if size == (height, width) and _is_turned(path):
        remedy = (
            "its EXIF orientation turns it, but pixels are read as they are stored: store it so"
        )
    raise WorkloadError(
        f"an image must have the size its annotation says, but '{path}' is {size[0]}x{size[1]} "
        f"and {where} says {width}x{height}; {remedy}"
    )


def _is_turned(path: Path) -> bool:
    """Whether programs that heed a file's EXIF orientation exchange its sides."""
    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
