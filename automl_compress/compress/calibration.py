"""What the layers of the original network read and give on calibration images: a sample of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.kinds import CONVOLUTIONS

MOMENT_FAN_IN: Final = 2304
"""Layers that read more values have no second moment: it takes square memory, cubic time."""
OUTPUTS: Final = 4096
"""Output vectors kept per layer, fewer where a layer is wide."""
OUTPUT_VALUES: Final = 2**21
"""Largest number of output values kept per layer."""
FEWEST: Final = 1024
"""Output vectors kept of the widest layers."""
INPUTS: Final = 512
"""Input patches kept per layer. Against the full second moment of the inputs, the clip chosen
for a channel of ResNet-56 at 3 bits loses no accuracy that could be told from noise."""


@dataclass(frozen=True)
class Spots:
    """Output positions of one layer, drawn over a batch of images.

    Args:
        first: (n,) image of each; for linear layers the row of the flattened batch.
        places: (n,) output places along every spatial axis; none for linear layers.
        shape: all sizes of the layer's output but the channels.
    """

    first: Tensor
    places: tuple[Tensor, ...]
    shape: tuple[int, ...]

    def head(self, count: int) -> Spots:
        """The first of them."""
        places = tuple(place[:count] for place in self.places)
        return Spots(self.first[:count], places, self.shape)


@dataclass(frozen=True)
class Moments:
    """What is known of a layer's inputs when single ones are forgotten.

    Args:
        mean: (groups, 1, fan_in).
        covariance: (groups, fan_in, fan_in).
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Sample:
    """What one layer of the original network does at some spots.

    Args:
        spots: n output positions.
        inputs: (groups, min(n, `INPUTS`), fan_in) what the layer reads at the first of them,
            flattened as its weights are.
        outputs: (n, out) what it gives at all of them.
        moments: of its inputs at all of them; None where not asked for, and where the layer reads
            more than `MOMENT_FAN_IN` values.
    """

    spots: Spots
    inputs: Tensor
    outputs: Tensor
    moments: Moments | None = None


def sample_layers(
    model: nn.Module,
    layers: Iterable[str],
    images: Tensor,
    seed: int = 0,
    moments: bool = False,
) -> dict[str, Sample]:
    """Watch layers at random positions; of a layer that is used twice, its first use.

    Convolutions of single images, without an axis for these, are left out.

    Args:
        model: the network; not changed.
        layers: names of convolutions and linear layers.
        images: (n, channels, ...) calibration images.
        seed: decides the positions.
        moments: whether the moments of inputs are wanted too.

    Returns:
        By layer name; layers that do not run are missing.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Sample] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            _watcher(name, found, generator, moments), with_kwargs=True
        )
        for name in layers
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watcher(
    name: str, found: dict[str, Sample], generator: torch.Generator, moments: bool
) -> Callable[..., None]:
    def hook(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        alone = isinstance(module, CONVOLUTIONS) and output.dim() < module.weight.dim()
        if name in found or alone or not output.numel():
            return
        spots = _draw(module, output, generator)
        x = layer_input(inputs, named)
        known = _moments(module, x, spots) if moments else None
        read = read_inputs(module, x, spots.head(INPUTS))
        found[name] = Sample(spots, read, read_outputs(module, output, spots), known)

    return hook


def layer_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The tensor a layer was called with, given by place or by name."""
    tensor: Tensor = inputs[0] if inputs else named["input"]
    return tensor


def output_shape(layer: nn.Module, output: Tensor) -> tuple[int, ...]:
    """All sizes of a layer's output but the channels."""
    if isinstance(layer, CONVOLUTIONS):
        return (output.shape[0], *output.shape[2:])
    return tuple(output.shape[:-1])


def _draw(layer: nn.Module, output: Tensor, generator: torch.Generator) -> Spots:
    shape = output_shape(layer, output)
    channels = output.shape[1] if isinstance(layer, CONVOLUTIONS) else output.shape[-1]
    count = min(OUTPUTS, max(FEWEST, OUTPUT_VALUES // channels))
    if isinstance(layer, CONVOLUTIONS):
        first, *places = (torch.randint(size, (count,), generator=generator) for size in shape)
        return Spots(first, tuple(places), shape)
    rows = output.numel() // channels
    if rows <= count:
        return Spots(torch.arange(rows), (), shape)
    return Spots(torch.randint(rows, (count,), generator=generator), (), shape)


def read_inputs(layer: nn.Module, x: Tensor, spots: Spots) -> Tensor:
    """(groups, n, fan_in) what a layer reads at some spots.

    Args:
        layer: a convolution or linear layer, cut or not.
        x: its input.
        spots: output positions.
    """
    if not isinstance(layer, CONVOLUTIONS):
        return x.flatten(0, -2)[spots.first][None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    batch = spots.first.reshape(-1, *[1] * len(spots.places))
    patches = padded.movedim(1, -1)[batch, *_places_read(layer, spots)].movedim(-1, 1)
    flat = patches.reshape(len(spots.first), layer.groups, -1)
    return flat.transpose(0, 1).contiguous()


def _places_read(layer: Any, spots: Spots) -> Iterator[Tensor]:
    """By spatial axis, (n, ..., kernel, ...) places of the padded input that spots read."""
    for axis, places in enumerate(spots.places):
        steps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        read = (places * layer.stride[axis])[:, None] + steps
        after = len(spots.places) - 1 - axis
        yield read.reshape(len(read), *[1] * axis, -1, *[1] * after)


def _moments(layer: nn.Module, x: Tensor, spots: Spots) -> Moments | None:
    weight = layer.get_parameter("weight")
    if weight[0].numel() > MOMENT_FAN_IN:
        return None
    read = read_inputs(layer, x, spots)
    mean = read.mean(dim=1, keepdim=True)
    centred = read - mean
    return Moments(mean, centred.transpose(1, 2) @ centred / read.shape[1])


def read_outputs(layer: nn.Module, y: Tensor, spots: Spots) -> Tensor:
    """(n, out) what a layer gives at some spots.

    Args:
        layer: a convolution or linear layer.
        y: its output.
        spots: output positions.
    """
    if isinstance(layer, CONVOLUTIONS):
        found: Tensor = y.movedim(1, -1)[spots.first, *spots.places]
        return found
    return y.flatten(0, -2)[spots.first]
