"""Kernel-wise sparsity: single 2-D kernels of convolutions, weight[o, i], set to zero.

The second half of stage one of Zhan et al. 2021 (Deep model compression via two-stage deep
reinforcement learning, arXiv 1912.02254), after channels are cut. A `kernel_sparsity` gene says
which share of a layer's kernels goes; a criterion says which:

- `magnitude`: those of least L2 norm.
- `variational`: those of least signal-to-noise ratio under learnt noise (information dropout).
  Every kernel is multiplied by a noise of mean 1 and variance alpha, as in Molchanov, Ashukha
  and Vetrov 2017 (Variational dropout sparsifies deep neural networks). log alpha is learnt: the
  less the network's decisions need a kernel, the more noise it takes. The ratio is 1 / alpha.

The paper trains weights and noise together on labelled data and removes what passes a threshold
of alpha; it published no code. Deviations: the weights stay as they are, so that one set of noises
serves every policy; the target is the network's own output on calibration images
(`Task.distance`, of classes the Kullback-Leibler divergence; no label); the bound weighs data and
prior as if `SEEN` images had been seen; noise is learnt for a few steps only, because nothing but
the order of the ratios within a layer counts; the share comes from the gene.

Measured on ResNet-20 (CIFAR-10, 512 images, 89.8 % whole, BatchNorm re-estimated, no layer
reconstructed), the same share everywhere: at 25 % the learnt noise keeps 84.4 % against 82.4 % by
magnitude, at 50 % 58.4 against 71.7 %. It says what the network could lose beside everything else
it has, which stops being true when much is lost. By magnitude and reconstructed (`reconstruct`),
25, 50 and 75 % keep 88.3, 83.6 and 62.3 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.cost_model import kept_kernels
from automl_compress.compress.strided import reading_first
from automl_compress.errors import InputError
from automl_compress.space import Value
from automl_compress.workload import CLASSIFICATION, Task

KernelCriterion = Literal["magnitude", "variational"]
KERNEL_CRITERIA: Final[tuple[KernelCriterion, ...]] = get_args(KernelCriterion)
FIRST_LOG_ALPHA: Final = -6.0
SEEN: Final = 3000
STEPS: Final = 60
BATCH: Final = 32
LEARNING_RATE: Final = 0.1


def kernel_norms(weight: Tensor) -> Tensor:
    """(out, in) L2 norm of every kernel of (out, in, ...) weights."""
    norms: Tensor = torch.linalg.vector_norm(weight.detach().flatten(2), dim=2)
    return norms


def removed_kernels(scores: Tensor, sparsity: Value) -> Tensor:
    """Which kernels go: those of the lowest scores.

    Args:
        scores: (out, in) of a layer after channels are cut; of equal ones the first goes first.
        sparsity: share to remove, in [0, 1).

    Returns:
        (out, in) bool, True at `scores.numel() - kept_kernels(scores.numel(), sparsity)` places.
    """
    count = scores.numel() - kept_kernels(scores.numel(), sparsity)
    removed = torch.zeros(scores.numel(), dtype=torch.bool)
    removed[scores.flatten().argsort(stable=True)[:count]] = True
    return removed.reshape(scores.shape)


def without_kernels(weight: Tensor, removed: Tensor) -> Tensor:
    """(out, in, ...) weights with the (out, in) removed kernels set to zero."""
    return weight.masked_fill(removed.reshape(*removed.shape, *[1] * (weight.dim() - 2)), 0.0)


def signal_to_noise(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor | None,
    seed: int,
    task: Task = CLASSIFICATION,
) -> dict[str, Tensor]:
    """Learn how much noise every kernel takes.

    Args:
        model: the network, in evaluation mode.
        layers: names of convolutions.
        images: (n, ...) calibration images.
        seed: decides noise and batches.
        task: says how far outputs are from others.

    Returns:
        By layer name, (out, in / groups) logarithm of the signal-to-noise ratio, -log alpha.

    Raises:
        InputError: there are no images, or the network's output is none of the task.
    """
    if images is None or not len(images):
        raise InputError(
            "the kernel criterion 'variational' needs calibration examples, but there are none; "
            "give some or choose magnitude"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), reading_first(model):
        weights = {name: model.get_submodule(name).get_parameter("weight") for name in layers}
        logs = {
            name: torch.full(w.shape[:2], FIRST_LOG_ALPHA, requires_grad=True)
            for name, w in weights.items()
        }
        with torch.no_grad():
            targets = model(images)
            task.distance(targets, targets)  # refuses outputs that are none of the task
        optimizer = torch.optim.Adam(logs.values(), LEARNING_RATE)
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            noisy = {
                f"{name}.weight": _noisy(weights[name], log_alpha, generator)
                for name, log_alpha in logs.items()
            }
            outputs = torch.func.functional_call(model, noisy, (images[chosen],))
            loss = task.distance(outputs, targets[chosen])
            loss = loss + sum(_divergence(log_alpha).sum() for log_alpha in logs.values()) / SEEN
            for log_alpha, slope in zip(
                logs.values(), torch.autograd.grad(loss, list(logs.values())), strict=True
            ):
                log_alpha.grad = slope
            optimizer.step()
    return {name: -log_alpha.detach() for name, log_alpha in logs.items()}


def _noisy(weight: Tensor, log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    noise = 1 + (0.5 * log_alpha).exp() * torch.randn(log_alpha.shape, generator=generator)
    return weight * noise.reshape(*noise.shape, *[1] * (weight.dim() - 2))


def _divergence(log_alpha: Tensor) -> Tensor:
    """(out, in) divergence of noise from the log-uniform prior (Molchanov 2017, eq. 14)."""
    negative = 0.63576 * torch.sigmoid(1.87320 + 1.48695 * log_alpha) - 0.5 * F.softplus(-log_alpha)
    return 0.63576 - negative
