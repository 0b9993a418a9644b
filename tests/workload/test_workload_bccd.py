"""The blood cells of BCCD (Pascal VOC layout) as they are published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from automl_compress.errors import WorkloadError
from automl_compress.workload import DataConfig, Splits, load_splits
from automl_compress.workload.boxes import BadBoxes, BoxedFiles
from automl_compress.workload.voc import VocSource

pytestmark = pytest.mark.bccd


def _splits(bad_boxes: BadBoxes) -> Splits:
    root = os.environ.get("AUTOML_COMPRESS_TEST_BCCD")
    if not root:
        pytest.skip("AUTOML_COMPRESS_TEST_BCCD is not set")
    return load_splits(DataConfig(VocSource(BoxedFiles(Path(root), (96, 128), 3, bad_boxes))))


def test_the_published_lists_are_the_splits() -> None:
    splits = _splits("drop")
    parts = (splits.train, splits.validation, splits.test)
    assert splits.classes == ("Platelets", "RBC", "WBC")
    assert [len(part) for part in parts] == [205, 87, 72]
    # 4,888 boxes, of which two have no area.
    assert sum(int((part.labels[:, :, 4] >= 0).sum()) for part in parts) == 4886
    seen = [{image.tobytes() for image in part.images} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[2] & (seen[0] | seen[1])


def test_boxes_without_an_area_are_named() -> None:
    with pytest.raises(WorkloadError, match=r"BloodImage_003\d\d\.xml' has one that is .* area"):
        _splits("refuse")
