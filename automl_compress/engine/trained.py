"""The estimator that trains a candidate briefly: what a cheap estimate should foretell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

from automl_compress.compress import Compressor
from automl_compress.compress.modules import own_copy
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator
from automl_compress.recover import (
    DETECTOR_RECOVERY,
    RecoverySettings,
    find_device,
    measure,
    recover_policy,
)
from automl_compress.recover.batches import check_augmentation
from automl_compress.recover.fixed import fixed_in
from automl_compress.recover.losses import labels_loss
from automl_compress.recover.settings import Augmentation, TrainingSettings
from automl_compress.settings import Section
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Workload
from automl_compress.workload.placement import move

VERSION: Final = 2
"""Raised whenever the same policy would get another answer than before."""
FEWEST_STEPS: Final = 1

BRIEF: Final = RecoverySettings(
    training=TrainingSettings(
        epochs=1, rate=0.02, average=0.0, augment=Augmentation(crop=0, flip=False)
    ),
    held_out=0.0,
)
"""Recovery without what needs a long training: averaged weights, images held out, and changed
images, of which a single pass has no need."""
DETECTOR_BRIEF: Final = dataclasses.replace(
    BRIEF,
    training=dataclasses.replace(
        DETECTOR_RECOVERY.training, epochs=1, average=0.0, augment=BRIEF.training.augment
    ),
    calibration_images=DETECTOR_RECOVERY.calibration_images,
)
"""The same of a detector."""


@dataclass(frozen=True)
class TrainSettings:
    """A training of so many steps.

    Args:
        steps: of the optimiser, or a few more where they take several passes; None for the epochs
            that `recovery` says.
        recovery: everything else.
    """

    steps: int | None = 200
    recovery: RecoverySettings = field(default_factory=lambda: BRIEF)

    @classmethod
    def from_section(cls, section: Section, boxed: bool = False) -> TrainSettings:
        """Read and close a mapping of `steps` and the settings of `RecoverySettings`.

        Where `steps` or nothing is given, unnamed settings are those of a brief recovery; where
        `epochs` is given, those of a full one.

        Args:
            section: the mapping.
            boxed: whether a detector is trained.

        Raises:
            InputError: a key or value is wrong, or both `steps` and `epochs` are given.
        """
        if "epochs" in section:
            if "steps" in section:
                raise section.fail(
                    f"'{section.name()}' must give 'steps' or 'epochs', but gives both; remove one",
                    "steps",
                )
            full = DETECTOR_RECOVERY if boxed else None
            return cls(None, RecoverySettings.from_section(section, full))
        steps = section.number("steps", int, cls.steps, low=FEWEST_STEPS)
        brief = DETECTOR_BRIEF if boxed else BRIEF
        return cls(steps, RecoverySettings.from_section(section, brief))

    def shown_images(self, images: ImageSet) -> int:
        """Training images that the steps go through, repeated ones counted again."""
        training = self.recovery.training
        if self.steps is not None:
            return self.steps * min(training.batch, len(images))
        return training.epochs * len(images)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"steps": self.steps, **self.recovery.to_dict()}


class TrainedEstimator(Estimator):
    """Quality on all search-validation images after training; costs exactly.

    Every policy is trained on the same images in the same order, so that networks of equal worth
    end alike. The uncompressed network has nothing to recover and is measured as it is.

    Args:
        workload: the network and its data.
        compressor: builds the networks that training starts from.
        networks: what decides the networks it starts from, see `NetworkEstimator.networks`.
        settings: how.

    Raises:
        InputError: the device is unknown, or the network cannot be trained here.
    """

    def __init__(
        self, workload: Workload, compressor: Compressor, networks: str, settings: TrainSettings
    ) -> None:
        training = settings.recovery.training
        labels_loss(workload.task, training.label_smoothing)  # or says why not
        check_augmentation(workload.splits.train, training.augment)
        self.settings = settings
        self._compressor = compressor
        self._normalization = workload.normalization
        self._task = workload.task
        self._judges = workload.splits.validation
        self._fixed = fixed_in(compressor.model, workload.model, workload.fixed)
        self._images, self._recovery = _planned(settings, workload.splits.train)
        self._device = find_device(settings.recovery.training.device)
        parts = [
            VERSION,
            networks,
            self._judges.content_hash,
            self._images.content_hash,
            settings.to_dict(),
            self._device.type,
            *sorted(self._fixed),
        ]
        self._identity = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def identity(self) -> str:
        """Hash of network, images, settings, kind of device and version."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Build, train and measure a policy's network."""
        start = time.perf_counter()
        if len(policy):
            network = recover_policy(
                *(self._compressor, policy, self._images, self._normalization, self._recovery),
                fixed=self._fixed,
            ).network
        else:
            network = own_copy(self._compressor.build(policy))
        found = measure(
            *(move(network, self._device), self._judges, self._normalization, self._device),
            self._task,
        )
        return Evaluation(
            policy=policy,
            estimator=self._identity,
            metrics={**found.score.metrics, **self._compressor.cost(policy)},
            images=len(self._judges),
            seconds=time.perf_counter() - start,
        )


def _planned(settings: TrainSettings, images: ImageSet) -> tuple[ImageSet, RecoverySettings]:
    """Training images and settings that make as many steps as asked.

    One pass over a draw where the images suffice, otherwise several over as many.
    """
    recovery = settings.recovery
    if settings.steps is None:
        return images, recovery
    batch = min(recovery.training.batch, len(images))
    share = 1.0 - recovery.held_out
    most = max(1, int(share * len(images)) // batch)
    epochs = math.ceil(settings.steps / most)
    a_pass = math.ceil(settings.steps / epochs)
    count = min(len(images), math.ceil(a_pass * batch / share))
    training = dataclasses.replace(recovery.training, epochs=epochs)
    drawn = images if count == len(images) else images.draw(count, training.seed)
    return drawn, dataclasses.replace(recovery, training=training)
