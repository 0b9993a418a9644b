"""Images with boxes in the layout of COCO (Lin et al. 2014).

`annotations/instances_{train,val,test}*.json` and the images in folders named like them, such as
`train2017/` beside `annotations/instances_train2017.json`, or in `images/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described
from automl_compress.workload.boxes import Box, BoxedFiles, BoxedImage, file_size
from automl_compress.workload.sources import TrainTest
from automl_compress.workload.voc import check_disjoint, parts_of

FOLDER: Final = "annotations"
_PREFIX: Final = "instances_"


@dataclass(frozen=True)
class CocoSource:
    """A folder in the layout of COCO.

    Parts are as in the VOC layout: `train` is trained on; with both `val` and `test`, `val` is
    searched by and `test` is the final test; one of them alone is the test half.

    Attributes:
        files: folder, size and what becomes of bad boxes.
        classes: names in the order of their indices; empty takes the categories of `train`, in
            the order of their ids.
    """

    files: BoxedFiles
    classes: tuple[str, ...] = ()

    def load(self, seed: int) -> TrainTest:  # noqa: ARG002 - the folder says how it is split
        """All parts, decoded once and then read from the cache.

        Raises:
            WorkloadError: a file is missing or broken, an image stands in two parts, or see
                `BoxedFiles.load`.
        """
        documents = {part: _read(path) for part, path in self._paths().items()}
        images = {
            part: self._images(part_path, document)
            for part, (part_path, document) in documents.items()
        }
        check_disjoint(
            {part: [image.name for image in found] for part, found in images.items()},
            str(self.files.root),
        )
        classes = self.classes or tuple(_categories(*documents["train"]).values())
        sets = {
            part: self.files.load(found, classes, f"'{documents[part][0]}'")
            for part, found in images.items()
        }
        return parts_of(sets, classes)

    def _paths(self) -> dict[str, Path]:
        """Annotations by part."""
        folder = self.files.existing_root() / FOLDER
        found = {}
        for part in ("train", "val", "test"):
            paths = sorted(folder.glob(f"{_PREFIX}{part}*.json"))
            if len(paths) > 1:
                raise WorkloadError(
                    f"data in COCO layout must have one file a part, but '{folder}' holds "
                    f"{paths[0].name} and {paths[1].name}; remove one"
                )
            if paths:
                found[part] = paths[0]
        if "train" not in found or len(found) < 2:
            raise WorkloadError(
                f"data in COCO layout must hold {FOLDER}/{_PREFIX}train*.json and one of val or "
                f"test, but '{self.files.root}' holds {', '.join(found) or 'none of them'}; add "
                f"them or correct data.coco"
            )
        return found

    def _images(self, path: Path, document: Any) -> list[BoxedImage]:
        names = _categories(path, document)
        found = _by_identity(path, document, "images")
        boxes: dict[str, list[Box]] = {}
        for image, kind, box in _boxes(path, document):
            if kind not in names:
                raise WorkloadError(
                    f"the category of a box must be listed, but '{path}' has a box of {kind}, "
                    f"which is not; correct it"
                )
            boxes.setdefault(image, []).append(replace(box, kind=names[kind]))
        if not found:
            raise WorkloadError(f"annotations must list images, but '{path}' lists none")
        unknown = boxes.keys() - found.keys()
        if unknown:
            raise WorkloadError(
                f"every box must be of a listed image, but '{path}' has boxes of image "
                f"{min(unknown)}, which is not; correct it"
            )
        try:
            files = {identity: str(image["file_name"]) for identity, image in found.items()}
            sizes = {identity: _size(image) for identity, image in found.items()}
        except (KeyError, TypeError, ValueError) as reason:
            raise _broken(path, reason) from reason
        folder = self._folder(path, next(iter(files.values())))
        result = []
        for identity, file in files.items():
            name = self._existing(folder / file, path)
            width, height = sizes[identity] or file_size(folder / file)
            where = f"image {identity} of '{path}'"
            result.append(BoxedImage(name, width, height, tuple(boxes.get(identity, ())), where))
        return result

    def _folder(self, path: Path, first: str) -> Path:
        """The folder that holds a part's images."""
        root, part = self.files.root, path.stem.removeprefix(_PREFIX)
        places = [root / part, root / "images" / part, root / "images", root]
        return next((place for place in places if (place / first).is_file()), places[0])

    def _existing(self, image: Path, path: Path) -> str:
        if not image.is_file():
            raise WorkloadError(
                f"every listed image must have its file, but '{path}' lists '{image}', which does "
                f"not exist; add it or remove its entry"
            )
        root = self.files.root
        return (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()


def _read(path: Path) -> tuple[Path, Any]:
    try:
        return path, json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise _broken(path, reason) from reason


def _categories(path: Path, document: Any) -> dict[str, str]:
    """Names by id, in the order of the ids."""
    found = _by_identity(path, document, "categories")
    try:
        names = {identity: str(item["name"]) for identity, item in found.items()}
    except (KeyError, TypeError) as reason:
        raise _broken(path, reason) from reason
    numbered = all(identity.isdecimal() for identity in names)
    return dict(sorted(names.items(), key=lambda item: int(item[0]) if numbered else item[0]))


def _by_identity(path: Path, document: Any, kind: str) -> dict[str, Any]:
    """Images or categories by id.

    Raises:
        WorkloadError: two have the same.
    """
    found: dict[str, Any] = {}
    try:
        for item in document[kind]:
            identity = _identity(item["id"])
            if identity in found:
                raise WorkloadError(
                    f"ids of {kind} must differ, but '{path}' has {identity} twice; correct it"
                )
            found[identity] = item
    except (KeyError, TypeError) as reason:
        raise _broken(path, reason) from reason
    return found


def _boxes(path: Path, document: Any) -> Iterator[tuple[str, str, Box]]:
    """Ids of image and category of every box, and the box, whose class is not named yet."""
    try:
        for item in document["annotations"]:
            left, top, width, height = map(float, item["bbox"])
            crowd = bool(int(item.get("iscrowd") or 0))
            box = Box("", (left, top, left + width, top + height), crowd)
            yield _identity(item["image_id"]), _identity(item["category_id"]), box
    except (KeyError, TypeError, ValueError) as reason:
        raise _broken(path, reason) from reason


def _identity(given: Any) -> str:
    """An id, which some write as a number in one place and as text in another."""
    if not isinstance(given, int | str):
        raise TypeError(f"{given!r} is no id")
    return str(given)


def _size(image: Any) -> tuple[int, int] | None:
    """Width and height of an image; None where they are not given."""
    width, height = (int(image.get(side) or 0) for side in ("width", "height"))
    return (width, height) if min(width, height) > 0 else None


def _broken(path: Path, reason: BaseException) -> WorkloadError:
    return WorkloadError(
        f"annotations must be COCO's JSON with images, annotations and categories, but '{path}' is "
        f"not ({described(reason)}); correct it"
    )
