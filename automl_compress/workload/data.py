"""What a sweep file says about data: where images come from and how they are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import WorkloadError
from automl_compress.settings import LARGEST_SEED, Section, shown
from automl_compress.user_code import is_factory
from automl_compress.workload.boxes import BAD_BOXES, BoxedFiles
from automl_compress.workload.cache import cache_folder
from automl_compress.workload.coco import CocoSource
from automl_compress.workload.digits import DigitsSource
from automl_compress.workload.folder import Decoding, FolderSource
from automl_compress.workload.images import Normalization
from automl_compress.workload.sources import (
    TORCHVISION_SETS,
    Source,
    TorchvisionSource,
)
from automl_compress.workload.user_data import FactorySource
from automl_compress.workload.voc import VocSource

HALVES: Final = ("test", "train")
"""Where search-validation images may be taken from."""


@dataclass(frozen=True)
class DataConfig:
    """What a sweep file says about data.

    Attributes:
        source: where the images come from.
        mean: one number a channel on the 0..1 scale; None is 0.
        std: one number a channel on the 0..1 scale; None is 1.
        validation_from: half the search-validation images are taken from. `test` is right for
            weights trained on the full training half; `train` for weights known not to be
            trained on the images that this seed picks.
        validation_images: their number; None is half of the test half or a tenth of the training
            half, at most 5000.
        seed: decides which images these are.
        trained: mean and std that the network was trained with, for 8-bit images of as many
            channels whose own are not stated.

    Raises:
        WorkloadError: mean and std do not fit each other, a std is not above 0, or there is no such
            half or number of images.
    """

    source: Source
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation_from: str = "test"
    validation_images: int | None = None
    seed: int = 0
    trained: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        channels = len(self.mean or self.std or ())
        if channels:
            unit = Normalization.unit(channels)
            Normalization(self.mean or unit.mean, self.std or unit.std)
        if self.validation_from not in HALVES:
            raise WorkloadError(
                f"search-validation examples must be from {' or '.join(HALVES)}, but are to "
                f"be from {shown(self.validation_from)}; correct it"
            )
        if self.validation_images is not None and self.validation_images < 1:
            raise WorkloadError(
                f"search-validation examples must be at least 1, but are {self.validation_images}; "
                "raise it"
            )

    @classmethod
    def from_name(cls, name: str) -> DataConfig:
        """The data that one word names: `digits` or `package.module:function`.

        Raises:
            WorkloadError: it is neither.
        """
        if name == "digits":
            return cls(DigitsSource())
        if is_factory(name):
            return cls(FactorySource(name))
        raise WorkloadError(
            f"data must be 'digits', 'package.module:function' or a mapping with one of "
            f"{', '.join(_SOURCES)}, but is '{name}'; for a folder write {{root: {name}}}"
        )

    @classmethod
    def from_section(cls, section: Section, base: Path) -> DataConfig:
        """Read and close the mapping below `data`.

        Args:
            section: the mapping.
            base: folder that relative paths start at.

        Raises:
            InputError: a key is unknown, missing or has a wrong value.
        """
        source = _source(section, base)
        mean, std = channel_numbers(section, "mean"), channel_numbers(section, "std")
        validation = section.section("search_validation")
        half = validation.choice("from", HALVES, "test")
        images = validation.number("images", int, None, low=1)
        seed = section.number("seed", int, 0, low=0, high=LARGEST_SEED)
        validation.close()
        section.close()
        try:
            return cls(source, mean, std, half, images, seed)
        except WorkloadError as error:
            raise section.fail(str(error)) from error

    def normalized_as(self, trained: Section) -> DataConfig:
        """These data, for a network that was trained on those of a section.

        Args:
            trained: mapping of the other data; mean and std may be missing.

        Raises:
            InputError: its numbers are wrong.
        """
        mean, std = channel_numbers(trained, "mean"), channel_numbers(trained, "std")
        return self if mean is None or std is None else replace(self, trained=(mean, std))


def existing(text: str, base: Path) -> Path:
    """A path as a user wrote it: from `base` if it exists there, else from the current folder."""
    path = Path(text).expanduser()
    for folder in (base, Path.cwd()):
        if (folder / path).exists():
            return (folder / path).absolute()
    return (base / path).absolute()


def _is_size(given: object) -> bool:
    return (
        isinstance(given, list)
        and len(given) == 2
        and all(isinstance(n, int) and n > 0 for n in given)
    )


def _image_size(section: Section) -> tuple[int, int] | None:
    given = section.get("image_size", (list, int), [])
    if "image_size" in section and not _is_size(given):
        square = isinstance(given, int) and given > 0
        raise section.fail(
            f"'{section.name('image_size')}' must be [height, width], each at least 1, but is "
            f"{given}; " + (f"write [{given}, {given}]" if square else "correct it"),
            "image_size",
        )
    size = section.items("image_size", int, ())
    return (size[0], size[1]) if size else None


def _channels(section: Section) -> int:
    channels: int = section.get("channels", int, 3)
    if channels not in (1, 3):
        raise section.fail(
            f"'{section.name('channels')}' must be 3 (colour) or 1 (grey), but is {channels}; "
            f"correct it",
            "channels",
        )
    return channels


def _folder(section: Section, base: Path) -> Source:
    decoding = Decoding(_channels(section), _image_size(section))
    return FolderSource(existing(section.get("root", str), base), decoding)


def _boxed(section: Section, base: Path, key: str) -> tuple[BoxedFiles, tuple[str, ...]]:
    """How images with boxes are read, and the classes if they are named."""
    root = existing(section.get(key, str), base)
    size = _image_size(section)
    if size is None:
        raise section.fail(
            f"'{section.name('image_size')}' must be given for images with boxes, but is missing; "
            f"add image_size: [height, width]"
        )
    bad_boxes = section.choice("bad_boxes", BAD_BOXES, "refuse")
    files = BoxedFiles(root, size, _channels(section), bad_boxes)  # type: ignore[arg-type]
    return files, section.items("classes", str, ())


def _voc(section: Section, base: Path) -> Source:
    return VocSource(*_boxed(section, base, "voc"))


def _coco(section: Section, base: Path) -> Source:
    return CocoSource(*_boxed(section, base, "coco"))


def _torchvision(section: Section, base: Path) -> Source:
    root = section.get("root", str, None)
    return TorchvisionSource(
        section.choice("torchvision", TORCHVISION_SETS),
        existing(root, base) if root else cache_folder() / "downloads",
        section.get("download", bool, True),
    )


def _factory(section: Section, base: Path) -> Source:  # noqa: ARG001 - names no path
    return FactorySource(section.get("factory", str))


def _digits(section: Section, base: Path) -> Source:  # noqa: ARG001 - names no path
    if not section.get("digits", bool):
        raise section.fail(f"'{section.name('digits')}' must be true; remove it", "digits")
    return DigitsSource()


BOXED: Final = (VocSource, CocoSource)
"""Sources of images with boxes."""


def layout_of(folder: Path) -> str:
    """The key of `data` that fits a folder: `voc`, `coco` or `root`."""
    if (folder / "ImageSets").is_dir() and (folder / "Annotations").is_dir():
        return "voc"
    return "coco" if any((folder / "annotations").glob("*.json")) else "root"


# `root` stands last: beside `torchvision` it is the download folder.
_SOURCES: Final[dict[str, Callable[[Section, Path], Source]]] = {
    "torchvision": _torchvision,
    "voc": _voc,
    "coco": _coco,
    "factory": _factory,
    "digits": _digits,
    "root": _folder,
}


def _source(section: Section, base: Path) -> Source:
    for name, read in _SOURCES.items():
        if name in section.keys():  # noqa: SIM118 - the key of another source stays unknown
            return read(section, base)
    raise section.fail(
        f"'{section.name()}' must hold one of {', '.join(_SOURCES)}, but holds "
        f"{', '.join(section.keys()) or 'nothing'}; add one"
    )


def channel_numbers(section: Section, key: str) -> tuple[float, ...] | None:
    """One number a channel; None where the key is absent.

    Raises:
        InputError: it is no list of numbers, or empty.
    """
    values: tuple[Any, ...] = section.items(key, float, ())
    if key in section and not values:
        raise section.fail(f"'{section.name(key)}' must hold one number a channel; add it", key)
    return tuple(float(value) for value in values) or None
