"""AlexNet for 32x32 images (Krizhevsky et al. 2012): five convolutions and one linear layer.

Kernels and strides are smaller than in the paper, so that 32 pixels last for five layers, and a
single linear layer reads 2x2 pixels of 256 channels; channels are those of Krizhevsky 2014.
"""

from __future__ import annotations

import torch
from torch import nn


class CifarAlexNet(nn.Module):
    """Five convolutions, three of them before a pooling, and a linear layer; no BatchNorm.

    Args:
        num_classes: number of outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(256 * 2 * 2, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, 3, h, w), h and w at least 16."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits
