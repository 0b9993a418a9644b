"""Detectors of torchvision that look once, against torchvision's own answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detectors
import torch
from boxed_folders import HEIGHT, WIDTH, write_voc
from tiny_detectors import KINDS, alive
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from automl_compress.workload import (
    BoxTask,
    ImageSet,
    WorkloadConfig,
    build_model,
    load_untrained,
    load_workload,
    task_of,
)
from automl_compress.workload.torchvision_detectors import (
    AnchorDetection,
    SingleStage,
    looking_once,
)

Refused = Callable[..., None]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("boxes") / "voc")


def _config(voc: Path, model: str, **changes: Any) -> WorkloadConfig:
    data = {"voc": str(voc), "image_size": [HEIGHT, WIDTH]} | changes.pop("data", {})
    return WorkloadConfig.of(model=model, data=data, **changes)


def _answers_of(detector: Any, images: Tensor) -> list[Tensor]:
    """(k, 6) rows of what torchvision says, no class left out."""
    detector.detections_per_img = 10_000
    with torch.no_grad():
        found = detector([image for image in images])  # noqa: C416
    rows = [
        torch.cat([one["boxes"], one["scores"][:, None], one["labels"][:, None] - 1.0], 1)
        for one in found
    ]
    return [row[row[:, 5] >= 0] for row in rows]


@pytest.mark.parametrize("kind", [*KINDS, "of_one_map"])
def test_answers_are_torchvisions(kind: str, voc: Path) -> None:
    workload = load_workload(_config(voc, f"tiny_detectors:{kind}"))
    inside: Any = alive(workload.model)
    detector: Any = getattr(tiny_detectors, kind)()
    detector.load_state_dict(inside.state_dict())
    images = torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    task = workload.task
    assert isinstance(task, AnchorDetection)
    with torch.no_grad():
        answers = task.answers(inside(images))
    expected = _answers_of(detector.eval(), images)
    compared = 0
    for ours, theirs in zip(answers, expected, strict=True):
        count = min(100, len(theirs))
        assert int((ours[:, 5] >= 0).sum()) == count
        order = ours[:count, 4].argsort(descending=True, stable=True)
        torch.testing.assert_close(ours[:count][order], theirs[:count], rtol=1e-4, atol=1e-3)
        compared += count
    assert compared > 20
    assert len({float(row[5]) for row in expected[0]}) == 2


def test_weights_keep_torchvisions_names(voc: Path, tmp_path: Path) -> None:
    trained = tiny_detectors.ssd()
    torch.save(trained.state_dict(), tmp_path / "ssd.pth")
    workload = load_workload(_config(voc, "tiny_detectors:ssd", weights=str(tmp_path / "ssd.pth")))
    held = workload.model.state_dict()
    assert set(held) == set(trained.state_dict())
    assert all(torch.equal(held[name], value) for name, value in trained.state_dict().items())


def test_the_task_of_images_is_found_again(voc: Path) -> None:
    workload = load_workload(_config(voc, "tiny_detectors:fcos"))
    images = workload.splits.train
    task = task_of(workload.model, images, workload.example_input())
    assert isinstance(task, AnchorDetection)
    assert torch.equal(task.anchors, workload.task.anchors)  # type: ignore[attr-defined]
    assert (task.classes, task.centred, task.exclusive) == (2, True, False)


@pytest.mark.parametrize("name", ["tiny_detectors:fcos", "fcos_resnet"])
def test_boxes_and_networks_that_do_not_fit_are_refused(name: str, refused: Refused) -> None:
    """Such as those that torchvision counts from 1."""
    model = build_model(name, {"num_classes": 2 + (name != "fcos_resnet")})
    boxes = np.array([[[4, 4, 30, 30, 2, 0]]], np.float32)
    images = ImageSet.of(np.zeros((1, 3, HEIGHT, WIDTH), np.uint8), boxes)
    example = torch.zeros(1, 3, HEIGHT, WIDTH)
    refused(lambda: task_of(model, images, example), "0..1, but reach up to 2", "from 0")
    whole: Any = tiny_detectors.fcos().eval()
    refused(lambda: task_of(whole, images, example), "FCOS was given itself", "Workload.of")
    boxes[..., 4] = 1
    images = ImageSet.of(images.images, boxes)
    assert isinstance(task_of(model, images, example), BoxTask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_args": {"num_classes": 4}}, ("3, but has 4", "num_classes", "data.classes")),
        ({"model_args": {"num_classes": 2}}, ("3, but has 2", "num_classes", "boxes from 0")),
        ({"data": {"image_size": [72, 96]}}, ("72 x 96", "image_size: [64, 96]")),
        ({"data": {"mean": [0, 0, 0]}}, ("data.mean", "remove")),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    voc: Path, refused: Refused, changes: dict[str, Any], said: tuple[str, ...]
) -> None:
    refused(lambda: load_untrained(_config(voc, "tiny_detectors:ssd", **changes)), *said)


class Brightened(RetinaNet):
    """A RetinaNet that looks at other images than it is given."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        """What torchvision's does with images twice as bright."""
        return super().forward([2 * image for image in images], targets)


class Unscaled(GeneralizedRCNNTransform):
    """A transform that leaves mean and std alone."""

    def normalize(self, image: Tensor) -> Tensor:
        """The image."""
        return image


def test_methods_of_ones_own_are_refused_for_they_are_not_looked_into(refused: Refused) -> None:
    model: Any = tiny_detectors.retinanet()
    model.__class__ = Brightened
    refused(lambda: looking_once(model), "Brightened", "'forward'", "backbone")
    model = tiny_detectors.ssd()
    model.transform.__class__ = Unscaled
    refused(lambda: looking_once(model), "Unscaled", "'normalize'", "raw outputs")
    model = tiny_detectors.fcos()
    model.postprocess_detections = lambda *_: []
    refused(lambda: looking_once(model), "FCOS", "'postprocess_detections'")


@pytest.mark.parametrize(
    "name", ["ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "retinanet_resnet50_fpn"]
)
def test_torchvisions_own_factories_build_them(name: str) -> None:
    arguments = {"weights": None, "weights_backbone": None, "num_classes": 3}
    model = build_model(f"torchvision.models.detection:{name}", arguments)
    assert isinstance(model, SingleStage)
    assert model.classes == 2


def test_other_models_are_left_alone() -> None:
    assert not isinstance(build_model("fcos_resnet", {"num_classes": 2}), SingleStage)


def test_copies_share_nothing(voc: Path) -> None:
    workload = load_workload(_config(voc, "tiny_detectors:retinanet"))
    other: Any = copy.deepcopy(workload.model)
    with torch.no_grad():
        other.head.classification_head.cls_logits.bias.add_(1.0)
    image = workload.example_input()
    assert not torch.equal(other(image), workload.model(image))
    assert isinstance(workload.task, BoxTask)
