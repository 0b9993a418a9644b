"""What training minimises: the labels' loss, and the distance to a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from automl_compress.errors import InputError
from automl_compress.workload import CLASSIFICATION, BoxTask, Task
from automl_compress.workload.task import divergence

Loss: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Scalar loss of a network on inputs (n, ...) and labels (n, ...)."""

_CHANNELS_FIRST: Final = (*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS)
"""Layers whose values have channels along axis 1."""

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Scalar loss of outputs (n, ...) against labels or a teacher's outputs."""


def labels_loss(task: Task, smoothing: float = 0.0) -> Criterion:
    """The loss of outputs against labels, the mean over the images.

    Args:
        task: says which; of classes it is the cross-entropy, of boxes see `BoxTask.loss`.
        smoothing: share of the target spread over all classes.

    Raises:
        InputError: labels are smoothed that are no classes of images, or there is no loss.
    """
    if not isinstance(task, BoxTask):
        return partial(F.cross_entropy, label_smoothing=smoothing)
    task.check_trainable()
    if smoothing:
        raise InputError(
            f"'label_smoothing' must be 0 for detectors, whose losses spread nothing over the "
            f"classes, but is {smoothing:g}; remove it"
        )
    return task.loss


def teacher_loss(task: Task, temperature: float) -> Criterion:
    """The distance of outputs to a teacher's, the mean over the images.

    Args:
        task: says which, see `Task.distance`.
        temperature: softens the classes of images; boxes have none.
    """
    if isinstance(task, BoxTask):
        return task.distance
    return partial(divergence, temperature=temperature)


class LabelsLoss:
    """The labels' loss alone.

    Args:
        task: what the network does.
        smoothing: share of the target spread over all classes.
    """

    def __init__(self, task: Task = CLASSIFICATION, smoothing: float = 0.0) -> None:
        self._criterion = labels_loss(task, smoothing)

    def __call__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over the images."""
        return self._criterion(network(inputs).float(), labels)


class Distillation:
    """The labels' loss, mixed with the distance to a teacher (Hinton et al. 2015).

    Args:
        teacher: in evaluation mode, on the device of the training.
        share: of the teacher's part, in [0, 1].
        temperature: both outputs are divided by it; the gradient's size is kept.
        smoothing: label smoothing of the labels' part.
        features: weight of the attention maps' distance.
        points: names of the modules whose attention maps are compared, see `attention_points`.
        task: what the networks do.
    """

    def __init__(
        self,
        teacher: nn.Module,
        share: float,
        temperature: float,
        smoothing: float = 0.0,
        features: float = 0.0,
        points: Sequence[str] = (),
        task: Task = CLASSIFICATION,
    ) -> None:
        self._teacher = teacher
        self._share = share
        self._of_labels = labels_loss(task, smoothing)
        self._of_teacher = teacher_loss(task, temperature)
        self._features = features
        self._points = tuple(points) if features else ()

    def __call__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over the images."""
        with torch.no_grad(), _watched(self._teacher, self._points) as wanted:
            target = self._teacher(inputs).float()
        with _watched(network, self._points) as found:
            outputs = network(inputs).float()
        of_labels = self._of_labels(outputs, labels)
        loss = torch.lerp(of_labels, self._of_teacher(outputs, target), self._share)
        for name in self._points:
            loss = loss + self._features * attention_distance(found[name], wanted[name])
        return loss


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of attention maps, which do not depend on the number of channels.

    An attention map is the mean of the squared activations over the channels, scaled to length 1
    (Zagoruyko & Komodakis 2017, eq. 2).

    Args:
        student: (n, c, ...), such as (n, c, h, w).
        teacher: (n, c', ...).
    """
    maps = [x.float().pow(2).mean(1).flatten(1) for x in (student, teacher)]
    return (F.normalize(maps[0]) - F.normalize(maps[1])).pow(2).sum(1).mean()


def attention_points(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The last module before every change of the resolution, in the network's order.

    Maps are values (n, c, h, w) of a network of images. Of others they are what convolutions and
    batch normalizations give, such as (n, c, t): tokens (n, t, c) look like that too.

    Args:
        network: the teacher.
        example: (1, ...) what it takes.
    """
    last: dict[torch.Size, str] = {}
    handles = []
    of_images = example.dim() == 4

    def is_map(module: nn.Module, output: Any) -> bool:
        if not isinstance(output, Tensor) or output.shape[2:].numel() <= 1:
            return False
        return output.dim() == 4 if of_images else isinstance(module, _CHANNELS_FIRST)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if is_map(module, output):
                last.pop(output.shape[2:], None)
                last[output.shape[2:]] = name

        return hook

    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(last.values())


@contextmanager
def _watched(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules give inside, by name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [network.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
