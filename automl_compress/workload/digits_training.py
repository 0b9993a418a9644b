"""Training of the digits network: the same weights from the same recipe, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from automl_compress.errors import WorkloadError
from automl_compress.workload.cache import cache_folder, store
from automl_compress.workload.images import ImageSet, Normalization
from automl_compress.workload.weights import load_weights

_logger = logging.getLogger(__name__)

RECIPE: Final = 1
"""Raised whenever a change below can change the weights."""

DEFAULT_EPOCHS: Final = 30
_BATCH: Final = 64
_RATE: Final = 0.1
_DECAY: Final = 5e-4


def train_digits(
    model: nn.Module, images: ImageSet, normalization: Normalization, *, epochs: int, seed: int
) -> None:
    """Give a freshly built `DigitsCNN` the weights of the recipe, from the cache or by training.

    The result depends on the arguments and on torch's version, not on the number of cores; the
    global random state and the number of threads are left as they were.

    Args:
        model: its initial weights come from `seed` too: see `automl_compress.workload.models`.
        images: training images, (n, 1, 8, 8).
        normalization: turns them into input.
        epochs: passes over the images, >= 1.
        seed: decides the order and the shifts of images.

    Raises:
        WorkloadError: the images have another shape.
    """
    if images.shape != (1, 8, 8):
        raise WorkloadError(
            f"digits_cnn is trained on images of shape (1, 8, 8), but got {images.shape}; "
            f"use data: digits, or give 'weights'"
        )
    name = f"digits_cnn-{_recipe(model, images, normalization, epochs, seed)}.safetensors"
    if (cache_folder() / name).is_file():
        try:
            load_weights(model, cache_folder() / name)
        except WorkloadError as reason:
            _logger.warning("cached weights are damaged and made again: %s", reason)
        else:
            return
    _train(model, images, normalization, epochs, seed)
    store(name, save({key: value.contiguous() for key, value in model.state_dict().items()}))


def _recipe(
    model: nn.Module, images: ImageSet, normalization: Normalization, epochs: int, seed: int
) -> str:
    recipe = {
        "recipe": [RECIPE, _BATCH, _RATE, _DECAY],
        "torch": torch.__version__,
        "shapes": [list(value.shape) for value in model.state_dict().values()],
        "images": images.content_hash,
        "normalization": [normalization.mean, normalization.std],
        "epochs": epochs,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are then added in one order on any machine with this processor type."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(
    model: nn.Module, images: ImageSet, normalization: Normalization, epochs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = images.tensor(normalization), torch.from_numpy(images.labels.copy())
    optimizer = torch.optim.SGD(
        model.parameters(), _RATE, momentum=0.9, weight_decay=_DECAY, nesterov=True
    )
    steps = epochs * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
    model.train()
    with _one_thread(), torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(labels), generator=generator), _BATCH):
                loss = functional.cross_entropy(
                    model(_shifted(inputs[rows], generator)), labels[rows], label_smoothing=0.1
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    model.eval()


def _shifted(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch, each image moved by up to one pixel each way; zeros come in."""
    count, _, height, width = batch.shape
    padded = functional.pad(batch, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height))[:, None, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, None, :]
    every = torch.arange(count)[:, None, None, None]
    return padded[every, 0, rows, columns]
