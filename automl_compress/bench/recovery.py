"""How fast networks are trained, by a plainly written loop and by ours.

All loops train on the same random images in memory, in turns, so that what else the machine does
meets them alike. The plain loop changes images cheaper than is usual: one shift for a whole batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.compress.modules import own_copy
from automl_compress.recover import (
    Augmentation,
    RecoverySettings,
    Standing,
    find_device,
    recover_policy,
)
from automl_compress.recover.settings import Precision
from automl_compress.space import ChannelRule, Policy, SpaceRules
from automl_compress.workload import ImageSet, Normalization

PLAIN: Final = "plain PyTorch"
OURS: Final = "ours"
FLOAT: Final = "ours, in float32"
DISTILLED: Final = "ours, with distillation"
SHARE: Final = 0.5
"""Of the channels that a smaller network keeps."""
_CALIBRATION_IMAGES: Final = 32


@dataclass(frozen=True)
class SpeedRow:
    """One loop on one network.

    Args:
        network: which form of the network.
        loop: `PLAIN`, `OURS`, `FLOAT` or `DISTILLED`.
        per_second: images trained on in a second, the median of the rounds.
        ratio: to the plain loop on the same network without grids, the median of the rounds.
    """

    network: str
    loop: str
    per_second: float
    ratio: float


@dataclass(frozen=True)
class SpeedTask:
    """What is trained.

    Args:
        model: the original network.
        example: (1, channels, height, width) that it takes.
        classes: outputs.
        batch: images a step.
        steps: of each loop in each round.
        rounds: in each of which every loop runs once; one more goes before them.
        device: as `find_device` takes it.
    """

    model: nn.Module
    example: Tensor
    classes: int
    batch: int
    steps: int
    rounds: int
    device: str


@dataclass(frozen=True)
class _Contender:
    """A loop on a network; gives images per second when it is run."""

    network: str
    loop: str
    reference: str
    run: Callable[[], float]


def measure_training(task: SpeedTask, listener: Callable[[str], None]) -> tuple[SpeedRow, ...]:
    """Run all loops in turns.

    Args:
        task: what is trained.
        listener: hears a line after every round.

    Raises:
        InputError: the device is not there.
    """
    find_device(task.device)
    contenders = _contenders(task)
    found: dict[tuple[str, str], list[float]] = {(c.network, c.loop): [] for c in contenders}
    for number in range(task.rounds + 1):
        for contender in contenders:
            found[contender.network, contender.loop].append(contender.run())
        listener("warmed up" if not number else f"round {number} of {task.rounds}")
    return tuple(
        SpeedRow(
            c.network,
            c.loop,
            statistics.median(found[c.network, c.loop][1:]),
            statistics.median(
                mine / plain
                for mine, plain in zip(
                    found[c.network, c.loop][1:], found[c.reference, PLAIN][1:], strict=True
                )
            ),
        )
        for c in contenders
    )


def _contenders(task: SpeedTask) -> list[_Contender]:
    rng = np.random.default_rng(0)
    count, shape = task.batch * task.steps, tuple(task.example.shape[1:])
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    images = ImageSet.of(pixels, rng.integers(0, task.classes, count))
    scaling = Normalization.unit(shape[0])
    calibration = images.take(np.arange(min(_CALIBRATION_IMAGES, count))).tensor(scaling)
    compressor = Compressor(task.model, task.example, calibration, repair="none")
    contenders = []
    for network, policy in _policies(compressor).items():
        grids = any(name.partition(":")[0] != "channels" for name in policy)
        reference = network.partition(",")[0]
        loops: dict[str, tuple[float, Precision]] = {OURS: (0.0, "auto"), DISTILLED: (0.5, "auto")}
        if not grids:
            plain = own_copy(compressor.build(policy)).requires_grad_(True)
            contenders.append(_Contender(network, PLAIN, network, _plain(plain, images, task)))
            loops = {FLOAT: (0.0, "float32"), **loops}
        for loop, (share, precision) in loops.items():
            settings = _settings(task, share, precision)
            ours = _ours(compressor, policy, images, scaling, settings)
            contenders.append(_Contender(network, loop, reference, ours))
    return contenders


def _policies(compressor: Compressor) -> dict[str, Policy]:
    """The network itself, and smaller forms of it."""
    rules = SpaceRules(channels=ChannelRule(ratios=(SHARE, 1.0), round_to=1), weight_bits=(4,))
    genes = space_of_structure(compressor.model, compressor.structure, rules).space.genes
    half: dict[str, Any] = {g.name: g.values[0] for g in genes if g.kind == "channels"}
    weights: dict[str, Any] = {g.name: 4 for g in genes if g.kind == "weight_bits"}
    inputs = {f"activation_bits:{name.partition(':')[2]}": 8 for name in weights}
    return {
        "the whole": Policy({}),
        "half the channels": Policy(half),
        "half the channels, 4-bit weights": Policy({**half, **weights}),
        "half the channels, 4-bit weights and 8-bit inputs": Policy({**half, **weights, **inputs}),
    }


def _settings(task: SpeedTask, distill: float, precision: Precision) -> RecoverySettings:
    default = RecoverySettings()
    training = replace(
        default.training,
        epochs=1,
        batch=task.batch,
        augment=Augmentation(flip=task.example.dim() == 4),
        device=task.device,
        precision=precision,
    )
    return replace(default, training=training, distill=distill, held_out=0.0)


def _ours(
    compressor: Compressor,
    policy: Policy,
    images: ImageSet,
    scaling: Normalization,
    settings: RecoverySettings,
) -> Callable[[], float]:
    def run() -> float:
        heard: list[Standing] = []
        recover_policy(compressor, policy, images, scaling, settings, listener=heard.append)
        return heard[-1].images_per_second

    return run


def _plain(network: nn.Module, images: ImageSet, task: SpeedTask) -> Callable[[], float]:
    device = find_device(task.device)
    network.to(device)
    pixels = torch.from_numpy(np.array(images.images)).to(device)
    labels = torch.from_numpy(images.labels.copy()).to(device)

    def run() -> float:
        start = time.perf_counter()
        train_plainly(network, pixels, labels, task.batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return len(labels) / (time.perf_counter() - start)

    return run


def train_plainly(network: nn.Module, pixels: Tensor, labels: Tensor, batch: int) -> None:
    """One pass over examples as a tutorial writes it.

    Args:
        network: trained in place.
        pixels: (n, ...) uint8; images are moved and mirrored.
        labels: (n,).
        batch: examples a step.
    """
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    for rows in torch.split(torch.randperm(len(labels), device=labels.device), batch):
        inputs = pixels[rows].float() / 255
        if inputs.dim() == 4:
            inputs = _moved_and_mirrored(inputs)
        loss = F.cross_entropy(network(inputs), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _moved_and_mirrored(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    most = height // 8
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    moved = F.pad(images, [most] * 4)[:, :, top : top + height, left : left + width]
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def speed_page(name: str, task: SpeedTask, rows: Sequence[SpeedRow], machine: str) -> str:
    """The measurements as Markdown.

    Args:
        name: of the network.
        task: what was trained.
        rows: what was measured.
        machine: where.
    """
    shape = "x".join(str(size) for size in task.example.shape[1:])
    return "\n".join(
        (
            f"# Training {name}: ours against a plain PyTorch loop",
            "",
            f"Inputs of {shape} trained on in a second, batches of {task.batch}, on {machine}. "
            f"Medians of {task.rounds} rounds, in each of which every loop makes {task.steps} "
            "steps. Ratios are to the plain loop on the same network, without grids where ours "
            "learns some. Ours averages the weights, changes images one by one, and computes "
            "in bfloat16 where the device has it; the plain loop computes in float32.",
            "",
            "| network | loop | inputs/s | ratio |",
            "| --- | --- | ---: | ---: |",
            *(f"| {r.network} | {r.loop} | {r.per_second:,.0f} | {r.ratio:.2f} |" for r in rows),
            "",
        )
    )
