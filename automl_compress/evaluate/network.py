"""The estimator that builds the compressed network and counts its right answers.

A search asks it hundreds of times, so a network is measured in its fastest form: BatchNorm folded
into the layers, channels last and, by default, in bfloat16 (`evaluate.fast_form`). One that has
plainly collapsed is left after the first images.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor, KernelCriterion, Repair
from automl_compress.errors import EstimateError, WorkloadError
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import Evaluation, standard_error
from automl_compress.evaluate.fast_form import FastForm, Precision
from automl_compress.space import Policy
from automl_compress.workload import Workload

VERSION: Final = 4
"""Raised whenever the same policy would get another answer than before."""
COLLAPSE_IMAGES: Final = 128
"""Images after which a network may be left as collapsed."""
_ERRORS: Final = 3.0
"""Standard errors by which its accuracy must be below the floor."""

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class EstimateSettings:
    """How a network is measured.

    Args:
        images: labelled images the accuracy is counted on, drawn once from the split; None
            takes the whole split.
        calibration_images: unlabelled training images for clips and repair.
        repair: what is done after cutting and rounding, see `compress.repair`.
        precision: of the arithmetic while answers are counted. `bfloat16` is about twice as fast
            where processors have instructions for it.
        batch: images measured at a time.
        floor: share of the uncompressed network's accuracy; a network that is plainly below it
            after `COLLAPSE_IMAGES` images is measured on these only. 0 measures all on all.
        criterion: importance criterion of channels.
        kernel_criterion: importance criterion of single kernels.
        split: `validation` for searching, `test` for the final word.
        seed: decides which images are drawn, and what criteria that draw say.
    """

    images: int | None = 512
    calibration_images: int = 256
    repair: Repair = "layerwise"
    precision: Precision = "bfloat16"
    batch: int = 64
    floor: float = 0.3
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
        self._images = _channels_last(chosen.tensor(workload.normalization))
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
            low_precision=settings.precision == "bfloat16",
        )
        self._form = FastForm(
            self.compressor.model,
            workload.example_input(),
            settings.precision,
            self.compressor.structure,
            keeps=settings.repair != "auto",  # it chooses by what the whole network gives
        )
        with torch.inference_mode():
            self._floor = settings.floor and settings.floor * self.accuracy(self.compressor.model)

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
                accuracy, images = self._measure(network, policy)
        except Exception as reason:
            message = f"{type(reason).__name__}: {reason}"
            return Evaluation.failed(policy, self._identity, message, time.perf_counter() - start)
        return Evaluation(
            policy=policy,
            estimator=self._identity,
            metrics={"accuracy": accuracy, **costs},
            images=images,
            seconds=time.perf_counter() - start,
        )

    def accuracy(self, network: Callable[[Tensor], Tensor]) -> float:
        """Share of right answers of a network on all images, in [0, 1].

        Args:
            network: maps (n, channels, height, width) to (n, classes); called as it is.

        Raises:
            EstimateError: an output is not finite.
        """
        outputs = (network(images) for images in self._batches())
        return sum(self._right_answers(outputs)) / len(self._labels)

    def fast_accuracy(self, network: nn.Module, policy: Policy) -> float:
        """What `estimate` says of a built network, early stops and kept values left out.

        Args:
            network: what the compressor built for the policy.
            policy: its policy.

        Raises:
            EstimateError: an output is not finite.
        """
        self._form.forget()  # all steps are run
        outputs = self._form.outputs(network, policy, self._batches())
        return sum(self._right_answers(outputs)) / len(self._labels)

    def images_and_labels(self) -> tuple[Tensor, Tensor]:
        """(n, channels, height, width) images and (n,) labels that answers are counted on."""
        return self._images, self._labels

    def _batches(self) -> tuple[Tensor, ...]:
        # Split when asked for: each part would be pickled with all of the images.
        return torch.split(self._images, self.settings.batch)

    def _measure(self, network: nn.Module, policy: Policy) -> tuple[float, int]:
        """Accuracy of a built network, and how many images that took."""
        right = images = 0
        for right, images in self._counts(self._form.outputs(network, policy, self._batches())):
            if self._has_collapsed(right, images):
                break
        return right / images, images

    def _counts(self, outputs: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
        """After each batch, how many answers were right, of how many."""
        right = images = 0
        for found in self._right_answers(outputs):
            right += found
            images = min(images + self.settings.batch, len(self._labels))
            yield right, images

    def _has_collapsed(self, right: int, images: int) -> bool:
        if images < COLLAPSE_IMAGES or images - self.settings.batch >= COLLAPSE_IMAGES:
            return False
        accuracy = right / images
        return accuracy + _ERRORS * standard_error(accuracy, images) < self._floor

    def _right_answers(self, outputs: Iterable[Tensor]) -> Iterator[int]:
        """How many answers are right in each batch."""
        labels = torch.split(self._labels, self.settings.batch)
        for logits, expected in zip(outputs, labels, strict=True):
            if not math.isfinite(float(logits.sum())):
                raise EstimateError("the compressed network's outputs are not finite")
            yield int((logits.argmax(dim=1) == expected).sum())


def _channels_last(images: Tensor) -> Tensor:
    """Images as convolutions on processors like them; a network's activations follow suit."""
    return images.contiguous(memory_format=torch.channels_last)


def _check_size(split: str, asked: int, held: int) -> None:
    if not 0 < asked <= held:
        raise WorkloadError(
            f"the {split} split must hold the images asked for, but {asked} are asked of {held}; "
            "lower estimate.images or estimate.calibration_images"
        )
