"""Tiny folders of images with boxes, in the layouts of Pascal VOC and COCO."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bar", "cell")
WIDTH, HEIGHT = 96, 64
PARTS = {"train": 6, "val": 4, "test": 3}

Box = tuple[str, float, float, float, float]
"""Class, left, top, right, bottom."""


@dataclass(frozen=True)
class Drawn:
    """An image and what is on it."""

    name: str
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    boxes: tuple[Box, ...]


def draw(name: str, rng: np.random.Generator) -> Drawn:
    """A dark image with one bright bar and one reddish cell, which do not touch."""
    pixels = rng.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes: list[Box] = []
    for kind, left in (("bar", int(rng.integers(2, 12))), ("cell", int(rng.integers(54, 64)))):
        top = int(rng.integers(4, 20))
        width, height = (36, 14) if kind == "bar" else (24, 28)
        colour = (220, 220, 220) if kind == "bar" else (200, 30, 60)
        pixels[top : top + height, left : left + width] = colour
        boxes.append((kind, left, top, left + width, top + height))
    return Drawn(name, pixels, tuple(boxes))


def drawn_parts(parts: Mapping[str, int] = PARTS) -> dict[str, list[Drawn]]:
    """Different images for every part."""
    rng = np.random.default_rng(3)
    return {part: [draw(f"{part}{i}", rng) for i in range(n)] for part, n in parts.items()}


def annotation(image: Drawn, boxes: Iterable[Box] | None = None) -> str:
    """Pascal VOC's XML of an image."""
    objects = "".join(
        f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin>"
        f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for kind, left, top, right, bottom in (image.boxes if boxes is None else boxes)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def write_voc(root: Path, parts: Mapping[str, int] = PARTS) -> Path:
    """A folder in Pascal VOC's layout."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, images in drawn_parts(parts).items():
        for image in images:
            Image.fromarray(image.pixels).save(root / "JPEGImages" / f"{image.name}.png")
            (root / "Annotations" / f"{image.name}.xml").write_text(annotation(image))
        names = "".join(f"{image.name}\n" for image in images)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(names)
    return root


def write_coco(root: Path, parts: Mapping[str, int] = PARTS) -> Path:
    """The same images in COCO's layout; ids of categories have gaps."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 7 + 3 * i, "name": name} for i, name in enumerate(CLASSES)]
    ids = {item["name"]: item["id"] for item in categories}
    for part, images in drawn_parts(parts).items():
        folder = root / f"{part}2017"
        folder.mkdir()
        listed, boxes = [], []
        for number, image in enumerate(images):
            Image.fromarray(image.pixels).save(folder / f"{image.name}.png")
            size = {"width": WIDTH, "height": HEIGHT}
            listed.append({"id": 100 + number, "file_name": f"{image.name}.png", **size})
            for kind, left, top, right, bottom in image.boxes:
                edges = [left, top, right - left, bottom - top]
                item = {"image_id": 100 + number, "category_id": ids[kind], "bbox": edges}
                boxes.append({"id": len(boxes), "iscrowd": 0, **item})
        document = {"images": listed, "annotations": boxes, "categories": categories}
        path = root / "annotations" / f"instances_{part}2017.json"
        path.write_text(json.dumps(document))
    return root
