from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from automl_compress.recover.losses import (
    Distillation,
    LabelsLoss,
    attention_distance,
    attention_points,
)
from automl_compress.workload import build_model
from automl_compress.workload.task import divergence


def test_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    p = math.exp(2) / (1 + math.exp(2))  # the teacher's second class at temperature 2
    q = 1 / (1 + math.exp(1))  # the student's
    want = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert divergence(student, teacher, 2.0).item() == pytest.approx(want, rel=1e-5)


def test_the_gradient_s_size_does_not_depend_on_the_temperature() -> None:
    """Hinton et al. 2015, section 2.1: at high temperature it tends to (z - v) / classes."""
    teacher = torch.tensor([[1.0, -1.0, 0.0]])
    student = torch.tensor([[0.5, 0.0, -0.5]], requires_grad=True)
    divergence(student, teacher, 1000.0).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=1e-3)


def test_distillation_mixes_labels_and_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    of_labels = LabelsLoss()(student, x, y).item()
    of_teacher = divergence(student(x), teacher(x), 2.0).item()
    mixed = Distillation(teacher, 0.3, 2.0)(student, x, y)
    assert mixed.item() == pytest.approx(0.7 * of_labels + 0.3 * of_teacher, rel=1e-5)
    mixed.backward()
    assert teacher.weight.grad is None


def test_attention_maps_do_not_depend_on_channels_or_size() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert attention_distance(5 * x, x).item() == pytest.approx(0.0, abs=1e-6)
    assert attention_distance(x.repeat(1, 2, 1, 1), x).item() == pytest.approx(0.0, abs=1e-6)
    left, right = torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 1, 2)
    left[..., 0], right[..., 1] = 1.0, 1.0
    assert attention_distance(left, right).item() == pytest.approx(2.0)


def test_attention_points_stand_before_every_change_of_resolution() -> None:
    points = attention_points(build_model("resnet20", {}), torch.zeros(1, 3, 32, 32))
    assert points == ("layer1", "layer2", "layer3")


def test_attention_of_signals_is_compared_along_time_and_not_that_of_tokens() -> None:
    class Network(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv1d(2, channels, 5, 2), nn.BatchNorm1d(channels))
            self.second = nn.Sequential(nn.Conv1d(channels, channels, 3), nn.ReLU())
            self.encoder = nn.TransformerEncoderLayer(channels, 2, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(self.second(self.first(x)).transpose(1, 2)).mean(1)

    teacher, student, x = Network(4).eval(), Network(4).eval(), torch.rand(3, 2, 30)
    points = attention_points(teacher, x[:1])
    assert points == ("first.1", "second.0")
    plain, with_maps = (
        Distillation(teacher, 1.0, 2.0, 0.0, weight, points)(student, x, torch.zeros(3).long())
        for weight in (0.0, 1.0)
    )
    assert with_maps > plain


def test_attention_is_part_of_the_loss() -> None:
    model, other = (build_model("digits_cnn", {}, seed) for seed in (0, 1))
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    points = attention_points(model, x[:1])
    losses = [
        Distillation(model, 0.5, 2.0, 0.0, weight, points)(network, x, y).item()
        for network in (model, other)
        for weight in (0.0, 1.0)
    ]
    assert losses[0] == losses[1]
    assert losses[3] > losses[2]
