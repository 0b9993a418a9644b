"""Parameter-free shortcuts that change the number of channels, made cuttable.

He et al. 2016 (option A) subsample a residual stream and pad it with zero channels, without
parameters. The streams before and after may keep different channels, but the padding is fixed
in code. `replace_channel_maps` finds such modules by what they do, not by what they are called,
and puts a `ChannelMap` in their place, which says for every output channel where it comes from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from automl_compress.compress.modules import become

_LARGE = 1e3
"""Factor of the inputs that also show what limits a module has."""
ZERO = -1
"""Source of an output channel that is always zero."""


class ChannelMap(nn.Module):
    """Copies chosen input channels to chosen output channels, at every `stride`-th position.

    Args:
        sources: (out_channels,) input channel of every output channel, or `ZERO`.
        in_channels: input channels.
        stride: spatial step.
    """

    sources: Tensor

    def __init__(self, sources: Tensor, in_channels: int, stride: int) -> None:
        super().__init__()
        self.register_buffer("sources", sources.to(torch.int16))
        self.in_channels = in_channels
        self.stride = stride

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return len(self.sources)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, ceil(h/stride), ceil(w/stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        sources = self.sources.long()
        mapped = x.index_select(1, sources.clamp(min=0))
        return mapped * (sources >= 0).to(x.dtype)[:, None, None]

    def cut(self, keep_out: Tensor, keep_in: Tensor) -> ChannelMap:
        """The map between the kept output and the kept input channels."""
        new_place = torch.full((self.in_channels + 1,), ZERO, dtype=torch.long)
        new_place[keep_in] = torch.arange(len(keep_in))
        sources = new_place[self.sources.long()[keep_out]]  # ZERO reads the last place: ZERO
        return ChannelMap(sources, len(keep_in), self.stride)

    def as_convolution(self) -> nn.Conv2d:
        """A 1x1 convolution that computes the same, for tracers that know only layers."""
        layer = nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride, bias=False)
        weight = torch.zeros_like(layer.weight)
        rows = torch.nonzero(self.sources >= 0)[:, 0]
        weight[rows, self.sources.long()[rows]] = 1.0
        layer.weight = nn.Parameter(weight)
        return layer


def replace_channel_maps(model: nn.Module, example_input: Tensor) -> None:
    """Put a `ChannelMap` in place of every module that proves to be one, in this model.

    Args:
        model: changed in place.
        example_input: what the network takes.
    """
    for module, inputs in _candidates(model, example_input):
        channel_map = _recognise(module, inputs)
        if channel_map is not None:
            become(module, channel_map.eval())


def _candidates(model: nn.Module, example_input: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Parameter-free modules that change the channels of a 4-D tensor, with one input each."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = [*inputs, output]
            images = all(isinstance(t, Tensor) and t.dim() == 4 for t in tensors)
            if len(tensors) == 2 and images and inputs[0].shape[1] != output.shape[1]:
                found[name] = (module, inputs[0].detach())

        return hook

    for name, module in model.named_modules():
        free = not any(True for _ in module.parameters()) and not isinstance(module, ChannelMap)
        if name and free:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.no_grad():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    # Of nested modules only the outermost is replaced.
    return [v for n, v in found.items() if not any(n.startswith(f"{o}.") for o in found)]


def _recognise(module: nn.Module, inputs: Tensor) -> ChannelMap | None:
    """The channel map a module computes, proven on random inputs; None when it is none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        probe = torch.randn(inputs.shape, generator=generator)
        output = module(probe)
        steps = {-(-probe.shape[d] // output.shape[d]) for d in (2, 3) if output.shape[d]}
        if len(steps) != 1:
            return None
        stride = steps.pop()
        sampled = probe[:, :, ::stride, ::stride]
        if sampled.shape[2:] != output.shape[2:]:
            return None
        channel_map = ChannelMap(_sources(sampled, output), probe.shape[1], stride)
        second = _LARGE * torch.randn(inputs.shape, generator=generator)
        same = torch.equal(channel_map(probe), output) and torch.equal(
            channel_map(second), module(second)
        )
    return channel_map if same else None


def _sources(sampled: Tensor, output: Tensor) -> Tensor:
    """(out_channels,) the input channel that equals every output channel, else `ZERO`."""
    sources = torch.full((output.shape[1],), ZERO, dtype=torch.long)
    for place in range(output.shape[1]):
        equal = (sampled == output[:, place : place + 1]).all(dim=3).all(dim=2).all(dim=0)
        if equal.any():
            sources[place] = int(equal.nonzero()[0, 0])
    return sources
