"""Small networks of many kinds, and counts that do not use the code under test."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from automl_compress.compress import Compressor, Repair, Structure
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.space import Policy
from automl_compress.workload.resnet_cifar import CifarResNet

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Vgg(nn.Module):
    """Every channel of the last convolution owns 4x4 inputs of the first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2)
        )
        self.fc1 = nn.Linear(12 * 4 * 4, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(x).flatten(1))))


class Inverted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = conv_bn(width, 2 * width, 1)
        self.depthwise = conv_bn(2 * width, 2 * width, 3, 2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.layers = nn.ModuleList(conv_bn(6 + 4 * step, 4) for step in range(3))
        self.norm = nn.BatchNorm2d(18)
        self.head = head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.head(x * torch.sigmoid(gate))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = nn.Sequential(conv_bn(8, 8, 1), conv_bn(8, 8, 3, 2), nn.Conv2d(8, 8, 1))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.inner(x))


class Shuffle(nn.Module):
    """Half of the channels pass a block, then both halves are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branch = nn.Sequential(conv_bn(4, 4, 1), conv_bn(4, 4, 3, 4), conv_bn(4, 4, 1))
        self.last = conv_bn(8, 6, 1)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, 1)
        x = torch.cat([one, self.branch(two)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x))


class Chunked(nn.Module):
    """A gated unit: two halves of one layer are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.pair = nn.Conv2d(8, 12, 1)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.pair(self.stem(x)).chunk(2, 1)
        return self.head(value * torch.sigmoid(gate))


class Twice(nn.Module):
    """A tensor is concatenated with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.last = conv_bn(12, 6, 1)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(torch.cat([x, x], 1)))


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pad_zeros(x: Tensor) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


def cat_zeros(x: Tensor) -> Tensor:
    x = x[:, :, ::2, ::2]
    return torch.cat([x, torch.zeros(len(x), 4, *x.shape[2:])], 1)


class Shortcut(nn.Module):
    """Two stages joined by a parameter-free shortcut from 4 to 8 channels."""

    def __init__(self, shortcut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.conv1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.shortcut = shortcut
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        inner += self.shortcut(x)
        return self.head(F.relu(inner))


class Pyramid(nn.Module):
    """Widths that grow in every block, and as many zeros padded as they differ by (Han 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(n, n + 3), nn.Conv2d(n + 3, n + 3, 3, padding=1)) for n in (6, 9)
        )
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            inner = block(x)
            zeros = torch.zeros(len(x), inner.size(1) - x.size(1), *x.shape[2:])
            x = inner + torch.cat((x, zeros), 1)
        return self.head(F.relu(x))


class SharedConv(nn.Module):
    """One convolution and one ReLU run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.widen = nn.Conv2d(6, 10, 1)
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(3):
            x = self.relu(self.shared(x))
        return self.head(self.relu(self.widen(x)))


class Aliased(nn.Module):
    """Layers stand under two names, and run through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.same = self.second
        self.head = head(8)
        self.order = [self.first, F.relu, self.second, F.relu, self.head]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.order:
            x = step(x)
        return x


class LayerScale(nn.Module):
    """A residual branch behind a free parameter of tiny initial value, as in ConvNeXt."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = nn.Sequential(conv_bn(8, 12), nn.Conv2d(12, 8, 1))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.register_buffer("offset", offset)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.scale * self.inner(x) + self.offset)


class PatchMixer(nn.Module):
    """LayerNorm over channels around residual multi-layer perceptrons, and a position table."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.table = nn.Parameter(torch.randn(1, 16, 12) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(12, 20) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(20, 12) for _ in range(2))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.table
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            x = x + narrow(F.gelu(wide(norm(x))))
        return self.head(self.norm(x).mean(1))


class RootMeanSquare(nn.Module):
    """Residual multi-layer perceptrons behind the norm of today's language models."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norms = nn.ModuleList([nn.RMSNorm(12), nn.RMSNorm(12, elementwise_affine=False)])
        self.gate = nn.Linear(12, 20)
        self.wide = nn.Linear(12, 20)
        self.narrow = nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.narrow(F.silu(self.gate(y)) * self.wide(y))
        return self.head(self.norms[1](x).mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class Windows(nn.Module):
    """Attention in shifted windows, written out as in Swin, and two patches merged into one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.proj = nn.Linear(12, 12)
        self.bias = nn.Parameter(torch.randn(2, 4, 4))
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.merge = nn.Linear(24, 14)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        x = x + self.attend(self.norm(x))
        x = x + self.mlp(x)
        x = self.merge(torch.cat([x[:, 0::2], x[:, 1::2]], -1))
        return self.head(x.mean((1, 2)))

    def attend(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = torch.roll(x, (-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(len(x), 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-2, -1) + self.bias).softmax(-1) @ v).transpose(1, 2)
        x = self.proj(x.reshape(-1, 4, c)).view(n, h // 2, w // 2, 2, 2, c)
        return torch.roll(x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c), (1, 1), (1, 2))


class Patches(nn.Module):
    """Maps become patches, whose places are mixed apart, and maps again, as in MobileViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.mix = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        y = x.reshape(n * c * (h // 2), 2, w // 4, 4).transpose(1, 2)
        y = y.reshape(n, c, -1, 8).transpose(1, 3).reshape(n * 8, -1, c)
        y = self.mix(y).view(n, 8, -1, c).transpose(1, 3)
        y = y.reshape(n * c * (h // 2), w // 4, 2, 4).transpose(1, 2)
        return self.head(x + y.reshape(n, c, h, w))


class Tokens(nn.Module):
    """A class token before the patches, read alone at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.norm = nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head((x + self.mlp(self.norm(x)))[:, 0])


class Positions(nn.Module):
    """Tables that its own code makes, one of them with channels: sines of the places.

    It is in no list: a file holds the table once it is cut, so the first cut may cost bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        waves = torch.arange(17)[:, None] / 100 ** (torch.arange(12) / 12)
        self.register_buffer("table", waves.sin()[None], persistent=False)
        self.register_buffer("scale", torch.linspace(1, 2, 5), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.table
        return self.scale * self.head((x + self.mlp(x)).mean(1))


class Flattened(nn.Module):
    """Branches are concatenated, then flattened: channels own runs of unequal places."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, 8, 1)
        self.two = nn.Conv2d(3, 6, 1, 8)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(10 * 4, 8)
        self.fc2 = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(torch.cat([self.one(x), self.two(x)], 1))
        return self.fc2(self.relu(self.fc1(x.view(len(x), -1))))


class Mixer(nn.Module):
    """A linear layer over positions; the channels behind it are not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.mix = nn.Linear(16, 16)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x)))


class TokenMixer(nn.Module):
    """Layers over positions, then over channels (Tolstikhin et al. 2021, MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


class ChannelConvolution(nn.Module):
    """A gate of every channel by its neighbours (Wang et al. 2020, ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 8, 1)
        self.neighbours = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.out(self.inner(x))
        gate = self.neighbours(x.mean((2, 3))[:, None])
        return self.head(x * gate.sigmoid().transpose(1, 2)[..., None])


class FrozenNorm(nn.Module):
    """BatchNorm as plain arithmetic on buffers, as detection backbones have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.rand(8))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale.reshape(1, -1, 1, 1), self.shift.reshape(1, -1, 1, 1)
        return self.head(F.relu(self.stem(x) * scale + shift))


class Outputs(nn.Module):
    """Two heads, returned in a dictionary with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8))
        self.one = head(8, 5)
        self.two = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        return {"logits": self.one(x), "maps": (self.two(x), x.mean())}


class Normed(nn.Module):
    """Normalizations and activations that are not BatchNorm and ReLU."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = norm(8)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.norm(self.stem(x)))))


class Attention(nn.Module):
    """Spatial attention from the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.gate = nn.Conv2d(1, 1, 3, padding=1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * torch.sigmoid(self.gate(x.mean(1, keepdim=True))))


class SpatialGate(nn.Module):
    """One map of positions gates all channels, and couples none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.gate = nn.Conv2d(8, 1, 1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


class NonLocal(nn.Module):
    """Attention over positions, of convolutions and products (Wang et al. 2018)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.value, self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(len(x), self.inner, -1) for layer in (self.query, self.key, self.value)
        )
        weights = torch.matmul(query.permute(0, 2, 1), key).softmax(-1)
        mixed = torch.matmul(weights, value.permute(0, 2, 1)).permute(0, 2, 1).contiguous()
        return x + self.out(mixed.view(len(x), self.inner, *x.shape[2:]))


class PositionAttention(nn.Module):
    """Attention of SAGAN and DANet: queries and keys of fewer channels, a learned share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 2, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        weights = torch.bmm(query, self.key(x).flatten(2)).softmax(-1)
        mixed = torch.bmm(self.value(x).flatten(2), weights.transpose(1, 2))
        return self.gamma * mixed.view(x.shape) + x


class Selective(nn.Module):
    """Branches of two kernel sizes, stacked and mixed by attention over the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branches = nn.ModuleList(conv_bn(8, 6, kernel) for kernel in (1, 3))
        self.squeeze = nn.Linear(6, 4)
        self.excite = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = torch.stack([branch(x) for branch in self.branches], 1)
        hidden = F.relu(self.squeeze(maps.sum(1).mean((2, 3))))
        weights = torch.stack([layer(hidden) for layer in self.excite], 1).softmax(1)
        return self.head((maps * weights[..., None, None]).sum(1))


class Scales(nn.Module):
    """Parts of a map, each convolved after the last was added, as in Res2Net.

    The number that splits the map is the width of layers in a list. What the last of them writes
    is coupled to nothing, so that they do not all keep equally many channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.stem = conv_bn(3, 16)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(self.stem(x), self.width, 1)
        outputs, before = [first], torch.zeros_like(first)
        for part, convolution, norm in zip(others, self.convolutions, self.norms, strict=True):
            before = F.relu(norm(convolution(part + before)))
            outputs.append(before)
        return self.head(torch.cat(outputs, 1))


class Unused(nn.Module):
    """A layer that never runs in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.auxiliary = head(8, 7)
        self.head = head(8)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


class Words(nn.Module):
    """A network that reads integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.fc1 = nn.Linear(8, 12)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.table(x).mean(1))))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(768, 16), nn.ReLU(inplace=True), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 5),
    )  # fmt: skip


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=1),
        nn.PReLU(6), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class PlainVolume(nn.Conv3d):
    """A layer of another class that computes what PyTorch's does, as torchvision's video has it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1, bias=False)


def volume() -> nn.Module:
    return nn.Sequential(
        PlainVolume(2, 8, 2), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, groups=8),
        nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


def decoder() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8), conv_bn(8, 8), nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1),
    )  # fmt: skip


class UNet(nn.Module):
    """Maps are halved, doubled by transposed convolutions, and joined with what they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 10)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(10, 8, 2, 2), nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False)]
        )
        self.join = nn.ModuleList([conv_bn(16, 8), conv_bn(12, 6)])
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for down in list(self.down)[1:]:
            maps.append(down(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([maps.pop(), up(x)], 1))
        return self.last(x)


def upsampled() -> nn.Module:
    """Transposed convolutions in a row, one of them in groups, one shown only by its name."""
    return nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=1), nn.ConvTranspose1d(6, 8, 4, 2, 1), nn.PReLU(8),
        nn.ConvTranspose1d(8, 6, 3, 1, 1), nn.ReLU(), nn.ConvTranspose1d(6, 4, 2, 2, groups=2),
    )  # fmt: skip


def gated() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 12, 3, padding=1), nn.GLU(1), head(6))


def shuffled() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8), nn.Conv2d(8, 12, 1), nn.ChannelShuffle(3), conv_bn(12, 6), head(6)
    )


def subpixel() -> nn.Module:
    """Channels become positions, and positions channels."""
    return nn.Sequential(
        conv_bn(3, 8), nn.Conv2d(8, 24, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(16, 6, 1), head(6),
    )  # fmt: skip


def weight_normed() -> nn.Module:
    network = nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), head(6))
    nn.utils.parametrizations.weight_norm(network[1])
    return network


class StandardConv(nn.Conv2d):
    """Weights standardised in its own code, times a gain (Qiao et al. 2019, Brock et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = self.gain * (self.weight - mean) * torch.rsqrt(spread + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BareConv(nn.Module):
    """A convolution of a parameter, without a layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, padding=1)


class BareLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(outputs, inputs))
        self.offset = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table / 3, self.offset)


def standardised() -> nn.Module:
    return nn.Sequential(
        StandardConv(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), StandardConv(8, 8, 3, 8), nn.ReLU(),
        StandardConv(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), head(6),
    )  # fmt: skip


def bare() -> nn.Module:
    return nn.Sequential(
        BareConv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        BareLinear(32, 6), nn.ReLU(), nn.Linear(6, 5),
    )  # fmt: skip


def non_local() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(4), NonLocal(8, 6), nn.ReLU(), head(8))


def position_attention() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8), nn.MaxPool2d(4), PositionAttention(8), conv_bn(8, 6), head(6)
    )


def hooked() -> nn.Module:
    """Weights that PyTorch's older normalizations and its masks compute before every call."""
    network = nn.Sequential(
        conv_bn(3, 8), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 6, 1), head(6),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network[1])
    nn.utils.spectral_norm(network[3])
    prune.l1_unstructured(network[5], "weight", 0.5)
    return network


def mobile() -> nn.Module:
    return nn.Sequential(conv_bn(3, 6), Inverted(6), Inverted(6), conv_bn(6, 10, 1), head(10))


class RectifiedSkip(nn.Module):
    """Residual units of RefineNet and MiDaS, whose ReLU in place rectifies what is added, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.last, self.head = nn.LeakyReLU(0.1, inplace=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inside = self.second(self.last(self.first(self.relu(x))))
        return self.head((x + inside).mean((2, 3)))


class Captured(nn.Module):
    """A hook that stands outside of the module it writes to keeps what a skip connection needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.decode, self.head = nn.Conv2d(14, 8, 3), nn.Linear(8, 5)
        self.kept: dict[str, Tensor] = {}
        self.encode.register_forward_hook(lambda m, i, o: self.kept.update(encode=o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(F.relu(self.encode(x)))
        y = self.decode(torch.cat([y, self.kept["encode"]], 1))
        return self.head(F.relu(y).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: CifarResNet(1),
    "vgg": Vgg,
    "mobile": mobile,
    "dense": Dense,
    "squeeze-excite": SqueezeExcite,
    "grouped": Grouped,
    "shuffle": Shuffle,
    "chunked": Chunked,
    "twice": Twice,
    "mlp": mlp,
    "pad-module": lambda: Shortcut(Lambda(pad_zeros)),
    "cat-module": lambda: Shortcut(Lambda(cat_zeros)),
    "pad-function": lambda: Shortcut(pad_zeros),
    "cat-function": lambda: Shortcut(cat_zeros),
    "pyramid": Pyramid,
    "shared": SharedConv,
    "aliased": Aliased,
    "layer-scale": lambda: LayerScale(torch.tensor(0.5)),
    "fixed-offset": lambda: LayerScale(torch.rand(1, 8, 1, 1)),
    "patch-mixer": PatchMixer,
    "root-mean-square": RootMeanSquare,
    "transformer": Transformer,
    "windows": Windows,
    "patches": Patches,
    "tokens": Tokens,
    "flattened": Flattened,
    "mixer": Mixer,
    "token-mixer": TokenMixer,
    "channel-convolution": ChannelConvolution,
    "frozen-norm": FrozenNorm,
    "grouped-norm": lambda: Normed(lambda n: nn.GroupNorm(4, n)),
    "outputs": Outputs,
    "groupnorm": lambda: Normed(lambda n: nn.GroupNorm(2, n)),
    "instancenorm": lambda: Normed(lambda n: nn.InstanceNorm2d(n, affine=True)),
    "prelu": lambda: Normed(lambda n: nn.PReLU()),
    "channel-prelu": lambda: Normed(nn.PReLU),
    "plain-batchnorm": lambda: Normed(lambda n: nn.BatchNorm2d(n, affine=False)),
    "attention": Attention,
    "spatial-gate": SpatialGate,
    "selective": Selective,
    "non-local": non_local,
    "position-attention": position_attention,
    "scales": Scales,
    "unet": UNet,
    "upsampled": upsampled,
    "gated": gated,
    "shuffled": shuffled,
    "subpixel": subpixel,
    "unused": Unused,
    "words": Words,
    "signal": signal,
    "volume": volume,
    "decoder": decoder,
    "weight-norm": weight_normed,
    "hooked": hooked,
    "standardised": standardised,
    "bare": bare,
    "rectified-skip": RectifiedSkip,
    "captured": Captured,
}  # fmt: skip

EXAMPLES: dict[str, Tensor] = {
    "signal": torch.zeros(1, 2, 16),
    "volume": torch.zeros(1, 2, 8, 6, 7),
    "upsampled": torch.zeros(1, 2, 16),
    "words": torch.zeros(1, 7, dtype=torch.int64),
}
"""Example inputs other than (1, 3, 16, 16)."""


def example(name: str, count: int = 1) -> Tensor:
    """(count, ...) random inputs of a network, always the same ones."""
    shape = EXAMPLES.get(name, torch.zeros(1, 3, 16, 16))
    generator = torch.Generator().manual_seed(1)
    if not shape.is_floating_point():
        return torch.randint(0, 11, (count, *shape.shape[1:]), generator=generator)
    return torch.randn(count, *shape.shape[1:], generator=generator)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random values wherever initial values are all alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and (tensor == tensor.reshape(-1)[0]).all()
            ):
                spread = 0.5 + torch.rand(tensor.shape, generator=generator)
                tensor.copy_(spread - 1 if name.endswith(("bias", "running_mean")) else spread)
    return model


def network(name: str, seed: int = 0) -> nn.Module:
    """A network with lively weights, in evaluation mode, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lively(NETWORKS[name]()).eval()


@functools.cache
def shared_compressor(name: str, count: int = 0, repair: Repair = "auto") -> Compressor:
    """The compressor of a network with so many calibration images, made once; leave it as it is."""
    images = example(name, count) if count else None
    return Compressor(network(name), example(name, max(1, count))[:1], images, repair=repair)


def random_policy(structure: Structure, rng: np.random.Generator, activations: bool) -> Policy:
    """Any policy the network allows; about half of the genes are left out."""
    genes = {
        f"channels:{group.name}": int(rng.integers(1, group.channels + 1))
        for group in structure.groups
        if not group.protected and rng.random() < 0.6
    }
    for layer in structure.layers:
        if layer.quantizable and rng.random() < 0.6:
            genes[f"weight_bits:{layer.name}"] = int(rng.integers(2, 9))
        if activations and layer.quantizable and rng.random() < 0.4:
            genes[f"activation_bits:{layer.name}"] = int(rng.integers(4, 9))
    return Policy(genes)


def flatten(output: Any) -> list[Tensor]:
    """All tensors of an output."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in flatten(item)]


def counted_macs(built: nn.Module, inputs: Tensor) -> int:
    """Half of the floating-point operations PyTorch counts for one image."""
    counter = FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operation would not be counted
    try:
        with torch.no_grad(), counter:
            built(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2 // len(inputs)


def _bits(module: nn.Module, key: str) -> int:
    return (getattr(module, "weight_bits", None) or 32) if key == "weight" else 32


def counted_bytes(built: nn.Module) -> int:
    """Packed bytes of all tensors of a built network, each counted by itself."""
    total = 0
    for module in built.modules():
        if isinstance(module, ChannelMap):
            total += 2 * len(module.sources)
            continue
        tensors: Iterator[tuple[str, Tensor | None]] = iter(
            [*module._parameters.items(), *module._buffers.items()]
        )
        for key, tensor in tensors:
            if tensor is not None and key != "num_batches_tracked":
                bits = sum(_bits(module, key) for _ in range(tensor.numel()))
                total += (bits + 7) // 8
    return total


def counted_bitops(built: nn.Module, inputs: Tensor) -> int:
    """Operations of every layer times its bits, by a loop over the calls of layers."""
    macs: dict[nn.Module, int] = {}

    def hook(module: Any, _: Any, output: Tensor) -> None:
        values = output.numel() // len(inputs)
        macs[module] = macs.get(module, 0) + values * module.weight[0].numel()

    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    layers = [m for m in built.modules() if isinstance(m, kinds)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        built(inputs)
    for handle in handles:
        handle.remove()
    other = counted_macs(built, inputs) - sum(macs.values())
    total = 32 * 32 * other
    for layer, count in macs.items():
        quantizer = getattr(layer, "input_quantizer", None)
        total += count * _bits(layer, "weight") * (32 if quantizer is None else quantizer.bits)
    return total


def bounds(scales: Tensor, bits: int) -> Tensor:
    """The largest integer of each of some grids."""
    return torch.full_like(scales, 2 ** (bits - 1) - 1)
