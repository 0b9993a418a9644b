"""The training loop: baselines, sparsity and recovery all run it.

A step depends on the settings, the seed and its number alone, so a training that was stopped and
resumed gives the weights of one that was not, on the same kind of processor with as many threads.
On a CUDA device it does where all operations of the network add in one order: convolutions do here,
and some others, such as the gradients of interpolation, do not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.memory_order import in_order, order_for, put_in_order
from automl_compress.compress.strided import reading_first
from automl_compress.errors import (
    EngineError,
    EstimateError,
    InputError,
    InterruptedStudy,
    OtherTrainingError,
)
from automl_compress.recover.averaging import WeightAverage
from automl_compress.recover.batches import Batches
from automl_compress.recover.losses import Loss
from automl_compress.recover.measurement import measure
from automl_compress.recover.schedule import learning_rate
from automl_compress.recover.settings import TrainingSettings, find_device, uses_bfloat16
from automl_compress.recover.training_mode import resting_modules, start_training
from automl_compress.settings import one_line
from automl_compress.workload import (
    CLASSIFICATION,
    ImageSet,
    Normalization,
    Task,
    replacing,
)
from automl_compress.workload.placement import move

REPORT_SECONDS: Final = 5.0
"""Seconds between two reports inside an epoch."""
SAVE_SECONDS: Final = 120.0
"""Seconds between two checkpoints inside an epoch; its end and an interruption are always saved."""

_FEW: Final = 2
"""Images that tell how a network answers in training mode."""


@dataclass(frozen=True)
class Standing:
    """How far a training has come.

    Args:
        step: steps done.
        steps: of the whole training.
        epoch: epochs done, with fractions.
        epochs: of the whole training.
        loss: mean since the last report.
        rate: the learning rate.
        batch: images a step.
        images_per_second: since this process began.
        seconds_left: at that speed.
        quality: on the judging images at the end of an epoch; None otherwise.
        judged_by: the name of the quality.
    """

    step: int
    steps: int
    epoch: float
    epochs: int
    loss: float
    rate: float
    batch: int
    images_per_second: float
    seconds_left: float
    quality: float | None
    judged_by: str = CLASSIFICATION.quality


Listener = Callable[[Standing], None]


def hear_nothing(_: Standing) -> None:
    """A listener for those who do not want to know."""


class Trainer:
    """Trains a network in place; heads that it has in training mode alone are not, nor do they run.

    Args:
        network: its parameters that require gradients are trained.
        images: what it is trained on.
        normalization: turns their pixels into input.
        settings: how.
        loss: what is minimised; a network it refers to must be on `find_device(settings.device)`.
        identity: names everything a checkpoint must agree on beside the settings.
        after_backward: changes gradients before each step, such as a penalty's.
        after_step: repairs parameters after each step.
        judges: images on which the quality is reported after every epoch.
        task: what the network does.

    Raises:
        InputError: in training mode the network gives something else than one tensor, see
            `training_mode`.
    """

    def __init__(
        self,
        network: nn.Module,
        images: ImageSet,
        normalization: Normalization,
        settings: TrainingSettings,
        loss: Loss,
        identity: str,
        *,
        after_backward: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
        judges: ImageSet | None = None,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.device = find_device(settings.device)
        self.network = move(network, self.device).eval()
        self.settings = settings
        self._normalization = normalization
        self._judges = judges
        self._task = task
        self._loss = loss
        self._identity = identity
        self._after_backward = after_backward
        self._after_step = after_step
        self._batches = Batches(
            *(images, normalization, settings.batch, settings.augment, settings.seed, self.device),
            blank=task.blank,
        )
        few = self._batches(0)[0][:_FEW]
        self._order = order_for(self.network, few)
        put_in_order(self.network, self._order)
        self.steps = settings.epochs * self._batches.steps
        self._optimizer = _optimizer(self.network, settings)
        self._average = WeightAverage(self.network, settings.average) if settings.average else None
        self._step = 0
        self._bfloat16 = uses_bfloat16(settings.precision, self.device)
        with self._chance():
            self._resting = resting_modules(self.network, in_order(few, self._order))

    def run(self, checkpoint: Path | None = None, listener: Listener = hear_nothing) -> None:
        """Train to the end, and leave the last weights in the network, in evaluation mode.

        Args:
            checkpoint: a file to go on from if it exists, and to save the state in; removing it
                is the caller's.
            listener: hears how far it has come.

        Raises:
            InputError: the checkpoint is broken or another training's.
            EngineError: loss, weights or outputs are not finite; the last good state is in the
                checkpoint.
            InterruptedStudy: the user stopped it; the state is saved.
        """
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)  # fails now or never
            if checkpoint.exists():
                self._load(checkpoint)
        with _interruption() as stopped, _deterministic(), reading_first(self.network):
            try:
                self._steps(checkpoint, listener, stopped)
            except torch.OutOfMemoryError as reason:
                raise EngineError(self._too_large(checkpoint)) from reason
        self.network.eval()

    def use_average(self) -> None:
        """Give the network the averaged weights, if there is an average."""
        if self._average is not None:
            self._average.copy_to(self.network)

    def _steps(self, checkpoint: Path | None, listener: Listener, stopped: threading.Event) -> None:
        first, start = self._step, time.monotonic()
        reported = saved = start
        since, total = self._step, torch.zeros((), device=self.device)
        while self._step < self.steps:
            total += self._one_step()
            now = time.monotonic()
            ended = self._step % self._batches.steps == 0
            if not (ended or stopped.is_set() or now - reported >= REPORT_SECONDS):
                continue
            self._check(float(total), checkpoint)
            quality = self._quality(checkpoint) if ended else None
            due = ended or stopped.is_set() or now - saved >= SAVE_SECONDS
            if checkpoint is not None and due:
                self._save(checkpoint)
                saved = time.monotonic()
            done = (self._step - first) * self._batches.size / max(1e-9, now - start)
            mean = float(total) / (self._step - since)
            listener(self._standing(mean, done, quality))
            reported, since = time.monotonic(), self._step
            total.zero_()
            if stopped.is_set():
                raise InterruptedStudy(self._stopped(checkpoint))

    def _one_step(self) -> Tensor:
        """The loss of one step, still on the device."""
        rate = learning_rate(self._step, self.steps, self.settings.rate, self.settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        inputs, labels = self._batches(self._step)
        inputs = in_order(inputs, self._order)
        if not self.network.training:  # measuring ends it
            start_training(self.network, self._resting)
        with self._chance(), torch.enable_grad():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
                loss = self._loss(self.network, inputs, labels)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        if self._after_backward is not None:
            self._after_backward()
        self._optimizer.step()
        if self._after_step is not None:
            self._after_step()
        if self._average is not None:
            self._average.update()
        self._step += 1
        return loss.detach()

    @contextmanager
    def _chance(self) -> Iterator[None]:
        """The global generators, which dropout draws from, are those of this step inside."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = self.settings.seed * 1_000_003 + self._step
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
            yield

    def _standing(self, loss: float, speed: float, quality: float | None) -> Standing:
        return Standing(
            step=self._step,
            steps=self.steps,
            epoch=self._step / self._batches.steps,
            epochs=self.settings.epochs,
            loss=loss,
            rate=self._optimizer.param_groups[0]["lr"],
            batch=self._batches.size,
            images_per_second=speed,
            seconds_left=(self.steps - self._step) * self._batches.size / max(1e-9, speed),
            quality=quality,
            judged_by=self._task.quality,
        )

    def _check(self, total: float, checkpoint: Path | None) -> None:
        """Stop a training that has diverged before its state is saved."""
        finite = [parameter.isfinite().all() for parameter in self.network.parameters()]
        if not (math.isfinite(total) and bool(torch.stack(finite).all())):
            raise EngineError(self._diverged("loss and weights", checkpoint))

    def _quality(self, checkpoint: Path | None) -> float | None:
        """On the judging images, if there are any; of weights too large, it is not to be had."""
        if self._judges is None:
            return None
        judged = self._judges, self._normalization, self.device, self._task
        try:
            return measure(self.network, *judged).quality
        except EstimateError as reason:
            raise EngineError(self._diverged("outputs", checkpoint)) from reason

    def _diverged(self, what: str, checkpoint: Path | None) -> str:
        return (
            f"{what} must stay finite, but are not at step {self._step} of {self.steps}; "
            f"lower 'rate', now {self.settings.rate:g} ({_kept(checkpoint)})"
        )

    def _too_large(self, checkpoint: Path | None) -> str:
        return (
            f"a step must fit into the memory of {self.device}, but one of "
            f"{self._batches.size} images does not; lower 'batch', give another device, or end "
            f"what else is on it ({_kept(checkpoint)})"
        )

    def _stopped(self, checkpoint: Path | None) -> str:
        if checkpoint is None:
            return f"stopped at step {self._step} of {self.steps}; nothing is saved"
        return (
            f"stopped at step {self._step} of {self.steps}; the state is saved, train the same "
            "again to go on"
        )

    def _save(self, checkpoint: Path) -> None:
        content = {
            "identity": self._identity,
            "step": self._step,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state() if self._average else {},
            "updates": self._average.updates if self._average else 0,
        }
        with replacing(checkpoint) as file:
            _write(content, file)

    def _load(self, checkpoint: Path) -> None:
        try:
            # On the processor, where optimizers keep their counts: on a device, these would be
            # waited for in every step.
            content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
            identity = content["identity"]
        except Exception as reason:
            raise InputError(
                f"a checkpoint must be readable, but '{checkpoint}' is not ({one_line(reason)}); "
                "remove it to start again"
            ) from reason
        if identity != self._identity:
            raise OtherTrainingError(
                f"a checkpoint must be of the same network, data and settings, but '{checkpoint}' "
                "is another training's; give its settings, or remove it to start again"
            )
        self.network.load_state_dict(content["network"])
        self._optimizer.load_state_dict(content["optimizer"])
        if self._average is not None:
            self._average.load(content["average"], content["updates"])
        self._step = content["step"]


def _kept(checkpoint: Path | None) -> str:
    if checkpoint is None or not checkpoint.exists():
        return "nothing is kept"
    return f"the last good state is in '{checkpoint}'; remove it to start again"


def _write(content: Mapping[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint; PyTorch hides why a file cannot be written behind an error of its own."""
    try:
        torch.save(content, file)
    except RuntimeError as reason:
        if isinstance(reason.__context__, OSError):
            raise reason.__context__ from None
        raise


def _optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.rate, betas=(settings.momentum, 0.999))
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, settings.rate, settings.momentum, nesterov=nesterov)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once.

    Outside the main thread, signals are somebody else's.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Convolutions on CUDA devices add in one order, inside.

    `cudnn.flags` would set what it is not given too, such as the precision of their products.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
