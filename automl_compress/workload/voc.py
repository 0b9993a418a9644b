"""Images with boxes in the layout of Pascal VOC (Everingham et al. 2010).

`JPEGImages/<id>.jpg`, or an image file of another kind, `Annotations/<id>.xml`, and the parts as
lists of ids, one a line, in `ImageSets/Main/{train,val,test}.txt`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described
from automl_compress.workload.boxes import Box, BoxedFiles, BoxedImage, file_size
from automl_compress.workload.folder import SUFFIXES
from automl_compress.workload.images import ImageSet
from automl_compress.workload.sources import TrainTest

LISTS: Final = Path("ImageSets") / "Main"
_IMAGES: Final = "JPEGImages"
_ANNOTATIONS: Final = "Annotations"
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
        files = self._image_files()
        lists = self._lists(files)
        images = {
            part: [self._image(name, files.get(name)) for name in names]
            for part, names in lists.items()
        }
        found = {box.kind for image in images["train"] for box in image.boxes}
        classes = self.classes or tuple(sorted(found))
        sets = {
            part: self.files.load(part_images, classes, f"'{part}' of '{self.files.root}'")
            for part, part_images in images.items()
        }
        return parts_of(sets, classes)

    def _image_files(self) -> dict[str, str]:
        """Names of the image files by id; a .jpg goes before others of its id."""
        folder = self.files.existing_root() / _IMAGES
        paths = folder.iterdir() if folder.is_dir() else ()
        found = [path for path in paths if path.suffix.lower() in SUFFIXES]
        found.sort(key=lambda path: (path.suffix.lower() == ".jpg", path.name))
        return {path.stem: path.name for path in found}

    def _lists(self, files: Container[str]) -> dict[str, list[str]]:
        """Ids by part."""
        folder = self.files.existing_root() / LISTS
        found = {}
        for part in ("train", "val", "test"):
            path = folder / f"{part}.txt"
            if path.is_file():
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                found[part] = [_listed(line, files) for line in lines if line.strip()]
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

    def _image(self, identity: str, file: str | None) -> BoxedImage:
        """An image's annotation.

        Args:
            identity: its id.
            file: name of its image file; None where there is none.
        """
        root = self.files.root
        path = root / _ANNOTATIONS / f"{identity}.xml"
        for what, there in (("image", file is not None), ("annotation", path.is_file())):
            if not there:
                raise WorkloadError(
                    f"every listed image must have its files, but '{root}' holds no {what} of "
                    f"'{identity}'; add it or remove the id from {LISTS.as_posix()}"
                )
        name = f"{_IMAGES}/{file}"
        try:
            # Expat, which parses here, limits how far entities may grow.
            tree = ET.parse(path).getroot()  # noqa: S314
            boxes = tuple(_box(item) for item in tree.iter("object"))
            size = [_side(tree, side, bool(boxes)) for side in ("width", "height")]
        except (OSError, ET.ParseError, ValueError) as reason:
            raise WorkloadError(
                f"an annotation must be Pascal VOC's XML with size, name and bndbox, but '{path}' "
                f"is not ({described(reason)}); correct it"
            ) from reason
        width, height = size if min(size) > 0 else file_size(root / name)
        return BoxedImage(name, width, height, boxes, f"'{path}'")


def _listed(line: str, files: Container[str]) -> str:
    """The id in a line of a list, behind which VOC's lists of a class have a number."""
    whole, first = line.strip(), line.split()[0]
    for name in (whole, first):
        if name in files:
            return name
        if Path(name).suffix.lower() in SUFFIXES and Path(name).stem in files:
            return Path(name).stem
    return whole


def _box(item: ET.Element) -> Box:
    left, top, right, bottom = (float(_text(item, f"bndbox/{edge}")) for edge in _EDGES)
    return Box(_text(item, "name").strip(), (left, top, right, bottom))


def _side(tree: ET.Element, side: str, boxed: bool) -> int:
    """Pixels of a side of the image; 0 where an annotation that has boxes leaves it out."""
    if boxed and not tree.findtext(f"size/{side}"):
        return 0
    return int(float(_text(tree, f"size/{side}")))


def _text(element: ET.Element, path: str) -> str:
    found = element.findtext(path)
    if not found:
        raise ValueError(f"no {path}")
    return found


def check_disjoint(parts: dict[str, list[str]], where: str) -> None:
    """Check that no image stands in two parts, or twice where networks are measured.

    Raises:
        WorkloadError: one does.
    """
    owners: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if owners.get(name, part) != part:
                raise WorkloadError(
                    f"parts of a data set must share no image, but '{name}' is in "
                    f"'{owners[name]}' and '{part}' of '{where}'; remove it from one"
                )
            if name in owners and part != "train":
                raise WorkloadError(
                    f"an image must count once, but '{name}' is listed twice in '{part}' of "
                    f"'{where}'; remove it once"
                )
            owners[name] = part


def parts_of(sets: dict[str, ImageSet], classes: Sequence[str]) -> TrainTest:
    """The parts of a data set, of which `val` or `test` may be missing."""
    validation = sets["val"] if "test" in sets else None
    test = sets.get("test", sets.get("val"))
    assert test is not None
    if len(sets) == 2:
        validation = None
    return TrainTest(sets["train"], test, tuple(classes), validation)
