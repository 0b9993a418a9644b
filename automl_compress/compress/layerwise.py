"""Layers fitted each alone, to what they read in the original network: fast, for searches.

`reconstruct` fits every layer on what the compressed layers before it give, so that nothing of
one network serves another. Here a layer's weights depend on nothing but its own cut and its own
bits. The least-squares weights for the inputs that are left, and their rounding with
compensation (see `reconstruct`), need only the second moment of the original inputs, and every
result is kept: a search soon finds most layers of a candidate ready. What the layers before have
changed is left to BatchNorm statistics (`batchnorm.PairedStatistics`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from automl_compress.compress.calibration import Sample
from automl_compress.compress.quantize import choose_scales, levels, round_compensated
from automl_compress.compress.reconstruct import least_squares, ridge_of, solve, solve_free

BITS: Final = tuple(range(2, 9))
KEPT_BYTES: Final = 2**27
"""Fitted layers that are kept, in bytes; the least recently used go first."""
_CLIP_INPUTS: Final = 128
"""Inputs that judge clips: all clips are judged by the same ones, so few will do."""
_ROWS_TOGETHER: Final = 1024
"""Layers of few outputs are rounded to all bits in one pass, which costs little more than one."""


@dataclass(frozen=True)
class FittedLayer:
    """Weights of all outputs of a layer, for the inputs that are left.

    Args:
        weight: (out, in / groups, ...) weights; integers where they are rounded.
        scales: (out,) what the integers are multiplied by; None for weights in floating point.
        shift: (out,) what the bias must gain for the mean outputs to stay.
    """

    weight: Tensor
    scales: Tensor | None
    shift: Tensor

    @property
    def size(self) -> int:
        """Bytes it takes."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.weight.nbytes + scales + self.shift.nbytes

    def of_outputs(self, kept: Tensor | None) -> FittedLayer:
        """The same for some of the outputs."""
        if kept is None:
            return self
        scales = None if self.scales is None else self.scales.index_select(0, kept)
        weight, shift = self.weight.index_select(0, kept), self.shift.index_select(0, kept)
        return FittedLayer(weight, scales, shift)

    def set(self, layer: nn.Module) -> None:
        """Give a layer these weights, and a bias that makes up for the shift."""
        weight = self.weight
        if self.scales is not None:
            weight = weight * self.scales.reshape(-1, *[1] * (weight.dim() - 1))
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        bias = layer._parameters.get("bias")
        if bias is not None:
            layer._parameters["bias"] = nn.Parameter(bias + self.shift, requires_grad=False)


@dataclass(frozen=True)
class _Rows:
    """A layer's weights as (groups, out / groups, fan_in) rows, and what is known of its inputs.

    Args:
        weight: the rows of the original layer.
        mean: (groups, 1, fan_in) of its inputs.
        moment: (groups, fan_in, fan_in) of its inputs, centred or not; None for wide layers.
        inputs: (groups, n, fan_in) a sample of them, centred or not.
    """

    weight: Tensor
    mean: Tensor
    moment: Tensor | None
    inputs: Tensor

    def fit(self, columns: Tensor, free: Tensor | None) -> tuple[Tensor, _Rows]:
        """Least-squares weights for some columns; and the same inputs, only those columns.

        Args:
            columns: (n,) what is left of the inputs.
            free: (groups, out / groups, n) weights that need not be zero, or None for all.
        """
        moment = None if self.moment is None else self.moment[:, columns][:, :, columns]
        left = _Rows(
            self.weight[:, :, columns], self.mean[:, :, columns], moment, self.inputs[:, :, columns]
        )
        start = left.weight if free is None else left.weight * free
        if free is None and len(columns) == self.weight.shape[2]:
            return start, left
        if moment is None:
            outputs = self.inputs @ self.weight.transpose(1, 2)
            return least_squares(start, left.inputs, outputs, free)[0], left
        assert self.moment is not None
        wanted = self.moment[:, columns] @ self.weight.transpose(1, 2)
        missing = wanted - moment @ start.transpose(1, 2)
        strength = moment.diagonal(dim1=1, dim2=2)
        ridge = ridge_of(strength)
        if free is None:
            change = solve(moment, ridge, missing)
        else:
            change = solve_free(partial(torch.matmul, moment), strength, ridge, missing, free)
        fitted = start + change.transpose(1, 2)
        return (fitted if bool(torch.isfinite(fitted).all()) else start), left

    def round(
        self, fitted: Tensor, bits: Sequence[int], free: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each number of bits, (groups, out / groups, fan_in) integers and (out,) scales."""
        rows = fitted.flatten(0, 1)
        scales = [choose_scales(rows, b, self.inputs[:, :_CLIP_INPUTS]) for b in bits]
        if self.moment is None:
            for b, steps in zip(bits, scales, strict=True):
                integers = (rows / steps[:, None]).round().clamp(-levels(b), levels(b))
                yield integers.reshape(fitted.shape), steps
            return
        groups = len(fitted)
        steps = torch.stack([s.reshape(groups, -1) for s in scales], dim=1)
        bounds = torch.tensor([levels(b) for b in bits], dtype=steps.dtype)[:, None]
        masks = None if free is None else free.repeat(1, len(bits), 1)
        rounded = round_compensated(
            fitted.repeat(1, len(bits), 1),
            steps.flatten(1),
            bounds.expand_as(steps).flatten(1),
            self.moment,
            masks,
        )
        integers = (rounded / steps.flatten(1)[:, :, None]).round()
        for place, step in enumerate(scales):
            yield integers.chunk(len(bits), dim=1)[place], step


_Key = tuple[str, bytes, int | None]


class LayerwiseFits:
    """Fits any layer of one network to any cut.

    Args:
        model: the original network.
        samples: what its layers do, with moments.
        normalized: layers whose outputs a BatchNorm brings back to their mean.
    """

    def __init__(
        self, model: nn.Module, samples: Mapping[str, Sample], normalized: Collection[str]
    ) -> None:
        self._layers = {name: model.get_submodule(name) for name in samples}
        self._samples = samples
        self._normalized = frozenset(normalized)
        self._kept: OrderedDict[_Key, FittedLayer] = OrderedDict()
        self._size = 0

    def fit(self, name: str, inputs: Tensor | None, bits: int | None) -> FittedLayer:
        """Weights of all outputs of a layer.

        Args:
            name: a layer that was sampled.
            inputs: (n,) input channels that stay, or None for all; grouped layers keep all that
                a group reads.
            bits: 2..8, or None for weights in floating point.
        """
        places = b"" if inputs is None else inputs.numpy().tobytes()
        key = (name, places, bits)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        outputs = len(self._layers[name].get_parameter("weight"))
        together = bits is not None and outputs * len(BITS) <= _ROWS_TOGETHER
        grids = BITS if together else (bits,)
        for grid, fitted in zip(grids, self._fit(name, inputs, grids, None), strict=True):
            self._keep((name, places, grid), fitted)
        return self._kept[key]

    def fit_sparse(
        self, name: str, inputs: Tensor | None, bits: int | None, free: Tensor
    ) -> FittedLayer:
        """Weights of all outputs of a layer that lacks kernels; the result is not kept.

        Args:
            name: a layer that was sampled.
            inputs: as in `fit`.
            bits: as in `fit`.
            free: (out, fan_in) which of the weights left need not be zero.
        """
        return next(self._fit(name, inputs, (bits,), free))

    def _keep(self, key: _Key, fitted: FittedLayer) -> None:
        self._kept[key] = fitted
        self._size += fitted.size
        while self._size > KEPT_BYTES and len(self._kept) > len(BITS):
            self._size -= self._kept.popitem(last=False)[1].size

    def _fit(
        self, name: str, inputs: Tensor | None, grids: Sequence[int | None], free: Tensor | None
    ) -> Iterator[FittedLayer]:
        """Fitted weights for each number of bits; `grids` are all numbers, or None alone."""
        weight = self._layers[name].get_parameter("weight").detach()
        rows = self._rows(name)
        groups, outputs, fan_in = rows.weight.shape
        columns = torch.arange(fan_in) if inputs is None else _columns(inputs, weight)
        mask = None if free is None else free.reshape(groups, outputs, -1)
        fitted, left = rows.fit(columns, mask)
        shape = (len(weight), len(columns) // weight[0, 0].numel(), *weight.shape[2:])
        mean = rows.mean @ rows.weight.transpose(1, 2)
        if grids == (None,):
            shift = mean - left.mean @ fitted.transpose(1, 2)
            yield FittedLayer(fitted.reshape(shape), None, shift.flatten())
            return
        bits = [b for b in grids if b is not None]
        for integers, scales in left.round(fitted, bits, mask):
            rounded = integers * scales.reshape(groups, outputs, 1)
            shift = mean - left.mean @ rounded.transpose(1, 2)
            yield FittedLayer(integers.to(torch.int8).reshape(shape), scales, shift.flatten())

    def _rows(self, name: str) -> _Rows:
        layer, sample = self._layers[name], self._samples[name]
        weight = layer.get_parameter("weight").detach()
        known = sample.moments
        mean = sample.inputs.mean(dim=1, keepdim=True) if known is None else known.mean
        centred = name in self._normalized or layer._parameters.get("bias") is not None
        moment = None if known is None else known.covariance
        if moment is not None and not centred:
            moment = moment + mean.transpose(1, 2) @ mean
        inputs = sample.inputs - mean if centred else sample.inputs
        groups = len(sample.inputs)
        return _Rows(weight.reshape(groups, len(weight) // groups, -1), mean, moment, inputs)


def _columns(inputs: Tensor, weight: Tensor) -> Tensor:
    """(n * kernel,) places of input channels among a layer's flattened inputs."""
    kernel = weight[0, 0].numel()
    return (inputs[:, None] * kernel + torch.arange(kernel)).flatten()
