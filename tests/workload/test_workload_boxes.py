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
from PIL import ExifTags, Image

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


def _rename(voc: Path, name: str, listed: str) -> None:
    """Another name of the image file of `train0`, and another line for it in the list."""
    (voc / "JPEGImages" / "train0.png").rename(voc / "JPEGImages" / name)
    (voc / "Annotations" / "train0.xml").rename((voc / "Annotations" / name).with_suffix(".xml"))
    path = voc / "ImageSets" / "Main" / "train.txt"
    path.write_text(path.read_text().replace("train0\n", f"{listed}\n"), encoding="utf-8-sig")


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("train0.PNG", "train0"),
        ("train0.webp", "train0  1"),
        ("my train 0.png", "my train 0"),
        ("v1.5.png", "v1.5"),
        ("train0.png", "train0.png"),
    ],
)
def test_images_are_found_as_lists_name_them(voc: Path, name: str, listed: str) -> None:
    expected = _splits(voc=str(voc)).train
    _rename(voc, name, listed)
    np.testing.assert_array_equal(_splits(voc=str(voc)).train.images, expected.images)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_sizes_that_are_not_stated_are_read_from_the_files(voc: Path, size: str) -> None:
    expected = _splits(voc=str(voc)).train
    path = voc / "Annotations" / "train0.xml"
    start, _, end = path.read_text().partition("<size>")
    path.write_text(start + size + end.partition("</size>")[2])
    np.testing.assert_array_equal(_splits(voc=str(voc)).train.labels, expected.labels)


def test_coco_may_leave_sizes_out(coco: Path) -> None:
    expected = _splits(coco=str(coco)).train
    _edit(coco, "train", lambda d: [image.pop("width") for image in d["images"]])
    np.testing.assert_array_equal(_splits(coco=str(coco)).train.labels, expected.labels)


def test_a_wrong_size_is_not_taken_for_bad_boxes(voc: Path, refused: Refused) -> None:
    path = voc / "Annotations" / "train0.xml"
    path.write_text(path.read_text().replace(f"<width>{WIDTH}", f"<width>{WIDTH // 2}"))
    for way in ("refuse", "drop"):
        refused(lambda way=way: _splits(voc=str(voc), bad_boxes=way), f"says {WIDTH // 2}x{HEIGHT}")


def test_turned_images_are_said_to_be_turned(coco: Path, refused: Refused) -> None:
    path = coco / "train2017" / "train0.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(path, exif=exif)
    _splits(coco=str(coco))
    _edit(coco, "train", lambda d: d["images"][0].update(width=HEIGHT, height=WIDTH))
    refused(lambda: _splits(coco=str(coco)), "EXIF", "as they are stored")


def test_ids_may_be_text(coco: Path) -> None:
    expected = _splits(coco=str(coco))
    _edit(coco, "train", lambda d: [c.update(id=str(c["id"])) for c in d["categories"]])
    _edit(coco, "val", lambda d: [a.update(image_id=str(a["image_id"])) for a in d["annotations"]])
    _edit(coco, "val", lambda d: [a.update(iscrowd="0") for a in d["annotations"]])
    found = _splits(coco=str(coco))
    assert found.classes == expected.classes  # 7 before 10
    for part in ("train", "validation"):
        one, other = getattr(found, part), getattr(expected, part)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["images"][1].update(id=100), "ids of images must differ"),
        (lambda d: d["categories"].append({"id": 7, "name": "rod"}), "ids of categories"),
        (lambda d: d["categories"].append({"id": 70, "name": "bar"}), "'bar', which 2 classes"),
        (lambda d: d["annotations"][0].update(category_id=5), "a box of 5, which is not; correct"),
    ],
)
def test_what_has_two_meanings_is_refused(
    coco: Path, refused: Refused, change: Callable[[Any], None], said: str
) -> None:
    _edit(coco, "train", change)
    refused(lambda: _splits(coco=str(coco)), said, "instances_train2017.json")


def test_an_image_counts_once_where_networks_are_measured(
    voc: Path, coco: Path, refused: Refused
) -> None:
    folder = voc / "ImageSets" / "Main"
    for part in ("train", "test"):
        with (folder / f"{part}.txt").open("a") as file:
            file.write(f"{part}0\n")
        if part == "train":
            assert len(_splits(voc=str(voc)).train) == PARTS["train"] + 1
    refused(lambda: _splits(voc=str(voc)), "'test0' is listed twice in 'test'")
    _edit(coco, "val", lambda d: d["images"].append({**d["images"][0], "id": 7}))
    refused(lambda: _splits(coco=str(coco)), "val0.png' is listed twice")


def test_images_may_lie_elsewhere(coco: Path, tmp_path: Path) -> None:
    expected = _splits(coco=str(coco)).train
    (coco / "train2017").rename(tmp_path / "elsewhere")
    name = "file_name"
    _edit(
        coco,
        "train",
        lambda d: [i.update({name: str(tmp_path / "elsewhere" / i[name])}) for i in d["images"]],
    )
    np.testing.assert_array_equal(_splits(coco=str(coco)).train.images, expected.images)
