"""The estimator that builds the compressed network and says how good its answers are.

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
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor, KernelCriterion, Repair, is_own_criterion
from automl_compress.compress.memory_order import order_for
from automl_compress.errors import InputError, WorkloadError
from automl_compress.evaluate.draw import Draw, draw_images
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import DIVERGENCE, Evaluation, standard_error
from automl_compress.evaluate.fast_form import FastForm, Precision, fast_precision
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Sample, Score, Workload
from automl_compress.workload.arithmetic import require_bfloat16

VERSION: Final = 16
"""Raised whenever the same policy would get another answer than before."""
BUILDS: Final = 10
"""Raised whenever the same policy would be built into another network than before."""
_MADE_WITH: Final = "made_with"
"""In pickles: versions, see `_versions`."""
COLLAPSE_IMAGES: Final = 128
"""Images after which a network may be left as collapsed."""
_ERRORS: Final = 3.0
"""Standard errors by which its accuracy must be below the floor."""
_TIES: Final = 32
"""One image in so many, whose answers are nearest to others, is asked again in float32.

Where bfloat16 turns answers of ResNet-56 (CIFAR-10, 90 random policies, 512 images that were drawn
alike), half of them are among the 4 smallest margins, nine in ten among the 10 smallest, all among
the 22 smallest. Drawn by margins, about twice as many images are close calls.
"""

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class EstimateSettings:
    """How a network is measured.

    Args:
        images: labelled images networks are measured on, drawn once from the split; None
            takes the whole split.
        calibration_images: unlabelled training images for clips and repair.
        repair: what is done after cutting and rounding, see `compress.repair`.
        precision: of the arithmetic while networks are measured; by default what the processor
            is fastest with. `bfloat16` is about twice as fast where there are instructions for it,
            and several times as slow where there are none; answers that are nearly ties are
            settled in float32.
        batch: images measured at a time.
        floor: share of the uncompressed network's accuracy; a network that is plainly below it
            after `COLLAPSE_IMAGES` images is measured on these only. 0 measures all on all.
            Only where answers can be counted: of detectors nothing is known before the end.
        criterion: importance criterion of channels, by name or `package.module:callable`.
        kernel_criterion: importance criterion of single kernels.
        split: `validation` for searching, `test` for the final word.
        draw: how the images are drawn, see `evaluate.draw`; where outputs have no margins, as those
            of detectors, `uniform` either way.
        seed: decides which images are drawn, and what criteria that draw say.
    """

    images: int | None = 512
    calibration_images: int = 256
    repair: Repair = "layerwise"
    precision: Precision = field(default_factory=fast_precision)
    batch: int = 64
    floor: float = 0.3
    criterion: str = "l1"
    kernel_criterion: KernelCriterion = "magnitude"
    split: Split = "validation"
    draw: Draw = "margin"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Reference:
    """What networks are measured by.

    Attributes:
        images: (n, ...).
        labels: (n, ...).
        sample: how the images were drawn; None where all count alike.
        original: (n, ...) the uncompressed network's outputs, to compare others with; None where
            nothing is compared.
        floor: of qualities; what is plainly below it has collapsed.
        settles: whether answers that are nearly ties are settled in float32.
    """

    images: Tensor
    labels: Tensor
    sample: Sample | None
    original: Tensor | None
    floor: float
    settles: bool


class NetworkEstimator(Estimator):
    """Quality after repair, without training, on a fixed set of images; costs exactly.

    With few images this is the cheap proxy of a search; with a whole split the full measurement.
    Images are drawn, and the uncompressed network is run on them, when they are first needed: who
    only builds networks does not wait for it. A pickle holds them.

    Args:
        workload: the network and its data.
        settings: how to measure.
        compressor: one made for the same workload and settings but for the images, to share.

    Raises:
        WorkloadError: a split holds fewer images than asked for.
        TraceError: the network cannot be followed.
        InputError: the processor does not compute in the precision asked for.
    """

    def __init__(
        self,
        workload: Workload,
        settings: EstimateSettings,
        compressor: Compressor | None = None,
    ) -> None:
        self.settings = settings
        split: ImageSet = getattr(workload.splits, settings.split)
        if settings.images is not None:
            _check_size(settings.split, settings.images, len(split))
        _check_size("train", settings.calibration_images, len(workload.splits.train))
        calibration = workload.splits.train.draw(settings.calibration_images, settings.seed)
        self._task = workload.task
        self._split, self._normalization = split, workload.normalization
        self._order = order_for(workload.model, workload.example_input())
        self.compressor = compressor or Compressor(
            workload.model,
            workload.example_input(),
            self._in_order(calibration.tensor(workload.normalization)),
            settings.criterion,
            settings.repair,
            settings.kernel_criterion,
            settings.seed,
            low_precision=settings.precision == "bfloat16",
            task=workload.task,
        )
        self._networks = _hash(
            *(BUILDS, workload.identity, calibration.content_hash, _building(settings)),
            *_own_order(settings, self.compressor),
        )
        # Not of the images drawn: margins that nearly tie may fall otherwise on another machine.
        self._identity = _hash(VERSION, self._networks, split.content_hash, asdict(settings))
        self._form = FastForm(
            self.compressor.model,
            workload.example_input(),
            settings.precision,
            self.compressor.structure,
            keeps=settings.repair != "auto",  # it chooses by what the whole network gives
        )

    def __getstate__(self) -> dict[str, Any]:
        self.prepare()  # so that not everybody who gets a copy draws again
        kept = {name: value for name, value in self.__dict__.items() if name != "_split"}
        return {**kept, _MADE_WITH: _versions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse to answer under this identity where answers would be others.

        Raises:
            InputError: versions differ from those it was made with, or the processor does not
                compute in its precision.
        """
        _check_versions(state.pop(_MADE_WITH))
        if state["settings"].precision == "bfloat16":
            require_bfloat16()
        self.__dict__.update(state)

    def prepare(self) -> None:
        """Draw the images and run the uncompressed network on them, if that is still to do."""
        _ = self._reference

    @property
    def identity(self) -> str:
        """Hash of network, images, settings and version."""
        return self._identity

    @property
    def networks(self) -> str:
        """Hash of what decides the networks that are built; how they are measured is not in it."""
        return self._networks

    def _in_order(self, images: Tensor) -> Tensor:
        """Images as the network's convolutions like them; its activations follow suit."""
        return images.contiguous(memory_format=self._order)

    @cached_property
    def _reference(self) -> _Reference:
        with torch.inference_mode(False):  # whatever it is first needed in
            settings = self.settings
            drawn = draw_images(
                self._split, settings.images, settings.seed, settings.draw, self._signed_margins
            )
            images = self._in_order(drawn.images.tensor(self._normalization))
            labels: Tensor = torch.from_numpy(drawn.images.labels.copy())
        with torch.inference_mode():
            original, floor = self._measured_original(images, labels, drawn.sample)
            return _Reference(
                images, labels, drawn.sample, original, floor, self._has_ties(images[:1])
            )

    def _signed_margins(self, images: ImageSet) -> Tensor | None:
        """The original's margins on images, negative where it is wrong."""
        inputs = self._in_order(images.tensor(self._normalization))
        with torch.inference_mode():
            outputs = self._form.exact(self.compressor.model, inputs)
        margins = self._task.margins(outputs)
        if margins is None:
            return None
        right = self._task.answers(outputs) == torch.from_numpy(images.labels)
        return torch.where(right, margins, -margins)

    def _measured_original(
        self, images: Tensor, labels: Tensor, sample: Sample | None
    ) -> tuple[Tensor | None, float]:
        """The uncompressed network's outputs, and the floor of qualities.

        The final word is the quality alone: on test images nothing is compared.
        """
        if self.settings.split == "test" and not self.settings.floor:
            return None, 0.0
        kept: list[Tensor] = []

        def outputs() -> Iterator[Tensor]:
            for batch in torch.split(images, self.settings.batch):
                found = self.compressor.model(batch)
                if self._task.divergences(found[:1], found[:1]) is not None:
                    kept.append(found)
                yield found

        score = self._task.score(outputs(), labels, sample)
        floor = self.settings.floor * score.metrics[self._task.quality]
        return torch.cat(kept) if kept else None, floor

    def _has_ties(self, image: Tensor) -> bool:
        if self.settings.precision == "float32":
            return False
        return self._task.margins(self.compressor.model(image)) is not None

    def estimate(self, policy: Policy) -> Evaluation:
        """Build, repair and measure a policy's network."""
        start = time.perf_counter()
        try:
            self.prepare()
            start = time.perf_counter()  # the first policy's time is its own
            with torch.inference_mode():
                costs = self.compressor.cost(policy)
                network = self.compressor.build(policy)
                score = self._measure(network, policy)
        except Exception as reason:
            message = f"{type(reason).__name__}: {reason}"
            return Evaluation.failed(policy, self._identity, message, time.perf_counter() - start)
        return Evaluation(
            policy=policy,
            estimator=self._identity,
            metrics={**score.metrics, **costs},
            images=score.images,
            seconds=time.perf_counter() - start,
        )

    def qualities(self, network: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Quality of a network on all images, in [0, 1], by its metric's name.

        Where the standard error does not follow from a count, it stands beside it.

        Args:
            network: maps (n, ...) to the task's outputs; called as it is.

        Raises:
            EstimateError: an output is not finite.
        """
        with torch.inference_mode():
            return dict(self._score(network(images) for images in self._batches()).metrics)

    def quality(self, network: Callable[[Tensor], Tensor]) -> float:
        """Quality of a network on all images, in [0, 1], see `qualities`."""
        return self.qualities(network)[self._task.quality]

    def quality_of_answers(self, network: Callable[[Tensor], Tensor]) -> float:
        """Quality, in [0, 1], of a network that maps images to answers, see `Task.answers`."""
        answers = torch.cat([network(images) for images in self._batches()])
        return self._task.score_answers(answers, self._reference.labels).metrics[self._task.quality]

    def _quality(self, outputs: Iterable[Tensor]) -> float:
        return self._score(outputs).metrics[self._task.quality]

    def _score(self, outputs: Iterable[Tensor]) -> Score:
        return self._task.score(outputs, self._reference.labels, self._reference.sample)

    def fast_quality(self, network: nn.Module, policy: Policy) -> float:
        """What `estimate` says of a built network, early stops and kept values left out.

        Args:
            network: what the compressor built for the policy.
            policy: its policy.

        Raises:
            EstimateError: an output is not finite.
        """
        self._form.forget()  # all steps are run
        outputs = self._form.outputs(network, policy, self._batches())
        return self._quality(
            self._settled(network, [*outputs]) if self._reference.settles else outputs
        )

    def images_and_labels(self) -> tuple[Tensor, Tensor]:
        """(n, ...) images and (n,) labels that answers are counted on."""
        return self._reference.images, self._reference.labels

    @property
    def weights(self) -> Tensor | None:
        """(n,) how much every answer counts, 1 on average; None where all count alike."""
        sample = self._reference.sample
        return None if sample is None else sample.weights

    def _batches(self) -> tuple[Tensor, ...]:
        # Split when asked for: each part would be pickled with all of the images.
        return torch.split(self._reference.images, self.settings.batch)

    def _measure(self, network: nn.Module, policy: Policy) -> Score:
        """Score of a built network, and its divergence, on as many images as it took."""
        apart: list[Tensor] = []
        found: list[Tensor] = []
        outputs = self._compared(self._form.outputs(network, policy, self._batches()), apart)
        score = Score({}, 0, {})
        outputs = _kept(outputs, found) if self._reference.settles else outputs
        for score in self._task.scores(outputs, self._reference.labels, self._reference.sample):
            if self._has_collapsed(score):
                break
        else:
            if self._reference.settles:
                score = self._score(self._settled(network, found))
        if not apart:
            return score
        divergence = -math.expm1(-self._mean(torch.cat(apart)))
        return replace(score, metrics={**score.metrics, DIVERGENCE: divergence})

    def _mean(self, values: Tensor) -> float:
        """The mean of values of the first images, as they count."""
        if self.weights is None:
            return float(values.mean())
        weights = self.weights[: len(values)]
        return float(weights @ values / weights.sum())

    def _compared(self, outputs: Iterable[Tensor], apart: list[Tensor]) -> Iterator[Tensor]:
        """Outputs as they come; `apart` is given how far each is from the original's."""
        start = 0
        for batch in outputs:
            if self._reference.original is not None:
                original = self._reference.original[start : start + len(batch)]
                found = self._task.divergences(batch, original)
                assert found is not None
                apart.append(found)
            start += len(batch)
            yield batch

    def _settled(self, network: nn.Module, outputs: list[Tensor]) -> list[Tensor]:
        """Outputs on all images, those that are nearest to other answers in float32."""
        whole = torch.cat(outputs)
        margins = self._task.margins(whole)
        assert margins is not None
        nearest = margins.argsort(stable=True)[: max(1, len(whole) // _TIES)]
        images = torch.split(self._in_order(self._reference.images[nearest]), self.settings.batch)
        whole[nearest] = torch.cat([self._form.exact(network, part) for part in images])
        return [whole]

    def _has_collapsed(self, score: Score) -> bool:
        images = score.images
        if images < COLLAPSE_IMAGES or images - self.settings.batch >= COLLAPSE_IMAGES:
            return False
        accuracy = score.metrics.get("accuracy")
        if accuracy is None:
            return False
        error = score.metrics.get("accuracy_se", standard_error(accuracy, images))
        return accuracy + _ERRORS * error < self._reference.floor


def _kept(outputs: Iterable[Tensor], found: list[Tensor]) -> Iterator[Tensor]:
    """Outputs as they come, which `found` is given too."""
    for batch in outputs:
        found.append(batch)
        yield batch


def _building(settings: EstimateSettings) -> dict[str, Any]:
    """Settings that decide which network a policy is built into."""
    measuring = ("images", "batch", "floor", "split", "draw")
    return {name: value for name, value in asdict(settings).items() if name not in measuring}


def _own_order(settings: EstimateSettings, compressor: Compressor) -> tuple[Any, ...]:
    """What a criterion of the user's own says, for its code may change under one name."""
    if not is_own_criterion(settings.criterion):
        return ()
    return ({name: order.tolist() for name, order in compressor.order.items()},)


def _versions() -> str:
    """Of what makes answers here; how torch was built for other devices changes none of them."""
    torch_version = torch.__version__.partition("+")[0]
    return f"automl-compress (estimates {VERSION}, networks {BUILDS}) and torch {torch_version}"


def _check_versions(made_with: str) -> None:
    if made_with != _versions():
        raise InputError(
            f"an estimator must answer with what it was made with, {made_with}, but here are "
            f"{_versions()}; install the same on all machines"
        )


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _check_size(split: str, asked: int, held: int) -> None:
    if not 0 < asked <= held:
        raise WorkloadError(
            f"the {split} split must hold the examples asked for, but {asked} are asked of {held}; "
            "lower estimate.images or estimate.calibration_images"
        )
