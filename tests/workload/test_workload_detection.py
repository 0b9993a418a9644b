from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boxed_folders import HEIGHT, WIDTH, write_voc
from torch import Tensor, nn
from torchvision.ops import nms

from automl_compress.errors import EstimateError
from automl_compress.workload import Detection, WorkloadConfig, load_workload
from automl_compress.workload.detection import EXTRA, KEPT
from automl_compress.workload.mean_precision import mean_precision
from automl_compress.workload.workload import load_untrained

Refused = Callable[..., None]
TASK = Detection(2, (64, 96), (8, 16, 32))
SMALL = {"widths": [4, 8, 8, 8, 8], "blocks": [1, 1, 1, 1], "neck": 8}


def _raw(seed: int = 0, images: int = 2, low: float = -4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 2 + EXTRA, len(TASK.places), generator=generator) * 2 + low


def _boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([rows])


def test_detections_have_no_divergence_and_no_margin() -> None:
    assert TASK.divergences(_raw(), _raw(1)) is None
    assert TASK.margins(_raw()) is None


def test_places_are_the_centres_of_the_cells_row_by_row() -> None:
    assert len(TASK.places) == 8 * 12 + 4 * 6 + 2 * 3
    assert TASK.places[0].tolist() == [4, 4, 8]
    assert TASK.places[1].tolist() == [12, 4, 8]
    assert TASK.places[12].tolist() == [4, 12, 8]
    assert TASK.places[8 * 12].tolist() == [8, 8, 16]
    assert TASK.places[-1].tolist() == [80, 48, 32]


def test_decoding_by_hand() -> None:
    raw = torch.zeros(1, 2 + EXTRA, len(TASK.places))
    raw[0, 1, 13] = 3.0
    raw[0, 2:6, 13] = torch.tensor([0.5, 2.0, 1.0, 4.0]).log()
    raw[0, 6, 13] = 1.0
    boxes, scores = TASK.decoded(raw)
    assert boxes[0, 13].tolist() == pytest.approx([12 - 4, 0, 12 + 8, 12 + 32])
    one = torch.tensor([3.0, 1.0]).sigmoid().prod().sqrt()
    assert scores[0, 1, 13].item() == pytest.approx(one.item())
    assert boxes.amax(1).tolist() <= [[96, 64, 96, 64]]


def _slow_answers(raw: Tensor) -> list[list[list[float]]]:
    """Class by class, image by image, by torchvision's plain suppression."""
    boxes, scores = TASK.decoded(raw)
    found = []
    for its_boxes, its_scores in zip(boxes, scores, strict=True):
        rows = []
        for kind, values in enumerate(its_scores):
            good = values >= KEPT.least_score
            kept = nms(its_boxes[good], values[good], KEPT.overlap)
            rows += [
                [*its_boxes[good][i].tolist(), values[good][i].item(), kind] for i in kept.tolist()
            ]
        found.append(sorted(rows, key=lambda row: -row[4])[:100])
    return found


@pytest.mark.parametrize("low", [-4.0, 0.0, -30.0])
def test_answers_agree_with_a_loop_over_the_classes(low: float) -> None:
    raw = _raw(low=low)
    raw[:, 2:6] = raw[:, 2:6].clamp(-1, 2)
    answers = TASK.answers(raw)
    assert answers.shape == (2, 100, 6)
    for rows, expected in zip(answers, _slow_answers(raw), strict=True):
        kept = rows[rows[:, 5] >= 0]
        assert len(kept) == len(expected)
        torch.testing.assert_close(kept.double(), torch.tensor(expected).double().reshape(-1, 6))


def test_average_precision_by_hand() -> None:
    """Two boxes of a class; of three detections the first and third hit."""
    boxes = _boxes((0, 0, 10, 10, 0, 0), (20, 20, 40, 40, 0, 0))
    found = _boxes((0, 0, 10, 10, 0.9, 0), (60, 0, 70, 10, 0.8, 0), (20, 20, 40, 41, 0.7, 0))
    # Precision is 1 up to recall 0.5 (51 of 101 points), then 2/3.
    expected = (51 + 50 * 2 / 3) / 101
    assert mean_precision(found, boxes).map50 == pytest.approx(expected, abs=1e-6)


def test_recalls_are_compared_with_points_as_coco_has_them() -> None:
    """Seven of ten boxes are found, and 0.7 is below the point that COCO has there."""
    rows = [(20 * place, 0, 20 * place + 10, 10) for place in range(10)]
    boxes = _boxes(*((*row, 0, 0) for row in rows))
    found = _boxes(*((*row, 0.9 - place / 100, 0) for place, row in enumerate(rows[:7])))
    assert mean_precision(found, boxes).map50 == pytest.approx(70 / 101, abs=1e-6)


def test_the_mean_is_over_classes_and_overlaps() -> None:
    boxes = _boxes((0, 0, 10, 10, 0, 0), (20, 20, 40, 40, 1, 0))
    found = _boxes(
        (0, 0, 10, 10, 0.9, 0), (20, 20, 40, 32.6, 0.9, 1)
    )  # the second overlaps by 0.63
    precision = mean_precision(found, boxes)
    assert precision.map50 == pytest.approx(1.0)
    assert precision.map == pytest.approx((1.0 + 0.3) / 2)  # of ten overlaps, three are reached


def test_empty_rows_and_crowds_are_nobodys_mistake() -> None:
    boxes = _boxes((0, 0, 10, 10, 0, 0), (20, 20, 60, 60, 0, 1), (0, 0, 0, 0, -1, 0))
    in_crowd, empty = (22, 22, 30, 30, 0.95, 0), (0, 0, 0, 0, 0, -1)
    found = _boxes(in_crowd, (0, 0, 10, 10, 0.9, 0), empty)
    assert mean_precision(found, boxes).map50 == pytest.approx(1.0)
    assert mean_precision(_boxes(empty), boxes).map50 == 0.0


def test_images_without_boxes_say_nothing() -> None:
    nothing = _boxes((0, 0, 0, 0, -1, 0))
    precision = mean_precision(_boxes((0, 0, 10, 10, 0.9, 0)), nothing)
    assert (precision.map50, precision.map) == (0.0, 0.0)
    assert math.isnan(precision.error)


def test_the_standard_error_is_that_of_other_images() -> None:
    """Networks that find each box with a chance of 0.7, on many draws of 160 images."""
    rng = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(30):
        boxes = torch.zeros(160, 1, 6)
        boxes[:, 0, 2:4] = 10.0
        found = torch.cat([boxes[..., :4], torch.ones(160, 1, 2)], 2)
        found[:, 0, 4] = torch.rand(160, generator=rng)
        found[:, 0, 5] = torch.where(torch.rand(160, generator=rng) < 0.7, 0.0, -1.0)
        precision = mean_precision(found, boxes)
        values.append(precision.map50)
        errors.append(precision.error)
    scatter = torch.tensor(values).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(scatter, rel=0.35)


def test_scores_name_what_they_are() -> None:
    raw = _raw()
    labels = torch.zeros(2, 1, 6)
    labels[:, 0, 2:4] = 30.0
    score = TASK.score([raw[:1], raw[1:]], labels)
    assert set(score.metrics) <= {"map50", "map50_se"}
    assert set(score.further) == {"map"}
    assert score.images == 2
    with pytest.raises(EstimateError, match="not finite"):
        TASK.score([raw * float("nan")], labels)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("boxes") / "voc")


def _config(voc: Path, model: str = "fcos_resnet", **changes: Any) -> WorkloadConfig:
    data = {"voc": str(voc), "image_size": [HEIGHT, WIDTH]} | changes.pop("data", {})
    args = {"model_args": SMALL} if model == "fcos_resnet" else {}
    return WorkloadConfig.of(**{"model": model, "data": data, **args, **changes})


def test_a_detector_is_loaded_with_its_task(voc: Path) -> None:
    workload = load_untrained(_config(voc))
    assert workload.task == Detection(2, (HEIGHT, WIDTH), (8, 16, 32))
    output = workload.model(workload.example_input())
    assert output.shape == (1, 2 + EXTRA, len(workload.task.places))
    assert (
        workload.identity
        != load_untrained(_config(voc, data={"classes": ["cell", "bar"]})).identity
    )


def test_an_untrained_detector_is_not_searched(voc: Path, refused: Refused) -> None:
    refused(lambda: load_workload(_config(voc)), "no weights")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "resnet20"}, "must have an attribute 'strides'"),
        ({"model_args": {**SMALL, "num_classes": 3}}, "8 for 2 classes"),
        ({"data": {"image_size": [72, 96]}}, "72"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    voc: Path, refused: Refused, changes: dict[str, Any], said: str
) -> None:
    refused(lambda: load_untrained(_config(voc, **changes)), said)


MODULE = """
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

def twice():
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)

class Stride(nn.Module):
    strides = (16,)
    def __init__(self, places=24):
        super().__init__()
        self.places = places
        self.conv = nn.Conv2d(3, 7, 16, 16)
    def forward(self, x):
        return torch.flatten(self.conv(x), 2)[:, :, : self.places]
"""


@pytest.fixture
def module(user_module: Callable[[str], str]) -> str:
    return user_module(MODULE)


def test_own_detectors_state_their_strides(voc: Path, module: str, refused: Refused) -> None:
    workload = load_workload(_config(voc, f"{module}:Stride"))
    assert workload.task == Detection(2, (HEIGHT, WIDTH), (16,))
    cut = _config(voc, f"{module}:Stride", model_args={"places": 20})
    refused(lambda: load_workload(cut), "24 places, those of strides 16")


def test_detectors_that_look_twice_are_refused_in_one_line(
    voc: Path, module: str, refused: Refused
) -> None:
    refused(lambda: load_workload(_config(voc, f"{module}:twice")), "'strides'", "fcos_resnet")


def test_a_detector_cannot_answer_for_classes(make_tree: Any, refused: Refused) -> None:
    data = {"root": str(make_tree(size=(64, 96)))}
    config = WorkloadConfig.of(model="fcos_resnet", data=data, model_args=SMALL)
    refused(lambda: load_untrained(config), "logits of shape (n, 2)")


def test_missing_libraries_are_named(
    voc: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    refused(lambda: load_untrained(_config(voc)), "faster_coco_eval", "automl-compress[detection]")


def test_the_detector_halves_its_grids() -> None:
    model: nn.Module = load_model()
    for height, width in ((64, 96), (128, 64)):
        task = Detection(5, (height, width), (8, 16, 32))
        assert model(torch.zeros(2, 3, height, width)).shape == (2, 10, len(task.places))


def load_model() -> nn.Module:
    from automl_compress.workload import build_model

    return build_model("fcos_resnet", {"num_classes": 5, **SMALL})


def test_a_task_first_asked_where_nothing_is_learnt_can_be_learnt_from() -> None:
    task = Detection(3, (64, 96), (8, 16, 32))
    with torch.inference_mode():
        count = len(task.places)
    raw = torch.zeros(1, 8, count, requires_grad=True)
    task.parts(raw)[1].sum().backward()
    assert raw.grad is not None
