"""Training from scratch, and sparsity training of a network that is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from automl_compress.compress.modules import own_copy
from automl_compress.errors import InputError
from automl_compress.recover.fixed import trainable_but
from automl_compress.recover.losses import LabelsLoss
from automl_compress.recover.measurement import measure
from automl_compress.recover.mirroring import knows_mirrored
from automl_compress.recover.recovery import state_hash
from automl_compress.recover.settings import TrainingSettings, find_device, title_of
from automl_compress.recover.sparsity import SparsitySettings, penalty_of
from automl_compress.recover.training import Listener, Trainer, hear_nothing
from automl_compress.workload import CARD_VERSION, Splits, Workload, card_path, replacing
from automl_compress.workload.placement import CPU, move


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and how it came about.

    Args:
        network: on the processor, in evaluation mode.
        card: what its card says, plain JSON.
    """

    network: nn.Module
    card: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the weights, and the card beside them as `.json`; each whole or not at all."""
        # Each in memory of its own, as the format wants it: parameters may be tied.
        state = {n: v.contiguous().clone() for n, v in self.network.state_dict().items()}
        content = safetensors.torch.save(state)
        card = {**self.card, "weights": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        with replacing(path) as file:
            file.write(content)
        with replacing(card_path(path)) as file:
            file.write((json.dumps(card, indent=1) + "\n").encode())


def train_network(
    workload: Workload,
    settings: TrainingSettings,
    sparsity: SparsitySettings | None = None,
    checkpoint: Path | None = None,
    listener: Listener = hear_nothing,
) -> Trained:
    """Train a workload's network on its training images, from the weights it has.

    Parameters that its factory froze stay as they are.

    The search-validation images are not trained on; they are measured after every epoch. They
    should come from the training half, so that the test half stays whole.

    Args:
        workload: the network, which is not changed, and its data.
        settings: how.
        sparsity: a penalty beside the labels' loss.
        checkpoint: see `Trainer.run`.
        listener: hears how far it has come.

    Raises:
        InputError: the device is not there, the checkpoint is broken or another training's, the
            penalty meets an optimizer that would rescale it, or the network cannot be trained, see
            `Trainer`.
        EngineError: the loss is not finite.
        InterruptedStudy: the user stopped it.
    """
    start = time.monotonic()
    _check_optimizer(settings, sparsity)
    device = find_device(settings.device)
    model, images, scaling = workload.model, workload.splits.train, workload.normalization
    trained = partial(knows_mirrored, model, images, scaling, workload.task)
    settings = settings.mirroring((lambda: images.are_images) if sparsity is None else trained)
    network = move(trainable_but(own_copy(workload.model), workload.fixed), device)
    penalty = None
    if sparsity is not None:
        penalty = penalty_of(network, workload.model, workload.example_input(), sparsity)
    before = None if penalty is None else penalty.value()
    described = {"training": settings.to_dict(), "sparsity": _plain(sparsity)}
    deciding = {**described, "training": settings.deciding()}
    trainer = Trainer(
        network,
        workload.splits.train,
        workload.normalization,
        settings,
        LabelsLoss(workload.task, settings.label_smoothing),
        _identity(workload, deciding),
        after_backward=penalty,
        judges=workload.splits.validation,
        task=workload.task,
    )
    trainer.run(checkpoint, listener)
    trainer.use_average()
    card = {
        **_card(network, workload, device),
        **described,
        "steps": trainer.steps,
        "seconds": round(time.monotonic() - start, 1),
    }
    if penalty is not None:
        card["penalty"] = {"before": before, "after": penalty.value()}
        card["given"] = _qualities(move(own_copy(workload.model), device), workload, device)
    result = move(network, CPU).to(memory_format=torch.contiguous_format).eval()
    return Trained(result.requires_grad_(False), card)


def _check_optimizer(settings: TrainingSettings, sparsity: SparsitySettings | None) -> None:
    if sparsity is not None and settings.optimizer != "sgd":
        raise InputError(
            "'optimizer' must be sgd for sparsity training, since others rescale the penalty's "
            f"gradient, but is '{settings.optimizer}'; remove it"
        )


def _identity(workload: Workload, described: dict[str, Any]) -> str:
    """Hash of everything that decides the result but the device's arithmetic."""
    parts: list[Any] = [workload.identity, state_hash(workload.model), described]
    if workload.fixed:
        parts.append(sorted(workload.fixed))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _images_used(splits: Splits) -> dict[str, dict[str, Any]]:
    """What a card says of the images: by part, how many there are and the hash of their content."""
    parts = {"train": splits.train, "held_out": splits.validation, "test": splits.test}
    return {
        name: {"images": len(part), "content_hash": part.content_hash}
        for name, part in parts.items()
    }


def _card(network: nn.Module, workload: Workload, device: torch.device) -> dict[str, Any]:
    """What a card says of a trained network, whatever its training was."""
    return {
        "version": CARD_VERSION,
        "model": workload.name,
        "quality": workload.task.quality,
        **_qualities(network, workload, device),
        "images": _images_used(workload.splits),
        "classes": list(workload.classes),
        "device": title_of(device),
        "torch": torch.__version__,
    }


def _qualities(
    network: nn.Module, workload: Workload, device: torch.device
) -> dict[str, dict[str, float]]:
    """Quality and further metrics by name, each on the held-out and on the test images."""
    splits = workload.splits
    found = {
        name: measure(network, images, workload.normalization, device, workload.task).score
        for name, images in (("held_out", splits.validation), ("test", splits.test))
    }
    return {
        name: {part: {**score.metrics, **score.further}[name] for part, score in found.items()}
        for name in (workload.task.quality, *found["test"].further)
    }


def _plain(settings: SparsitySettings | None) -> dict[str, Any] | None:
    return None if settings is None else dataclasses.asdict(settings)
