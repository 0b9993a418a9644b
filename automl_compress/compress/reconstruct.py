"""Layers fitted, one after the other, to what they gave before the network was compressed.

A layer that lost inputs, and whose inputs changed because earlier layers were cut and rounded,
can still come near its old outputs: `reconstruct` solves for the weights that bring it there by
least squares (He et al. 2017, Channel Pruning; He et al. 2018, AMC), on any kernel size. It
differs from both in reading the inputs that the compressed network really gives, BatchNorm
normalised by what it sees, so that later layers make up for what earlier ones lost. Rounding
then spreads each weight's error over the weights not yet rounded (Frantar et al. 2023, GPTQ).

Smaller corrections need the same pass: `match_variance` gives each output the mean and variance
it had, for networks whose BatchNorm was folded away; `match_mean` corrects biases alone (Nagel
et al. 2019, Data-Free Quantization).

All read one batch of calibration images, layer by layer in the order the network calls them; a
layer that is called twice is fitted to its first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.calibration import (
    INPUTS,
    Sample,
    layer_input,
    output_shape,
    read_inputs,
)
from automl_compress.compress.kinds import CONVOLUTIONS
from automl_compress.compress.quantize import (
    choose_scales,
    levels,
    quantize_weight,
    round_compensated,
    scale_outputs,
)

RIDGE: Final = 0.03
"""Pull towards the weights as they were, as a share of the inputs' mean second moment."""
STEPS: Final = 20
"""Conjugate-gradient steps of layers that lack kernels. With half the kernels of ResNet-20 gone
(CIFAR-10, 512 images), 0, 5, 20 and 60 steps give 73.2, 84.2, 83.6 and 83.8 %."""
COMPENSATED_FAN_IN: Final = 2304
"""Layers that read more values round every weight alone: compensation takes cubic time."""


@dataclass(frozen=True)
class FitTask:
    """What one layer of a compressed network should do.

    Args:
        weight: (out, in / groups, ...) its weights in floating point, cut, not rounded.
        sample: what the layer did in the original network.
        kept: (out,) its outputs' places in the original, or None for all.
        removed: (out, in / groups) kernels whose weights are zero and stay zero, or None.
    """

    weight: Tensor
    sample: Sample
    kept: Tensor | None
    removed: Tensor | None = None

    def outputs(self) -> Tensor:
        """(n, out) what the original gave, for the outputs that are left."""
        outputs = self.sample.outputs
        return outputs if self.kept is None else outputs[:, self.kept]

    def free(self) -> Tensor | None:
        """(out, fan_in) weights that need not be zero; None when none need be."""
        if self.removed is None:
            return None
        return (~self.removed).repeat_interleave(self.weight[0, 0].numel(), dim=1)


Fit = Callable[[nn.Module, FitTask, Tensor], None]
"""Changes a layer in place, given what it should do and (groups, n, fan_in) what it reads."""


def fit_layers(
    network: nn.Module,
    tasks: Mapping[str, FitTask],
    images: Tensor,
    fit: Fit,
    statistics: AbstractContextManager[None],
) -> None:
    """Change layers one after the other, each on what the changed ones before it give.

    Args:
        network: changed in place; changed tensors become its own.
        tasks: by layer name.
        images: (n, ...), those the samples were made of.
        fit: what is done to every layer.
        statistics: inside it the network runs; renews statistics, or does nothing.
    """
    handles = [
        network.get_submodule(name).register_forward_pre_hook(_once(task, fit), with_kwargs=True)
        for name, task in tasks.items()
    ]
    try:
        with statistics:
            network(images)
    finally:
        for handle in handles:
            handle.remove()


def _once(task: FitTask, fit: Fit) -> Callable[..., None]:
    done = False

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal done
        x = layer_input(inputs, named)
        if done or not _same_positions(module, x, task.sample):
            return
        done = True
        quantizer = getattr(module, "input_quantizer", None)
        read = read_inputs(module, x, task.sample.spots)
        fit(module, task, read if quantizer is None else quantizer(read))

    return hook


def _same_positions(layer: nn.Module, x: Tensor, sample: Sample) -> bool:
    """Whether a layer works on the positions it had: detectors' later layers may not."""
    shape = sample.spots.shape
    if isinstance(layer, CONVOLUTIONS):
        return len(x) == shape[0] and _fits(layer, x, shape)
    return output_shape(layer, x) == shape


def _fits(layer: Any, x: Tensor, shape: tuple[int, ...]) -> bool:
    pads = layer._reversed_padding_repeated_twice[::-1]  # the first axis first, end before start
    sizes = [n + sum(pads[2 * k : 2 * k + 2]) for k, n in enumerate(x.shape[2:])]
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    places = [(n - s) // t + 1 for n, s, t in zip(sizes, spans, layer.stride, strict=True)]
    return tuple(places) == tuple(shape[1:])


def reconstruct(layer: nn.Module, task: FitTask, inputs: Tensor) -> None:
    """Least-squares weights, rounded to the layer's bits with compensation, and a fitting bias.

    Args:
        layer: changed in place.
        task: what it should do.
        inputs: (groups, n, fan_in) what it reads.
    """
    groups = len(inputs)
    outputs = task.outputs().reshape(len(task.outputs()), groups, -1).transpose(0, 1)
    weight = task.weight.reshape(groups, outputs.shape[2], -1)
    free = task.free()
    free = None if free is None else free.reshape(weight.shape)
    mean_in, mean_out = _means(layer, inputs, outputs)
    centred = inputs - mean_in
    fitted, moment = least_squares(weight, centred, outputs - mean_out, free)
    rows = fitted.flatten(0, 1)
    bits: int | None = getattr(layer, "weight_bits", None)
    if bits is not None:
        scales = choose_scales(rows, bits, centred[:, :INPUTS])
        if moment is not None and moment.shape[-1] <= COMPENSATED_FAN_IN:
            steps = scales.reshape(groups, -1)
            bounds = torch.full_like(steps, levels(bits))
            rows = round_compensated(fitted, steps, bounds, moment, free).flatten(0, 1)
        else:
            rows = quantize_weight(rows, scales, bits)
        layer._buffers["weight_scale"] = scales
    _set(layer, "weight", rows.reshape(task.weight.shape))
    if layer._parameters.get("bias") is not None:
        shift = mean_out - mean_in @ rows.reshape(weight.shape).transpose(1, 2)
        _set(layer, "bias", shift.flatten())


def _means(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, 1, fan_in) and (groups, 1, out) means that a bias can make up for; else zeros."""
    if layer._parameters.get("bias") is None:
        return torch.zeros_like(inputs[:, :1]), torch.zeros_like(outputs[:, :1])
    return inputs.mean(dim=1, keepdim=True), outputs.mean(dim=1, keepdim=True)


def least_squares(
    weight: Tensor, inputs: Tensor, outputs: Tensor, free: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weights that bring a linear map nearest to outputs, without leaving the old ones for noise.

    Minimises |inputs weight' - outputs|^2 / n + ridge |weight' - weight|^2, in whichever form is
    smaller: over the inputs, or, with fewer samples than inputs, over the samples.

    Args:
        weight: (groups, out, fan_in).
        inputs: (groups, n, fan_in).
        outputs: (groups, n, out).
        free: (groups, out, fan_in) weights that may change, or None for all.

    Returns:
        (groups, out, fan_in) weights, `weight` itself where the system cannot be solved; and the
        (groups, fan_in, fan_in) second moment of the inputs, None in the second form.
    """
    count, fan_in = inputs.shape[1:]
    missing = outputs - inputs @ weight.transpose(1, 2)
    ridge = ridge_of(inputs.pow(2).mean(dim=1))
    moment = inputs.transpose(1, 2) @ inputs / count if fan_in <= count else None
    if free is not None:
        apply = partial(_apply, inputs) if moment is None else partial(torch.matmul, moment)
        left = inputs.transpose(1, 2) @ missing / count
        change = solve_free(apply, inputs.pow(2).mean(dim=1), ridge, left, free)
    elif moment is not None:
        change = solve(moment, ridge, inputs.transpose(1, 2) @ missing / count)
    else:
        products = inputs @ inputs.transpose(1, 2) / count
        change = inputs.transpose(1, 2) @ solve(products, ridge, missing / count)
    fitted = weight + change.transpose(1, 2)
    return (fitted if bool(torch.isfinite(fitted).all()) else weight), moment


def ridge_of(strength: Tensor) -> Tensor:
    """(groups, 1, 1) ridge for inputs of (groups, fan_in) mean squares."""
    return RIDGE * strength.mean(dim=1).clamp(min=1e-12)[:, None, None]


def solve(matrix: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """Solution of (matrix + ridge I) x = right; not finite where rounding made that singular.

    Args:
        matrix: (groups, n, n), symmetric.
        ridge: (groups, 1, 1).
        right: (groups, n, m).
    """
    regular = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    factor, wrong = torch.linalg.cholesky_ex(regular)
    solution = torch.cholesky_solve(right, factor)
    return solution if not bool(wrong.any()) else torch.full_like(solution, torch.nan)


def _apply(inputs: Tensor, x: Tensor) -> Tensor:
    """The product of the second moment of (groups, n, fan_in) inputs and (groups, fan_in, m)."""
    return inputs.transpose(1, 2) @ (inputs @ x) / inputs.shape[1]


def solve_free(
    apply: Callable[[Tensor], Tensor],
    strength: Tensor,
    ridge: Tensor,
    right: Tensor,
    free: Tensor,
) -> Tensor:
    """Least-squares change of the free weights alone.

    Every output has free weights of its own, so one factorisation does not serve all. Conjugate
    gradients, preconditioned by the diagonal, solve all outputs side by side; they are stopped
    after `STEPS`, when the ridge has made the rest small.

    Args:
        apply: multiplies by the inputs' second moment.
        strength: (groups, fan_in) its diagonal.
        ridge: (groups, 1, 1).
        right: (groups, fan_in, out) the inputs' products with what the outputs lack.
        free: (groups, out, fan_in).

    Returns:
        (groups, fan_in, out).
    """
    open_ = free.transpose(1, 2).to(right.dtype)
    scale = 1 / (strength[:, :, None] + ridge)
    left = open_ * right
    solution = torch.zeros_like(left)
    direction = scale * left
    power = (left * direction).sum(dim=1, keepdim=True)
    for _ in range(STEPS):
        applied = open_ * (apply(direction) + ridge * direction)
        step = power / (direction * applied).sum(dim=1, keepdim=True).clamp(min=1e-30)
        solution += step * direction
        left -= step * applied
        before, power = power, (left * scale * left).sum(dim=1, keepdim=True)
        direction = scale * left + power / before.clamp(min=1e-30) * direction
    return solution


def match_variance(layer: nn.Module, task: FitTask, inputs: Tensor) -> None:
    """Scale each output's weights so that it varies as it did, and correct its bias.

    Args:
        layer: changed in place; rounded weights stay on their grid, whose step is scaled.
        task: what it should do.
        inputs: (groups, n, fan_in) what it reads.
    """
    before = task.outputs().std(dim=0, correction=0)
    now = _linear(layer, inputs).std(dim=0, correction=0)
    gain = torch.where((now > 1e-8) & (before > 1e-8), before / now, 1.0)
    scale_outputs(layer, gain)
    match_mean(layer, task, inputs)


def match_mean(layer: nn.Module, task: FitTask, inputs: Tensor) -> None:
    """Correct a layer's bias, where it has one, so that its mean outputs are what they were.

    Args:
        layer: changed in place.
        task: what it should do.
        inputs: (groups, n, fan_in) what it reads.
    """
    if layer._parameters.get("bias") is not None:
        _set(layer, "bias", (task.outputs() - _linear(layer, inputs)).mean(dim=0))


def _linear(layer: nn.Module, inputs: Tensor) -> Tensor:
    """(n, out) what a layer gives, its bias left out."""
    groups = len(inputs)
    weight = layer.get_parameter("weight").flatten(1).reshape(groups, -1, inputs.shape[2])
    return (inputs @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    layer._parameters[name] = nn.Parameter(value.contiguous(), requires_grad=False)
