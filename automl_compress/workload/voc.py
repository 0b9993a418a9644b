"""Images with boxes in the layout of Pascal VOC (Everingham et al. 2010).

`JPEGImages/<id>.jpg`, `Annotations/<id>.xml`, and the parts as lists of ids in
`ImageSets/Main/{train,val,test}.txt`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described
from automl_compress.workload.boxes import Box, BoxedFiles, BoxedImage
from automl_compress.workload.images import ImageSet
from automl_compress.workload.sources import TrainTest

LISTS: Final = Path("ImageSets") / "Main"
_IMAGES: Final = "JPEGImages"
_ANNOTATIONS: Final = "Annotations"
_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp")
_EDGES: Final = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocSource:
    """A folder in the layout of Pascal VOC.

    `train` is trained on and calibrated by. Where there are lists `val` and `test`, `val` is
    searched by and `test` is the final test. Where there is only one of them, it is the test
    half, and search-validation images are split off as from any other data.

    Objects marked as difficult count like all others.

    Attributes:
        files: folder, size and what becomes of bad boxes.
        classes: names in the order of their indices; empty takes those of `train`, sorted.
    """

    files: BoxedFiles
    classes: tuple[str, ...] = ()

    def load(self, seed: int) -> TrainTest:  # noqa: ARG002 - the folder says how it is split
        """All parts, decoded once and then read from the cache.

        Raises:
            WorkloadError: a list, image or annotation is missing or broken, an id stands in two
                lists, or see `BoxedFiles.load`.
        """
        lists = self._lists()
        images = {part: [self._image(name) for name in names] for part, names in lists.items()}
        found = {box.kind for image in images["train"] for box in image.boxes}
        classes = self.classes or tuple(sorted(found))
        sets = {
            part: self.files.load(part_images, classes, f"'{part}' of '{self.files.root}'")
            for part, part_images in images.items()
        }
        return parts_of(sets, classes)

    def _lists(self) -> dict[str, list[str]]:
        """Ids by part."""
        folder = self.files.existing_root() / LISTS
        found = {}
        for part in ("train", "val", "test"):
            path = folder / f"{part}.txt"
            if path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                found[part] = [line.split()[0] for line in lines if line.strip()]
                if not found[part]:
                    raise WorkloadError(f"a list of images must name some, but '{path}' is empty")
        if "train" not in found or len(found) < 2:
            raise WorkloadError(
                f"data in VOC layout must hold {LISTS.as_posix()}/train.txt and val.txt or "
                f"test.txt, but '{self.files.root}' holds {', '.join(found) or 'none of them'}; "
                f"add them or correct data.voc"
            )
        check_disjoint(found, str(folder))
        return found

    def _image(self, identity: str) -> BoxedImage:
        """An image's annotation."""
        root = self.files.root
        path = root / _ANNOTATIONS / f"{identity}.xml"
        name = next(
            (
                f"{_IMAGES}/{identity}{suffix}"
                for suffix in _SUFFIXES
                if (root / _IMAGES / f"{identity}{suffix}").is_file()
            ),
            None,
        )
        for what, there in (("image", name is not None), ("annotation", path.is_file())):
            if not there:
                raise WorkloadError(
                    f"every listed image must have its files, but '{root}' holds no {what} of "
                    f"'{identity}'; add it or remove the id from {LISTS.as_posix()}"
                )
        assert name is not None
        try:
            # Expat, which parses here, limits how far entities may grow.
            tree = ET.parse(path).getroot()  # noqa: S314
            size = [int(float(_text(tree, f"size/{side}"))) for side in ("width", "height")]
            boxes = tuple(_box(item) for item in tree.iter("object"))
        except (OSError, ET.ParseError, ValueError) as reason:
            raise WorkloadError(
                f"an annotation must be Pascal VOC's XML with size, name and bndbox, but '{path}' "
                f"is not ({described(reason)}); correct it"
            ) from reason
        return BoxedImage(name, size[0], size[1], boxes, f"'{path}'")


def _box(item: ET.Element) -> Box:
    left, top, right, bottom = (float(_text(item, f"bndbox/{edge}")) for edge in _EDGES)
    return Box(_text(item, "name").strip(), (left, top, right, bottom))


def _text(element: ET.Element, path: str) -> str:
    found = element.findtext(path)
    if not found:
        raise ValueError(f"no {path}")
    return found


def check_disjoint(parts: dict[str, list[str]], where: str) -> None:
    """Check that no image stands in two parts.

    Raises:
        WorkloadError: one does.
    """
    owners: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if owners.setdefault(name, part) != part:
                raise WorkloadError(
                    f"parts of a data set must share no image, but '{name}' is in "
                    f"'{owners[name]}' and '{part}' of '{where}'; remove it from one"
                )


def parts_of(sets: dict[str, ImageSet], classes: Sequence[str]) -> TrainTest:
    """The parts of a data set, of which `val` or `test` may be missing."""
    validation = sets["val"] if "test" in sets else None
    test = sets.get("test", sets.get("val"))
    assert test is not None
    if len(sets) == 2:
        validation = None
    return TrainTest(sets["train"], test, tuple(classes), validation)
