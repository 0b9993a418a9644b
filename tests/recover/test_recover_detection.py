from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.ops as ops
from boxed_folders import HEIGHT, WIDTH, write_voc
from torch import Tensor

import automl_compress as ac
from automl_compress.compress import Compressor
from automl_compress.errors import InputError
from automl_compress.recover import (
    DETECTOR_BASELINE,
    DETECTOR_RECOVERY,
    RecoverySettings,
    measure,
    recover_policy,
    section_of,
    train_network,
)
from automl_compress.recover.augment import Move, augment
from automl_compress.recover.losses import LabelsLoss, labels_loss
from automl_compress.recover.settings import Augmentation
from automl_compress.recover.training import Trainer
from automl_compress.workload import Detection, Workload, WorkloadConfig, load_untrained
from automl_compress.workload.detection import EXTRA
from automl_compress.workload.detection_loss import (
    REACH,
    Targets,
    detector_distance,
    detector_loss,
    focal_loss,
    generalised_overlap,
    targets_of,
)

TASK = Detection(3, (64, 96), (8, 16, 32))
PARTS = ((slice(0, 3), 10.0), (slice(3, 7), 1.0), (slice(7, 8), 1.0))
"""Channels of classes, edges and centre, and changes that matter to each."""


def _boxes() -> Tensor:
    rows = [
        [[10, 10, 40, 30, 0, 0], [20, 12, 34, 26, 2, 0], [50, 4, 92, 60, 1, 0]],
        [[0, 0, 20, 20, 1, 0], [40, 20, 90, 60, 2, 1], [0, 0, 0, 0, -1, 0]],
    ]
    return torch.tensor(rows, dtype=torch.float32)


def _slow_targets(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(n, places) number of the box each place learns, or -1; and (n, places, 4) its edges."""
    places = TASK.places.tolist()
    chosen = torch.full((len(boxes), len(places)), -1)
    edges = torch.ones(len(boxes), len(places), 4)
    for image, rows in enumerate(boxes.tolist()):
        for place, (x, y, stride) in enumerate(places):
            best = math.inf
            for number, (left, top, right, bottom, kind, crowd) in enumerate(rows):
                distances = (x - left, y - top, right - x, bottom - y)
                off = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
                low = 0 if stride == 8 else REACH * stride / 2
                high = math.inf if stride == 32 else REACH * stride
                area = (right - left) * (bottom - top)
                fits = kind >= 0 and not crowd and min(distances) > 0 and off < 1.5 * stride
                if fits and low < max(distances) <= high and area < best:
                    best = area
                    chosen[image, place] = number
                    edges[image, place] = torch.tensor(distances)
    return chosen, edges


def test_targets_agree_with_a_loop_over_places_and_boxes() -> None:
    boxes = _boxes()
    wanted = targets_of(TASK, boxes)
    chosen, edges = _slow_targets(boxes)
    assert (chosen >= 0).sum() > 10
    assert set(chosen.unique().tolist()) == {-1, 0, 1, 2}
    assert torch.equal(wanted.taken, chosen >= 0)
    kinds = torch.stack([b[c.clamp(min=0), 4] for b, c in zip(boxes, chosen, strict=True)])
    assert torch.equal(wanted.classes.argmax(1)[wanted.taken], kinds[wanted.taken].long())
    assert torch.equal(wanted.edges.permute(0, 2, 1), edges)
    left, top, right, bottom = edges.unbind(-1)
    sides = [torch.minimum(*p) / torch.maximum(*p) for p in ((left, right), (top, bottom))]
    expected = (sides[0] * sides[1]).sqrt() * wanted.taken
    torch.testing.assert_close(wanted.centrality, expected)


def test_nothing_is_wrong_inside_crowds() -> None:
    wanted = targets_of(TASK, _boxes())
    x, y, _ = TASK.places.unbind(1)
    inside = (x > 40) & (x < 90) & (y > 20) & (y < 60)
    assert torch.equal(wanted.counted[1], ~inside)
    assert wanted.counted[0].all()


def _raw(wanted: Targets) -> Tensor:
    """Raw outputs that say just what is wanted."""
    edges = (wanted.edges / TASK.places[:, 2]).log()
    centre = wanted.centrality.clamp(1e-4, 1 - 1e-4).logit()[:, None]
    return torch.cat([wanted.classes * 24 - 12, edges, centre], 1)


def test_what_is_wanted_is_found_and_costs_nothing_but_doubt() -> None:
    boxes = _boxes()
    boxes[1, 1, 4] = -1
    wanted = targets_of(TASK, boxes)
    raw = _raw(wanted)
    assert TASK.score_answers(TASK.answers(raw), boxes).metrics["map50"] == pytest.approx(1.0)
    weight = wanted.centrality[wanted.taken]
    entropy = torch.nn.functional.binary_cross_entropy(weight, weight, reduction="none").mean()
    assert detector_loss(TASK, raw, boxes).item() == pytest.approx(entropy.item(), abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    for part, size in PARTS:
        worse = raw.clone()
        worse[:, part] += size * torch.randn(worse[:, part].shape, generator=generator)
        assert detector_loss(TASK, worse, boxes) > detector_loss(TASK, raw, boxes)


def test_the_parts_of_the_loss_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, chance = (torch.randn(4, 5, generator=generator) for _ in range(2))
    wanted = (chance > 0).float()
    torch.testing.assert_close(focal_loss(logits, wanted), ops.sigmoid_focal_loss(logits, wanted))
    one, other = (torch.rand(2, 4, 7, generator=generator) + 0.1 for _ in range(2))
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    flat = [(edges.permute(0, 2, 1) * signs).reshape(-1, 4) for edges in (one, other)]
    expected = 1 - ops.generalized_box_iou_loss(*flat)
    torch.testing.assert_close(generalised_overlap(one, other).flatten(), expected)


def test_the_distance_to_a_teacher_is_least_at_the_teacher() -> None:
    target = _raw(targets_of(TASK, _boxes()))
    at_it = detector_distance(TASK, target, target)
    generator = torch.Generator().manual_seed(0)
    for part, size in PARTS:
        outputs = target.clone()
        outputs[:, part] += size * torch.randn(outputs[:, part].shape, generator=generator)
        assert detector_distance(TASK, outputs, target) > at_it
    outputs = target.clone().requires_grad_(True)
    detector_distance(TASK, outputs, target).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().max() < 1e-5


def test_images_without_boxes_only_push_classes_down() -> None:
    outputs = torch.zeros(1, 3 + EXTRA, len(TASK.places), requires_grad=True)
    empty = torch.zeros(1, 2, 6)
    empty[..., 4] = -1
    detector_loss(TASK, outputs, empty).backward()
    assert outputs.grad is not None
    assert (outputs.grad[:, :3] > 0).all()
    assert not outputs.grad[:, 3:].any()


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_move_with_their_images(flip: bool) -> None:
    """A bright rectangle is found again where its box says."""
    count = 40
    images = torch.zeros(count, 1, 20, 30, dtype=torch.uint8)
    images[:, :, 6:13, 8:20] = 255
    boxes = torch.tensor([[8.0, 6.0, 20.0, 13.0, 1.0, 0.0]]).expand(count, 1, 6)
    settings = Augmentation(crop=5, flip=flip)
    fill = torch.full((1,), 9, dtype=torch.uint8)
    changed, move = augment(images, settings, fill, torch.Generator().manual_seed(0), True)
    assert {0, 9, 255} == set(changed.unique().tolist())
    moved = move.boxes(boxes, 20, 30)
    assert len({tuple(row) for row in moved[:, 0].tolist()}) > 20
    for image, (left, top, right, bottom, kind, _) in zip(changed, moved[:, 0], strict=True):
        expected = torch.zeros(20, 30, dtype=torch.bool)
        expected[int(top) : int(bottom), int(left) : int(right)] = True
        assert torch.equal(image[0] > 9, expected)
        assert kind == 1


def test_only_what_comes_in_is_filled() -> None:
    images = torch.zeros(30, 2, 8, 16, dtype=torch.uint8)
    fill = torch.tensor([7, 8], dtype=torch.uint8)
    settings, seeds = Augmentation(crop=3, flip=True), (torch.Generator() for _ in range(2))
    filled, move = augment(images, settings, fill, next(seeds).manual_seed(1), True)
    plain, _ = augment(images + 1, settings, fill, next(seeds).manual_seed(1))
    assert torch.equal(filled[:, 0] == 7, plain[:, 0] == 0)
    assert torch.equal(filled[:, 1] == 8, plain[:, 1] == 0)
    lost = move.down.abs() * 16 + move.right.abs() * 8 - move.down.abs() * move.right.abs()
    assert torch.equal((filled[:, 0] == 7).flatten(1).sum(1), lost)


def test_boxes_that_are_nearly_gone_have_no_class() -> None:
    move = Move(torch.tensor([-8]), torch.tensor([0]), torch.tensor([False]))
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0, 1.0, 0.0], [0.0, 0.0, 10.0, 11.0, 1.0, 0.0]]])
    assert move.boxes(boxes, 20, 20)[0, :, 4].tolist() == [-1, 1]


def test_labels_of_boxes_are_not_smoothed() -> None:
    with pytest.raises(InputError, match="must be 0 for detectors"):
        labels_loss(TASK, 0.1)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    root = write_voc(tmp_path_factory.mktemp("boxes") / "voc", {"train": 16, "val": 8, "test": 8})
    config = WorkloadConfig.of(
        model="fcos_resnet",
        data={"voc": str(root), "image_size": [HEIGHT, WIDTH]},
        model_args={"widths": [8, 8, 16, 16, 16], "blocks": [1, 1, 1, 1], "neck": 16},
    )
    return load_untrained(config)


@pytest.mark.slow
def test_a_detector_learns_and_recovers(workload: Workload) -> None:
    torch.set_num_threads(1)
    augmentation = Augmentation(crop=4, flip=False)
    settings = replace(
        DETECTOR_BASELINE, epochs=30, batch=8, rate=0.05, augment=augmentation, device="cpu"
    )
    trained = train_network(workload, settings)
    assert trained.card["quality"] == "map50"
    assert set(trained.card["map50"]) == set(trained.card["map"]) == {"held_out", "test"}
    assert trained.card["map50"]["test"] > 0.8
    space = ac.SearchSpace.from_model(trained.network, workload.example_input())
    half = space.decode(space.sizes // 2)
    kwargs = {"epochs": 2, "batch": 8, "rate": 0.01, "device": "cpu", "calibration_images": 16}
    recovered = ac.recover(
        trained.network, half, workload.splits.train, workload.normalization,
        augment={"crop": 4, "flip": False}, **kwargs,
    )  # fmt: skip
    images = workload.splits.test.tensor(workload.normalization)
    labels = torch.from_numpy(workload.splits.test.labels)
    calibration = workload.splits.train.tensor(workload.normalization)
    before = ac.compress(trained.network, half, workload.example_input(), calibration)
    with torch.no_grad():
        old, new = (
            workload.task.score([network(images)], labels).metrics["map50"]
            for network in (before, recovered)
        )
    assert new >= old
    assert new > 0.5


def test_training_goes_on_where_it_stopped_with_boxes(workload: Workload, tmp_path: Path) -> None:
    settings = replace(DETECTOR_BASELINE, epochs=2, batch=8, device="cpu")
    whole = train_network(workload, settings).network.state_dict()
    train_network(workload, settings, checkpoint=tmp_path / "checkpoint")
    again = train_network(workload, settings, checkpoint=tmp_path / "checkpoint")
    assert all(torch.equal(v, again.network.state_dict()[n]) for n, v in whole.items())


@pytest.mark.parametrize("kind", ["ssd", "frozen_norms"])
def test_detectors_of_torchvision_learn_again_what_cutting_took(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root = write_voc(tmp_path / "voc", {"train": 8, "val": 1, "test": 1})
    data = {"voc": str(root), "image_size": [HEIGHT, WIDTH]}
    workload = load_untrained(WorkloadConfig.of(model=f"tiny_detectors:{kind}", data=data))
    images, scaling = workload.splits.train, workload.normalization
    inputs = images.tensor(scaling)
    compressor = Compressor(workload.model, inputs[:1], inputs, repair="none", task=workload.task)
    space = ac.SearchSpace.from_model(workload.model, inputs[:1])
    half = space.decode(space.sizes // 2)
    section = section_of(
        epochs=3, batch=4, device="cpu", held_out=0.0, distill=0.2, calibration_images=8
    )
    settings = RecoverySettings.from_section(section, DETECTOR_RECOVERY)
    found = recover_policy(compressor, half, images, scaling, settings).network
    before = compressor.build(half)
    losses = [
        measure(network, images, scaling, torch.device("cpu"), workload.task).loss
        for network in (before, found)
    ]
    assert losses[1] < losses[0] - 0.01
    assert found(inputs).shape == before(inputs).shape
    learned = dict(found.named_buffers())
    for name, module in before.named_modules():
        if isinstance(module, ops.FrozenBatchNorm2d):
            for part, value in module.named_buffers():
                assert torch.equal(learned[f"{name}.{part}"], value)


def test_training_fills_edges_with_what_the_network_takes_off(tmp_path: Path) -> None:
    data = {"voc": str(write_voc(tmp_path / "voc")), "image_size": [HEIGHT, WIDTH]}
    workload = load_untrained(WorkloadConfig.of(model="tiny_detectors:ssd", data=data))
    settings = replace(DETECTOR_BASELINE, batch=6, device="cpu")
    trainer = Trainer(
        *(copy.deepcopy(workload.model), workload.splits.train, workload.normalization, settings),
        *(LabelsLoss(workload.task), ""),
        task=workload.task,
    )
    mean = torch.tensor([0.4, 0.5, 0.6]).mul(255).round().div(255)
    edges = torch.cat([trainer._batches(0)[0][:, :, side].transpose(0, 1) for side in (0, -1)], 1)
    assert (edges == mean[:, None, None]).all(2).any(1).all()
