"""Repair without training: what brings a compressed network back towards the original.

`auto` builds the candidates below and keeps the one whose outputs are nearest to the original
network's on calibration images that no repair has seen; no label is used.

- the network as it is;
- all layers reconstructed (`reconstruct`), with new BatchNorm statistics (`PairedStatistics`);
- in networks without BatchNorm: variances matched.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.batchnorm import PairedStatistics, measurable_norms, recalibrate
from automl_compress.compress.calibration import Sample
from automl_compress.compress.modules import share_copy
from automl_compress.compress.places import Places
from automl_compress.compress.reconstruct import (
    Fit,
    FitTask,
    fit_layers,
    match_mean,
    match_variance,
    reconstruct,
)

Repair = Literal["auto", "layerwise", "reconstruct", "recalibrate", "variance", "bias", "none"]
REPAIRS: Final[tuple[Repair, ...]] = (
    "auto",
    "layerwise",
    "reconstruct",
    "recalibrate",
    "variance",
    "bias",
    "none",
)
HELD_OUT: Final = 6
"""One calibration image in this many judges; the others make the repair."""
_FIT_VALUES: Final = 2**24
"""Largest number of input values in the one batch that layers are fitted on."""


def fitting_images(images: Tensor, repair: Repair) -> Tensor:
    """The calibration images that layers are sampled and fitted on.

    Args:
        images: (n, ...) all calibration images.
        repair: `auto` holds some of them out.
    """
    usable = len(images) - (len(images) // HELD_OUT if repair == "auto" else 0)
    return images[: max(1, min(usable, _FIT_VALUES // max(1, images[0].numel())))]


class Repairer:
    """Repairs any compressed form of one network.

    Args:
        model: the original network.
        images: (n, ...) calibration images.
        samples: what its layers do on `fitting_images`.
        repair: what is done.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, samples: Mapping[str, Sample], repair: Repair
    ) -> None:
        self._samples = samples
        self._images = images
        self._fitting = fitting_images(images, repair)
        self._repair = repair
        self._judges = images[len(images) - len(images) // HELD_OUT :]
        self._statistics = PairedStatistics(model, self._fitting)
        self._targets: Tensor | None = None
        if repair == "auto" and len(self._judges):
            with torch.no_grad():
                output = model(self._judges)
            self._targets = output if isinstance(output, Tensor) else None

    def __call__(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        places: Mapping[str, Places],
        removed: Mapping[str, Tensor],
    ) -> nn.Module:
        """The repaired network.

        Args:
            network: a compressed form; may be changed in place.
            weights: by layer name, its weights cut but not rounded.
            places: what is left of the modules that are cut.
            removed: by layer name, (out, in / groups) kernels that stay zero.
        """
        if self._repair == "none":
            return network
        if self._repair == "recalibrate":
            recalibrate(network, self._images)
            return network
        tasks = {
            name: FitTask(weights[name], sample, places.get(name, Places()).out, removed.get(name))
            for name, sample in self._samples.items()
        }
        if self._repair != "auto":
            self._fit(network, tasks, places, _FITS[self._repair])
            return network
        return self._nearest(network, tasks, places)

    def _fit(
        self,
        network: nn.Module,
        tasks: Mapping[str, FitTask],
        places: Mapping[str, Places],
        fit: Fit,
    ) -> None:
        renews = fit is reconstruct
        statistics = self._statistics.renewing(network, places) if renews else nullcontext()
        fit_layers(network, tasks, self._fitting, fit, statistics)

    def _nearest(
        self, network: nn.Module, tasks: Mapping[str, FitTask], places: Mapping[str, Places]
    ) -> nn.Module:
        """The candidate nearest to the original; reconstructed where nothing can judge."""
        fitted = share_copy(network)
        self._fit(fitted, tasks, places, reconstruct)
        if self._targets is None:
            return fitted
        candidates = [network, fitted]
        if not measurable_norms(network):
            candidates.append(share_copy(network))
            self._fit(candidates[-1], tasks, places, match_variance)
        return min(candidates, key=self._distance)

    def _distance(self, network: nn.Module) -> float:
        """How far a network's outputs are from the original's.

        The mean Kullback-Leibler divergence of class probabilities over the images; the squared
        error of outputs that are no classes; infinite where one is not finite.
        """
        assert self._targets is not None
        outputs = network(self._judges)
        if outputs.dim() != 2:
            distance = F.mse_loss(outputs, self._targets)
        else:
            distance = F.kl_div(
                outputs.log_softmax(1),
                self._targets.log_softmax(1),
                log_target=True,
                reduction="batchmean",
            )
        return float(distance.nan_to_num(torch.inf))


_FITS: Final[Mapping[Repair, Fit]] = {
    "reconstruct": reconstruct,
    "variance": match_variance,
    "bias": match_mean,
}
