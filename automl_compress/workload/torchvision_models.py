"""Every classification, segmentation and detection model torchvision lists, with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

_SIDE: Final = {"classification": 64, "segmentation": 64, "detection": 128}
"""Pixels of a square input, where a model does not ask for more."""
_SIDES: Final = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
_RESIZING: Final = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos")


def torchvision_tasks() -> dict[str, str]:
    """By model name, its task: classification, segmentation or detection."""
    import torchvision

    packages = {
        "classification": torchvision.models,
        "segmentation": torchvision.models.segmentation,
        "detection": torchvision.models.detection,
    }
    return {
        name: task
        for task, package in packages.items()
        for name in torchvision.models.list_models(module=package)
    }


def torchvision_example(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model with random weights, in evaluation mode, and the smallest sensible input.

    Args:
        name: one of `torchvision_tasks`.
        seed: decides weights and input; the global generator is left as it was.

    Returns:
        The model and (1, 3, side, side) random values in [0, 1).
    """
    import torchvision

    task = torchvision_tasks()[name]
    side = _SIDES.get(name, _SIDE[task])
    build: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = build(weights=None, **_arguments(name, task, side))
        return model.eval(), torch.rand(1, 3, side, side)


def _arguments(name: str, task: str, side: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if task != "classification":
        arguments["weights_backbone"] = None
    if name.startswith(_RESIZING):
        arguments |= {"min_size": side, "max_size": side}
    if name.startswith("vit"):
        arguments["image_size"] = side
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    return arguments
