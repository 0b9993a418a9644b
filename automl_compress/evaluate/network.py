"""The estimator that builds the compressed network and counts its right answers."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from automl_compress.compress import Compressor, KernelCriterion, Repair
from automl_compress.errors import EstimateError, WorkloadError
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import Evaluation
from automl_compress.space import Policy
from automl_compress.workload import Workload

VERSION: Final = 3
"""Raised whenever the same policy would get another answer than before."""
_BATCH: Final = 64

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class EstimateSettings:
    """How a network is measured.

    Args:
        images: labelled images the accuracy is counted on, drawn once from the split; None
            takes the whole split.
        calibration_images: unlabelled training images for clips and repair.
        repair: what is done after cutting and rounding, see `compress.repair`.
        criterion: importance criterion of channels.
        kernel_criterion: importance criterion of single kernels.
        split: `validation` for searching, `test` for the final word.
        seed: decides which images are drawn, and what criteria that draw say.
    """

    images: int | None = 512
    calibration_images: int = 256
    repair: Repair = "auto"
    criterion: str = "l1"
    kernel_criterion: KernelCriterion = "magnitude"
    split: Split = "validation"
    seed: int = 0


class NetworkEstimator(Estimator):
    """Accuracy after repair, without training, on a fixed set of images; costs exactly.

    With few images this is the cheap proxy of a search; with a whole split the full measurement.

    Args:
        workload: the network and its data.
        settings: how to measure.
        compressor: one made for the same workload and settings but for the images, to share.

    Raises:
        WorkloadError: a split holds fewer images than asked for.
        TraceError: the network cannot be followed.
    """

    def __init__(
        self,
        workload: Workload,
        settings: EstimateSettings,
        compressor: Compressor | None = None,
    ) -> None:
        self.settings = settings
        split = getattr(workload.splits, settings.split)
        count = len(split) if settings.images is None else settings.images
        _check_size(settings.split, count, len(split))
        _check_size("train", settings.calibration_images, len(workload.splits.train))
        chosen = split if count == len(split) else split.draw(count, settings.seed)
        calibration = workload.splits.train.draw(settings.calibration_images, settings.seed)
        self._images: Tensor = _channels_last(chosen.tensor(workload.normalization))
        self._labels: Tensor = torch.from_numpy(chosen.labels.copy())
        parts = (
            VERSION,
            workload.identity,
            chosen.content_hash,
            calibration.content_hash,
            asdict(settings),
        )
        self._identity = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self.compressor = compressor or Compressor(
            workload.model,
            workload.example_input(),
            _channels_last(calibration.tensor(workload.normalization)),
            settings.criterion,
            settings.repair,
            settings.kernel_criterion,
            settings.seed,
        )

    @property
    def identity(self) -> str:
        """Hash of network, images, settings and version."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Build, repair and measure a policy's network."""
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                costs = self.compressor.cost(policy)
                network = self.compressor.build(policy)
                accuracy = self.accuracy(network)
        except Exception as reason:
            message = f"{type(reason).__name__}: {reason}"
            return Evaluation.failed(policy, self._identity, message, time.perf_counter() - start)
        return Evaluation(
            policy=policy,
            estimator=self._identity,
            metrics={"accuracy": accuracy, **costs},
            images=len(self._labels),
            seconds=time.perf_counter() - start,
        )

    def accuracy(self, network: Callable[[Tensor], Tensor]) -> float:
        """Share of right answers of a network, in [0, 1].

        Args:
            network: maps (n, channels, height, width) to (n, classes).

        Raises:
            EstimateError: an output is not finite.
        """
        right = 0
        batches = zip(
            torch.split(self._images, _BATCH), torch.split(self._labels, _BATCH), strict=True
        )
        for images, labels in batches:
            outputs = network(images)
            if not math.isfinite(float(outputs.sum())):
                raise EstimateError("the compressed network's outputs are not finite")
            right += int((outputs.argmax(dim=1) == labels).sum())
        return right / len(self._labels)


def _channels_last(images: Tensor) -> Tensor:
    """Images as convolutions on processors like them; a network's activations follow suit."""
    return images.contiguous(memory_format=torch.channels_last)


def _check_size(split: str, asked: int, held: int) -> None:
    if not 0 < asked <= held:
        raise WorkloadError(
            f"the {split} split must hold the images asked for, but {asked} are asked of {held}; "
            "lower estimate.images or estimate.calibration_images"
        )
