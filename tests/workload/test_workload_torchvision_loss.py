"""The loss of detectors of torchvision, against the one that torchvision computes itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiny_detectors
import torch
from boxed_folders import HEIGHT, WIDTH
from tiny_detectors import KINDS, alive
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from automl_compress.workload.torchvision_detectors import (
    AnchorDetection,
    SingleStage,
    looking_once,
)

Refused = Callable[..., None]

BOXES = torch.tensor(
    [
        [[10, 10, 40, 30, 0, 0], [20, 12, 34, 26, 1, 0], [50, 4, 92, 60, 1, 0]],
        [[0, 0, 0, 0, -1, 0]] * 3,
        [[0, 0, 20, 20, 1, 0], [40, 20, 90, 60, 0, 0], [0, 0, 0, 0, -1, 0]],
    ],
    dtype=torch.float32,
)
"""The second image has none."""


def _told(boxes: Tensor) -> list[dict[str, Tensor]]:
    """What torchvision is told of boxes; its class 0 is none."""
    real = [rows[rows[:, 4] >= 0] for rows in boxes]
    return [{"boxes": rows[:, :4], "labels": rows[:, 4].long() + 1} for rows in real]


def _images() -> Tensor:
    return torch.rand(len(BOXES), 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def _detector(kind: str) -> Any:
    """Itself, with BatchNorms that training leaves alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        detector = alive(getattr(tiny_detectors, kind)())
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return detector


def _task(detector: nn.Module) -> tuple[Any, AnchorDetection]:
    inside = looking_once(copy.deepcopy(detector)).eval()
    assert isinstance(inside, SingleStage)
    return inside, inside.detection("tiny", (HEIGHT, WIDTH))


@pytest.mark.parametrize("kind", [*KINDS, "of_one_map"])
def test_the_loss_and_its_slopes_are_torchvisions(kind: str) -> None:
    detector = _detector(kind).train()
    inside, task = _task(detector)
    expected = sum(detector([*_images()], _told(BOXES)).values())
    found = task.loss(inside.train()(_images()), BOXES)
    torch.testing.assert_close(found, expected)
    for loss in (found, expected):
        loss.backward()
    slopes = {name: p.grad for name, p in detector.named_parameters()}
    for name, parameter in inside.named_parameters():
        torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-3, atol=1e-5)
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_torchvision_refuses_or_never_sees_change_nothing(kind: str) -> None:
    inside, task = _task(_detector(kind))
    with torch.no_grad():
        raw = inside(_images())
    more = torch.tensor(
        [
            [30.0, 30, 60, 50, 1, 1],  # a crowd
            [30.0, 30, 30, 50, 1, 0],  # no area
            [WIDTH + 5.0, 3, WIDTH + 20, 20, 0, 0],  # outside
            [float("nan")] * 4 + [-1, 0],
        ]
    ).expand(len(BOXES), -1, -1)
    assert task.loss(raw, torch.cat([BOXES, more], 1)) == task.loss(raw, BOXES)
    over = BOXES.clone()
    over[0, 2, 2:4] += 50  # reaches out of the image
    cut = BOXES.clone()
    cut[0, 2, 2:4] = torch.tensor([WIDTH, HEIGHT])
    assert task.loss(raw, over) == task.loss(raw, cut) != task.loss(raw, BOXES)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_boxes_only_push_classes_down(kind: str) -> None:
    inside, task = _task(_detector(kind))
    raw = inside(_images()).detach().requires_grad_(True)
    task.loss(raw, BOXES[1:2].expand_as(BOXES)).backward()
    assert raw.grad is not None
    assert (raw.grad[:, 1:3] >= 0).all()
    assert bool(raw.grad.any()) == (kind != "ssd")  # it counts three negatives a positive
    assert not raw.grad[:, 3:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_to_a_teacher_is_least_at_the_teacher(kind: str) -> None:
    inside, task = _task(_detector(kind))
    with torch.no_grad():
        target = inside(_images())
    at_it = task.distance(target, target)
    generator = torch.Generator().manual_seed(0)
    parts = [slice(1, 3), slice(3, 7), *([slice(7, 8)] if task.centred else [])]
    for part in parts:
        outputs = target.clone()
        outputs[:, part] += torch.rand(outputs[:, part].shape, generator=generator)
        assert task.distance(outputs, target) > at_it + 0.01
    outputs = target.clone().requires_grad_(True)
    task.distance(outputs, target).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_of_boxes_without_an_area_stay_bounded(kind: str) -> None:
    inside, task = _task(_detector(kind))
    with torch.no_grad():
        target = inside(_images())
    outputs = target.clone()
    outputs[:, 3:7] = 0.0
    outputs.requires_grad_(True)
    task.distance(outputs, target).backward()
    assert outputs.grad is not None
    assert 0.0 < outputs.grad.abs().max() < 10.0


@pytest.mark.parametrize("kind", KINDS)
def test_criteria_without_labels_have_slopes(kind: str) -> None:
    inside, task = _task(_detector(kind))
    loss = task.own_loss(inside(_images()))
    loss.backward()
    assert loss > 0
    assert all(p.grad.any() for p in inside.head.parameters())


class Doubled(RetinaNet):
    """A RetinaNet that counts all twice."""

    def compute_loss(self, *given: Any) -> Any:
        """Torchvision's losses, doubled."""
        return {name: 2 * loss for name, loss in super().compute_loss(*given).items()}


def test_a_loss_of_ones_own_is_used() -> None:
    detector = _detector("retinanet")
    inside, task = _task(detector)
    detector.__class__ = Doubled
    with torch.no_grad():
        raw = inside(_images())
    torch.testing.assert_close(_task(detector)[1].loss(raw, BOXES), 2 * task.loss(raw, BOXES))


class Decayed(RetinaNetHead):
    """A head whose loss reads its weights."""

    def compute_loss(self, *given: Any) -> Any:
        """Torchvision's losses and one of the weights."""
        decay = self.classification_head.cls_logits.weight.square().sum()
        return {**super().compute_loss(*given), "decay": decay}


def test_heads_with_another_form_of_loss_are_searched_but_not_trained(refused: Refused) -> None:
    lossless, decayed = _detector("lossless"), _detector("retinanet")
    decayed.head.__class__ = Decayed
    for detector in (lossless, decayed):
        inside, task = _task(detector)
        raw = inside(_images()).detach()
        assert (task.answers(raw)[..., 5] >= 0).any()
        for ask in (
            task.check_trainable,
            lambda task=task, raw=raw: task.loss(raw, BOXES),
            lambda task=task, raw=raw: task.own_loss(raw),
        ):
            refused(ask, "its own loss", "'compute_loss'", "l1 and magnitude")


def test_the_loss_holds_no_weights_and_no_hooks_and_travels() -> None:
    seen = []
    detector = _detector("fcos")
    detector.head.register_forward_hook(lambda *_: seen.append(1))
    inside, task = _task(detector)
    raw = inside(_images()).detach()
    before = len(seen)
    expected = task.loss(raw, BOXES)
    assert len(seen) == before
    sent = pickle.dumps(task)
    assert len(sent) < 100_000
    assert pickle.loads(sent).loss(raw, BOXES) == expected
    assert not any("loss" in name for name, _ in inside.named_modules())
    assert copy.deepcopy(inside).loss is inside.loss
