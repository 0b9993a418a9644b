from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from automl_compress.bench.recovery import (
    DISTILLED,
    FLOAT,
    OURS,
    PLAIN,
    SpeedTask,
    measure_training,
    speed_page,
    train_plainly,
)
from automl_compress.cli import main
from automl_compress.workload import build_model


def test_every_loop_runs_on_every_network_and_stands_on_the_page() -> None:
    model = build_model("digits_cnn", {})
    task = SpeedTask(model, torch.zeros(1, 1, 8, 8), 10, 8, 2, 1, "cpu")
    before = copy.deepcopy(model.state_dict())
    heard: list[str] = []
    rows = measure_training(task, heard.append)
    assert heard == ["warmed up", "round 1 of 1"]
    loops = [(row.network.count(","), row.loop) for row in rows]
    plain = [(0, PLAIN), (0, FLOAT), (0, OURS), (0, DISTILLED)]
    assert loops == [*plain, *plain, *2 * [(1, OURS), (1, DISTILLED)]]
    assert all(row.per_second > 0 for row in rows)
    by_loop = {(row.network, row.loop): row for row in rows}
    for row in rows:
        reference = by_loop[row.network.partition(",")[0], PLAIN]
        assert row.ratio == pytest.approx(row.per_second / reference.per_second)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    page = speed_page("digits_cnn", task, rows, "a machine")
    assert sum(line.startswith("| half the channels") for line in page.splitlines()) == 8


def test_loops_train_on_signals() -> None:
    layers = (torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    network = torch.nn.Sequential(*layers, torch.nn.Linear(24, 3))
    task = SpeedTask(network, torch.zeros(1, 2, 8), 3, 8, 1, 1, "cpu")
    rows = measure_training(task, lambda _: None)
    assert all(row.per_second > 0 for row in rows)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 16), (64,)])
def test_the_plain_loop_trains(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = (labels * 200).to(torch.uint8)[:, None].repeat(1, 64).reshape(64, *shape)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    for _ in range(20):
        train_plainly(network, pixels, labels, 16)
    assert torch.equal(network(pixels.float() / 255).argmax(1), labels)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits_cnn", "--steps", "0"], "--steps must be at least 1"),
        (["digits_cnn", "--device", "cuda:77"], "must exist"),
        (["resnet21"], "resnet20"),
        (["fcos_resnet"], "whose outputs are (n, classes)"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "recovery", *arguments, "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())
