"""Tiny detectors of torchvision, one of each kind that looks once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from boxed_folders import HEIGHT, WIDTH
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

SCALING: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
SIZES: dict[str, Any] = {"min_size": HEIGHT, "max_size": WIDTH}
KINDS = ("ssd", "retinanet", "fcos")


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Body(nn.Module):
    """Maps at strides 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = [8, 12]
        self.low = nn.Sequential(_stage(3, 8, 4), _stage(8, 8, 2))
        self.high = nn.Sequential(_stage(8, 16, 2), _stage(16, 12, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        return {"0": low, "1": self.high(low)}


class Pyramid(nn.Module):
    """The same with equal channels."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.body, self.fpn = Body(), FeaturePyramidNetwork([8, 12], out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.fpn(self.body(x))
        return found


def ssd(num_classes: int = 3) -> nn.Module:
    """An SSD."""
    anchors = DefaultBoxGenerator([[2], [2, 3]], scales=[0.2, 0.5, 0.9], steps=[8, 16])
    size = (WIDTH, HEIGHT)
    return SSD(Body(), anchors, size, num_classes, score_thresh=0.02, **SCALING)


def retinanet(num_classes: int = 3) -> nn.Module:
    """A RetinaNet."""
    anchors = AnchorGenerator(((16, 24), (32, 48)), ((0.5, 1.0),) * 2)
    return RetinaNet(Pyramid(8), num_classes, anchor_generator=anchors, **SIZES, **SCALING)


def of_one_map(num_classes: int = 3) -> nn.Module:
    """A RetinaNet whose backbone gives a tensor, as torchvision's own example builds it."""
    backbone = nn.Sequential(_stage(3, 8, 4), _stage(8, 8, 2))
    backbone.out_channels = 8  # type: ignore[assignment]
    anchors = AnchorGenerator(((16, 24),), ((0.5, 1.0),))
    return RetinaNet(backbone, num_classes, anchor_generator=anchors, **SIZES, **SCALING)


def fcos(num_classes: int = 3) -> nn.Module:
    """An FCOS."""
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Pyramid(32), num_classes, anchor_generator=anchors, **SIZES, **SCALING)


def frozen_norms(num_classes: int = 3) -> nn.Module:
    """A RetinaNet with BatchNorms that do not learn in its backbone, and a head of group norms."""
    anchors = AnchorGenerator(((16, 24), (32, 48)), ((0.5, 1.0),) * 2)
    head = RetinaNetHead(8, 4, num_classes, norm_layer=partial(nn.GroupNorm, 4))
    backbone = Pyramid(8)
    for stage in (*backbone.body.low, *backbone.body.high):
        stage[1] = FrozenBatchNorm2d(stage[1].num_features)
        stage[1].running_var.uniform_(0.5, 2.0)
    return RetinaNet(backbone, num_classes, anchor_generator=anchors, head=head, **SIZES, **SCALING)


class Lossless(nn.Module):
    """A RetinaNet's head that only answers."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.classification_head = head.classification_head
        self.regression_head = head.regression_head

    def forward(self, x: Any) -> Any:
        """What torchvision's gives."""
        return RetinaNetHead.forward(self, x)  # type: ignore[arg-type]


def lossless(num_classes: int = 3) -> nn.Module:
    """A RetinaNet that cannot be trained."""
    detector: Any = retinanet(num_classes)
    detector.head = Lossless(detector.head)
    return detector  # type: ignore[no-any-return]


def alive(model: nn.Module, boxes: float = 0.25) -> nn.Module:
    """The network with scores that differ from place to place.

    Args:
        model: changed in place.
        boxes: how much boxes differ from their anchors; many reach far outside when it is large.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "head" in name and name.endswith("weight") and value.dim() == 4:
                spread = boxes if "regression" in name else 0.25
                value.normal_(0, spread, generator=generator)
            elif name.endswith("cls_logits.bias"):
                value.fill_(-1.0)
            elif name.endswith("bbox_reg.bias") and len(value) == 4:
                value.fill_(1.0)  # distances of FCOS, which would be zero half of the time
    return model
