from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed_folders import (
    CLASSES,
    HEIGHT,
    PARTS,
    WIDTH,
    annotation,
    drawn_parts,
    write_coco,
    write_voc,
)
from PIL import Image

from automl_compress.recover import section_of
from automl_compress.workload import DataConfig, ImageSet, Splits, load_splits

Refused = Callable[..., None]
SIZE = [32, 96]


def _splits(**data: Any) -> Splits:
    settings = {"image_size": SIZE, **data}
    return load_splits(DataConfig.from_section(section_of(**settings), Path()))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def _annotate(voc: Path, *boxes: Any, name: str = "train0") -> None:
    image = drawn_parts()["train"][0]
    (voc / "Annotations" / f"{name}.xml").write_text(annotation(image, boxes))


def test_boxes_are_scaled_with_their_images(voc: Path) -> None:
    splits = _splits(voc=str(voc))
    drawn = drawn_parts()["train"]
    assert splits.classes == CLASSES
    assert splits.train.shape == (3, *SIZE)
    for image, boxes in zip(drawn, splits.train.labels, strict=True):
        expected = [
            (left, top * SIZE[0] / HEIGHT, right, bottom * SIZE[0] / HEIGHT, CLASSES.index(kind), 0)
            for kind, left, top, right, bottom in image.boxes
        ]
        np.testing.assert_allclose(boxes, expected)
    row = np.asarray(
        Image.fromarray(drawn[0].pixels).resize((WIDTH, SIZE[0]), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(splits.train.images[0], row.transpose(2, 0, 1))


def test_three_lists_are_the_three_splits(voc: Path) -> None:
    splits = _splits(voc=str(voc))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == tuple(PARTS.values())


def test_both_layouts_give_the_same(voc: Path, coco: Path) -> None:
    one, other = _splits(voc=str(voc)), _splits(coco=str(coco))
    assert one.classes == other.classes
    for part in ("train", "validation", "test"):
        first, second = getattr(one, part), getattr(other, part)
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert first.content_hash == second.content_hash


def test_two_lists_are_split_as_other_data_are(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "two", {"train": 6, "val": 4})
    from_test = _splits(voc=str(root))
    assert [len(s) for s in (from_test.train, from_test.validation, from_test.test)] == [6, 2, 2]
    validation = {"from": "train", "images": 2}
    from_train = _splits(voc=str(root), search_validation=validation)
    assert [len(s) for s in (from_train.train, from_train.validation, from_train.test)] == [4, 2, 4]


def test_rows_without_a_box_have_no_class(voc: Path) -> None:
    _annotate(voc, ("cell", 10, 10, 20, 20))
    _annotate(voc, name="train1")
    labels = _splits(voc=str(voc)).train.labels
    assert labels[:3, :, 4].tolist() == [[1, -1], [-1, -1], [0, 1]]


def test_decoded_images_come_from_the_cache(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _splits(voc=str(voc))
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("decoded again"))
    assert isinstance(_splits(voc=str(voc)).train.images, np.memmap)
    assert _splits(voc=str(voc)).train.content_hash == first.train.content_hash


def test_another_annotation_is_another_set(voc: Path) -> None:
    first = _splits(voc=str(voc))
    _annotate(voc, ("cell", 10, 10, 21, 20))
    assert _splits(voc=str(voc)).train.content_hash != first.train.content_hash


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (("cell", 20, 10, 20, 30), "without an area"),
        (("cell", 30, 10, 20, 30), "without an area"),
        (("cell", 20, 10, 98, 30), "outside"),
        (("cell", -2, 10, 20, 30), "outside"),
        (("cell", float("nan"), 10, 20, 30), "nan"),
    ],
)
def test_bad_boxes_are_refused_or_dropped(
    voc: Path, refused: Refused, box: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    _annotate(voc, box, ("bar", 1, 1, 30, 30))
    refused(lambda: _splits(voc=str(voc)), said, "train0.xml", "data.bad_boxes: drop")
    labels = _splits(voc=str(voc), bad_boxes="drop").train.labels
    assert labels[0, :, 4].tolist() == [0, -1]
    assert "1 bad box" in caplog.text


def test_a_box_may_reach_a_fraction_outside(voc: Path) -> None:
    _annotate(voc, ("cell", -0.4, 10, 96.5, 30))
    assert _splits(voc=str(voc)).train.labels[0, 0, [0, 2]].tolist() == [0.0, WIDTH]


def test_unknown_classes_are_refused(voc: Path, refused: Refused) -> None:
    _annotate(voc, ("cells", 1, 1, 30, 30), name="test0")
    refused(lambda: _splits(voc=str(voc)), "'cells', did you mean 'cell'?", "test0.xml")
    refused(lambda: _splits(voc=str(voc), classes=["cell"]), "'bar'")


def test_classes_may_be_named_in_any_order(voc: Path) -> None:
    splits = _splits(voc=str(voc), classes=["cell", "bar", "dust"])
    with_cells = _splits(voc=str(voc), classes=["cell", "bar", "dust"]).train.labels
    assert splits.classes == ("cell", "bar", "dust")
    assert with_cells[0, :, 4].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("missing", "said"), [("JPEGImages/val1.png", "no image"), ("Annotations/val1.xml", "no annot")]
)
def test_missing_files_are_named(voc: Path, refused: Refused, missing: str, said: str) -> None:
    (voc / missing).unlink()
    refused(lambda: _splits(voc=str(voc)), said, "'val1'")


@pytest.mark.parametrize("text", ["", "<annotation>", "<annotation/>", "<a><size/></a>"])
def test_broken_annotations_are_named(voc: Path, refused: Refused, text: str) -> None:
    (voc / "Annotations" / "val1.xml").write_text(text)
    refused(lambda: _splits(voc=str(voc)), "val1.xml", "Pascal VOC")


def test_images_of_another_size_than_stated_are_refused(voc: Path, refused: Refused) -> None:
    Image.new("RGB", (40, 30)).save(voc / "JPEGImages" / "train0.png")
    refused(lambda: _splits(voc=str(voc)), "40x30", f"{WIDTH}x{HEIGHT}", "train0.xml")


def test_an_image_in_two_lists_is_refused(voc: Path, refused: Refused) -> None:
    with (voc / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("train2\n")
    refused(lambda: _splits(voc=str(voc)), "'train2'", "'train' and 'test'")


def test_a_part_without_boxes_is_refused(voc: Path, refused: Refused) -> None:
    for number in range(PARTS["val"]):
        _annotate(voc, name=f"val{number}")
    refused(lambda: _splits(voc=str(voc)), "'val'", "has none")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"image_size": []}, "[height, width]"),
        ({"bad_boxes": "keep"}, "one of refuse, drop"),
        ({"voc": "nowhere"}, "must exist"),
        ({"search_validation": {"images": 3}}, "validation part"),
    ],
)
def test_wrong_settings_are_refused(voc: Path, data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        _splits(**{"voc": str(voc), **data})


def test_the_size_must_be_given(voc: Path) -> None:
    with pytest.raises(ValueError, match="image_size: "):
        load_splits(DataConfig.from_section(section_of(voc=str(voc)), Path()))


def _edit(coco: Path, part: str, change: Callable[[Any], None]) -> None:
    path = coco / "annotations" / f"instances_{part}2017.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_crowds_are_marked(coco: Path) -> None:
    _edit(coco, "test", lambda d: d["annotations"][1].update(iscrowd=1))
    assert _splits(coco=str(coco)).test.labels[0, :, 5].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("categories"), "KeyError"),
        (lambda d: d["annotations"][0].update(category_id=99), "99"),
        (lambda d: d["annotations"][0].update(image_id=5), "image 5"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "ValueError"),
        (lambda d: d["images"][0].update(file_name="gone.png"), "gone.png"),
        (lambda d: d["images"].clear(), "lists none"),
    ],
)
def test_broken_coco_files_are_named(
    coco: Path, refused: Refused, change: Callable[[Any], None], said: str
) -> None:
    _edit(coco, "val", change)
    if said == "lists none":
        _edit(coco, "val", lambda d: d["annotations"].clear())
    refused(lambda: _splits(coco=str(coco)), said, "instances_val2017.json")


def test_coco_needs_two_parts(coco: Path, refused: Refused) -> None:
    for part in ("val", "test"):
        (coco / "annotations" / f"instances_{part}2017.json").unlink()
    refused(lambda: _splits(coco=str(coco)), "holds train")


def test_sets_of_boxes_are_checked(refused: Refused) -> None:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    refused(lambda: ImageSet.of(pixels, np.zeros((2, 1, 5))), "labels must be")
    refused(lambda: ImageSet.of(pixels, np.zeros((1, 1, 6))), "labels must be")
    assert ImageSet.of(pixels, np.zeros((2, 1, 6))).boxed
    assert not ImageSet.of(pixels, [0, 1]).boxed
